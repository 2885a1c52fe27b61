//! A password that is looked up at each connection: text of the configuration, a file, or what a command prints (a JWT, a SAS token).

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::LinkError;

/// No token is longer. A file that is, is another file.
const BYTES_MAX: usize = 64 << 10;

/// How long a command may take: the runner's own timeout may be longer.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// A token is renewed this long before it ends, or when nine tenths of its time have passed, whichever is later.
const BEFORE_END: Duration = Duration::from_secs(60);

/// Where a password comes from.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Secret {
    /// There is none.
    #[default]
    None,
    /// As configured.
    Text(String),
    /// The content of this file, without white space around it.
    File(PathBuf),
    /// What this program prints, without white space around it: the program and its arguments, no shell.
    Command(Vec<String>),
}

impl std::fmt::Debug for Secret {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Text(_) => f.write_str("Text(***)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Command(command) => f.debug_tuple("Command").field(&command.first()).finish(),
        }
    }
}

impl Secret {
    /// Looks it up. `None`: there is none.
    ///
    /// # Errors
    /// The file or the program fails: may pass, since both are somebody's at work.
    pub(super) async fn look_up(&self) -> Result<Option<String>, LinkError> {
        let found = match self {
            Self::None => return Ok(None),
            Self::Text(text) => return Ok(Some(text.clone())),
            Self::File(path) => {
                let read = tokio::fs::read(path).await;
                read.map_err(|error| failed(&format!("the password in {}", path.display()), &error))?
            }
            Self::Command(command) => run(command).await?,
        };
        let text = String::from_utf8(found).ok().filter(|text| text.len() <= BYTES_MAX);
        let text = text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        text.map(Some).ok_or_else(|| failed(&self.name(), &"it is empty, or no text that can be a password"))
    }

    /// For messages.
    fn name(&self) -> String {
        match self {
            Self::None | Self::Text(_) => "the password".to_owned(),
            Self::File(path) => format!("the password in {}", path.display()),
            Self::Command(command) => format!("the password of `{}`", command.first().map_or("", String::as_str)),
        }
    }

    /// Whether another look may find another one.
    pub(super) const fn may_change(&self) -> bool {
        matches!(self, Self::File(_) | Self::Command(_))
    }
}

async fn run(command: &[String]) -> Result<Vec<u8>, LinkError> {
    let name = format!("`{}`", command.first().map_or("", String::as_str));
    let Some((program, arguments)) = command.split_first() else {
        return Err(failed("the password's command", &"it is empty"));
    };
    let mut child = tokio::process::Command::new(program);
    child.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(COMMAND_TIMEOUT, child.output()).await;
    let output = output.map_err(|_elapsed| failed(&name, &format!("no end within {COMMAND_TIMEOUT:?}")))?;
    let output = output.map_err(|error| failed(&name, &error))?;
    // What it says may hold the secret: not shown.
    if output.status.success() { Ok(output.stdout) } else { Err(failed(&name, &output.status)) }
}

fn failed(what: &str, why: &dyn std::fmt::Display) -> LinkError {
    LinkError::Transient(format!("{what}: {why}"))
}

/// When a token should be replaced, from `now_s` on, both in seconds since 1970. `None`: it does not say when it ends, or has ended.
pub(super) fn renewal(token: &str, now_s: u64) -> Option<Duration> {
    let left = Duration::from_secs(end_s(token)?.checked_sub(now_s).filter(|left| *left > 0)?);
    Some(left.saturating_sub(BEFORE_END).max(left / 10 * 9))
}

/// `sub` of a JWT.
pub(super) fn subject(token: &str) -> Option<String> {
    Some(claims(token)?.get("sub")?.as_str()?.to_owned())
}

/// `exp` of a JWT (RFC 7519), `se=` of a shared access signature (Azure).
pub(super) fn end_s(token: &str) -> Option<u64> {
    if let Some(parameters) = token.strip_prefix("SharedAccessSignature ") {
        return parameters.split('&').find_map(|pair| pair.strip_prefix("se="))?.parse().ok();
    }
    let claims = claims(token)?;
    let end = claims.get("exp")?;
    // A NumericDate may have a fraction.
    end.as_u64().or_else(|| end.as_f64().and_then(|end| format!("{end:.0}").parse().ok()))
}

fn claims(token: &str) -> Option<serde_json::Value> {
    let mut parts = token.split('.');
    let (_, claims, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else { return None };
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_and_a_command_are_looked_at_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let file = Secret::File(path.clone());
        assert!(file.look_up().await.unwrap_err().to_string().contains("token"));
        for token in ["one", "two"] {
            std::fs::write(&path, format!(" {token}\n")).unwrap();
            assert_eq!(file.look_up().await.unwrap().as_deref(), Some(token));
            let command = Secret::Command(vec!["cat".into(), path.display().to_string()]);
            assert_eq!(command.look_up().await.unwrap().as_deref(), Some(token));
        }
        std::fs::write(&path, "\n").unwrap();
        assert!(file.look_up().await.is_err(), "an empty password is a mistake");
    }

    #[tokio::test]
    async fn a_command_that_fails_is_named_without_what_it_said() {
        for command in [&["sh", "-c", "echo secret; exit 3"][..], &["/nowhere/token"], &[]] {
            let command = Secret::Command(command.iter().map(|&word| word.to_owned()).collect());
            let error = command.look_up().await.unwrap_err();
            assert!(matches!(&error, LinkError::Transient(words) if !words.contains("secret")), "{error}");
        }
    }

    #[test]
    fn a_token_is_renewed_before_it_ends() {
        let jwt = |claims: &str| format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(claims));
        for (token, left_s) in [
            (jwt(r#"{"exp":4600}"#), Some(3_540)),
            (jwt(r#"{"exp":4600.7}"#), Some(3_541)),
            (jwt(r#"{"exp":1100}"#), Some(90)),
            (jwt(r#"{"exp":1000}"#), None),
            (jwt(r#"{"exp":"soon"}"#), None),
            (jwt("{}"), None),
            ("SharedAccessSignature sr=hub.example%2Fdevices%2Fa&sig=x%3D&se=4600".to_owned(), Some(3_540)),
            ("SharedAccessSignature sr=hub&sig=x".to_owned(), None),
            ("a password. with. dots".to_owned(), None),
            ("hunter2".to_owned(), None),
        ] {
            assert_eq!(renewal(&token, 1_000).map(|left| left.as_secs()), left_s, "{token}");
        }
    }
}
