//! Namespaces made, deleted, attached, detached and looked for again (Base 2.0c §5.22, §5.23).

use std::time::Duration;

use crate::nvme::NvmeController;
use crate::nvme::controller::Claim;
use crate::nvme::spec::Opcode;
use crate::nvme::spec::identify::{IDENTIFY_SIZE, oacs};

use super::{Command, CommandError, Data};

/// Making and deleting a namespace may take the drive a while.
const TIMEOUT: Duration = Duration::from_secs(120);

/// What a namespace is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewNamespace {
    /// Size in blocks.
    pub blocks: u64,
    /// Capacity in blocks; less than the size for a thin one.
    pub capacity_blocks: u64,
    /// Index of its LBA format.
    pub format: u8,
    /// Metadata at the end of each block's data instead of in a buffer of its own.
    pub metadata_with_data: bool,
    /// Protection information: type 1 to 3, 0 for none.
    pub protection: u8,
    /// Protection information in the first bytes of the metadata instead of the last.
    pub protection_first: bool,
    /// Whether several controllers may attach it.
    pub shared: bool,
    /// Endurance group; 0 leaves it to the controller.
    pub endurance_group: u16,
    /// Command set: [`csi`](crate::nvme::spec::command::csi).
    pub command_set: u8,
}

impl NewNamespace {
    /// A namespace of `blocks` blocks, all of it allocated, in LBA format `format`.
    pub const fn new(blocks: u64, format: u8) -> Self {
        Self {
            blocks,
            capacity_blocks: blocks,
            format,
            metadata_with_data: false,
            protection: 0,
            protection_first: false,
            shared: false,
            endurance_group: 0,
            command_set: 0,
        }
    }
}

impl NvmeController {
    /// Makes a namespace, attached to nobody yet; its identifier.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] for sizes and formats that cannot be, or a controller that does not
    /// manage namespaces; those of [`admin`](NvmeController::admin).
    pub fn create_namespace(&self, new: NewNamespace) -> Result<u32, CommandError> {
        self.requires(oacs::NAMESPACES, "manage namespaces")?;
        let name = &self.identify().name;
        if new.blocks == 0 || new.capacity_blocks == 0 || new.capacity_blocks > new.blocks {
            let (capacity, size) = (new.capacity_blocks, new.blocks);
            let what = format!("no namespace has a capacity of {capacity} of {size} blocks");
            return Err(CommandError::invalid(name, what));
        }
        if new.format > 63 || new.protection > 3 {
            let (format, protection) = (new.format, new.protection);
            let what = format!("there is no LBA format {format} with protection type {protection}");
            return Err(CommandError::invalid(name, what));
        }
        let mut bytes = vec![0; IDENTIFY_SIZE];
        bytes[0..8].copy_from_slice(&new.blocks.to_le_bytes());
        bytes[8..16].copy_from_slice(&new.capacity_blocks.to_le_bytes());
        bytes[26] =
            new.format & 0xf | (new.format >> 4) << 5 | u8::from(new.metadata_with_data) << 4;
        bytes[29] = new.protection | u8::from(new.protection_first) << 3;
        bytes[30] = new.shared.into();
        bytes[102..104].copy_from_slice(&new.endurance_group.to_le_bytes());
        let command = Command::new(Opcode::NAMESPACE_MANAGEMENT, 0)
            .dword(11, u32::from(new.command_set) << 24)
            .within(TIMEOUT);
        self.admin(&command, Data::Out(&bytes))
    }

    /// Deletes a namespace and all its data; FFFFFFFFh deletes every one.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] while it is open here; those of [`admin`](NvmeController::admin).
    pub fn delete_namespace(&self, nsid: u32) -> Result<(), CommandError> {
        self.requires(oacs::NAMESPACES, "manage namespaces")?;
        let _claim = self.claim_unopened(nsid)?;
        let command = Command::new(Opcode::NAMESPACE_MANAGEMENT, nsid).dword(10, 1).within(TIMEOUT);
        self.admin(&command, Data::None)?;
        Ok(())
    }

    /// Attaches a namespace to controllers, or detaches it from them; without any named, this one.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] for more than 2047 controllers, or to detach while it is open here;
    /// those of [`admin`](NvmeController::admin).
    pub fn attach_namespace(
        &self,
        nsid: u32,
        attach: bool,
        controllers: &[u16],
    ) -> Result<(), CommandError> {
        self.requires(oacs::NAMESPACES, "manage namespaces")?;
        let _claim = if attach { None } else { Some(self.claim_unopened(nsid)?) };
        let own = [self.identify().controller_id];
        let controllers = if controllers.is_empty() { &own } else { controllers };
        if controllers.len() > 2047 {
            let what = format!("{} controllers in one list; at most 2047", controllers.len());
            return Err(CommandError::invalid(&self.identify().name, what));
        }
        let mut bytes = vec![0; 4096];
        let count = controllers.len() as u16;
        for (out, id) in bytes.chunks_exact_mut(2).zip([count].iter().chain(controllers)) {
            out.copy_from_slice(&id.to_le_bytes());
        }
        let command = Command::new(Opcode::NAMESPACE_ATTACHMENT, nsid)
            .dword(10, u32::from(!attach))
            .within(TIMEOUT);
        self.admin(&command, Data::Out(&bytes))?;
        Ok(())
    }

    /// Refuses what the controller says it does not do.
    pub(super) fn requires(&self, bit: u16, what: &str) -> Result<(), CommandError> {
        if self.identify_controller()?.does_admin(bit) {
            return Ok(());
        }
        Err(CommandError::unsupported(
            &self.identify().name,
            format_args!("the controller does not {what} (OACS)"),
        ))
    }

    /// Claims what is to be taken away, which nobody may have open, nor open while it is.
    pub(super) fn claim_unopened(&self, nsid: u32) -> Result<Claim<'_>, CommandError> {
        self.claim(nsid).map_err(|open| {
            let what = format!("namespace {open} is open; close it first");
            CommandError::invalid(&self.identify().name, what)
        })
    }
}
