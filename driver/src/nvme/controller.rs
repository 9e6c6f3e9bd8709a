//! A controller: from reset to queue pairs, and back (Base 2.0c §3.5, §3.6).

mod bring_up;
mod events;
mod recovery;
mod rescan;

pub use rescan::NamespaceChanges;

use std::collections::BTreeSet;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use crate::block::Health;
use crate::clock::Clock;
use crate::dma::DmaPool;
use crate::error::DeviceError;
use crate::vfio::{PciAddress, VfioFunction};

use super::admin::{self, AdminError, AdminQueue, Purpose, Ticket};
use super::commands::{Command, CommandError, Data, NSID_ALL};
use super::discard::DsmLimits;
use super::failure::Failure;
use super::fate::{Fate, Standing};
use super::info::{ControllerInfo, NamespaceInfo};
use super::namespace::{NamespaceState, NvmeNamespace};
use super::queue::QueueMemory;
use super::registers::{Function, Properties};
use super::ring::{self, CompletionRing, SubmissionRing};
use super::shadow::Shadow;
use super::spec::command::{FEATURE_HOST_MEMORY_BUFFER, FEATURE_NUMBER_OF_QUEUES, SubmissionEntry};
use super::spec::register::{SHN_NORMAL, SHST_COMPLETE};
use super::spec::{Cap, Cc, Csts, Opcode};
use super::statistics::ErrorStatistics;
use super::transfer::Transfer;

use bring_up::Start;
pub use events::Event;
use events::Listening;
use recovery::Recovery;

/// How a controller is to be driven.
#[derive(Clone, Copy, Debug)]
pub struct ControllerOptions {
    /// How many I/O queues to ask for. Each costs memory of the pool only when it is opened.
    pub queues_max: u16,
    /// How long an I/O command may take: past this it is aborted.
    pub command_timeout: Duration,
    /// How long an Abort may take to show: past this the controller is reset.
    pub abort_timeout: Duration,
    /// How long an admin command may take: past this the controller is reset.
    pub admin_timeout: Duration,
    /// How many resets in a row are tried before the controller is given up; 0 is none.
    pub resets_max: u32,
    /// Resets further apart than this are not in a row.
    pub resets_window: Duration,
    /// How often a request is sent again that an abort or a reset ended, or that failed with a status
    /// that may pass, if it may be.
    pub retries_max: u8,
    /// Whether doorbells are kept in memory when the controller offers it (Doorbell Buffer Config), as
    /// emulated ones do, for which a register is slow to write. Off: on QEMU it saves one write in
    /// seven, and no time that could be measured.
    pub shadow_doorbells: bool,
    /// Whether a request whose frames follow one another is described by a scatter/gather list, where
    /// the controller takes one and it is shorter than a PRP list.
    pub scatter_gather: bool,
    /// Whether a controller that does not stop may be reset with its whole NVM subsystem, other
    /// controllers of it included (NSSR).
    pub subsystem_reset: bool,
}

impl Default for ControllerOptions {
    /// Up to 64 queues; 30 s a command of either kind, as the Linux driver's `io_timeout`; 5 s for an
    /// Abort; five resets in ten minutes; a request is sent three times more at most; the subsystem is
    /// left alone.
    fn default() -> Self {
        Self {
            queues_max: 64,
            command_timeout: Duration::from_secs(30),
            abort_timeout: Duration::from_secs(5),
            admin_timeout: Duration::from_secs(30),
            resets_max: 5,
            resets_window: Duration::from_secs(600),
            retries_max: 3,
            shadow_doorbells: false,
            scatter_gather: true,
            subsystem_reset: false,
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
    /// What it was enabled with.
    cc: Cc,
    /// How many Abort commands it takes at once.
    aborts_max: usize,
    dsm: DsmLimits,
    write_zeroes_max_bytes_log2: u8,
    /// How long to wait before a command is sent again, by the Command Retry Delay of its status.
    retry_delays: [Duration; 4],
    shadow: Option<Arc<Shadow>>,
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

/// An admin command that sets something.
type Setting = (Opcode, SubmissionEntry);

/// What the control paths share.
#[derive(Debug)]
struct Shared {
    admin: AdminQueue,
    /// Queue identifiers in use.
    queues: BTreeSet<u16>,
    /// Namespaces that are open, as block devices or by command queues.
    opened: Vec<Opened>,
    /// Namespaces that are being taken away, which nobody may open.
    claimed: Vec<u32>,
    /// When the controller's status was last looked at.
    looked: Duration,
    closed: bool,
    recovery: Recovery,
    listening: Listening,
    /// Admin commands that are part of every bring-up after a reset.
    settings: Vec<Setting>,
}

/// A namespace that is open.
#[derive(Debug)]
struct Opened {
    /// As it was when it was opened, or refreshed.
    info: NamespaceInfo,
    state: Arc<NamespaceState>,
    /// By a block device, which there is one of.
    device: bool,
}

/// Keeps a namespace, or all, from being opened while it is taken away.
#[derive(Debug)]
#[must_use = "it ends when it is dropped"]
pub(super) struct Claim<'a> {
    controller: &'a NvmeController,
    nsid: u32,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let claimed = &mut self.controller.lock().claimed;
        if let Some(at) = claimed.iter().position(|&nsid| nsid == self.nsid) {
            claimed.swap_remove(at);
        }
    }
}

/// A queue pair that the controller knows of.
#[derive(Debug)]
pub(super) struct Created {
    pub(super) qid: u16,
    pub(super) vector: Option<u16>,
    pub(super) memory: QueueMemory,
    /// The controller's state in which it does.
    pub(super) serving: u32,
}

/// What queues need of their controller.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) pool: &'a DmaPool,
    pub(super) fate: &'a Arc<Fate>,
    pub(super) function: &'a Arc<dyn Function>,
    pub(super) clock: &'a Arc<dyn Clock>,
    pub(super) cap: Cap,
    pub(super) shadow: Option<&'a Arc<Shadow>>,
    pub(super) options: &'a ControllerOptions,
    pub(super) retry_delays: [Duration; 4],
}

impl NvmeController {
    /// Takes the NVMe drive at `address`, bound to vfio-pci, maps `pool` for it and starts it.
    /// Blocks, for at most a few times CAP.TO and the admin timeout.
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

    /// How many frames of the pool the controller itself takes, at most.
    pub const fn frames_for_controller() -> usize {
        AdminQueue::FRAMES + Shadow::FRAMES
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
        // Blocks that are written in order only are no block device's.
        if self.cc.css() != 0
            && self.namespace_descriptors(nsid).is_ok_and(|it| it.csi.is_some_and(|set| set != 0))
        {
            return Err(DeviceError::Invalid(format!(
                "{name}: namespace {nsid} is not of the NVM command set; it may be zoned"
            )));
        }
        let state = self
            .put_open(info, true)
            .map_err(|why| DeviceError::Invalid(format!("{name}: namespace {nsid} {why}")))?;
        Ok(Arc::new(NvmeNamespace::new(Arc::clone(self), info, state)))
    }

    /// Counts a namespace as open; or says why it cannot be opened.
    pub(super) fn put_open(
        &self,
        info: &NamespaceInfo,
        device: bool,
    ) -> Result<Arc<NamespaceState>, &'static str> {
        let mut shared = self.lock();
        let nsid = info.nsid;
        if shared.claimed.iter().any(|&claimed| claimed == nsid || claimed == NSID_ALL) {
            return Err("is being formatted, sanitized, deleted or detached");
        }
        if device && shared.opened.iter().any(|opened| opened.device && opened.info.nsid == nsid) {
            return Err("is open already");
        }
        let state = Arc::new(NamespaceState::default());
        let opened = Opened { info: info.clone(), state: Arc::clone(&state), device };
        shared.opened.push(opened);
        Ok(state)
    }

    /// Takes the shape that an open namespace has now for what it is compared with after a reset; not,
    /// when it is another namespace.
    pub(super) fn reopened(&self, state: &Arc<NamespaceState>, now: &NamespaceInfo) -> bool {
        let mut shared = self.lock();
        let is = |opened: &&mut Opened| Arc::ptr_eq(&opened.state, state);
        let Some(opened) = shared.opened.iter_mut().find(is) else { return false };
        let same = (opened.info.nguid, opened.info.eui64) == (now.nguid, now.eui64);
        if same {
            opened.info = now.clone();
        }
        same
    }

    /// Claims a namespace, or all ([`NSID_ALL`]), to take it away; the one that is open when one is.
    pub(super) fn claim(&self, nsid: u32) -> Result<Claim<'_>, u32> {
        let mut shared = self.lock();
        let is = |opened: &&Opened| nsid == NSID_ALL || opened.info.nsid == nsid;
        if let Some(opened) = shared.opened.iter().find(is) {
            return Err(opened.info.nsid);
        }
        shared.claimed.push(nsid);
        Ok(Claim { controller: self, nsid })
    }

    /// The changed namespaces that were read of before, to tell of them.
    pub(super) fn changed_before(&self, retain: bool) -> BTreeSet<u32> {
        self.lock().listening.changed(retain)
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

    /// What had to be done about failures since it was opened.
    pub fn error_statistics(&self) -> ErrorStatistics {
        self.fate.counters.read()
    }

    /// Shuts the controller down in order (CC.SHN), which makes its volatile cache stable, and disables
    /// it. Takes effect once. Blocks, bounded by RTD3E (at least 1 s) and CAP.TO.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Failed`] when queues are still open or the controller had failed before;
    /// [`DeviceError::TimedOut`] when it did not shut down. In the last two cases it is closed.
    pub fn close(&self) -> Result<(), DeviceError> {
        // A reset that is under way is waited for, which needs the lock.
        let running = self.check_running();
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
        let result = running.and_then(|()| self.shut_down());
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
        mem::forget(self.shadow.clone());
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
            shadow: self.shadow.as_ref(),
            options: &self.options,
            retry_delays: self.retry_delays,
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
    /// [`CommandError::Ended`] when a reset, or its end, took the command; [`CommandError::Device`] when
    /// it was not sent.
    pub fn admin(&self, command: &Command, data: Data<'_>) -> Result<u32, CommandError> {
        self.check_admin(command)?;
        let name = &self.info.name;
        let transfer = self.transfer(data.len_bytes())?;
        if let (Data::Out(bytes), Some(transfer)) = (&data, &transfer) {
            transfer.fill(bytes);
        }
        self.check_running()?;
        let entry = AdminQueue::entry_of(command, transfer.as_ref());
        let timeout = command.timeout.unwrap_or(self.options.admin_timeout);
        let answer = self.command_within(command.opcode, entry, None, timeout);
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
            Err(AdminError::Failed(failure)) => Err(self.failed(failure).into()),
            Err(AdminError::Lost(failure)) => {
                if let Some(mut transfer) = transfer
                    && !self.wait_forgotten()
                {
                    transfer.leak();
                }
                Err(CommandError::Ended {
                    device: name.clone(),
                    command: command.opcode.admin_name(),
                    reason: failure.to_string(),
                    may_have_been_done: command.may_change(),
                })
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

    /// Whether it serves. Blocks while it is reset, bounded by what resets take.
    pub(super) fn check_running(&self) -> Result<(), DeviceError> {
        while matches!(self.fate.standing(), Standing::Stopping | Standing::Reviving) {
            self.turn();
            self.clock.sleep(Duration::from_millis(1));
        }
        self.fate.failure().map_or(Ok(()), |failure| Err(self.failed(failure)))
    }

    /// Why it does not serve just now, if it does not. Does not wait.
    pub(super) fn trouble(&self) -> Option<DeviceError> {
        self.fate.trouble().map(|failure| self.failed(failure))
    }

    fn failed(&self, failure: Failure) -> DeviceError {
        failed(&self.info.name, failure)
    }

    /// Makes a queue pair: its identifier, its interrupt vector and its memory.
    pub(super) fn create_queue(&self, depth: u16) -> Result<Created, DeviceError> {
        let epoch = loop {
            self.check_running()?;
            if let Standing::Running(epoch) = self.fate.standing() {
                break epoch;
            }
        };
        let max = self.info.queues_max;
        let qid = {
            let shared = &mut *self.lock();
            let free = (1..=max).find(|qid| !shared.queues.contains(qid));
            let qid = free.ok_or(DeviceError::NoMoreQueues { max })?;
            shared.queues.insert(qid);
            qid
        };
        let memory = self.queue_memory(qid, depth).ok_or_else(|| self.no_memory(depth));
        let created = memory.and_then(|memory| self.create_pair(qid, epoch, memory));
        if created.is_err() {
            self.lock().queues.remove(&qid);
        }
        let serving = Fate::running_word(epoch);
        created.map(|(vector, memory)| Created { qid, vector, memory, serving })
    }

    fn create_pair(
        &self,
        qid: u16,
        epoch: u32,
        memory: QueueMemory,
    ) -> Result<(Option<u16>, QueueMemory), DeviceError> {
        if let Some(shadow) = &self.shadow {
            shadow.clear(qid);
        }
        let vector = self.vector(qid);
        let command = |opcode, entry| self.command(opcode, entry, Some(epoch));
        let created =
            command(Opcode::CREATE_IO_CQ, admin::create_cq_entry(qid, &memory.cq, vector))
                .and_then(|_| {
                    let entry = admin::create_sq_entry(qid, &memory.sq);
                    command(Opcode::CREATE_IO_SQ, entry).inspect_err(|error| {
                        // Nothing can be in flight on it, but the controller has its memory.
                        if matches!(error, AdminError::Status(_)) {
                            let deleted = command(Opcode::DELETE_IO_CQ, admin::delete_entry(qid));
                            self.keeps_queue(qid, epoch, &deleted);
                        }
                    })
                });
        let Err(error) = created else { return Ok((vector, memory)) };
        let forgotten = self.wait_forgotten();
        // A reset came: the queue is one that was lost with it, which its first poll makes anew.
        if !matches!(error, AdminError::Status(_)) && self.fate.failure().is_none() {
            return Ok((vector, memory));
        }
        if !forgotten {
            let QueueMemory { mut sq, mut cq, mut lists } = memory;
            sq.leak();
            cq.leak();
            lists.leak();
        }
        Err(self.admin_error("create a queue", error))
    }

    /// A controller that refuses to delete a queue that it knows of holds on to the queue's memory: only
    /// disabling it lets go.
    fn keeps_queue(&self, qid: u16, epoch: u32, deleted: &Result<u32, AdminError>) {
        let refused = matches!(deleted, Err(AdminError::Status(_)));
        // After a reset meanwhile it knows of no such queue any more.
        if refused && self.fate.standing() == Standing::Running(epoch) {
            self.fate.fail(Failure::KeepsQueue { qid });
        }
    }

    /// The interrupt vector of a queue, if there is one for it.
    pub(super) fn vector(&self, qid: u16) -> Option<u16> {
        (qid < self.function.vectors()).then_some(qid)
    }

    /// Sends an admin command without data and waits for its answer: dword 0 of it. Others use the
    /// admin queue meanwhile. With an `epoch` it is for the controller as it was made up then. Blocks,
    /// bounded by the admin timeout.
    fn command(
        &self,
        opcode: Opcode,
        entry: SubmissionEntry,
        epoch: Option<u32>,
    ) -> Result<u32, AdminError> {
        self.command_within(opcode, entry, epoch, self.options.admin_timeout)
    }

    /// [`command`](NvmeController::command) for one that may take `timeout`.
    fn command_within(
        &self,
        opcode: Opcode,
        entry: SubmissionEntry,
        epoch: Option<u32>,
        timeout: Duration,
    ) -> Result<u32, AdminError> {
        let ticket = loop {
            let posted = self.lock().admin.post_for(opcode, entry, epoch, timeout)?;
            match posted {
                Some(ticket) => break ticket,
                None => self.turn(),
            }
            self.clock.sleep(admin::POLL_INTERVAL);
        };
        loop {
            {
                let mut shared = self.lock();
                self.turn_with(&mut shared);
                if let Some(answer) = shared.admin.take(ticket) {
                    return answer;
                }
            }
            if let Some(failure) = self.fate.examine() {
                self.fate.fail(failure);
            }
            self.clock.sleep(admin::POLL_INTERVAL);
        }
    }

    /// [`command`](NvmeController::command) in two halves, for whoever polls, in `epoch` only; `None`
    /// when the queue or its lock is taken just now.
    pub(super) fn post(
        &self,
        epoch: u32,
        opcode: Opcode,
        entry: SubmissionEntry,
    ) -> Result<Option<Ticket>, AdminError> {
        let timeout = self.options.admin_timeout;
        self.try_lock().map_or(Ok(None), |mut shared| {
            shared.admin.post_for(opcode, entry, Some(epoch), timeout)
        })
    }

    /// The answer to what `post` sent; `None` while there is none.
    pub(super) fn take(&self, ticket: Ticket) -> Option<Result<u32, AdminError>> {
        self.try_lock()?.admin.take(ticket)
    }

    /// Asks for the end of a command; `None` when the controller takes no Abort just now.
    pub(super) fn abort(&self, qid: u16, cid: u16) -> Option<Ticket> {
        let mut shared = self.try_lock()?;
        if shared.admin.in_flight(Purpose::Abort) >= self.aborts_max || !self.fate.is_running() {
            return None;
        }
        let entry = admin::abort_entry(qid, cid);
        let ticket = shared.admin.post(Opcode::ABORT, entry, Purpose::Abort).ok().flatten()?;
        self.fate.counters.aborts.add(1);
        Some(ticket)
    }

    /// Whether an Abort has been answered; not known while the lock is taken.
    pub(super) fn is_over(&self, ticket: Ticket) -> bool {
        self.try_lock().is_some_and(|shared| shared.admin.is_over(ticket))
    }

    /// Waits until a controller that failed has forgotten what it knew of memory: a reset has gone far
    /// enough, or it is quiet for good. `false` is never. One that did not fail has forgotten already.
    pub(super) fn wait_forgotten(&self) -> bool {
        loop {
            match self.fate.standing() {
                Standing::Running(_) | Standing::Reviving | Standing::Quiet => return true,
                Standing::Never => return false,
                Standing::Stopping | Standing::Ending => self.turn(),
            }
            self.clock.sleep(Duration::from_millis(1));
        }
    }

    fn queue_memory(&self, qid: u16, depth: u16) -> Option<QueueMemory> {
        Some(QueueMemory {
            sq: SubmissionRing::new(&self.pool, qid, depth)?,
            cq: CompletionRing::new(&self.pool, qid, depth, u32::from(self.cap.mqes()) + 1)?,
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
    /// gone. `serving` is the controller's state in which it knows of the pair. Whether the controller is done with its
    /// memory. Blocks, bounded by the admin timeout and what a reset takes.
    pub(super) fn delete_queue(&self, qid: u16, serving: u32) -> bool {
        if self.vector(qid).is_some() {
            self.function.set_interrupt(qid, false);
        }
        let mut deleted = false;
        if let Standing::Running(epoch) = self.fate.standing()
            && Fate::running_word(epoch) == serving
        {
            let entry = admin::delete_entry(qid);
            let answer = self
                .command(Opcode::DELETE_IO_SQ, entry, Some(epoch))
                .and_then(|_| self.command(Opcode::DELETE_IO_CQ, entry, Some(epoch)));
            deleted = answer.is_ok();
            self.keeps_queue(qid, epoch, &answer);
        }
        let quiet = deleted || self.wait_forgotten();
        self.lock().queues.remove(&qid);
        quiet
    }

    /// A namespace is not open any more.
    pub(super) fn put_namespace(&self, state: &Arc<NamespaceState>) {
        self.lock().opened.retain(|opened| !Arc::ptr_eq(&opened.state, state));
    }

    /// Whether `nsid` is the only namespace that is open as a block device.
    pub(super) fn is_last_namespace(&self, nsid: u32) -> bool {
        self.lock().opened.iter().all(|opened| !opened.device || opened.info.nsid == nsid)
    }

    fn admin_error(&self, what: &str, error: AdminError) -> DeviceError {
        admin_error(&self.info.name, what, error)
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock if nobody has it.
    fn try_lock(&self) -> Option<MutexGuard<'_, Shared>> {
        match self.shared.try_lock() {
            Ok(shared) => Some(shared),
            Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
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
        AdminError::Failed(failure) | AdminError::Lost(failure) => failed(name, failure),
        AdminError::Status(status) => DeviceError::Failed {
            device: name.to_owned(),
            reason: format!("the controller refused to {what}: {status}"),
        },
    }
}
