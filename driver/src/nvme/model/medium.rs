//! The medium of a namespace, with a volatile cache in front that a power cut empties.

use std::collections::BTreeSet;
use std::ops::Range;

/// A namespace of the model.
#[derive(Clone, Copy, Debug)]
pub struct ModelNamespace {
    /// Size of a block as a power of two (LBADS).
    pub lbads: u8,
    /// Number of blocks.
    pub blocks: u64,
    /// Bytes of metadata a block (MS).
    pub metadata: u16,
    /// Write protected (NSATTR).
    pub read_only: bool,
}

impl ModelNamespace {
    /// `size_bytes` in blocks of `block_size`, a power of two.
    pub fn new(size_bytes: u64, block_size: u64) -> Self {
        let lbads = block_size.trailing_zeros() as u8;
        Self { lbads, blocks: size_bytes >> lbads, metadata: 0, read_only: false }
    }
}

#[derive(Debug)]
pub(super) struct Medium {
    pub(super) namespace: ModelNamespace,
    /// What reads give.
    now: Vec<u8>,
    /// What survives a power cut.
    stable: Vec<u8>,
    /// Where the two differ.
    unstable: Vec<Range<usize>>,
    /// Blocks that cannot be read until rewritten.
    pub(super) bad: BTreeSet<u64>,
}

impl Medium {
    pub(super) fn new(namespace: ModelNamespace) -> Self {
        // A namespace of an impossible format is there to be refused, not to hold anything.
        let possible = (9..=12).contains(&namespace.lbads);
        let len = if possible { (namespace.blocks << namespace.lbads) as usize } else { 0 };
        Self {
            namespace,
            now: vec![0; len],
            stable: vec![0; len],
            unstable: Vec::new(),
            bad: BTreeSet::new(),
        }
    }

    /// The bytes of a range of blocks; `None` when it is not all there.
    pub(super) fn range(&self, slba: u64, blocks: u64) -> Option<Range<usize>> {
        let end = slba.checked_add(blocks)?;
        if end > self.namespace.blocks {
            return None;
        }
        let at = |lba: u64| (lba << self.namespace.lbads) as usize;
        Some(at(slba)..at(end))
    }

    pub(super) fn read(&self, range: Range<usize>) -> &[u8] {
        &self.now[range]
    }

    /// Writes; `write` gets the bytes to change. Stable at once or at the next flush.
    pub(super) fn write(
        &mut self,
        range: Range<usize>,
        stable: bool,
        write: impl FnOnce(&mut [u8]),
    ) {
        write(&mut self.now[range.clone()]);
        let lba = |at: usize| (at >> self.namespace.lbads) as u64;
        let blocks = lba(range.start)..lba(range.end);
        self.bad.retain(|bad| !blocks.contains(bad));
        if stable {
            self.stable[range.clone()].copy_from_slice(&self.now[range]);
        } else {
            self.unstable.push(range);
        }
    }

    pub(super) fn flush(&mut self) {
        for range in self.unstable.drain(..) {
            self.stable[range.clone()].copy_from_slice(&self.now[range]);
        }
    }

    pub(super) fn power_cut(&mut self) {
        for range in self.unstable.drain(..) {
            self.now[range.clone()].copy_from_slice(&self.stable[range]);
        }
    }
}
