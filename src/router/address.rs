//! Addresses (R29): `broker/FILTER`, `LINK/FILTER`, `LINK/QUEUE[/PATTERN]`, `LINK/TOPIC[/PATTERN]`.

use super::pattern::Pattern;
use super::syntax::{Problem, SyntaxError};
use super::template::Template;
use super::{Binding, Endpoint, From, LinkId, To};

/// What stands behind the endpoint in the address that a route begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A pattern on the topic: the built-in broker and MQTT links.
    Topic,
    /// A RabbitMQ queue or Kafka topic, and perhaps a pattern on the message's topic behind it.
    Channel,
}

impl Endpoint {
    /// The endpoint that an address begins with, so that the caller can look up its [`Form`].
    ///
    /// # Errors
    /// An address without a `/` or with nothing before it.
    pub fn of_address(address: &str) -> Result<Self, SyntaxError> {
        split(address).map(|(endpoint, _)| endpoint)
    }

    /// How many bytes of an address it and its `/` take.
    #[must_use]
    pub fn address_bytes(&self) -> usize {
        match self {
            Self::Broker => "broker/".len(),
            Self::Link(link) => link.as_str().len() + 1,
        }
    }
}

impl From {
    /// Reads an address that a route begins with.
    ///
    /// # Errors
    /// The first mistake, with its place in `address`.
    pub fn parse(address: &str, form: Form) -> Result<Self, SyntaxError> {
        let (endpoint, what) = split(address)?;
        let (share, what) = match form {
            Form::Topic => split_share(what).map_err(|error| error.shifted(endpoint.address_bytes()))?,
            Form::Channel => (None, what),
        };
        let (channel, pattern) = match form {
            Form::Topic => (None, Some(what)),
            Form::Channel => match what.split_once('/') {
                Some((channel, pattern)) => (Some(channel), Some(pattern)),
                None => (Some(what), None),
            },
        };
        if channel == Some("") {
            let at = endpoint.address_bytes();
            return Err(SyntaxError::new(at..at, Problem::NothingBehind(endpoint.to_string())));
        }
        let pattern = pattern.map(|text| Pattern::parse(text).map_err(|e| e.shifted(address.len() - text.len())));
        let (channel, share) = (channel.map(str::to_owned), share.map(str::to_owned));
        Ok(Self { endpoint, channel, pattern: pattern.transpose()?, share })
    }
}

impl To {
    /// Reads an address that a route leads to. Which binding a link has is the caller's to know.
    ///
    /// # Errors
    /// The first mistake, with its place in `address`.
    pub fn parse(address: &str) -> Result<Self, SyntaxError> {
        let (endpoint, what) = split(address)?;
        let offset = endpoint.address_bytes();
        if let Some(at) = what.find(['+', '#']) {
            return Err(SyntaxError::new(at..at + 1, Problem::WildcardInTemplate).shifted(offset));
        }
        let template = Template::parse(what).map_err(|error| error.shifted(offset))?;
        Ok(Self { endpoint, template, binding: Binding::default() })
    }
}

/// `$share/GROUP/FILTER` (MQTT 5.0 section 4.8.2).
fn split_share(what: &str) -> Result<(Option<&str>, &str), SyntaxError> {
    let Some(shared) = what.strip_prefix("$share/") else { return Ok((None, what)) };
    match shared.split_once('/') {
        Some((group, filter)) if !group.is_empty() && !group.contains(['+', '#', '{', '}']) && !filter.is_empty() => {
            Ok((Some(group), filter))
        }
        _ => Err(SyntaxError::new(0..what.len(), Problem::Share)),
    }
}

fn split(address: &str) -> Result<(Endpoint, &str), SyntaxError> {
    let Some((name, what)) = address.split_once('/') else {
        return Err(SyntaxError::new(0..address.len(), Problem::NoSlash));
    };
    if name.is_empty() {
        return Err(SyntaxError::new(0..1, Problem::NoName));
    }
    if what.is_empty() {
        return Err(SyntaxError::new(0..address.len(), Problem::NothingBehind(name.to_owned())));
    }
    let endpoint = if name == "broker" { Endpoint::Broker } else { Endpoint::Link(LinkId::new(name)) };
    Ok((endpoint, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r29_addresses_are_read_in_their_forms() {
        let from = From::parse("broker/factory/{line}/#", Form::Topic).unwrap();
        assert_eq!(from.endpoint, Endpoint::Broker);
        assert_eq!((from.channel, from.pattern.unwrap().filter()), (None, "factory/+/#".to_owned()));

        let from = From::parse("cloud/orders", Form::Channel).unwrap();
        assert_eq!(from.endpoint, Endpoint::Link(LinkId::new("cloud")));
        assert_eq!((from.channel.as_deref(), from.pattern), (Some("orders"), None));

        let from = From::parse("cloud/orders/a/{b}", Form::Channel).unwrap();
        assert_eq!((from.channel.as_deref(), from.pattern.unwrap().filter()), (Some("orders"), "a/+".to_owned()));

        let from = From::parse("hq/$share/sites/cmd/{a}", Form::Topic).unwrap();
        assert_eq!((from.share.as_deref(), from.pattern.unwrap().filter()), (Some("sites"), "cmd/+".to_owned()));

        let to = To::parse("cloud/{line}.{machine}").unwrap();
        assert_eq!((to.endpoint.to_string(), to.template.as_str()), ("cloud".to_owned(), "{line}.{machine}"));
    }

    #[test]
    fn mistakes_in_addresses_carry_their_place_in_the_whole_address() {
        for (text, form, span) in [
            ("broker", Form::Topic, 0..6),
            ("/a", Form::Topic, 0..1),
            ("hq/", Form::Topic, 0..3),
            ("hq/a/#/b", Form::Topic, 5..6),
            ("hq//a", Form::Channel, 3..3),
            ("hq/queue/a/#/b", Form::Channel, 11..12),
            ("hq/queue/", Form::Channel, 9..9),
            ("hq/$share/a", Form::Topic, 3..11),
            ("hq/$share//a", Form::Topic, 3..12),
            ("hq/$share/a+/b", Form::Topic, 3..14),
            ("hq/$share/g/a/#/b", Form::Topic, 14..15),
        ] {
            assert_eq!(From::parse(text, form).unwrap_err().span, span, "{text}");
        }
        for (text, span) in [("hq/a/#", 5..6), ("hq/a/{b", 5..6), ("hq", 0..2)] {
            assert_eq!(To::parse(text).unwrap_err().span, span, "{text}");
        }
    }
}
