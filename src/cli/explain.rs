//! `explain`: what would happen to a body, with the settings alone: signature, decision, id, address, headers.

use std::path::PathBuf;

use crate::app::Settings;
use crate::brokers::{Routed, Router};
use crate::event::Event;
use crate::ingress::{Explanation, Source, explain, sign};
use crate::settings::Flags;
use clap::Args;
use serde_json::{Value, json};

use crate::cli::sign::{self, read};
use crate::cli::{self, CommandResult, exit, say};

#[derive(Debug, Args)]
pub(super) struct ExplainOptions {
    /// Source to which it would be sent [default: the only one]
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Value of its header X-Authorization-HMAC-256 [default: signed with the first secret of the source]
    #[arg(long, value_name = "SIGNATURE")]
    signature: Option<String>,
    /// Print one JSON object for each body
    #[arg(long)]
    json: bool,
    /// Files with the bodies; `-` is standard input
    #[arg(default_value = "-")]
    files: Vec<PathBuf>,
}

pub(super) fn run(flags: &Flags, options: &ExplainOptions) -> CommandResult {
    let (settings, _) = cli::settings(flags)?;
    let source = sign::source(&settings, options.source.as_deref())?;
    let mut router = settings.broker.router.clone();
    let mut are_all_good = true;
    for path in &options.files {
        let Ok(body) = read(path) else {
            are_all_good = false;
            continue;
        };
        let explained = explain_body(&settings, source, &mut router, options.signature.as_deref(), &body);
        are_all_good &= explained["status"] == 200 && explained["dead_letter"].is_null();
        if options.json {
            say(&explained);
        } else {
            show(&explained);
        }
    }
    Ok(exit(are_all_good))
}

fn explain_body(
    settings: &Settings,
    source: &Source,
    router: &mut Router,
    given: Option<&str>,
    body: &[u8],
) -> Value {
    let own = || source.secrets.first().map(|named| sign(&named.secret, body));
    let signature = given.map(str::to_owned).or_else(own);
    let id = |secret: Option<usize>| secret.and_then(|at| source.secrets.get(at)).map(|named| named.id.to_string());
    let keeps = |reason: &'static str| settings.state_directory.is_some().then_some(reason);
    let mut explained = match explain(source, settings.ingress.max_body, signature.as_deref(), body) {
        Explanation::Event(event, secret) => {
            let mut explained = explain_event(settings, router, &event);
            explained["secret"] = json!(id(secret));
            explained
        }
        Explanation::Probe(what, secret) => json!({
            "secret": id(secret), "status": 200, "answer": "probe", "detail": what,
            "kept": keeps("probe").filter(|_| source.is_signed()),
        }),
        Explanation::Rejected { status, reason, detail, kept } => json!({
            "status": status, "answer": reason, "detail": detail, "kept": kept.and_then(|kept| keeps(kept.name())),
        }),
    };
    explained["source"] = json!(&*source.name);
    explained["path"] = json!(source.path);
    explained["signature"] = json!(signature);
    explained
}

/// The facts about the message that is published.
fn explain_event(settings: &Settings, router: &mut Router, event: &Event) -> Value {
    let deviations = event.deviations().to_string();
    let deviations: Vec<&str> = deviations.split(',').filter(|part| !part.is_empty()).collect();
    let headers = settings.headers().list(event).into_iter().map(|(name, value)| (name, Value::from(value)));
    let headers = Value::Object(headers.collect());
    let mut explained = json!({
        "status": 200, "answer": "accepted", "deviations": deviations, "id": event.id(), "event": event.event(),
        "target_type": event.target_type(), "broker": settings.broker.name, "headers": headers,
    });
    match router.route(event, || 0) {
        Ok(Routed { address, key, .. }) => {
            explained["address"] = json!(&*address);
            explained["key"] = json!(&*key);
        }
        Err(refusal) => {
            explained["dead_letter"] = json!({ "reason": refusal.reason().name(), "text": refusal.text });
        }
    }
    explained
}

/// Prints an explanation for human readers.
fn show(explained: &Value) {
    let text = |name: &str| explained[name].as_str().unwrap_or_default();
    let line = |name: &str, value: &str| say(format_args!("{name:<12}{value}"));
    line("source", &format!("{} ({})", text("source"), text("path")));
    let secret = explained["secret"].as_str().map(|id| format!(" (secret {id})")).unwrap_or_default();
    line("signature", &format!("{}{secret}", explained["signature"].as_str().unwrap_or("none")));
    let detail = explained["detail"].as_str().map(|detail| format!(": {detail}")).unwrap_or_default();
    line("answer", &format!("{} {}{detail}", explained["status"], text("answer")));
    if explained["answer"] != "accepted" {
        let kept = explained["kept"].as_str().map(|reason| format!("kept as {reason}"));
        return line("published", &format!("no, {}", kept.as_deref().unwrap_or("and not kept")));
    }
    let deviations = explained["deviations"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let deviations = deviations.collect::<Vec<_>>().join(", ");
    line("deviations", if deviations.is_empty() { "none" } else { &deviations });
    for name in ["id", "event"] {
        line(name, text(name));
    }
    line("target type", text("target_type"));
    match &explained["dead_letter"] {
        Value::Null => {
            line("address", &format!("{} ({})", text("address"), text("broker")));
            line("key", text("key"));
        }
        letter => line("dead letter", &format!("{}: {}", letter["reason"], letter["text"])),
    }
    for (name, value) in explained["headers"].as_object().into_iter().flatten() {
        line("header", &format!("{name}: {}", value.as_str().unwrap_or_default()));
    }
}
