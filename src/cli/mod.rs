//! What the operator types. Commands only parse, call, and print: what they do is in the modules that they call.
//! Errors here are for people: one line on standard error, and an exit code for scripts ([`Exit`]).

mod audit;
mod buffer;
pub mod check;
mod client;
mod dead_letters;
mod demo;
mod doctor;
mod exit;
mod explain;
mod origin;
mod out;
mod passwd;
mod point;
mod reload;
mod replay;
mod retained;
mod run;
mod signals;
mod status;
mod test;
mod text;
mod tool;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use nix::sys::stat::{Mode, umask};

use crate::config::{self, Env, Ties};
use crate::gateway;
use check::CheckError;
pub use exit::Exit;
use exit::{Failure, Outcome};

/// Where the configuration is looked for without `-c`, in this order.
const DEFAULT_FILES: [&str; 2] = ["./routes.yaml", "/etc/tidegate/routes.yaml"];

/// What somebody who has only the binary needs next.
const AFTER_HELP: &str = "\
Begin with `tidegate demo`. Then write a routes.yaml, `tidegate check` it, `tidegate run` it, and watch `tidegate status --watch`.

Exit codes: 0 done, 1 the answer is no, 64 wrong usage, 65 wrong configuration, 69 a remote or the gateway is not there,
70 our bug, 74 input or output failed, 77 not permitted; 130 and 143: SIGINT or SIGTERM ended it before its end.";

/// An edge message gateway: a built-in MQTT broker, declarative routes, and a store-and-forward buffer on disk for every link.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, arg_required_else_help = true, max_term_width = 100, after_help = AFTER_HELP)]
struct Cli {
    /// The configuration, a file or a folder of files [default: ./routes.yaml, then /etc/tidegate/routes.yaml]
    #[arg(short, long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway
    Run(run::Args),
    /// Report every mistake in a configuration: exit code 0 or 65
    Check {
        /// The file to check, default: as for `-c`; or those of several sites, which are checked together too
        files: Vec<PathBuf>,
        /// Do not look up `${env:..}` and `${file:..}`: for machines that do not have them
        #[arg(long)]
        no_secrets: bool,
        /// How mistakes are written
        #[arg(long, value_enum, default_value_t = check::Format::Text)]
        format: check::Format,
        /// Exit code 65 also where there are only warnings
        #[arg(long)]
        deny_warnings: bool,
        /// With several files: this address, HOST:PORT, is the broker of that site, or the same as another address
        #[arg(long, value_name = "SITE=HOST:PORT", value_parser = tie)]
        same: Vec<(String, String)>,
        /// With several files: 127.0.0.1 is the same machine in all of them
        #[arg(long)]
        one_machine: bool,
    },
    /// Print the JSON Schema of routes.yaml, for editors
    Schema,
    /// Show what would become of a message, and why: exit code 0 if a route takes it, 1 if none does
    Explain(explain::Args),
    /// Run tests of routes: given a message, what has to leave. Exit code 1 if any fails
    Test(test::Args),
    /// Show what the running gateway is doing: exit code 1 if it is not ready, short of memory, or a ledger does not balance
    Status(status::Args),
    /// Have the running gateway read its configuration again, and show what that changes: exit code 65 if it cannot be used
    Reload(reload::Args),
    /// Send again what a link's buffer still holds, delivered or not: by time, offset and topic, to the same link or another
    Replay(replay::Args),
    /// Prove from the files that every message is accounted for: exit code 1 on any gap, or damage that is not known
    Audit(audit::Args),
    /// What a remote refused for good: list, show, send again, drop
    DeadLetters(dead_letters::Args),
    /// What the broker has retained: list, drop; also while memory is short and no client is let in
    Retained(retained::Args),
    /// What buffers hold: list, look into, verify, repair, carry to another gateway
    Buffer(buffer::Args),
    /// Reach every remote as configured, step by step, and say what to do where that fails: exit code 69, 77, 65 or 1
    Doctor(doctor::Args),
    /// Add, change, remove or check a user in the file that `broker.auth.users` names
    Passwd(passwd::Args),
    /// Show the promise live: two sites, a line that fails, a gateway that is killed, and no message lost
    Demo(demo::Args),
}

/// The whole program behind `main`.
#[must_use]
pub fn main() -> ExitCode {
    keep_files_private();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, the rest is wrong usage.
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
            let _heard: std::io::Result<()> = error.print();
            return exit.into();
        }
    };
    match dispatch(&cli) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            out::complain(&failure.to_string());
            ExitCode::from(failure.code)
        }
    }
}

/// Files hold messages, passwords, and who may read them: folders are made 0750 and files 0640, or less where the umask says so.
/// What is there already stays as it is.
fn keep_files_private() {
    let others_nothing = Mode::S_IWGRP | Mode::S_IRWXO;
    let given = umask(others_nothing);
    umask(given | others_nothing);
}

fn dispatch(cli: &Cli) -> Outcome {
    match &cli.command {
        Command::Run(args) => run::run(args, &config_file(cli.config.as_deref())?),
        Command::Check { files, no_secrets, format, deny_warnings, same, one_machine } => {
            let options = check::Options { format: *format, deny_warnings: *deny_warnings };
            let env = Env { no_secrets: *no_secrets, ..Env::real() };
            let ties = Ties { one_machine: *one_machine, same: same.clone() };
            check(files, cli.config.as_deref(), &env, &ties, options)
        }
        Command::Schema => tool::print_json(&config::schema()).map(|()| Exit::Done),
        Command::Explain(args) => explain::explain(args, &config_file(cli.config.as_deref())?),
        Command::Test(args) => test::test(args, || config_file(cli.config.as_deref())),
        Command::Status(args) => ask_for_status(args, &config_file(cli.config.as_deref())?),
        Command::Reload(args) => reload::reload(args, &data_dir(&config_file(cli.config.as_deref())?)?),
        Command::Replay(args) => replay::replay(args, &load(&config_file(cli.config.as_deref())?)?.0.data_dir),
        Command::Audit(args) => audit::audit(args, &data_dir(&config_file(cli.config.as_deref())?)?),
        Command::DeadLetters(args) => dead_letters::dead_letters(args, &config_file(cli.config.as_deref())?),
        Command::Retained(args) => retained::retained(args, &data_dir(&config_file(cli.config.as_deref())?)?),
        Command::Buffer(args) => buffer::buffer(args, &config_file(cli.config.as_deref())?),
        Command::Doctor(args) => doctor::doctor(args, &load(&config_file(cli.config.as_deref())?)?.0),
        Command::Passwd(args) => passwd::passwd(args),
        Command::Demo(args) if cli.config.is_none() => demo::demo(args),
        Command::Demo(_) => {
            let wrong = anyhow::anyhow!("`demo` brings its own configuration: leave out -c");
            Err(Failure::new(Exit::Usage, wrong))
        }
    }
}

/// `check` takes its file in both places, but in one of them.
fn one_file<'a>(file: Option<&'a Path>, option: Option<&'a Path>) -> Result<Option<&'a Path>, Failure> {
    match (file, option) {
        (Some(file), Some(option)) => {
            let (file, option) = (file.display(), option.display());
            let wrong =
                anyhow::anyhow!("`check` takes its files behind it or with -c: {option} (-c) or {file}, not both");
            Err(Failure::new(Exit::Usage, wrong))
        }
        (one, other) => Ok(one.or(other)),
    }
}

/// `SITE=HOST:PORT`.
fn tie(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((one, other)) if !one.is_empty() && !other.is_empty() => Ok((one.to_owned(), other.to_owned())),
        _ => Err("two that are the same, such as `plant-7=mqtt.plant-7.example:8883`".to_owned()),
    }
}

/// The configuration's file: the one that was named, or the first default that exists.
fn config_file(named: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(named) = named {
        return Ok(named.to_owned());
    }
    let found = DEFAULT_FILES.iter().map(Path::new).find(|path| path.exists());
    found.map(Path::to_owned).ok_or_else(|| {
        let [first, second] = DEFAULT_FILES;
        let hint =
            anyhow::anyhow!("there is no configuration: neither {first} nor {second} exists; name one with -c FILE");
        Failure::new(Exit::Config, hint)
    })
}

/// The configuration, and what its check warns of as text; every mistake if it cannot be used.
fn load(file: &Path) -> Result<(gateway::Config, String), Failure> {
    match config::load(file, &Env::real()) {
        Ok((config, warnings)) => Ok((config, config::render(&warnings))),
        Err(mistakes) => Err(unusable(file, &mistakes)),
    }
}

/// Asks the gateway of a file. That needs no more of the file than the data folder: the secrets are the gateway's, and a file that
/// is being edited must not hide the gateway that runs.
fn ask_for_status(args: &status::Args, file: &Path) -> Outcome {
    let report = config::check(file, &Env::real());
    let Some(data_dir) = &report.data_dir else { return Err(unusable(file, &report.diagnostics)) };
    let mut outcome = status::status(args, data_dir);
    if let (Err(failure), true) = (&mut outcome, report.has_errors()) {
        let (file, summary) = (file.display(), config::summary(&report.diagnostics));
        failure.note(format!("{file} has mistakes ({summary}): `tidegate check {file}` shows them"));
    }
    outcome
}

/// The data folder of a configuration, which needs no secrets and may have mistakes elsewhere.
fn data_dir(file: &Path) -> Result<PathBuf, Failure> {
    let report = config::check(file, &Env::real());
    report.data_dir.ok_or_else(|| unusable(file, &report.diagnostics))
}

fn unusable(file: &Path, mistakes: &[config::Diagnostic]) -> Failure {
    let text = format!("{}{}", config::render(mistakes), config::summary(mistakes));
    Failure::new(Exit::Config, anyhow::anyhow!("{} cannot be used\n{text}", file.display()))
}

/// The routes of a configuration, to be asked. No secret is needed for that: one that is not at hand is made up.
fn routes_of(file: &Path) -> Result<gateway::explain::Routes, Failure> {
    let made_up = |name: &str| std::env::var(name).unwrap_or_else(|_not_set| "made-up".to_owned());
    let env = Env { variable: Box::new(move |name: &str| Some(made_up(name))), ..Env::real() };
    match config::load(file, &env) {
        Ok((config, _warnings)) => Ok(gateway::explain::Routes::of(config)),
        Err(mistakes) => Err(unusable(file, &mistakes)),
    }
}

fn check(files: &[PathBuf], option: Option<&Path>, env: &Env, ties: &Ties, options: check::Options) -> Outcome {
    let out = &mut std::io::stdout().lock();
    let named = one_file(files.first().map(PathBuf::as_path), option)?;
    let code = if files.len() > 1 {
        check::check_together(files, env, ties, options, out).map_err(|error| match error {
            CheckError::Output(error) => Failure::new(Exit::Io, error),
            CheckError::Untied(_) => Failure::new(Exit::Usage, error),
        })?
    } else if *ties == Ties::default() {
        let file = config_file(named)?;
        check::check_with(&file, env, options, out).map_err(|error| Failure::new(Exit::Io, error))?
    } else {
        let wrong = anyhow::anyhow!("--same and --one-machine are for the files of several sites");
        return Err(Failure::new(Exit::Usage, wrong));
    };
    Ok(if code == 0 { Exit::Done } else { Exit::Config })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_configuration_may_be_named_before_or_behind_the_command() {
        for line in [["tidegate", "-c", "x.yaml", "run"], ["tidegate", "run", "--config", "x.yaml"]] {
            let cli = Cli::try_parse_from(line).unwrap();
            assert_eq!(cli.config.as_deref(), Some(Path::new("x.yaml")));
        }
    }

    #[test]
    fn check_takes_one_file_in_either_place() {
        let (a, b) = (Path::new("a.yaml"), Path::new("b.yaml"));
        for (file, option, expected) in [(Some(a), None, Some(a)), (None, Some(b), Some(b)), (None, None, None)] {
            assert_eq!(one_file(file, option).unwrap(), expected);
        }
        let failure = one_file(Some(a), Some(b)).unwrap_err();
        assert_eq!(failure.code, 64);
        let text = failure.to_string();
        assert!(text.contains("a.yaml") && text.contains("b.yaml"), "{text}");
    }

    #[test]
    fn ties_are_for_several_files_and_have_two_sides() {
        assert_eq!(tie("hq=h:1").unwrap(), ("hq".to_owned(), "h:1".to_owned()));
        assert!(["hq", "=h:1", "hq="].iter().all(|text| tie(text).is_err()));
        let ties = Ties { one_machine: true, ..Ties::default() };
        let one = [PathBuf::from("a.yaml")];
        let failure = check(&one, None, &Env::real(), &ties, check::Options::default()).unwrap_err();
        assert_eq!(failure.code, 64, "{failure}");
    }

    #[test]
    fn the_documented_exit_codes_are_these() {
        let codes = [
            Exit::Done,
            Exit::No,
            Exit::Usage,
            Exit::Config,
            Exit::Unavailable,
            Exit::Bug,
            Exit::Io,
            Exit::NotPermitted,
        ];
        assert_eq!(codes.map(Exit::code), [0, 1, 64, 65, 69, 70, 74, 77]);
    }

    #[test]
    fn a_configuration_that_cannot_be_used_is_65_with_every_mistake() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("routes.yaml");
        std::fs::write(&file, "site: x\nlinkz: {}\nroutez: []\n").unwrap();
        let failure = load(&file).unwrap_err();
        assert_eq!(failure.code, 65);
        let text = failure.to_string();
        assert!(text.contains(":2:1: error: ") && text.contains(":3:1: error: "), "{text}");
    }

    #[test]
    fn a_gateway_can_be_asked_without_its_secrets_and_while_its_file_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("routes.yaml");
        let text =
            "data_dir: there\nlinkz: {}\nlinks: { hq: { mqtt: { url: \"mqtt://x:${env:TIDEGATE_NOT_SET}@h\" } } }\n";
        std::fs::write(&file, text).unwrap();
        let args = status::Args::default();
        let failure = ask_for_status(&args, &file).unwrap_err();
        assert_eq!(failure.code, 69, "{failure}");
        let socket = folder.path().join("there/admin.sock").display().to_string();
        let told = failure.to_string();
        assert!(told.contains(&socket) && told.contains("(2 errors, 0 warnings): `tidegate check "), "{told}");
        // Where the folder itself cannot be known, the mistakes are the answer.
        std::fs::write(&file, "data_dir: \"${env:TIDEGATE_NOT_SET}\"\n").unwrap();
        let failure = ask_for_status(&args, &file).unwrap_err();
        assert_eq!(failure.code, 65, "{failure}");
        assert!(failure.to_string().contains(":1:12: error: "), "{failure}");
    }
}
