//! `schema`: machine-readable descriptions of the payloads, the settings and the messages that consumers receive.

use std::process::ExitCode;

use clap::{Args, ValueEnum};

use crate::app;
use crate::cli::say;

#[derive(Debug, Args)]
pub(super) struct SchemaOptions {
    /// Description to print
    of: Of,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Of {
    /// The body of a message, as `validation = "lenient"` publishes it: JSON Schema
    Payload,
    /// The payload that PlexTrac documents, as `validation = "strict"` requires it: JSON Schema
    DocumentedPayload,
    /// The settings file, for editors and for checks: JSON Schema
    Settings,
    /// The messages that consumers receive, for each broker: AsyncAPI 3, in YAML
    Asyncapi,
}

pub(super) fn run(options: &SchemaOptions) -> ExitCode {
    let text = match options.of {
        Of::Payload => include_str!("../../docs/schema/payload.schema.json"),
        Of::DocumentedPayload => include_str!("../../docs/schema/documented-payload.schema.json"),
        Of::Settings => &format!("{:#}", app::schema()),
        Of::Asyncapi => include_str!("../../docs/schema/asyncapi.yaml"),
    };
    say(text.trim_end());
    ExitCode::SUCCESS
}
