//! Steady load and one fault after the other, on each real broker; in the end the oracle's verdict, and a straight line
//! through the memory. `make soak MINUTES=20 BROKER=kafka` for long, some seconds within `make test`.

// The faults, and their order.
mod fault;

// One broker's run: load, faults, samples.
mod run;

// The report.
mod verdict;

// Healthy addresses beside one that takes nothing.
mod stuck;
