//! `sign`: the signature of a body, as PlexTrac would compute it; and the secret that signs what a command sends.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use crate::app::Settings;
use crate::cli::client::local;
use crate::cli::{self, CommandResult, exit, say};
use crate::ingress::{Source, sign};
use crate::settings::{Flags, Secret};

#[derive(Debug, Args)]
pub(super) struct SignOptions {
    #[command(flatten)]
    signer: Signer,
    /// File with the body; `-` is standard input
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

/// The secret that signs.
#[derive(Debug, Args)]
pub(super) struct Signer {
    /// Sign as this source of the settings [default: the only one]
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Sign with the secret in this file instead of one of the settings
    #[arg(long, value_name = "FILE", conflicts_with = "source")]
    secret_file: Option<PathBuf>,
}

impl Signer {
    /// Finds the secret (none if unsigned), and the URL of the source if the settings have it.
    pub(super) fn identity(&self, flags: &Flags) -> Result<(Option<Secret>, Option<String>), ExitCode> {
        if let Some(path) = &self.secret_file {
            let text = std::fs::read_to_string(path)
                .map_err(|error| cli::failed(format_args!("cannot read {}: {error}", path.display())))?;
            let wrong = |wrong| cli::failed(format_args!("{} {wrong}", path.display()));
            let (secret, doubt) = Secret::read(&text).map_err(wrong)?;
            if let Some(doubt) = doubt {
                cli::warn(format_args!("{}: {doubt}", path.display()));
            }
            return Ok((Some(secret), None));
        }
        let (settings, _) = cli::settings(flags)?;
        let source = source(&settings, self.source.as_deref())?;
        let scheme = if settings.ingress.tls.is_some() { "https" } else { "http" };
        let host = match local(settings.ingress.listen).as_slice() {
            [address] => address.to_string(),
            // The client tries each address of the name.
            _ => format!("localhost:{}", settings.ingress.listen.port()),
        };
        let url = format!("{scheme}://{host}{}", source.path);
        Ok((source.secrets.first().map(|named| named.secret.clone()), Some(url)))
    }
}

/// The source of this name, or the only one.
pub(super) fn source<'s>(settings: &'s Settings, name: Option<&str>) -> Result<&'s Source, ExitCode> {
    let source = match name {
        Some(name) => settings.sources.iter().find(|source| *source.name == *name),
        None if settings.sources.len() == 1 => settings.sources.first(),
        None => None,
    };
    source.ok_or_else(|| {
        let names: Vec<&str> = settings.sources.iter().map(|source| &*source.name).collect();
        cli::failed(format_args!("name one of the sources with --source: {}", names.join(", ")))
    })
}
