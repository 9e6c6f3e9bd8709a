//! Which page goes when a frame is needed.
//!
//! A policy sees the pages of one shard, under its lock, which a hit has taken anyway: to promote
//! a page is a store into its mark, and none when the mark says so already. The cache uses [`Lap`];
//! [`S3Fifo`] and [`Lru`] are there to compare with.
//!
//! Only pages that could go are in a policy's lists. One that is being read, written, or is dirty,
//! is taken out of them and comes back, at the end of the list it was in, when it is clean: so a
//! victim is found without walking over pages that cannot be one, however many are dirty.

mod fifos;
mod ghosts;
mod lap;
mod list;
mod lru;
mod s3fifo;
mod simulator;

pub use lap::{Lap, LapParameters};
pub use list::Links;
pub(crate) use list::List;
pub use lru::Lru;
pub use s3fifo::S3Fifo;
pub use simulator::Simulator;

/// Chooses victims among the pages of one shard. Called under the shard's lock; does not block.
///
/// A page comes in with [`admit`](Policy::admit). From then on it is told of hits, and is
/// [linked](Policy::link) for as long as it could be evicted.
pub trait Policy: Send + Sized {
    /// For `slots` pages.
    fn new(slots: usize) -> Self;

    /// For this many from now on; those that go are not linked.
    fn resize(&mut self, slots: usize);

    /// The page in slot `from`, linked or not, is in `to` from now on, and keeps its place. Nobody is in `to`.
    fn moved(&mut self, links: &mut Links, from: u32, to: u32);

    /// A page came in, in `slot`; `key` names it also after it has left.
    fn admit(&mut self, slot: u32, key: u64);

    /// The page in `slot` was used again.
    fn hit(&mut self, links: &mut Links, slot: u32);

    /// The page in `slot`, which is in no list, can be evicted.
    fn link(&mut self, links: &mut Links, slot: u32);

    /// The page in `slot`, which was linked, cannot be evicted for now, or has left.
    fn unlink(&mut self, links: &mut Links, slot: u32);

    /// The page that goes, of those linked; it is linked no more. `None` when none is usable.
    /// Asks of each page whether it is usable at most a few times.
    fn victim(&mut self, links: &mut Links, pages: &impl Pages) -> Option<u32>;

    /// A page of this key is likely to come in soon: what admitting it looks at can be fetched.
    fn prefetch(&self, key: u64) {
        let _ = key;
    }

    /// Whether the page of this key was evicted not long ago.
    fn remembers(&self, key: u64) -> bool;

    /// Bytes of memory beside [`Links`].
    fn memory_bytes(&self) -> usize;
}

/// What a policy may ask of the pages it chooses among.
pub trait Pages {
    /// Whether the page may go now; a pinned one may not.
    fn usable(&self, slot: u32) -> bool;

    /// The key that the page came in with.
    fn key(&self, slot: u32) -> u64;
}

#[cfg(test)]
mod tests;
