//! Runs the built program the way a user does.

use std::io::Write;
use std::process::Command;
use std::process::Stdio;

/// A call of the program, started in the repository's root with an environment of its own.
pub(crate) struct Program {
    command: Command,
    input: String,
}

/// What a call printed and how it ended.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Program {
    /// The program with these arguments.
    pub(crate) fn new(arguments: &[&str]) -> Self {
        Self::under(&[], arguments)
    }

    /// The program with these arguments, started by another program.
    pub(crate) fn under(starter: &[&str], arguments: &[&str]) -> Self {
        let line: Vec<_> =
            starter.iter().chain(&[env!("CARGO_BIN_EXE_pinhole")]).chain(arguments).copied().collect();
        let mut command = Command::new(line[0]);
        command.args(&line[1..]).current_dir(env!("CARGO_MANIFEST_DIR"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PINHOLE_") {
                command.env_remove(name);
            }
        }
        Self { command, input: String::new() }
    }

    /// With this text on standard input.
    pub(crate) fn input(mut self, text: &str) -> Self {
        text.clone_into(&mut self.input);
        self
    }

    /// With this environment variable.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it to its end.
    pub(crate) fn run(mut self) -> Output {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = std::mem::take(&mut self.input);
        let writer = std::thread::spawn(move || {
            // A program that does not read its input has closed it by now, which is its right.
            let _ = stdin.write_all(input.as_bytes());
        });
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        Output {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}
