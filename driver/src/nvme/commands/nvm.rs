//! I/O commands of the NVM command set beside a block device's: Verify, Compare, Copy, Write
//! Uncorrectable, fused Compare and Write, and reads and writes with metadata (NVM 1.0c §3.2).

use crate::nvme::protection::BlockFormat;
use crate::nvme::spec::Opcode;
use crate::nvme::spec::command::{CDW11_DSM_AD, CDW12_DEAC, CDW12_FUA, NLB_MAX};
use crate::nvme::spec::identify::oncs;

use super::queue::{Answer, Buffer, CommandQueue, IoCommand};
use super::{Command, CommandError};

/// What the controller is to do with protection information (NVM 1.0c figure 13 and §5.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProtectionOptions {
    /// PRACT: the controller makes it for a write and takes it off for a read, and where the metadata
    /// is nothing else none is transferred.
    pub by_controller: bool,
    /// PRCHK: the guard is checked.
    pub check_guard: bool,
    /// PRCHK: the application tag is checked, where `application_mask` has bits.
    pub check_application: bool,
    /// PRCHK: the reference tag is checked.
    pub check_reference: bool,
    /// LBAT or ELBAT.
    pub application: u16,
    /// LBATM or ELBATM.
    pub application_mask: u16,
    /// ILBRT or EILBRT: the reference tag of the first block; with type 1 the low 32 bits of its
    /// address.
    pub reference: u32,
}

impl ProtectionOptions {
    fn apply(self, command: Command) -> Command {
        let bits = u32::from(self.by_controller) << 29
            | u32::from(self.check_guard) << 28
            | u32::from(self.check_application) << 27
            | u32::from(self.check_reference) << 26;
        let cdw12 = command.cdw10[2] | bits;
        command
            .dword(12, cdw12)
            .dword(14, self.reference)
            .dword(15, u32::from(self.application_mask) << 16 | u32::from(self.application))
    }
}

/// Blocks to be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopySource {
    /// The first one.
    pub lba: u64,
    /// How many.
    pub blocks: u32,
}

/// A range for Dataset Management, with what is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatasetRange {
    /// The first block.
    pub lba: u64,
    /// How many.
    pub blocks: u32,
    /// Context Attributes (NVM 1.0c figure 39).
    pub attributes: u32,
}

impl CommandQueue {
    /// How the namespace's blocks lie.
    pub fn format(&self) -> BlockFormat {
        BlockFormat::of(self.namespace())
    }

    /// Reads blocks with their metadata: (data, metadata), the second empty where the metadata is
    /// within the data or is not transferred.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] for blocks that are not there or too many; what the controller says.
    pub fn read_blocks(
        &mut self,
        lba: u64,
        blocks: u32,
        protection: ProtectionOptions,
    ) -> Result<(Vec<u8>, Vec<u8>), CommandError> {
        let command = self.on_blocks(Opcode::READ, lba, blocks)?;
        let (data, metadata) = self.transferred(blocks, protection);
        let (_, data, metadata) = self.execute(IoCommand {
            command: protection.apply(command),
            data: Buffer::In(data),
            metadata: if metadata > 0 { Buffer::In(metadata) } else { Buffer::None },
        })?;
        Ok((data, metadata))
    }

    /// Writes blocks with their metadata, in the same layout as [`read_blocks`] gives them.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] for blocks that are not there or buffers that are not theirs; what the
    /// controller says.
    ///
    /// [`read_blocks`]: CommandQueue::read_blocks
    pub fn write_blocks(
        &mut self,
        lba: u64,
        data: Vec<u8>,
        metadata: Vec<u8>,
        fua: bool,
        protection: ProtectionOptions,
    ) -> Result<(), CommandError> {
        let io = self.with_data(Opcode::WRITE, lba, data, metadata, protection)?;
        let cdw12 = io.command.cdw10[2] | if fua { CDW12_FUA } else { 0 };
        self.execute(IoCommand { command: io.command.dword(12, cdw12), ..io })?;
        Ok(())
    }

    /// Makes stable what was written to the namespace.
    ///
    /// # Errors
    ///
    /// What the controller says.
    pub fn flush(&mut self) -> Result<(), CommandError> {
        self.execute(IoCommand::new(Command::new(Opcode::FLUSH, 0)))?;
        Ok(())
    }

    /// Checks that blocks can be read, without transferring them (NVM 1.0c §3.2.6).
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] for blocks that are not there; what the controller says, such as
    /// Unrecovered Read Error.
    pub fn verify(
        &mut self,
        lba: u64,
        blocks: u32,
        protection: ProtectionOptions,
    ) -> Result<(), CommandError> {
        self.requires(oncs::VERIFY, "verify")?;
        let command = self.on_blocks(Opcode::VERIFY, lba, blocks)?;
        self.execute(IoCommand::new(protection.apply(command)))?;
        Ok(())
    }

    /// Whether blocks hold `data` (and `metadata`), compared by the controller.
    ///
    /// # Errors
    ///
    /// As [`write_blocks`](CommandQueue::write_blocks); a difference is no error.
    pub fn compare(
        &mut self,
        lba: u64,
        data: Vec<u8>,
        metadata: Vec<u8>,
        protection: ProtectionOptions,
    ) -> Result<bool, CommandError> {
        self.requires(oncs::COMPARE, "compare")?;
        let io = self.with_data(Opcode::COMPARE, lba, data, metadata, protection)?;
        equal(self.execute(io).map(|_| ()))
    }

    /// Writes `new` when the blocks hold `old`, in one step that nothing comes between; whether they
    /// did (Base 2.0c §3.4.2, NVM 1.0c §3.2.1).
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] when the controller does not fuse, or for more blocks than it compares
    /// and writes at once (ACWU); what it says.
    pub fn compare_and_write(
        &mut self,
        lba: u64,
        old: Vec<u8>,
        new: Vec<u8>,
    ) -> Result<bool, CommandError> {
        let id = self.controller_id();
        if id.fuses & 1 == 0 {
            let what = "the controller does not fuse compare and write (FUSES)";
            return Err(CommandError::unsupported(&self.name(), what));
        }
        let unit = match self.namespace().nsfeat & 2 != 0 {
            true => u32::from(self.namespace().nacwu),
            false => u32::from(id.acwu),
        } + 1;
        let stride = self.format().stride();
        if old.len() != new.len() || old.len() > unit as usize * stride {
            let (old, new) = (old.len(), new.len());
            let what = format!("{old} bytes for {new}; as many of both, at most {unit} blocks");
            return Err(self.invalid(what));
        }
        let protection = ProtectionOptions::default();
        let compare = self.with_data(Opcode::COMPARE, lba, old, Vec::new(), protection)?;
        let write = self.with_data(Opcode::WRITE, lba, new, Vec::new(), protection)?;
        let [first, _] = self.submit_fused(compare, write)?;
        self.commit();
        let (mut compared, mut written) = (Ok(0), Ok(0));
        for _ in 0..2 {
            let Answer { token, result, .. } = self.wait();
            *if token == first { &mut compared } else { &mut written } = result;
        }
        // When the compare fails, the write says that it was aborted for that.
        if !equal(compared.map(|_| ()))? {
            return Ok(false);
        }
        written.map(|_| true)
    }

    /// Copies up to 128 ranges one behind the other to `to` (NVM 1.0c §3.2.2, format 0).
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] for more or larger ranges than the namespace copies (MSRC, MSSRL, MCL)
    /// or ranges that are not there; what the controller says.
    pub fn copy(&mut self, sources: &[CopySource], to: u64) -> Result<(), CommandError> {
        self.requires(oncs::COPY, "copy")?;
        let id = self.namespace();
        let (ranges, length, total) = (usize::from(id.msrc) + 1, u32::from(id.mssrl), id.mcl);
        let blocks = sources.iter().map(|source| u64::from(source.blocks)).sum::<u64>();
        if sources.is_empty()
            || sources.len() > ranges
            || sources.iter().any(|source| source.blocks == 0 || source.blocks > length)
            || blocks > u64::from(total)
        {
            let count = sources.len();
            let what = format!(
                "{count} ranges of {blocks} blocks; one copy takes 1 to {ranges} ranges of up to \
                 {length} blocks, {total} blocks together"
            );
            return Err(self.invalid(what));
        }
        for source in sources {
            self.check_range(source.lba, source.blocks.into())?;
        }
        self.check_range(to, blocks)?;
        let mut list = vec![0; sources.len() * 32];
        for (entry, source) in list.chunks_exact_mut(32).zip(sources) {
            entry[8..16].copy_from_slice(&source.lba.to_le_bytes());
            // 0's based, 16 bits; at most MSSRL, which has 16 bits too.
            entry[16..18].copy_from_slice(&((source.blocks - 1) as u16).to_le_bytes());
        }
        let command =
            Command::new(Opcode::COPY, 0).qword(10, to).dword(12, sources.len() as u32 - 1);
        self.execute(IoCommand { data: Buffer::Out(list), ..IoCommand::new(command) })?;
        Ok(())
    }

    /// Makes blocks unreadable until they are written again: for tests of what is above.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] for blocks that are not there; what the controller says.
    pub fn write_uncorrectable(&mut self, lba: u64, blocks: u32) -> Result<(), CommandError> {
        self.requires(oncs::WRITE_UNCORRECTABLE, "write uncorrectable")?;
        let command = self.on_blocks(Opcode::WRITE_UNCORRECTABLE, lba, blocks)?;
        self.execute(IoCommand::new(command))?;
        Ok(())
    }

    /// Makes blocks read as zeroes; with `deallocate` the drive may free them.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] for blocks that are not there; what the controller says.
    pub fn write_zeroes(
        &mut self,
        lba: u64,
        blocks: u32,
        deallocate: bool,
        protection: ProtectionOptions,
    ) -> Result<(), CommandError> {
        self.requires(oncs::WRITE_ZEROES, "write zeroes")?;
        let command = self.on_blocks(Opcode::WRITE_ZEROES, lba, blocks)?;
        let cdw12 = command.cdw10[2] | if deallocate { CDW12_DEAC } else { 0 };
        self.execute(IoCommand::new(protection.apply(command.dword(12, cdw12))))?;
        Ok(())
    }

    /// Tells of up to 256 ranges what they are for, or with `deallocate` that they are not needed.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] for no ranges or too many, or blocks that are not there; what the
    /// controller says.
    pub fn dataset_management(
        &mut self,
        ranges: &[DatasetRange],
        deallocate: bool,
    ) -> Result<(), CommandError> {
        self.requires(oncs::DSM, "do Dataset Management")?;
        if !(1..=256).contains(&ranges.len()) {
            return Err(self.invalid(format!("{} ranges; take 1 to 256", ranges.len())));
        }
        let mut list = vec![0; ranges.len() * 16];
        for (entry, range) in list.chunks_exact_mut(16).zip(ranges) {
            self.check_range(range.lba, range.blocks.into())?;
            entry[..4].copy_from_slice(&range.attributes.to_le_bytes());
            entry[4..8].copy_from_slice(&range.blocks.to_le_bytes());
            entry[8..].copy_from_slice(&range.lba.to_le_bytes());
        }
        let command = Command::new(Opcode::DATASET_MANAGEMENT, 0)
            .dword(10, ranges.len() as u32 - 1)
            .dword(11, if deallocate { CDW11_DSM_AD } else { 0 });
        self.execute(IoCommand { data: Buffer::Out(list), ..IoCommand::new(command) })?;
        Ok(())
    }

    /// Bytes of data and of separate metadata that so many blocks transfer.
    fn transferred(&self, blocks: u32, protection: ProtectionOptions) -> (usize, usize) {
        let format = self.format();
        let blocks = blocks as usize;
        // NVM 1.0c §5.2.2.1: with PRACT and metadata that is protection information only, none is
        // transferred.
        let hidden = protection.by_controller
            && format.protection != 0
            && format.metadata_bytes == crate::nvme::protection::TUPLE_BYTES;
        match (format.interleaved, hidden) {
            (_, true) => (blocks * format.data_bytes, 0),
            (true, false) => (blocks * format.stride(), 0),
            (false, false) => (blocks * format.data_bytes, blocks * format.metadata_bytes),
        }
    }

    /// A command that carries the data of whole blocks to the controller.
    fn with_data(
        &self,
        opcode: Opcode,
        lba: u64,
        data: Vec<u8>,
        metadata: Vec<u8>,
        protection: ProtectionOptions,
    ) -> Result<IoCommand, CommandError> {
        let (data_bytes, metadata_bytes) = self.transferred(1, protection);
        let blocks = data.len() / data_bytes.max(1);
        if blocks == 0
            || blocks > NLB_MAX as usize
            || data.len() != blocks * data_bytes
            || metadata.len() != blocks * metadata_bytes
        {
            let (data, metadata) = (data.len(), metadata.len());
            let what = format!(
                "{data} bytes of data and {metadata} of metadata are not whole blocks of \
                 {data_bytes} and {metadata_bytes}"
            );
            return Err(self.invalid(what));
        }
        let command = self.on_blocks(opcode, lba, blocks as u32)?;
        Ok(IoCommand {
            command: protection.apply(command),
            data: Buffer::Out(data),
            metadata: if metadata.is_empty() { Buffer::None } else { Buffer::Out(metadata) },
        })
    }

    /// A command on `blocks` blocks from `lba` on, checked.
    pub(super) fn on_blocks(
        &self,
        opcode: Opcode,
        lba: u64,
        blocks: u32,
    ) -> Result<Command, CommandError> {
        if blocks == 0 || blocks > NLB_MAX {
            return Err(self.invalid(format!("{blocks} blocks; one command takes 1 to {NLB_MAX}")));
        }
        self.check_range(lba, blocks.into())?;
        Ok(Command::new(opcode, 0).qword(10, lba).dword(12, blocks - 1))
    }

    fn check_range(&self, lba: u64, blocks: u64) -> Result<(), CommandError> {
        let size = self.namespace().nsze;
        if blocks > 0 && lba.checked_add(blocks).is_some_and(|end| end <= size) {
            return Ok(());
        }
        Err(self.invalid(format!("{blocks} blocks from {lba} on are not among {size}")))
    }

    pub(super) fn requires(&self, bit: u16, what: &str) -> Result<(), CommandError> {
        if self.controller_id().does(bit) {
            return Ok(());
        }
        let what = format!("the controller does not {what} (ONCS)");
        Err(CommandError::unsupported(&self.name(), what))
    }

    pub(super) fn invalid(&self, what: impl std::fmt::Display) -> CommandError {
        CommandError::invalid(&self.name(), what)
    }
}

/// A comparison: what it found, and no error for a difference.
fn equal(result: Result<(), CommandError>) -> Result<bool, CommandError> {
    use crate::nvme::spec::Status;
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.status().map(Status::code) == Some(Status::COMPARE_FAILURE) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
