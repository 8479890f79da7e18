// Prints PlexTrac's events from RabbitMQ: each one verified, each once, acknowledged only after the work is done.
//
// Environment: SECRET or SECRET_FILE (the webhook's), RABBITMQ_URI, RABBITMQ_QUEUE.
'use strict';
const { createHmac, timingSafeEqual } = require('node:crypto');
const { readFileSync } = require('node:fs');
const { promisify } = require('node:util');
const amqplib = require('amqplib');
const { CloudEvent } = require('cloudevents');

const { SECRET, SECRET_FILE } = process.env;
const { RABBITMQ_URI = 'amqp://localhost', RABBITMQ_QUEUE = 'plextrac-events' } = process.env;

// Repeats follow closely, after a reconnect or a restart: as many ids as the bridge remembers by default.
const REMEMBERED = 100_000;

function secret() {
  const text = SECRET_FILE ? readFileSync(SECRET_FILE, 'utf8').replace(/\r?\n$/, '') : SECRET;
  if (!text) throw new Error('set SECRET or SECRET_FILE');
  return text;
}

// Tells whether the body is, byte for byte, what PlexTrac signed. While a secret changes, try both.
function isGenuine(key, body, signature) {
  const expected = createHmac('sha256', key).update(body).digest();
  const given = Buffer.from(String(signature ?? ''), 'hex');
  return given.length === expected.length && timingSafeEqual(given, expected);
}

// Source and id of what was done, the last ones only, and forgotten at the end of the process. A real consumer keeps
// them in its database, and writes them in the transaction that does the work: then a crash between the work and the
// acknowledgement cannot make it do the work twice.
class Handled {
  #identities = new Set(); // in the order they were added

  add(identity) {
    this.#identities.add(identity);
    if (this.#identities.size > REMEMBERED) this.#identities.delete(this.#identities.values().next().value);
  }

  has(identity) {
    return this.#identities.has(identity);
  }
}

// The body as JSON. One that an operator replayed as it is may be any bytes: undefined.
function parse(content) {
  try {
    return JSON.parse(content);
  } catch {
    return undefined;
  }
}

// The official SDK has no binding for AMQP 0-9-1: the attributes are the headers with this prefix.
function toCloudEvent({ content, properties }) {
  const prefix = 'cloudEvents_';
  const named = Object.entries(properties.headers).filter(([name]) => name.startsWith(prefix));
  const attributes = Object.fromEntries(named.map(([name, value]) => [name.slice(prefix.length), value]));
  const { contentType: datacontenttype } = properties;
  return new CloudEvent({ ...attributes, datacontenttype, data: parse(content) }); // throws if it is none
}

const print = promisify((text, done) => process.stdout.write(text, done));

// Does what your service does with an event. It ends when the work is done, and throws if it cannot be done. Only the
// signature is certain: a field may be absent, null or of another type, and the body may be no object at all.
async function work(event) {
  const text = event.data?.text ?? null;
  await print(`event ${event.id} ${event.type} ${event.subject ?? '-'} ${JSON.stringify(text)}\n`);
}

// Tells whether the message is to be acknowledged; otherwise the bridge did not write it.
async function take(message, key, handled) {
  const { content, properties } = message;
  const refuse = (why) => {
    console.error('refused', properties.messageId, why);
    return false;
  };
  // First of all, over the raw bytes: a body that is not genuine is never parsed.
  if (!isGenuine(key, content, properties.headers?.['x-authorization-hmac-256'])) {
    return refuse('the signature does not belong to the body');
  }
  let event;
  try {
    event = toCloudEvent(message);
  } catch (error) {
    return refuse(error.message);
  }
  // Two sources may have the same id.
  const identity = `${event.source} ${event.id}`;
  if (handled.has(identity)) {
    console.error('repeat', event.id);
    return true;
  }
  // Fields that are not as PlexTrac documents them: a service that depends on one checks it here.
  const deviations = properties.headers['x-plextrac-deviations'];
  if (deviations) console.error('deviates', event.id, deviations);
  await work(event);
  handled.add(identity);
  return true;
}

async function main() {
  const key = secret();
  const handled = new Handled();
  const connection = await amqplib.connect(RABBITMQ_URI);
  const channel = await connection.createChannel();
  // Without connection, channel or queue the process ends, and its supervisor starts it again. What is thrown in one of
  // amqplib's callbacks would not get here.
  let stopping = false;
  const fail = (error) => {
    console.error('error', error?.message ?? 'the connection was closed');
    process.exit(1);
  };
  connection.on('error', fail);
  connection.on('close', (error) => stopping || fail(error));
  channel.on('error', fail);
  // One at a time keeps the order; with more, what is not acknowledged is delivered again, behind later messages.
  await channel.prefetch(1);
  let current = Promise.resolve();
  const { consumerTag } = await channel.consume(RABBITMQ_QUEUE, (message) => {
    if (message === null) fail(new Error(`the queue ${RABBITMQ_QUEUE} does not exist any more`));
    current = take(message, key, handled).then((done) => {
      if (done) channel.ack(message);
      else channel.reject(message, false); // to the queue's dead letter exchange, if it has one
    }, fail);
  });

  const stop = async () => {
    stopping = true;
    await channel.cancel(consumerTag);
    await current;
    await channel.close(); // sends what is acknowledged; the rest stays in the queue
    await connection.close();
  };
  for (const signal of ['SIGTERM', 'SIGINT']) process.once(signal, stop);
}

main();
