//! Directives, and Flexible Data Placement of an endurance group (Base 2.0c §5.7, §5.8, §8.7; Base 2.1
//! §5.1.25.1.20).

use serde::Serialize;

use crate::nvme::NvmeController;
use crate::nvme::spec::Opcode;
use crate::nvme::spec::feature::{self, Select};
use crate::nvme::spec::identify::oacs;
use crate::nvme::spec::layout::layout;

use super::{Command, CommandError, Data};

/// Directive type: Identify.
pub const IDENTIFY: u8 = 0;
/// Directive type: Streams.
pub const STREAMS: u8 = 1;
/// Directive type: Data Placement (Base 2.1).
pub const DATA_PLACEMENT: u8 = 2;

layout! {
    /// What Streams offer (Base 2.0c figure 458).
    pub struct StreamParameters: 32 {
        /// Max Streams Limit of the subsystem.
        0 max_streams: u16,
        /// NVM Subsystem Streams Available.
        2 available: u16,
        /// NVM Subsystem Streams Open.
        4 open: u16,
        /// NVM Subsystem Stream Capability.
        6 capability: u8,
        /// Stream Write Size in blocks.
        16 write_blocks: u32,
        /// Stream Granularity Size, in units of the write size.
        20 granularity: u16,
        /// Namespace Streams Allocated.
        22 allocated: u16,
        /// Namespace Streams Open.
        24 namespace_open: u16,
    }
}

/// A directive type of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Directive {
    /// Its number.
    pub directive_type: u8,
    /// Whether it is enabled.
    pub enabled: bool,
}

/// Whether an endurance group places data by handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DataPlacement {
    /// Whether it does.
    pub enabled: bool,
    /// By which of its configurations.
    pub configuration: u8,
}

impl NvmeController {
    /// The directive types that a namespace has.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn directives(&self, nsid: u32) -> Result<Vec<Directive>, CommandError> {
        let mut bytes = vec![0; 4096];
        self.directive_receive(nsid, IDENTIFY, 1, 0, 0, &mut bytes)?;
        let bit =
            |base: usize, kind: u8| bytes[base + usize::from(kind / 8)] >> (kind % 8) & 1 != 0;
        let types = (0..=u8::MAX).filter(|&kind| bit(0, kind));
        Ok(types
            .map(|directive_type| Directive { directive_type, enabled: bit(32, directive_type) })
            .collect())
    }

    /// Enables or disables a directive type of a namespace.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn enable_directive(
        &self,
        nsid: u32,
        directive_type: u8,
        enable: bool,
    ) -> Result<(), CommandError> {
        let cdw12 = u32::from(directive_type) << 8 | u32::from(enable);
        self.directive_send(nsid, IDENTIFY, 1, 0, cdw12, &[])
    }

    /// What streams a namespace has.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn stream_parameters(&self, nsid: u32) -> Result<StreamParameters, CommandError> {
        use crate::nvme::spec::layout::Layout;
        let mut bytes = [0; StreamParameters::SIZE];
        self.directive_receive(nsid, STREAMS, 1, 0, 0, &mut bytes)?;
        Ok(StreamParameters::decode(&bytes))
    }

    /// Allocates up to `count` streams for a namespace; how many it got.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn allocate_streams(&self, nsid: u32, count: u16) -> Result<u16, CommandError> {
        let dw0 = self.directive_receive(nsid, STREAMS, 3, 0, count.into(), &mut [])?;
        Ok(dw0 as u16)
    }

    /// Gives the streams of a namespace back.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn release_streams(&self, nsid: u32) -> Result<(), CommandError> {
        self.directive_send(nsid, STREAMS, 2, 0, 0, &[])
    }

    /// Whether an endurance group places data by handles.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn data_placement(&self, group: u16) -> Result<DataPlacement, CommandError> {
        let dword = self.get_feature(feature::FDP, Select::Current, 0, group.into(), &mut [])?;
        Ok(DataPlacement { enabled: dword & 1 != 0, configuration: (dword >> 8) as u8 })
    }

    /// Makes an endurance group without namespaces place data by handles, or not any more.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn set_data_placement(
        &self,
        group: u16,
        placement: DataPlacement,
    ) -> Result<(), CommandError> {
        let cdw12 = u32::from(placement.configuration) << 8 | u32::from(placement.enabled);
        let command = Command::new(Opcode::SET_FEATURES, 0)
            .dword(10, 1 << 31 | u32::from(feature::FDP))
            .dword(11, group.into())
            .dword(12, cdw12);
        self.admin(&command, Data::None)?;
        Ok(())
    }

    /// Any Directive Receive; dword 0 of its completion.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin), and [`CommandError::Invalid`] for data that is no
    /// multiple of 4 bytes.
    pub fn directive_receive(
        &self,
        nsid: u32,
        directive_type: u8,
        operation: u8,
        specific: u16,
        cdw12: u32,
        data: &mut [u8],
    ) -> Result<u32, CommandError> {
        let command = self.directive(
            Opcode::DIRECTIVE_RECEIVE,
            (nsid, directive_type, operation, specific, cdw12),
            data.len(),
        )?;
        self.admin(&command, if data.is_empty() { Data::None } else { Data::In(data) })
    }

    /// Any Directive Send.
    ///
    /// # Errors
    ///
    /// As for [`directive_receive`](NvmeController::directive_receive).
    pub fn directive_send(
        &self,
        nsid: u32,
        directive_type: u8,
        operation: u8,
        specific: u16,
        cdw12: u32,
        data: &[u8],
    ) -> Result<(), CommandError> {
        let command = self.directive(
            Opcode::DIRECTIVE_SEND,
            (nsid, directive_type, operation, specific, cdw12),
            data.len(),
        )?;
        self.admin(&command, if data.is_empty() { Data::None } else { Data::Out(data) })?;
        Ok(())
    }

    fn directive(
        &self,
        opcode: Opcode,
        (nsid, kind, operation, specific, cdw12): (u32, u8, u8, u16, u32),
        len_bytes: usize,
    ) -> Result<Command, CommandError> {
        self.requires(oacs::DIRECTIVES, "do directives")?;
        if !len_bytes.is_multiple_of(4) {
            let what = format!("{len_bytes} bytes of a directive; take a multiple of 4");
            return Err(CommandError::invalid(&self.identify().name, what));
        }
        let dwords = (len_bytes / 4).saturating_sub(1) as u32;
        Ok(Command::new(opcode, nsid)
            .dword(10, dwords)
            .dword(11, u32::from(specific) << 16 | u32::from(kind) << 8 | u32::from(operation))
            .dword(12, cdw12))
    }
}
