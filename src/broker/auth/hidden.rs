//! Text that is never shown: passwords of service accounts, shared secrets, headers, what stands in a service's address beside the place.

use std::fmt;
use std::str::FromStr;

use hyper::Uri;
use hyper::http::uri::InvalidUri;

/// A service's address, shown without a login and without its query: tokens stand there.
#[derive(Clone, PartialEq, Eq)]
pub struct Address(Uri);

impl Address {
    /// All of it, for whoever asks there.
    #[must_use]
    pub const fn reveal(&self) -> &Uri {
        &self.0
    }
}

impl FromStr for Address {
    type Err = InvalidUri;

    fn from_str(text: &str) -> Result<Self, InvalidUri> {
        text.parse().map(Self)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uri = &self.0;
        write!(f, "{}://{}", uri.scheme_str().unwrap_or_default(), uri.host().unwrap_or_default())?;
        if let Some(port) = uri.port_u16() {
            write!(f, ":{port}")?;
        }
        f.write_str(uri.path())?;
        if uri.query().is_some() { f.write_str("?***") } else { Ok(()) }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// See the module.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden(Box<str>);

impl Hidden {
    /// The text itself, for whoever needs it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Hidden {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&str> for Hidden {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_address_only_the_place_is_shown() {
        for (address, shown) in [
            ("https://id.example/keys.json", "https://id.example/keys.json"),
            ("http://u:hunter2@[::1]:8080/a?token=hunter2", "http://[::1]:8080/a?***"),
        ] {
            let address: Address = address.parse().unwrap();
            assert_eq!((address.to_string().as_str(), format!("{address:?}").as_str()), (shown, shown));
        }
    }
}
