// Signs as the sender does: createHmac over JSON.stringify. `node sign.js SECRET` reads a JSON list of payloads from
// standard input, in which {"$unit":[..]} is a string of UTF-16 code units (so that lone ones can be asked for) and
// {"$repeat":[text,times]} a long one. Writes one line per payload: signature, blank, body in base64.
'use strict';
const { createHmac } = require('crypto');
const { readFileSync } = require('fs');
const [secret] = process.argv.slice(2);

const make = (value) => {
  if (Array.isArray(value)) return value.map(make);
  if (value === null || typeof value !== 'object') return value;
  if (value.$unit) return String.fromCharCode(...value.$unit);
  if (value.$repeat) return value.$repeat[0].repeat(value.$repeat[1]);
  return Object.fromEntries(Object.entries(value).map(([key, below]) => [key, make(below)]));
};

for (const payload of JSON.parse(readFileSync(0, 'utf8'))) {
  const body = Buffer.from(JSON.stringify(make(payload)));
  const signature = createHmac('SHA256', secret).update(body).digest('hex');
  process.stdout.write(`${signature} ${body.toString('base64')}\n`);
}
