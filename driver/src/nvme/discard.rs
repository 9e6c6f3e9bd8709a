//! Discards that are gathered into one Dataset Management command.
//!
//! Trimming a file system comes as thousands of small discards; a drive does one command with many
//! ranges much faster than many with one. The discards submitted between two commits share a command
//! of up to 256 ranges, and its one completion answers them all: a failed command fails every discard
//! in it, which loses nothing, since a discard promises nothing about the data.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::request::Lba;

use super::spec::IdentifyControllerNvm;
use super::spec::command::DSM_RANGES_MAX;

/// What one Dataset Management command may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DsmLimits {
    /// Ranges in a command.
    pub(super) ranges: u16,
    /// Blocks in a range.
    pub(super) range_blocks: u32,
    /// Blocks in a command.
    pub(super) blocks: u64,
}

impl DsmLimits {
    /// From what the controller reports, where 0 is "not reported"; `None` is a controller from
    /// before there was such a report.
    pub(super) fn new(identify: Option<&IdentifyControllerNvm>) -> Self {
        let most = Self { ranges: DSM_RANGES_MAX as u16, range_blocks: u32::MAX, blocks: u64::MAX };
        let Some(identify) = identify else { return most };
        let reported = |value: u64, most: u64| if value == 0 { most } else { value.min(most) };
        let range_blocks = reported(identify.dmrsl.into(), most.range_blocks.into());
        let blocks = reported(identify.dmsl, most.blocks);
        Self {
            ranges: reported(identify.dmrl.into(), most.ranges.into()) as u16,
            // One range must fit into a command.
            range_blocks: range_blocks.min(blocks) as u32,
            blocks,
        }
    }
}

/// The command that is being gathered: not in the ring yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gathering {
    /// The slot whose command it will be and whose page holds the ranges.
    pub(super) leader: u16,
    /// The slot of the last discard in it.
    pub(super) last: u16,
    /// How many ranges there are.
    pub(super) ranges: u16,
    blocks: u64,
}

impl Gathering {
    /// A command with no ranges yet that `leader` leads.
    pub(super) fn new(leader: u16) -> Self {
        Self { leader, last: leader, ranges: 0, blocks: 0 }
    }

    /// Whether `blocks` more fit in one more range.
    pub(super) fn has_room(&self, limits: DsmLimits, blocks: u32) -> bool {
        self.ranges < limits.ranges
            && self.blocks.saturating_add(u64::from(blocks)) <= limits.blocks
    }

    /// Adds a range to the command's page.
    pub(super) fn add(&mut self, page: &[AtomicU64], lba: Lba, blocks: u32) {
        let at = usize::from(self.ranges) * 2;
        // Context attributes 0 in the low half. Relaxed: ordered by the doorbell's write.
        page[at].store((u64::from(blocks) << 32).to_le(), Ordering::Relaxed);
        page[at + 1].store(lba.0.to_le(), Ordering::Relaxed);
        self.ranges += 1;
        self.blocks += u64::from(blocks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_are_not_reported_are_the_commands_own() {
        let most = DsmLimits { ranges: 256, range_blocks: u32::MAX, blocks: u64::MAX };
        assert_eq!(DsmLimits::new(None), most);
        let mut identify = IdentifyControllerNvm::default();
        assert_eq!(DsmLimits::new(Some(&identify)), most);
        identify.dmrl = 8;
        identify.dmrsl = 1000;
        identify.dmsl = 500;
        let limits = DsmLimits::new(Some(&identify));
        assert_eq!(limits, DsmLimits { ranges: 8, range_blocks: 500, blocks: 500 });
    }

    #[test]
    fn a_command_takes_no_more_than_its_limits() {
        let limits = DsmLimits { ranges: 2, range_blocks: 10, blocks: 15 };
        let page: Vec<AtomicU64> = (0..512).map(|_| AtomicU64::new(u64::MAX)).collect();
        let mut command = Gathering::new(3);
        assert!(command.has_room(limits, 10));
        command.add(&page, Lba(77), 10);
        assert!(!command.has_room(limits, 6), "too many blocks");
        assert!(command.has_room(limits, 5));
        command.add(&page, Lba(99), 5);
        assert!(!command.has_room(limits, 0), "too many ranges");
        let words: Vec<_> = page[..5].iter().map(|word| word.load(Ordering::Relaxed)).collect();
        assert_eq!(words, [10 << 32, 77, 5 << 32, 99, u64::MAX]);
    }
}
