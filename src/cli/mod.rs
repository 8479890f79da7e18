//! The commands. Each prints its result and returns an exit code: 0 success, 1 failure, 2 wrong arguments (clap's), 78
//! wrong settings.

mod check;
mod client;
mod dead_letters;
mod demo;
mod explain;
mod generate;
mod healthcheck;
mod journal;
mod sample;
mod send;
mod serve;
mod sign;

use std::fmt::Display;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{LazyLock, OnceLock};

use crate::app::{Settings, load};
use crate::brokers;
use crate::settings::{Findings, Flags, Layers, SettingsError};
use clap::{Parser, Subcommand};

/// The exit code of sysexits.h for "something was found in an unconfigured or misconfigured state".
const EX_CONFIG: u8 = 78;

/// The state directory of the systemd unit.
const STATE_OF_THE_UNIT: &str = "/var/lib/plextrac-bridge";

/// Receives PlexTrac's webhooks, proves that they are genuine, and publishes each one, byte for byte, to Kafka,
/// RabbitMQ or NATS JetStream.
#[derive(Debug, Parser)]
#[command(name = "plextrac-bridge", version = VERSION.as_str(), long_version = LONG_VERSION.as_str(), arg_required_else_help = true, after_help = examples("plextrac-bridge"))]
pub(crate) struct Arguments {
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        help = "Settings file [default: that of PLEXTRAC_BRIDGE_CONFIG, or /etc/plextrac-bridge/config.toml, if it exists]"
    )]
    config: Option<PathBuf>,
    /// Lowest log level
    #[arg(long, global = true, value_name = "LEVEL", value_parser = ["error", "warn", "info", "debug", "trace"])]
    log_level: Option<String>,
    /// Log format
    #[arg(long, global = true, value_name = "FORMAT", value_parser = ["auto", "text", "json"])]
    log_format: Option<String>,
    #[command(subcommand)]
    command: Command,
}

/// With the commit.
static VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{} ({})", crate::metrics::VERSION, crate::metrics::revision()));

/// With the brokers that this program was built with.
static LONG_VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{}\nbrokers: {}", *VERSION, brokers::BUILT_IN.join(", ")));

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the bridge
    #[command(after_help = examples("serve"))]
    Serve,
    /// Check the settings, and with --connect the broker too; change nothing
    #[command(after_help = examples("check"))]
    Check(check::CheckOptions),
    /// Try the bridge: a sender, the bridge and files as the broker, all in one process
    #[command(after_help = examples("demo"))]
    Demo(demo::DemoOptions),
    /// Print the signature of a body
    #[command(after_help = examples("sign"))]
    Sign(sign::SignOptions),
    /// Explain what would happen to a body: signature, answer, id, address, headers; contacts no broker
    #[command(after_help = examples("explain"))]
    Explain(explain::ExplainOptions),
    /// Send signed webhooks: samples, or given files
    #[command(after_help = examples("send"))]
    Send(send::SendOptions),
    /// List, replay or delete dead letters: events that the broker refused; with --invalid, signed bodies that were not
    /// published
    #[command(after_help = examples("dead-letters"))]
    DeadLetters {
        #[command(subcommand)]
        command: dead_letters::DeadLetters,
    },
    /// Inspect the journal on disk
    #[command(after_help = examples("journal"))]
    Journal(journal::JournalOptions),
    /// Ask the running bridge whether it is live (or, with --ready, ready); for images without a shell
    #[command(after_help = examples("healthcheck"))]
    Healthcheck(healthcheck::HealthcheckOptions),
    /// Print a schema: JSON Schema of the payloads or of the settings, AsyncAPI of what consumers receive
    #[command(after_help = examples("schema"))]
    Schema(generate::SchemaOptions),
    /// Print a script that completes commands and options
    #[command(after_help = examples("completions"))]
    Completions(generate::Completions),
    /// Print the manual page, or write those of all commands
    #[command(after_help = examples("man"))]
    Man(generate::Man),
}

/// The exit code of a command, in both cases.
type CommandResult = Result<ExitCode, ExitCode>;

/// The exit code of a command that has printed everything: success, or failure.
fn exit(is_good: bool) -> ExitCode {
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The examples of a command, for its help: the paragraphs under its name.
fn examples(command: &str) -> &'static str {
    let name = format!("# {command}\n");
    let (_, rest) = include_str!("examples.txt").split_once(&name).unwrap_or_default();
    rest.split("\n# ").next().unwrap_or_default().trim_end()
}

/// Runs the command given by the arguments of the process.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let flags =
        Flags { config: arguments.config, log_level: arguments.log_level, log_format: arguments.log_format };
    let code = match arguments.command {
        Command::Serve => serve::run(&flags),
        Command::Check(options) => check::run(&flags, &options),
        Command::Demo(options) => demo::run(&flags, options.once),
        Command::Sign(options) => sign::run(&flags, &options),
        Command::Explain(options) => explain::run(&flags, &options),
        Command::Send(options) => send::run(&flags, options),
        Command::DeadLetters { command } => dead_letters::run(&flags, &command),
        Command::Healthcheck(options) => healthcheck::run(&flags, &options),
        Command::Journal(options) => journal::run(&flags, &options),
        Command::Schema(options) => Ok(generate::schema(&options)),
        Command::Completions(options) => Ok(generate::completions(&options)),
        Command::Man(options) => generate::man(&options),
    };
    let code = code.unwrap_or_else(|code| code);
    match UNPRINTED.get() {
        Some(error) if code == ExitCode::SUCCESS => {
            failed(format_args!("cannot write to standard output: {error}"))
        }
        _ => code,
    }
}

/// The first error of standard output: a command that could not print fails.
static UNPRINTED: OnceLock<io::Error> = OnceLock::new();

/// Prints to standard output. A reader that has closed the pipe (`| head`) is not an error.
fn print(bytes: &[u8]) {
    let mut out = io::stdout().lock();
    if let Err(error) = out.write_all(bytes).and_then(|()| out.flush())
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        // Only the first error is kept.
        let _ = UNPRINTED.set(error);
    }
}

/// Loads the settings, or reports their problems.
fn settings(flags: &Flags) -> Result<(Settings, Findings), ExitCode> {
    load(flags).map_err(|SettingsError(problems)| {
        for problem in problems {
            complain(problem);
        }
        ExitCode::from(EX_CONFIG)
    })
}

/// The state directory, for commands that need no other setting: that of the settings as far as they can be read, of
/// systemd's environment, or of the systemd unit.
fn state_directory(flags: &Flags) -> Result<PathBuf, ExitCode> {
    let (settings, problems) = Layers::as_far_as_readable(flags);
    let of_systemd = || Some(std::env::var("STATE_DIRECTORY").ok()?.split(':').next()?.to_owned());
    let named = settings.text(&["state_directory"]).or_else(of_systemd).filter(|path| !path.is_empty());
    if let Some(path) = named {
        return Ok(path.into());
    }
    if !problems.is_empty() {
        problems.iter().for_each(complain);
        return Err(misconfigured("the state directory is not known; name it in PLEXTRAC_BRIDGE__STATE_DIRECTORY"));
    }
    let of_the_unit = PathBuf::from(STATE_OF_THE_UNIT);
    let is_missing = of_the_unit.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    if is_missing {
        return Err(failed(
            "nothing is kept: these settings have no `state_directory`, and there is no /var/lib/plextrac-bridge; set \
             `state_directory`, or name it in PLEXTRAC_BRIDGE__STATE_DIRECTORY",
        ));
    }
    Ok(of_the_unit)
}

/// Prints a line to standard output.
fn say(text: impl Display) {
    print(format!("{text}\n").as_bytes());
}

/// Prints an error.
fn complain(text: impl Display) {
    let _ = writeln!(io::stderr(), "error: {text}");
}

/// Prints a warning.
fn warn(text: impl Display) {
    let _ = writeln!(io::stderr(), "warning: {text}");
}

/// Reports why a command failed.
fn failed(text: impl Display) -> ExitCode {
    complain(text);
    ExitCode::FAILURE
}

/// Reports what is wrong with the settings, or with values given in place of them.
fn misconfigured(text: impl Display) -> ExitCode {
    complain(text);
    ExitCode::from(EX_CONFIG)
}

/// A runtime for a command that uses the network.
fn runtime() -> Result<tokio::runtime::Runtime, ExitCode> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(format_args!("cannot start: {error}")))
}
