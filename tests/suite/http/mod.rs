//! The requests of senders and their answers: section by section of the HTTP contract, through raw sockets.

// Every status and reason with its body, headers, counters and line of log.
mod answers;

// The content of a signed body: JSON, UTF-8, the documented payload, sizes.
mod bodies;

// One request after another on a connection, 100 Continue, slow senders, big bodies refused.
mod connections;

// The first head of a connection: in pieces, malformed, unfinished, at a stop.
mod heads;

// Kept-alive connections: idle time-outs, replacement, a stop, memory, other protocols.
mod idle;

// Lengths, chunks and headers that lie: never a second request out of one.
mod framing;

// 503: buffer, read budget, stopping.
mod full;

// Several sources, several secrets, unsigned, lenient, probes.
mod sources;

// A case of a table: the bytes, the answer, the counters.
mod case;
