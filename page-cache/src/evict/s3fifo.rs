//! S3-FIFO, to compare with.

use super::fifos::{Fifos, Shape, Walk};
use super::ghosts::Ghosts;
use super::list::Links;
use super::{Pages, Policy};

/// S3-FIFO (Yang et al., *FIFO queues are all you need for cache eviction*, SOSP '23): a small
/// queue takes what is new, and only what is used again while there reaches the main queue, so a
/// scan passes through a tenth of the cache. Pages that left the small queue are remembered, without
/// their frame, as many as the main queue holds; one that comes back goes to the main queue at once.
#[derive(Debug)]
pub struct S3Fifo {
    fifos: Fifos,
    ghosts: Ghosts,
}

/// As many ghosts as the main queue has pages: nine tenths of the cache.
fn ghosts(slots: usize) -> usize {
    slots * 9 / 10
}

impl Walk for Ghosts {
    fn main_pushed(&mut self, _slot: u32, _len: usize) {}

    fn main_popped(&mut self, _slot: u32) {}

    fn main_left(&mut self, _slot: u32) {}

    fn small_evicted(&mut self, key: u64) {
        self.put(key);
    }
}

impl Policy for S3Fifo {
    fn new(slots: usize) -> Self {
        Self { fifos: Fifos::new(slots, Shape::PUBLISHED), ghosts: Ghosts::new(ghosts(slots)) }
    }

    fn resize(&mut self, slots: usize) {
        self.fifos.resize(slots);
        self.ghosts.resize(ghosts(slots));
    }

    fn moved(&mut self, links: &mut Links, from: u32, to: u32) {
        self.fifos.moved(links, from, to);
    }

    fn admit(&mut self, slot: u32, key: u64) {
        let back = self.ghosts.take(key).is_some();
        self.fifos.admit(slot, back);
    }

    #[inline]
    fn hit(&mut self, _links: &mut Links, slot: u32) {
        self.fifos.hit(slot);
    }

    fn link(&mut self, links: &mut Links, slot: u32) {
        self.fifos.link(links, slot, &mut self.ghosts);
    }

    fn unlink(&mut self, links: &mut Links, slot: u32) {
        self.fifos.unlink(links, slot, &mut self.ghosts);
    }

    fn victim(&mut self, links: &mut Links, pages: &impl Pages) -> Option<u32> {
        self.fifos.victim(links, pages, &mut self.ghosts)
    }

    fn remembers(&self, key: u64) -> bool {
        self.ghosts.age(key).is_some()
    }

    fn memory_bytes(&self) -> usize {
        self.fifos.memory_bytes() + self.ghosts.memory_bytes()
    }
}
