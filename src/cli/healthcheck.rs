//! `healthcheck`: asks the admin port, for images without a shell.

use std::process::ExitCode;

use crate::settings::Flags;
use clap::Args;

use crate::cli::client::{Http, local};
use crate::cli::{self, say};

#[derive(Debug, Args)]
pub(super) struct HealthcheckOptions {
    /// Ask whether events can be accepted, not only whether the bridge is alive
    #[arg(long)]
    ready: bool,
}

pub(super) fn run(flags: &Flags, options: &HealthcheckOptions) -> ExitCode {
    ask(flags, options).unwrap_or_else(|code| code)
}

fn ask(flags: &Flags, options: &HealthcheckOptions) -> Result<ExitCode, ExitCode> {
    let (settings, _) = cli::settings(flags)?;
    let Some(address) = settings.admin.listen else {
        return Err(cli::failed("the admin port is off (`admin.listen` is empty), so there is nothing to ask"));
    };
    let path = if options.ready { "/readyz" } else { "/livez" };
    let url = format!("http://{}{path}", local(address));
    let uri = url.parse().map_err(|error| cli::failed(format_args!("{url}: {error}")))?;
    let http = Http::new()?;
    match cli::runtime()?.block_on(http.get(&uri)) {
        Ok(answer) => {
            say(String::from_utf8_lossy(&answer.body).trim_end());
            Ok(if answer.status == 200 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Err(error) => Err(cli::failed(format_args!("{url}: {error}; is the bridge running with these settings?"))),
    }
}
