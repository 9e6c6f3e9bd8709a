//! Submission and completion rings, in place in DMA memory (Base 2.0c §3.3.1).
//!
//! Both have a power-of-two number of entries, so that an index wraps with a mask. One entry stays
//! unused: head = tail is an empty ring. Indexes never go past the ring by arithmetic; what the device
//! says is checked before it becomes one.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::dma::{DmaPool, DmaRegion, FRAME_SIZE};

use super::spec::Status;
use super::spec::command::{CQE_SIZE, SQE_SIZE};

const SQE_WORDS: usize = SQE_SIZE / 8;
const CQE_WORDS: usize = CQE_SIZE / 8;

/// Entries of a ring for `depth` commands in flight: one stays unused.
pub(super) fn entries_for(depth: u16) -> u32 {
    (u32::from(depth) + 1).next_power_of_two()
}

/// Frames of the two rings for `depth` commands.
pub(super) fn frames_for(depth: u16) -> (usize, usize) {
    let entries = entries_for(depth) as usize;
    ((entries * SQE_SIZE).div_ceil(FRAME_SIZE), (entries * CQE_SIZE).div_ceil(FRAME_SIZE))
}

/// The ring that commands are built in.
#[derive(Debug)]
pub(super) struct SubmissionRing {
    region: DmaRegion,
    mask: u16,
    /// Where the next command is built.
    tail: u16,
    /// What the doorbell was last rung with.
    committed: u16,
    /// How far the controller says it has fetched.
    head: u16,
}

impl SubmissionRing {
    /// A ring for `depth` commands, zeroed; `None` when the pool has no room for it.
    pub(super) fn new(pool: &DmaPool, depth: u16) -> Option<Self> {
        let region = pool.take_region(frames_for(depth).0)?;
        let mask = (entries_for(depth) - 1) as u16;
        Some(Self { region, mask, tail: 0, committed: 0, head: 0 })
    }

    pub(super) fn iova(&self) -> u64 {
        self.region.iova().0
    }

    /// Size of the ring, 0's based, as the commands and registers that make queues want it.
    pub(super) fn size_zero_based(&self) -> u16 {
        self.mask
    }

    /// The words of the next entry, to be written in place. They hold what was last built there; words
    /// that no command of the queue ever writes stay zero from the start.
    #[inline]
    pub(super) fn entry(&self) -> &[AtomicU64; SQE_WORDS] {
        &self.region.words().as_chunks().0[usize::from(self.tail)]
    }

    /// Takes the entry that was built into the ring.
    ///
    /// There is room: no more commands are in flight than entries less one, and each occupies one
    /// entry from here until at the latest its completion ([`SubmissionRing::fetched`]).
    #[inline]
    pub(super) fn advance(&mut self) {
        self.tail = (self.tail + 1) & self.mask;
    }

    /// The tail to ring the doorbell with; `None` when nothing was built since the last time.
    #[inline]
    pub(super) fn commit(&mut self) -> Option<u16> {
        if self.tail == self.committed {
            return None;
        }
        self.committed = self.tail;
        Some(self.tail)
    }

    /// Takes the controller's SQ Head Pointer; `false` when it lies outside of what was committed.
    #[inline]
    pub(super) fn fetched(&mut self, sqhd: u16) -> bool {
        let ahead = sqhd.wrapping_sub(self.head) & self.mask;
        if sqhd > self.mask || ahead > (self.committed.wrapping_sub(self.head) & self.mask) {
            return false;
        }
        self.head = sqhd;
        true
    }

    /// How many entries the controller has not said to have fetched.
    #[inline]
    pub(super) fn unfetched(&self) -> u16 {
        self.tail.wrapping_sub(self.head) & self.mask
    }

    /// Gives the memory up for ever: the device may still read it.
    pub(super) fn leak(&mut self) {
        self.region.leak();
    }
}

/// One completion, read once out of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cqe {
    /// The entry's second half: SQHD, SQID, CID, phase and status.
    word: u64,
}

impl Cqe {
    #[inline]
    pub(super) fn sqhd(self) -> u16 {
        self.word as u16
    }

    #[inline]
    pub(super) fn sqid(self) -> u16 {
        (self.word >> 16) as u16
    }

    #[inline]
    pub(super) fn cid(self) -> u16 {
        (self.word >> 32) as u16
    }

    #[inline]
    pub(super) fn status(self) -> Status {
        Status((self.word >> 49) as u16)
    }
}

/// The ring that completions come in.
#[derive(Debug)]
pub(super) struct CompletionRing {
    region: DmaRegion,
    mask: u16,
    head: u16,
    /// The phase bit of an entry that is new, in its place in the entry's second word.
    phase: u64,
}

const PHASE: u64 = 1 << 48;

/// How to go on after a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drain {
    /// It is taken: the next one.
    Next,
    /// It is taken: enough.
    Stop,
    /// It is not taken.
    Refuse,
}

#[inline]
fn peek(entry: &[AtomicU64; CQE_WORDS], phase: u64) -> Option<Cqe> {
    // Acquire: pairs with the device's write of the phase bit, the last thing it does; what it wrote
    // to frames before is seen after this. The one load takes the whole half of the entry, so nothing
    // that is checked later can change between check and use.
    let word = u64::from_le(entry[1].load(Ordering::Acquire));
    (word & PHASE == phase).then_some(Cqe { word })
}

impl CompletionRing {
    /// A ring for `depth` commands, zeroed; `None` when the pool has no room for it.
    pub(super) fn new(pool: &DmaPool, depth: u16) -> Option<Self> {
        let region = pool.take_region(frames_for(depth).1)?;
        // A zeroed ring is all of phase 0, so the first pass's new entries are of phase 1.
        Some(Self { region, mask: (entries_for(depth) - 1) as u16, head: 0, phase: PHASE })
    }

    pub(super) fn iova(&self) -> u64 {
        self.region.iova().0
    }

    /// Size of the ring, 0's based.
    pub(super) fn size_zero_based(&self) -> u16 {
        self.mask
    }

    /// The next completion, if there is one.
    #[inline]
    pub(super) fn peek(&self) -> Option<Cqe> {
        let entries = self.region.words().as_chunks().0;
        peek(&entries[usize::from(self.head)], self.phase)
    }

    /// Takes up to `budget` completions out, each by a call of `take`, which says how to go on; how
    /// many were taken.
    #[inline]
    pub(super) fn drain(&mut self, budget: usize, mut take: impl FnMut(Cqe) -> Drain) -> usize {
        // Looked up once a batch; the head and the phase stay in registers.
        let entries = self.region.words().as_chunks().0;
        let (mut head, mut phase) = (self.head, self.phase);
        let mut count = 0;
        while count < budget {
            let Some(cqe) = peek(&entries[usize::from(head)], phase) else { break };
            let then = take(cqe);
            if then == Drain::Refuse {
                break;
            }
            count += 1;
            head = (head + 1) & self.mask;
            if head == 0 {
                phase ^= PHASE;
            }
            if then == Drain::Stop {
                break;
            }
        }
        self.head = head;
        self.phase = phase;
        count
    }

    /// Dword 0 of the completion that `peek` gave.
    pub(super) fn dw0(&self) -> u32 {
        let word = &self.region.words()[usize::from(self.head) * CQE_WORDS];
        u64::from_le(word.load(Ordering::Relaxed)) as u32
    }

    /// Moves on to the next entry.
    #[inline]
    pub(super) fn advance(&mut self) {
        self.head = (self.head + 1) & self.mask;
        if self.head == 0 {
            self.phase ^= PHASE;
        }
    }

    /// The head, for the doorbell.
    #[inline]
    pub(super) fn head(&self) -> u16 {
        self.head
    }

    /// Gives the memory up for ever: the device may still write it.
    pub(super) fn leak(&mut self) {
        self.region.leak();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::PoolOptions;

    fn pool() -> DmaPool {
        DmaPool::new(PoolOptions::frames(8)).unwrap()
    }

    #[test]
    fn rings_have_one_entry_more_than_the_depth() {
        assert_eq!(entries_for(1), 2);
        assert_eq!(entries_for(3), 4);
        assert_eq!(entries_for(4), 8);
        assert_eq!(entries_for(1023), 1024);
        assert_eq!(entries_for(u16::MAX), 1 << 16);
        assert_eq!(frames_for(63), (1, 1));
        assert_eq!(frames_for(64), (2, 1));
        assert_eq!(frames_for(1023), (16, 4));
    }

    #[test]
    fn a_submission_ring_wraps_and_commits_once() {
        let mut ring = SubmissionRing::new(&pool(), 3).unwrap();
        let mut built = 0u64;
        for round in 0..10u16 {
            for _ in 0..3 {
                ring.entry()[0].store(built, Ordering::Relaxed);
                ring.advance();
                built += 1;
            }
            let tail = (built % 4) as u16;
            assert_eq!(ring.commit(), Some(tail), "round {round}");
            assert_eq!(ring.commit(), None);
            assert_eq!(ring.unfetched(), 3);
            assert!(ring.fetched(tail));
            assert_eq!(ring.unfetched(), 0);
        }
    }

    #[test]
    fn a_head_outside_of_what_was_committed_is_refused() {
        let mut ring = SubmissionRing::new(&pool(), 3).unwrap();
        ring.advance();
        assert!(!ring.fetched(1), "built, not committed");
        ring.commit();
        assert!(!ring.fetched(2), "past the tail");
        assert!(!ring.fetched(4), "no such entry");
        assert!(!ring.fetched(u16::MAX));
        assert!(ring.fetched(0), "not moved");
        assert!(ring.fetched(1));
        assert!(!ring.fetched(0), "moved back");
    }

    #[test]
    fn the_phase_tells_new_from_old_on_every_pass() {
        let mut ring = CompletionRing::new(&pool(), 3).unwrap();
        let mut phase = 1u64;
        for count in 0..64u64 {
            assert_eq!(ring.peek(), None, "nothing new at {count}");
            let index = (count % 4) as usize;
            let word = phase << 48 | (count & 0xffff) << 32 | 0x281 << 49 | 7 << 16 | 3;
            ring.region.words()[index * 2].store(count.to_le(), Ordering::Relaxed);
            ring.region.words()[index * 2 + 1].store(word.to_le(), Ordering::Release);
            let cqe = ring.peek().unwrap();
            assert_eq!((cqe.sqhd(), cqe.sqid(), cqe.cid()), (3, 7, count as u16));
            assert_eq!(cqe.status(), Status::UNRECOVERED_READ_ERROR);
            assert_eq!(ring.dw0(), count as u32);
            ring.advance();
            assert_eq!(ring.head(), ((count + 1) % 4) as u16);
            if index == 3 {
                phase ^= 1;
            }
        }
    }
}
