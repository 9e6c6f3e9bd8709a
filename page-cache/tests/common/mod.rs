//! What several tests need.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

pub mod history;
pub mod rig;
pub mod user;
pub mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use uaio_driver::block::PollsAnyway;
use uaio_page_cache::{Cache, Flusher};

/// A thread that turns a cache's flusher until it is dropped.
pub struct FlusherThread {
    cache: Arc<Cache>,
    stop: Arc<AtomicBool>,
    all: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FlusherThread {
    pub fn start(cache: &Arc<Cache>) -> Self {
        let (stop, all) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let mut flusher = Flusher::new(Arc::clone(cache), 32, Arc::new(PollsAnyway)).unwrap();
        let (stopped, everything) = (Arc::clone(&stop), Arc::clone(&all));
        let thread = std::thread::spawn(move || {
            let start = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                flusher.write_all(everything.load(Ordering::Relaxed));
                if !flusher.turn(start.elapsed()).busy {
                    std::thread::yield_now();
                }
            }
        });
        Self { cache: Arc::clone(cache), stop, all, thread: Some(thread) }
    }

    /// Waits until nothing is dirty.
    pub fn drain(&self) {
        self.all.store(true, Ordering::Relaxed);
        let start = Instant::now();
        while !self.cache.dirty_ranges().is_empty() {
            assert!(start.elapsed() < Duration::from_secs(60), "dirty data was not written");
            std::thread::yield_now();
        }
        self.all.store(false, Ordering::Relaxed);
    }
}

impl Drop for FlusherThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the flusher panicked");
        }
    }
}
