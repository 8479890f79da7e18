//! `sign`: the signature of a body, as PlexTrac would compute it.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::settings::Flags;
use clap::Args;

use crate::cli::client::{Signer, sign};
use crate::cli::{self, CommandResult, exit, say};

#[derive(Debug, Args)]
pub(super) struct SignOptions {
    #[command(flatten)]
    signer: Signer,
    /// The body; `-` is standard input
    #[arg(default_value = "-")]
    file: PathBuf,
}

pub(super) fn run(flags: &Flags, options: &SignOptions) -> CommandResult {
    let (secret, _) = options.signer.identity(flags)?;
    let secret = secret.ok_or_else(|| cli::failed("the source is unsigned: there is no secret"))?;
    say(sign(&secret, &read(&options.file)?));
    Ok(exit(true))
}

/// Reads a file, or standard input for `-`.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, ExitCode> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        std::fs::read(path)
    };
    read.map_err(|error| cli::failed(format_args!("cannot read {}: {error}", path.display())))
}
