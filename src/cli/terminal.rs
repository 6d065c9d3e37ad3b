//! What a terminal adds to text: colours, for somebody who can see them.

use std::io;
use std::io::IsTerminal;
use std::io::Write;

/// Whether to colour what goes to this stream: only on a terminal, and never against `NO_COLOR`
/// (<https://no-color.org>).
pub(crate) fn is_colourful(stream: &impl IsTerminal) -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !refused
}

/// Writes to standard output. A reader that has seen enough, as `head` has, is no error.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

/// The styles of our texts, or none of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Palette {
    /// Whether styles show.
    pub(crate) is_colourful: bool,
}

impl Palette {
    /// Bold text.
    pub(crate) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// What is refused or failed.
    pub(crate) fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    /// What is granted or happened as told.
    pub(crate) fn good(self, text: &str) -> String {
        self.paint("1;32", text)
    }

    /// What deserves a look.
    pub(crate) fn notice(self, text: &str) -> String {
        self.paint("1;33", text)
    }

    /// Names and places.
    pub(crate) fn name(self, text: &str) -> String {
        self.paint("36", text)
    }

    fn paint(self, style: &str, text: &str) -> String {
        if self.is_colourful && !text.is_empty() {
            format!("\u{1b}[{style}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn styles_show_only_where_they_are_wanted() {
        assert_eq!(Palette { is_colourful: false }.bad("no"), "no");
        assert_eq!(Palette { is_colourful: true }.bad("no"), "\u{1b}[1;31mno\u{1b}[0m");
    }
}
