//! The medium of a namespace, with a volatile cache in front that a power cut empties.

use std::collections::BTreeSet;
use std::ops::Range;

use super::zone::Zones;

/// A namespace of the model.
#[derive(Clone, Copy, Debug)]
pub struct ModelNamespace {
    /// Size of a block as a power of two (LBADS).
    pub lbads: u8,
    /// The guard of its protection information: 0 for 16 bits, 1 for 32, 2 for 64.
    pub guard: u8,
    /// Number of blocks.
    pub blocks: u64,
    /// Bytes of metadata a block (MS).
    pub metadata: u16,
    /// The metadata follows each block's data (FLBAS bit 4).
    pub interleaved: bool,
    /// Type of its protection information (DPS bits 2:0).
    pub protection: u8,
    /// Protection information in the first bytes of the metadata (DPS bit 3).
    pub protection_first: bool,
    /// Blocks in a zone; 0 for a namespace that is not zoned.
    pub zone_blocks: u64,
    /// Blocks that can be written in a zone.
    pub zone_capacity: u64,
    /// Zones that can be open at once; 0 is no limit.
    pub zones_open_max: u32,
    /// Write protected (NSATTR).
    pub read_only: bool,
}

impl ModelNamespace {
    /// `size_bytes` in blocks of `block_size`, a power of two.
    pub fn new(size_bytes: u64, block_size: u64) -> Self {
        let lbads = block_size.trailing_zeros() as u8;
        Self {
            lbads,
            guard: 0,
            blocks: size_bytes >> lbads,
            metadata: 0,
            interleaved: false,
            protection: 0,
            protection_first: false,
            zone_blocks: 0,
            zone_capacity: 0,
            zones_open_max: 0,
            read_only: false,
        }
    }

    /// Data in bytes.
    pub(super) const fn size_bytes(&self) -> u64 {
        // One of an impossible format has no size to speak of.
        if self.lbads > 16 { 0 } else { self.blocks << self.lbads }
    }

    /// The same in zones of `zone_blocks`, of which `capacity` can be written.
    #[must_use]
    pub const fn zoned(self, zone_blocks: u64, capacity: u64) -> Self {
        Self { zone_blocks, zone_capacity: capacity, ..self }
    }
}

#[derive(Debug)]
pub(super) struct Medium {
    pub(super) namespace: ModelNamespace,
    /// Whether this controller has it.
    pub(super) attached: bool,
    /// It is another than the one that was there at the start.
    pub(super) replaced: bool,
    /// What reads give: each block's data, then its metadata.
    now: Vec<u8>,
    /// What survives a power cut.
    stable: Vec<u8>,
    /// Where the two differ.
    unstable: Vec<Range<usize>>,
    /// Blocks that cannot be read until rewritten.
    pub(super) bad: BTreeSet<u64>,
    pub(super) zones: Zones,
}

impl Medium {
    pub(super) fn new(namespace: ModelNamespace) -> Self {
        let mut medium = Self {
            namespace,
            attached: true,
            replaced: false,
            now: Vec::new(),
            stable: Vec::new(),
            unstable: Vec::new(),
            bad: BTreeSet::new(),
            zones: Zones::new(&namespace),
        };
        medium.erase();
        medium
    }

    /// Everything reads as zeroes, stably, in the format and the size that it has now.
    pub(super) fn erase(&mut self) {
        // A namespace of an impossible format is there to be refused, not to hold anything.
        let possible = (9..=12).contains(&self.namespace.lbads);
        let len = if possible { self.namespace.blocks as usize * self.stride() } else { 0 };
        self.now = vec![0; len];
        self.stable = vec![0; len];
        self.unstable.clear();
        self.bad.clear();
        self.zones = Zones::new(&self.namespace);
    }

    /// Another number of blocks; what is within both stays.
    pub(super) fn resize(&mut self, blocks: u64) {
        self.flush();
        self.namespace.blocks = blocks;
        let len = blocks as usize * self.stride();
        self.now.resize(len, 0);
        self.stable.resize(len, 0);
    }

    /// Bytes of a block with its metadata.
    pub(super) fn stride(&self) -> usize {
        (1 << self.namespace.lbads) + usize::from(self.namespace.metadata)
    }

    /// The bytes of a range of blocks; `None` when it is not all there.
    pub(super) fn range(&self, slba: u64, blocks: u64) -> Option<Range<usize>> {
        let end = slba.checked_add(blocks)?;
        if end > self.namespace.blocks {
            return None;
        }
        let at = |lba: u64| lba as usize * self.stride();
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
        let stride = self.stride();
        let lba = |at: usize| (at / stride) as u64;
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
