//! What enhanced authentication asks of the file of users, and how its failures are told.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use std::{fs, io};

use super::enhanced::Directory;
use super::scram::{self, Entry, fake_entry, nonce_of};
use super::{Authenticator, By, Granted};
use crate::wire::ReasonCode;

/// The file of [`OwnSecret`] in the data folder.
const FILE: &str = "auth.secret";

/// What challenges for users who do not exist are made of: this gateway's own, and the same after each start, so that such a user looks
/// like any other over time too.
#[derive(Clone)]
pub(in crate::broker) struct OwnSecret([u8; 32]);

impl std::fmt::Debug for OwnSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OwnSecret(..)")
    }
}

impl OwnSecret {
    /// From `dir`, where it is made at the first start. Where that fails, one for this run is used, which is logged.
    pub(in crate::broker) fn open(dir: &Path) -> Self {
        let file = dir.join(FILE);
        let secret = match fs::read(&file) {
            Ok(bytes) => <[u8; 32]>::try_from(bytes).map_err(|_error| io::Error::other("it does not hold 32 bytes")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::make(&file),
            Err(error) => Err(error),
        };
        match secret {
            Ok(secret) => Self(secret),
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "the broker's own secret cannot be kept: another one is used for this run");
                Self(rand::random())
            }
        }
    }

    fn make(file: &Path) -> io::Result<[u8; 32]> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let secret: [u8; 32] = rand::random();
        fs::File::options().write(true).create_new(true).mode(0o600).open(file)?.write_all(&secret)?;
        Ok(secret)
    }
}

impl Directory for Authenticator {
    fn entry(&self, user: &str) -> Option<Entry> {
        self.users.load().proof(user).cloned()
    }

    fn fake(&self, user: &str) -> Entry {
        let mut fake = fake_entry(&self.own_secret.0, user, scram::ITERATIONS_DEFAULT);
        // As many iterations as some entry of the file has, the same one each time.
        let at = fake.salt().iter().fold(0_usize, |sum, byte| (sum << 8 | usize::from(*byte)) % 65_521);
        if let Some(iterations) = self.users.load().nth_iterations(at) {
            fake = fake_entry(&self.own_secret.0, user, iterations);
        }
        fake
    }

    fn nonce(&self) -> String {
        nonce_of(&rand::random::<[u8; scram::NONCE_BYTES]>())
    }
}

impl Authenticator {
    /// Whether anybody can authenticate by a proof.
    pub(in crate::broker) fn has_proofs(&self) -> bool {
        self.users.load().nth_iterations(0).is_some()
    }

    /// Whether one may try at all, before a conversation begins.
    ///
    /// # Errors
    /// What to answer.
    pub(in crate::broker) fn may_begin(
        &self,
        address: Option<IpAddr>,
        now: Instant,
    ) -> Result<(), (ReasonCode, &'static str)> {
        if !self.has_proofs() {
            return Err((ReasonCode::BadAuthenticationMethod, "no user here can authenticate by this method"));
        }
        if !self.attempts.may_try(address, now) {
            return Err((ReasonCode::ServerBusy, "too many logins from this address have failed"));
        }
        Ok(())
    }

    /// Notes, tells and delays a conversation that failed.
    pub(in crate::broker) async fn failed(&self, address: Option<IpAddr>, why: &str, now: Instant) {
        let delay = self.attempts.note_failure(address, now);
        if let Some(held_back) = self.refusals.pass(now) {
            let address = address.map_or_else(|| "a Unix socket".to_owned(), |address| address.to_string());
            tracing::warn!(address, why, held_back, "an authentication has failed");
        }
        tokio::time::sleep(delay).await;
    }
}

impl Granted {
    /// What somebody gets who has proven to be `user`.
    pub(in crate::broker) fn proven(user: Arc<str>) -> Self {
        Self { user: Some(user), by: By::Users, ..Self::default() }
    }
}
