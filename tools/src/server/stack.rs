//! What is under the block device: backend, cache, flusher, all over one pool of DMA memory.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use uaio_driver::nvme::{ControllerOptions, NvmeController};
use uaio_driver::ram::RamDevice;
use uaio_driver::uring::{UringDevice, UringOptions};
use uaio_driver::vfio::PciAddress;
use uaio_driver::{BlockDevice, DmaPool, Health, PoolOptions, SystemClock};
use uaio_page_cache::{Cache, CacheMode, CacheOptions, CachedDevice};

use super::barrier::Barrier;
use super::flusher::FlusherThread;
use super::sizing::{self, Wanted};
use crate::cli::{AddArgs, Mode};
use crate::exit::{Exit, Failure};
use crate::protocol::DriveStats;
use uaio_driver::url::Backend;
use uaio_driver::url::ByteSize;

/// Queues without being asked for more.
const QUEUES_DEFAULT_MAX: usize = 4;

/// A backend, open, and what stands on it.
pub(crate) struct Stack {
    /// For flushes; `None` on a device that has no queue left for it.
    pub(crate) barrier: Option<Barrier>,
    flusher: Option<FlusherThread>,
    /// The cache, if there is one.
    pub(crate) cache: Option<Arc<Cache>>,
    /// What is served.
    pub(crate) top: Arc<dyn BlockDevice>,
    /// The backend.
    pub(crate) bottom: Arc<dyn BlockDevice>,
    /// How the backend is written.
    pub(crate) backend: Backend,
    /// The drive that the backend is a namespace of, closed with its last namespace.
    pub(crate) drive: Option<Arc<Drive>>,
    /// How many queues to serve.
    pub(crate) queues: u16,
    /// How many requests in each.
    pub(crate) depth: u16,
    /// The backend again, when it is a file: it has more to say of itself.
    file: Option<Arc<UringDevice>>,
    /// A file that was created for this, until the device is served.
    created: Option<PathBuf>,
}

/// A drive that is closed by the last of its namespaces.
pub(crate) struct Drive {
    controller: Arc<NvmeController>,
    /// What happened to it, the newest last.
    events: Mutex<VecDeque<String>>,
}

/// How many of its events are kept.
const EVENTS_MAX: usize = 32;

impl Drive {
    fn new(controller: Arc<NvmeController>) -> Self {
        Self { controller, events: Mutex::default() }
    }

    /// What had to be done about its failures.
    pub(crate) fn stats(&self) -> DriveStats {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.extend(self.controller.take_events().iter().map(ToString::to_string));
        while events.len() > EVENTS_MAX {
            events.pop_front();
        }
        let counts = self.controller.error_statistics();
        DriveStats {
            failure: self.controller.failure().map(|failure| failure.to_string()),
            counts: counts.fields().map(|(name, count)| (name.into(), count)).collect(),
            events: events.iter().cloned().collect(),
        }
    }
}

/// A backend as it was opened.
struct Opened {
    device: Arc<dyn BlockDevice>,
    drive: Option<Arc<Drive>>,
    file: Option<Arc<UringDevice>>,
    created: Option<PathBuf>,
}

impl Opened {
    fn plain(device: Arc<dyn BlockDevice>) -> Self {
        Self { device, drive: None, file: None, created: None }
    }
}

/// What is to be opened, checked as far as that goes without opening it.
pub(crate) struct Plan<'a> {
    args: &'a AddArgs,
    wanted: Wanted,
    pool: PoolOptions,
    cache_frames: usize,
    block_size: Option<u32>,
}

impl<'a> Plan<'a> {
    /// Checks sizes.
    ///
    /// # Errors
    ///
    /// Which one is wrong.
    pub(crate) fn new(args: &'a AddArgs) -> Result<Self, Failure> {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let cache = sizing::cache(args)?;
        let wanted = Wanted {
            devices: args.backends.len(),
            mode: args.mode,
            cache,
            cache_max: args.cache_max.unwrap_or(cache),
            queues: args.queues.unwrap_or(cpus.min(QUEUES_DEFAULT_MAX) as u16),
            depth: args.depth,
        };
        let cache_frames = sizing::cache_frames(&wanted)?;
        let block_size = sizing::block_size(args)?;
        Ok(Self { args, wanted, pool: sizing::pool(&wanted)?, cache_frames, block_size })
    }

    /// The memory for DMA that it takes.
    pub(crate) fn pool(&self) -> &PoolOptions {
        &self.pool
    }

    /// Opens the backends and puts a cache on each.
    ///
    /// # Errors
    ///
    /// Why not; nothing is left behind.
    pub(crate) fn open(&self) -> Result<Vec<Stack>, Failure> {
        // Memory of the node that the (first) drive is on.
        let numa_node = self.args.backends.iter().find_map(|backend| match backend {
            Backend::Nvme { address, .. } => uaio_driver::vfio::numa_node(*address),
            _ => None,
        });
        let pool = DmaPool::new(PoolOptions { numa_node, ..self.pool })
            .map_err(|error| Failure::device("make the memory for DMA", &error))?;
        let mut stacks: Vec<Stack> = Vec::new();
        let mut drive = None;
        for backend in &self.args.backends {
            let stack = open_backend(
                backend,
                self.block_size,
                &pool,
                self.args.drive.options(),
                &mut drive,
            )
            .and_then(|opened| Stack::on(opened, backend, self));
            match stack {
                Ok(stack) => stacks.push(stack),
                Err(failure) => {
                    drop(drive);
                    stacks.into_iter().for_each(Stack::undo);
                    return Err(failure);
                }
            }
        }
        Ok(stacks)
    }
}

impl Stack {
    fn on(opened: Opened, backend: &Backend, plan: &Plan<'_>) -> Result<Self, Failure> {
        let Opened { device, drive, file, created } = opened;
        let mut stack = Self {
            barrier: None,
            flusher: None,
            cache: None,
            top: Arc::clone(&device),
            bottom: device,
            backend: backend.clone(),
            drive,
            queues: plan.wanted.queues,
            depth: plan.wanted.depth,
            file,
            created,
        };
        match stack.complete(plan.args, plan.cache_frames) {
            Ok(()) => Ok(stack),
            Err(failure) => {
                stack.undo();
                Err(failure)
            }
        }
    }

    fn complete(&mut self, args: &AddArgs, frames: usize) -> Result<(), Failure> {
        let mode = match args.mode {
            Mode::None => None,
            Mode::Writeback => Some(CacheMode::Writeback),
            Mode::Writethrough => Some(CacheMode::Writethrough),
        };
        if let Some(mode) = mode {
            let options = CacheOptions {
                mode,
                memory_max: args.cache_memory_max.map(|size| size.0),
                clock: Some(super::monotonic),
                ..CacheOptions::frames(frames)
            };
            let cache = Cache::new(Arc::clone(&self.bottom), options).map_err(|error| {
                Failure::new(Exit::Failure, format!("make the cache: {error}"), "")
            })?;
            self.flusher = Some(FlusherThread::start(&cache, super::shield_thread)?);
            self.top = Arc::new(CachedDevice::new(Arc::clone(&cache)));
            self.cache = Some(cache);
        }
        self.share_queues(args)
    }

    /// One queue is kept for flushes where the device has more than one.
    fn share_queues(&mut self, args: &AddArgs) -> Result<(), Failure> {
        let capabilities = self.top.capabilities();
        let most = match capabilities.queues_max {
            0 => {
                return Err(Failure::new(
                    Exit::Unsupported,
                    format!("{} has too few queues for a cache", self.bottom.name()),
                    "serve it with --mode none",
                ));
            }
            1 => 1,
            more => {
                self.barrier = Some(match &self.cache {
                    Some(cache) => Barrier::on_cache(cache)?,
                    None => Barrier::open(self.bottom.as_ref())?,
                });
                more - 1
            }
        };
        if let Some(asked) = args.queues.filter(|&asked| asked > most) {
            return Err(Failure::new(
                Exit::Usage,
                format!("{} has {most} queues to serve, not {asked}", self.bottom.name()),
                format!("take --queues {most} or less"),
            ));
        }
        self.queues = self.queues.min(most);
        self.depth = self.depth.min(capabilities.depth_max);
        Ok(())
    }

    /// What works worse than it could.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.file.as_ref().map_or_else(Vec::new, |file| file.warnings())
    }

    /// The device is served: from here on a file that was created is the user's.
    pub(crate) fn keep(&mut self) {
        self.created = None;
    }

    /// Shuts everything down in order. Dirty data that is left is lost if `discard` says so.
    ///
    /// # Errors
    ///
    /// When data is dirty still, or the device did not shut down.
    pub(crate) fn close(&mut self, discard: bool) -> Result<(), Failure> {
        self.barrier = None;
        self.flusher = None;
        let device = if discard { &self.bottom } else { &self.top };
        // A drive that was pulled out is as closed as it will be, and what it had was given up.
        let gone = discard && matches!(device.health(), Health::Failed(_));
        if let Err(error) = device.close() {
            let failure = Failure::device(format!("close {}", device.name()), &error);
            if !gone {
                return Err(failure);
            }
            crate::log::line(failure);
        }
        match self.drive.take().and_then(Arc::into_inner) {
            Some(Drive { controller, .. }) => controller
                .close()
                .map_err(|error| Failure::device(format!("shut {} down", self.backend), &error)),
            None => Ok(()),
        }
    }

    /// Takes everything back after a start that failed: there was no write yet.
    pub(crate) fn undo(mut self) {
        if let Err(failure) = self.close(true) {
            crate::log::line(failure);
        }
        remove_created(self.created.as_ref());
    }
}

fn remove_created(created: Option<&PathBuf>) {
    if let Some(path) = created
        && let Err(error) = std::fs::remove_file(path)
    {
        crate::log::line(Failure::os(format!("remove {} again", path.display()), error));
    }
}

fn open_backend(
    backend: &Backend,
    block_size: Option<u32>,
    pool: &DmaPool,
    options: ControllerOptions,
    drive: &mut Option<Arc<Drive>>,
) -> Result<Opened, Failure> {
    let failed = |error| Failure::device(backend, &error);
    match backend {
        Backend::Ram { size } => {
            let block_size = block_size.unwrap_or(sizing::RAM_BLOCK_SIZE);
            let device = RamDevice::new(size.0, block_size, pool.clone()).map_err(failed)?;
            Ok(Opened::plain(Arc::new(device)))
        }
        Backend::File { path, size } => open_file(path, *size, block_size, pool),
        Backend::Nvme { address, namespace } => {
            let drive = match drive {
                Some(drive) => Arc::clone(drive),
                None => Arc::clone(drive.insert(open_drive(*address, pool, options)?)),
            };
            open_namespace(backend, drive, *namespace)
        }
    }
}

fn open_file(
    path: &Path,
    size: Option<ByteSize>,
    block_size: Option<u32>,
    pool: &DmaPool,
) -> Result<Opened, Failure> {
    let options = match size {
        Some(size) if !path.exists() => UringOptions::create(path, size.0),
        _ => UringOptions::existing(path),
    };
    let created = options.create_bytes.map(|_| path.to_owned());
    let device = UringDevice::open(&UringOptions { block_size, ..options }, pool.clone())
        .map_err(|error| Failure::device("", &error))?;
    let device = Arc::new(device);
    let file = Some(Arc::clone(&device));
    Ok(Opened { file, created, ..Opened::plain(device) })
}

fn open_drive(
    address: PciAddress,
    pool: &DmaPool,
    options: ControllerOptions,
) -> Result<Arc<Drive>, Failure> {
    let clock = Arc::new(SystemClock::new());
    match NvmeController::open(address, pool.clone(), options, clock) {
        Ok(controller) => Ok(Arc::new(Drive::new(controller))),
        Err(error) => Err(Failure::drive(address, &error)),
    }
}

fn open_namespace(
    backend: &Backend,
    drive: Arc<Drive>,
    namespace: Option<u32>,
) -> Result<Opened, Failure> {
    let first = || drive.controller.namespaces().first().map(|namespace| namespace.nsid);
    let Some(nsid) = namespace.or_else(first) else {
        let what = format!("{backend} has no active namespace");
        return Err(Failure::new(Exit::NotFound, what, "create one, with nvme-cli for example"));
    };
    let device = drive
        .controller
        .namespace(nsid)
        .map_err(|error| Failure { exit: Exit::NotFound, ..Failure::drive(backend, &error) })?;
    Ok(Opened { drive: Some(drive), ..Opened::plain(device) })
}
