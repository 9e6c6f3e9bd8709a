//! Memory beside the frames, as the allocator counts it.

use std::alloc::System;
use std::sync::Arc;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use uaio_driver::ram::RamDevice;
use uaio_driver::{DmaPool, PoolOptions};
use uaio_page_cache::{Cache, CacheOptions};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What is to be reached.
const BYTES_A_PAGE: usize = 64;

#[test]
fn a_page_takes_at_most_64_bytes_beside_its_frame_ghosts_and_reference_counts_included() {
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
