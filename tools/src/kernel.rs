//! The ublk driver of the kernel, and what it and the server over it say, in words of ours.

use std::time::Duration;

use uaio_driver::ublk::{self, DeviceState, ServerError};

use crate::clearing::KernelDevice;
use crate::cli::DeviceId;
use crate::exit::{Exit, Failure};

/// How long the kernel may take to answer about a device, or to remove a dead one.
const DEADLINE: Duration = Duration::from_secs(10);

/// Every ublk device of the machine; none where the kernel has no ublk.
///
/// # Errors
///
/// When this process may not ask, or the kernel does not answer.
pub(crate) fn devices() -> Result<Vec<KernelDevice>, Failure> {
    let devices = match ublk::devices(DEADLINE) {
        Ok(devices) => devices,
        Err(ServerError::NoDriver) => return Ok(Vec::new()),
        Err(error) => return Err(failure("look for ublk devices", error)),
    };
    let device = |device: ublk::UblkDevice| KernelDevice {
        id: device.id,
        our_pid: device.our_pid,
        dead: device.state == DeviceState::Dead,
    };
    Ok(devices.into_iter().map(device).collect())
}

/// Whether devices can be added here: asked before anything is created.
///
/// # Errors
///
/// That the kernel has no ublk, or not for us.
pub(crate) fn check() -> Result<(), Failure> {
    ublk::devices(DEADLINE).map(drop).map_err(|error| failure("look for ublk devices", error))
}

/// Removes a device.
///
/// # Errors
///
/// When it is not gone by the deadline, or the kernel refuses.
pub(crate) fn remove(id: DeviceId) -> Result<(), Failure> {
    match ublk::remove(id.0, DEADLINE) {
        Ok(()) | Err(ServerError::NoSuchDevice(_)) => Ok(()),
        Err(error) => Err(failure(format!("remove {id}"), error)),
    }
}

/// What ublk said to `what`, with its exit code and what to do.
pub(crate) fn failure(what: impl std::fmt::Display, error: ServerError) -> Failure {
    let (exit, hint) = match &error {
        ServerError::Device(inner) => return Failure::device(what, inner),
        ServerError::NoDriver => {
            let what = "this kernel has no ublk driver loaded";
            return Failure::new(
                Exit::Unsupported,
                what,
                "run `modprobe ublk_drv` (Linux 6.5 or newer)",
            );
        }
        ServerError::NoPermission => {
            return Failure::new(
                Exit::Permission,
                "no permission to use ublk",
                "try again as root",
            );
        }
        ServerError::KernelTooOld { .. } => (Exit::Unsupported, "boot a newer kernel"),
        ServerError::Invalid(_) => (Exit::Usage, "correct the options; nothing was changed"),
        ServerError::NoFrames { .. } => (Exit::Failure, "take fewer queues or less depth"),
        ServerError::TimedOut { .. } => (Exit::TimedOut, "it goes on; try again"),
        ServerError::NoSuchDevice(_) => (Exit::NotFound, "see `aioctl list`"),
        ServerError::Kernel { source, .. } if source.raw_os_error() == Some(EBUSY) => {
            (Exit::InUse, "try again")
        }
        _ => (Exit::Failure, "see the kernel's log"),
    };
    Failure::new(exit, format!("{what}: {error}"), hint)
}

const EBUSY: i32 = rustix::io::Errno::BUSY.raw_os_error();
