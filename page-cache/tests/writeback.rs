//! Writeback on the simulated device and a simulated clock: when it begins, what it writes, how long
//! a writer may wait, and what errors cost whom.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::rig::{MEDIA, PAGE, Rig, WRITE, page};
use uaio_driver::block::PollsAnyway;
use uaio_driver::sim::{Effect, Event, Fault, FaultOn, SimDevice, SimOptions};
use uaio_driver::{Capabilities, DmaPool, IoError, IoErrorKind, PoolOptions};
use uaio_page_cache::{
    Amount, Cache, CacheMode, CacheOptions, DirtyLimits, Flusher, OpKind, writeback,
};

fn one_shard(frames: usize) -> Rig {
    Rig::with(CacheOptions { shards: 1, ..CacheOptions::frames(frames) })
}

/// The pages of the writes that reached the device, in order.
fn pages_written(rig: &Rig) -> Vec<u64> {
    let log = rig.device.log().into_iter();
    let writes = log.filter(|entry| entry.op.writes() && entry.event == Event::Arrived);
    writes.flat_map(|entry| entry.lba.0 / 8..(entry.lba.0 + u64::from(entry.blocks)) / 8).collect()
}

fn dirty_pages(rig: &Rig) -> u64 {
    rig.cache.stats().dirty_bytes / PAGE
}

#[test]
fn a_device_whose_queues_hold_one_request_is_refused_by_the_flusher_and_not_hung_on() {
    let pool = DmaPool::new(PoolOptions::frames(64)).unwrap();
    let sized = SimOptions::sized(1 << 20, 512);
    let capabilities = Capabilities { depth_max: 1, ..sized.capabilities };
    let device = SimDevice::new(SimOptions { capabilities, ..sized }, 1, pool).unwrap();
    let cache = Cache::new(Arc::new(device), CacheOptions::frames(64)).unwrap();
    let refused = Flusher::new(cache, 16, Arc::new(PollsAnyway)).err().unwrap().to_string();
    assert!(refused.contains("hold one request"), "{refused}");
}

#[test]
fn limits_in_bytes_and_percent_change_while_the_cache_is_used() {
    let mut rig = one_shard(100);
    let stuck = rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Stuck));
    let write = |rig: &mut Rig, pages: std::ops::Range<u64>| {
        pages.for_each(|at| rig.start(at, WRITE, at * PAGE, page(1)));
        rig.turns(3);
        rig.cache.stats().room_waits
    };
    let by_bytes = DirtyLimits {
        background: Amount::Bytes(4 * PAGE),
        hard: Amount::Bytes(10 * PAGE),
        ..DirtyLimits::percent(50)
    };
    rig.cache.set_dirty_limits(by_bytes).unwrap();
    assert_eq!(rig.cache.dirty_limits(), by_bytes);
    write(&mut rig, 0..4);
    assert_eq!(rig.device.counts().writes, 0, "not above the background limit");
    write(&mut rig, 4..5);
    assert_eq!(pages_written(&rig), [0], "the oldest, and no more than is above it");
    assert_eq!(write(&mut rig, 5..14), 4, "four wait above the hard limit");
    // Room for two more: let go in order, without a page being written.
    rig.cache.set_dirty_max(12).unwrap();
    rig.turns(2);
    let done: Vec<u64> = rig.finished.iter().map(|(id, ..)| *id).collect();
    assert_eq!(done, (0..12).collect::<Vec<_>>());
    rig.device.clear_fault(stuck);
    (12..14).for_each(|id| assert_eq!(rig.wait(id).0, Ok(())));
}

#[test]
fn limits_that_are_not_possible_are_refused_and_change_nothing() {
    let rig = one_shard(100);
    let before = rig.cache.dirty_limits();
    let usual = DirtyLimits::percent(50);
    for (limits, why) in [
        (DirtyLimits { hard: Amount::Percent(0), ..usual }, "a dirty limit of 0 %"),
        (DirtyLimits { hard: Amount::Percent(91), ..usual }, "a dirty limit of 91 %"),
        (DirtyLimits { hard: Amount::Bytes(0), ..usual }, "a dirty limit of 0 bytes"),
        (DirtyLimits { hard: Amount::Bytes(91 * PAGE), ..usual }, "take 4096 to 368640"),
        (DirtyLimits { background: Amount::Percent(51), ..usual }, "above the hard limit"),
        (DirtyLimits { age_max: Duration::ZERO, ..usual }, "take 100 at least"),
    ] {
        let error = rig.cache.set_dirty_limits(limits).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert_eq!(rig.cache.dirty_limits(), before);
    }
}

#[test]
fn the_age_at_which_pages_are_written_can_be_set() {
    let mut rig = one_shard(100);
    let limits = DirtyLimits { age_max: Duration::from_millis(1500), ..DirtyLimits::percent(50) };
    rig.cache.set_dirty_limits(limits).unwrap();
    assert_eq!(rig.run(WRITE, 0, page(1)).0, Ok(()));
    rig.turns(2);
    rig.now += Duration::from_secs(1);
    rig.turns(3);
    assert_eq!(rig.device.counts().writes, 0, "too early");
    rig.now += Duration::from_secs(1);
    rig.turns(3);
    assert_eq!(rig.device.counts().writes, 1);
}

#[test]
fn above_the_background_limit_the_oldest_go_first_and_the_limit_is_where_it_ends() {
    let mut rig = one_shard(64);
    let order = [50, 3, 40, 7, 30, 9, 20, 11, 10, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70];
    for at in order {
        assert_eq!(rig.run(WRITE, at * PAGE, page(at as u8)).0, Ok(()));
    }
    rig.turns(20);
    // A quarter of 64 stays.
    assert_eq!(dirty_pages(&rig), 16);
    let mut written = pages_written(&rig);
    written.sort_unstable();
    assert_eq!(written, [3, 7, 40, 50], "the oldest four");
}

#[test]
fn a_steady_writer_stalls_no_longer_than_the_flush_target() {
    let mut rig = Rig::sized(8 << 20, CacheOptions { shards: 1, ..CacheOptions::frames(512) });
    // A command takes 40 turns of 5 ms: 200 ms, with much more written than the device takes.
    rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Slow { steps: 40 }));
    let turn = Duration::from_millis(5);
    let mut longest = Duration::ZERO;
    let mut random = fastrand::Rng::with_seed(5);
    let mut waited = 0;
    for id in 0..3000 {
        rig.start(id, WRITE, random.u64(..2048) * PAGE, page(id as u8));
        let begun = rig.now;
        while rig.result(id).is_none() {
            rig.now += turn;
            rig.turn();
            assert!(rig.now - begun < Duration::from_secs(60), "{:?}", rig.cache.stats());
        }
        waited += u32::from(rig.now > begun);
        longest = longest.max(rig.now - begun);
        rig.finished.clear();
    }
    assert!(waited > 0, "the writer never reached the limit: {:?}", rig.cache.stats());
    assert!(longest <= writeback::FLUSH_TARGET, "{longest:?}");
}

#[test]
fn a_bad_block_costs_no_writer_of_other_blocks_however_long_it_stays_bad() {
    let mut rig = one_shard(64);
    rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Fail(MEDIA)).at(0..1));
    assert_eq!(rig.run(WRITE, 0, page(1)).0, Ok(()));
    assert_eq!(rig.flush(), Err(MEDIA));
    let mut waits = 0;
    for id in 0..600 {
        rig.start(id, WRITE, (1 + id % 200) * PAGE, page(2));
        if id % 4 == 0 {
            rig.now += Duration::from_millis(200);
        }
        waits = rig.cache.stats().room_waits;
        assert!(rig.finished.iter().all(|(_, result, _)| result.is_ok()), "after {:?}", rig.now);
        if id % 8 == 0 {
            rig.turn();
        }
    }
    assert!(rig.now > 2 * writeback::GIVE_UP && waits > 0, "{:?} {waits}", rig.now);
    for id in 0..600 {
        assert_eq!(rig.wait(id).0, Ok(()));
    }
    assert_eq!(rig.cache.dirty_ranges().first(), Some(&(0..512)), "and only the bad block is left");
}

#[test]
fn failed_dirty_pages_are_capped_and_writers_beyond_get_the_error() {
    let mut rig = one_shard(64);
    rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Fail(MEDIA)));
    for id in 0..40 {
        rig.start(id, WRITE, id * PAGE, page(1));
    }
    rig.turns(5);
    assert_eq!(rig.finished.len(), 32, "half of the frames may be dirty");
    for _ in 0..60 {
        rig.now += Duration::from_millis(500);
        rig.turns(2);
    }
    for id in 32..40 {
        assert_eq!(rig.result(id), Some(Err(MEDIA)), "writer {id}");
    }
    assert_eq!(dirty_pages(&rig), 32, "and nothing that was acknowledged is lost");
    rig.device.clear_faults();
    rig.now += Duration::from_secs(60);
    rig.turns(20);
    assert_eq!(rig.run(WRITE, 99 * PAGE, page(9)).0, Ok(()), "room again once data goes out");
    rig.turns(2);
    assert_eq!(rig.flush(), Err(MEDIA), "healed: told once");
    assert_eq!(rig.flush(), Ok(()));
}

#[test]
fn a_device_that_is_gone_ends_every_wait_once_and_leaves_its_dirty_ranges_listed() {
    let mut rig = one_shard(64);
    for id in 0..20 {
        assert_eq!(rig.run(WRITE, (2 * id) * PAGE, page(1)).0, Ok(()));
    }
    rig.device.unplug();
    rig.start(100, common::rig::READ, 200 * PAGE, page(0));
    rig.start(101, OpKind::Flush, 0, Vec::new());
    rig.start(102, common::rig::STABLE, 210 * PAGE, page(1));
    for id in 0..40 {
        rig.start(200 + id, WRITE, (41 + 2 * id) * PAGE, page(1));
    }
    for _ in 0..200 {
        rig.now += Duration::from_millis(100);
        rig.turn();
    }
    let told = |rig: &Rig, id| rig.finished.iter().filter(|(done, ..)| *done == id).count();
    for id in [100, 101, 102].into_iter().chain(200..240) {
        assert_eq!(told(&rig, id), 1, "operation {id}");
    }
    for id in [100, 101, 102] {
        let kind = rig.result(id).unwrap().unwrap_err().kind;
        assert_eq!(kind, IoErrorKind::Gone, "operation {id}");
    }
    let listed = rig.cache.dirty_ranges();
    for id in 0..20 {
        let at = 2 * id * PAGE;
        assert!(listed.iter().any(|range| range.contains(&at)), "page {} is listed", 2 * id);
    }
}

#[test]
fn a_page_under_writeback_is_waited_for_only_while_no_frame_is_free() {
    let mut rig = one_shard(16);
    assert_eq!(rig.run(WRITE, 0, page(1)).0, Ok(()));
    let writes = rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Stuck));
    rig.start(1, OpKind::Flush, 0, Vec::new());
    rig.turns(3);
    // All other frames are in reads that do not end.
    let reads = rig.device.set_fault(Fault::new(FaultOn::Reads, Effect::Stuck));
    for id in 0..15 {
        rig.start(100 + id, common::rig::READ, (10 + id * id) * PAGE, page(0));
    }
    rig.turns(2);
    rig.start_on(1, 2, WRITE, 0, page(2));
    rig.turns(5);
    assert_eq!(rig.result(2), None, "there was no frame");
    rig.device.clear_fault(reads);
    assert_eq!(rig.wait(2).0, Ok(()));
    assert_eq!(rig.result(1), None, "and the writeback goes on all the while");
    rig.device.clear_fault(writes);
    assert_eq!(rig.wait(1).0, Ok(()));
    assert_eq!(rig.flush(), Ok(()));
    assert_eq!(rig.device.crash()[..4096], page(2));
    (0..15).for_each(|id| assert_eq!(rig.wait(100 + id).0, Ok(())));
}

#[test]
fn an_error_whose_data_was_discarded_is_told_once_to_every_handle_open_then() {
    let mut rig = one_shard(64);
    let other = rig.cache.open();
    rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Fail(MEDIA)).at(8..16));
    assert_eq!(rig.run(WRITE, PAGE, page(1)).0, Ok(()));
    assert_eq!(rig.flush(), Err(MEDIA));
    assert_eq!(rig.flush(), Err(MEDIA), "it is dirty still");
    let zeroes = OpKind::WriteZeroes { may_unmap: false };
    assert_eq!(rig.run(zeroes, PAGE, page(0)).0, Ok(()));
    assert_eq!(rig.cache.dirty_ranges(), []);
    let told = rig.cache.writeback_errors();
    assert!(told.iter().any(|error| error.bytes.contains(&PAGE) && error.count > 0), "{told:?}");
    let late = rig.cache.open();
    assert_eq!(rig.flush(), Ok(()), "this handle was told when it failed");
    rig.handle = other;
    assert_eq!(rig.flush(), Err(MEDIA), "this one is told now");
    assert_eq!(rig.flush(), Ok(()), "once");
    rig.handle = late;
    assert_eq!(rig.flush(), Ok(()), "and whoever came later, never");
}

/// A flush of a range of bytes.
fn flush_range(rig: &mut Rig, id: u64, offset: u64, len: u64) {
    rig.start(id, OpKind::FlushRange, offset, vec![0; len as usize]);
}

#[test]
fn a_flush_of_a_range_makes_the_range_stable_and_writes_nothing_else() {
    let mut rig = Rig::new(CacheMode::Writeback);
    for number in 0..8 {
        assert_eq!(rig.run(WRITE, number * PAGE, page(number as u8 + 1)).0, Ok(()));
    }
    // Bytes in the middle: the pages 2 to 4 are touched.
    flush_range(&mut rig, 1, 2 * PAGE + 100, 2 * PAGE);
    assert_eq!(rig.wait(1).0, Ok(()));
    let counts = rig.device.counts();
    assert_eq!((counts.writes, counts.blocks_written, counts.flushes), (1, 3 * 8, 1));
    let image = rig.device.crash();
    for number in 0..8 {
        let stable = if (2..5).contains(&number) { number as u8 + 1 } else { 0 };
        assert_eq!(image[number * 4096], stable, "page {number}");
    }
}

#[test]
fn a_flush_of_a_range_longer_than_what_is_dirty_covers_all_of_it() {
    // More pages than are looked up one by one.
    let options = CacheOptions { mode: CacheMode::Writeback, ..CacheOptions::frames(64) };
    let mut rig = Rig::sized(16 << 20, options);
    for number in [0, 2000, 4000] {
        assert_eq!(rig.run(WRITE, number * PAGE, page(7)).0, Ok(()));
    }
    flush_range(&mut rig, 1, PAGE, 3000 * PAGE);
    assert_eq!(rig.wait(1).0, Ok(()));
    assert_eq!(rig.device.counts().writes, 1);
    assert_eq!(rig.cache.dirty_ranges(), [0..PAGE, 4000 * PAGE..4001 * PAGE]);
}

#[test]
fn a_flush_of_a_range_waits_for_nothing_outside_it_and_is_failed_by_nothing_outside_it() {
    let mut rig = Rig::new(CacheMode::Writeback);
    for number in [1, 5] {
        assert_eq!(rig.run(WRITE, number * PAGE, page(7)).0, Ok(()));
    }
    let stuck = rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Stuck).at(8..16));
    rig.start(1, OpKind::Flush, 0, Vec::new());
    rig.turns(3);
    flush_range(&mut rig, 2, 5 * PAGE, PAGE);
    assert_eq!(rig.wait(2).0, Ok(()), "page 1 is stuck, and not of the range");
    assert_eq!(rig.result(1), None);
    rig.device.clear_fault(stuck);
    assert_eq!(rig.wait(1).0, Ok(()));

    let bad = rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Fail(MEDIA)).at(8..16));
    for number in [1, 5] {
        assert_eq!(rig.run(WRITE, number * PAGE, page(8)).0, Ok(()));
    }
    assert_eq!(rig.flush(), Err(MEDIA));
    flush_range(&mut rig, 2, 5 * PAGE, PAGE);
    let sent = rig.device.counts().writes;
    assert_eq!(rig.wait(2).0, Ok(()), "page 1 stays dirty, and is not of the range");
    assert!(rig.device.counts().writes <= sent + 1, "page 1 was tried again for it");
    flush_range(&mut rig, 3, PAGE, 3 * PAGE);
    assert_eq!(rig.wait(3).0, Err(MEDIA));
    rig.device.clear_fault(bad);
    flush_range(&mut rig, 4, PAGE, PAGE);
    rig.turns(20);
    // What failed is tried again at once. The attempt before is told once more at most, as it has healed.
    flush_range(&mut rig, 5, PAGE, PAGE);
    assert_eq!(rig.wait(5).0, Ok(()));
    assert_eq!(rig.device.crash()[4096..8192], [8; 4096]);
}

#[test]
fn a_flush_of_a_range_ends_under_a_writer_that_never_stops() {
    let mut rig = Rig::new(CacheMode::Writeback);
    assert_eq!(rig.run(WRITE, 0, page(1)).0, Ok(()));
    flush_range(&mut rig, 1, 0, PAGE);
    for writes in 0.. {
        if let Some(result) = rig.result(1) {
            assert_eq!(result, Ok(()));
            break;
        }
        rig.start_on(1, 2, WRITE, 0, page(2));
        rig.turn();
        rig.finished.retain(|(id, ..)| *id != 2);
        assert!(writes < 100, "it waits for what was dirtied after it began");
    }
}

#[test]
fn a_flush_of_a_range_past_the_end_is_refused_and_one_of_nothing_is_done() {
    let mut rig = Rig::new(CacheMode::Writeback);
    flush_range(&mut rig, 1, (1 << 20) - PAGE, PAGE + 1);
    assert!(rig.wait(1).0.is_err());
    flush_range(&mut rig, 2, PAGE, 0);
    assert_eq!(rig.wait(2).0, Ok(()));
}

#[test]
fn after_an_error_that_passes_the_data_goes_out_in_as_few_commands_as_before() {
    let mut rig = one_shard(64);
    for number in 0..32 {
        assert_eq!(rig.run(WRITE, number * PAGE, page(1)).0, Ok(()));
    }
    rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Fail(MEDIA)).times(1));
    assert_eq!(rig.flush(), Err(MEDIA));
    let before = rig.device.counts().writes;
    _ = rig.flush();
    rig.turns(20);
    assert_eq!(rig.cache.dirty_ranges(), []);
    assert_eq!(rig.device.counts().writes - before, 1, "one command of 128 KiB");
}

#[test]
fn a_bad_block_is_closed_in_on_by_ever_smaller_commands() {
    let mut rig = one_shard(64);
    rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Fail(MEDIA)).at(100..101));
    for number in 0..32 {
        assert_eq!(rig.run(WRITE, number * PAGE, page(1)).0, Ok(()));
    }
    for _ in 0..8 {
        assert_eq!(rig.flush(), Err(MEDIA));
        rig.turns(20);
    }
    assert_eq!(rig.cache.dirty_ranges().first(), Some(&(100 * 512..101 * 512)));
    assert_eq!(rig.cache.dirty_ranges().len(), 1);
    let writes = rig.device.counts().writes;
    assert!(writes < 40, "{writes} commands for 32 pages of 8 blocks");
}

#[test]
fn a_cache_made_smaller_than_its_limits_in_bytes_keeps_frames_for_reads() {
    let mut rig = Rig::sized(8 << 20, CacheOptions { shards: 1, ..CacheOptions::frames(1000) });
    let limits = DirtyLimits {
        background: Amount::Bytes(400 * PAGE),
        hard: Amount::Bytes(800 * PAGE),
        age_max: Duration::from_secs(3600),
    };
    rig.cache.set_dirty_limits(limits).unwrap();
    rig.cache.resize(100).unwrap();
    rig.turns(10);
    for id in 0..300 {
        rig.start(id % 60, WRITE, id * PAGE, page(1));
        assert_eq!(rig.wait(id % 60).0, Ok(()), "write {id}");
    }
    assert!(rig.cache.stats().dirty_limit_bytes <= 90 * PAGE, "{:?}", rig.cache.stats());
    assert_eq!(rig.run(common::rig::READ, 1000 * PAGE, page(0)).0, Ok(()));
    // And while nothing can be written, who waits is told.
    rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Fail(MEDIA)));
    for id in 0..60 {
        rig.start(id, WRITE, (400 + id) * PAGE, page(1));
        rig.start_on(1, 100 + id, WRITE, (500 + id) * PAGE, page(1));
    }
    rig.start_on(1, 200, common::rig::READ, 1100 * PAGE, page(0));
    for _ in 0..200 {
        rig.now += Duration::from_millis(100);
        rig.turn();
    }
    assert_eq!(rig.finished.len(), 121, "everybody is answered");
    assert!(rig.finished.iter().any(|(_, result, _)| *result == Err(MEDIA)));
}

#[test]
fn how_long_one_block_has_been_bad_does_not_shorten_the_wait_of_others() {
    let mut rig = one_shard(64);
    rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Fail(MEDIA)).at(0..1));
    assert_eq!(rig.run(WRITE, 0, page(1)).0, Ok(()));
    assert_eq!(rig.flush(), Err(MEDIA));
    rig.now += 10 * writeback::GIVE_UP;
    rig.turns(5);
    // Now nothing can be written for a moment.
    let outage = rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Fail(MEDIA)));
    for id in 0..40 {
        rig.start(id, WRITE, (10 + id) * PAGE, page(1));
    }
    rig.start_on(1, 100, OpKind::Flush, 0, Vec::new());
    for _ in 0..20 {
        rig.now += Duration::from_millis(100);
        rig.turn();
    }
    assert!(rig.cache.stats().room_waits > 0);
    rig.device.clear_fault(outage);
    for id in 0..40 {
        while rig.result(id).is_none() {
            rig.now += Duration::from_millis(100);
            rig.turn();
        }
        assert_eq!(rig.result(id), Some(Ok(())), "writer {id}");
    }
}

#[test]
fn an_error_that_the_device_says_will_not_heal_ends_the_waits_at_once() {
    let mut rig = one_shard(64);
    let error = IoError { do_not_retry: true, ..MEDIA };
    rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Fail(error)));
    for id in 0..40 {
        rig.start(id, WRITE, id * PAGE, page(1));
    }
    for _ in 0..20 {
        rig.now += Duration::from_millis(100);
        rig.turn();
    }
    for id in 32..40 {
        assert_eq!(rig.result(id), Some(Err(error)), "writer {id}");
    }
}

#[test]
fn the_pauses_between_attempts_grow_whatever_else_goes_well() {
    let mut rig = one_shard(64);
    rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Fail(MEDIA)).at(0..1));
    assert_eq!(rig.run(WRITE, 0, vec![1; 512]).0, Ok(()));
    for id in 0..600 {
        // Something else is written all the time, and well.
        assert_eq!(rig.run(WRITE, (10 + id % 30) * PAGE, page(1)).0, Ok(()));
        rig.now += Duration::from_millis(200);
        rig.turns(2);
    }
    let failed = rig.device.counts().failed;
    assert!((5..=12).contains(&failed), "{failed} attempts in two minutes");
}

#[test]
fn what_is_tried_again_takes_nothing_younger_with_it() {
    let mut rig = one_shard(64);
    let limits = DirtyLimits { age_max: Duration::from_secs(600), ..DirtyLimits::percent(50) };
    rig.cache.set_dirty_limits(limits).unwrap();
    rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Fail(MEDIA)).at(0..1));
    assert_eq!(rig.run(WRITE, 0, vec![1; 512]).0, Ok(()));
    assert_eq!(rig.flush(), Err(MEDIA));
    assert_eq!(rig.run(WRITE, 20 * PAGE, page(1)).0, Ok(()));
    for _ in 0..100 {
        rig.now += Duration::from_millis(500);
        rig.turns(2);
    }
    assert!(rig.device.counts().failed > 4, "it was tried again");
    assert_eq!(pages_written(&rig).iter().filter(|page| **page == 20).count(), 0, "too early");
}

#[test]
fn what_fails_at_once_does_not_raise_the_dirty_limit() {
    let options = CacheOptions { shards: 1, ..CacheOptions::frames(8192) };
    let mut rig = Rig::sized(64 << 20, options);
    let slow = rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Slow { steps: 60 }));
    rig.write_all(true);
    for id in 0..4000 {
        assert_eq!(rig.run(WRITE, id * PAGE, page(1)).0, Ok(()));
        rig.now += Duration::from_millis(1);
        rig.turn();
    }
    rig.write_all(false);
    rig.device.clear_fault(slow);
    let limit = rig.cache.stats().dirty_limit_bytes;
    assert!(limit < 4096 * PAGE, "the rate was seen: {limit}");
    rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Fail(MEDIA)));
    for id in 0..300 {
        assert_eq!(rig.run(WRITE, id * PAGE, page(1)).0, Ok(()));
    }
    for _ in 0..2000 {
        rig.now += Duration::from_millis(1);
        rig.start_on(1, 2, OpKind::Flush, 0, Vec::new());
        rig.turns(2);
        rig.finished.clear();
    }
    assert!(rig.cache.stats().dirty_limit_bytes <= limit, "{:?}", rig.cache.stats());
}

#[test]
fn a_writer_far_behind_on_the_device_waits_no_longer_than_those_at_its_front() {
    let options = CacheOptions { shards: 16, dirty_max_percent: 50, ..CacheOptions::frames(512) };
    let mut rig = Rig::sized(32 << 20, options);
    // A command takes long, and no two pages are neighbours: the slots are what is scarce.
    rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Slow { steps: 12 }));
    let mut begun = [None; 56];
    let mut longest = 0;
    let mut random = fastrand::Rng::with_seed(5);
    for turn in 0..6000_u64 {
        for (id, begun) in (0..).zip(&mut begun) {
            if rig.result(id).is_some() {
                rig.finished.retain(|(done, ..)| *done != id);
                longest = longest.max(turn - begun.take().unwrap());
            }
            if begun.is_none() {
                // Most of them at the front of the device, some at its end.
                let at = if id < 48 { random.u64(..2048) } else { random.u64(3584..4096) };
                rig.start_on(0, id, WRITE, at * 2 * PAGE, page(1));
                *begun = Some(turn);
            }
        }
        rig.turn();
    }
    let waits = begun.iter().flatten().map(|begun| 6000 - begun);
    let longest = waits.max().unwrap_or(0).max(longest);
    assert!(longest < 600, "a writer waited {longest} turns");
}

#[test]
fn an_error_outside_a_range_neither_fails_its_flush_nor_is_told_by_it() {
    let mut rig = Rig::new(CacheMode::Writeback);
    rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Fail(MEDIA)).at(8..16));
    for number in [1, 5] {
        assert_eq!(rig.run(WRITE, number * PAGE, page(7)).0, Ok(()));
    }
    for _ in 0..20 {
        // Tried again in the background, and failed again.
        rig.now += Duration::from_secs(1);
        rig.turns(4);
        flush_range(&mut rig, 2, 5 * PAGE, PAGE);
        assert_eq!(rig.wait(2).0, Ok(()), "at {:?}", rig.now);
    }
    assert!(rig.device.counts().failed > 2 && rig.handle.last_told().is_none());
    rig.device.clear_faults();
    rig.now += Duration::from_secs(60);
    rig.turns(20);
    assert_eq!(rig.cache.dirty_ranges(), []);
    assert_eq!(rig.flush(), Err(MEDIA), "it is told to the first who covers it");
    let told = rig.handle.last_told().unwrap();
    assert_eq!((told.error, told.bytes.start / PAGE), (MEDIA, 1));
    assert!(told.count > 2 && told.bytes.end <= 2 * PAGE, "{told:?}");
    assert_eq!(rig.flush(), Ok(()));
}
