//! Submission and completion rings, in place in DMA memory (Base 2.0c §3.3.1).
//!
//! Both have a power-of-two number of entries, so that an index wraps with a mask. One entry stays
//! unused: head = tail is an empty ring. Indexes never go past the ring by arithmetic; what the device
//! says is checked before it becomes one.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::dma::{DmaPool, DmaRing, FRAME_SIZE};

use super::spec::Status;
use super::spec::command::{CQE_SIZE, SQE_SIZE};

const SQE_WORDS: usize = SQE_SIZE / 8;
const CQE_WORDS: usize = CQE_SIZE / 8;

/// The fewest entries of a completion ring: a page of them.
const COMPLETIONS_MIN: u32 = (FRAME_SIZE / CQE_SIZE) as u32;

/// Entries of a submission ring for `depth` commands in flight: one stays unused.
pub(super) fn entries_for(depth: u16) -> u32 {
    (u32::from(depth) + 1).next_power_of_two()
}

/// Entries of a completion ring for `depth` commands, when the controller takes rings of any size:
/// twice as many, so that the controller need not be told of each completion that was taken.
fn completions_for(depth: u16) -> u32 {
    (2 * entries_for(depth)).max(COMPLETIONS_MIN)
}

/// Frames of the two rings for `depth` commands, at most.
pub(super) fn frames_for(depth: u16) -> (usize, usize) {
    let frames = |entries: u32, size: usize| (entries as usize * size).div_ceil(FRAME_SIZE);
    (frames(entries_for(depth), SQE_SIZE), frames(completions_for(depth), CQE_SIZE))
}

/// The ring that commands are built in.
#[derive(Debug)]
pub(super) struct SubmissionRing {
    ring: DmaRing<SQE_WORDS>,
    /// Where the next command is built; wraps by the mask.
    tail: u32,
    /// What the doorbell was last rung with.
    committed: u32,
    /// How far the controller says it has fetched, as its completions say it.
    head: u16,
    qid: u16,
}

impl SubmissionRing {
    /// The ring of queue `qid` for `depth` commands, zeroed; `None` when the pool has no room for it.
    pub(super) fn new(pool: &DmaPool, qid: u16, depth: u16) -> Option<Self> {
        let region = pool.take_region(frames_for(depth).0)?;
        let ring = DmaRing::new(region, entries_for(depth) as usize);
        Some(Self { ring, tail: 0, committed: 0, head: 0, qid })
    }

    pub(super) fn iova(&self) -> u64 {
        self.ring.iova().0
    }

    /// Size of the ring, 0's based, as the commands and registers that make queues want it.
    pub(super) fn size_zero_based(&self) -> u16 {
        self.mask()
    }

    fn mask(&self) -> u16 {
        self.ring.mask() as u16
    }

    /// The words of the next entry, to be written in place. They hold what was last built there; words
    /// that no command of the queue ever writes stay zero from the start.
    #[inline]
    pub(super) fn entry(&self) -> &[AtomicU64; SQE_WORDS] {
        self.ring.at(self.tail)
    }

    /// Takes the entry that was built into the ring.
    ///
    /// There is room: no more commands are in flight than entries less one, and each occupies one
    /// entry from here until at the latest its completion ([`SubmissionRing::fetched`]).
    #[inline]
    pub(super) fn advance(&mut self) {
        self.tail = self.tail.wrapping_add(1);
    }

    /// The tail to ring the doorbell with; `None` when nothing was built since the last time.
    #[inline]
    pub(super) fn commit(&mut self) -> Option<u16> {
        if self.tail == self.committed {
            return None;
        }
        self.committed = self.tail;
        Some(self.tail as u16 & self.mask())
    }

    /// Takes the identifier and the head that the last completion of a batch says; whether they can be.
    /// What the ones before it said of the head is not used for anything.
    ///
    /// A head that lags behind is not taken: controllers whose cores post beside each other say what
    /// each knew. It can be told from one past the tail while it lags by at most half of a ring.
    #[inline]
    pub(super) fn fetched(&mut self, cqe: Cqe) -> Result<(), BadFetch> {
        if cqe.sqid() != self.qid {
            return Err(BadFetch::Queue);
        }
        let ahead = cqe.sqhd().wrapping_sub(self.head) & self.mask();
        if cqe.sqhd() > self.mask() || ahead > self.unfetched_of(self.committed) {
            return self.lagging(cqe);
        }
        self.head = cqe.sqhd();
        Ok(())
    }

    #[cold]
    fn lagging(&self, cqe: Cqe) -> Result<(), BadFetch> {
        let behind = self.head.wrapping_sub(cqe.sqhd()) & self.mask();
        match cqe.sqhd() <= self.mask() && behind <= self.lag_max() {
            true => Ok(()),
            false => Err(BadFetch::Head),
        }
    }

    /// By how many entries the head may lag behind what was fetched.
    #[inline]
    pub(super) fn lag_max(&self) -> u16 {
        self.mask() / 2
    }

    /// The identifiers of the commands that were built and are not committed.
    pub(super) fn uncommitted(&self) -> impl Iterator<Item = u16> + '_ {
        let count = self.tail.wrapping_sub(self.committed);
        (0..count).map(|at| {
            let word = self.ring.at(self.committed.wrapping_add(at))[0].load(Ordering::Relaxed);
            (u64::from_le(word) >> 16) as u16
        })
    }

    #[inline]
    fn unfetched_of(&self, tail: u32) -> u16 {
        (tail as u16).wrapping_sub(self.head) & self.mask()
    }

    /// How many entries the controller has not said to have fetched.
    #[inline]
    pub(super) fn unfetched(&self) -> u16 {
        self.unfetched_of(self.tail)
    }

    /// Starts at the first entry again, as the controller does with a queue that is made anew. Only
    /// while the controller does not know of the ring.
    pub(super) fn reset(&mut self) {
        (self.tail, self.committed, self.head) = (0, 0, 0);
    }

    /// Gives the memory up for ever: the device may still read it.
    pub(super) fn leak(&mut self) {
        self.ring.leak();
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

const PHASE: u64 = 1 << 48;

/// What tells an ordinary completion: it is new, of this queue's submission queue, and its SCT and SC
/// are 0. The other bits of the status do not make an error.
const ORDINARY: u64 = PHASE | 0xffff << 16 | 0x7ff << 49;

/// The ring that completions come in.
#[derive(Debug)]
pub(super) struct CompletionRing {
    ring: DmaRing<CQE_WORDS>,
    head: u16,
    /// The submission queue's identifier and the phase bit of an entry that is new, each in its place
    /// in an entry's second word: an ordinary completion has nothing else in [`ORDINARY`].
    ordinary: u64,
    /// How many were taken that the controller was not told of.
    untold: u16,
    /// With how many of these it is told.
    told_every: u16,
}

/// What cannot be about what a completion says was fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadFetch {
    /// It is of another queue.
    Queue,
    /// The head is outside of what was committed.
    Head,
}

impl CompletionRing {
    /// The ring for the completions of queue `qid` of `depth` commands, zeroed, of at most
    /// `entries_max` entries, which are more than `depth`; `None` when the pool has no room for it.
    pub(super) fn new(pool: &DmaPool, qid: u16, depth: u16, entries_max: u32) -> Option<Self> {
        // A power of two that is above the depth and not above the most: there is one, because the
        // submission ring is one.
        let entries = completions_for(depth).min(1 << entries_max.ilog2());
        let entries = entries.max(entries_for(depth));
        let region = pool.take_region((entries as usize * CQE_SIZE).div_ceil(FRAME_SIZE))?;
        // A zeroed ring is all of phase 0, so the first pass's new entries are of phase 1.
        Some(Self {
            ring: DmaRing::new(region, entries as usize),
            head: 0,
            ordinary: PHASE | u64::from(qid) << 16,
            untold: 0,
            // What it may still complete and what it does not know to be taken fit in the ring, where
            // one entry stays unused.
            told_every: (entries - u32::from(depth)).min(entries / 2) as u16,
        })
    }

    pub(super) fn iova(&self) -> u64 {
        self.ring.iova().0
    }

    /// Size of the ring, 0's based.
    pub(super) fn size_zero_based(&self) -> u16 {
        self.ring.mask() as u16
    }

    /// The next completion, if there is one.
    #[inline]
    pub(super) fn peek(&self) -> Option<Cqe> {
        // Acquire: pairs with the device's write of the phase bit, the last thing it does; what it
        // wrote to frames before is seen after this. The one load takes the whole half of the entry,
        // so nothing that is checked later can change between check and use.
        let word = u64::from_le(self.ring.at(self.head.into())[1].load(Ordering::Acquire));
        ((word ^ self.ordinary) & PHASE == 0).then_some(Cqe { word })
    }

    /// Takes up to `most` ordinary completions out, as long as `take` takes them; how many. Ends at
    /// the first that is not there, not ordinary, or not taken.
    #[inline]
    pub(super) fn drain(&mut self, most: usize, mut take: impl FnMut(Cqe) -> bool) -> usize {
        let mut count = 0;
        loop {
            // Up to where the ring wraps the phase stays the same.
            let (start, ordinary) = (usize::from(self.head), self.ordinary);
            let records = &self.ring.records()[start..];
            let run = records.len().min(most - count);
            let mut taken = 0;
            for record in &records[..run] {
                // Acquire: as in `peek`.
                let word = u64::from_le(record[1].load(Ordering::Acquire));
                if (word ^ ordinary) & ORDINARY != 0 || !take(Cqe { word }) {
                    break;
                }
                taken += 1;
            }
            self.advance_by(taken as u16);
            count += taken;
            if taken < run || count == most {
                return count;
            }
        }
    }

    /// Dwords 0 and 1 of the completion that `peek` gave.
    pub(super) fn value(&self) -> u64 {
        u64::from_le(self.ring.at(self.head.into())[0].load(Ordering::Relaxed))
    }

    /// Moves on to the next entry.
    #[inline]
    pub(super) fn advance(&mut self) {
        self.advance_by(1);
    }

    /// Moves on by up to as many entries as are left before the ring wraps.
    #[inline]
    fn advance_by(&mut self, count: u16) {
        self.head = (self.head + count) & self.size_zero_based();
        if count > 0 && self.head == 0 {
            self.ordinary ^= PHASE;
        }
        self.untold += count;
    }

    /// The head to ring the doorbell with, when the controller must be told now.
    #[inline]
    pub(super) fn due(&mut self) -> Option<u16> {
        if self.untold < self.told_every { None } else { self.tell() }
    }

    /// The head to ring the doorbell with, when there is anything to tell.
    #[inline]
    pub(super) fn tell(&mut self) -> Option<u16> {
        let untold = std::mem::take(&mut self.untold);
        (untold > 0).then_some(self.head)
    }

    /// Empties the ring and starts at its first entry again. Only while the controller does not know of
    /// it: completions of before would pass for new ones.
    pub(super) fn reset(&mut self) {
        self.ring.records().iter().flatten().for_each(|word| word.store(0, Ordering::Relaxed));
        (self.head, self.untold) = (0, 0);
        self.ordinary |= PHASE;
    }

    /// Gives the memory up for ever: the device may still write it.
    pub(super) fn leak(&mut self) {
        self.ring.leak();
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
        assert_eq!(frames_for(1023), (16, 8));
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
        assert_eq!(ring.fetched(says(7, 0)), Ok(()), "it lags behind");
        assert_eq!(ring.head, 1, "which moves nothing");
        for sqid in [0, 6, 8, u16::MAX] {
            assert_eq!(ring.fetched(says(sqid, 1)), Err(BadFetch::Queue), "{sqid}");
        }
    }

    #[test]
    fn a_head_is_good_between_the_last_one_and_the_tail_and_up_to_half_a_ring_behind() {
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
                    let ahead = (0..=committed).any(|ahead| (start + ahead) % 8 == sqhd);
                    let good = ahead || (1..=3).any(|behind| (start + 8 - behind) % 8 == sqhd);
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

    /// Whatever the depth and the controller's limit: what is in flight and what the controller was
    /// not told of never fill the ring, which has one entry that stays unused.
    #[test]
    fn a_completion_ring_is_never_full() {
        let pool = DmaPool::new(PoolOptions::frames(64)).unwrap();
        for depth in [1, 2, 3, 7, 31, 32, 63, 64, 127, 128, 255, 256, 511, 1000, 1023] {
            for entries_max in [entries_for(depth), 2 * entries_for(depth), 1000, 1 << 16] {
                if entries_max <= depth.into() {
                    continue;
                }
                let ring = CompletionRing::new(&pool, 1, depth, entries_max).unwrap();
                let entries = u32::from(ring.size_zero_based()) + 1;
                assert!(entries <= entries_max.max(entries_for(depth)), "{depth} {entries_max}");
                assert!(ring.told_every > 0);
                let most = u32::from(depth) + u32::from(ring.told_every) - 1;
                assert!(most < entries, "depth {depth}: {entries} entries, {most} used");
            }
        }
    }

    #[test]
    fn the_controller_is_told_of_what_was_taken_now_and_then_or_when_asked() {
        let mut ring = CompletionRing::new(&pool(), 1, 3, 8).unwrap();
        assert_eq!(ring.tell(), None, "nothing was taken");
        let heads: Vec<_> = (0..9)
            .map(|_| {
                ring.advance();
                ring.due()
            })
            .collect();
        let want = [None, None, None, Some(4), None, None, None, Some(0), None];
        assert_eq!(heads, want);
        assert_eq!((ring.tell(), ring.tell()), (Some(1), None));
    }

    #[test]
    fn only_ordinary_completions_are_drained() {
        let good = 1 << 48 | 5 << 32 | 7 << 16;
        let cases = [
            (good, 1, "new, of the queue, good"),
            (good | 0x7800 << 49, 1, "DNR, More and a retry delay are no error"),
            (good ^ 1 << 48, 0, "old"),
            (good ^ 1 << 16, 0, "of another queue"),
            (good | 1 << 49, 0, "SC"),
            (good | 0x400 << 49, 0, "SCT"),
        ];
        for (word, taken, what) in cases {
            let mut ring = CompletionRing::new(&pool(), 7, 3, 8).unwrap();
            ring.ring.at(0)[1].store(u64::to_le(word), Ordering::Relaxed);
            assert_eq!(ring.drain(8, |_| true), taken, "{what}");
            assert_eq!(usize::from(ring.head), taken, "{what}");
        }
        let mut ring = CompletionRing::new(&pool(), 7, 3, 8).unwrap();
        ring.ring.at(0)[1].store(u64::to_le(good), Ordering::Relaxed);
        assert_eq!(ring.drain(8, |_| false), 0, "not taken");
        assert_eq!(ring.peek().unwrap().cid(), 5, "still there");
    }

    #[test]
    fn the_phase_tells_new_from_old_on_every_pass() {
        let mut ring = CompletionRing::new(&pool(), 7, 3, 4).unwrap();
        let mut phase = 1u64;
        for count in 0..64u64 {
            assert_eq!(ring.peek(), None, "nothing new at {count}");
            let index = (count % 4) as u32;
            let word = phase << 48 | (count & 0xffff) << 32 | 0x281 << 49 | 7 << 16 | 3;
            ring.ring.at(index)[0].store(count.to_le(), Ordering::Relaxed);
            ring.ring.at(index)[1].store(word.to_le(), Ordering::Release);
            let cqe = ring.peek().unwrap();
            assert_eq!((cqe.sqhd(), cqe.sqid(), cqe.cid()), (3, 7, count as u16));
            assert_eq!(cqe.status(), Status::UNRECOVERED_READ_ERROR);
            assert_eq!(ring.value() as u32, count as u32);
            ring.advance();
            assert_eq!(ring.tell(), Some(((count + 1) % 4) as u16));
            if index == 3 {
                phase ^= 1;
            }
        }
    }
}
