//! Help for the tests of flags.

use clap::Args;
use clap::Parser;

#[derive(Debug, Parser)]
struct Only<Flags: Args> {
    #[command(flatten)]
    flags: Flags,
}

/// The flags of one command, read as from a command line, or what the user would be told.
pub(crate) fn parse<Flags: Args>(arguments: &[&str]) -> Result<Flags, String> {
    let command_line = std::iter::once("test").chain(arguments.iter().copied());
    Only::try_parse_from(command_line).map(|only| only.flags).map_err(|error| error.to_string())
}
