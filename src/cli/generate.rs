//! `completions` and `man`: generated from the same description of the commands that parses the arguments.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

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
