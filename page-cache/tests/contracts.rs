//! Each contract of the cache, on the simulated device, step by step.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::rig::{MEDIA, PAGE, READ, Rig, STABLE, WRITE, page};
use common::user::{User, flusher};
use uaio_driver::block::PollsAnyway;
use uaio_driver::sim::{Effect, Fault, FaultOn, SimDevice, SimOptions};
use uaio_driver::{BlockDevice, DmaPool, IoError, IoErrorKind, PoolOptions, Token};
use uaio_page_cache::{Buffer, Cache, CacheMode, CacheOptions, Flusher, OpKind, Operation};

const ZEROES: OpKind = OpKind::WriteZeroes { may_unmap: false };

#[test]
fn any_number_of_readers_of_an_absent_page_cost_one_device_read() {
    let mut rig = Rig::new(CacheMode::Writeback);
    for id in 0..64 {
        rig.start_on((id % 2) as usize, id, READ, 5 * PAGE + id * 16, vec![1; 16]);
    }
    for id in 0..64 {
        assert_eq!(rig.wait(id), (Ok(()), vec![0; 16]));
    }
    assert_eq!(rig.device.counts().reads, 1);
    assert_eq!(rig.cache.stats().misses, 1);
}

#[test]
fn a_large_read_of_absent_pages_is_few_commands() {
    let mut rig = Rig::new(CacheMode::Writeback);
    let read = rig.run(READ, 0, vec![1; 32 * PAGE as usize]);
    assert_eq!(read.0, Ok(()));
    // 128 KiB, the transfer limit of the device.
    assert_eq!(rig.device.counts().reads, 1);
}

#[test]
fn the_last_slot_of_a_full_queue_carries_as_many_pages_as_any_other() {
    let mut rig = Rig::new(CacheMode::Writeback);
    rig.device.set_fault(Fault::new(FaultOn::Reads, Effect::Slow { steps: 50 }));
    let slots = 16;
    // In no order that could be read ahead.
    let places = [80, 3, 41, 120, 9, 66, 30, 99, 17, 52, 111, 75, 24, 88, 60];
    for (id, place) in places.into_iter().enumerate() {
        rig.start(id as u64, READ, (100 + place) * PAGE, vec![1; 8]);
    }
    assert_eq!(places.len(), slots - 1);
    rig.start(15, READ, 0, vec![1; 32 * PAGE as usize]);
    assert_eq!(rig.wait(15).0, Ok(()));
    assert_eq!(rig.device.counts().reads, slots as u64);
}

#[test]
fn a_large_batch_is_with_the_device_before_all_of_it_was_taken_in() {
    let mut rig = Rig::sized(8 << 20, CacheOptions::frames(1024));
    let mut start = |id: u64| {
        let operation = Operation {
            token: Token::from_u64(id),
            kind: STABLE,
            offset: id * (256 << 10),
            len: 128 << 10,
            buffer: Buffer::Bytes(vec![id as u8; 128 << 10]),
            handle: Arc::clone(&rig.handle),
        };
        assert!(rig.lanes[0].start(operation).is_ok());
        rig.device.log().len()
    };
    // 384 KiB are gathered; 512 KiB go out at once, without a turn.
    assert_eq!([start(0), start(1), start(2), start(3), start(4)], [0, 0, 0, 4, 4]);
    rig.turns(20);
    for id in 0..5 {
        assert_eq!(rig.wait(id).0, Ok(()));
    }
}

#[test]
fn a_flusher_that_has_one_slot_for_data_joins_neighbours() {
    let pool = DmaPool::new(PoolOptions::frames(72)).unwrap();
    let device = SimDevice::new(SimOptions::sized(1 << 20, 512), 1, pool).unwrap();
    let cache = Cache::new(Arc::new(device.clone()), CacheOptions::frames(64)).unwrap();
    // The other is kept for the device flush.
    let (mut flusher, mut user) = (flusher(&cache, 2), User::new(&cache, 8));
    user.start(1, WRITE, 0, vec![1; 32 * PAGE as usize]);
    assert_eq!(user.wait(1, &mut flusher).0, Ok(()));
    user.start(2, OpKind::Flush, 0, Vec::new());
    assert_eq!(user.wait(2, &mut flusher).0, Ok(()));
    // 128 KiB, the transfer limit of the device.
    assert_eq!(device.counts().writes, 1);
}

#[test]
fn a_write_of_whole_blocks_never_reads() {
    let mut rig = Rig::new(CacheMode::Writeback);
    assert_eq!(rig.run(WRITE, 512, vec![7; 1024]).0, Ok(()));
    assert_eq!(rig.flush(), Ok(()));
    let counts = rig.device.counts();
    assert_eq!((counts.reads, counts.blocks_written), (0, 2), "only the dirty blocks are written");
    // The rest of the page is read when somebody wants it, and merged.
    let (result, bytes) = rig.run(READ, 0, page(9));
    assert_eq!(result, Ok(()));
    assert_eq!((bytes[511], bytes[512], bytes[1535], bytes[1536]), (0, 7, 7, 0));
    assert_eq!(rig.device.counts().reads, 1);
}

#[test]
fn bytes_in_part_of_a_block_read_only_that_block() {
    let mut rig = Rig::new(CacheMode::Writeback);
    assert_eq!(rig.run(WRITE, 700, vec![7; 10]).0, Ok(()));
    assert_eq!(rig.device.counts().blocks_read, 1);
    let (_, bytes) = rig.run(READ, 690, vec![1; 30]);
    assert_eq!(bytes, [vec![0; 10], vec![7; 10], vec![0; 10]].concat());
}

#[test]
fn a_flush_ends_under_a_writer_that_never_stops() {
    let mut rig = Rig::new(CacheMode::Writeback);
    assert_eq!(rig.run(WRITE, 0, page(1)).0, Ok(()));
    rig.start(1, OpKind::Flush, 0, Vec::new());
    let mut writes = 0;
    while rig.result(1).is_none() {
        // The very page that the flush covers, dirtied again at every step.
        rig.start_on(1, 2, WRITE, 0, page(2));
        rig.turn();
        writes += 1;
        rig.finished.retain(|(id, ..)| *id != 2);
        assert!(writes < 100, "the flush waits for what was dirtied after it began");
    }
    assert_eq!(rig.result(1), Some(Ok(())));
}

#[test]
fn a_flush_ends_under_a_writer_that_never_stops_with_one_block_of_a_page_with_gaps() {
    for hot in [vec![0], vec![0, 4], vec![6, 0, 1]] {
        let mut rig = Rig::new(CacheMode::Writeback);
        for block in [0, 2, 4] {
            assert_eq!(rig.run(WRITE, block * 512, vec![1; 512]).0, Ok(()));
        }
        rig.start(1, OpKind::Flush, 0, Vec::new());
        for writes in 0.. {
            if rig.result(1).is_some() {
                break;
            }
            for block in &hot {
                rig.start_on(1, 2, WRITE, block * 512, vec![2; 512]);
            }
            rig.turn();
            rig.finished.retain(|(id, ..)| *id != 2);
            assert!(writes < 100, "{hot:?}: what is written all the time takes the others' turns");
        }
        assert_eq!(rig.result(1), Some(Ok(())));
        assert_eq!(rig.device.crash()[1024], 1, "what the flush covers is stable");
    }
}

#[test]
fn a_flush_that_joins_after_a_device_flush_was_sent_gets_its_own() {
    let mut rig = Rig::new(CacheMode::Writeback);
    rig.device.set_fault(Fault::new(FaultOn::Flushes, Effect::Slow { steps: 50 }));
    rig.start(1, OpKind::Flush, 0, Vec::new());
    rig.start(2, OpKind::Flush, 0, Vec::new());
    rig.turns(3);
    assert_eq!(rig.device.counts().flushes, 1, "two that wait together share one");
    // Acknowledged after the device flush was sent: a later flush must not end with it.
    assert_eq!(rig.run(STABLE, 0, page(1)).0, Ok(()));
    rig.start(3, OpKind::Flush, 0, Vec::new());
    assert_eq!((rig.wait(1).0, rig.wait(2).0), (Ok(()), Ok(())));
    assert_eq!(rig.result(3), None, "it ended with a device flush sent before it began");
    assert_eq!(rig.wait(3).0, Ok(()));
    assert_eq!(rig.device.counts().flushes, 2);
}

#[test]
fn a_stable_write_is_one_fua_command_and_survives_a_crash() {
    let mut rig = Rig::new(CacheMode::Writeback);
    assert_eq!(rig.run(STABLE, PAGE, vec![3; 3 * PAGE as usize]).0, Ok(()));
    let counts = rig.device.counts();
    assert_eq!((counts.writes, counts.fua_writes, counts.flushes), (1, 1, 0));
    assert_eq!(rig.device.crash()[4096..16384], [3; 12288]);
}

#[test]
fn a_stable_write_to_a_page_under_writeback_is_issued_after_it() {
    let mut rig = Rig::new(CacheMode::Writeback);
    assert_eq!(rig.run(WRITE, 0, page(1)).0, Ok(()));
    rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Slow { steps: 20 }).times(1));
    rig.start(1, OpKind::Flush, 0, Vec::new());
    rig.turns(3);
    assert_eq!(rig.device.counts().writes, 1, "the writeback is in flight");
    rig.start(2, STABLE, 0, page(2));
    rig.turns(3);
    assert_eq!(rig.device.counts().fua_writes, 0, "it overtook the writeback");
    assert_eq!(rig.wait(2).0, Ok(()));
    assert_eq!(rig.device.crash()[..4096], [2; 4096]);
}

#[test]
fn a_page_written_while_under_writeback_does_not_wait_for_it() {
    let mut rig = Rig::new(CacheMode::Writeback);
    assert_eq!(rig.run(WRITE, 0, page(1)).0, Ok(()));
    let stuck = rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Stuck).times(1));
    rig.start(1, OpKind::Flush, 0, Vec::new());
    rig.turns(3);
    rig.start(2, WRITE, 0, page(2));
    assert_eq!(rig.result(2), Some(Ok(())), "a fresh frame was free");
    assert_eq!(rig.run(READ, 0, page(0)).1, page(2), "readable meanwhile");
    rig.device.clear_fault(stuck);
    assert_eq!(rig.wait(1).0, Ok(()));
    assert_eq!(rig.flush(), Ok(()));
    assert_eq!(rig.device.crash()[..4096], [2; 4096]);
}

#[test]
fn writethrough_acknowledges_when_the_device_has_it() {
    let mut rig = Rig::new(CacheMode::Writethrough);
    let stuck = rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Stuck));
    rig.start(1, WRITE, 0, page(1));
    rig.turns(20);
    assert_eq!(rig.result(1), None);
    rig.device.clear_fault(stuck);
    assert_eq!(rig.wait(1).0, Ok(()));
    assert_eq!(rig.device.counts().fua_writes, 0);
    assert_eq!(rig.run(READ, 0, page(0)).1, page(1));
    assert_eq!(rig.device.counts().reads, 0, "it stays in the cache");
}

#[test]
fn without_a_cache_nothing_stays() {
    let mut rig = Rig::new(CacheMode::None);
    assert_eq!(rig.run(WRITE, 0, page(1)).0, Ok(()));
    assert_eq!(rig.run(READ, 0, page(0)).1, page(1));
    assert_eq!(rig.run(READ, 0, page(0)).1, page(1));
    assert_eq!((rig.cache.stats().cached, rig.device.counts().reads), (0, 2));
}

#[test]
fn one_bad_block_fails_who_wants_it_and_nobody_else() {
    let mut rig = Rig::new(CacheMode::Writeback);
    rig.device.set_fault(Fault::new(FaultOn::Reads, Effect::Fail(MEDIA)).at(11..12));
    rig.start(1, READ, 0, vec![1; 4 * PAGE as usize]);
    rig.start(2, READ, 10 * 512, vec![1; 512]);
    rig.start(3, READ, 2 * PAGE, page(1));
    rig.start(4, READ, 11 * 512, vec![1; 512]);
    assert_eq!(rig.wait(1).0, Err(MEDIA));
    assert_eq!(rig.wait(2), (Ok(()), vec![0; 512]));
    assert_eq!(rig.wait(3), (Ok(()), page(0)));
    assert_eq!(rig.wait(4).0, Err(MEDIA));
    // Reads that fail are not cached.
    rig.device.clear_faults();
    assert_eq!(rig.run(READ, 11 * 512, vec![1; 512]), (Ok(()), vec![0; 512]));
}

#[test]
fn failed_data_stays_dirty_and_every_flush_fails_until_it_is_written() {
    let mut rig = Rig::new(CacheMode::Writeback);
    rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Fail(MEDIA)).at(3..4));
    assert_eq!(rig.run(WRITE, 0, page(1)).0, Ok(()));
    assert_eq!(rig.run(WRITE, 8 * PAGE, page(2)).0, Ok(()));
    for _ in 0..3 {
        assert_eq!(rig.flush(), Err(MEDIA));
        rig.turns(50);
    }
    // The bad block alone is left of what was dirty: its neighbours got through, one by one.
    let mut left = rig.cache.dirty_ranges();
    for _ in 0..20 {
        rig.flush().unwrap_err();
        rig.turns(20);
        left = rig.cache.dirty_ranges();
    }
    assert_eq!(left, vec![3 * 512..4 * 512]);
    assert_eq!(rig.run(READ, 0, page(0)).1, page(1), "the data is still there to be read");
    rig.device.clear_faults();
    assert_eq!(rig.flush(), Ok(()));
    assert_eq!(rig.device.crash()[..4096], [1; 4096]);
}

#[test]
fn an_error_that_has_healed_is_told_once_to_every_handle_open_then() {
    let mut rig = Rig::new(CacheMode::Writeback);
    let other = rig.cache.open();
    rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Fail(MEDIA)).times(1));
    assert_eq!(rig.run(WRITE, 0, page(1)).0, Ok(()));
    // Written by age, with nobody waiting; fails, is tried again, succeeds.
    for _ in 0..40 {
        rig.now += Duration::from_millis(500);
        rig.turns(3);
    }
    assert!(rig.cache.dirty_ranges().is_empty());
    let errors = rig.cache.writeback_errors();
    assert_eq!((errors[0].bytes.clone(), errors[0].count), (0..4096, 1));
    let late = rig.cache.open();
    for (handle, first) in [(rig.handle.clone(), Err(MEDIA)), (other, Err(MEDIA)), (late, Ok(()))] {
        rig.handle = handle;
        assert_eq!(rig.flush(), first);
        assert_eq!(rig.flush(), Ok(()));
    }
}

#[test]
fn writers_that_need_room_get_an_error_when_the_device_is_gone() {
    let mut rig = Rig::with(CacheOptions { dirty_max_percent: 10, ..CacheOptions::frames(64) });
    rig.device.unplug();
    let mut failed = None;
    for id in 0..64 {
        rig.start(id, WRITE, id * PAGE, page(1));
        rig.now += Duration::from_secs(1);
        rig.turns(5);
        if let Some(Err(error)) = rig.result(id) {
            failed = Some(error.kind);
            break;
        }
    }
    assert_eq!(failed, Some(IoErrorKind::Gone));
    // Nobody waits for ever, and what cannot be saved is listed.
    assert!(rig.flush().is_err());
    assert!(!rig.cache.dirty_ranges().is_empty());
    assert!(rig.finished.iter().all(|(_, result, _)| result.is_ok() || *result == Err(IoError::new(IoErrorKind::Gone))));
}

#[test]
fn every_writer_is_answered_when_the_device_takes_no_more() {
    let options = CacheOptions { dirty_max_percent: 50, shards: 4, ..CacheOptions::frames(64) };
    let mut rig = Rig::with(options);
    // Room for half of what comes: a full file system below.
    let full = IoError::new(IoErrorKind::NoSpace);
    rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Fail(full)).at(256..u64::MAX));
    let mut failed = 0;
    for id in 0..128 {
        rig.start(id, WRITE, id * PAGE, page(1));
        while rig.result(id).is_none() {
            rig.now += Duration::from_millis(200);
            rig.turn();
            assert!(rig.now < Duration::from_secs(60), "write {id} waits for ever");
        }
        failed += usize::from(rig.result(id) == Some(Err(full)));
    }
    assert!(failed > 0, "everything was taken");
    assert_eq!(rig.flush(), Err(full));
    // Once there is room below, all that was acknowledged goes out.
    rig.device.clear_faults();
    rig.now += Duration::from_secs(31);
    rig.turns(50);
    assert_eq!(rig.flush(), Err(full), "what failed meanwhile is told once");
    assert_eq!(rig.flush(), Ok(()));
    assert_eq!(rig.run(WRITE, 200 * PAGE, page(1)).0, Ok(()));
}

#[test]
fn a_flush_gets_slots_before_a_writer_who_fills_the_limit() {
    let options = CacheOptions { dirty_max_percent: 80, ..CacheOptions::frames(64) };
    let mut rig = Rig::with(options);
    rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Slow { steps: 3 }));
    // The page that the flush covers lies above all that are dirtied later, none a neighbour.
    assert_eq!(rig.run(WRITE, 255 * PAGE, page(1)).0, Ok(()));
    rig.start(1, OpKind::Flush, 0, Vec::new());
    let mut next = 100;
    while rig.result(1).is_none() {
        for _ in 0..8 {
            if rig.lanes[1].in_flight() < rig.lanes[1].depth() {
                rig.start_on(1, next, WRITE, next % 100 * 2 * PAGE, page(2));
                next += 1;
            }
        }
        rig.turn();
        assert!(next < 1000, "the flush starves");
    }
}

#[test]
fn a_device_flush_that_fails_is_told_to_every_handle_once() {
    let mut rig = Rig::new(CacheMode::Writeback);
    let (first, other) = (rig.handle.clone(), rig.cache.open());
    assert_eq!(rig.run(WRITE, 0, page(1)).0, Ok(()));
    rig.device.set_fault(Fault::new(FaultOn::Flushes, Effect::Fail(MEDIA)).times(1));
    assert_eq!(rig.flush(), Err(MEDIA));
    rig.handle = other;
    assert_eq!(rig.flush(), Err(MEDIA), "it covers what the failed one was to make stable");
    assert_eq!(rig.flush(), Ok(()));
    rig.handle = first;
    assert_eq!(rig.flush(), Ok(()), "told twice");
}

#[test]
fn many_commands_that_fail_at_once_are_one_attempt() {
    let mut rig = Rig::new(CacheMode::Writeback);
    for index in 0..8 {
        assert_eq!(rig.run(WRITE, index * 2 * PAGE, page(1)).0, Ok(()));
    }
    rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Fail(MEDIA)).times(8));
    assert_eq!(rig.flush(), Err(MEDIA));
    rig.turns(10);
    // Half a second later, not thirty, they are tried again.
    rig.now += Duration::from_millis(600);
    rig.turns(60);
    assert_eq!(rig.cache.dirty_ranges(), []);
}

#[test]
fn writers_of_parts_of_blocks_get_on_when_frames_are_scarce() {
    let mut rig = Rig::with(CacheOptions { shards: 1, ..CacheOptions::frames(16) });
    for id in 0..20 {
        rig.start_on((id % 2) as usize, id, WRITE, id * 2 * PAGE + 100, vec![7; 50]);
    }
    for id in 0..20 {
        assert_eq!(rig.wait(id).0, Ok(()));
    }
    // Each page is filled once, or once more when its writer had to wait for room.
    assert!(rig.device.counts().reads <= 40, "{:?}", rig.device.counts());
}

#[test]
fn pins_are_bounded_and_the_rest_is_copied() {
    let mut rig = Rig::with(CacheOptions { shards: 1, ..CacheOptions::frames(64) });
    let read = rig.run(READ, 0, vec![1; 32 * PAGE as usize]);
    assert_eq!(read.0, Ok(()));
    let cache = Arc::clone(&rig.cache);
    let pins: Vec<_> = (0..32).filter_map(|index| cache.try_pin(index * PAGE)).collect();
    assert_eq!(pins.len(), 16, "a quarter of the frames");
    assert!(cache.try_read(31 * PAGE, &mut page(1)));
    drop(pins);
    assert!(cache.try_pin(31 * PAGE).is_some());
}

#[test]
fn dirty_pages_are_written_by_age_without_being_asked() {
    let mut rig = Rig::new(CacheMode::Writeback);
    assert_eq!(rig.run(WRITE, 0, page(1)).0, Ok(()));
    rig.turns(3);
    rig.now += Duration::from_secs(4);
    rig.turns(3);
    assert_eq!(rig.device.counts().writes, 0, "too early");
    rig.now += Duration::from_secs(2);
    rig.turns(4);
    assert_eq!(rig.device.counts().writes, 1);
    assert!(rig.cache.dirty_ranges().is_empty());
}

#[test]
fn neighbours_are_joined_and_written_in_order_of_block_number() {
    let mut rig = Rig::new(CacheMode::Writeback);
    for index in [9, 3, 8, 2, 1] {
        assert_eq!(rig.run(WRITE, index * PAGE, page(index as u8)).0, Ok(()));
    }
    assert_eq!(rig.flush(), Ok(()));
    let writes: Vec<_> = rig
        .device
        .log()
        .into_iter()
        .filter(|entry| entry.op.writes() && entry.event == uaio_driver::sim::Event::Arrived)
        .map(|entry| (entry.lba.0, entry.blocks))
        .collect();
    assert_eq!(writes, [(8, 24), (64, 16)]);
}

#[test]
fn a_writer_above_the_dirty_limit_waits_and_is_let_go_in_order() {
    let mut rig = Rig::with(CacheOptions { dirty_max_percent: 10, ..CacheOptions::frames(64) });
    let stuck = rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Stuck));
    for id in 0..12 {
        rig.start(id, WRITE, id * PAGE, page(1));
    }
    rig.turns(5);
    let done: Vec<_> = rig.finished.iter().map(|(id, ..)| *id).collect();
    assert_eq!(done, [0, 1, 2, 3, 4, 5], "10 % of 64 frames");
    rig.device.clear_fault(stuck);
    for id in 0..12 {
        assert_eq!(rig.wait(id).0, Ok(()));
    }
    assert_eq!(rig.cache.stats().room_waits, 6);
}

#[test]
fn frames_are_handed_over_in_order_and_newcomers_queue_behind() {
    let mut rig = Rig::with(CacheOptions { shards: 1, ..CacheOptions::frames(16) });
    // Every frame is in a read that does not end.
    let stuck = rig.device.set_fault(Fault::new(FaultOn::Reads, Effect::Stuck));
    for id in 0..16 {
        rig.start(id, READ, id * PAGE, page(1));
    }
    // The other lane has request slots; what it lacks is frames.
    for id in 16..32 {
        rig.start_on(1, id, READ, id * PAGE, page(1));
    }
    rig.turns(3);
    assert!(rig.finished.is_empty());
    assert_eq!(rig.cache.stats().frame_waits, 16);
    rig.device.clear_fault(stuck);
    while rig.finished.len() < 32 {
        rig.turn();
    }
    // The device completes in any order; what counts is when each got its frame.
    let log = rig.device.log().into_iter();
    let arrived = log.filter(|entry| entry.event == uaio_driver::sim::Event::Arrived);
    let order: Vec<_> = arrived.map(|entry| entry.lba.0 / 8).collect();
    assert_eq!(order, (0..32).collect::<Vec<_>>());
}

#[test]
fn dropping_a_lane_answers_everything_and_loses_no_frame() {
    let mut rig = Rig::new(CacheMode::Writeback);
    for id in 0..40 {
        rig.start(id, if id % 2 == 0 { READ } else { STABLE }, id * PAGE, page(1));
    }
    rig.lanes.clear();
    rig.cache.assert_sound();
    assert_eq!(rig.cache.frames_lent(), 0);
}

#[test]
fn a_lane_that_is_dropped_waits_for_nobody_but_the_device() {
    let options = CacheOptions { dirty_max_percent: 10, shards: 1, ..CacheOptions::frames(64) };
    let mut rig = Rig::with(options);
    // Writers wait for room, a flush for the flusher, one reader and one writer for the other lane.
    let stuck = rig.device.set_fault(Fault::new(FaultOn::Reads, Effect::Stuck));
    rig.start_on(1, 100, READ, 200 * PAGE, page(0));
    rig.start_on(0, 101, READ, 200 * PAGE, page(0));
    rig.start_on(0, 102, WRITE, 200 * PAGE, page(0));
    for id in 0..20 {
        rig.start_on(0, id, WRITE, id * PAGE, page(1));
    }
    rig.start_on(0, 103, OpKind::Flush, 0, Vec::new());
    rig.start_on(0, 104, STABLE, 210 * PAGE, page(1));
    rig.lanes.remove(0);
    assert!(rig.result(100).is_none() && rig.finished.iter().all(|(_, result, _)| result.is_ok()));
    rig.device.clear_fault(stuck);
    while rig.result(100).is_none() {
        rig.turn();
    }
    rig.cache.assert_sound();
    rig.turns(20);
    assert_eq!(rig.cache.frames_lent(), 0);
    // And what it was handed, or waited for, is anybody's: all the room comes back.
    for id in 0..40 {
        rig.lanes.iter().for_each(|lane| assert!(lane.depth() > 0));
        rig.start(id, WRITE, (100 + id) * PAGE, page(1));
        assert_eq!(rig.wait(id).0, Ok(()));
    }
}

#[test]
fn without_a_flusher_there_is_room_for_some_writers_and_an_error_for_the_others() {
    let pool = DmaPool::new(PoolOptions::frames(64)).unwrap();
    let device = SimDevice::new(SimOptions::sized(1 << 20, 512), 1, pool).unwrap();
    let cache = Cache::new(Arc::new(device), CacheOptions::frames(64)).unwrap();
    let mut user = User::new(&cache, 64);
    (0..40).for_each(|id| user.start(id, WRITE, id * PAGE, page(1)));
    user.turn();
    let results: Vec<_> = user.finished.iter().map(|(_, result, _)| *result).collect();
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 32);
    assert_eq!(results.len(), 40, "nobody waits for a flusher that there never was");
}

#[test]
fn without_a_flusher_nobody_waits_for_ever() {
    let pool = DmaPool::new(PoolOptions::frames(64)).unwrap();
    let device = SimDevice::new(SimOptions::sized(1 << 20, 512), 1, pool).unwrap();
    let cache = Cache::new(Arc::new(device), CacheOptions::frames(64)).unwrap();
    let (flusher, mut user) = (flusher(&cache, 4), User::new(&cache, 64));
    user.start(0, OpKind::Flush, 0, Vec::new());
    (1..60).for_each(|id| user.start(id, WRITE, id * PAGE, page(1)));
    drop(flusher);
    user.start(256, OpKind::Flush, 0, Vec::new());
    // Ends only if every operation does.
    drop(user);
}

#[test]
fn a_cache_smaller_than_the_minimum_is_refused() {
    let pool = DmaPool::new(PoolOptions::frames(8)).unwrap();
    let device = Arc::new(SimDevice::new(SimOptions::sized(1 << 20, 512), 1, pool).unwrap());
    let error = Cache::new(device.clone(), CacheOptions::frames(8)).err().unwrap().to_string();
    assert_eq!(error, "a cache of 8 frames is too small: the minimum is 16 frames of 4096 bytes");
    let error = Cache::new(device.clone(), CacheOptions::frames(16)).err().unwrap().to_string();
    assert_eq!(error, "the cache needs 16 frames of 4096 bytes and the pool has 8 free");
    assert_eq!(device.pool().free_frames(), 8, "frames were taken");
}

#[test]
fn a_write_to_a_device_that_takes_none_is_refused_and_not_cached() {
    let pool = DmaPool::new(PoolOptions::frames(64)).unwrap();
    let sized = SimOptions::sized(1 << 20, 512);
    let capabilities = uaio_driver::Capabilities { read_only: true, ..sized.capabilities };
    let device = SimDevice::new(SimOptions { capabilities, ..sized }, 1, pool).unwrap();
    let cache = Cache::new(Arc::new(device), CacheOptions::frames(64)).unwrap();
    let mut user = User::new(&cache, 64);
    for (id, kind) in (1..).zip([WRITE, STABLE, OpKind::Discard, ZEROES]) {
        user.start(id, kind, 0, page(1));
        let refused = Err(IoError::new(IoErrorKind::ReadOnly));
        assert_eq!(user.result(id), Some(refused), "{kind:?}");
    }
    assert_eq!(cache.dirty_ranges(), []);
}

#[test]
fn a_second_flusher_is_refused_and_the_first_goes_on() {
    let mut rig = Rig::new(CacheMode::Writeback);
    let refused = Flusher::new(Arc::clone(&rig.cache), 4, Arc::new(PollsAnyway));
    assert!(refused.err().unwrap().to_string().contains("has a flusher already"));
    assert_eq!(rig.run(WRITE, 0, page(1)).0, Ok(()));
    assert_eq!(rig.flush(), Ok(()));
}

#[test]
fn a_flush_request_with_a_place_is_a_flush() {
    use uaio_driver::{Lba, Op, QueueOptions, Request, SgList};
    let rig = Rig::new(CacheMode::Writeback);
    let device = uaio_page_cache::CachedDevice::new(Arc::clone(&rig.cache));
    let mut queue = device.open_queue(QueueOptions::polled(4)).unwrap();
    let request = Request {
        token: Token::from_u64(1),
        op: Op::Flush,
        lba: Lba(u64::MAX / 2),
        blocks: 0,
        data: SgList::empty(),
    };
    queue.submit(request).unwrap();
    let mut rig = rig;
    let mut out = Vec::new();
    while queue.poll(1, &mut out) == 0 {
        rig.turn();
    }
    assert_eq!(out[0].result, Ok(()));
}

#[test]
fn the_flusher_is_rung_under_no_lock() {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use uaio_driver::Wake;

    /// Looks at every shard, which whoever rings must not have locked.
    #[derive(Default)]
    struct Looks(std::sync::OnceLock<Arc<Cache>>, AtomicUsize);
    impl Wake for Looks {
        fn wake(&self) {
            if let Some(cache) = self.0.get() {
                cache.assert_sound();
                self.1.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    let pool = DmaPool::new(PoolOptions::frames(64)).unwrap();
    let device = SimDevice::new(SimOptions::sized(1 << 20, 512), 1, pool).unwrap();
    let cache = Cache::new(Arc::new(device), CacheOptions::frames(64)).unwrap();
    let looks = Arc::new(Looks::default());
    let flusher = Flusher::new(Arc::clone(&cache), 4, looks.clone()).unwrap();
    assert!(looks.0.set(Arc::clone(&cache)).is_ok());
    let mut user = User::new(&cache, 64);
    (0..40).for_each(|id| user.start(id, WRITE, id * PAGE, page(1)));
    assert!(looks.1.load(Ordering::Relaxed) > 1);
    drop((user, flusher));
}
