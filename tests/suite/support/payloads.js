// What the sender may send, made as the sender makes it: JSON.stringify, then createHmac. Everything that is public about
// these webhooks is in here: every event name, every field, every shape. `node payloads.js SECRET SEED COUNT` writes COUNT
// events, all different, then the bodies that are connection tests; one JSON object per line:
// {"name":..,"kind":"event"|"probe","body":base64,"signature":hex}, and of an event also {"id":..,"type":..,"subject":..|null,
// "deviations":["text:missing",..]}: what consumers must see. One seed always gives the same lines.
'use strict';
const { createHmac } = require('crypto');
const [secret, seed, count] = process.argv.slice(2);

// mulberry32: small, and the same on every machine.
let state = Number(seed) >>> 0;
const random = () => {
  state = (state + 0x6d2b79f5) >>> 0;
  let mixed = Math.imul(state ^ (state >>> 15), state | 1);
  mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
  return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
};
const below = (limit) => Math.floor(random() * limit);
const pick = (list) => list[below(list.length)];
const chance = (share) => random() < share;

let serial = 0;
// 25 characters, as the sender's ids of entities have.
const entity = () => {
  serial += 1;
  return `cm4${String(serial).padStart(8, '0')}${Array.from({ length: 14 }, () => below(36).toString(36)).join('')}`;
};
// As ids of a stream: milliseconds and a counter.
const request = () => {
  serial += 1;
  return `${1736201637380 + serial}-${below(4)}`;
};
const number = () => {
  serial += 1;
  return 1000 + serial;
};

// [event, targetType]: those of the vendor's pages, of public receivers, and what the interface shows.
const EVENTS = [
  ['ReportPublished', 'report'],
  ['FindingPublished', 'finding'],
  ['AssessmentSubmitted', 'assessment'],
  ['SchedulerEngagementSubmitted', 'engagement'],
  ['ReportStatusChanged', 'report'],
  ['WFA: On Report Creation/Edit', 'report'],
  ['WFA: On Report Finding Creation/Edit', 'finding'],
  ['On Report Finding Creation/Edit', 'finding'],
  ['On Report Creation/Edit', 'report'],
  ['Report Publish Status', 'report'],
  ['New Assessment Submission', 'assessment'],
  ['New Engagement request', 'engagement'],
];
const TEXTS = [
  '', 'Acme Corp||External penetration test 2026', '%CLIENT_NAME% %REPORT_NAME% %FINDING_TITLE%', 'Größe, café, Ångström',
  '日本語のレポート 한국어 中文', 'العربية עברית', '👩‍👩‍👧‍👦🏳️‍🌈🇺🇳', 'e\u0301\u0323 \u200b\u202e', 'line\u2028paragraph\u2029next\u0085',
  '\u0000\u0001\u001f\u007f\t\r\n\b\f', '\ufffd\ufffe\uffff\ufeff', '\u{10000}\u{1f600}\u{10ffff}\ue000', '"quoted" \\back\\slash /solidus/',
  "<script>alert('x')</script>&amp;{event}{{}}", 'key=value;a,b\\0 $(id) `id` ${HOME}', '\ud800', '\udfff', 'a\ud83d', '\udc00\ud800',
];
const REQUIRED = ['cuid', 'actorCuid', 'event', 'targetType', 'text'];
const IDS = ['clientId', 'reportId', 'findingId', 'flawId', 'assessmentId'];
const FIELDS = [...REQUIRED, 'targetCuid', 'targetCuids', ...IDS];
// One value of each kind that JSON has, with what makes it unlike any other body where that is needed.
const KINDS = {
  missing: () => undefined,
  null: () => null,
  number: () => number(),
  string: () => entity(),
  empty: () => '',
  object: () => ({ id: entity() }),
  list: () => [entity()],
  boolean: () => chance(0.5),
};

const documented = ([event, targetType] = pick(EVENTS)) => ({
  cuid: request(), actorCuid: entity(), event, targetCuid: entity(), targetType, text: 'Acme Corp||External test',
});
const older = ([event, targetType] = pick(EVENTS)) => ({
  cuid: request(), event, targetType, actorCuid: entity(), targetCuid: entity(),
});
const bulk = (payload, targets) => {
  const { targetCuid, ...rest } = payload;
  return { ...rest, targetCuids: targets };
};
const several = (many) => Array.from({ length: many }, entity);

// How a value departs from a string; undefined if it does not.
const LONE = /[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/;
const departure = (value) => {
  if (value === null) return 'null';
  if (typeof value !== 'string') return 'type';
  if (value === '') return 'empty';
  return LONE.test(value) ? 'surrogate' : undefined;
};
// Worked out here and not by the bridge. A text may be empty, and may have a lone surrogate; ids may be missing, and may be
// numbers; there is one target or a list of them.
const deviations = (payload) => {
  const found = new Set();
  const note = (field, deviation) => deviation && found.add(`${field}:${deviation}`);
  for (const field of REQUIRED) {
    const deviation = payload[field] === undefined ? 'missing' : departure(payload[field]);
    if (field !== 'text' || !['empty', 'surrogate'].includes(deviation)) note(field, deviation);
  }
  for (const field of IDS) {
    if (payload[field] !== undefined && typeof payload[field] !== 'number') note(field, departure(payload[field]));
  }
  const { targetCuid, targetCuids } = payload;
  if (targetCuid === undefined && targetCuids === undefined) note('targetCuid', 'missing');
  if ((targetCuid ?? null) !== null && (targetCuids ?? null) !== null) note('targetCuids', 'both_targets');
  if (targetCuid !== undefined) note('targetCuid', departure(targetCuid));
  if (Array.isArray(targetCuids)) {
    if (!targetCuids.some((target) => departure(target) === undefined)) note('targetCuids', 'empty');
    for (const target of targetCuids) note('targetCuids', departure(target));
  } else if (targetCuids !== undefined) {
    note('targetCuids', targetCuids === null ? 'null' : 'type');
  }
  return [...found].sort();
};

// The value of a field; empty if it cannot be used.
const usable = (value) => (departure(value) === undefined ? value : '');
const cut = (text) => {
  let end = 1024;
  const bytes = Buffer.from(text);
  // Not within a character.
  while ((bytes[end] & 0xc0) === 0x80) end -= 1;
  return bytes.subarray(0, end).toString();
};
const described = (payload, signature) => {
  const { targetType, targetCuid, targetCuids } = payload;
  const cuid = usable(payload.cuid);
  const several = Array.isArray(targetCuids) ? targetCuids : [];
  const [type, target] = [usable(targetType), usable(targetCuid) || (several.find(usable) ?? '')];
  return {
    id: cuid === '' || Buffer.byteLength(cuid) > 200 ? signature.slice(0, 32) : `${cuid}-${signature.slice(0, 12)}`,
    type: cut(`com.plextrac.${usable(payload.event) || 'unknown'}`),
    subject: type || target ? cut(`${type}/${target}`) : null,
    deviations: deviations(payload),
  };
};

const events = [];
const seen = new Set();
const add = (name, payload) => {
  const body = JSON.stringify(payload);
  if (seen.has(body)) return false;
  seen.add(body);
  // As it can be read back: without what JSON.stringify leaves out, and NaN is null.
  events.push({ name, kind: 'event', body: Buffer.from(body), payload: JSON.parse(body) });
  return true;
};
const must = (name, payload) => {
  if (!add(name, payload)) throw new Error(`${name} is a body that was there before`);
};

for (const event of EVENTS) {
  must(`documented ${event[0]}`, documented(event));
  must(`older, without text: ${event[0]}`, older(event));
  must(`older bulk change: ${event[0]}`, bulk(older(event), several(3)));
  must(`documented bulk change: ${event[0]}`, bulk(documented(event), several(2)));
  must(`event with ids: ${event[0]}`, { event: event[0], clientId: number(), reportId: number(), findingId: number() });
}
must("the vendor's example", {
  cuid: '1736201637380-0', event: 'FindingPublished', targetType: 'finding', actorCuid: 'cm4v', targetCuid: 'cm4w',
});
for (const field of FIELDS) {
  for (const [kind, make] of Object.entries(KINDS)) {
    const payload = field === 'targetCuids' ? bulk(documented(), undefined) : documented();
    must(`${field} is ${kind}`, { ...payload, [field]: make() });
  }
}
// Workflow automations: ids alone, in every combination, as numbers and as text.
for (const write of [(id) => id, (id) => String(id), (id) => (id % 2 ? id : String(id)), (id) => id + 0.5]) {
  must('client, report and finding', { clientId: write(number()), reportId: write(number()), findingId: write(number()) });
  must('client, report and flaw', { clientId: write(number()), reportId: write(number()), flawId: write(number()) });
  must('client and report', { clientId: write(number()), reportId: write(number()) });
  for (const id of IDS) must(`${id} alone`, { [id]: write(number()) });
}
must('finding and flaw', { findingId: number(), flawId: number() });
must('ids as entities', { clientId: entity(), reportId: entity() });
must('ids of nothing', { clientId: null, reportId: null, findingId: null, assessmentId: null });
must('an id of zero', { reportId: 0 });
must('a negative id', { reportId: -1 });
must('an id beyond 2^53', { reportId: 2 ** 53 + 2, clientId: 1e21 });
must('an id that is not a number', { reportId: NaN, clientId: number() });
// Targets.
must('no target', (({ targetCuid, ...rest }) => rest)(documented()));
must('both targets', { ...documented(), targetCuids: several(2) });
must('null beside one target', { ...documented(), targetCuids: null });
must('null beside several targets', { ...bulk(documented(), several(2)), targetCuid: null });
must('both targets null', { ...documented(), targetCuid: null, targetCuids: null });
must('no target in the list', bulk(documented(), []));
must('the empty text in the list', bulk(documented(), ['', entity()]));
must('null in the list', bulk(documented(), [null, entity()]));
must('numbers in the list', bulk(documented(), [number(), number()]));
must('lists in the list', bulk(documented(), [[entity()], {}]));
must('a lone surrogate in the list', bulk(documented(), ['\ud800', entity()]));
must('20,000 targets', bulk(documented(['FindingPublished', 'finding']), several(20_000)));
// Lengths.
for (const [length, letter] of [[199, 'c'], [200, 'c'], [201, 'c'], [5000, 'c'], [100, 'é'], [50, '😀'], [51, '😀']]) {
  must(`a cuid of ${length} times ${letter}`, { ...documented(), cuid: letter.repeat(length) });
}
must('a long event', { ...documented(), event: 'E'.repeat(3000) });
must('a long event of several bytes', { ...documented(), event: '語'.repeat(1000) });
must('a long type', { ...documented(), targetType: 'T'.repeat(3000) });
must('a long target', { ...documented(), targetCuid: '😀'.repeat(1000) });
must('a long text', { ...documented(), text: 'x'.repeat(200_000) });
// What is not documented.
const deep = (levels) => (levels ? { below: deep(levels - 1) } : 1);
must('nested values', { ...documented(), further: { cuid: 5, event: [null, { text: 1e21 }], targetCuid: -0.0 } });
must('deeply nested values', { ...documented(), further: deep(200) });
must('unknown fields alone', { test: true, at: new Date(0) });
must('the names in other cases', { Event: 'ReportPublished', CUID: request(), TargetType: 'report' });
must('the empty name', { '': number() });
must('a name with a lone surrogate', { ...documented(), '\ud800': 1 });
must('a name of the language', Object.defineProperty({ ...documented() }, '__proto__', { value: 1, enumerable: true }));
must('many unknown fields', { ...documented(), ...Object.fromEntries(several(500).map((id) => [id, null])) });
for (const [at, text] of TEXTS.entries()) {
  must(`text ${at}`, { ...documented(), text });
  must(`text ${at} everywhere`, {
    ...documented(), actorCuid: text, event: text, targetCuid: text, targetType: text, [`further ${text}`]: text,
  });
  must(`text ${at} in a cuid`, { ...documented(), cuid: `${request()}${text}` });
}

// And what nobody thought of: any shape, any field of any kind, in any order.
const shapes = [
  () => documented(), () => older(), () => bulk(documented(), several(below(5))), () => bulk(older(), several(1 + below(40))),
  () => ({ clientId: number(), reportId: String(number()) }), () => ({ event: pick(EVENTS)[0], reportId: number() }),
];
const fixed = events.length;
while (events.length < Number(count)) {
  const payload = pick(shapes)();
  for (const field of FIELDS) if (chance(0.12)) payload[field] = KINDS[pick(Object.keys(KINDS))]();
  if (chance(0.3)) payload.text = pick(TEXTS);
  if (chance(0.2)) payload[`field${below(9)}`] = pick([null, 1.5, [], {}, deep(5), pick(TEXTS), [pick(TEXTS), number()]]);
  const shuffled = Object.entries(payload).map((entry) => [random(), entry]).sort(([a], [b]) => a - b);
  const mixed = Object.fromEntries(shuffled.map(([, entry]) => entry));
  if (JSON.stringify(mixed) !== '{}') add('random', mixed);
}
if (fixed > Number(count)) throw new Error(`there are ${fixed} fixed bodies; ask for at least as many`);

const probes = [{}, [], 'x', null, 5].map((value) => JSON.stringify(value)).concat('');
const lines = [
  ...events,
  ...probes.map((body) => ({ name: `a test: ${body}`, kind: 'probe', body: Buffer.from(body) })),
];
for (const { name, kind, body, payload } of lines) {
  const signature = createHmac('SHA256', secret).update(body).digest('hex');
  const line = { name, kind, body: body.toString('base64'), signature, ...(payload && described(payload, signature)) };
  process.stdout.write(`${JSON.stringify(line)}\n`);
}
