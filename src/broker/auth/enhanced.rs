//! Enhanced authentication (MQTT 5.0 section 4.12): a conversation of AUTH packets, at CONNECT or, as re-authentication, later.
//!
//! ```text
//! CONNECT (method, data) ─► Exchange::begin ─► AUTH 0x18 (data) ─► .. AUTH 0x18 (data) ─► CONNACK (method, data)
//! AUTH 0x19 (method, data) ─► the same ─► AUTH 0x18 ─► .. AUTH 0x18 ─► AUTH 0x00
//! ```
//!
//! One method is known, `SCRAM-SHA-256`. PURE: entries and nonces come in as arguments.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::scram::{Begun, Challenge, Entry, METHOD};
use crate::wire::{Auth, ReasonCode};

/// What a conversation needs of the world.
pub(in crate::broker) trait Directory {
    /// What is kept of the user's password.
    fn entry(&self, user: &str) -> Option<Entry>;
    /// The same for a user who does not exist, always the same for one name.
    fn fake(&self, user: &str) -> Entry;
    /// Our part of a nonce: printable, without a comma, never the same again.
    fn nonce(&self) -> String;
}

/// A conversation that has begun.
pub(in crate::broker) struct Exchange {
    /// Who it has to be: the User Name of CONNECT, or who it was so far.
    user: Option<Arc<str>>,
    state: State,
}

enum State {
    /// The client sent no data with its first packet.
    First,
    /// It was asked for a proof.
    Final { challenge: Challenge, user: Arc<str> },
}

/// What follows a packet.
#[derive(Debug)]
pub(in crate::broker) enum Step {
    /// AUTH 0x18 with this data; then the client's next.
    Ask { data: Bytes, then: Exchange },
    /// The client is who it says; this goes with CONNACK or AUTH 0x00.
    Done { user: Arc<str>, data: Bytes },
    /// It is not. `text` is for the log alone.
    Failed { code: ReasonCode, text: String },
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Whether a CONNECT may name this method.
pub(in crate::broker) fn is_known(method: &str) -> bool {
    method == METHOD
}

/// Whether an AUTH packet may come here: with the code that is due, and the method of CONNECT (MQTT-4.12.0-5, MQTT-4.12.1-1).
///
/// # Errors
/// What to answer.
pub(in crate::broker) fn check_packet(auth: &Auth, due: ReasonCode) -> Result<(), (ReasonCode, &'static str)> {
    if auth.code != due {
        let text = if due == ReasonCode::ReAuthenticate {
            "AUTH without an authentication that is under way begins with 0x19"
        } else {
            "AUTH within an authentication has the code 0x18"
        };
        return Err((ReasonCode::ProtocolError, text));
    }
    match auth.properties.method.as_deref() {
        Some(method) if is_known(method) => Ok(()),
        _ => Err((ReasonCode::BadAuthenticationMethod, "AUTH names another method than CONNECT did")),
    }
}

impl Exchange {
    /// With the data of the first packet, if it had some. `user`: who it has to be, if that is said.
    pub(in crate::broker) fn begin(user: Option<Arc<str>>, data: Option<&Bytes>, directory: &dyn Directory) -> Step {
        let begun = Self { user, state: State::First };
        match data.filter(|data| !data.is_empty()) {
            Some(data) => begun.step(data, directory),
            // As SASL has it (RFC 4422 section 3.3): an empty challenge asks for the first message.
            None => Step::Ask { data: Bytes::new(), then: begun },
        }
    }

    /// With the data of the client's next packet.
    pub(in crate::broker) fn step(self, data: &[u8], directory: &dyn Directory) -> Step {
        match self.state {
            State::First => {
                let begun = match Begun::parse(data) {
                    Ok(begun) => begun,
                    Err(error) => return failed(error.to_string()),
                };
                let user: Arc<str> = begun.user().into();
                if self.user.as_ref().is_some_and(|due| *due != user) {
                    return failed("the user of the exchange is another than the connection's".to_owned());
                }
                let fake = || directory.fake(&user);
                let (first, challenge) = begun.challenge(directory.entry(&user), fake, &directory.nonce());
                let then = Self { user: self.user, state: State::Final { challenge, user: Arc::clone(&user) } };
                Step::Ask { data: Bytes::from(first), then }
            }
            State::Final { challenge, user } => match challenge.finish(data) {
                Ok(last) => Step::Done { user, data: Bytes::from(last) },
                Err(error) => failed(format!("user `{user}`: {error}")),
            },
        }
    }
}

/// Whatever failed, the client learns only that it did.
const fn failed(text: String) -> Step {
    Step::Failed { code: ReasonCode::NotAuthorized, text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::auth::scram::{self, fake_entry};
    use crate::wire::AuthProperties;

    struct Anna;

    impl Directory for Anna {
        fn entry(&self, user: &str) -> Option<Entry> {
            (user == "anna").then(|| Entry::of_password("secret", b"saltsalt", scram::ITERATIONS_MIN).unwrap())
        }

        fn fake(&self, user: &str) -> Entry {
            fake_entry(b"ours", user, scram::ITERATIONS_MIN)
        }

        fn nonce(&self) -> String {
            "ours".to_owned()
        }
    }

    fn asked(step: Step) -> (String, Exchange) {
        let Step::Ask { data, then } = step else { panic!("{step:?}") };
        (String::from_utf8(data.to_vec()).unwrap(), then)
    }

    /// How the conversation ends for a client that uses `password`.
    fn converse(due: Option<&str>, user: &str, password: &str, with_data: bool) -> Step {
        let first = format!("n,,n={user},r=theirs");
        let data = Bytes::from(first.clone().into_bytes());
        let due = due.map(Into::into);
        let step = if with_data {
            Exchange::begin(due, Some(&data), &Anna)
        } else {
            let (empty, exchange) = asked(Exchange::begin(due, None, &Anna));
            assert_eq!(empty, "");
            exchange.step(&data, &Anna)
        };
        if matches!(step, Step::Failed { .. }) {
            return step;
        }
        let (challenge, exchange) = asked(step);
        assert!(challenge.starts_with("r=theirsours,s="));
        exchange.step(scram::tests::answer(password, &first, &challenge).as_bytes(), &Anna)
    }

    #[test]
    fn whoever_knows_the_password_gets_in() {
        for (due, with_data) in [(None, true), (Some("anna"), true), (None, false)] {
            let end = converse(due, "anna", "secret", with_data);
            assert!(matches!(end, Step::Done { user, data } if &*user == "anna" && data.starts_with(b"v=")));
        }
    }

    #[test]
    fn others_fail_all_alike() {
        for (due, user, password) in [(None, "anna", "wrong"), (None, "eve", "secret"), (Some("ben"), "anna", "secret")]
        {
            let end = converse(due, user, password, true);
            assert!(matches!(end, Step::Failed { code: ReasonCode::NotAuthorized, .. }), "{end:?}");
        }
        let garbage = Exchange::begin(None, Some(&Bytes::from_static(b"garbage")), &Anna);
        assert!(matches!(garbage, Step::Failed { code: ReasonCode::NotAuthorized, .. }));
    }

    #[test]
    fn a_packet_that_does_not_belong_here_is_told_apart() {
        let auth = |code, method: &str| Auth {
            code,
            properties: AuthProperties { method: Some(method.into()), ..AuthProperties::default() },
        };
        let (on, again) = (ReasonCode::ContinueAuthentication, ReasonCode::ReAuthenticate);
        for (packet, due, expected) in [
            (auth(on, METHOD), on, Ok(())),
            (auth(again, METHOD), again, Ok(())),
            (auth(again, METHOD), on, Err(ReasonCode::ProtocolError)),
            (auth(on, METHOD), again, Err(ReasonCode::ProtocolError)),
            (auth(ReasonCode::Success, METHOD), on, Err(ReasonCode::ProtocolError)),
            (auth(on, "SCRAM-SHA-1"), on, Err(ReasonCode::BadAuthenticationMethod)),
            (Auth { code: on, properties: AuthProperties::default() }, on, Err(ReasonCode::BadAuthenticationMethod)),
        ] {
            assert_eq!(check_packet(&packet, due).map_err(|(code, _)| code), expected, "{packet:?}");
        }
    }
}
