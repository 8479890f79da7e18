//! `completions` and `man`: generated from the same description of the commands that parses the arguments.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::cli::{Arguments, failed, print, say};

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

pub(super) fn man(options: &Man) -> ExitCode {
    let command = Arguments::command();
    let Some(directory) = &options.directory else {
        let mut page = Vec::new();
        return match clap_mangen::Man::new(command).render(&mut page) {
            Ok(()) => {
                print(&page);
                ExitCode::SUCCESS
            }
            Err(error) => failed(format_args!("cannot write the page: {error}")),
        };
    };
    match clap_mangen::generate_to(command, directory) {
        Ok(()) => {
            say(format_args!("wrote the pages to {}", directory.display()));
            ExitCode::SUCCESS
        }
        Err(error) => failed(format_args!("cannot write to {}: {error}", directory.display())),
    }
}
