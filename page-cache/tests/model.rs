//! The whole cache in one thread, from one seed, on a simulated device.
//!
//! Several lanes and the flusher are turned in random order, so operations interleave at every lock;
//! the device delays and reorders what it completes, and may fail. The oracle is
//! [`common::history`]. A failure names its seed; `UAIO_SEED=n` replays it, `UAIO_SEEDS=n` runs more.

mod common;

use common::world::{Plan, World};
use uaio_page_cache::CacheMode;

/// Runs a plan for many seeds.
fn explore(plan: Plan) {
    let (first, count) = match std::env::var("UAIO_SEED") {
        Ok(seed) => (seed.parse().expect("UAIO_SEED is a number"), 1),
        Err(_) => (fastrand::u64(..1 << 40), seeds()),
    };
    for seed in first..first + count {
        let result = std::panic::catch_unwind(|| World::new(plan, seed).run());
        if let Err(panic) = result {
            eprintln!("{plan:?} failed with UAIO_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

fn seeds() -> u64 {
    std::env::var("UAIO_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(150)
}

const PLAN: Plan = Plan {
    mode: CacheMode::Writeback,
    frames: 64,
    shards: 2,
    block_size: 512,
    lanes: 3,
    steps: 400,
    faults: false,
    crash: false,
};

#[test]
fn a_read_gives_what_was_acknowledged_in_writeback() {
    explore(PLAN);
    explore(Plan { block_size: 4096, ..PLAN });
}

#[test]
fn a_read_gives_what_was_acknowledged_in_writethrough() {
    explore(Plan { mode: CacheMode::Writethrough, ..PLAN });
}

#[test]
fn a_read_gives_what_was_acknowledged_without_a_cache() {
    explore(Plan { mode: CacheMode::None, ..PLAN });
}

#[test]
fn frames_for_one_request_and_one_more_are_enough() {
    explore(Plan { frames: 16 + 1, shards: 1, ..PLAN });
    explore(Plan { frames: 16 + 1, shards: 1, mode: CacheMode::Writethrough, ..PLAN });
}

#[test]
fn what_is_acknowledged_as_stable_survives_a_crash_at_any_device_operation() {
    for mode in [CacheMode::Writeback, CacheMode::Writethrough, CacheMode::None] {
        explore(Plan { mode, crash: true, ..PLAN });
        explore(Plan { mode, crash: true, frames: 17, shards: 1, ..PLAN });
    }
}

#[test]
fn failed_writebacks_lose_nothing_and_lie_to_nobody() {
    explore(Plan { faults: true, ..PLAN });
    explore(Plan { faults: true, frames: 17, shards: 1, ..PLAN });
    explore(Plan { faults: true, mode: CacheMode::Writethrough, ..PLAN });
}

#[test]
fn a_crash_after_failed_writebacks_loses_nothing_stable() {
    explore(Plan { faults: true, crash: true, ..PLAN });
    explore(Plan { faults: true, crash: true, frames: 17, shards: 1, ..PLAN });
}
