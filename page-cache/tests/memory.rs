//! Memory beside the frames, as the allocator counts it.

use std::alloc::System;
use std::sync::{Arc, Mutex, PoisonError};

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use uaio_driver::block::PollsAnyway;
use uaio_driver::ram::RamDevice;
use uaio_driver::{DmaPool, PoolOptions, Token};
use uaio_page_cache::{Buffer, Cache, CacheOptions, Flusher, Lane, OpKind, Operation};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What is to be reached.
const BYTES_A_PAGE: usize = 64;

/// Tables may be for so much more than the frames, as a part of them.
const SLACK_PART: usize = 8;

/// One test counts at a time.
static COUNTING: Mutex<()> = Mutex::new(());

#[test]
fn a_page_takes_at_most_64_bytes_beside_its_frame_ghosts_and_reference_counts_included() {
    let _alone = COUNTING.lock().unwrap_or_else(PoisonError::into_inner);
    for frames in [32 << 10, 50_000, 100_000] {
        let region = Region::new(ALLOCATOR);
        // The frames themselves are a mapping; the pool's own tables count.
        let pool = DmaPool::new(PoolOptions::frames(frames)).unwrap();
        let before_device = region.change();
        let device = Arc::new(RamDevice::new(4096, 512, pool).unwrap());
        let of_the_device = region.change() - before_device;
        let cache = Cache::new(device, CacheOptions::frames(frames)).unwrap();
        let all = region.change() - of_the_device;
        let bytes = all.bytes_allocated - all.bytes_deallocated;
        println!("{frames} frames: {:.1} bytes a page", bytes as f64 / frames as f64);
        assert!(bytes <= frames * BYTES_A_PAGE, "{bytes} bytes for {frames} frames");
        // And what it says of itself is what it takes, but for the pool's tables and odds and ends.
        let told = cache.memory();
        assert_eq!(told.frames, frames as u64 * 4096);
        let other = bytes as u64 - told.tables;
        assert!(other < frames as u64 * 5 + 65_536, "{other} bytes that it does not tell of");
    }
}

#[test]
fn a_limit_in_bytes_is_kept_with_tables_and_lanes() {
    const MAX: u64 = 96 << 20;
    let _alone = COUNTING.lock().unwrap_or_else(PoisonError::into_inner);
    let pool = DmaPool::new(PoolOptions::frames(32 << 10)).unwrap();
    let device = Arc::new(RamDevice::new(1 << 20, 512, pool).unwrap());
    let region = Region::new(ALLOCATOR);
    let memory_max = Some(MAX);
    let cache =
        Cache::new(device, CacheOptions { memory_max, ..CacheOptions::frames(32 << 10) }).unwrap();
    let check = |what: &str| {
        let told = cache.memory();
        let counted = region.change();
        let beside = counted.bytes_allocated - counted.bytes_deallocated;
        let all = told.frames + beside as u64;
        println!("{what}: {told:?}, {all} bytes in all");
        // What the device's queues take is the device's, and is the little that there may be more.
        assert!(all <= MAX + MAX / 500, "{what}: {all} bytes of {MAX}");
        assert!(told.total() <= MAX && told.total() >= MAX - MAX / 100, "{what}: {told:?}");
        let missed = (beside as u64).saturating_sub(told.tables + told.lanes);
        assert!(missed < MAX / 500, "{what}: {missed} bytes not told of");
        told
    };
    let alone = check("a cache alone");
    let flusher = Flusher::new(Arc::clone(&cache), 32, Arc::new(PollsAnyway)).unwrap();
    let lane = || Lane::new(Arc::clone(&cache), 1024, 256, Arc::new(PollsAnyway)).unwrap();
    let mut lanes = vec![lane(), lane(), lane()];
    let three = check("with three lanes");
    assert!(three.frames < alone.frames && three.lanes > alone.lanes);
    lanes.clear();
    drop(flusher);
    assert_eq!(check("without them").lanes, 0);
    // A limit that is too small changes nothing, nor does a size that does not fit.
    let frames = cache.memory().frames;
    let refused = cache.set_memory_max(Some(1 << 20)).unwrap_err().to_string();
    assert!(refused.contains("a memory limit of 1048576 bytes is too little"), "{refused}");
    let refused = cache.resize(24 << 10).unwrap_err().to_string();
    assert!(refused.ends_with(&format!("the memory limit is {MAX}")), "{refused}");
    assert_eq!((cache.memory_max(), cache.memory().frames), (Some(MAX), frames));
    cache.set_memory_max(Some(MAX / 2)).unwrap();
    let half = cache.memory().total();
    assert!(half <= MAX / 2, "{half} bytes");
    assert!(
        half >= MAX / 2 - MAX / 200,
        "{half} bytes: what the tables took is not there for frames"
    );
    // What it was asked to have, not more.
    cache.resize(4096).unwrap();
    assert_eq!(cache.memory().frames, 4096 * 4096);
    cache.set_memory_max(Some(MAX)).unwrap();
    assert_eq!(cache.memory().frames, 4096 * 4096);
    let small = CacheOptions { memory_max: Some(1 << 16), ..CacheOptions::frames(4096) };
    let refused = Cache::new(Arc::clone(cache.device()), small).map(drop).unwrap_err().to_string();
    assert!(refused.contains("a memory limit of 65536 bytes is too little"), "{refused}");
}

#[test]
fn a_lane_that_would_leave_too_little_memory_is_refused_and_the_cache_goes_on() {
    let _alone = COUNTING.lock().unwrap_or_else(PoisonError::into_inner);
    let pool = DmaPool::new(PoolOptions::frames(1024)).unwrap();
    let device = Arc::new(RamDevice::new(1 << 20, 512, pool).unwrap());
    let options = CacheOptions { memory_max: Some(1 << 20), ..CacheOptions::frames(512) };
    let cache = Cache::new(device, options).unwrap();
    let (frames, memory) = (cache.stats().frames, cache.memory());
    assert!(frames > 150 && frames < 256, "{frames}");
    let lane = |operations| Lane::new(Arc::clone(&cache), operations, 8, Arc::new(PollsAnyway));
    let refused = lane(16 << 10).map(drop).unwrap_err().to_string();
    assert!(refused.contains("a memory limit of 1048576 bytes is too little"), "{refused}");
    // As if it had never come, but for a word or two.
    let as_before = || {
        let now = (cache.stats().frames, cache.memory().total().abs_diff(memory.total()) < 64);
        assert_eq!(now, (frames, true), "{:?}, before {memory:?}", cache.memory());
    };
    as_before();
    let small = lane(8).unwrap();
    assert!(cache.stats().frames < frames && cache.memory().total() <= 1 << 20);
    drop(small);
    as_before();
}

#[test]
fn tables_shrink_with_the_cache_by_the_allocators_count() {
    const LARGE: usize = 64 << 10;
    const SMALL: usize = 4096;
    let _alone = COUNTING.lock().unwrap_or_else(PoisonError::into_inner);
    let pool = DmaPool::new(PoolOptions::frames(LARGE)).unwrap();
    let device = Arc::new(RamDevice::new((LARGE * 4096) as u64, 512, pool).unwrap());
    let region = Region::new(ALLOCATOR);
    let count = || {
        let counted = region.change();
        counted.bytes_allocated - counted.bytes_deallocated
    };
    let options = CacheOptions { shards: 32, ..CacheOptions::frames(LARGE) };
    let fresh = Cache::new(device.clone(), CacheOptions { frames: SMALL, ..options }).unwrap();
    let never_larger = count();
    drop(fresh);
    let cache = Cache::new(device, options).unwrap();
    let large = count();
    // Full of pages when it shrinks, and of those that stay many lie in slots that go.
    let mut lane = Lane::new(Arc::clone(&cache), 1, 4, Arc::new(PollsAnyway)).unwrap();
    let lanes = count() - large;
    let len = Lane::LEN_MAX;
    for offset in (0..(LARGE * 4096) as u64).step_by(len as usize) {
        let kind = OpKind::Read { direct: false };
        let (token, handle) = (Token::from_u64(1), cache.open());
        let buffer = Buffer::Bytes(vec![0; len as usize]);
        assert!(lane.start(Operation { token, kind, offset, len, buffer, handle }).is_ok());
        while lane.pop_finished().is_none() {
            lane.turn();
        }
    }
    assert!(cache.stats().cached as usize > LARGE * 9 / 10, "{:?}", cache.stats());
    cache.resize(SMALL).unwrap();
    assert_eq!(cache.stats().frames, SMALL as u64);
    cache.assert_sound();
    let small = count() - lanes;
    println!("{large} bytes for {LARGE} frames, {small} for {SMALL}");
    // A bit stays for each frame that ever was free.
    let most = never_larger + never_larger / SLACK_PART + LARGE / 8 + LARGE / 64;
    assert!(
        small <= most,
        "{small} bytes for {SMALL} frames, {never_larger} when it never had more"
    );
    let told = cache.memory();
    let missed = (small as u64).saturating_sub(told.tables);
    assert!(missed < 65_536, "{missed} bytes of {small} not told of");
    assert!(cache.stats().cached as usize > SMALL / 2, "little of what stays was dropped");
}
