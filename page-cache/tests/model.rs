//! The whole cache in one thread, from one seed, on a simulated device.
//!
//! Several lanes and the flusher are turned in random order, so operations interleave at every lock;
//! the device delays and reorders what it completes, and may fail. The oracle is
//! [`common::history`]. A failure names its seed, shortens the schedule for as long as it still fails,
//! and tells what is left step by step; `UAIO_SEED=n` replays it, `UAIO_SEEDS=n` runs more.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::world::{Plan, World, shortest};
use uaio_page_cache::CacheMode;

/// Runs a plan for many seeds.
fn explore(plan: Plan) {
    let (first, count) = match std::env::var("UAIO_SEED") {
        Ok(seed) => (seed.parse().expect("UAIO_SEED is a number"), 1),
        Err(_) => (fastrand::u64(..1 << 40), seeds()),
    };
    for seed in first..first + count {
        let mut random = fastrand::Rng::with_seed(!seed);
        // A crash may come after any number of steps.
        let count = if plan.crash { random.usize(..plan.steps) } else { plan.steps };
        let steps: Vec<u64> = (0..count).map(|_| random.u64(..)).collect();
        if let Err(panic) = catch_unwind(|| _ = World::new(plan, seed).run(&steps)) {
            eprintln!("{plan:?} failed with UAIO_SEED={seed}");
            tell_shortest(plan, seed, &steps);
            std::panic::resume_unwind(panic);
        }
    }
}

/// Shortens a schedule that fails and tells what is left of it.
fn tell_shortest(plan: Plan, seed: u64, steps: &[u64]) {
    let fails = |steps: &[u64]| {
        catch_unwind(AssertUnwindSafe(|| World::new(plan, seed).run(steps))).is_err()
    };
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let steps = shortest(steps, 2000, fails);
    std::panic::set_hook(hook);
    eprintln!("{} steps of it are enough:", steps.len());
    let told = catch_unwind(AssertUnwindSafe(|| World::new(plan, seed).telling().run(&steps)));
    assert!(told.is_err(), "the shortened schedule does not fail");
}

#[test]
fn a_schedule_that_fails_is_shortened_to_what_matters() {
    let steps: Vec<u64> = (0..400).collect();
    let fails = |steps: &[u64]| {
        let at = |wanted| steps.iter().position(|step| *step == wanted);
        matches!((at(17), at(251)), (Some(first), Some(second)) if first < second)
    };
    assert_eq!(shortest(&steps, 2000, fails), [17, 251]);
}

fn seeds() -> u64 {
    std::env::var("UAIO_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(200)
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
    gone: false,
    keeps: false,
    loses: false,
    depth_one: false,
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
fn a_device_queue_of_one_request_is_enough() {
    explore(Plan { depth_one: true, ..PLAN });
    explore(Plan { depth_one: true, frames: 17, shards: 1, faults: true, crash: true, ..PLAN });
    explore(Plan { depth_one: true, mode: CacheMode::Writethrough, ..PLAN });
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

#[test]
fn a_flush_succeeds_after_one_that_lost_data_only_when_that_is_stable_again() {
    let plan = Plan { faults: true, loses: true, crash: true, ..PLAN };
    explore(plan);
    explore(Plan { frames: 17, shards: 1, ..plan });
    explore(Plan { mode: CacheMode::Writethrough, ..plan });
    explore(Plan { mode: CacheMode::None, ..plan });
    explore(Plan { crash: false, ..plan });
}

#[test]
fn when_the_device_goes_everybody_is_answered_and_no_frame_is_lost() {
    explore(Plan { gone: true, ..PLAN });
    explore(Plan { gone: true, faults: true, frames: 17, shards: 1, ..PLAN });
    explore(Plan { gone: true, mode: CacheMode::Writethrough, ..PLAN });
    explore(Plan { gone: true, mode: CacheMode::None, ..PLAN });
}

#[test]
fn a_device_that_keeps_frames_for_ever_makes_nobody_wait_for_ever() {
    let plan = Plan { gone: true, keeps: true, ..PLAN };
    explore(plan);
    explore(Plan { faults: true, frames: 17, shards: 1, ..plan });
    explore(Plan { mode: CacheMode::Writethrough, frames: 17, shards: 1, ..plan });
    explore(Plan { mode: CacheMode::None, frames: 17, shards: 1, ..plan });
}
