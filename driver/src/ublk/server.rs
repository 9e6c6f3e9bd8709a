//! The server's control plane: a handle, and the control thread behind it.
//!
//! Everything that can block in the kernel is done by the control thread, which serves no queue:
//! adding, starting, stopping and deleting the device. A handle waits for it with a deadline and can
//! ask again. The control thread owns libublk's `UblkCtrl` (whose ring is the thread's) and a
//! reference to the device until everything is down, so that no queue thread ever drops the last.

use std::fmt;
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use libublk::ctrl::{UblkCtrl, UblkCtrlBuilder};
use libublk::io::UblkDev;
use libublk::{UblkFlags, sys};

use crate::block::{BlockDevice, QueueOptions};
use crate::dma::DmaBuf;

use super::control;
use super::error::ServerError;
use super::options::{ServerOptions, params};
use super::queue::{self, QueueSetup};
use super::shield;
use super::stats::{QueueStats, ServerStats};
use crate::doorbell::Doorbell;

/// How long the block device's node may take to appear once the kernel has the disk.
const NODE_PATIENCE: Duration = Duration::from_secs(10);
/// How long a deleted device may stay in sysfs before the stop is reported as done anyway.
const GONE_PATIENCE: Duration = Duration::from_secs(10);

/// What a server serves, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerInfo {
    /// The device's number, chosen by the kernel.
    pub id: u32,
    /// The block device, `/dev/ublkbN`.
    pub path: PathBuf,
    /// How many queues the kernel made.
    pub queues: u16,
    /// How many requests each holds.
    pub depth: u16,
    /// What one read or write carries at most, in bytes.
    pub io_max_bytes: u32,
    /// How many frames each queue has for data in flight.
    pub frames_per_queue: usize,
    /// The UBLK_F_ flags in force.
    pub flags: u64,
}

impl ServerInfo {
    /// The names of the flags in force, without their prefix; those without a name as a number.
    pub fn flag_names(&self) -> Vec<String> {
        const NAMES: [&str; 20] = [
            "SUPPORT_ZERO_COPY",
            "URING_CMD_COMP_IN_TASK",
            "NEED_GET_DATA",
            "USER_RECOVERY",
            "USER_RECOVERY_REISSUE",
            "UNPRIVILEGED_DEV",
            "CMD_IOCTL_ENCODE",
            "USER_COPY",
            "ZONED",
            "USER_RECOVERY_FAIL_IO",
            "UPDATE_SIZE",
            "AUTO_BUF_REG",
            "QUIESCE",
            "PER_IO_DAEMON",
            "BUF_REG_OFF_DAEMON",
            "BATCH_IO",
            "INTEGRITY",
            "SAFE_STOP_DEV",
            "NO_AUTO_PART_SCAN",
            "SHMEM_ZC",
        ];
        (0..64)
            .filter(|bit| self.flags & 1 << bit != 0)
            .map(|bit| NAMES.get(bit).map_or_else(|| format!("1<<{bit}"), ToString::to_string))
            .collect()
    }
}

/// Where a server is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerState {
    /// The device is being added and started.
    Starting,
    /// It serves.
    Live,
    /// It is being stopped; the text is the step that has not ended yet.
    Stopping(String),
    /// The device is gone, as was asked.
    Stopped,
    /// The device is gone, for this reason.
    Failed(String),
}

/// A block device served as `/dev/ublkbN`.
///
/// # Dropping
///
/// Dropping the handle asks for the stop and does not wait for it: the control thread does the rest.
/// So a handle may be dropped anywhere, in the handling of a completion too. Call
/// [`stop`](Server::stop) to know that the device is gone.
#[derive(Debug)]
pub struct Server {
    life: Arc<Life>,
    info: ServerInfo,
    shared: Shared,
}

/// What the handle shares with the queue threads.
#[derive(Clone, Debug)]
struct Shared {
    stats: Arc<[Arc<QueueStats>]>,
    fail_new_io: Arc<AtomicBool>,
}

impl Server {
    /// Serves `device`: returns when `/dev/ublkbN` can be opened.
    ///
    /// Takes [`ServerOptions::frames`] frames of the device's pool and
    /// [`ServerOptions::queues`] of its queues until the server has stopped. Shield the process
    /// first ([`shield_process`](super::shield_process)).
    ///
    /// # Errors
    ///
    /// [`ServerError`] says what is missing or was refused; nothing is left behind then.
    /// [`ServerError::TimedOut`] names the step that took longer than
    /// [`ServerOptions::deadline`]; what was begun is undone in the background.
    pub fn start(
        device: Arc<dyn BlockDevice>,
        options: ServerOptions,
    ) -> Result<Self, ServerError> {
        options.check(&device.capabilities())?;
        let shared = Shared {
            stats: (0..options.queues).map(|_| Arc::new(QueueStats::new())).collect(),
            fail_new_io: Arc::new(AtomicBool::new(false)),
        };
        let life = Arc::new(Life::default());
        let deadline = options.deadline;
        let thread = {
            let (life, shared) = (Arc::clone(&life), shared.clone());
            move || {
                let mut end = End { life, result: Err(ServerError::Ended(PANICKED.to_owned())) };
                end.result = control_thread(&end.life, &*device, &options, &shared);
                // The last reference goes before the stop is announced, and on this thread.
                drop(device);
            }
        };
        std::thread::Builder::new()
            .name("ublk-control".to_owned())
            .spawn(thread)
            .map_err(|source| ServerError::Kernel { what: "starting a thread", source })?;
        let mut inner =
            life.wait(deadline, |inner| matches!(inner.phase, Phase::Live | Phase::Stopped));
        match (inner.phase, inner.info.take()) {
            (Phase::Live, Some(info)) => {
                drop(inner);
                Ok(Self { life, info, shared })
            }
            (Phase::Stopped, _) => Err(inner.failure()),
            _ => {
                inner.stop = true;
                let step = inner.step;
                drop(inner);
                life.changed.notify_all();
                Err(control::timed_out(step, deadline))
            }
        }
    }

    /// The device's number, chosen by the kernel.
    pub fn id(&self) -> u32 {
        self.info.id
    }

    /// The block device, `/dev/ublkbN`.
    pub fn path(&self) -> &Path {
        &self.info.path
    }

    /// What is served, and how.
    pub fn info(&self) -> &ServerInfo {
        &self.info
    }

    /// Where the server is in its life. Does not block.
    pub fn state(&self) -> ServerState {
        let inner = self.life.lock();
        match (inner.phase, &inner.failed) {
            (Phase::Starting, _) => ServerState::Starting,
            (Phase::Live, _) => ServerState::Live,
            (Phase::Stopping, _) => ServerState::Stopping(inner.step.to_owned()),
            (Phase::Stopped, None) => ServerState::Stopped,
            (Phase::Stopped, Some(reason)) => ServerState::Failed(reason.clone()),
        }
    }

    /// What it has done so far. Does not hold up the queues.
    pub fn stats(&self) -> ServerStats {
        let mut total = ServerStats::new();
        self.shared.stats.iter().for_each(|queue| queue.add_to(&mut total));
        total
    }

    /// From now on, fails every new request with `EIO` at once, or serves them again. What is in
    /// flight goes on.
    pub fn fail_new_io(&self, fail: bool) {
        self.shared.fail_new_io.store(fail, Ordering::Relaxed);
    }

    /// Waits until the server has ended by itself, at most `at_most`; says whether it has.
    pub fn wait_ended(&self, at_most: Duration) -> bool {
        self.life.wait(at_most, |inner| inner.phase == Phase::Stopped).phase == Phase::Stopped
    }

    /// Stops the device in order: the kernel writes out what it has cached and ends what is in
    /// flight, through our queues; the queues are drained and closed; the device is deleted.
    ///
    /// # Errors
    ///
    /// [`ServerError::TimedOut`] with the step that has not ended within `deadline`. It goes on: call
    /// again to wait longer. Any other error is why the server had failed; the device is gone then
    /// too, and a second call says so again.
    ///
    /// Blocks, so not for the handling of a completion: drop the handle there.
    pub fn stop(&self, deadline: Duration) -> Result<(), ServerError> {
        self.life.request_stop();
        let mut inner = self.life.wait(deadline, |inner| inner.phase == Phase::Stopped);
        match (inner.phase, &inner.failed) {
            (Phase::Stopped, None) => Ok(()),
            (Phase::Stopped, Some(_)) => Err(inner.failure()),
            _ => Err(control::timed_out(inner.step, deadline)),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.life.request_stop();
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Starting,
    Live,
    Stopping,
    Stopped,
}

/// What the handle, the control thread and the queue threads tell each other.
#[derive(Debug, Default)]
struct Life {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    phase: Phase,
    /// What the control thread is doing.
    step: &'static str,
    /// The stop has been asked for.
    stop: bool,
    /// Queue threads that have offered all their tags to the kernel.
    ready: usize,
    /// Queue threads that have ended.
    ended: usize,
    info: Option<ServerInfo>,
    /// The first error, whole, for the first who asks.
    error: Option<ServerError>,
    /// The first error's text, for everybody after that.
    failed: Option<String>,
}

impl Inner {
    fn fail(&mut self, error: ServerError) {
        if self.failed.is_none() {
            self.failed = Some(error.to_string());
            self.error = Some(error);
        }
    }

    fn failure(&mut self) -> ServerError {
        let text = || self.failed.clone().unwrap_or_else(|| "the server has stopped".to_owned());
        self.error.take().unwrap_or_else(|| ServerError::Ended(text()))
    }
}

impl Life {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every field is a plain value, consistent between any two statements.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `done`, at most `at_most`.
    fn wait(&self, at_most: Duration, done: impl Fn(&Inner) -> bool) -> MutexGuard<'_, Inner> {
        self.changed
            .wait_timeout_while(self.lock(), at_most, |inner| !done(inner))
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    fn tell(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn step(&self, step: &'static str) {
        self.lock().step = step;
    }

    fn request_stop(&self) {
        self.tell(|inner| inner.stop = true);
    }

    /// Waits until every queue is ready, one has ended, or the stop is asked for.
    fn wait_ready(&self, queues: usize) -> bool {
        let mut inner = self.lock();
        while inner.ready < queues && inner.ended == 0 && !inner.stop {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.ended == 0 && !inner.stop
    }

    /// Waits until the stop is asked for or a queue has ended without it.
    fn wait_stop(&self) {
        let mut inner = self.lock();
        while inner.ended == 0 && !inner.stop {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

const PANICKED: &str = "the control thread has panicked";

/// Announces the end of the control thread, however it ends.
struct End {
    life: Arc<Life>,
    result: Result<(), ServerError>,
}

impl Drop for End {
    fn drop(&mut self) {
        let result = std::mem::replace(&mut self.result, Ok(()));
        self.life.tell(|inner| {
            if let Err(error) = result {
                inner.fail(error);
            }
            inner.phase = Phase::Stopped;
        });
    }
}

fn control_thread(
    life: &Arc<Life>,
    device: &dyn BlockDevice,
    options: &ServerOptions,
    shared: &Shared,
) -> Result<(), ServerError> {
    shield::block_signals();
    shield::shield_thread();
    life.step("asking the ublk driver for its features");
    let features = control::driver_features(options.deadline)?;
    if features & u64::from(sys::UBLK_F_USER_COPY) == 0 {
        return Err(ServerError::KernelTooOld { feature: "USER_COPY", since: "6.5" });
    }
    life.step("adding the device");
    let mut served = Served::add(device, options)?;
    match served.start(life, device, options, shared) {
        Ok(info) => {
            life.tell(|inner| {
                inner.info = Some(info);
                inner.phase = Phase::Live;
            });
            life.wait_stop();
            life.tell(|inner| inner.phase = Phase::Stopping);
        }
        // Before the stop, so that it is the first error whatever the stop brings.
        Err(error) => life.tell(|inner| {
            inner.fail(error);
            inner.phase = Phase::Stopping;
        }),
    }
    served.stop(life)
}

/// A device that the kernel knows of, and our side of it.
struct Served {
    ctrl: UblkCtrl,
    dev: Option<Arc<UblkDev>>,
    threads: Vec<JoinHandle<()>>,
}

impl Served {
    fn add(device: &dyn BlockDevice, options: &ServerOptions) -> Result<Self, ServerError> {
        let io_max_bytes = options.io_max_bytes(&device.geometry());
        let ctrl = UblkCtrlBuilder::default()
            .name("uaio")
            .nr_queues(options.queues)
            .depth(options.depth)
            .io_buf_bytes(io_max_bytes)
            .ctrl_flags(u64::from(sys::UBLK_F_USER_COPY))
            .ctrl_target_flags(control::owner_mark())
            .dev_flags(UblkFlags::UBLK_DEV_F_ADD_DEV)
            .build()
            .map_err(|error| match ServerError::kernel("adding a ublk device", error) {
                ServerError::Kernel { source, .. }
                    if source.raw_os_error() == Some(libc::ENOSPC) =>
                {
                    ServerError::TooManyDevices
                }
                other => other,
            })?;
        Ok(Self { ctrl, dev: None, threads: Vec::new() })
    }

    fn start(
        &mut self,
        life: &Arc<Life>,
        device: &dyn BlockDevice,
        options: &ServerOptions,
        shared: &Shared,
    ) -> Result<ServerInfo, ServerError> {
        let (geometry, capabilities) = (device.geometry(), device.capabilities());
        let io_max_bytes = options.io_max_bytes(&geometry);
        life.step("opening the device's character device");
        let init = |dev: &mut UblkDev| {
            dev.tgt.dev_size = geometry.size_bytes();
            dev.tgt.params = params(&geometry, &capabilities, io_max_bytes);
            Ok(())
        };
        // libublk tries for three seconds, and says EACCES whatever kept it from succeeding.
        let dev = UblkDev::new("uaio".to_owned(), init, &self.ctrl).map_err(|_| {
            control::timed_out("opening the device's character device", Duration::from_secs(3))
        })?;
        let dev = Arc::clone(self.dev.insert(Arc::new(dev)));
        // What the kernel made of it: no more queues than CPUs.
        let info = dev.dev_info;

        life.step("opening the device's queues");
        for index in 0..info.nr_hw_queues {
            let doorbell = Doorbell::new()
                .map_err(|source| ServerError::Kernel { what: "making an eventfd", source })?;
            let doorbell = Arc::new(doorbell);
            let queue = device.open_queue(QueueOptions {
                depth: info.queue_depth.min(capabilities.depth_max),
                wake: Arc::clone(&doorbell) as _,
            })?;
            let setup = QueueSetup {
                index,
                dev: Arc::clone(&dev),
                device: queue,
                geometry,
                io_max_bytes,
                frames: take_frames(device, options.frames_per_queue(&geometry))?,
                poll: options.poll,
                clock: Arc::clone(&options.clock),
                doorbell,
                stats: Arc::clone(&shared.stats[usize::from(index)]),
                fail_new_io: Arc::clone(&shared.fail_new_io),
            };
            self.threads.push(spawn_queue(Arc::clone(life), setup)?);
        }
        if !life.wait_ready(self.threads.len()) {
            return Err(ServerError::Ended("stopped before it was started".to_owned()));
        }

        life.step("starting the device, which reads its partition table");
        match self.ctrl.start_dev(&dev) {
            // libublk passes EBUSY on as a success.
            Ok(0..) => {}
            Ok(negative) => {
                let source = std::io::Error::from_raw_os_error(-negative);
                return Err(ServerError::of_io("starting the ublk device", source));
            }
            Err(error) => return Err(ServerError::kernel("starting the ublk device", error)),
        }
        life.step("waiting for the block device's node");
        let path = PathBuf::from(format!("/dev/ublkb{}", info.dev_id));
        wait_for_node(&path, info.dev_id)?;
        Ok(ServerInfo {
            id: info.dev_id,
            path,
            queues: info.nr_hw_queues,
            depth: info.queue_depth,
            io_max_bytes,
            frames_per_queue: options.frames_per_queue(&geometry),
            flags: info.flags,
        })
    }

    /// Takes everything down that is up, in order. The queue threads go on serving until the kernel
    /// has taken the last tag back, so what it still has to write is written.
    fn stop(self, life: &Life) -> Result<(), ServerError> {
        let Self { ctrl, dev, threads } = self;
        life.step("stopping the device, which waits for its requests");
        let stopped = match ctrl.kill_dev() {
            Ok(_) => Ok(()),
            Err(error) => Err(ServerError::kernel("stopping the ublk device", error)),
        };
        life.step("draining the device's queues");
        for thread in threads {
            // The kernel takes back only tags that were offered. After a start that failed early a
            // thread may offer its tags only now: it is asked for them again until the thread ends.
            for look in 1u32.. {
                if thread.is_finished() {
                    break;
                }
                std::thread::sleep(LOOK_AGAIN);
                if look.is_multiple_of(STOP_AGAIN_LOOKS) {
                    let _ = ctrl.kill_dev();
                }
            }
            // How it ended has been told already.
            let _ = thread.join();
        }
        // The character device is closed with the last reference, or the deletion would wait for it.
        drop(dev);
        life.step("deleting the device");
        let id = ctrl.dev_info().dev_id;
        let deleted = ctrl
            .del_dev_async()
            // A driver before Linux 6.7 has only the form that waits.
            .or_else(|_| ctrl.del_dev())
            .map_err(|error| ServerError::kernel("deleting the ublk device", error))
            .and_then(|_| control::wait_until_gone(id, GONE_PATIENCE));
        stopped.and(deleted)
    }
}

/// How often to look whether a queue thread has ended, and after how many looks the device is
/// stopped once more.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
const STOP_AGAIN_LOOKS: u32 = 50;

fn take_frames(device: &dyn BlockDevice, wanted: usize) -> Result<Vec<DmaBuf>, ServerError> {
    let frames: Vec<_> = std::iter::from_fn(|| device.pool().take()).take(wanted).collect();
    match frames.len() {
        got if got < wanted => Err(ServerError::NoFrames { wanted, got }),
        _ => Ok(frames),
    }
}

/// Tells that a queue's thread has ended, however it ended.
struct QueueEnd {
    life: Arc<Life>,
    result: Result<(), ServerError>,
}

impl Drop for QueueEnd {
    fn drop(&mut self) {
        let result = std::mem::replace(&mut self.result, Ok(()));
        self.life.tell(|inner| {
            inner.ended += 1;
            if let Err(error) = result {
                inner.fail(error);
            }
        });
    }
}

fn spawn_queue(life: Arc<Life>, setup: QueueSetup) -> Result<JoinHandle<()>, ServerError> {
    let index = setup.index;
    let thread = move || {
        let panicked = Err(ServerError::Panicked { queue: index });
        let mut end = QueueEnd { life: Arc::clone(&life), result: panicked };
        end.result = queue::serve(setup, || life.tell(|inner| inner.ready += 1));
    };
    std::thread::Builder::new()
        .name(format!("ublk-queue-{index}"))
        .spawn(thread)
        .map_err(|source| ServerError::Kernel { what: "starting a thread", source })
}

/// Waits until `/dev/ublkbN` is there and is the kernel's disk of that number. Does not open it: that
/// would be I/O on our own device.
fn wait_for_node(path: &Path, id: u32) -> Result<(), ServerError> {
    let start = Instant::now();
    loop {
        let numbers = std::fs::read_to_string(format!("/sys/block/ublkb{id}/dev")).ok();
        let node = std::fs::metadata(path).ok().filter(|node| node.file_type().is_block_device());
        if let (Some(numbers), Some(node)) = (numbers, node)
            && numbers.trim() == device_numbers(node.st_rdev()).to_string()
        {
            return Ok(());
        }
        if start.elapsed() >= NODE_PATIENCE {
            return Err(control::timed_out("waiting for the block device's node", NODE_PATIENCE));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// `major:minor`, as sysfs writes it.
fn device_numbers(rdev: u64) -> impl fmt::Display {
    format!("{}:{}", libc::major(rdev), libc::minor(rdev))
}
