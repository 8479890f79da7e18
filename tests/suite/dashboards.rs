//! Dashboard, alerts and their tests ask only for metrics, labels and values that a running daemon really exposes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::{Bridge, Payload, request_once};

const DASHBOARD: &str = "deploy/grafana/dashboards/plextrac-bridge.json";
const ALERTS: [&str; 2] = ["deploy/prometheus/alerts.yml", "deploy/prometheus/silence.yml"];
const TESTS: [&str; 2] = ["deploy/prometheus/alerts_test.yml", "deploy/prometheus/silence_test.yml"];

/// The labels that Prometheus adds to every series.
const TARGET: [&str; 2] = ["job", "instance"];

/// The series that Prometheus creates by itself, with their labels beside those of the target.
const MADE_BY_PROMETHEUS: [(&str, &[&str]); 2] =
    [("up", &[]), ("ALERTS", &["alertname", "alertstate", "severity"])];

/// The labels whose values the program fixes; those of others depend on settings, senders and builds.
const CLOSED: [&str; 4] = ["code", "reason", "kind", "result"];

/// Words of a query that are followed by labels in brackets.
const BEFORE_LABELS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// Words of a query that are neither functions nor metrics.
const WORDS: [&str; 5] = ["and", "or", "unless", "offset", "bool"];

/// A series as a query asks for it: `name{label="value"}`.
#[derive(Debug, Default)]
struct Asked {
    metric: String,
    /// Labels, each with the values asked for, as far as they are written out.
    matchers: Vec<(String, Vec<String>)>,
}

/// A query, taken apart.
#[derive(Debug, Default)]
struct Query {
    asked: Vec<Asked>,
    /// Labels outside of series: `by (label)`, and what legends and texts name.
    labels: BTreeSet<String>,
}

impl Query {
    fn parse(expression: &str) -> Self {
        let mut query = Self::default();
        let mut rest = expression;
        while let Some(first) = rest.chars().next() {
            rest = match first {
                '"' => behind(&rest[1..], '"'),
                '[' => behind(rest, ']'),
                // A variable of Grafana, a number, a duration.
                '$' | '0'..='9' => rest[1..].trim_start_matches(is_of_word),
                first if is_of_word(first) => query.word(rest),
                first => &rest[first.len_utf8()..],
            };
        }
        query
    }

    /// Takes the first word of the text, and what belongs to it; returns the rest.
    fn word<'t>(&mut self, text: &'t str) -> &'t str {
        let rest = text.trim_start_matches(is_of_word);
        let word = &text[..text.len() - rest.len()];
        let next = rest.trim_start();
        if BEFORE_LABELS.contains(&word) && next.starts_with('(') {
            let end = next.find(')').unwrap_or_else(|| panic!("no bracket is closed in {text:?}"));
            let labels = next[..end].trim_start_matches('(').split(',').map(str::trim);
            self.labels.extend(labels.filter(|label| !label.is_empty()).map(str::to_owned));
            return &next[end..];
        }
        let calls = |by: &str| next.strip_prefix(by).is_some_and(|rest| rest.trim_start().starts_with('('));
        let is_function = ["", "by", "without"].into_iter().any(calls);
        if is_function || WORDS.contains(&word) || BEFORE_LABELS.contains(&word) {
            return rest;
        }
        let (matchers, rest) = match next.strip_prefix('{') {
            None => (Vec::new(), rest),
            Some(inside) => matchers(inside),
        };
        self.asked.push(Asked { metric: word.to_owned(), matchers });
        rest
    }

    /// Adds the labels that a text names between these marks: `{{label}}`.
    fn names(&mut self, text: &str, mark: &str) {
        let named = text.split(mark).skip(1).map(str::trim_start);
        let words = named.map(|rest| &rest[..rest.len() - rest.trim_start_matches(is_of_word).len()]);
        self.labels.extend(words.filter(|word| !word.is_empty()).map(str::to_owned));
    }
}

fn is_of_word(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}

/// The text after the next such character.
fn behind(text: &str, end: char) -> &str {
    text.split_once(end).unwrap_or_else(|| panic!("no {end} in {text:?}")).1
}

/// The labels up to the closing brace, with the values that are written out; and the text after it.
fn matchers(mut text: &str) -> (Vec<(String, Vec<String>)>, &str) {
    let mut all = Vec::new();
    loop {
        text = text.trim_start_matches([',', ' ']);
        if let Some(rest) = text.strip_prefix('}') {
            return (all, rest);
        }
        let (label, rest) = text.split_once(['=', '!']).unwrap_or_else(|| panic!("no label in {text:?}"));
        let rest = behind(rest, '"');
        let (value, rest) = rest.split_once('"').unwrap_or_else(|| panic!("no value in {rest:?}"));
        let written = value.split('|').filter(|value| !value.contains(['$', '*', '+']));
        all.push((label.trim().to_owned(), written.map(str::to_owned).collect()));
        text = rest;
    }
}

/// Metrics by name, each with its labels and their values.
struct Exposed(BTreeMap<String, BTreeMap<String, BTreeSet<String>>>);

impl Exposed {
    /// The metrics of a daemon that has published an event: the pairs of event and target type exist from then on.
    fn by_a_daemon() -> Self {
        let bridge = Bridge::start(|setup| setup);
        let body = Payload::new("seen").body();
        assert_eq!(request_once(&bridge.daemon, &body, &[]).status, 200);
        bridge.accepted(&body);
        // This series exists once it is used.
        let departing = br#"{"event":"E"}"#;
        assert_eq!(request_once(&bridge.daemon, departing, &[]).status, 200);
        bridge.accepted(departing);
        bridge.daemon.wait_until_empty();
        let text = bridge.daemon.get("/metrics").text();
        bridge.stop();
        let mut exposed = Self(BTreeMap::new());
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            exposed.add(line);
        }
        for (metric, labels) in MADE_BY_PROMETHEUS {
            let labels = labels.iter().map(|label| ((*label).to_owned(), BTreeSet::new())).collect();
            exposed.0.insert(metric.to_owned(), labels);
        }
        exposed
    }

    fn add(&mut self, line: &str) {
        for series in Query::parse(line).asked {
            let labels = self.0.entry(series.metric).or_default();
            for (label, values) in series.matchers {
                labels.entry(label).or_default().extend(values);
            }
        }
    }

    /// The metrics, labels and values of a query that do not exist.
    fn missing(&self, query: &Query) -> Vec<String> {
        let mut missing = Vec::new();
        let mut known: BTreeSet<&str> = TARGET.into();
        for Asked { metric, matchers } in &query.asked {
            let Some(labels) = self.0.get(metric) else {
                missing.push(format!("no metric {metric}"));
                continue;
            };
            known.extend(labels.keys().map(String::as_str));
            for (label, values) in matchers.iter().filter(|(label, _)| !TARGET.contains(&label.as_str())) {
                let Some(real) = labels.get(label) else {
                    missing.push(format!("{metric} has no label {label}"));
                    continue;
                };
                let unreal =
                    values.iter().filter(|value| CLOSED.contains(&label.as_str()) && !real.contains(*value));
                missing.extend(unreal.map(|value| format!("{metric} is never {label}=\"{value}\"")));
            }
        }
        let unknown = query.labels.iter().filter(|label| !known.contains(label.as_str()));
        missing.extend(unknown.map(|label| format!("nothing has a label {label}")));
        missing
    }

    /// Checks that all queries of a file, each with its place, find what they ask for.
    #[track_caller]
    fn assert_answers(&self, queries: &[(String, Query)]) {
        let report = |(place, query): &(String, Query)| {
            assert!(!query.asked.is_empty(), "{place} asks for nothing: {query:?}");
            self.missing(query).into_iter().map(|text| format!("{place}: {text}")).collect::<Vec<_>>()
        };
        let missing: Vec<String> = queries.iter().flat_map(report).collect();
        assert!(missing.is_empty(), "{}", missing.join("\n"));
    }
}

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The values of a key in YAML, on its line or, after `>-`, on the more indented lines below it.
fn yaml_values(text: &str, key: &str) -> Vec<String> {
    let depth = |line: &str| line.len() - line.trim_start_matches([' ', '-']).len();
    let lines: Vec<&str> = text.lines().collect();
    let mut values = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(value) = line.trim_start_matches([' ', '-']).strip_prefix(key) else { continue };
        let value = value.trim_start_matches(':').trim();
        if value == ">-" {
            let below = lines[at + 1..].iter().take_while(|below| depth(below) > depth(line));
            values.push(below.map(|below| below.trim()).collect::<Vec<_>>().join(" "));
        } else {
            values.push(value.trim_matches('\'').to_owned());
        }
    }
    values
}

/// Each query of the dashboard's panels and variables, with the labels of its legend.
fn queries_of_the_dashboard() -> Vec<(String, Query)> {
    let dashboard: Value = serde_json::from_str(&file(DASHBOARD)).expect("the dashboard is JSON");
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut all = Vec::new();
    for panel in list(&dashboard["panels"]).iter().filter(|panel| panel["type"] != "row") {
        let title = text(&panel["title"]);
        assert!(!text(&panel["description"]).is_empty(), "the panel {title:?} does not say what it shows");
        for target in list(&panel["targets"]) {
            let mut query = Query::parse(&text(&target["expr"]));
            query.names(&text(&target["legendFormat"]), "{{");
            all.push((format!("panel {title:?}"), query));
        }
    }
    for variable in list(&dashboard["templating"]["list"]).iter().filter(|variable| variable["type"] == "query") {
        let asked = text(&variable["query"]["query"]);
        let arguments = asked.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (series, label) = arguments.and_then(|rest| rest.rsplit_once(',')).expect("a series and a label");
        let mut query = Query::parse(series);
        query.labels.insert(label.trim().to_owned());
        all.push((format!("variable {}", variable["name"]), query));
    }
    all
}

/// Each alert's expression, with the labels that its texts name.
fn queries_of_the_alerts() -> Vec<(String, Query)> {
    let text = ALERTS.map(file).concat();
    let parse = |alert: &str| {
        let name = alert.lines().next().unwrap_or_default().trim().to_owned();
        let expressions = yaml_values(alert, "expr");
        assert_eq!(expressions.len(), 1, "expressions of {name}");
        let mut query = Query::parse(&expressions[0]);
        query.names(alert, "$labels.");
        (format!("alert {name}"), query)
    };
    text.split("- alert:").skip(1).map(parse).collect()
}

#[test]
fn show_only_what_the_daemon_exposes() {
    let queries = queries_of_the_dashboard();
    assert!(queries.len() > 60, "only {} queries found in {DASHBOARD}", queries.len());
    Exposed::by_a_daemon().assert_answers(&queries);
}

#[test]
fn the_table_of_the_alerts_has_each_of_them_and_no_other() {
    let text = |file: &str| fs::read_to_string(file).unwrap_or_else(|error| panic!("{file}: {error}"));
    let rules = ALERTS.map(text).concat();
    let alerts = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: PlexTracBridge"));
    let page = text("docs/monitoring.md");
    let (_, table) = page.split_once("| alert `PlexTracBridge…` |").expect("the page has the table");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let names = rows.filter_map(|row| row.split('|').nth(1)).flat_map(|cell| cell.split('`').skip(1).step_by(2));
    assert_eq!(names.collect::<BTreeSet<_>>(), alerts.collect());
}

#[test]
fn alerts_and_their_tests_ask_only_for_what_the_daemon_exposes() {
    let alerts = queries_of_the_alerts();
    assert!(alerts.len() > 15, "only {} alerts found in {ALERTS:?}", alerts.len());
    let series = yaml_values(&TESTS.map(file).concat(), "series");
    assert!(series.len() > alerts.len(), "only {} series found in {TESTS:?}", series.len());
    let exposed = Exposed::by_a_daemon();
    exposed.assert_answers(&alerts);
    let tests: Vec<_> = series.iter().map(|series| (format!("tests: {series}"), Query::parse(series))).collect();
    exposed.assert_answers(&tests);
}

#[test]
fn a_wrong_query_is_noticed() {
    let mut exposed = Exposed(BTreeMap::new());
    exposed.add(r#"a_total{source="plextrac",reason="signature"} 0"#);
    exposed.add("b 1");
    let missing = |expression: &str| exposed.missing(&Query::parse(expression));
    for good in [
        r#"sum by (reason) (rate(a_total{job=~"$job", reason=~"signature|$other"}[$__rate_interval])) > 0"#,
        "a_total / on (instance) group_left () (b > 1e3) or vector(0) unless a_total offset 1h",
        r#"a_total{source="another"}"#,
    ] {
        assert_eq!(missing(good), [""; 0], "{good}");
    }
    for (bad, what) in [
        ("rate(c_total[5m]) / b", "no metric c_total"),
        (r#"60 * a_total{kind!="x"}"#, "a_total has no label kind"),
        (r#"a_total{reason=~"signature|sign"}"#, "a_total is never reason=\"sign\""),
        ("sum by (kind) (a_total)", "nothing has a label kind"),
        ("sum without(instance, reson) (a_total)", "nothing has a label reson"),
    ] {
        assert_eq!(missing(bad), [what], "{bad}");
    }
    let mut query = Query::parse("a_total");
    query.names("{{source}} of {{ event }}", "{{");
    assert_eq!(exposed.missing(&query), ["nothing has a label event"]);
}
