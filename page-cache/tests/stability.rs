//! Device flushes that fail, and take with them what the device's cache held: no flush after that may
//! succeed before all that it covers is stable.
#![expect(clippy::single_range_in_vec_init, reason = "lists of ranges are what is compared")]

mod common;

use common::rig::{MEDIA, PAGE, READ, Rig, STABLE, WRITE, page};
use uaio_driver::IoResult;
use uaio_driver::sim::{Effect, Fault, FaultOn};
use uaio_page_cache::{CacheMode, CacheOptions, OpKind};

const ZEROES: OpKind = OpKind::WriteZeroes { may_unmap: false };

fn lose(rig: &Rig, times: u32) {
    let effect = Effect::FailAndLose(MEDIA);
    rig.device.set_fault(Fault::new(FaultOn::Flushes, effect).times(times));
}

/// A cache of one shard on a device of this seed.
fn rig(mode: CacheMode, seed: u64) -> Rig {
    let options = CacheOptions { mode, shards: 1, ..CacheOptions::frames(64) };
    Rig::seeded(1 << 20, options, seed)
}

#[test]
fn what_a_failed_flush_may_have_lost_is_written_again_before_the_next_succeeds() {
    for seed in 0..20 {
        let mut rig = rig(CacheMode::Writeback, seed);
        for number in 0..10 {
            assert_eq!(rig.run(WRITE, number * PAGE, page(7)).0, Ok(()));
        }
        lose(&rig, 2);
        assert_eq!(rig.flush(), Err(MEDIA));
        // Nothing that was not written since, and a part of a page written in between.
        assert_eq!(rig.run(WRITE, 3 * PAGE + 512, vec![9; 512]).0, Ok(()));
        assert_eq!(rig.flush(), Err(MEDIA));
        assert_eq!(rig.flush(), Ok(()), "it is all in the cache");
        let image = rig.device.crash();
        for number in 0..10 {
            let at = (number * PAGE) as usize;
            let mut stable = page(7);
            if number == 3 {
                stable[512..1024].fill(9);
            }
            assert_eq!(image[at..at + 4096], stable, "seed {seed}, page {number}");
        }
    }
}

#[test]
fn what_is_dirty_is_read_as_it_was_written_whatever_the_device_lost() {
    let mut rig = rig(CacheMode::Writeback, 1);
    assert_eq!(rig.run(WRITE, 0, page(7)).0, Ok(()));
    lose(&rig, 1);
    assert_eq!(rig.flush(), Err(MEDIA));
    let of_all = |error: &uaio_page_cache::WritebackError| error.bytes == (0..1 << 20);
    assert!(rig.cache.writeback_errors().iter().any(of_all), "the administrator is told");
    assert_eq!(rig.run(READ, 0, page(0)).1, page(7));
    assert_eq!(rig.cache.lost_ranges(), []);
}

/// Pages 0 to 9 were written and evicted before a flush failed.
fn after_a_loss(mode: CacheMode) -> Rig {
    let mut rig = rig(mode, 1);
    for number in 0..10 {
        assert_eq!(rig.run(WRITE, number * PAGE, page(7)).0, Ok(()));
    }
    rig.write_all(true);
    rig.turns(30);
    rig.write_all(false);
    assert_eq!(rig.cache.drop_clean(0..10 * PAGE).kept, 0);
    lose(&rig, 1);
    assert_eq!(rig.flush(), Err(MEDIA));
    rig
}

#[test]
fn what_was_evicted_and_is_lost_fails_every_flush_that_covers_it_until_it_is_settled() {
    for mode in [CacheMode::Writeback, CacheMode::Writethrough, CacheMode::None] {
        let mut rig = after_a_loss(mode);
        assert_eq!(rig.cache.lost_ranges(), [0..10 * PAGE], "{mode:?}");
        for _ in 0..3 {
            assert_eq!(rig.flush(), Err(MEDIA), "{mode:?}");
        }
        // Outside of it nothing was lost.
        let range = |rig: &mut Rig, at, len| {
            rig.run(OpKind::FlushRange, at * PAGE, vec![0; (len * PAGE) as usize]).0
        };
        assert_eq!(range(&mut rig, 9, 1), Err(MEDIA));
        assert_eq!(range(&mut rig, 10, 5), Ok(()), "{mode:?}");
        // Written again, discarded, written with zeroes, accepted.
        assert_eq!(rig.run(WRITE, 0, vec![8; 3 * PAGE as usize]).0, Ok(()));
        assert_eq!(range(&mut rig, 0, 3), Ok(()), "{mode:?}");
        assert_eq!(rig.cache.lost_ranges(), [3 * PAGE..10 * PAGE]);
        assert_eq!(rig.run(OpKind::Discard, 3 * PAGE, vec![0; 4096]).0, Ok(()));
        assert_eq!(rig.run(ZEROES, 4 * PAGE, vec![0; 4096]).0, Ok(()));
        assert_eq!(rig.cache.lost_ranges(), [5 * PAGE..10 * PAGE]);
        // Of block 1 of the page only a part is named.
        rig.cache.accept_loss(5 * PAGE + 100..5 * PAGE + 600);
        assert_eq!(rig.cache.lost_ranges(), [5 * PAGE..10 * PAGE]);
        rig.cache.accept_loss(6 * PAGE..7 * PAGE);
        assert_eq!(rig.cache.lost_ranges(), [5 * PAGE..6 * PAGE, 7 * PAGE..10 * PAGE]);
        assert_eq!(rig.flush(), Err(MEDIA));
        rig.cache.accept_loss(0..u64::MAX);
        assert_eq!(rig.flush(), Ok(()), "{mode:?}");
        assert_eq!(rig.device.crash()[..3 * 4096], vec![8; 3 * 4096]);
    }
}

#[test]
fn zeroes_that_a_failed_flush_may_have_lost_fail_the_flushes_after_it() {
    let mut rig = rig(CacheMode::Writeback, 1);
    assert_eq!(rig.run(ZEROES, 4 * PAGE, vec![0; 8192]).0, Ok(()));
    lose(&rig, 1);
    assert_eq!(rig.flush(), Err(MEDIA));
    assert_eq!(rig.cache.lost_ranges(), [4 * PAGE..6 * PAGE]);
    assert_eq!(rig.flush(), Err(MEDIA));
}

#[test]
fn what_a_flush_has_made_stable_is_not_lost_by_one_that_fails_later() {
    let mut rig = rig(CacheMode::Writeback, 1);
    assert_eq!(rig.run(WRITE, 0, page(7)).0, Ok(()));
    assert_eq!(rig.flush(), Ok(()));
    assert_eq!(rig.run(STABLE, PAGE, page(7)).0, Ok(()));
    assert_eq!(rig.cache.drop_clean(0..u64::MAX).dropped, 2);
    let written = rig.device.counts().writes;
    lose(&rig, 1);
    assert_eq!(rig.flush(), Err(MEDIA));
    assert_eq!((rig.cache.lost_ranges(), rig.cache.dirty_ranges()), (vec![], vec![]));
    assert_eq!(rig.flush(), Ok(()));
    assert_eq!(rig.device.counts().writes, written);
}

#[test]
fn a_write_that_completes_after_a_flush_failed_and_was_sent_before_is_written_again() {
    for kind in [WRITE, STABLE] {
        let mut rig = rig(CacheMode::Writethrough, 1);
        // Two, so that the stable ones share a flush.
        let stuck = rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Stuck).at(0..16));
        rig.start(1, STABLE, PAGE, page(6));
        rig.start(2, kind, 0, page(7));
        rig.turns(3);
        lose(&rig, 1);
        rig.start_on(1, 3, OpKind::FlushRange, 100 * PAGE, page(0));
        assert_eq!(rig.wait(3).0, Err(MEDIA), "it covers nothing, and fails");
        rig.device.clear_fault(stuck);
        // Whether the device had taken it before it dropped what it had, nobody knows.
        let told = if kind == STABLE { Err(MEDIA) } else { Ok(()) };
        assert_eq!(rig.wait(2).0, told);
        assert!(rig.cache.dirty_ranges().contains(&(0..PAGE)), "{kind:?}");
        assert_eq!(rig.wait(1).0, Ok(()), "FUA");
        _ = rig.flush();
        assert_eq!(rig.flush(), Ok(()));
        assert_eq!(rig.device.crash()[..8192], [page(7), page(6)].concat());
    }
}

#[test]
fn a_stable_write_fails_when_a_flush_fails_that_was_sent_before_it_joined() {
    let mut rig = rig(CacheMode::Writeback, 1);
    // One that does not end, so that the next is not alone and shares a flush.
    let stuck = rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Stuck).at(1600..1608));
    rig.start(9, STABLE, 200 * PAGE, page(9));
    let held = rig.device.set_fault(Fault::new(FaultOn::Flushes, Effect::Stuck).times(1));
    lose(&rig, 1);
    rig.start_on(1, 2, OpKind::FlushRange, 0, page(0));
    rig.turns(5);
    rig.start(1, STABLE, 0, page(1));
    rig.turns(5);
    assert_eq!(rig.device.counts().flushes, 1, "one at a time");
    // It is on the device when that flush fails; the next one succeeds, and proves nothing.
    rig.device.clear_fault(held);
    assert_eq!(rig.wait(2).0, Err(MEDIA));
    assert_eq!(rig.wait(1).0, Err(MEDIA));
    assert_eq!(rig.device.counts().flushes, 2);
    rig.device.clear_fault(stuck);
    assert_eq!(rig.wait(9).0, Ok(()));
    _ = rig.flush();
    assert_eq!(rig.flush(), Ok(()));
    assert_eq!(rig.device.crash()[..4096], page(1));
}

/// Two stable writes on a lane: the first is FUA, the second takes a device flush.
fn start_pair(rig: &mut Rig, lane: usize, id: u64) {
    rig.start_on(lane, id, STABLE, id * PAGE, page(1));
    rig.start_on(lane, id + 1, STABLE, (id + 1) * PAGE, page(2));
}

/// Turns one lane and the flusher until an operation of that lane is finished.
fn wait_on(rig: &mut Rig, lane: usize, id: u64) -> IoResult {
    for _ in 0..200 {
        rig.lanes[lane].turn();
        rig.turn_flusher();
        while let Some(finished) = rig.lanes[lane].pop_finished() {
            rig.finished.push((finished.token.to_u64(), finished.result, Vec::new()));
        }
        if let Some(result) = rig.result(id) {
            return result;
        }
    }
    panic!("{id} waits for a lane that nobody turns");
}

#[test]
fn a_lane_that_nobody_turns_holds_up_no_flush_and_no_stable_write_of_others() {
    // It goes silent after so many turns: with its writes at the device, with a flush to come, with one sent.
    for turns in 0..12 {
        let mut rig = rig(CacheMode::Writeback, 1);
        rig.device.set_fault(Fault::new(FaultOn::Flushes, Effect::Slow { steps: 5 }).times(1));
        start_pair(&mut rig, 1, 1);
        for _ in 0..turns {
            rig.lanes[1].turn();
            rig.turn_flusher();
        }
        start_pair(&mut rig, 0, 10);
        rig.start_on(0, 20, OpKind::FlushRange, 10 * PAGE, vec![0; 2 * PAGE as usize]);
        rig.start_on(0, 21, OpKind::FlushRange, 100 * PAGE, page(0));
        for id in [10, 11, 20, 21] {
            assert_eq!(wait_on(&mut rig, 0, id), Ok(()), "after {turns} turns");
        }
        assert_eq!(rig.device.crash_image(turns)[11 * 4096..12 * 4096], page(2));
        assert_eq!((rig.wait(1).0, rig.wait(2).0), (Ok(()), Ok(())));
    }
}

/// Writes a page and has it evicted, with the device's cache holding it.
fn write_and_evict(rig: &mut Rig, number: u64) {
    assert_eq!(rig.run(WRITE, number * PAGE, page(7)).0, Ok(()));
    rig.write_all(true);
    rig.turns(30);
    rig.write_all(false);
    assert_eq!(rig.cache.drop_clean(0..u64::MAX).kept, 0);
}

#[test]
fn what_lies_beside_blocks_that_are_stable_is_lost_alone() {
    let mut rig = rig(CacheMode::Writeback, 1);
    for number in 0..10 {
        write_and_evict(&mut rig, number);
        if number < 9 {
            assert_eq!(rig.flush(), Ok(()));
        }
    }
    lose(&rig, 1);
    assert_eq!(rig.flush(), Err(MEDIA));
    assert_eq!(rig.cache.lost_ranges(), [9 * PAGE..10 * PAGE]);
}

#[test]
fn what_was_evicted_and_then_discarded_is_not_lost() {
    for shards in [1, 4] {
        let options = CacheOptions { shards, ..CacheOptions::frames(64) };
        let mut rig = Rig::seeded(1 << 20, options, 1);
        (0..10).for_each(|number| write_and_evict(&mut rig, number));
        assert_eq!(rig.run(OpKind::Discard, 2 * PAGE, vec![0; 8 * 4096]).0, Ok(()));
        lose(&rig, 1);
        assert_eq!(rig.flush(), Err(MEDIA));
        assert_eq!(rig.cache.lost_ranges().last().map(|range| range.end), Some(2 * PAGE));
    }
}
