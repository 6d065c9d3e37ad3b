//! What the demo says, and whether it was true.

use std::time::Instant;

use crate::cli::terminal;
use crate::cli::terminal::Palette;

/// Prints as it goes, and remembers what did not happen as told.
#[derive(Debug)]
pub(crate) struct Story {
    /// The styles.
    pub(crate) palette: Palette,
    began: Instant,
    as_told: usize,
    otherwise: usize,
}

/// Prints one line.
pub(crate) fn say(line: &str) -> anyhow::Result<()> {
    Ok(terminal::print(&format!("{line}\n"))?)
}

impl Story {
    /// Begins to tell.
    pub(crate) fn new(palette: Palette) -> Self {
        Self { palette, began: Instant::now(), as_told: 0, otherwise: 0 }
    }

    /// Prints a headline.
    pub(crate) fn chapter(&self, title: &str) -> anyhow::Result<()> {
        say(&format!("\n{}", self.palette.bold(title)))
    }

    /// Prints what a user types.
    pub(crate) fn command(&self, command: &str) -> anyhow::Result<()> {
        say(&format!("\n{} {}", self.palette.name("$"), self.palette.bold(command)))
    }

    /// Prints what happened; if that is not what was meant to happen, the demo has failed.
    pub(crate) fn happened(&mut self, line: &str, as_told: bool, instead_of: &str) -> anyhow::Result<()> {
        if as_told {
            self.as_told += 1;
            return say(line);
        }
        self.otherwise += 1;
        say(line)?;
        say(&self.palette.bad(&format!("NOT AS TOLD: this was meant to be: {instead_of}")))
    }

    /// Prints the end; returns whether everything happened as told.
    pub(crate) fn end(&self) -> anyhow::Result<bool> {
        let Self { palette, began, as_told, otherwise } = self;
        let seconds = began.elapsed().as_secs_f64();
        let outcome = if *otherwise == 0 {
            palette.good(&format!("All {as_told} steps happened as told, in {seconds:.1} s."))
        } else {
            let steps = as_told + otherwise;
            palette.bad(&format!("{otherwise} of {steps} steps did not happen as told, in {seconds:.1} s."))
        };
        say(&format!("\n{outcome} Node, pods and clients are gone with this program."))?;
        Ok(*otherwise == 0)
    }
}
