//! Looking after a cache in use: residency, dropping, another size, limits, memory.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use common::rig::{PAGE, READ, Rig, WRITE, page};
use uaio_driver::ram::RamDevice;
use uaio_driver::{BlockDevice, DmaPool, PoolOptions, Token, Wake};
use uaio_page_cache::{
    Advice, Buffer, Cache, CacheError, CacheMode, CacheOptions, Dropped, Flusher, Lane, Operation,
    Residency,
};

/// A cache that brings in nothing but what is asked for.
fn quiet() -> Rig {
    let rig = Rig::new(CacheMode::Writeback);
    rig.handle.advise(0..u64::MAX, Advice::Random);
    rig
}

#[test]
fn residency_tells_what_is_cached_dirty_and_recently_evicted_page_by_page() {
    let mut rig = quiet();
    for number in [2, 3, 5] {
        assert_eq!(rig.run(READ, number * PAGE, page(1)).0, Ok(()));
    }
    assert_eq!(rig.run(WRITE, 5 * PAGE, vec![7; 10]).0, Ok(()));
    let some = Residency { pages: 4, cached: 3, dirty: 1, recently_evicted: Some(0), writeback: 0 };
    assert_eq!(rig.cache.residency(2 * PAGE..6 * PAGE), some);
    // A range of bytes counts every page that it touches.
    assert_eq!(rig.cache.residency(2 * PAGE + 4095..2 * PAGE + 4097).cached, 2);
    assert_eq!(
        rig.cache.residency(9 * PAGE..9 * PAGE),
        Residency { recently_evicted: Some(0), ..Residency::default() }
    );
    let size = rig.cache.size_bytes();
    assert_eq!(rig.cache.residency(size - 1..u64::MAX).pages, 1);
    assert_eq!(rig.cache.residency(size + PAGE..u64::MAX).pages, 0);
    let mut resident = [true; 6];
    rig.cache.resident(PAGE, &mut resident);
    assert_eq!(resident, [false, true, true, false, true, false]);
}

#[test]
fn a_page_that_has_part_of_its_blocks_is_cached_but_not_resident() {
    let mut rig = Rig::new(CacheMode::Writeback);
    assert_eq!(rig.run(WRITE, 512, vec![7; 512]).0, Ok(()));
    assert_eq!(rig.cache.residency(0..PAGE).cached, 1);
    let mut resident = [true];
    rig.cache.resident(0, &mut resident);
    assert_eq!(resident, [false], "seven of its blocks would have to be read");
}

#[test]
fn only_clean_pages_wholly_in_the_range_are_dropped() {
    let mut rig = quiet();
    for number in 0..4 {
        assert_eq!(rig.run(READ, number * PAGE, page(1)).0, Ok(()));
    }
    assert_eq!(rig.run(WRITE, PAGE, page(7)).0, Ok(()));
    let done = rig.cache.drop_clean(0..3 * PAGE + 100);
    assert_eq!(done, Dropped { dropped: 2, kept: 1 });
    assert_eq!(rig.cache.residency(0..4 * PAGE).cached, 2);
    assert_eq!(rig.flush(), Ok(()));
    let all = rig.cache.drop_clean(0..u64::MAX);
    assert_eq!(all, Dropped { dropped: 2, kept: 0 });
    assert_eq!(rig.run(READ, PAGE, page(0)), (Ok(()), page(7)), "it was written before it went");
}

#[test]
fn a_cache_that_is_made_smaller_writes_what_is_dirty_and_returns_the_frames() {
    let mut rig = quiet();
    let before = rig.cache.stats();
    let free = rig.device.pool().free_frames();
    let dirty = before.dirty_limit_bytes / PAGE;
    for number in 0..dirty {
        assert_eq!(rig.run(WRITE, number * PAGE, page(number as u8)).0, Ok(()));
    }
    let least = CacheOptions::FRAMES_MIN;
    assert!(dirty > least as u64, "there must be more dirty than frames are to be left");
    rig.cache.resize(least).unwrap();
    assert_eq!(rig.cache.stats().frames_wanted, least as u64);
    let mut turns = 0;
    while rig.cache.stats().frames > least as u64 {
        rig.turn();
        turns += 1;
        assert!(turns < 10_000, "it does not shrink: {:?}", rig.cache.stats());
    }
    rig.cache.assert_sound();
    assert_eq!(rig.device.pool().free_frames() - free, before.frames as usize - least);
    for number in 0..dirty {
        assert_eq!(rig.run(READ, number * PAGE, page(0)), (Ok(()), page(number as u8)));
    }
    // And back again, at once.
    rig.cache.resize(before.frames as usize).unwrap();
    assert_eq!(rig.cache.stats().frames, before.frames);
    assert_eq!(rig.device.pool().free_frames(), free);
    rig.cache.assert_sound();
}

#[test]
fn a_pinned_frame_goes_when_its_pin_does() {
    let mut rig = Rig::with(CacheOptions { shards: 1, ..CacheOptions::frames(128) });
    let before = rig.cache.stats().frames as usize;
    for number in 0..before as u64 {
        assert_eq!(rig.run(READ, number * PAGE, page(0)).0, Ok(()));
    }
    let least = CacheOptions::FRAMES_MIN;
    let cache = Arc::clone(&rig.cache);
    let pins: Vec<_> = (0..before as u64).filter_map(|at| cache.try_pin(at * PAGE)).collect();
    let pinned = pins.len();
    assert!(pinned > least, "{pinned} pins are too few to show it");
    rig.cache.resize(least).unwrap();
    assert_eq!(rig.cache.stats().frames as usize, pinned);
    drop(pins);
    assert_eq!(rig.cache.stats().frames as usize, least);
    rig.cache.assert_sound();
}

#[test]
fn a_size_that_is_not_possible_is_refused_and_nothing_changes() {
    let pool = DmaPool::new(PoolOptions::frames(100)).unwrap();
    let device = Arc::new(RamDevice::new(1 << 20, 512, pool).unwrap());
    let cache = Cache::new(device, CacheOptions { shards: 4, ..CacheOptions::frames(80) }).unwrap();
    let before = cache.stats();
    assert_eq!(
        cache.resize(63).unwrap_err().to_string(),
        "63 frames are too few for a cache of 4 shards: the minimum is 64"
    );
    assert_eq!(cache.resize(101), Err(CacheError::NoFrames { wanted: 21, free: 20 }));
    assert_eq!(
        cache.set_dirty_max(91).unwrap_err().to_string(),
        "a dirty limit of 91 % is not possible: take 1 to 90"
    );
    assert_eq!(cache.stats(), before);
    cache.resize(99).unwrap();
    assert_eq!((cache.stats().frames, cache.stats().frames_wanted), (99, 99));
    assert_eq!(cache.device().pool().free_frames(), 1);
    cache.assert_sound();
}

#[test]
fn the_dirty_limit_follows_the_percentage_and_the_size() {
    let rig = Rig::new(CacheMode::Writeback);
    let frames = rig.cache.stats().frames;
    let limit = |percent| {
        rig.cache.set_dirty_max(percent).unwrap();
        rig.cache.stats().dirty_limit_bytes / PAGE
    };
    assert!(limit(80) >= frames * 7 / 10);
    assert!(limit(10) <= frames / 10);
}

/// Asks, whenever it is rung, for what takes the locks that a change of size or limits holds.
struct Asks {
    cache: Arc<Cache>,
    rung: AtomicU64,
}

impl Wake for Asks {
    fn wake(&self) {
        let _asked = (self.cache.dirty_limits(), self.cache.memory_max(), self.cache.memory());
        self.rung.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn another_size_and_other_limits_wake_under_no_lock() {
    let (done, ended) = mpsc::channel();
    let changes = move || {
        let pool = DmaPool::new(PoolOptions::frames(400)).unwrap();
        let device = Arc::new(RamDevice::new(1 << 20, 512, pool).unwrap());
        let options = CacheOptions { shards: 1, ..CacheOptions::frames(200) };
        let cache = Cache::new(device, options).unwrap();
        cache.set_dirty_max(10).unwrap();
        let ring = || Arc::new(Asks { cache: Arc::clone(&cache), rung: AtomicU64::new(0) });
        let (of_flusher, of_lane) = (ring(), ring());
        let _flusher = Flusher::new(Arc::clone(&cache), 16, of_flusher.clone()).unwrap();
        let mut lane = Lane::new(Arc::clone(&cache), 64, 16, of_lane.clone()).unwrap();
        let handle = cache.open();
        let memory = cache.memory();
        let most = memory.tables + memory.lanes + 64 * (PAGE + 64);
        cache.set_memory_max(Some(most)).unwrap();
        assert!((60..70).contains(&cache.stats().frames), "{:?}", cache.stats());
        // Six fit; nobody writes them back.
        for at in 0..64 {
            let write = Operation {
                token: Token::from_u64(at),
                kind: WRITE,
                offset: at * PAGE,
                len: PAGE,
                buffer: Buffer::Bytes(page(1)),
                handle: Arc::clone(&handle),
            };
            assert!(lane.start(write).is_ok());
        }
        let mut rung_by = |change: &dyn Fn()| {
            let count = |of: &Asks| of.rung.load(Ordering::Relaxed);
            let before = (count(&of_lane), count(&of_flusher));
            change();
            assert!(count(&of_lane) > before.0, "no writer was let go");
            assert!(count(&of_flusher) > before.1, "the flusher was not rung");
            (0..3).for_each(|_| _ = lane.turn());
        };
        rung_by(&|| cache.set_dirty_max(20).unwrap());
        rung_by(&|| cache.set_memory_max(None).unwrap());
        rung_by(&|| cache.resize(300).unwrap());
        done.send(()).unwrap();
    };
    let changing = std::thread::spawn(changes);
    let ended = ended.recv_timeout(Duration::from_secs(60));
    assert_ne!(ended, Err(mpsc::RecvTimeoutError::Timeout), "somebody is rung under a lock");
    changing.join().unwrap();
}
