//! Pages of one operation.

/// A set of pages by their place in an operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageSet([u64; 5]);

impl PageSet {
    /// The first `count` pages.
    pub(crate) fn first(count: usize) -> Self {
        let mut set = Self([0; 5]);
        (0..count).for_each(|at| set.0[at / 64] |= 1 << (at % 64));
        set
    }

    pub(crate) fn insert(&mut self, at: usize) {
        self.0[at / 64] |= 1 << (at % 64);
    }

    pub(crate) fn remove(&mut self, at: usize) {
        self.0[at / 64] &= !(1 << (at % 64));
    }

    pub(crate) fn contains(&self, at: usize) -> bool {
        self.0[at / 64] >> (at % 64) & 1 == 1
    }

    pub(crate) fn next_from(&self, at: usize) -> Option<usize> {
        let mut word = at / 64;
        let mut bits = *self.0.get(word)? & (u64::MAX << (at % 64));
        loop {
            if bits != 0 {
                return Some(word * 64 + bits.trailing_zeros() as usize);
            }
            word += 1;
            bits = *self.0.get(word)?;
        }
    }
}
