//! `completions`, `man` and `schema`: generated from the description of the commands that parses the arguments, and from
//! that of the settings.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::Shell;

use crate::app;
use crate::cli::{Arguments, CommandResult, failed, print, say};

const NAME: &str = "plextrac-bridge";

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// Shell to complete for
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// Write the pages of all commands to this directory instead
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
}

pub(super) fn completions(options: &Completions) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut Arguments::command(), NAME, &mut script);
    print(&script);
    ExitCode::SUCCESS
}

pub(super) fn man(options: &Man) -> CommandResult {
    let command = Arguments::command();
    if let Some(directory) = &options.directory {
        clap_mangen::generate_to(command, directory)
            .map_err(|error| failed(format_args!("cannot write to {}: {error}", directory.display())))?;
        say(format_args!("wrote the pages to {}", directory.display()));
    } else {
        let mut page = Vec::new();
        let rendered = clap_mangen::Man::new(command).render(&mut page);
        rendered.map_err(|error| failed(format_args!("cannot write the page: {error}")))?;
        print(&page);
    }
    Ok(ExitCode::SUCCESS)
}

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

pub(super) fn schema(options: &SchemaOptions) -> ExitCode {
    let text = match options.of {
        Of::Payload => include_str!("../../docs/schema/payload.schema.json"),
        Of::DocumentedPayload => include_str!("../../docs/schema/documented-payload.schema.json"),
        Of::Settings => &format!("{:#}", app::schema()),
        Of::Asyncapi => include_str!("../../docs/schema/asyncapi.yaml"),
    };
    say(text.trim_end());
    ExitCode::SUCCESS
}
