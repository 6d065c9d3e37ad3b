//! Sets up logging: text for people (coloured on a terminal, plain when piped) or JSON for collectors.
//!
//! Logs go to standard error, so that standard output stays free for what a command prints.

use std::io;
use std::str::FromStr;

use thiserror::Error;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One readable line per event.
    #[default]
    Text,
    /// One JSON object per event.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("{other:?} is not a log format; use \"text\" or \"json\"")),
        }
    }
}

/// What the Kubernetes client logs of a failure, we log too, with the resource and what to do about it. Whoever names
/// these modules in the level gets them.
const TOLD_BY_US: &str = "kube_client=off,kube_runtime=off";

/// Why logging could not be set up.
#[derive(Debug, Error)]
pub enum LogError {
    /// The level is not in the env-filter syntax.
    #[error(
        "--log-level {level:?} cannot be read: {source}; write a level such as \"debug\", \
         or levels by module such as \"info,pinhole::webhook=debug\""
    )]
    Level {
        /// What was asked for.
        level: String,
        /// What the filter's parser said.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Something set up logging before.
    #[error("logging is set up already")]
    Installed,
}

/// Installs the process's logger. `colour` is the caller's decision: it knows the terminal and its environment.
pub fn install(level: &str, format: LogFormat, colour: bool) -> Result<(), LogError> {
    subscriber(level, format, colour, io::stderr)?.try_init().map_err(|_| LogError::Installed)
}

fn subscriber<W>(
    level: &str,
    format: LogFormat,
    colour: bool,
    writer: W,
) -> Result<Box<dyn tracing::Subscriber + Send + Sync>, LogError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder()
        .parse(format!("{TOLD_BY_US},{level}"))
        .map_err(|source| LogError::Level { level: level.to_owned(), source })?;
    let registry = tracing_subscriber::registry().with(filter);
    Ok(match format {
        LogFormat::Text => Box::new(registry.with(fmt::layer().with_ansi(colour).with_writer(writer))),
        LogFormat::Json => {
            Box::new(registry.with(fmt::layer().json().flatten_event(true).with_writer(writer)))
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, colour: bool) -> String {
        logged_at("info", format, colour)
    }

    fn logged_at(level: &str, format: LogFormat, colour: bool) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let subscriber = subscriber(level, format, colour, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(port = 8080, "Claimed");
            tracing::debug!("not asked for");
            tracing::error!(target: "kube_client::client::builder", "failed with error");
        });
        let bytes = captured.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn text_is_plain_when_piped_and_coloured_on_a_terminal() {
        let plain = logged(LogFormat::Text, false);
        assert!(plain.contains("Claimed port=8080"), "{plain}");
        assert!(!plain.contains('\u{1b}'), "{plain:?}");
        assert!(logged(LogFormat::Text, true).contains('\u{1b}'));
    }

    #[test]
    fn what_we_tell_ourselves_is_not_told_twice_unless_asked_for() {
        assert!(!logged(LogFormat::Text, false).contains("failed with error"));
        assert!(logged_at("info,kube_client=info", LogFormat::Text, false).contains("failed with error"));
    }

    #[test]
    fn json_is_one_object_per_line_with_flat_fields() {
        let text = logged(LogFormat::Json, false);
        let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!(line["message"], "Claimed");
        assert_eq!(line["port"], 8080);
        assert_eq!(line["level"], "INFO");
    }

    #[test]
    fn a_level_that_cannot_be_read_is_named_with_a_way_out() {
        let error = install("info,pinhole=loud", LogFormat::Text, false).unwrap_err().to_string();
        assert!(
            error.contains("\"info,pinhole=loud\"") && error.contains("pinhole::webhook=debug"),
            "{error}"
        );
    }

    #[test]
    fn formats_are_read_by_name() {
        assert_eq!("json".parse(), Ok(LogFormat::Json));
        assert_eq!("text".parse(), Ok(LogFormat::Text));
        assert!("yaml".parse::<LogFormat>().unwrap_err().contains("\"yaml\""));
    }
}
