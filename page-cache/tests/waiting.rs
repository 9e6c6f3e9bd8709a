//! Who waits is let go in order: nobody starves behind newcomers, and a crowd costs its number, not its
//! square.
//!
//! The starving scenes have a lane that does the same thing over and over, the next time in the same turn
//! in which the last ended, so that another lane never finds a quiet moment by chance. It has to be
//! handed one.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::rig::{MEDIA, PAGE, READ, Rig, STABLE, WRITE, page};
use uaio_driver::sim::{Effect, Fault, FaultOn};
use uaio_page_cache::{CacheMode, CacheOptions, OpKind, Waited};

/// Rounds in which whoever waits must have been let go.
const PATIENCE: u64 = 40;

/// Lane 0 writes block 0 of page 0 stably without a pause; operation 1 of lane 1 must end all the same.
fn beside_a_stream_of_stable_writes(kind: OpKind, offset: u64, bytes: Vec<u8>) -> Rig {
    let mut rig = Rig::new(CacheMode::Writeback);
    let mut next = 100;
    rig.start(next, STABLE, 0, vec![1; 512]);
    rig.start_on(1, 1, kind, offset, bytes);
    while rig.result(1).is_none() {
        rig.lanes[0].turn();
        rig.collect();
        if rig.result(next).is_some() {
            next += 1;
            rig.start(next, STABLE, 0, vec![1; 512]);
        }
        rig.lanes[1].turn();
        rig.collect();
        rig.turn_flusher();
        assert!(next < 100 + PATIENCE, "{kind:?} starves behind stable writes");
    }
    assert_eq!(rig.wait(next).0, Ok(()));
    assert_eq!(rig.result(1), Some(Ok(())));
    rig
}

#[test]
fn a_stable_writer_does_not_starve_behind_another_lane_s() {
    beside_a_stream_of_stable_writes(STABLE, 0, vec![2; 512]);
}

#[test]
fn a_writer_of_part_of_a_block_does_not_starve_behind_stable_writes_of_its_page() {
    let mut rig = beside_a_stream_of_stable_writes(WRITE, 5 * 512 + 10, vec![2; 20]);
    assert_eq!(rig.wait(1).0, Ok(()));
    assert_eq!(rig.run(READ, 5 * 512 + 10, vec![0; 20]).1, [2; 20]);
}

#[test]
fn a_reader_of_missing_blocks_does_not_starve_behind_stable_writes_of_its_page() {
    let mut rig = beside_a_stream_of_stable_writes(READ, 3 * 512, vec![9; 512]);
    assert_eq!(rig.wait(1), (Ok(()), vec![0; 512]));
    let mut rig =
        beside_a_stream_of_stable_writes(OpKind::Read { direct: true }, 3 * 512, vec![9; 512]);
    assert_eq!(rig.wait(1), (Ok(()), vec![0; 512]));
}

#[test]
fn a_discard_does_not_starve_behind_stable_writes_of_its_page() {
    beside_a_stream_of_stable_writes(OpKind::WriteZeroes { may_unmap: false }, 0, page(0));
}

#[test]
fn a_flush_does_not_starve_behind_stable_writes_of_its_page() {
    flush_beside_stable_writes(Rig::new(CacheMode::Writeback));
}

/// There is always a device flush under way, for the stable writes.
#[test]
fn a_flush_does_not_starve_behind_stable_writes_of_its_page_that_share_flushes() {
    let mut rig = Rig::new(CacheMode::Writeback);
    // One that does not end, so that no other is alone.
    rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Stuck).at(800..808));
    rig.start(99, STABLE, 100 * PAGE, page(1));
    let rig = flush_beside_stable_writes(rig);
    assert!(rig.device.counts().flushes > 2, "{:?}", rig.device.counts());
    rig.device.clear_faults();
}

fn flush_beside_stable_writes(mut rig: Rig) -> Rig {
    rig.start(100, STABLE, 0, vec![1; 512]);
    // Dirtied while the page is under writeback: the flusher has to write it, and needs a moment for that.
    rig.start_on(1, 2, WRITE, 6 * 512, vec![2; 512]);
    assert_eq!(rig.result(2), Some(Ok(())));
    rig.start_on(1, 1, OpKind::FlushRange, 0, page(0));
    let mut next = 100;
    while rig.result(1).is_none() {
        rig.turn_lanes();
        if rig.result(next).is_some() {
            next += 1;
            rig.start(next, STABLE, 0, vec![1; 512]);
        }
        rig.turn_flusher();
        assert!(next < 100 + PATIENCE, "a flush starves behind stable writes");
    }
    assert_eq!(rig.wait(next).0, Ok(()));
    assert_eq!(rig.device.crash_image(1)[6 * 512..7 * 512], [2; 512]);
    rig
}

/// Each is woken when it is its turn, by the one before it.
#[test]
fn a_thousand_stable_writers_of_one_page_are_a_thousand_wakeups() {
    a_thousand_writers_of_one_page(STABLE);
}

/// Though the page is to leave when the last of them has written.
#[test]
fn a_thousand_direct_writers_of_one_page_are_a_thousand_wakeups() {
    let rig = a_thousand_writers_of_one_page(OpKind::Write { stable: true, direct: true });
    assert_eq!(rig.cache.residency(0..PAGE).cached, 0, "it stays");
}

fn a_thousand_writers_of_one_page(kind: OpKind) -> Rig {
    const WRITERS: u64 = 1000;
    let mut rig = Rig::of_lanes(1 << 20, CacheOptions::frames(64), 1, WRITERS as usize);
    for id in 0..WRITERS {
        rig.start_on((id % 2) as usize, id, kind, 512 * (id % 8), vec![id as u8; 512]);
    }
    let mut order = Vec::new();
    while order.len() < WRITERS as usize {
        rig.turn();
        order.extend(rig.finished.drain(..).map(|(id, result, _)| {
            assert_eq!(result, Ok(()));
            id
        }));
    }
    let waits = rig.cache.stats().merged;
    assert!(waits <= 2 * WRITERS, "{waits} waits of {WRITERS} writers");
    // First come, first served.
    for parity in 0..2 {
        let of_lane: Vec<u64> = order.iter().copied().filter(|id| id % 2 == parity).collect();
        assert!(of_lane.is_sorted(), "lane {parity}: {of_lane:?}");
    }
    let mut last = vec![0; 4096];
    (0..WRITERS).for_each(|id| last[512 * (id as usize % 8)] = id as u8);
    let image = rig.device.crash();
    (0..8).for_each(|block| assert_eq!(image[512 * block], last[512 * block]));
    rig
}

/// The time that the clock of the next test shows.
static NOW_MS: AtomicU64 = AtomicU64::new(0);
/// How often it was read.
static READINGS: AtomicU64 = AtomicU64::new(0);

fn test_clock() -> Duration {
    READINGS.fetch_add(1, Ordering::Relaxed);
    Duration::from_millis(NOW_MS.load(Ordering::Relaxed))
}

#[test]
fn time_spent_waiting_is_told_by_what_was_waited_for() {
    let mut rig = Rig::with(CacheOptions {
        shards: 1,
        dirty_max_percent: 10,
        clock: Some(test_clock),
        ..CacheOptions::frames(20)
    });
    assert_eq!(rig.run(READ, 0, page(0)).0, Ok(()));
    assert_eq!(rig.run(READ, 0, page(0)).0, Ok(()));
    assert_eq!(READINGS.load(Ordering::Relaxed), 0, "nobody has waited for anybody");
    let mut stuck = rig.device.set_fault(Fault::new(FaultOn::Everything, Effect::Stuck));
    let pass = |rig: &mut Rig, stuck: &mut _, ms| {
        rig.turns(2);
        NOW_MS.fetch_add(ms, Ordering::Relaxed);
        rig.device.clear_fault(*stuck);
        rig.turns(50);
        *stuck = rig.device.set_fault(Fault::new(FaultOn::Everything, Effect::Stuck));
    };
    // A page that another reads; room for two dirty pages; the frames; the queue; a range; a flush.
    rig.start(1, READ, PAGE, page(0));
    rig.start_on(1, 2, READ, PAGE, page(0));
    pass(&mut rig, &mut stuck, 10);
    let page_waits = rig.cache.stats().waits.page;
    (3..6).for_each(|id| rig.start(id, WRITE, id * PAGE, page(1)));
    pass(&mut rig, &mut stuck, 200);
    rig.cache.drop_clean(0..u64::MAX);
    (30..46).for_each(|id| rig.start(id, READ, id * 2 * PAGE, page(0)));
    (46..51).for_each(|id| rig.start_on(1, id, READ, id * 2 * PAGE, page(0)));
    pass(&mut rig, &mut stuck, 3000);
    let zeroes = OpKind::WriteZeroes { may_unmap: false };
    rig.start(60, zeroes, 0, page(0));
    rig.start_on(1, 61, WRITE, 0, page(1));
    pass(&mut rig, &mut stuck, 40_000);
    rig.start(70, OpKind::Flush, 0, Vec::new());
    pass(&mut rig, &mut stuck, 500_000);
    (80..99).for_each(|id| rig.start(id, READ, (101 + (id - 80) * 7) * PAGE, page(0)));
    let before = rig.cache.stats().waits;
    pass(&mut rig, &mut stuck, 6_000_000);
    let waits = rig.cache.stats().waits;
    let check = |waited: Waited, ms| {
        assert!(waited.count > 0, "nobody waited: {before:?}");
        assert_eq!(waited.time.as_millis(), u128::from(waited.count) * ms, "{before:?}");
    };
    check(page_waits, 10);
    check(before.room, 200);
    check(before.frame, 3000);
    check(before.range, 40_000);
    check(before.flush, 500_000);
    check(waits.slot, 6_000_000);
    assert_eq!(before.slot, Waited::default());
}

#[test]
fn a_turn_whose_owner_was_cancelled_goes_to_the_next() {
    for after_the_wake in [false, true] {
        let mut rig = Rig::new(CacheMode::Writeback);
        rig.start(1, STABLE, 0, vec![1; 512]);
        rig.start_on(1, 2, STABLE, 0, vec![2; 512]);
        rig.start_on(1, 3, STABLE, 0, vec![3; 512]);
        if after_the_wake {
            // The first ends, and the turn goes to the second, whose lane has not looked yet.
            while rig.result(1).is_none() {
                rig.lanes[0].turn();
                rig.collect();
            }
        }
        assert_eq!(rig.cancel(1, 2), uaio_page_cache::Cancelled::Finished);
        assert_eq!(rig.wait(3).0, Ok(()));
        assert_eq!(rig.device.crash()[..512], [3; 512]);
    }
}

#[test]
fn a_turn_is_given_back_by_who_has_to_wait_for_something_else_first() {
    // The writer whose turn it is needs a frame, and there is none: the next goes on.
    let mut rig = Rig::with(CacheOptions { shards: 1, ..CacheOptions::frames(16) });
    rig.start(1, STABLE, 0, vec![1; 512]);
    rig.start_on(1, 2, WRITE, 3 * 512 + 1, vec![2; 10]);
    rig.start_on(1, 3, STABLE, 0, vec![3; 512]);
    let stuck = rig.device.set_fault(Fault::new(FaultOn::Reads, Effect::Stuck).at(64..u64::MAX));
    for id in 10..25 {
        rig.start(id, READ, id * PAGE, page(0));
    }
    for _ in 0..50 {
        rig.turn();
    }
    assert_eq!(rig.result(3), Some(Ok(())), "it waits for who waits for a frame");
    rig.device.clear_fault(stuck);
    assert_eq!(rig.wait(2).0, Ok(()));
    assert_eq!(rig.flush(), Ok(()));
    rig.cache.assert_sound();
    assert_eq!(rig.cache.frames_lent(), 0);
}

#[test]
fn who_waits_for_a_turn_at_a_page_that_cannot_be_read_is_told() {
    let mut rig = Rig::new(CacheMode::Writeback);
    rig.device.set_fault(Fault::new(FaultOn::Reads, Effect::Fail(MEDIA)).at(0..8));
    for id in 0..5 {
        rig.start_on((id % 2) as usize, id, WRITE, 100 + id, vec![1; 10]);
    }
    (0..5).for_each(|id| assert_eq!(rig.wait(id).0, Err(MEDIA)));
    rig.device.clear_faults();
    assert_eq!(rig.run(WRITE, 100, vec![1; 10]).0, Ok(()));
}

#[test]
fn a_wide_discard_does_not_starve_behind_a_stream_of_small_ones() {
    let zeroes = OpKind::WriteZeroes { may_unmap: false };
    let mut rig = Rig::new(CacheMode::Writeback);
    rig.device.set_fault(Fault::new(FaultOn::WriteZeroes, Effect::Slow { steps: 30 }));
    rig.start(100, zeroes, 0, page(0));
    rig.start_on(1, 1, zeroes, 0, vec![0; 16 * PAGE as usize]);
    let mut small = vec![100];
    let mut next = 101;
    while rig.result(1).is_none() {
        // There is always one under way, at one of its pages.
        rig.start(next, zeroes, next % 16 * PAGE, page(0));
        small.push(next);
        next += 1;
        rig.turns(3);
        assert!(next < 100 + PATIENCE, "the wide one starves");
    }
    small.into_iter().for_each(|id| assert_eq!(rig.wait(id).0, Ok(())));
}

#[test]
fn who_waits_for_a_page_under_one_discard_after_the_other_gets_it() {
    let zeroes = OpKind::WriteZeroes { may_unmap: false };
    for (kind, bytes) in [(READ, page(9)), (WRITE, vec![2; 100]), (STABLE, page(2))] {
        let mut rig = Rig::new(CacheMode::Writeback);
        rig.device.set_fault(Fault::new(FaultOn::WriteZeroes, Effect::Slow { steps: 4 }));
        let mut next = 100;
        for _ in 0..3 {
            rig.start(next, zeroes, 0, page(0));
            next += 1;
        }
        rig.start_on(1, 1, kind, 0, bytes);
        while rig.result(1).is_none() {
            rig.turn();
            if rig.finished.iter().filter(|(id, ..)| *id >= 100).count() as u64 + 102 > next {
                rig.start(next, zeroes, 0, page(0));
                next += 1;
            }
            assert!(next < 100 + PATIENCE, "{kind:?} starves");
        }
        assert_eq!(rig.wait(1).0, Ok(()));
        (100..next).for_each(|id| assert_eq!(rig.wait(id).0, Ok(())));
    }
}

#[test]
fn a_range_that_waits_to_be_entered_and_is_cancelled_holds_nobody_up() {
    let zeroes = OpKind::WriteZeroes { may_unmap: false };
    for turns in 0..12 {
        let mut rig = Rig::new(CacheMode::Writeback);
        rig.device.set_fault(Fault::new(FaultOn::WriteZeroes, Effect::Slow { steps: 4 }));
        rig.start(1, zeroes, 0, page(0));
        rig.start_on(1, 2, zeroes, 0, vec![0; 4 * PAGE as usize]);
        rig.start(3, zeroes, 3 * PAGE, page(0));
        rig.start_on(1, 4, READ, 3 * PAGE, page(9));
        // Before it is entered, as it is, and after.
        (0..turns).for_each(|_| _ = rig.lanes[0].turn());
        rig.collect();
        _ = rig.cancel(1, 2);
        for id in 1..5 {
            let result = rig.wait(id).0;
            assert!(result.is_ok() || id == 2, "{id}: {result:?}");
        }
        rig.cache.assert_sound();
    }
}
