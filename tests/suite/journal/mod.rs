//! The journal: events answered 200 in `journaled` mode survive crashes, damage, bad and full disks, and restarts.

// Killed at random moments and at named points.
mod crashes;

// Bytes of the files flipped, zeroed, cut off.
mod damage;

// Syncs that fail, disks that are full or missing, two daemons for one directory.
mod disk;

// The limit of the journal; no limit by the buffer.
mod full;

// The state that a start finds: order, modes, ids, clocks.
mod starts;
