//! A cached device keeps the contract of a block device, over every kind of device and mode.

mod common;

use std::sync::Arc;

use common::FlusherThread;
use uaio_driver::ram::RamDevice;
use uaio_driver::{BlockDevice, DmaPool, PoolOptions, conformance};
use uaio_page_cache::{Cache, CacheMode, CacheOptions, CachedDevice};

fn conforms(mode: CacheMode, block_size: u32, frames: usize) {
    let pool = DmaPool::new(PoolOptions::frames(frames + 1024)).unwrap();
    let ram = Arc::new(RamDevice::new(16 << 20, block_size, pool).unwrap());
    let options = CacheOptions { mode, ..CacheOptions::frames(frames) };
    let cache = Cache::new(ram.clone(), options).unwrap();
    let flusher = FlusherThread::start(&cache);
    let device = CachedDevice::new(Arc::clone(&cache));
    conformance::run(&device);
    cache.assert_sound();
    assert_eq!(cache.frames_lent(), 0);
    flusher.drain();
    assert_eq!(cache.dirty_ranges(), []);
    drop(flusher);
    device.close().unwrap();
}

#[test]
fn writeback_conforms() {
    conforms(CacheMode::Writeback, 512, 4096);
    conforms(CacheMode::Writeback, 4096, 4096);
}

#[test]
fn writethrough_conforms() {
    conforms(CacheMode::Writethrough, 512, 4096);
}

#[test]
fn none_conforms() {
    conforms(CacheMode::None, 512, 512);
}

#[test]
fn a_cache_of_the_fewest_frames_conforms() {
    conforms(CacheMode::Writeback, 512, CacheOptions::FRAMES_MIN);
    conforms(CacheMode::Writethrough, 1024, CacheOptions::FRAMES_MIN);
}
