// The status page: asks /status every two seconds and shows the answer; changes nothing. Input from outside
// is set as text, never as markup. Nodes are kept and filled again, so that a selection or a scroll position survives.
"use strict";

const EVERY = 2_000; // between two requests
const ANSWER_TIMEOUT = 5_000;
const SPAN = 300_000; // the time span of the curves
const STEADY = 10_000; // the period over which a printed rate is averaged

const ACK = {
  buffered: "in memory (buffered)",
  journaled: "on disk (journaled)",
  published: "confirmed by the broker (published)",
};
const BROKER_STATE = {
  connected: ["good", "Connected"],
  connecting: ["bad", "Not connected, retrying"],
  waiting: ["wait", "Connected, but the broker takes no messages at the moment"],
};
const MEANING = {
  connect: "The broker cannot be reached or is not ready. Check that it runs, its address in the settings, name resolution and firewalls. The bridge keeps trying.",
  authentication: "The broker answers but refuses the bridge's credentials. Check user, password or token, mechanism and permissions. The bridge keeps trying.",
  tls: "The encrypted connection cannot be made. Check the certificate authority, the broker's name and dates in its certificate, and that this port speaks TLS.",
  lost: "A working connection ended: a restart of the broker or a cut in the network. Unconfirmed messages are sent again, in order.",
  refused: "The broker refused a message for good. It becomes a dead letter, or is lost without a state directory; delivery continues with the rest.",
  not_now: "The broker, or one address at it, takes no messages at the moment, or does not answer. They are held and sent again. At an address that is missing, not routable or forbidden they become dead letters after publish.refuse_after.",
};

const history = []; // samples of the last five minutes, oldest first
let gap = false; // an answer was missed since the last sample
let answered = 0; // when the last answer arrived, by this computer's clock
let now = 0; // seconds, by the bridge's clock if its answer has it
let [build, headline] = ["", ""];

const $ = (id) => document.getElementById(id);
const part = (root, name) => root.querySelector(`[data-f="${name}"]`);
const tone = (node, word) => node.setAttribute("data-tone", word);
const clone = (id) => $(id).content.firstElementChild.cloneNode(true);
const count = (n) => n.toLocaleString("en");
const sum = (list) => list.reduce((total, n) => total + n, 0);

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const put = (root, texts) => Object.entries(texts).forEach(([name, text]) => say(part(root, name), text));


function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; n >= 1024 && unit < units.length - 1; unit += 1) n /= 1024;
  return `${n.toLocaleString("en", { maximumFractionDigits: n < 10 ? 1 : 0 })} ${units[unit]}`;
}

function duration(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  const [d, h, m] = [Math.floor(s / 86_400), Math.floor(s / 3_600) % 24, Math.floor(s / 60) % 60];
  if (d > 0) return `${d} d ${h} h`;
  if (h > 0) return `${h} h ${m} min`;
  return m > 0 ? `${m} min ${s % 60} s` : `${s} s`;
}

const ago = (timestamp) => (timestamp ? `${duration(now - timestamp)} ago` : "never");

/** HH:MM:SS by this computer's time zone, with the date where it is not today's. */
function clock(timestamp) {
  const date = new Date(timestamp * 1000);
  const time = date.toLocaleTimeString("en-GB");
  return date.toDateString() === new Date().toDateString() ? time : `${date.toLocaleDateString("sv")} ${time}`;
}

const perSecond = (n) => `${n.toLocaleString("en", { maximumFractionDigits: Math.abs(n) < 10 ? 1 : 0 })}/s`;

/** As many children as items, each filled from its item. */
function fill(parent, items, make, show) {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  while (parent.children.length < items.length) parent.append(make());
  items.forEach((item, i) => show(parent.children[i], item));
}

function list(node, texts) {
  fill(node, texts, () => document.createElement("li"), say);
  node.hidden = texts.length === 0;
}

/** The head's columns give each cell its kind and, on a narrow screen, its label. */
function rows(table, lines) {
  const head = [...table.tHead.rows[0].cells];
  const row = () => {
    const tr = document.createElement("tr");
    tr.setAttribute("role", "row");
    head.forEach((column, i) => {
      const cell = document.createElement(i === 0 ? "th" : "td");
      if (i === 0) cell.scope = "row";
      cell.setAttribute("role", i === 0 ? "rowheader" : "cell");
      cell.className = column.dataset.kind ?? "";
      cell.dataset.label = column.textContent;
      tr.append(cell);
    });
    return tr;
  };
  fill(table.tBodies[0], lines, row, (tr, texts) => texts.forEach((text, i) => say(tr.cells[i], text)));
}

// The samples so far.

function remember(s, at) {
  const uptime = s.uptime_seconds;
  // A restarted bridge counts from 0 again.
  if (history.length > 0 && uptime < history.at(-1).uptime) history.length = 0;
  const { accepted, published, held, dead_lettered: dead, lost } = s.accounting;
  const { events, bytes: size } = s.buffer;
  history.push({ at, gap, uptime, accepted, published, held, dead, lost, events, size });
  while (history[0].at < at - SPAN) history.shift();
  gap = false;
}

/** The change per second over about the last ten seconds; null before the second answer. */
function rate(field) {
  if (history.length < 2) return null;
  const last = history.at(-1);
  let first = history.find((sample) => last.at - sample.at <= STEADY);
  if (first === last) first = history.at(-2); // a page in the background asks rarely
  return last.at > first.at ? ((last[field] - first[field]) * 1000) / (last.at - first.at) : null;
}

/** The rate between each two successive answers. */
function steps(field) {
  return history.slice(1).map((sample, i) => {
    const before = history[i];
    const seconds = Math.max(sample.at - before.at, 1) / 1000;
    return { from: before.at, to: sample.at, gap: sample.gap, height: Math.max(0, sample[field] - before[field]) / seconds };
  });
}

/** What each answer said, until the next one came. */
function levels(field) {
  return history.slice(1).map((sample, i) => ({ from: history[i].at, to: sample.at, gap: sample.gap, height: sample[field] }));
}

/** Draws the points up to `top`; the highest. */
function curve(svg, points, top, label) {
  const end = history.at(-1).at;
  const x = (at) => (300 - ((end - at) / SPAN) * 300).toFixed(1);
  const y = (value) => (38 - (top > 0 ? value / top : 0) * 35).toFixed(1);
  let path = "";
  points.forEach((point, i) => {
    if (point.gap) return;
    path += `${i === 0 || points[i - 1].gap ? `M${x(point.from)} 38` : ""}V${y(point.height)}H${x(point.to)}`;
    if (i === points.length - 1 || points[i + 1].gap) path += "V38";
  });
  svg.firstElementChild.setAttribute("d", path);
  const peak = Math.max(0, ...points.map((point) => point.height));
  svg.setAttribute("aria-label", label(peak));
  return peak;
}

// The parts of the page, from top to bottom.

function showAbout(s) {
  const revision = s.revision && s.revision !== "unknown" ? ` (${s.revision.slice(0, 12)})` : "";
  put($("about"), { version: s.version + revision, uptime: duration(s.uptime_seconds), ack: ACK[s.ack] ?? s.ack });
}

/** Conditions that need attention although the bridge is ready. */
function concerns(s) {
  const notes = [];
  if (s.broker.state !== "connected") {
    const held = { buffered: "held until the buffer is full", journaled: "held until the journal is full" }[s.ack];
    notes.push(`The broker is not connected: events are ${held ? `${held}, then answered 503` : "answered 503 until it is back"}.`);
  }
  for (const { address, events, reason } of s.broker.waiting ?? []) {
    notes.push(`No answer to what goes to ${address} (${count(events)} in flight)${reason ? `: ${reason}` : ""}.`);
  }
  if (s.journal?.unreadable) notes.push(`Delivery waits for the journal: ${s.journal.unreadable}.`);
  if (s.journal?.failed) notes.push(`The journal: ${s.journal.failed}.`);
  if (s.dead_letters?.events > 0) notes.push(`Dead letters wait for a decision: ${count(s.dead_letters.events)}.`);
  if (s.accounting.lost > 0) notes.push(`Events are lost: ${count(s.accounting.lost)}. The log says which and why.`);
  if (s.accounting.mismatch !== 0) notes.push("The accounting does not add up.");
  for (const source of s.sources) {
    if (!source.signed) notes.push(`Source “${source.name}” is unsigned: anyone who reaches its path can send events.`);
  }
  return notes;
}

function showState(mood, title, explain, reasons, spoken) {
  tone($("state"), mood);
  put($("state"), { headline: title, explain });
  if (reasons) list(part($("state"), "reasons"), reasons);
  say($("announce"), spoken);
  document.title = `${title} · plextrac-bridge`;
}

function showReady(s) {
  const notes = concerns(s);
  headline = s.ready ? "Ready" : "Not ready";
  const fine = notes.length > 0 ? "New events are accepted. Please check:" : "New events are accepted.";
  const explain = s.ready ? fine : "New events may be answered 503 until this is over:";
  const mood = s.ready ? (notes.length > 0 ? "warn" : "good") : "bad";
  const broker = (BROKER_STATE[s.broker.state] ?? ["", s.broker.state])[1];
  showState(mood, headline, explain, [...s.reasons, ...notes], `${headline}. Broker: ${broker}.`);
}

function showEmpty(s) {
  $("empty").hidden = s.accounting.received > 0;
  list(part($("empty"), "paths"), s.sources.map((source) =>
    `https://<public name>${source.path} for “${source.name}”${source.signed ? "" : " (unsigned: no secret)"}`));
}

function tile(id, field, n, mood, note, words) {
  const r = rate(field);
  tone($(id), mood);
  put($(id), { count: count(n), rate: r === null ? "…/s" : words ? words(r) : perSecond(r), note });
}

function showEvents(s) {
  const books = s.accounting;
  const letters = s.dead_letters;
  const since = duration((history.at(-1).at - history[0].at) / 1000);
  const grown = (field) => count(history.at(-1)[field] - history[0][field]);
  const curves = { accepted: steps("accepted"), published: steps("published") };
  const top = Math.max(...Object.values(curves).flat().map((step) => step.height), 1); // one scale for both
  for (const field of ["accepted", "published"]) {
    const label = (peak) => `${field} per second over the last 5 minutes, at most ${perSecond(peak)}`;
    const peak = curve($(field).querySelector("svg"), curves[field], top, label);
    tile(field, field, books[field], "", `+${grown(field)} in ${since}, peak ${perSecond(peak)}`);
  }
  const drift = (r) => (Math.abs(r) < 0.05 ? "steady" : `${r > 0 ? "growing" : "shrinking"} ${perSecond(Math.abs(r))}`);
  tile("held", "held", books.held, "", "accepted, not settled yet", drift);
  tile("dead", "dead", books.dead_lettered, (letters ? letters.events : books.dead_lettered) > 0 ? "warn" : "",
    letters ? `${count(letters.events)} kept; plextrac-bridge dead-letters list shows them` : "no state_directory: a refused event is lost");
  tile("lost", "lost", books.lost, books.lost > 0 ? "bad" : "", books.lost > 0 ? "the log says which and why" : "none since the start");
}

function showMeter(node, [label, used, capacity, format]) {
  const share = capacity > 0 ? used / capacity : 0;
  const percent = share > 0 && share < 0.01 ? "< 1 %" : `${Math.floor(share * 100)} %`;
  const of = `${format(used)} of ${format(capacity)}`;
  put(node, { label, share: percent, of });
  tone(node, share >= 0.9 ? "bad" : share >= 0.7 ? "warn" : "");
  const bar = node.querySelector("[role=meter]");
  const spoken = { label, valuenow: Math.floor(share * 100), valuetext: `${percent}, ${of}` };
  for (const [name, value] of Object.entries(spoken)) bar.setAttribute(`aria-${name}`, value);
  bar.firstElementChild.style.width = `${Math.min(100, share * 100)}%`;
}

function showBuffer(s) {
  const b = s.buffer;
  const label = (peak) => `events in the buffer over the last 5 minutes, at most ${count(peak)}`;
  const points = levels("events");
  const peak = curve($("buffer").querySelector("svg"), points, Math.max(1, ...points.map((point) => point.height)), label);
  const meters = [["Events", b.events, b.capacity_events, count], ["Bytes", b.bytes, b.capacity_bytes, bytes]];
  if (s.journal) meters.push(["Journal", s.journal.bytes, s.journal.capacity_bytes, bytes]);
  if (s.dead_letters) meters.push(["Dead letters", s.dead_letters.bytes, s.dead_letters.capacity_bytes, bytes]);
  meters.push(["Connections", s.connections.open, s.connections.capacity, count]);
  fill(part($("buffer"), "meters"), meters, () => clone("meter"), showMeter);
  const left = [[b.capacity_events - b.events, rate("events")], [b.capacity_bytes - b.bytes, rate("size")]];
  const seconds = Math.min(...left.map(([room, r]) => (room <= 0 ? 0 : r > 0 ? room / r : Infinity)));
  // While the broker keeps up, small changes of the buffer predict nothing.
  const filling = seconds < 86_400 && (s.broker.state !== "connected" || b.events > b.capacity_events / 4 || b.bytes > b.capacity_bytes / 4);
  let full = filling ? `in about ${duration(seconds)} at this rate` : "not in sight";
  if (seconds === 0) full = s.ack === "journaled" ? "now; the journal holds the rest" : "now: new events are answered 503";
  const oldest = b.oldest_event_timestamp_seconds ? `${duration(now - b.oldest_event_timestamp_seconds)} old` : "none";
  put($("buffer"), { note: `events held, at most ${count(peak)} in the last 5 minutes`, oldest, flight: `${count(b.in_flight_events)} sent, not confirmed yet`, full });
}

function showReload(s) {
  const [root, r] = [$("reload"), s.reload];
  root.hidden = !r;
  if (!r) return;
  const when = `${clock(r.timestamp_seconds)} (${ago(r.timestamp_seconds)})`;
  put(root, { outcome: r.error ? `A reload failed at ${when}. The old settings stay.` : `Reloaded at ${when}.` });
  const changed = r.changed.map((key) => `${key} changed`);
  const waiting = r.needs_restart.map((key) => `${key} needs a restart`);
  list(part(root, "details"), [...(r.error ? r.error.split("\n") : changed), ...waiting]);
}

function showBroker(s) {
  const b = s.broker;
  const node = $("broker");
  const [mood, words] = BROKER_STATE[b.state] ?? ["wait", b.state];
  tone(part(node, "badge"), mood);
  put(node, { name: b.name, state: words, location: b.location,
    since: `${clock(b.since_timestamp_seconds)}, ${ago(b.since_timestamp_seconds)}`,
    last: ago(b.last_published_timestamp_seconds) });
  part(node, "error").hidden = !b.last_error;
  if (b.last_error) {
    const { kind, text, timestamp_seconds: at } = b.last_error;
    const over = b.state === "connected" && at <= b.since_timestamp_seconds;
    tone(part(node, "error"), over ? "" : "bad");
    put(node, { "error-title": `Last error${over ? ", resolved" : ""}: ${kind}, ${ago(at)}`, "error-text": text,
      "error-meaning": b.name === "file" && kind === "connect" ? "The directory cannot be opened or written. Check that it exists and its permissions." : MEANING[kind] ?? "" });
  }
  part(node, "found").hidden = b.findings.length === 0;
  list(part(node, "findings"), b.findings);
}

function lastOutcome(last) {
  if (!last) return "nothing yet";
  const words = { accepted: "accepted", duplicate: "duplicate, answered 200", probe: "probe (Test connection), answered 200" };
  return `${words[last.outcome] ?? `rejected: ${last.outcome}`}, ${ago(last.timestamp_seconds)}`;
}

function showSource(node, source) {
  const { name, path, signed, rejected, secrets, deviations, recent_refusals: refusals } = source;
  tone(part(node, "badge"), signed ? "good" : "warn");
  put(node, { name, path, signed: signed ? "Signed" : "Unsigned: anyone who reaches this path can send events",
    validation: source.validation === "strict" ? "Strict: the documented payload" : "Lenient: every signed object",
    received: count(source.received), accepted: count(source.accepted), duplicate: count(source.duplicate),
    probe: count(source.probe), rejected: count(sum(rejected.map((r) => r.count))), last: lastOutcome(source.last) });
  rows(part(node, "reasons"), rejected.map((r) => [r.reason, count(r.count), r.advice]));
  rows(part(node, "secrets"), secrets.map((key) => [key.id, count(key.matched), ago(key.last_used_timestamp_seconds)]));
  rows(part(node, "refusals"), refusals.map((r) =>
    [`${clock(r.timestamp_seconds)}, ${ago(r.timestamp_seconds)}`, r.status ? String(r.status) : "none", r.reason, r.count > 1 ? `${count(r.count)} times: ${r.detail}` : r.detail, r.advice, r.peer, r.request_id]));
  list(part(node, "deviations"), deviations.map((d) => d.text));
  const tables = { rejections: rejected, keys: secrets, departures: deviations, recent: refusals };
  for (const [name, lines] of Object.entries(tables)) part(node, name).hidden = lines.length === 0;
}

function showUnknown(s) {
  const paths = s.unknown_paths ?? [];
  $("unknown").hidden = paths.length === 0;
  rows($("unknown").querySelector("table"), paths.map((u) => [ago(u.timestamp_seconds), u.path, count(u.count), u.peer,
    u.meant ? `Probably meant: ${u.meant} (slashes, upper and lower case or percent-encoding differ, or a proxy adds or removes a prefix)` : "No source has this path: correct the URL in PlexTrac's form, or add the path to the settings"]));
}

function showBooks(s) {
  const books = s.accounting;
  const terms = (names) => names.map((name) => `${name.replace("_", "-")}\u00a0${count(books[name])}`).join(" + ");
  const total = (names) => sum(names.map((name) => books[name]));
  const equation = (came, became) => {
    const off = total(came) - total(became);
    return [terms(came), count(total(came)), terms(became), count(total(became)), off === 0 ? "✓ adds up" : `✕ mismatch of ${count(Math.abs(off))}`];
  };
  rows($("books").querySelector("table"), [
    equation(["received"], ["accepted", "duplicate", "probe", "rejected"]),
    equation(["accepted", "recovered", "replayed"], ["published", "dead_lettered", "withdrawn", "lost", "held"]),
  ]);
  part($("books"), "verdict").hidden = books.mismatch === 0;
  put($("books"), { verdict: `The bridge itself counts a mismatch of ${count(books.mismatch)}: a defect of the bridge. Please report it with the text of /status.` });
}

function show(s) {
  for (const each of [showAbout, showReady, showEmpty, showEvents, showBuffer, showBroker, showReload, showUnknown, showBooks]) each(s);
  fill($("sources"), s.sources, () => clone("source"), showSource);
  $("values").hidden = false;
}

function showSilence(why) {
  const title = `No answer from the bridge since ${clock((answered || performance.timeOrigin) / 1000)}`;
  const known = answered ? `It was “${headline}” then; the values below are the last ones received. ` : "";
  showState("bad", title, `${known}This page keeps asking (${why}).`, null, title);
}

async function ask() {
  let s;
  try {
    const response = await fetch("status", { cache: "no-store", signal: AbortSignal.timeout(ANSWER_TIMEOUT) });
    if (!response.ok) throw new Error(`the answer was ${response.status}`);
    s = await response.json();
    now = (Date.parse(response.headers.get("date")) || Date.now()) / 1000;
  } catch (error) {
    gap = true;
    showSilence(error.name === "TimeoutError" ? "it takes longer than 5 seconds" : error instanceof TypeError ? "no connection" : error.message);
    return document.body.classList.add("stale");
  }
  answered = Date.now();
  // Another version of the program answers now: load its page, too.
  if (build && build !== s.version + s.revision) return location.reload();
  build = s.version + s.revision;
  document.body.classList.remove("stale");
  remember(s, answered);
  show(s);
}

async function keepAsking() {
  await ask().catch((error) => showState("bad", "This page cannot show the answer", "Reload it; /status has the values.", [error.message], error.message));
  setTimeout(keepAsking, EVERY);
}

keepAsking();
