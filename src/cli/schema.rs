//! `pinhole schema`: the annotation's JSON Schema, for editors and for whoever generates manifests.

use std::process::ExitCode;

use clap::Args;

use crate::api::annotation;
use crate::cli::terminal;

/// The flags of `pinhole schema`: none.
#[derive(Debug, Args)]
pub(crate) struct Schema {}

impl Schema {
    /// Prints the schema.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let Self {} = self;
        let text = serde_json::to_string_pretty(&annotation::schema())?;
        terminal::print(&format!("{text}\n"))?;
        Ok(ExitCode::SUCCESS)
    }
}
