//! Security Send and Receive: what a drive's security protocols, such as TCG Opal, go through (Base
//! 2.0c §5.25, §5.26).

use crate::nvme::NvmeController;
use crate::nvme::spec::Opcode;
use crate::nvme::spec::identify::oacs;

use super::{Command, CommandError, Data};

/// Which protocol speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecurityProtocol {
    /// Security Protocol, as SPC-5 numbers them: 00h information, 01h to 06h TCG, EAh NVMe, EFh ATA.
    pub protocol: u8,
    /// Security Protocol Specific, 16 bits.
    pub specific: u16,
    /// NVMe Security Specific Field.
    pub nvme_specific: u8,
}

impl SecurityProtocol {
    fn command(self, opcode: Opcode, nsid: u32, len_bytes: usize) -> Command {
        let cdw10 = u32::from(self.protocol) << 24
            | u32::from(self.specific) << 8
            | u32::from(self.nvme_specific);
        Command::new(opcode, nsid).dword(10, cdw10).dword(11, len_bytes as u32)
    }
}

impl NvmeController {
    /// Sends `data` to a security protocol.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn security_send(
        &self,
        nsid: u32,
        protocol: SecurityProtocol,
        data: &[u8],
    ) -> Result<(), CommandError> {
        self.requires(oacs::SECURITY, "do security protocols")?;
        let command = protocol.command(Opcode::SECURITY_SEND, nsid, data.len());
        let data = if data.is_empty() { Data::None } else { Data::Out(data) };
        self.admin(&command, data)?;
        Ok(())
    }

    /// Receives up to `data.len()` bytes from a security protocol; what it did not fill is zero.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn security_receive(
        &self,
        nsid: u32,
        protocol: SecurityProtocol,
        data: &mut [u8],
    ) -> Result<(), CommandError> {
        self.requires(oacs::SECURITY, "do security protocols")?;
        let command = protocol.command(Opcode::SECURITY_RECEIVE, nsid, data.len());
        self.admin(&command, Data::In(data))?;
        Ok(())
    }
}
