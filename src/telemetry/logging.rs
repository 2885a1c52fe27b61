//! Logs: structured, to standard error. Text for people, JSON for machines; what is logged is a filter in `TIDEGATE_LOG`
//! (`info`, `tidegate::links=debug,warn`), how it looks is `--log-format` or `TIDEGATE_LOG_FORMAT`.

use std::fmt;
use std::io::{self, IsTerminal as _};
use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt as _;

/// The variable that holds the filter.
pub const FILTER_VARIABLE: &str = "TIDEGATE_LOG";
/// The variable that holds the format where no flag is given.
pub const FORMAT_VARIABLE: &str = "TIDEGATE_LOG_FORMAT";

/// What our own code says, and of the libraries only what they warn of: their `info` is about their own insides. Nothing of
/// lapin: the link says the same in one line, and lapin's lines quote whole messages, payload included.
const DEFAULT_FILTER: &str = "warn,lapin=off,tidegate=info";

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One line of text, coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for Format {
    type Err = LogError;

    fn from_str(text: &str) -> Result<Self, LogError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(LogError::Format(text.to_owned())),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Why logs could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// No such format.
    #[error("`{0}` is no log format: `text` or `json`")]
    Format(String),
    /// The filter does not parse.
    #[error("{FILTER_VARIABLE}={filter} is no log filter: {error} (such as `info` or `tidegate::links=debug,warn`)")]
    Filter {
        /// What it says.
        filter: String,
        /// What is wrong with it.
        error: String,
    },
    /// Set up already.
    #[error("logs are set up already: {0}")]
    Twice(String),
}

/// Sets up the process's logs. `format`: of the flag, `None` where it was not given.
///
/// # Errors
/// [`LogError`].
pub fn init(format: Option<Format>) -> Result<(), LogError> {
    let format = match (format, variable(FORMAT_VARIABLE)) {
        (Some(format), _) => format,
        (None, Some(text)) => text.parse()?,
        (None, None) => Format::Text,
    };
    let filter = filter(variable(FILTER_VARIABLE))?;
    let colours = io::stderr().is_terminal() && variable("NO_COLOR").is_none();
    subscriber(format, filter, colours, io::stderr).try_init().map_err(|error| LogError::Twice(error.to_string()))
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn filter(text: Option<String>) -> Result<EnvFilter, LogError> {
    let filter = text.unwrap_or_else(|| DEFAULT_FILTER.to_owned());
    // The crate takes a word that it does not know for the name of a part, and then logs nothing at all.
    if let Some(word) = filter.split(',').find(|word| is_no_level(word)) {
        let error = format!("`{word}` is no level: {LEVELS}; for one part of the program `{word}=debug`");
        return Err(LogError::Filter { filter, error });
    }
    EnvFilter::try_new(&filter).map_err(|error| LogError::Filter { filter, error: error.to_string() })
}

/// The levels, from silence to everything.
const LEVELS: &str = "off, error, warn, info, debug or trace";

/// Whether a piece of a filter is a lone word that is neither a level nor our own name.
fn is_no_level(word: &str) -> bool {
    let is_word = !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || c == '_');
    is_word && word != "tidegate" && word.parse::<tracing_subscriber::filter::LevelFilter>().is_err()
}

fn subscriber<W>(
    format: Format,
    filter: EnvFilter,
    colours: bool,
    writer: W,
) -> Box<dyn tracing::Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match format {
        Format::Text => Box::new(builder.with_ansi(colours).finish()),
        Format::Json => Box::new(builder.json().flatten_event(true).finish()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format) -> String {
        let memory = Memory::default();
        let writer = memory.clone();
        let subscriber = subscriber(format, filter(Some("info".to_owned())).unwrap(), false, move || writer.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(link = "cloud", depth = 3, "backing off");
            tracing::debug!("not shown");
        });
        String::from_utf8(memory.0.lock().clone()).unwrap()
    }

    #[test]
    fn json_logs_are_one_object_a_line_with_the_fields_on_top() {
        let text = logged(Format::Json);
        assert_eq!(text.lines().count(), 1);
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&line["message"], &line["link"], &line["depth"]),
            (&"backing off".into(), &"cloud".into(), &3.into())
        );
    }

    #[test]
    fn text_logs_name_level_message_and_fields() {
        let text = logged(Format::Text);
        assert!(text.contains("INFO") && text.contains("backing off link=\"cloud\" depth=3"), "{text}");
    }

    #[test]
    fn a_wrong_filter_or_format_says_what_would_be_right() {
        for (text, expected) in [
            ("info", true),
            ("INFO", true),
            ("off", true),
            ("warn,tidegate=debug", true),
            ("tidegate", true),
            ("tidegate::links", true),
            ("tidegate::links=debug,warn", true),
            ("loud", false),
            ("inof", false),
            ("warn,tidgate", false),
            ("debugg,tidegate=info", false),
        ] {
            let read = filter(Some(text.to_owned()));
            assert_eq!(read.is_ok(), expected, "{text}: {read:?}");
            if let Err(error) = read {
                let words = error.to_string();
                assert!(
                    words.contains(FILTER_VARIABLE) && words.contains("off, error, warn, info, debug or trace"),
                    "{words}"
                );
            }
        }
        assert!(filter(Some("tidegate=loud".to_owned())).unwrap_err().to_string().contains("such as `info`"));
        assert!("xml".parse::<Format>().unwrap_err().to_string().contains("`text` or `json`"));
    }
}
