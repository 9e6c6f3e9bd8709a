//! Frames of one pool that nobody uses, given out in the order in which they lie in memory.
//!
//! A request for pages that follow each other gets frames that follow each other, as long as there are
//! some: a device then moves one piece where it would have moved many. It matters most where a list of pieces
//! costs the most: a virtio disk gave 0.8 GB/s into single frames at random, 1.9 GB/s into pieces of 32 KiB.

use std::fmt;
use std::ptr::NonNull;

use super::{DmaBuf, PoolInner};

/// Frames in a word.
const WORD: usize = u64::BITS as usize;

/// Frames of one pool that nobody uses: a bit for each, from the lowest of them that there ever was to the
/// highest. Taking one looks on from the last that was taken, and begins again at the end.
///
/// # Invariants
///
/// A bit is set for each frame whose only handle was pushed and not popped since; that handle was forgotten,
/// so its count and its hold on the pool are the set's. All are of the pool that `pool` points to.
#[derive(Default)]
pub struct FrameSet {
    pool: Option<NonNull<PoolInner>>,
    words: Vec<u64>,
    /// A bit for each word that is not zero: with few frames in a wide set, words are not looked through.
    used: Vec<u64>,
    /// The frame of the first bit; a multiple of [`WORD`].
    first: usize,
    len: usize,
    /// The bit that is looked at first.
    next: usize,
}

// SAFETY: it is a number of handles to frames, which are Send; `pool` is nothing but part of them.
unsafe impl Send for FrameSet {}

impl FrameSet {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> usize {
        (self.words.capacity() + self.used.capacity()) * size_of::<u64>()
    }

    /// Puts a frame in, by its only handle. Allocates for one that lies outside of all that there were
    /// before; [`extend`](Extend::extend) makes room for many at once.
    ///
    /// # Panics
    ///
    /// When it is of another pool than the others, or shared.
    #[inline]
    pub fn push(&mut self, frame: DmaBuf) {
        assert!(!frame.is_shared(), "a frame that is in use");
        let pool = *self.pool.get_or_insert(frame.pool);
        assert!(pool == { frame.pool }, "a frame of another pool");
        let index = frame.index as usize;
        if !self.covers(index) {
            self.cover(index, index);
        }
        let bit = index - self.first;
        debug_assert_eq!(self.words[bit / WORD] >> (bit % WORD) & 1, 0, "frame {index} twice");
        self.words[bit / WORD] |= 1 << (bit % WORD);
        self.used[bit / WORD / WORD] |= 1 << (bit / WORD % WORD);
        if self.len == 0 {
            // The only one there is: nothing to look for.
            self.next = bit;
        }
        self.len += 1;
        std::mem::forget(frame);
    }

    /// Takes a frame: the next in memory after the last that was taken.
    #[inline]
    pub fn pop(&mut self) -> Option<DmaBuf> {
        if self.len == 0 {
            return None;
        }
        let bit = self.find();
        let word = &mut self.words[bit / WORD];
        *word &= !(1 << (bit % WORD));
        if *word == 0 {
            self.used[bit / WORD / WORD] &= !(1 << (bit / WORD % WORD));
        }
        self.len -= 1;
        self.next = bit + 1;
        // The handle that `push` forgot, by the invariant: again the frame's only one.
        self.pool.map(|pool| DmaBuf { pool, index: (self.first + bit) as u32 })
    }

    /// The first bit that is set from `next` on, or from the beginning. There is one.
    #[inline]
    fn find(&self) -> usize {
        first_from(&self.words, self.next).unwrap_or_else(|| self.find_beyond())
    }

    fn find_beyond(&self) -> usize {
        let from = self.next / WORD + 1;
        let word = first_from(&self.used, from).or_else(|| {
            let mut places = (from / WORD + 1..self.used.len()).chain(0..self.used.len());
            let place = places.find(|&place| self.used[place] != 0)?;
            Some(place * WORD + self.used[place].trailing_zeros() as usize)
        });
        let Some(word) = word else { unreachable!("{} frames without a bit", self.len) };
        word * WORD + self.words[word].trailing_zeros() as usize
    }

    fn covers(&self, index: usize) -> bool {
        (self.first..self.first + self.words.len() * WORD).contains(&index)
    }

    /// Makes room for the frames from `lowest` to `highest`.
    fn cover(&mut self, lowest: usize, highest: usize) {
        if self.words.is_empty() {
            self.first = lowest / WORD * WORD;
        }
        let below = self.first.saturating_sub(lowest).div_ceil(WORD);
        let end = self.first + self.words.len() * WORD;
        let above = (highest + 1).saturating_sub(end).div_ceil(WORD);
        self.words.reserve_exact(below + above);
        self.words.splice(0..0, std::iter::repeat_n(0, below));
        self.words.resize(self.words.len() + above, 0);
        self.first -= below * WORD;
        self.next += below * WORD;
        self.used = self
            .words
            .chunks(WORD)
            .map(|words| {
                let bits = words.iter().enumerate().filter(|(_, word)| **word != 0);
                bits.fold(0, |used, (bit, _)| used | 1 << bit)
            })
            .collect();
    }
}

/// The first bit from `bit` on that is set in its own word.
#[inline]
fn first_from(words: &[u64], bit: usize) -> Option<usize> {
    let rest = words.get(bit / WORD)? & (u64::MAX << (bit % WORD));
    (rest != 0).then(|| bit / WORD * WORD + rest.trailing_zeros() as usize)
}

impl Drop for FrameSet {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}

impl Extend<DmaBuf> for FrameSet {
    fn extend<T: IntoIterator<Item = DmaBuf>>(&mut self, frames: T) {
        let frames: Vec<DmaBuf> = frames.into_iter().collect();
        let indexes = || frames.iter().map(|frame| frame.index as usize);
        let (Some(lowest), Some(highest)) = (indexes().min(), indexes().max()) else { return };
        self.cover(lowest, highest);
        let was_empty = self.is_empty();
        frames.into_iter().for_each(|frame| self.push(frame));
        if was_empty {
            self.next = lowest - self.first;
        }
    }
}

impl fmt::Debug for FrameSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrameSet({} frames)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::{DmaPool, PoolOptions};

    fn pool(frames: usize) -> DmaPool {
        DmaPool::new(PoolOptions::frames(frames)).unwrap()
    }

    fn all(pool: &DmaPool) -> Vec<DmaBuf> {
        std::iter::from_fn(|| pool.take()).collect()
    }

    #[test]
    fn frames_come_in_the_order_of_their_addresses_and_each_once() {
        let pool = pool(200);
        let mut set = FrameSet::default();
        assert!(set.pop().is_none());
        let mut frames = all(&pool);
        fastrand::Rng::with_seed(1).shuffle(&mut frames);
        set.extend(frames);
        assert_eq!((set.len(), pool.free_frames()), (200, 0));
        for index in 0..150 {
            let frame = set.pop().unwrap();
            assert!(!frame.is_shared(), "a frame that was taken out has its count again");
            assert_eq!(frame.index(), index);
            if index % 3 == 0 {
                // What comes back behind is not what comes next.
                set.push(frame);
            }
        }
        assert_eq!((set.len(), pool.free_frames()), (100, 100));
        let rest: Vec<u32> = std::iter::from_fn(|| set.pop()).map(|frame| frame.index()).collect();
        let want: Vec<u32> = (150..200).chain((0..150).filter(|index| index % 3 == 0)).collect();
        assert_eq!(rest, want);
        drop(set);
        assert_eq!(pool.free_frames(), 200);
    }

    #[test]
    fn a_set_of_frames_against_an_ordered_set_of_numbers() {
        for seed in 0..50 {
            let mut rng = fastrand::Rng::with_seed(seed);
            // Of more than 4096 words' worth now and then, and with few frames in it.
            let frames = if seed % 5 == 0 { 9000 } else { 700 };
            let pool = pool(frames);
            let mut out = all(&pool);
            rng.shuffle(&mut out);
            let unused = out.split_off(if seed % 2 == 0 { 700 } else { 20 });
            let (mut set, mut model) = (FrameSet::default(), std::collections::BTreeSet::new());
            let mut last = 0;
            for _ in 0..2000 {
                if rng.bool() && !out.is_empty() {
                    let frame = out.swap_remove(rng.usize(..out.len()));
                    if model.is_empty() {
                        last = frame.index();
                    }
                    model.insert(frame.index());
                    set.push(frame);
                } else {
                    let want = model.range(last..).next().or_else(|| model.iter().next()).copied();
                    let got = set.pop();
                    assert_eq!(got.as_ref().map(DmaBuf::index), want, "seed {seed}");
                    if let Some(frame) = got {
                        model.remove(&frame.index());
                        last = frame.index() + 1;
                        out.push(frame);
                    }
                }
                assert_eq!(set.len(), model.len(), "seed {seed}");
            }
            drop((set, out, unused));
            assert_eq!(pool.free_frames(), frames, "seed {seed}");
        }
    }

    #[test]
    #[should_panic(expected = "a frame that is in use")]
    fn a_frame_that_somebody_uses_is_not_put_in() {
        let frame = pool(1).take().unwrap();
        let used = frame.share();
        FrameSet::default().push(frame);
        drop(used);
    }

    #[test]
    #[should_panic(expected = "a frame of another pool")]
    fn a_frame_of_another_pool_is_not_put_in() {
        let mut set = FrameSet::default();
        set.push(pool(1).take().unwrap());
        set.push(pool(1).take().unwrap());
    }
}
