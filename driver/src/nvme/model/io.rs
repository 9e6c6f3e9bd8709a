//! I/O commands of the model (NVM command set).

use zerocopy::FromBytes;

use crate::nvme::protection::{self, BlockFormat, ProtectionError};
use crate::nvme::spec::Status;
use crate::nvme::spec::command::{
    CDW11_DSM_AD, CDW12_DEAC, CDW12_FUA, DSM_RANGES_MAX, DsmRange, Opcode, SubmissionEntry,
};
use crate::nvme::spec::identify::oncs;

use super::{State, prp, transfer};

/// PRINFO in dword 12: PRACT, then PRCHK for guard, application tag and reference tag.
const PRACT: u32 = 1 << 29;
const PRCHK_GUARD: u32 = 1 << 28;
const PRCHK_APPLICATION: u32 = 1 << 27;
const PRCHK_REFERENCE: u32 = 1 << 26;

impl State {
    /// Does an I/O command: dwords 0 and 1 of its completion.
    pub(super) fn execute_io(&mut self, entry: &SubmissionEntry) -> Result<u64, Status> {
        let opcode = Opcode(entry.cdw0.get() as u8);
        *self.seen.commands.entry(opcode.0).or_default() += 1;
        let nsid = entry.nsid.get();
        self.medium(nsid)?;
        match transfer::psdt(entry) {
            0 => {}
            1 if self.options.scatter_gather => self.seen.scatter_gather += 1,
            _ => return Err(Status::INVALID_FIELD),
        }
        self.check_reserved(nsid, opcode, entry)?;
        if let Some(result) = self.fused(nsid, opcode, entry) {
            return result.map(|()| 0);
        }
        self.check_reservation(nsid, opcode)?;
        let supported = |bit| self.options.oncs & bit != 0;
        let done = match opcode {
            Opcode::FLUSH => {
                if entry.cdw10.get() | entry.cdw11.get() | entry.cdw12.get() != 0 {
                    return Err(Status::INVALID_FIELD);
                }
                self.medium(nsid)?.flush();
                Ok(())
            }
            Opcode::READ => self.read(nsid, entry),
            Opcode::WRITE => self.write(nsid, entry),
            Opcode::WRITE_ZEROES if supported(oncs::WRITE_ZEROES) => self.write_zeroes(nsid, entry),
            Opcode::DATASET_MANAGEMENT if supported(oncs::DSM) => self.deallocate(nsid, entry),
            Opcode::COMPARE if supported(oncs::COMPARE) => self.compare(nsid, entry),
            Opcode::VERIFY if supported(oncs::VERIFY) => self.verify(nsid, entry),
            Opcode::WRITE_UNCORRECTABLE if supported(oncs::WRITE_UNCORRECTABLE) => {
                self.write_uncorrectable(nsid, entry)
            }
            Opcode::COPY if supported(oncs::COPY) => self.copy(nsid, entry),
            Opcode::RESERVATION_REGISTER
            | Opcode::RESERVATION_ACQUIRE
            | Opcode::RESERVATION_RELEASE
            | Opcode::RESERVATION_REPORT
                if supported(oncs::RESERVATIONS) =>
            {
                self.reservation(nsid, opcode, entry)
            }
            Opcode::IO_MANAGEMENT_RECEIVE | Opcode::IO_MANAGEMENT_SEND => {
                self.placement(nsid, opcode, entry)
            }
            // Base 2.0c §3.1.3.5: only with all command sets selected.
            Opcode::ZONE_MANAGEMENT_SEND
            | Opcode::ZONE_MANAGEMENT_RECEIVE
            | Opcode::ZONE_APPEND
                if self.cc.css() != 6 =>
            {
                Err(Status::INVALID_OPCODE)
            }
            Opcode::ZONE_MANAGEMENT_SEND => return self.zone_send(nsid, entry),
            Opcode::ZONE_MANAGEMENT_RECEIVE => return self.zone_receive(nsid, entry),
            Opcode::ZONE_APPEND => return self.zone_append(nsid, entry),
            _ => Err(Status::INVALID_OPCODE),
        };
        done.map(|()| 0)
    }

    /// What the commands of a block device leave alone must be zero: whatever was in the ring before.
    fn check_reserved(
        &mut self,
        nsid: u32,
        opcode: Opcode,
        entry: &SubmissionEntry,
    ) -> Result<(), Status> {
        let namespace = self.medium(nsid)?.namespace;
        let plain = matches!(
            opcode,
            Opcode::FLUSH
                | Opcode::READ
                | Opcode::WRITE
                | Opcode::WRITE_ZEROES
                | Opcode::DATASET_MANAGEMENT
        );
        let reserved = entry.cdw2.get()
            | entry.cdw3.get()
            | entry.mptr.get() as u32
            | entry.cdw13.get()
            | entry.cdw14.get()
            | entry.cdw15.get();
        let wrong = plain && namespace.metadata == 0 && reserved != 0;
        if wrong { Err(Status::INVALID_FIELD) } else { Ok(()) }
    }

    /// Compare and Write (Base 2.0c §3.4.2): the first waits for the second, and both are done as one.
    fn fused(
        &mut self,
        nsid: u32,
        opcode: Opcode,
        entry: &SubmissionEntry,
    ) -> Option<Result<(), Status>> {
        let failed = std::mem::take(&mut self.fused_failed);
        match entry.cdw0.get() >> 8 & 0b11 {
            0 => None,
            1 if opcode == Opcode::COMPARE => {
                let compared = self.compare(nsid, entry);
                self.fused_failed = Some(compared.is_err());
                Some(compared)
            }
            2 if opcode == Opcode::WRITE => Some(match failed {
                Some(false) => self.write(nsid, entry),
                Some(true) => Err(Status::ABORTED_FAILED_FUSED),
                None => Err(Status::ABORTED_MISSING_FUSED),
            }),
            _ => Some(Err(Status::INVALID_FIELD)),
        }
    }

    fn blocks(&mut self, nsid: u32, entry: &SubmissionEntry) -> Result<(u64, u64), Status> {
        let slba = u64::from(entry.cdw11.get()) << 32 | u64::from(entry.cdw10.get());
        let blocks = u64::from(entry.cdw12.get() & 0xffff) + 1;
        let medium = self.medium(nsid)?;
        medium.range(slba, blocks).map_or(Err(Status::LBA_OUT_OF_RANGE), |_| Ok((slba, blocks)))
    }

    fn writable(&mut self, nsid: u32) -> Result<(), Status> {
        if self.medium(nsid)?.namespace.read_only {
            return Err(Status::NAMESPACE_WRITE_PROTECTED);
        }
        Ok(())
    }

    fn format(&mut self, nsid: u32) -> Result<BlockFormat, Status> {
        let namespace = self.medium(nsid)?.namespace;
        Ok(BlockFormat {
            data_bytes: 1 << namespace.lbads,
            metadata_bytes: namespace.metadata.into(),
            interleaved: namespace.interleaved,
            protection: namespace.protection,
            first: namespace.protection_first,
        })
    }

    /// The first block of a read that cannot be read.
    pub(super) fn first_bad(&mut self, entry: &SubmissionEntry) -> Option<u64> {
        let (slba, blocks) = self.blocks(entry.nsid.get(), entry).ok()?;
        self.medium(entry.nsid.get()).ok()?.bad.range(slba..slba + blocks).next().copied()
    }

    /// What blocks hold, each block's data followed by its metadata, unless one cannot be read.
    fn stored(&mut self, nsid: u32, slba: u64, blocks: u64) -> Result<Vec<u8>, Status> {
        let medium = self.medium(nsid)?;
        if medium.bad.range(slba..slba + blocks).next().is_some() {
            return Err(Status::UNRECOVERED_READ_ERROR);
        }
        let range = medium.range(slba, blocks).ok_or(Status::LBA_OUT_OF_RANGE)?;
        Ok(medium.read(range).to_vec())
    }

    /// Checks what PRCHK asks for (NVM 1.0c §5.2.1.2), on blocks with their metadata behind each.
    fn check_protection(
        &mut self,
        nsid: u32,
        entry: &SubmissionEntry,
        bytes: &[u8],
    ) -> Result<(), Status> {
        let format = BlockFormat { interleaved: true, ..self.format(nsid)? };
        let cdw12 = entry.cdw12.get();
        let slba = u64::from(entry.cdw11.get()) << 32 | u64::from(entry.cdw10.get());
        let reference = entry.cdw14.get();
        let prchk = cdw12 & (PRCHK_GUARD | PRCHK_APPLICATION | PRCHK_REFERENCE);
        if format.protection == 0 || prchk == 0 {
            return Ok(());
        }
        if cdw12 & PRCHK_REFERENCE != 0
            && (format.protection == 3 || format.protection == 1 && reference != slba as u32)
        {
            return Err(Status::INVALID_PROTECTION_INFORMATION);
        }
        let mask = (entry.cdw15.get() >> 16) as u16;
        for index in 0..bytes.len() / format.stride() {
            let block = &bytes[index * format.stride()..][..format.stride()];
            let start =
                reference.wrapping_add(if format.protection == 3 { 0 } else { index as u32 });
            let application = (cdw12 & PRCHK_APPLICATION != 0 && mask == u16::MAX)
                .then_some(entry.cdw15.get() as u16);
            match protection::check(&format, block, &[], slba + index as u64, application, start) {
                Err(ProtectionError::Guard { .. }) if cdw12 & PRCHK_GUARD != 0 => {
                    return Err(Status::GUARD_CHECK_ERROR);
                }
                Err(ProtectionError::Application { .. }) => {
                    return Err(Status::APPLICATION_TAG_CHECK_ERROR);
                }
                Err(ProtectionError::Reference { .. }) if cdw12 & PRCHK_REFERENCE != 0 => {
                    return Err(Status::REFERENCE_TAG_CHECK_ERROR);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the metadata is the controller's alone: PRACT, and nothing but protection information.
    fn hidden(format: &BlockFormat, entry: &SubmissionEntry) -> bool {
        entry.cdw12.get() & PRACT != 0
            && format.protection != 0
            && format.metadata_bytes == protection::TUPLE_BYTES
    }

    /// Blocks with their metadata behind each, out of the host's buffers.
    fn taken(
        &mut self,
        nsid: u32,
        entry: &SubmissionEntry,
        blocks: u64,
    ) -> Result<Vec<u8>, Status> {
        let format = self.format(nsid)?;
        let blocks = blocks as usize;
        let stride = format.data_bytes + format.metadata_bytes;
        let hidden = Self::hidden(&format, entry);
        let mut bytes = vec![0; blocks * stride];
        if format.interleaved && !hidden {
            bytes = transfer::take(self, entry, bytes.len())?;
        } else {
            let data = transfer::take(self, entry, blocks * format.data_bytes)?;
            let mut metadata = vec![0; blocks * format.metadata_bytes];
            if !hidden && !metadata.is_empty() {
                prp::read(&self.pool, entry.mptr.get(), &mut metadata)?;
            }
            for (index, block) in bytes.chunks_exact_mut(stride).enumerate() {
                let (into, behind) = block.split_at_mut(format.data_bytes);
                into.copy_from_slice(&data[index * format.data_bytes..][..format.data_bytes]);
                let len = format.metadata_bytes;
                behind.copy_from_slice(&metadata[index * len..][..len]);
            }
        }
        if entry.cdw12.get() & PRACT != 0 && format.protection != 0 {
            let interleaved = BlockFormat { interleaved: true, ..format };
            let application = entry.cdw15.get() as u16;
            protection::protect(&interleaved, &mut bytes, &mut [], application, entry.cdw14.get());
        }
        Ok(bytes)
    }

    fn read(&mut self, nsid: u32, entry: &SubmissionEntry) -> Result<(), Status> {
        let (slba, blocks) = self.blocks(nsid, entry)?;
        let bytes = self.stored(nsid, slba, blocks)?;
        self.check_protection(nsid, entry, &bytes)?;
        let format = self.format(nsid)?;
        let hidden = Self::hidden(&format, entry);
        if format.interleaved && !hidden {
            return transfer::give(self, entry, &bytes);
        }
        let stride = format.data_bytes + format.metadata_bytes;
        let blocks = bytes.chunks_exact(stride);
        let data: Vec<u8> =
            blocks.clone().flat_map(|block| &block[..format.data_bytes]).copied().collect();
        transfer::give(self, entry, &data)?;
        if format.metadata_bytes > 0 && !hidden {
            let metadata: Vec<u8> =
                blocks.flat_map(|block| &block[format.data_bytes..]).copied().collect();
            prp::write(&self.pool, entry.mptr.get(), &metadata)?;
        }
        Ok(())
    }

    pub(super) fn write(&mut self, nsid: u32, entry: &SubmissionEntry) -> Result<(), Status> {
        self.writable(nsid)?;
        let (slba, blocks) = self.blocks(nsid, entry)?;
        let data = self.taken(nsid, entry, blocks)?;
        if entry.cdw12.get() & PRACT == 0 {
            self.check_protection(nsid, entry, &data)?;
        }
        self.medium(nsid)?.zones.write(slba, blocks)?;
        let fua = entry.cdw12.get() & CDW12_FUA != 0;
        self.seen.fua += u64::from(fua);
        self.store(nsid, slba, &data, fua)
    }

    fn store(&mut self, nsid: u32, slba: u64, data: &[u8], fua: bool) -> Result<(), Status> {
        let stable = fua || !self.write_cache();
        let medium = self.medium(nsid)?;
        let blocks = (data.len() / medium.stride()) as u64;
        let range = medium.range(slba, blocks).ok_or(Status::LBA_OUT_OF_RANGE)?;
        medium.write(range, stable, |bytes| bytes.copy_from_slice(data));
        Ok(())
    }

    /// Blocks read as zeroes from now on.
    pub(super) fn zero(&mut self, nsid: u32, slba: u64, blocks: u64) -> Result<(), Status> {
        let stable = !self.write_cache();
        let medium = self.medium(nsid)?;
        let range = medium.range(slba, blocks).ok_or(Status::LBA_OUT_OF_RANGE)?;
        medium.write(range, stable, |bytes| bytes.fill(0));
        Ok(())
    }

    fn write_zeroes(&mut self, nsid: u32, entry: &SubmissionEntry) -> Result<(), Status> {
        self.writable(nsid)?;
        let (slba, blocks) = self.blocks(nsid, entry)?;
        self.medium(nsid)?.zones.write(slba, blocks)?;
        self.seen.deac += u64::from(entry.cdw12.get() & CDW12_DEAC != 0);
        self.zero(nsid, slba, blocks)
    }

    fn compare(&mut self, nsid: u32, entry: &SubmissionEntry) -> Result<(), Status> {
        let (slba, blocks) = self.blocks(nsid, entry)?;
        let stored = self.stored(nsid, slba, blocks)?;
        let taken = self.taken(nsid, entry, blocks)?;
        if stored == taken { Ok(()) } else { Err(Status::COMPARE_FAILURE) }
    }

    fn verify(&mut self, nsid: u32, entry: &SubmissionEntry) -> Result<(), Status> {
        let (slba, blocks) = self.blocks(nsid, entry)?;
        let bytes = self.stored(nsid, slba, blocks)?;
        self.check_protection(nsid, entry, &bytes)
    }

    fn write_uncorrectable(&mut self, nsid: u32, entry: &SubmissionEntry) -> Result<(), Status> {
        self.writable(nsid)?;
        let (slba, blocks) = self.blocks(nsid, entry)?;
        self.medium(nsid)?.bad.extend(slba..slba + blocks);
        Ok(())
    }

    fn copy(&mut self, nsid: u32, entry: &SubmissionEntry) -> Result<(), Status> {
        self.writable(nsid)?;
        let cdw12 = entry.cdw12.get();
        // Format 0 only.
        if cdw12 >> 8 & 0xf != 0 {
            return Err(Status::INVALID_FIELD);
        }
        let count = (cdw12 & 0xff) as usize + 1;
        if count > usize::from(super::identify::MSRC) + 1 {
            return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED);
        }
        let list = transfer::take(self, entry, count * 32)?;
        let mut to = u64::from(entry.cdw11.get()) << 32 | u64::from(entry.cdw10.get());
        let mut all = Vec::new();
        for range in list.chunks_exact(32) {
            let slba = u64::from_le_bytes(range[8..16].try_into().expect("8 bytes"));
            let blocks = u64::from(u16::from_le_bytes([range[16], range[17]])) + 1;
            if blocks > u64::from(super::identify::MSSRL) {
                return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED);
            }
            if self.medium(nsid)?.range(slba, blocks).is_none() {
                return Err(Status::LBA_OUT_OF_RANGE);
            }
            all.push((to, self.stored(nsid, slba, blocks)?));
            to += blocks;
        }
        for (to, data) in all {
            self.store(nsid, to, &data, false)?;
        }
        Ok(())
    }

    fn deallocate(&mut self, nsid: u32, entry: &SubmissionEntry) -> Result<(), Status> {
        self.writable(nsid)?;
        if entry.cdw11.get() & !CDW11_DSM_AD != 0 {
            return Err(Status::INVALID_FIELD);
        }
        let count = (entry.cdw10.get() & 0xff) as usize + 1;
        let most = match self.options.dmrl {
            0 => DSM_RANGES_MAX,
            dmrl => dmrl.into(),
        };
        if count > most || entry.cdw10.get() > 0xff {
            return Err(Status::INVALID_FIELD);
        }
        let bytes = transfer::take(self, entry, count * size_of::<DsmRange>())?;
        for range in bytes.chunks_exact(size_of::<DsmRange>()) {
            let range = DsmRange::read_from_bytes(range).expect("16 bytes");
            let (slba, blocks) = (range.slba.get(), range.nlb.get());
            if self.medium(nsid)?.range(slba, blocks.into()).is_none() {
                return Err(Status::LBA_OUT_OF_RANGE);
            }
            self.seen.ranges.push((slba, blocks));
            // What a deallocated block reads as is up to the drive; this one shows that it was.
            if entry.cdw11.get() & CDW11_DSM_AD != 0 {
                self.zero(nsid, slba, blocks.into())?;
            }
        }
        Ok(())
    }
}
