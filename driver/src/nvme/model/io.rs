//! I/O commands of the model (NVM command set).

use zerocopy::FromBytes;

use crate::nvme::spec::Status;
use crate::nvme::spec::command::{
    CDW11_DSM_AD, CDW12_DEAC, CDW12_FUA, DSM_RANGES_MAX, DsmRange, Opcode, SubmissionEntry,
};
use crate::nvme::spec::identify::oncs;

use super::{State, prp};

impl State {
    /// Does an I/O command.
    pub(super) fn execute_io(&mut self, entry: &SubmissionEntry) -> Result<(), Status> {
        let opcode = Opcode(entry.cdw0.get() as u8);
        *self.seen.commands.entry(opcode.0).or_default() += 1;
        let index = entry.nsid.get();
        self.medium(index)?;
        // What this driver leaves alone must be zero: FUSE, PSDT, dwords 2 to 5 and 13 to 15.
        let reserved = entry.cdw0.get() >> 8 & 0xff
            | entry.cdw2.get()
            | entry.cdw3.get()
            | entry.mptr.get() as u32
            | entry.cdw13.get()
            | entry.cdw14.get()
            | entry.cdw15.get();
        if reserved != 0 {
            return Err(Status::INVALID_FIELD);
        }
        let supported = |bit| self.options.oncs & bit != 0;
        match opcode {
            Opcode::FLUSH => {
                if entry.cdw10.get() | entry.cdw11.get() | entry.cdw12.get() != 0 {
                    return Err(Status::INVALID_FIELD);
                }
                self.medium(index)?.flush();
                Ok(())
            }
            Opcode::READ => self.read(index, entry),
            Opcode::WRITE => self.write(index, entry),
            Opcode::WRITE_ZEROES if supported(oncs::WRITE_ZEROES) => {
                self.write_zeroes(index, entry)
            }
            Opcode::DATASET_MANAGEMENT if supported(oncs::DSM) => self.deallocate(index, entry),
            _ => Err(Status::INVALID_OPCODE),
        }
    }

    fn blocks(&self, index: u32, entry: &SubmissionEntry) -> Result<(u64, u64), Status> {
        let slba = u64::from(entry.cdw11.get()) << 32 | u64::from(entry.cdw10.get());
        let blocks = u64::from(entry.cdw12.get() & 0xffff) + 1;
        self.media[&index]
            .range(slba, blocks)
            .map_or(Err(Status::LBA_OUT_OF_RANGE), |_| Ok((slba, blocks)))
    }

    fn pieces(&self, entry: &SubmissionEntry, len: usize) -> Result<Vec<(u64, usize)>, Status> {
        let mdts = self.options.mdts;
        if mdts != 0 && len > 4096 << mdts {
            return Err(Status::INVALID_FIELD);
        }
        prp::walk(&self.pool, entry.prp1.get(), entry.prp2.get(), len)
    }

    fn writable(&self, index: u32) -> Result<(), Status> {
        if self.media[&index].namespace.read_only {
            return Err(Status::NAMESPACE_WRITE_PROTECTED);
        }
        Ok(())
    }

    fn read(&mut self, index: u32, entry: &SubmissionEntry) -> Result<(), Status> {
        let (slba, blocks) = self.blocks(index, entry)?;
        let medium = &self.media[&index];
        if medium.bad.range(slba..slba + blocks).next().is_some() {
            return Err(Status::UNRECOVERED_READ_ERROR);
        }
        let range = medium.range(slba, blocks).expect("checked");
        let mut at = range.start;
        for (iova, len) in self.pieces(entry, range.len())? {
            prp::write(&self.pool, iova, self.media[&index].read(at..at + len))?;
            at += len;
        }
        Ok(())
    }

    fn write(&mut self, index: u32, entry: &SubmissionEntry) -> Result<(), Status> {
        self.writable(index)?;
        let (slba, blocks) = self.blocks(index, entry)?;
        let range = self.media[&index].range(slba, blocks).expect("checked");
        let mut data = vec![0; range.len()];
        let mut at = 0;
        for (iova, len) in self.pieces(entry, range.len())? {
            prp::read(&self.pool, iova, &mut data[at..at + len])?;
            at += len;
        }
        let fua = entry.cdw12.get() & CDW12_FUA != 0;
        self.seen.fua += u64::from(fua);
        let stable = fua || !self.options.volatile_cache;
        self.medium(index)?.write(range, stable, |bytes| bytes.copy_from_slice(&data));
        Ok(())
    }

    fn write_zeroes(&mut self, index: u32, entry: &SubmissionEntry) -> Result<(), Status> {
        self.writable(index)?;
        let (slba, blocks) = self.blocks(index, entry)?;
        self.seen.deac += u64::from(entry.cdw12.get() & CDW12_DEAC != 0);
        let range = self.media[&index].range(slba, blocks).expect("checked");
        let stable = !self.options.volatile_cache;
        self.medium(index)?.write(range, stable, |bytes| bytes.fill(0));
        Ok(())
    }

    fn deallocate(&mut self, index: u32, entry: &SubmissionEntry) -> Result<(), Status> {
        self.writable(index)?;
        if entry.cdw11.get() != CDW11_DSM_AD {
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
        let mut bytes = vec![0; count * size_of::<DsmRange>()];
        let mut at = 0;
        for (iova, len) in self.pieces(entry, bytes.len())? {
            prp::read(&self.pool, iova, &mut bytes[at..at + len])?;
            at += len;
        }
        for range in bytes.chunks_exact(size_of::<DsmRange>()) {
            let range = DsmRange::read_from_bytes(range).expect("16 bytes");
            let (slba, blocks) = (range.slba.get(), range.nlb.get());
            let bytes = self.media[&index].range(slba, blocks.into());
            let bytes = bytes.ok_or(Status::LBA_OUT_OF_RANGE)?;
            self.seen.ranges.push((slba, blocks));
            let stable = !self.options.volatile_cache;
            // What a deallocated block reads as is up to the drive; this one shows that it was.
            self.medium(index)?.write(bytes, stable, |bytes| bytes.fill(0));
        }
        Ok(())
    }
}
