//! `tidegate passwd`: the file of users that `broker.auth.users` names.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};

use super::exit::{Exit, Failure, Outcome};
use super::out;
use crate::broker::auth::passwords;
use crate::broker::auth::scram::{self, Entry, ITERATIONS_DEFAULT, SALT_BYTES};
use crate::broker::auth::users::{self, Users};

/// Longer than any password, and what MQTT can carry.
const PASSWORD_BYTES_MAX: usize = 65_535;

/// `tidegate passwd`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The file of users (`broker.auth.users`); it is made if it is not there
    file: PathBuf,
    /// The user to add, or whose password to change
    user: String,
    /// Remove the user
    #[arg(long, conflicts_with_all = ["verify", "stdin"])]
    delete: bool,
    /// Only say whether a password is the user's: exit code 0 or 1
    #[arg(long)]
    verify: bool,
    /// Add a line by which the user can prove to know the password without sending it (SCRAM-SHA-256, MQTT 5)
    #[arg(long, conflicts_with_all = ["verify", "delete"])]
    scram: bool,
    /// Read the password from standard input, up to the end of the first line, rather than from the terminal
    #[arg(long)]
    stdin: bool,
}

/// Adds, changes, removes or checks one user.
pub(crate) fn passwd(args: &Args) -> Outcome {
    let Args { file, user, .. } = args;
    users::check_name(user).map_err(|wrong| Failure::new(Exit::Usage, anyhow!("`{user}`: {wrong}")))?;
    if args.scram && scram::prepared(user).ok().as_deref() != Some(user) {
        let wrong = "SASLprep (RFC 4013) makes another name of it, or none, so nobody could prove to be that user";
        return Err(Failure::new(Exit::Usage, anyhow!("`{user}`: {wrong}: nothing was changed")));
    }
    let shown = file.display();
    let old = match fs::read_to_string(file) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !args.verify && !args.delete => None,
        Err(error) => return Err(failure(error, format!("{shown} cannot be read"))),
    };
    let text = old.clone().unwrap_or_default();
    if args.verify {
        return verify(args, &text);
    }
    let known = text.lines().any(|line| line.split_once(':').is_some_and(|(name, _)| name == user));
    if args.delete && !known {
        return Err(Failure::new(Exit::No, anyhow!("{shown} has no user `{user}`")));
    }
    let edited = if args.delete { users::edited(&text, user, None) } else { with_password(args, &text)? };
    replace(file, &edited).map_err(|error| failure(error, format!("{shown} cannot be written")))?;
    let done = match (args.delete, known) {
        (true, _) => "removed from",
        (false, true) => "has a new password in",
        (false, false) => "added to",
    };
    out::line(&format!("{user} {done} {shown}"));
    for wrong in Users::parse(&edited).err().into_iter().flatten() {
        out::complain(&format!("tidegate: {shown}: {wrong}"));
    }
    Ok(Exit::Done)
}

fn verify(args: &Args, text: &str) -> Outcome {
    let Args { file, user, .. } = args;
    let users = Users::parse(text).map_err(|wrong| {
        let wrong: Vec<_> = wrong.iter().map(ToString::to_string).collect();
        Failure::new(Exit::Config, anyhow!("{}: {}", file.display(), wrong.join("; ")))
    })?;
    let password = password(args, false)?;
    match users.get(user) {
        Some(secret) if secret.verify(password.as_bytes()) => {
            out::line(&format!("this is the password of {user}"));
            Ok(Exit::Done)
        }
        Some(_) => Err(Failure::new(Exit::No, anyhow!("this is not the password of `{user}`"))),
        None => Err(Failure::new(Exit::No, anyhow!("{} has no user `{user}`", file.display()))),
    }
}

/// All lines of the user get the new password: one that was forgotten would still let the old one in.
fn with_password(args: &Args, text: &str) -> Result<String, Failure> {
    let Args { user, .. } = args;
    let old: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name == user)
        .map(|(_, entry)| entry)
        .collect();
    let (proofs, others): (Vec<&str>, Vec<&str>) = old.into_iter().partition(|entry| Entry::is_one(entry));
    let password = password(args, true)?;
    let mut text = text.to_owned();
    if !args.scram || !others.is_empty() {
        text = users::edited(&text, user, Some(&hashed(&password)?));
    }
    if args.scram || !proofs.is_empty() {
        let made = Entry::of_password(&password, &rand::random::<[u8; SALT_BYTES]>(), ITERATIONS_DEFAULT);
        let entry = made.map_err(|error| Failure::new(Exit::Usage, anyhow!("{error}: nothing was changed")))?;
        text = users::edited(&text, user, Some(&entry.to_text()));
    }
    Ok(text)
}

fn hashed(password: &str) -> Result<String, Failure> {
    passwords::hash(password.as_bytes()).map_err(|error| Failure::new(Exit::Io, error))
}

/// Asks for a password; `twice` where a slip would be kept.
fn password(args: &Args, twice: bool) -> Result<String, Failure> {
    let password = if args.stdin { from_stdin() } else { from_terminal(&args.user, twice) }?;
    if password.is_empty() {
        return Err(Failure::new(Exit::Usage, anyhow!("an empty password lets everybody in: nothing was changed")));
    }
    if password.len() > PASSWORD_BYTES_MAX {
        return Err(Failure::new(Exit::Usage, anyhow!("a password has at most {PASSWORD_BYTES_MAX} bytes")));
    }
    Ok(password)
}

fn from_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    let most = PASSWORD_BYTES_MAX as u64 + 3;
    io::stdin().lock().take(most).read_to_string(&mut text).map_err(|error| {
        Failure::new(Exit::Io, anyhow::Error::new(error).context("the password cannot be read from standard input"))
    })?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn from_terminal(user: &str, twice: bool) -> Result<String, Failure> {
    let ask = |prompt: String| {
        rpassword::prompt_password(prompt).map_err(|error| {
            let words = "there is no terminal to ask for the password: use --stdin";
            Failure::new(Exit::Usage, anyhow::Error::new(error).context(words))
        })
    };
    let first = ask(format!("Password of {user}: "))?;
    if twice && ask("The same again: ".to_owned())? != first {
        return Err(Failure::new(Exit::Usage, anyhow!("these were two passwords: nothing was changed")));
    }
    Ok(first)
}

/// Writes a file anew, for its owner alone, in one step: who reads it meanwhile has the old or the new one.
fn replace(file: &Path, text: &str) -> anyhow::Result<()> {
    let target = fs::canonicalize(file).unwrap_or_else(|_new| file.to_owned());
    let mut name = target.file_name().context("it names no file")?.to_owned();
    name.push(".new");
    let temporary = target.with_file_name(name);
    // Two at the same time would lose one of the changes: the second stops here.
    let mut new = File::options().write(true).create_new(true).mode(0o600).open(&temporary).with_context(|| {
        format!(
            "{} (if it is there, another `tidegate passwd` is at work or was interrupted: then remove it)",
            temporary.display()
        )
    })?;
    let written = (|| {
        new.write_all(text.as_bytes())?;
        // The gateway's own user must still be able to read it, whoever changes it.
        if let Ok(old) = fs::metadata(&target) {
            fchown(&new, Some(old.uid()), Some(old.gid()))?;
        }
        new.sync_all()?;
        fs::rename(&temporary, &target)?;
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        File::open(folder)?.sync_all()
    })();
    written.map_err(|error: io::Error| {
        drop(fs::remove_file(&temporary));
        anyhow::Error::new(error)
    })
}

fn failure(error: impl Into<anyhow::Error>, words: String) -> Failure {
    let error = error.into();
    let denied = |error: &(dyn std::error::Error + 'static)| {
        error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    };
    let exit = if error.chain().any(denied) { Exit::NotPermitted } else { Exit::Io };
    Failure::new(exit, error.context(words))
}
