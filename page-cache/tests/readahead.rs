//! Readahead on the simulated device, step by step: what is asked for, when, and what it never does.

mod common;

use std::sync::Arc;

use common::rig::{MEDIA, PAGE, READ, Rig, WRITE, page};
use uaio_driver::block::PollsAnyway;
use uaio_driver::sim::{Effect, Event, Fault, FaultOn};
use uaio_driver::{BlockDevice, Lba, Op, QueueOptions, Request, SgList, Token};
use uaio_page_cache::{Advice, CacheOptions, CachedDevice, OpKind};

/// More frames than the device has pages; the longest window is 32 pages.
fn roomy() -> Rig {
    Rig::with(CacheOptions::frames(1024))
}

/// The pages, from and to, that were read from the device, in the order the commands were sent.
fn pages_read(rig: &Rig) -> Vec<(u64, u64)> {
    let log = rig.device.log().into_iter();
    let reads = log.filter(|entry| entry.op == Op::Read && entry.event == Event::Arrived);
    reads
        .map(|entry| (entry.lba.0 / 8, (entry.lba.0 + u64::from(entry.blocks)).div_ceil(8)))
        .collect()
}

fn read(rig: &mut Rig, page: u64, pages: u64) {
    let len = (pages * PAGE) as usize;
    let mut bytes = vec![1; len];
    if rig.cache.try_read(page * PAGE, &mut bytes) {
        return;
    }
    assert_eq!(rig.run(READ, page * PAGE, bytes), (Ok(()), vec![0; len]));
}

#[test]
fn the_second_read_of_a_sequence_sets_off_a_window_that_doubles() {
    let mut rig = roomy();
    read(&mut rig, 0, 2);
    assert_eq!(pages_read(&rig), [(0, 2)], "one read is no sequence");
    read(&mut rig, 2, 2);
    rig.turns(4);
    assert_eq!(pages_read(&rig), [(0, 2), (2, 4), (4, 20)]);
    // The first page of the window bears the mark: the next is under way before the reader needs it.
    read(&mut rig, 4, 2);
    rig.turns(4);
    assert_eq!(pages_read(&rig)[3..], [(20, 52)]);
    for at in (6..20).step_by(2) {
        read(&mut rig, at, 2);
    }
    assert_eq!(pages_read(&rig).len(), 4, "hits up to the next mark set nothing off");
    let misses = rig.cache.stats().misses;
    for at in (20..200).step_by(2) {
        read(&mut rig, at, 2);
        rig.turns(4);
    }
    let stats = rig.cache.stats();
    assert_eq!(stats.misses, misses, "the reader never waited again");
    assert_eq!(stats.readahead_used, 200 - 4);
}

#[test]
fn a_reader_who_catches_up_waits_for_the_command_under_way() {
    let mut rig = roomy();
    rig.device.set_fault(Fault::new(FaultOn::Reads, Effect::Slow { steps: 5 }));
    for at in 0..200 {
        read(&mut rig, at, 1);
    }
    let mut seen = vec![0; 256];
    for (from, to) in pages_read(&rig) {
        (from..to).for_each(|page| seen[page as usize] += 1);
    }
    assert!(seen[..200].iter().all(|count| *count == 1), "a page was read twice");
    assert_eq!(rig.cache.stats().misses, 2);
}

#[test]
fn random_reads_far_apart_read_nothing_ahead() {
    let mut rig = Rig::sized(64 << 20, CacheOptions::frames(1024));
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..500 {
        read(&mut rig, random.u64(..16384), 1);
    }
    assert_eq!(rig.cache.stats().readahead, 0);
}

/// Each of 256 pages, in an order that no stream can tell.
#[test]
fn random_reads_close_to_each_other_bring_in_what_lies_between() {
    let mut rig = roomy();
    let mut order: Vec<u64> = (0..256).collect();
    fastrand::Rng::with_seed(3).shuffle(&mut order);
    for at in order {
        read(&mut rig, at, 1);
        rig.turns(4);
    }
    let mut seen = [0; 256];
    let commands = pages_read(&rig);
    for (from, to) in &commands {
        (*from..*to).for_each(|page| seen[page as usize] += 1);
    }
    assert_eq!(seen, [1; 256], "each page comes from the device once");
    let stats = rig.cache.stats();
    // Eight places of two pages in each of four extents, and a few that two reads fell into.
    assert!((4 * 8..4 * 12).contains(&stats.misses), "{stats:?}");
    assert_eq!(stats.readahead_used, 256 - stats.misses);
    assert!(commands.len() < 4 * 24, "{} commands", commands.len());
}

#[test]
fn a_full_cache_reads_nothing_around() {
    let mut rig = Rig::with(CacheOptions { shards: 1, ..CacheOptions::frames(64) });
    rig.handle.advise(128 * PAGE..256 * PAGE, Advice::Random);
    for at in 0..60 {
        read(&mut rig, 128 + (at * 37) % 128, 1);
    }
    for at in [3, 60, 9, 33, 50, 21, 14, 44, 29, 39, 1, 63, 17] {
        read(&mut rig, at, 1);
    }
    assert_eq!(rig.cache.stats().readahead, 0);
}

/// Ranges that overlap are read by many at once, each of whom waits for pages of the others, is woken and goes on.
/// What was asked for is not asked for again, whatever the order in which the device answers.
#[test]
fn a_retry_does_strictly_less_each_time() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut rig = Rig::seeded(1 << 20, CacheOptions::frames(1024), seed);
        let slow = random.u64(0..200) * 8;
        let fault = Fault::new(FaultOn::Reads, Effect::Slow { steps: random.u32(1..60) });
        rig.device.set_fault(fault.at(slow..slow + random.u64(8..400)));
        let mut lens = Vec::new();
        for id in 0..random.u64(2..16) {
            let from = random.u64(0..250);
            let pages = random.u64(1..=(256 - from).min(40));
            let lane = random.usize(0..2);
            rig.start_on(lane, id, READ, from * PAGE, vec![1; (pages * PAGE) as usize]);
            lens.push((pages * PAGE) as usize);
            if random.bool() {
                rig.turn_lanes();
            }
        }
        for (id, len) in lens.into_iter().enumerate() {
            assert_eq!(rig.wait(id as u64), (Ok(()), vec![0; len]), "seed {seed}, read {id}");
        }
        rig.turns(100);
        let mut seen = [0; 256];
        for (from, to) in pages_read(&rig) {
            (from..to).for_each(|page| seen[page as usize] += 1);
        }
        assert!(seen.iter().all(|count| *count <= 1), "seed {seed}: a page was read twice");
    }
}

/// A command takes a while, and the lane has room for four: the rest is asked for by a later read.
#[test]
fn what_could_not_be_read_around_at_once_is_asked_for_again() {
    let mut rig = roomy();
    rig.device.set_fault(Fault::new(FaultOn::Reads, Effect::Slow { steps: 200 }));
    let places = [60, 3, 33, 50, 21, 14, 44, 9];
    for (id, at) in places.iter().enumerate() {
        rig.start(id as u64, READ, at * PAGE, page(1));
    }
    let first = rig.cache.stats().readahead;
    for id in 0..places.len() {
        assert_eq!(rig.wait(id as u64).0, Ok(()));
    }
    rig.turns(300);
    assert!(first < 56, "there was room for {first} pages");
    for at in [39, 1, 63, 17, 30, 55] {
        read(&mut rig, at, 1);
        rig.turns(300);
    }
    let stats = rig.cache.stats();
    assert_eq!(stats.readahead + stats.misses, 64, "the whole extent, each page once: {stats:?}");
}

#[test]
fn strides_are_found_forwards_and_backwards() {
    for (first, stride) in [(0, 7), (250, -7), (120, -1)] {
        let mut rig = roomy();
        let places: Vec<u64> = (0..30)
            .map(|index| (first + stride * index) as u64)
            .take_while(|at| *at < 256)
            .collect();
        for at in &places {
            read(&mut rig, *at, 1);
            rig.turns(4);
        }
        let stats = rig.cache.stats();
        assert_eq!(stats.misses, 4, "stride {stride}: {stats:?}");
        let asked: Vec<u64> =
            pages_read(&rig).into_iter().flat_map(|(from, to)| from..to).collect();
        let inside = asked.iter().filter(|at| places.contains(at)).count();
        assert_eq!(inside, places.len());
        assert!(asked.iter().all(|at| (*at as i64 - first) % stride == 0), "{asked:?}");
    }
}

#[test]
fn several_streams_of_one_handle_do_not_disturb_each_other() {
    let mut rig = roomy();
    for step in 0..40 {
        for stream in 0..5 {
            read(&mut rig, stream * 50 + step, 1);
            rig.turns(4);
        }
    }
    let stats = rig.cache.stats();
    // Three to find each stream when others come in between.
    assert!(stats.misses <= 15, "{stats:?}");
}

#[test]
fn a_retry_does_not_read_ahead_again() {
    let mut rig = roomy();
    read(&mut rig, 0, 1);
    rig.device.set_fault(Fault::new(FaultOn::Reads, Effect::Fail(MEDIA)).at(8..9).times(2));
    // It fails, goes on block by block, and is woken many times; one window all the same.
    rig.start(1, READ, PAGE, page(1));
    assert_eq!(rig.wait(1).0, Err(MEDIA));
    rig.turns(4);
    let ahead = pages_read(&rig).into_iter().filter(|(from, _)| *from >= 2);
    assert_eq!(ahead.collect::<Vec<_>>(), [(2, 18)]);
}

#[test]
fn the_last_frames_are_not_taken() {
    let mut rig = Rig::with(CacheOptions { shards: 1, ..CacheOptions::frames(64) });
    rig.handle.advise(100 * PAGE..1 << 20, Advice::Random);
    // 32 frames are dirty and 24 in reads that do not end: an eighth is left.
    let writes = rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Stuck));
    for at in 100..132 {
        assert_eq!(rig.run(WRITE, at * PAGE, page(1)).0, Ok(()));
    }
    let reads = rig.device.set_fault(Fault::new(FaultOn::Reads, Effect::Stuck).at(1600..2048));
    for at in 200..216 {
        rig.start_on(1, at, READ, at * PAGE, page(1));
    }
    for at in 216..224 {
        rig.start(at, READ, at * PAGE, page(1));
    }
    read(&mut rig, 0, 1);
    read(&mut rig, 1, 1);
    rig.turns(4);
    assert_eq!(rig.cache.stats().readahead, 0);
    rig.device.clear_fault(writes);
    rig.device.clear_fault(reads);
    (200..224).for_each(|at| assert_eq!(rig.wait(at).0, Ok(())));
    assert_eq!(rig.flush(), Ok(()));
    assert_eq!(rig.cache.frames_lent(), 0);
}

#[test]
fn the_last_request_slots_are_not_taken() {
    let mut rig = roomy();
    rig.handle.advise(100 * PAGE..1 << 20, Advice::Random);
    let reads = rig.device.set_fault(Fault::new(FaultOn::Reads, Effect::Stuck).at(800..2048));
    for at in 0..11 {
        rig.start(at, READ, (100 + 2 * at) * PAGE, page(1));
    }
    read(&mut rig, 0, 1);
    read(&mut rig, 1, 1);
    rig.turns(4);
    assert_eq!(rig.cache.stats().readahead, 0, "5 of 16 slots are left to those who wait");
    rig.device.clear_fault(reads);
    (0..11).for_each(|at| assert_eq!(rig.wait(at).0, Ok(())));
    read(&mut rig, 2, 1);
    assert_eq!(rig.cache.stats().readahead, 16, "it goes on when there are some again");
}

#[test]
fn a_failed_readahead_costs_nobody_but_who_wants_the_bad_block() {
    let mut rig = roomy();
    rig.device.set_fault(Fault::new(FaultOn::Reads, Effect::Fail(MEDIA)).at(80..81));
    for at in 0..10 {
        read(&mut rig, at, 1);
        rig.turns(4);
    }
    assert_eq!(rig.run(READ, 10 * PAGE, page(1)).0, Err(MEDIA));
    read(&mut rig, 11, 1);
    assert_eq!(rig.cache.frames_lent(), 0);
}

#[test]
fn windows_shrink_when_their_pages_are_evicted_unread() {
    let mut rig = Rig::with(CacheOptions { shards: 1, ..CacheOptions::frames(128) });
    for at in 0..12 {
        read(&mut rig, at, 1);
        rig.turns(4);
    }
    let before = rig.cache.stats();
    assert!(before.readahead > 0);
    rig.cache.drop_clean(0..1 << 20);
    let wasted = rig.cache.stats().readahead_wasted;
    assert!(wasted > 0, "pages that went unread are counted");
    let known = pages_read(&rig).len();
    read(&mut rig, 12, 1);
    rig.turns(4);
    let after: u64 = pages_read(&rig)[known..].iter().map(|(from, to)| to - from).sum();
    // The longest window of 128 frames is 4 pages; halved it is 2.
    assert!(after <= 1 + 2, "{after} pages");
}

#[test]
fn a_readahead_that_is_asked_for_ends_when_the_pages_are_there() {
    let mut rig = roomy();
    rig.device.set_fault(Fault::new(FaultOn::Reads, Effect::Slow { steps: 9 }));
    rig.start(1, OpKind::Readahead, 5 * PAGE, vec![0; 100 * PAGE as usize]);
    assert_eq!(rig.result(1), None);
    assert_eq!(rig.wait(1).0, Ok(()));
    let mut bytes = vec![1; 100 * PAGE as usize];
    assert!(rig.cache.try_read(5 * PAGE, &mut bytes));
    assert_eq!(bytes, vec![0; 100 * PAGE as usize]);
    let stats = rig.cache.stats();
    assert_eq!((stats.misses, stats.readahead, stats.readahead_used), (0, 100, 100));
    // What is there already costs nothing.
    let reads = rig.device.counts().reads;
    assert_eq!(rig.run(OpKind::Readahead, 0, vec![0; 50 * PAGE as usize]).0, Ok(()));
    assert_eq!(rig.device.counts().blocks_read, 105 * 8);
    assert!(rig.device.counts().reads <= reads + 1);
    rig.device.set_fault(Fault::new(FaultOn::Reads, Effect::Fail(MEDIA)).at(1600..1601));
    assert_eq!(rig.run(OpKind::Readahead, 190 * PAGE, vec![0; 20 * PAGE as usize]).0, Err(MEDIA));
}

#[test]
fn a_readahead_of_more_than_fits_brings_in_what_half_of_the_cache_holds() {
    let mut rig = Rig::with(CacheOptions { shards: 1, ..CacheOptions::frames(64) });
    assert_eq!(rig.run(OpKind::Readahead, 0, vec![0; 1 << 20]).0, Ok(()));
    let mut bytes = vec![1; 32 * PAGE as usize];
    assert!(rig.cache.try_read(0, &mut bytes));
    assert_eq!(rig.device.counts().blocks_read, 32 * 8);
}

#[test]
fn advice_turns_readahead_off_on_and_up() {
    let mut rig = roomy();
    rig.handle.advise(0..100 * PAGE, Advice::Random);
    for at in 0..50 {
        read(&mut rig, at, 1);
    }
    assert_eq!(rig.cache.stats().readahead, 0, "random");
    rig.handle.advise(100 * PAGE..1 << 20, Advice::Sequential);
    read(&mut rig, 100, 1);
    rig.turns(4);
    assert_eq!(pages_read(&rig).last(), Some(&(101, 117)), "from the first read on");
    rig.handle.advise(0..1 << 20, Advice::Normal);
    read(&mut rig, 60, 1);
    let before = rig.cache.stats().readahead;
    read(&mut rig, 61, 1);
    rig.turns(4);
    assert!(rig.cache.stats().readahead > before, "as usual again");
}

#[test]
fn pages_of_a_reader_who_has_no_use_for_them_again_leave_behind_it() {
    let mut rig = roomy();
    rig.handle.advise(0..u64::MAX, Advice::NoReuse);
    let other = rig.cache.open();
    let mine = std::mem::replace(&mut rig.handle, other);
    read(&mut rig, 3, 1);
    rig.handle = mine;
    for at in 0..100 {
        // In parts of pages: only the last byte lets go.
        for part in 0..4 {
            let offset = at * PAGE + part * 1024;
            let mut bytes = vec![1; 1024];
            if !rig.cache.try_read(offset, &mut bytes) {
                bytes = rig.run(READ, offset, bytes).1;
            }
            assert_eq!(bytes, vec![0; 1024]);
        }
        rig.turns(3);
    }
    assert!(!rig.cache.try_read(0, &mut [0; 16]));
    assert!(!rig.cache.try_read(50 * PAGE, &mut [0; 16]));
    assert!(rig.cache.try_read(3 * PAGE, &mut [0; 16]), "somebody else brought it in");
    assert!(rig.cache.stats().cached < 80, "{:?}", rig.cache.stats());
    let twice = rig.device.counts().blocks_read;
    assert!(twice <= 256 * 8, "a page was read again for each of its parts: {twice}");
}

#[test]
fn a_dropped_lane_leaves_no_page_behind_that_nobody_reads() {
    let mut rig = roomy();
    rig.device.set_fault(Fault::new(FaultOn::Reads, Effect::Slow { steps: 30 }));
    read(&mut rig, 0, 1);
    read(&mut rig, 1, 1);
    assert!(rig.cache.stats().readahead > 0);
    assert_eq!(rig.lanes[0].in_flight(), 0);
    drop(rig.lanes.remove(0));
    assert_eq!(rig.cache.frames_lent(), 0);
    read(&mut rig, 2, 1);
}

#[test]
fn a_cached_device_reads_sequences_ahead_and_nothing_else() {
    let rig = Rig::sized(16 << 20, CacheOptions::frames(1024));
    let device = CachedDevice::new(Arc::clone(&rig.cache));
    let options = QueueOptions { depth: 8, wake: Arc::new(PollsAnyway) };
    let mut queue = device.open_queue(options).unwrap();
    let pool = rig.device.pool().clone();
    let Rig { cache, .. } = &rig;
    let mut read = |page: u64| {
        let frame = pool.take();
        let Some(frame) = frame else { panic!("the pool has frames beside the cache's") };
        let token = Token::from_u64(page);
        let data = SgList { frames: vec![frame], offset: 0 };
        let request = Request { token, op: Op::Read, lba: Lba(page * 8), blocks: 8, data };
        assert!(queue.submit(request).is_ok());
        let mut out = Vec::new();
        for _ in 0..1000 {
            queue.commit();
            queue.poll(8, &mut out);
            if let Some(done) = out.pop() {
                assert_eq!(done.result, Ok(()));
                done.data.frames.into_iter().for_each(|frame| drop(frame.release()));
                return;
            }
        }
        panic!("page {page} hung");
    };
    let mut random = fastrand::Rng::with_seed(3);
    (0..60).for_each(|_| read(random.u64(..4000)));
    let random_misses = cache.stats().misses;
    assert_eq!(cache.stats().readahead, 0);
    (4010..4050).for_each(&mut read);
    let stats = cache.stats();
    assert_eq!((stats.misses - random_misses, stats.readahead_used), (2, 38));
}

#[test]
fn what_follows_each_other_fills_all_shards_evenly() {
    // Frames belong to a shard for good: a shard with more than its share would evict, with free ones in others.
    for first in [0, 640, 2048 + 32] {
        let options = CacheOptions { shards: 8, ..CacheOptions::frames(2048) };
        let mut rig = Rig::sized(32 << 20, options);
        rig.handle.advise(0..u64::MAX, Advice::Random);
        for at in (first..first + 2048).step_by(128) {
            read(&mut rig, at, 128);
            rig.turns(4);
        }
        let stats = rig.cache.stats();
        assert_eq!((stats.evicted, stats.cached), (0, 2048), "from page {first}");
    }
}
