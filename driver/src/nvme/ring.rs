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
    /// How far the controller says it has fetched, as its completions say it: this queue's identifier
    /// in the upper half and the head in the lower.
    head: u32,
    /// How much further the head may go before it is past what is committed, or wraps.
    room: u32,
}

impl SubmissionRing {
    /// The ring of queue `qid` for `depth` commands, zeroed; `None` when the pool has no room for it.
    pub(super) fn new(pool: &DmaPool, qid: u16, depth: u16) -> Option<Self> {
        let region = pool.take_region(frames_for(depth).0)?;
        let mask = (entries_for(depth) - 1) as u16;
        Some(Self { region, mask, tail: 0, committed: 0, head: u32::from(qid) << 16, room: 0 })
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
        self.update_room();
        Some(self.tail)
    }

    /// Takes the identifier and the head that a completion says; whether they can be.
    ///
    /// Both are one comparison: as long as the queue is the right one and the head does not wrap, they
    /// grow together by what was fetched, and by no more than the room.
    #[inline]
    pub(super) fn fetched(&mut self, cqe: Cqe) -> Result<(), BadFetch> {
        let head = cqe.word as u32;
        let ahead = head.wrapping_sub(self.head);
        if ahead > self.room {
            return self.fetched_otherwise(cqe);
        }
        self.head = head;
        self.room -= ahead;
        Ok(())
    }

    /// The head wrapped, or something is wrong.
    #[cold]
    fn fetched_otherwise(&mut self, cqe: Cqe) -> Result<(), BadFetch> {
        if u32::from(cqe.sqid()) != self.head >> 16 {
            return Err(BadFetch::Queue);
        }
        let ahead = cqe.sqhd().wrapping_sub(self.head as u16) & self.mask;
        if cqe.sqhd() > self.mask || ahead > self.unfetched_of(self.committed) {
            return Err(BadFetch::Head);
        }
        self.head = cqe.word as u32;
        self.update_room();
        Ok(())
    }

    fn update_room(&mut self) {
        let until_wrap = self.mask - self.head as u16;
        self.room = self.unfetched_of(self.committed).min(until_wrap).into();
    }

    fn unfetched_of(&self, tail: u16) -> u16 {
        tail.wrapping_sub(self.head as u16) & self.mask
    }

    /// How many entries the controller has not said to have fetched.
    #[inline]
    pub(super) fn unfetched(&self) -> u16 {
        self.unfetched_of(self.tail)
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

/// What cannot be about what a completion says was fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadFetch {
    /// It is of another queue.
    Queue,
    /// The head is outside of what was committed.
    Head,
}

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
        // Looked up once a batch, and once more when it wraps: up to there the phase stays the same.
        let entries = self.region.words().as_chunks().0;
        let (mut count, mut more) = (0, true);
        while more {
            let (start, phase) = (usize::from(self.head), self.phase);
            let limit = (usize::from(self.mask) + 1 - start).min(budget - count);
            let mut taken = 0;
            for entry in &entries[start..start + limit] {
                let then = peek(entry, phase).map_or(Drain::Refuse, &mut take);
                if then == Drain::Refuse {
                    more = false;
                    break;
                }
                taken += 1;
                if then == Drain::Stop {
                    more = false;
                    break;
                }
            }
            count += taken;
            more &= count < budget;
            self.head = (start + taken) as u16 & self.mask;
            if taken > 0 && self.head == 0 {
                self.phase ^= PHASE;
            }
        }
        count
    }

    /// Dword 0 of the completion that `peek` gave.
    pub(super) fn dw0(&self) -> u32 {
        let word = &self.region.words()[usize::from(self.head) * CQE_WORDS];
        u64::from_le(word.load(Ordering::Relaxed)) as u32
    }

    /// Dwords 0 and 1 of the completion that `peek` gave.
    pub(super) fn value(&self) -> u64 {
        let word = &self.region.words()[usize::from(self.head) * CQE_WORDS];
        u64::from_le(word.load(Ordering::Relaxed))
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

    fn says(sqid: u16, sqhd: u16) -> Cqe {
        Cqe { word: u64::from(sqid) << 16 | u64::from(sqhd) }
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
        let mut ring = SubmissionRing::new(&pool(), 7, 3).unwrap();
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
            assert_eq!(ring.fetched(says(7, tail)), Ok(()));
            assert_eq!(ring.unfetched(), 0);
        }
    }

    #[test]
    fn a_head_outside_of_what_was_committed_is_refused() {
        let mut ring = SubmissionRing::new(&pool(), 7, 3).unwrap();
        let head = Err(BadFetch::Head);
        ring.advance();
        assert_eq!(ring.fetched(says(7, 1)), head, "built, not committed");
        ring.commit();
        assert_eq!(ring.fetched(says(7, 2)), head, "past the tail");
        assert_eq!(ring.fetched(says(7, 4)), head, "no such entry");
        assert_eq!(ring.fetched(says(7, u16::MAX)), head);
        assert_eq!(ring.fetched(says(7, 0)), Ok(()), "not moved");
        assert_eq!(ring.fetched(says(7, 1)), Ok(()));
        assert_eq!(ring.fetched(says(7, 0)), head, "moved back");
        for sqid in [0, 6, 8, u16::MAX] {
            assert_eq!(ring.fetched(says(sqid, 1)), Err(BadFetch::Queue), "{sqid}");
        }
    }

    /// The quick comparison against the definition, on every state of a ring of eight.
    #[test]
    fn a_head_is_taken_exactly_when_it_lies_between_the_last_one_and_the_tail() {
        for start in 0..8u16 {
            for committed in 0..8u16 {
                for (sqid, sqhd) in (6..9).flat_map(|sqid| (0..20).map(move |sqhd| (sqid, sqhd))) {
                    let mut ring = SubmissionRing::new(&pool(), 7, 7).unwrap();
                    for _ in 0..start {
                        ring.advance();
                        ring.commit();
                    }
                    assert_eq!(ring.fetched(says(7, start)), Ok(()));
                    (0..committed).for_each(|_| ring.advance());
                    ring.commit();
                    let good = (0..=committed).any(|ahead| (start + ahead) % 8 == sqhd);
                    let want = match (sqid == 7, good) {
                        (false, _) => Err(BadFetch::Queue),
                        (true, false) => Err(BadFetch::Head),
                        (true, true) => Ok(()),
                    };
                    assert_eq!(ring.fetched(says(sqid, sqhd)), want, "{start} {committed} {sqhd}");
                }
            }
        }
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
