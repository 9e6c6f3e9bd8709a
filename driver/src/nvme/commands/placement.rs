//! Flexible Data Placement of a namespace: reclaim unit handles (Base 2.1 §7.2, NVM 1.1 §3.2.3).

use serde::Serialize;

use crate::nvme::spec::Opcode;
use crate::nvme::spec::layout::{Layout, layout};

use super::queue::{Buffer, CommandQueue, IoCommand};
use super::{Command, CommandError};

layout! {
    /// The header of a Reclaim Unit Handle Status (NVM 1.1 figure 51).
    pub struct HandleStatusHeader: 16 {
        /// Number of Reclaim Unit Handle Status Descriptors.
        14 handles: u16,
    }

    /// A Reclaim Unit Handle Status Descriptor (NVM 1.1 figure 52).
    pub struct HandleStatus: 32 {
        /// Placement Identifier.
        0 placement: u16,
        /// Reclaim Unit Handle Identifier.
        2 handle: u16,
        /// Estimated Active Reclaim Unit Time Remaining in seconds.
        4 seconds_left: u32,
        /// Reclaim Unit Available Media Writes in blocks.
        8 blocks_left: u64,
    }
}

/// The handles of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Handles {
    /// What is left in each.
    pub handles: Vec<HandleStatus>,
}

impl CommandQueue {
    /// What is left in the reclaim units of the namespace's handles, at most 255 of them.
    ///
    /// # Errors
    ///
    /// What the controller says, such as FDP Disabled.
    pub fn reclaim_unit_handles(&mut self) -> Result<Handles, CommandError> {
        let len = HandleStatusHeader::SIZE + 255 * HandleStatus::SIZE;
        // Management Operation 1: Reclaim Unit Handle Status.
        let command = Command::new(Opcode::IO_MANAGEMENT_RECEIVE, 0)
            .dword(10, 1)
            .dword(11, (len / 4 - 1) as u32);
        let io = IoCommand { data: Buffer::In(len), ..IoCommand::new(command) };
        let (_, bytes, _) = self.execute(io)?;
        let count = usize::from(HandleStatusHeader::decode(&bytes).handles);
        let list = bytes[HandleStatusHeader::SIZE..].chunks_exact(HandleStatus::SIZE);
        Ok(Handles { handles: list.take(count).map(HandleStatus::decode).collect() })
    }

    /// Points handles at new reclaim units: what is written next is not beside what was written before.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] for no placement identifiers or more than 256; what the controller says.
    pub fn update_reclaim_units(&mut self, placements: &[u16]) -> Result<(), CommandError> {
        if !(1..=256).contains(&placements.len()) {
            let what = format!("{} placement identifiers; take 1 to 256", placements.len());
            return Err(self.invalid(what));
        }
        let mut data: Vec<u8> = placements.iter().flat_map(|id| id.to_le_bytes()).collect();
        data.resize(data.len().next_multiple_of(4), 0);
        let command = Command::new(Opcode::IO_MANAGEMENT_SEND, 0)
            .dword(10, (placements.len() as u32 - 1) << 16 | 1);
        self.execute(IoCommand { data: Buffer::Out(data), ..IoCommand::new(command) })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::spec::layout::assert_places;

    /// NVM 1.1 figures 51 and 52.
    #[test]
    fn fields_lie_where_the_specification_puts_them() {
        assert_places::<HandleStatusHeader>(16, "handles@14+2");
        assert_places::<HandleStatus>(
            32,
            "placement@0+2 handle@2+2 seconds_left@4+4 blocks_left@8+8",
        );
    }
}
