//! Control commands to ublk devices that this process does not serve: to list and remove them.
//!
//! libublk's `UblkCtrl::new_simple` would do, but for three things. It reads a JSON file of the
//! device from a directory that anyone may write to, and prints to standard error when there is
//! none, as for every device of ours. It waits without a limit. And its answer is that of a second
//! attempt with an old form of the command when the first was refused. So the few commands that are
//! needed here are sent by this file; what serving itself needs goes through libublk.
//!
//! # Whose device it is
//!
//! A device carries 64 bits of its server's (`ublksrv_flags`). Ours are the letters `uaio` and the
//! server's process number, from the moment it is added: so a device that is just being started is
//! told from one whose server is gone, which the device's state alone does not tell.
#![expect(unsafe_code, reason = "control commands name a buffer that the kernel fills")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use io_uring::squeue::Entry128;
use io_uring::{IoUring, opcode, types};
use libublk::sys;

use super::error::ServerError;

const CONTROL_PATH: &str = "/dev/ublk-control";
const MAGIC: u32 = u32::from_be_bytes(*b"uaio");
/// How often a wait for sysfs looks again.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What a ublk device is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// It has no disk: not started yet, stopped, or its server is gone.
    Dead,
    /// It serves.
    Live,
    /// Its server is gone and requests wait for another one.
    Quiesced,
    /// Its server is gone and requests fail.
    FailIo,
    /// A state that this program does not know.
    Other(u16),
}

/// A ublk device as the kernel tells of it, whoever serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UblkDevice {
    /// Its number: the N of `/dev/ublkbN`.
    pub id: u32,
    /// What it is doing.
    pub state: DeviceState,
    /// The process that started it; `None` before the start and after the stop.
    pub server_pid: Option<u32>,
    /// The process of ours that added it; `None` for a device of another program.
    pub our_pid: Option<u32>,
    /// How many queues it has.
    pub queues: u16,
    /// How many requests each queue holds.
    pub depth: u16,
    /// The UBLK_F_ flags in force.
    pub flags: u64,
}

/// What [`UblkDevice::our_pid`] is read from: the 64 bits that a device of this process carries.
pub(super) fn owner_mark() -> u64 {
    u64::from(MAGIC) << 32 | u64::from(std::process::id())
}

fn owner_of(mark: u64) -> Option<u32> {
    ((mark >> 32) as u32 == MAGIC).then_some(mark as u32)
}

/// Whether the driver is there and may be used, and what it can do (UBLK_F_ flags). A driver before
/// Linux 6.5 does not say and counts as able to do nothing.
pub(super) fn driver_features(deadline: Duration) -> Result<u64, ServerError> {
    let mut channel = Channel::open()?;
    let answer = channel.command(
        "asking the ublk driver for its features",
        sys::UBLK_U_CMD_GET_FEATURES,
        u32::MAX,
        sys::UBLK_FEATURES_LEN as u16,
        deadline,
    );
    match answer {
        Ok(buffer) => Ok(u64::from_ne_bytes(buffer[..8].try_into().expect("eight bytes"))),
        Err(ServerError::Kernel { .. }) => Ok(0),
        Err(error) => Err(error),
    }
}

/// Every ublk device of the machine, by number. Devices that this process may not ask about are left
/// out.
///
/// # Errors
///
/// [`ServerError::NoDriver`], [`ServerError::NoPermission`], or [`ServerError::TimedOut`] when the
/// kernel has not answered for one device within `deadline`.
pub fn devices(deadline: Duration) -> Result<Vec<UblkDevice>, ServerError> {
    let mut channel = Channel::open()?;
    let mut found = Vec::new();
    for id in device_ids() {
        match info(&mut channel, id, deadline) {
            Ok(device) => found.push(device),
            Err(error @ ServerError::TimedOut { .. }) => return Err(error),
            // Gone since the directory was read, or another user's.
            Err(_) => {}
        }
    }
    found.sort_unstable_by_key(|device| device.id);
    Ok(found)
}

/// The devices that a process of ours added and that this process is no longer there for.
///
/// # Errors
///
/// As [`devices`].
pub fn dead_devices(deadline: Duration) -> Result<Vec<UblkDevice>, ServerError> {
    let mut found = devices(deadline)?;
    found.retain(|device| device.our_pid.is_some_and(|pid| !is_alive(pid)));
    Ok(found)
}

/// Stops and deletes a device, whoever serves it, and waits until its number is out of the way. A
/// live server of it finds its queues taken away.
///
/// # Errors
///
/// [`ServerError::NoSuchDevice`]; [`ServerError::TimedOut`] with the step that has not ended within
/// `deadline`, which goes on in the kernel: ask again.
pub fn remove(id: u32, deadline: Duration) -> Result<(), ServerError> {
    let start = Instant::now();
    let mut channel = Channel::open()?;
    let mut step = |what, op| {
        let left = deadline.saturating_sub(start.elapsed());
        channel.command(what, op, id, 0, left).map(drop)
    };
    step("stopping the device", sys::UBLK_U_CMD_STOP_DEV).map_err(|error| no_such(id, error))?;
    match step("deleting the device", sys::UBLK_U_CMD_DEL_DEV_ASYNC) {
        // Somebody else was faster, or a driver before Linux 6.7 has only the form that waits.
        Err(ServerError::Kernel { ref source, .. }) if source.raw_os_error() == ENODEV => {}
        Err(ServerError::Kernel { .. }) => step("deleting the device", sys::UBLK_U_CMD_DEL_DEV)?,
        result => result?,
    }
    wait_until_gone(id, deadline.saturating_sub(start.elapsed()))
}

const ENODEV: Option<i32> = Some(libc::ENODEV);

/// Waits until the device's number is no longer in sysfs.
pub(super) fn wait_until_gone(id: u32, deadline: Duration) -> Result<(), ServerError> {
    let start = Instant::now();
    while Path::new(&format!("/sys/class/ublk-char/ublkc{id}")).exists() {
        if start.elapsed() >= deadline {
            return Err(timed_out("waiting for the kernel to let go of the device", deadline));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

fn no_such(id: u32, error: ServerError) -> ServerError {
    match error {
        ServerError::Kernel { ref source, .. } if source.raw_os_error() == ENODEV => {
            ServerError::NoSuchDevice(id)
        }
        other => other,
    }
}

fn device_ids() -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/sys/class/ublk-char") else { return Vec::new() };
    let id = |name: &str| name.strip_prefix("ublkc")?.parse().ok();
    entries.flatten().filter_map(|entry| id(entry.file_name().to_str()?)).collect()
}

/// Whether a process is there and not just waiting to be reaped. A number that has been given to
/// another process counts as alive: what is not certainly dead is left alone.
fn is_alive(pid: u32) -> bool {
    // proc(5): the state follows the name, which is in parentheses and may contain some.
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    !matches!(state, Some('Z' | 'X'))
}

fn info(channel: &mut Channel, id: u32, deadline: Duration) -> Result<UblkDevice, ServerError> {
    let what = "asking for a device's state";
    let len_bytes = size_of::<sys::ublksrv_ctrl_dev_info>() as u16;
    let buffer = channel.command(what, sys::UBLK_U_CMD_GET_DEV_INFO, id, len_bytes, deadline)?;
    // struct ublksrv_ctrl_dev_info, include/uapi/linux/ublk_cmd.h.
    let u16_at = |at: usize| u16::from_ne_bytes([buffer[at], buffer[at + 1]]);
    let u64_at =
        |at: usize| u64::from_ne_bytes(buffer[at..at + 8].try_into().expect("eight bytes"));
    let pid = i32::from_ne_bytes(buffer[16..20].try_into().expect("four bytes"));
    Ok(UblkDevice {
        id,
        state: match u16_at(4) {
            0 => DeviceState::Dead,
            1 => DeviceState::Live,
            2 => DeviceState::Quiesced,
            3 => DeviceState::FailIo,
            other => DeviceState::Other(other),
        },
        server_pid: u32::try_from(pid).ok().filter(|&pid| pid > 0),
        our_pid: owner_of(u64_at(32)),
        queues: u16_at(0),
        depth: u16_at(2),
        flags: u64_at(24),
    })
}

/// The control device and a ring to talk to it with.
struct Channel {
    control: File,
    ring: IoUring<Entry128>,
    /// Counts the commands, so that a late answer is not taken for another's.
    sent: u64,
}

/// What a command's answer is written to: as large as the largest.
type Buffer = [u8; 64];

impl Channel {
    fn open() -> Result<Self, ServerError> {
        let control = match File::options().read(true).write(true).open(CONTROL_PATH) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ServerError::NoDriver);
            }
            Err(error) => return Err(ServerError::of_io("opening /dev/ublk-control", error)),
        };
        let ring = IoUring::builder()
            .build(4)
            .map_err(|source| ServerError::Kernel { what: "io_uring_setup", source })?;
        Ok(Self { control, ring, sent: 0 })
    }

    /// Sends one command and waits for its answer, which is `len_bytes` long.
    fn command(
        &mut self,
        what: &'static str,
        op: u32,
        id: u32,
        len_bytes: u16,
        deadline: Duration,
    ) -> Result<Box<Buffer>, ServerError> {
        let mut buffer: Box<Buffer> = Box::new([0; 64]);
        assert!(usize::from(len_bytes) <= buffer.len());
        // struct ublksrv_ctrl_cmd: dev_id, queue_id (none), len, addr, data, dev_path_len.
        let mut payload = [0; 80];
        payload[0..4].copy_from_slice(&id.to_ne_bytes());
        payload[4..6].copy_from_slice(&u16::MAX.to_ne_bytes());
        if len_bytes > 0 {
            let address = buffer.as_mut_ptr().expose_provenance() as u64;
            payload[6..8].copy_from_slice(&len_bytes.to_ne_bytes());
            payload[8..16].copy_from_slice(&address.to_ne_bytes());
        }
        let command = opcode::UringCmd80::new(types::Fd(self.control.as_raw_fd()), op);
        self.sent += 1;
        let entry = command.cmd(payload).build().user_data(self.sent);
        // SAFETY: `buffer` holds `len_bytes` and stays until the kernel has answered: below it is
        // leaked when the kernel has not.
        unsafe { self.ring.submission().push(&entry) }
            .expect("the ring has four entries and one command at a time");
        let failed = |source| ServerError::Kernel { what, source };
        let start = Instant::now();
        loop {
            let sent = self.sent;
            if let Some(answer) = self.ring.completion().find(|answer| answer.user_data() == sent) {
                return match answer.result() {
                    0.. => Ok(buffer),
                    negative => {
                        Err(ServerError::of_io(what, io::Error::from_raw_os_error(-negative)))
                    }
                };
            }
            let Some(left) = deadline.checked_sub(start.elapsed()) else {
                // The kernel may still write the answer.
                Box::leak(buffer);
                return Err(timed_out(what, deadline));
            };
            let timeout = types::Timespec::from(left);
            let arguments = types::SubmitArgs::new().timespec(&timeout);
            match self.ring.submitter().submit_with_args(1, &arguments) {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::ETIME | libc::EINTR) => {}
                    _ => {
                        Box::leak(buffer);
                        return Err(failed(error));
                    }
                },
            }
        }
    }
}

pub(super) fn timed_out(step: &str, waited: Duration) -> ServerError {
    let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
    ServerError::TimedOut { step: step.to_owned(), waited_ms }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_names_our_process_and_no_other_programs() {
        assert_eq!(owner_of(owner_mark()), Some(std::process::id()));
        assert_eq!(owner_of(0), None);
        assert_eq!(owner_of(u64::from(std::process::id())), None);
    }

    #[test]
    fn the_dead_are_told_from_the_living() {
        assert!(is_alive(std::process::id()));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        // A zombie is dead, though its number is still taken.
        let start = Instant::now();
        while is_alive(pid) {
            assert!(start.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_millis(1));
        }
        child.wait().unwrap();
        assert!(!is_alive(pid));
    }

    #[test]
    fn the_kernels_layout_is_read_at_its_offsets() {
        use std::mem::offset_of;
        type Info = sys::ublksrv_ctrl_dev_info;
        let offsets = [
            offset_of!(Info, nr_hw_queues),
            offset_of!(Info, queue_depth),
            offset_of!(Info, state),
            offset_of!(Info, ublksrv_pid),
            offset_of!(Info, flags),
            offset_of!(Info, ublksrv_flags),
            size_of::<Info>(),
        ];
        assert_eq!(offsets, [0, 2, 4, 16, 24, 32, 64]);
        type Command = sys::ublksrv_ctrl_cmd;
        let offsets = [
            offset_of!(Command, dev_id),
            offset_of!(Command, queue_id),
            offset_of!(Command, len),
            offset_of!(Command, addr),
        ];
        assert_eq!(offsets, [0, 4, 6, 8]);
    }
}
