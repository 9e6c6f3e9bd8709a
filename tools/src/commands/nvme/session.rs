//! Taking a drive for the time of a command, and asking before data is lost.

use std::sync::Arc;

use serde::Serialize;
use uaio_driver::nvme::commands::{CommandError, CommandQueue};
use uaio_driver::nvme::{ControllerOptions, NvmeController};
use uaio_driver::{DmaPool, PoolOptions, SystemClock};

use crate::cli::nvme::Target;
use crate::commands::{Context, confirm, print};
use crate::exit::{Exit, Failure};
use crate::server::checks;

use super::output;

/// How a command gets at a drive and at whoever gave it. The built program has one, the tests another.
pub(super) trait Session {
    /// The drive, for as long as the reference is kept.
    fn open(&self, target: &Target) -> Result<Arc<NvmeController>, Failure> {
        self.open_with(target, ControllerOptions::default())
    }

    /// The same, driven in another way.
    fn open_with(
        &self,
        target: &Target,
        options: ControllerOptions,
    ) -> Result<Arc<NvmeController>, Failure>;

    /// Goes on only when the user wants what cannot be undone.
    fn confirm(&self, target: &Target, what: &str, yes: bool) -> Result<(), Failure>;

    /// Prints an answer.
    fn print(&self, json: &str) -> Result<(), Failure>;

    /// Prints an answer: JSON, or the table made of it.
    fn show<T: Serialize>(&self, value: &T) -> Result<(), Failure>
    where
        Self: Sized,
    {
        let json = serde_json::to_string_pretty(value)
            .map_err(|error| Failure::os("make JSON", std::io::Error::other(error)))?;
        self.print(&json)
    }

    /// A command queue on the namespace that the target names.
    fn queue(&self, target: &Target) -> Result<CommandQueue, Failure> {
        let nsid = nsid(target)?;
        self.open(target)?.command_queue(nsid, 4).map_err(failure)
    }
}

/// The namespace that a target must name.
pub(super) fn nsid(target: &Target) -> Result<u32, Failure> {
    target.nsid.ok_or_else(|| {
        Failure::new(
            Exit::Usage,
            format!("{target} names no namespace"),
            format!("write it behind the address: {target}/1"),
        )
    })
}

/// Refuses a namespace where the whole drive is meant.
pub(super) fn whole(target: &Target) -> Result<(), Failure> {
    match target.nsid {
        None => Ok(()),
        Some(_) => Err(Failure::new(
            Exit::Usage,
            format!("{target} is one namespace, and this is for the whole drive"),
            format!("write {}", target.address),
        )),
    }
}

/// What a command said, as a line and an exit code.
pub(super) fn failure(error: CommandError) -> Failure {
    match &error {
        CommandError::Status { .. } => {
            Failure::new(Exit::Failure, error.to_string(), "see `aioctl nvme log error`")
        }
        CommandError::Invalid(text) => Failure::new(Exit::Usage, text, "nothing was changed"),
        CommandError::Unsupported(text) => {
            Failure::new(Exit::Unsupported, text, "nothing was changed")
        }
        CommandError::Ended { may_have_been_done: true, .. } => Failure::new(
            Exit::Failure,
            error.to_string(),
            "it may have been done, in part or in whole: look before you do it again",
        ),
        CommandError::Ended { .. } => {
            Failure::new(Exit::Failure, error.to_string(), "nothing was changed")
        }
        CommandError::Device(device) => Failure::device("", device),
    }
}

/// The program's own.
pub(super) struct Terminal<'a>(pub(super) &'a Context);

/// Frames for the controller, a queue, and the largest transfer with its metadata.
const FRAMES: usize = 1024;

impl Session for Terminal<'_> {
    fn open_with(
        &self,
        target: &Target,
        how: ControllerOptions,
    ) -> Result<Arc<NvmeController>, Failure> {
        checks::drive(self.0, target.address)?;
        let failed = |error| Failure::drive(target.address, &error);
        let options = PoolOptions { hugepages: false, ..PoolOptions::frames(FRAMES) };
        let pool = DmaPool::new(options).map_err(failed)?;
        let clock = Arc::new(SystemClock::new());
        NvmeController::open(target.address, pool, how, clock).map_err(failed)
    }

    fn confirm(&self, target: &Target, what: &str, yes: bool) -> Result<(), Failure> {
        checks::drive(self.0, target.address)?;
        confirm(target, what, yes)
    }

    fn print(&self, json: &str) -> Result<(), Failure> {
        match self.0.json {
            true => print(&format!("{json}\n")),
            false => print(&output::table(json)),
        }
    }
}
