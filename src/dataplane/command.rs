//! Starts programs. Nothing else in the package does.
//!
//! Every failure names the program with its arguments and keeps what it wrote to stderr; no program runs longer than
//! its deadline, and none outlives the call that started it.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Longer than the 5 s that iptables waits for its lock, and than any restore that a node needs.
const DEADLINE: Duration = Duration::from_mins(1);
/// How much of stderr an error shows.
const SHOWN_STDERR: usize = 2000;
/// The exit status of iptables when another program holds the lock for too long.
const LOCK_BUSY: i32 = 4;

/// Where the programs are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tools {
    /// The directory to take programs from; `None` searches the path.
    pub directory: Option<PathBuf>,
    /// The lock file that iptables-legacy programs agree on; `None` keeps iptables' own default. Every program on
    /// the node must use the same file, or updates are lost silently (R38).
    pub lock_file: Option<PathBuf>,
}

/// A program that could not be started, failed, or took too long.
#[derive(Debug, thiserror::Error)]
#[error("{command}: {problem}")]
pub struct CommandError {
    /// The program and its arguments.
    pub command: String,
    /// What went wrong.
    pub problem: Problem,
}

/// What went wrong with a program.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// It is not installed.
    #[error("not found; install it (Debian: apt-get install iptables conntrack nftables)")]
    Missing,
    /// It could not be started, or the connection to it broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It did not end in time, and was ended.
    #[error("not finished after {} s, ended it", .0.as_secs())]
    Timeout(Duration),
    /// It failed.
    #[error("exit status {status}: {stderr}")]
    Failed {
        /// Its exit status; -1 when a signal ended it.
        status: i32,
        /// What it wrote to stderr.
        stderr: String,
    },
}

impl CommandError {
    /// Whether the program is not installed.
    pub const fn is_missing(&self) -> bool {
        matches!(self.problem, Problem::Missing)
    }

    /// Whether iptables gave up waiting for its lock.
    pub const fn is_lock_busy(&self) -> bool {
        matches!(self.problem, Problem::Failed { status: LOCK_BUSY, .. })
    }

    /// Whether the program took too long.
    pub const fn is_timeout(&self) -> bool {
        matches!(self.problem, Problem::Timeout(_))
    }

    /// Whether the program ran and said no: trying the same again will not help.
    pub const fn is_refusal(&self) -> bool {
        matches!(self.problem, Problem::Failed { status, .. } if status != LOCK_BUSY)
    }
}

impl Tools {
    /// Runs a program with `input` on its stdin and returns what it printed.
    pub async fn run(&self, program: &str, arguments: &[&str], input: &str) -> Result<String, CommandError> {
        let path =
            self.directory.as_deref().map_or_else(|| OsString::from(program), |dir| dir.join(program).into());
        let fail = |problem| CommandError { command: shown(Path::new(&path), arguments), problem };
        let running = self.exchange(&path, arguments, input);
        match tokio::time::timeout(DEADLINE, running).await {
            Ok(result) => result.map_err(fail),
            Err(_) => Err(fail(Problem::Timeout(DEADLINE))),
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that starts programs")]
    async fn exchange(&self, path: &OsString, arguments: &[&str], input: &str) -> Result<String, Problem> {
        let mut command = Command::new(path);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Messages are matched and shown in English; a timeout drops the future and must end the program.
        command.env("LC_ALL", "C").kill_on_drop(true);
        if let Some(lock_file) = &self.lock_file {
            command.env("XTABLES_LOCKFILE", lock_file);
        }
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Problem::Missing,
            _ => Problem::Io(error),
        })?;
        let mut stdin = child.stdin.take();
        let write = async move {
            if let Some(stdin) = &mut stdin {
                // A program that stops reading says why on stderr and by its exit status.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        let ((), output) = tokio::join!(write, child.wait_with_output());
        let output = output?;
        if output.status.success() {
            // A listing can be large; only what is no text is copied.
            let text = String::from_utf8(output.stdout);
            return Ok(text.unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()));
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        let stderr = stderr.trim().chars().take(SHOWN_STDERR).collect();
        Err(Problem::Failed { status: output.status.code().unwrap_or(-1), stderr })
    }
}

fn shown(program: &Path, arguments: &[&str]) -> String {
    let mut shown = program.display().to_string();
    for argument in arguments {
        shown.push(' ');
        shown.push_str(argument);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failure_names_the_program_its_arguments_and_what_it_said() {
        let error = Tools::default().run("sh", &["-c", "echo broken >&2; exit 3"], "").await.unwrap_err();
        assert_eq!(error.to_string(), "sh -c echo broken >&2; exit 3: exit status 3: broken");
        assert!(error.is_refusal());
    }

    #[tokio::test]
    async fn a_program_that_is_not_installed_is_told_apart() {
        let error = Tools::default().run("no-such-program", &[], "").await.unwrap_err();
        assert!(error.is_missing(), "{error}");
    }

    #[tokio::test]
    async fn input_reaches_the_program_and_its_output_comes_back() {
        let big = "line\n".repeat(100_000);
        assert_eq!(Tools::default().run("cat", &[], &big).await.unwrap(), big);
    }

    #[tokio::test]
    async fn r38_a_busy_lock_is_no_refusal() {
        let error = Tools::default().run("sh", &["-c", "exit 4"], "").await.unwrap_err();
        assert!(error.is_lock_busy() && !error.is_refusal());
    }
}
