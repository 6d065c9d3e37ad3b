//! Whether somebody who can see colours is reading.

use std::io::IsTerminal;

/// Whether to colour what goes to this stream: only on a terminal, and never against `NO_COLOR`
/// (<https://no-color.org>).
pub(crate) fn is_colourful(stream: &impl IsTerminal) -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !refused
}
