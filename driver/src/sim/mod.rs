//! A simulated device, from one seed: latency, order, faults, crash.
#![forbid(unsafe_code)]
