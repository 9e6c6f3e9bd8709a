//! Firmware: download and commit (Base 2.0c §5.12, §5.13).

use std::time::Duration;

use crate::nvme::NvmeController;
use crate::nvme::spec::identify::oacs;
use crate::nvme::spec::{Opcode, Status};

use super::{Command, CommandError, Data};

/// Committing writes flash; MTFA bounds only the activation.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(300);

/// What becomes of the image that was downloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitAction {
    /// It is put into the slot; what runs stays.
    Store,
    /// It is put into the slot and runs after the next reset.
    StoreAndActivateAtReset,
    /// What is in the slot runs after the next reset.
    ActivateAtReset,
    /// What is in the slot, or was downloaded for it, runs at once.
    ActivateNow,
}

/// What the controller wants before the new firmware runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing more than was asked for.
    Done,
    /// A reset of the controller.
    NeedsControllerReset,
    /// A reset of the subsystem.
    NeedsSubsystemReset,
    /// A conventional reset of the function.
    NeedsConventionalReset,
}

impl NvmeController {
    /// Downloads an image in pieces, each answered before the next is sent.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] for an image that is empty or not a multiple of 4 bytes long; those of
    /// [`admin`](NvmeController::admin): an image that failed half way is downloaded anew from its
    /// start.
    pub fn download_firmware(&self, image: &[u8]) -> Result<(), CommandError> {
        self.requires(oacs::FIRMWARE, "take firmware")?;
        if image.is_empty() || !image.len().is_multiple_of(4) || image.len() > 1 << 30 {
            let len = image.len();
            let what =
                format!("an image of {len} bytes is none; it is a multiple of 4 up to 1 GiB");
            return Err(CommandError::invalid(&self.identify().name, what));
        }
        // FWUG: pieces and offsets are multiples of it; 0 not known, FFh no restriction.
        let granularity = match self.identify_controller()?.fwug {
            0 | 0xff => 4096,
            fwug => usize::from(fwug) * 4096,
        };
        let most = (self.identify().transfer_max_bytes as usize).min(128 << 10);
        let piece = (most / granularity * granularity).max(granularity);
        for (index, bytes) in image.chunks(piece).enumerate() {
            let dwords = (bytes.len() / 4 - 1) as u32;
            let offset = (index * piece / 4) as u32;
            let command = Command::new(Opcode::FIRMWARE_DOWNLOAD, 0)
                .dword(10, dwords)
                .dword(11, offset)
                .within(COMMIT_TIMEOUT);
            self.admin(&command, Data::Out(bytes))?;
        }
        Ok(())
    }

    /// Commits the image to `slot`, 1 to 7, or 0 for the controller's choice.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] for another slot; those of [`admin`](NvmeController::admin), such as
    /// Invalid Firmware Image.
    pub fn commit_firmware(
        &self,
        slot: u8,
        action: CommitAction,
    ) -> Result<Activation, CommandError> {
        self.requires(oacs::FIRMWARE, "take firmware")?;
        if slot > 7 {
            let what = format!("there is no firmware slot {slot}; take 1 to 7, or 0");
            return Err(CommandError::invalid(&self.identify().name, what));
        }
        let action = match action {
            CommitAction::Store => 0,
            CommitAction::StoreAndActivateAtReset => 1,
            CommitAction::ActivateAtReset => 2,
            CommitAction::ActivateNow => 3,
        };
        let command = Command::new(Opcode::FIRMWARE_COMMIT, 0)
            .dword(10, action << 3 | u32::from(slot))
            .within(COMMIT_TIMEOUT);
        match self.admin(&command, Data::None) {
            Ok(_) => Ok(Activation::Done),
            // Statuses that are no failures: it is committed, and this is what it waits for.
            Err(error) => match error.status().map(Status::code) {
                Some(Status::FIRMWARE_NEEDS_CONTROLLER_RESET) => {
                    Ok(Activation::NeedsControllerReset)
                }
                Some(Status::FIRMWARE_NEEDS_SUBSYSTEM_RESET) => Ok(Activation::NeedsSubsystemReset),
                Some(Status::FIRMWARE_NEEDS_CONVENTIONAL_RESET) => {
                    Ok(Activation::NeedsConventionalReset)
                }
                _ => Err(error),
            },
        }
    }
}
