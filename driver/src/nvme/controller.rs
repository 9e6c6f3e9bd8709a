//! A controller: from reset to queue pairs, and back (Base 2.0c §3.5, §3.6).

mod bring_up;
mod rescan;

pub use rescan::NamespaceChanges;

use std::collections::BTreeSet;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::block::Health;
use crate::clock::Clock;
use crate::dma::DmaPool;
use crate::error::DeviceError;
use crate::vfio::{PciAddress, VfioFunction};

use super::admin::{AdminError, AdminQueue};
use super::commands::{Command, CommandError, Data};
use super::discard::DsmLimits;
use super::failure::{Failure, Fate};
use super::info::{ControllerInfo, NamespaceInfo};
use super::namespace::NvmeNamespace;
use super::queue::QueueMemory;
use super::registers::{Function, Properties};
use super::ring::{self, CompletionRing, SubmissionRing};
use super::spec::command::{FEATURE_HOST_MEMORY_BUFFER, FEATURE_NUMBER_OF_QUEUES};
use super::spec::register::{SHN_NORMAL, SHST_COMPLETE};
use super::spec::{Cap, Csts, Opcode};
use super::transfer::Transfer;

use bring_up::Start;

/// How a controller is to be driven.
#[derive(Clone, Copy, Debug)]
pub struct ControllerOptions {
    /// How many I/O queues to ask for. Each costs memory of the pool only when it is opened.
    pub queues_max: u16,
    /// How long an I/O command may take before the controller is given up.
    pub command_timeout: Duration,
    /// How long an admin command may take before the controller is given up.
    pub admin_timeout: Duration,
}

impl Default for ControllerOptions {
    /// Up to 64 queues; 30 s a command of either kind, as the Linux driver's `io_timeout`.
    fn default() -> Self {
        Self {
            queues_max: 64,
            command_timeout: Duration::from_secs(30),
            admin_timeout: Duration::from_secs(30),
        }
    }
}

/// An NVMe controller, enabled, with its admin queue. Its namespaces are the block devices
/// ([`namespace`](NvmeController::namespace)); they share its queues.
///
/// # Teardown
///
/// [`close`](NvmeController::close) shuts it down in order when no queue is open; so does dropping the
/// last reference to it and to its namespaces. Only then its memory is unmapped. If it does not stop,
/// and the IOMMU cannot be made to stop it, its memory is leaked.
#[derive(Debug)]
pub struct NvmeController {
    info: ControllerInfo,
    cap: Cap,
    dsm: DsmLimits,
    write_zeroes_max_bytes_log2: u8,
    options: ControllerOptions,
    fate: Arc<Fate>,
    properties: Properties,
    /// The active namespaces as they were last looked for.
    namespaces: Mutex<Arc<[NamespaceInfo]>>,
    shared: Mutex<Shared>,
    pool: DmaPool,
    clock: Arc<dyn Clock>,
    function: Arc<dyn Function>,
}

/// What the control paths share.
#[derive(Debug)]
struct Shared {
    admin: AdminQueue,
    /// Queue identifiers in use.
    queues: BTreeSet<u16>,
    /// Namespaces that are open.
    namespaces: BTreeSet<u32>,
    closed: bool,
}

/// What queues need of their controller.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) pool: &'a DmaPool,
    pub(super) fate: &'a Arc<Fate>,
    pub(super) function: &'a Arc<dyn Function>,
    pub(super) clock: &'a Arc<dyn Clock>,
    pub(super) cap: Cap,
    pub(super) command_timeout: Duration,
}

impl NvmeController {
    /// Takes the NVMe drive at `address`, bound to vfio-pci, maps `pool` for it and starts it.
    /// Blocks, for at most a few times CAP.TO.
    ///
    /// # Errors
    ///
    /// One line that says what to do: no such address, not an NVMe drive, no IOMMU, bound to another
    /// driver, a group shared with another device, no permission, held by another process; or what
    /// the controller did wrong.
    pub fn open(
        address: PciAddress,
        pool: DmaPool,
        options: ControllerOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, DeviceError> {
        let function = VfioFunction::open(address, &pool)?;
        Self::start(Arc::new(function), pool, options, clock)
    }

    /// Starts the controller behind `function`, for which `pool` is mapped. Blocks as
    /// [`open`](NvmeController::open).
    ///
    /// # Errors
    ///
    /// What the controller did wrong or did not do in time. It is disabled then.
    pub fn start(
        function: Arc<dyn Function>,
        pool: DmaPool,
        options: ControllerOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, DeviceError> {
        let properties = Properties::new(Arc::clone(&function));
        let start = Start { function, pool, options, clock, properties };
        start.run().map(Arc::new)
    }

    /// How many frames of the pool a queue of `depth` takes while it is open.
    pub fn frames_for_queue(depth: u16) -> usize {
        let (submission, completion) = ring::frames_for(depth);
        submission + completion + usize::from(depth)
    }

    /// How many frames of the pool the controller itself takes.
    pub const fn frames_for_controller() -> usize {
        AdminQueue::FRAMES
    }

    /// What it says about itself and its namespaces.
    pub fn identify(&self) -> &ControllerInfo {
        &self.info
    }

    /// Opens a namespace as a block device. A namespace is open once at a time. Closing the last one
    /// that is open closes the controller.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Invalid`] when there is no such namespace, it is open already, or its format is
    /// not supported; [`DeviceError::Failed`] when the controller serves no more.
    pub fn namespace(self: &Arc<Self>, nsid: u32) -> Result<Arc<NvmeNamespace>, DeviceError> {
        let name = &self.info.name;
        self.check_running()?;
        let known = self.namespaces();
        let Some(info) = known.iter().find(|info| info.nsid == nsid) else {
            let there: Vec<_> = known.iter().map(|ns| ns.nsid.to_string()).collect();
            let there = there.join(", ");
            return Err(DeviceError::Invalid(format!(
                "{name}: no namespace {nsid}; there are: {there}"
            )));
        };
        if let Some(why) = info.unsupported() {
            return Err(DeviceError::Invalid(format!("{name}: {why}")));
        }
        if !self.lock().namespaces.insert(nsid) {
            return Err(DeviceError::Invalid(format!("{name}: namespace {nsid} is open already")));
        }
        Ok(Arc::new(NvmeNamespace::new(Arc::clone(self), info)))
    }

    /// How it is.
    pub fn health(&self) -> Health {
        match self.fate.failure() {
            None => Health::Good,
            Some(failure) => Health::Failed(failure.io_error()),
        }
    }

    /// Why it serves no more; `None` while it does.
    pub fn failure(&self) -> Option<Failure> {
        self.fate.failure()
    }

    /// Shuts the controller down in order (CC.SHN), which makes its volatile cache stable, and disables
    /// it. Takes effect once. Blocks, bounded by RTD3E (at least 1 s) and CAP.TO.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Failed`] when queues are still open or the controller had failed before;
    /// [`DeviceError::TimedOut`] when it did not shut down. In the last two cases it is closed.
    pub fn close(&self) -> Result<(), DeviceError> {
        let mut shared = self.lock();
        if shared.closed {
            return Ok(());
        }
        if !shared.queues.is_empty() {
            return Err(DeviceError::Failed {
                device: self.info.name.clone(),
                reason: format!("{} of its queues are still open", shared.queues.len()),
            });
        }
        shared.closed = true;
        let result = self.check_running().and_then(|()| self.shut_down());
        self.fate.fail(Failure::Closed);
        if !self.fate.wait_quiet() {
            self.leak(&mut shared);
        }
        result
    }

    /// Normal shutdown (Base 2.0c §3.6.1): the queues are deleted, then SHN is set and SHST waited for.
    fn shut_down(&self) -> Result<(), DeviceError> {
        if let Some(cc) = self.properties.cc() {
            self.properties.set_cc(cc.with_shn(SHN_NORMAL));
        }
        let timeout = self.info.shutdown_timeout;
        let done = wait(&self.properties, &*self.clock, timeout, |csts| {
            csts.shst() == SHST_COMPLETE || csts.cfs()
        });
        match done {
            Ok(csts) if csts.cfs() => Err(self.failed(Failure::Fatal)),
            Ok(_) => Ok(()),
            Err(Waited::Gone) => Err(self.failed(Failure::Removed)),
            Err(Waited::For(waited_ms)) => Err(DeviceError::TimedOut {
                what: format!("{}: the shutdown (CSTS.SHST)", self.info.name),
                waited_ms,
            }),
        }
    }

    /// Gives up what the controller may use for ever. The function keeps it mapped, and its pool.
    fn leak(&self, shared: &mut Shared) {
        shared.admin.leak();
        mem::forget(Arc::clone(&self.function));
        mem::forget(self.pool.clone());
    }

    pub(super) fn parts(&self) -> Parts<'_> {
        Parts {
            pool: &self.pool,
            fate: &self.fate,
            function: &self.function,
            clock: &self.clock,
            cap: self.cap,
            command_timeout: self.options.command_timeout,
        }
    }

    /// Sends an admin command with its data and waits for the answer: dword 0 of the completion. Blocks,
    /// bounded by the command's timeout. The commands with names are in [`commands`](super::commands);
    /// this is what they and passthrough come down to.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] for what is the driver's own (queues, events, shadow doorbells) and for
    /// data larger than the controller takes; [`CommandError::Status`] with what the controller says;
    /// [`CommandError::Device`] when it does not.
    pub fn admin(&self, command: &Command, data: Data<'_>) -> Result<u32, CommandError> {
        self.check_admin(command)?;
        let name = &self.info.name;
        let transfer = self.transfer(data.len_bytes())?;
        if let (Data::Out(bytes), Some(transfer)) = (&data, &transfer) {
            transfer.fill(bytes);
        }
        self.check_running()?;
        let answer = self.lock().admin.command(command, transfer.as_ref());
        match answer {
            Ok(dw0) => {
                if let (Data::In(bytes), Some(transfer)) = (data, &transfer) {
                    transfer.copy_out(bytes);
                }
                Ok(dw0)
            }
            Err(AdminError::Status(status)) => Err(CommandError::Status {
                device: name.clone(),
                command: command.opcode.admin_name(),
                status,
            }),
            Err(AdminError::Failed(failure)) => {
                if let Some(mut transfer) = transfer
                    && !self.fate.wait_quiet()
                {
                    transfer.leak();
                }
                Err(self.failed(failure).into())
            }
        }
    }

    /// What is the driver's own is not for others to send.
    fn check_admin(&self, command: &Command) -> Result<(), CommandError> {
        let number_of_queues = command.opcode == Opcode::SET_FEATURES
            && command.cdw10[0] & 0xff == FEATURE_NUMBER_OF_QUEUES;
        let host_memory = command.opcode == Opcode::SET_FEATURES
            && command.cdw10[0] & 0xff == FEATURE_HOST_MEMORY_BUFFER;
        let own = matches!(
            command.opcode,
            Opcode::DELETE_IO_SQ
                | Opcode::CREATE_IO_SQ
                | Opcode::DELETE_IO_CQ
                | Opcode::CREATE_IO_CQ
                | Opcode::ABORT
                | Opcode::ASYNCHRONOUS_EVENT_REQUEST
                | Opcode::DOORBELL_BUFFER_CONFIG
        );
        if own || number_of_queues || host_memory {
            let name = command.opcode.admin_name();
            let what =
                format!("{name} (dword 10 {:#x}) is the driver's own to send", command.cdw10[0]);
            return Err(CommandError::invalid(&self.info.name, what));
        }
        Ok(())
    }

    /// Memory for the data of a command; `None` for a command without data.
    pub(super) fn transfer(&self, len_bytes: usize) -> Result<Option<Transfer>, CommandError> {
        let most = self.info.transfer_max_bytes as usize;
        if len_bytes > most {
            let what = format!("{len_bytes} bytes are more than one command carries, {most}");
            return Err(CommandError::invalid(&self.info.name, what));
        }
        if len_bytes == 0 {
            return Ok(None);
        }
        let transfer = Transfer::new(&self.pool, len_bytes);
        transfer.map(Some).ok_or_else(|| {
            let frames = Transfer::frames_for(len_bytes);
            let source = std::io::Error::other(format!(
                "a command with {len_bytes} bytes of data needs {frames} frames and the pool has no \
                 such run free"
            ));
            let bytes = (frames * crate::dma::FRAME_SIZE) as u64;
            DeviceError::NoMemory { bytes, source }.into()
        })
    }

    pub(super) fn dsm_limits(&self) -> DsmLimits {
        self.dsm
    }

    /// What one Write Zeroes may cover, in bytes as a power of two.
    pub(super) fn write_zeroes_max_bytes_log2(&self) -> u8 {
        self.write_zeroes_max_bytes_log2
    }

    pub(super) fn check_running(&self) -> Result<(), DeviceError> {
        self.fate.failure().map_or(Ok(()), |failure| Err(self.failed(failure)))
    }

    fn failed(&self, failure: Failure) -> DeviceError {
        failed(&self.info.name, failure)
    }

    /// Makes a queue pair: its identifier, its interrupt vector and its memory.
    pub(super) fn create_queue(
        &self,
        depth: u16,
    ) -> Result<(u16, Option<u16>, QueueMemory), DeviceError> {
        self.check_running()?;
        let shared = &mut *self.lock();
        let max = self.info.queues_max;
        let Some(qid) = (1..=max).find(|qid| !shared.queues.contains(qid)) else {
            return Err(DeviceError::NoMoreQueues { max });
        };
        let memory = self.queue_memory(qid, depth).ok_or_else(|| self.no_memory(depth))?;
        let vector = (qid < self.function.vectors()).then_some(qid);
        let named = |error| self.admin_error("create a queue", error);
        let admin = &mut shared.admin;
        let created = admin.create_cq(qid, &memory.cq, vector).map_err(named).and_then(|()| {
            admin.create_sq(qid, &memory.sq).map_err(|error| {
                // Nothing can be in flight on it; when this fails too, the controller has.
                let _ = admin.delete_cq(qid);
                named(error)
            })
        });
        match created {
            Ok(()) => {
                shared.queues.insert(qid);
                Ok((qid, vector, memory))
            }
            Err(error) => {
                if self.fate.failure().is_some() && !self.fate.wait_quiet() {
                    let QueueMemory { mut sq, mut cq, mut lists } = memory;
                    sq.leak();
                    cq.leak();
                    lists.leak();
                }
                Err(error)
            }
        }
    }

    fn queue_memory(&self, qid: u16, depth: u16) -> Option<QueueMemory> {
        Some(QueueMemory {
            sq: SubmissionRing::new(&self.pool, qid, depth)?,
            cq: CompletionRing::new(&self.pool, depth)?,
            lists: self.pool.take_region(usize::from(depth))?,
        })
    }

    fn no_memory(&self, depth: u16) -> DeviceError {
        let frames = Self::frames_for_queue(depth);
        DeviceError::NoMemory {
            bytes: (frames * crate::dma::FRAME_SIZE) as u64,
            source: std::io::Error::other(format!(
                "a queue of depth {depth} needs {frames} frames and the pool has no such runs free"
            )),
        }
    }

    /// Deletes a queue pair, submission queue first, so that nothing completes into a queue that is
    /// gone. Whether the controller is done with its memory. Blocks, bounded by the admin timeout.
    pub(super) fn delete_queue(&self, qid: u16) -> bool {
        let mut shared = self.lock();
        if qid < self.function.vectors() {
            self.function.set_interrupt(qid, false);
        }
        let deleted = shared.admin.delete_sq(qid).and_then(|()| shared.admin.delete_cq(qid));
        if let Err(AdminError::Status(_)) = deleted {
            // It holds on to the queue's memory: only disabling it lets go.
            self.fate.fail(Failure::KeepsQueue { qid });
        }
        let quiet = deleted.is_ok() || self.fate.wait_quiet();
        shared.queues.remove(&qid);
        quiet
    }

    /// A namespace is not open any more. Whether it was the last one.
    pub(super) fn put_namespace(&self, nsid: u32) -> bool {
        let mut shared = self.lock();
        shared.namespaces.remove(&nsid);
        shared.namespaces.is_empty()
    }

    /// Whether `nsid` is the only namespace that is open.
    pub(super) fn is_last_namespace(&self, nsid: u32) -> bool {
        self.lock().namespaces.iter().all(|&open| open == nsid)
    }

    fn admin_error(&self, what: &str, error: AdminError) -> DeviceError {
        admin_error(&self.info.name, what, error)
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for NvmeController {
    fn drop(&mut self) {
        // Queues hold a reference to their controller, so none is open. What close says cannot be
        // told to anybody any more; it has disabled the controller or leaked the memory either way.
        let _ = self.close();
    }
}

/// Why a wait for CSTS ended without what it waited for.
enum Waited {
    Gone,
    /// For so many milliseconds.
    For(u64),
}

fn wait(
    properties: &Properties,
    clock: &dyn Clock,
    timeout: Duration,
    done: impl Fn(Csts) -> bool,
) -> Result<Csts, Waited> {
    let start = clock.now();
    loop {
        let csts = properties.csts().ok_or(Waited::Gone)?;
        if done(csts) {
            return Ok(csts);
        }
        let waited = clock.now().saturating_sub(start);
        if waited >= timeout {
            return Err(Waited::For(waited.as_millis() as u64));
        }
        clock.sleep(Duration::from_millis(1));
    }
}

fn failed(name: &str, failure: Failure) -> DeviceError {
    DeviceError::Failed { device: name.to_owned(), reason: failure.to_string() }
}

fn admin_error(name: &str, what: &str, error: AdminError) -> DeviceError {
    match error {
        AdminError::Failed(failure) => failed(name, failure),
        AdminError::Status(status) => DeviceError::Failed {
            device: name.to_owned(),
            reason: format!("the controller refused to {what}: {status}"),
        },
    }
}
