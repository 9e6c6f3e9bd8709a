//! An NVMe controller in this process, at the level of registers and queues, for tests.
//!
//! [`Model`] is what is behind the registers: it fetches commands from the rings in a pool's memory,
//! walks their PRP entries, moves data, and writes completions with phases, as the specification says
//! — and lies on demand ([`Lie`]). So the whole driver runs with no machine around it. It was written
//! from the specification's text and shares nothing with the driver but the layouts in
//! [`spec`](super::spec), so that each is a check of the other.
//!
//! It works inside the driver's doorbell writes, one command after the other, or when it is told to
//! ([`Model::step`]) after [`Model::set_deferred`].

mod admin;
mod failures;
mod identify;
mod io;
mod log;
mod maintenance;
mod medium;
pub mod prp;
mod reservation;
mod settings;
pub mod sgl;
mod shadow;
mod transfer;
mod zone;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vm_memory::Bytes;
use zerocopy::{FromBytes, IntoBytes};

use crate::clock::Clock;
use crate::dma::DmaPool;

use super::registers::{Function, Registers};
use super::spec::command::{CQE_SIZE, SQE_SIZE};
use super::spec::identify::oncs;
use super::spec::register::{self, Aqa, Cap, Cc, Csts, SHST_COMPLETE};
use super::spec::{CompletionEntry, Opcode, Status, SubmissionEntry};

pub use failures::Aborts;
use failures::Events;
use maintenance::AdminState;
pub use maintenance::FIRMWARE_MAGIC;
use medium::Medium;
pub use medium::ModelNamespace;
use reservation::Reservations;
use shadow::ShadowPages;

/// What the model is.
#[derive(Clone, Debug)]
pub struct ModelOptions {
    /// Its namespaces, from identifier 1 on.
    pub namespaces: Vec<ModelNamespace>,
    /// MDTS: the largest transfer is `4096 << mdts` bytes; 0 is no limit.
    pub mdts: u8,
    /// CAP.MQES, 0's based.
    pub mqes: u16,
    /// I/O queues it grants.
    pub queues: u16,
    /// Interrupt vectors.
    pub vectors: u16,
    /// CAP.DSTRD.
    pub dstrd: u8,
    /// CAP.TO, in units of 500 ms.
    pub to: u8,
    /// TNVMCAP: what all namespaces together can have, in bytes.
    pub capacity_bytes: u64,
    /// ONCS.
    pub oncs: u16,
    /// Whether it has a volatile write cache.
    pub volatile_cache: bool,
    /// Whether it knows the command-set specific Identify Controller (CNS 06h).
    pub reports_limits: bool,
    /// DMRL: ranges in a Dataset Management command, 0 not reported.
    pub dmrl: u8,
    /// Answers commands in a random order from this seed, instead of one after the other.
    pub shuffle: Option<u64>,
    /// CSTS.RDY never follows CC.EN = 1.
    pub never_ready: bool,
    /// CSTS.RDY never follows CC.EN = 0.
    pub never_disables: bool,
    /// CSTS.SHST never follows CC.SHN.
    pub never_shuts_down: bool,
    /// Whether its memory can be taken out of its reach.
    pub can_be_cut_off: bool,
    /// Whether it takes scatter/gather lists.
    pub scatter_gather: bool,
    /// Whether it does Doorbell Buffer Config.
    pub shadow_doorbells: bool,
    /// What it makes of Abort.
    pub aborts: Aborts,
    /// ACL: how many Abort commands it takes at once, 0's based.
    pub acl: u8,
    /// AERL: how many requests for events it takes, 0's based.
    pub aerl: u8,
    /// Whether it can be reset with its subsystem (CAP.NSSRS), which works also when nothing else does.
    pub subsystem_reset: bool,
    /// It is enabled once: CSTS.RDY does not follow CC.EN = 1 again.
    pub never_comes_back: bool,
    /// More than one controller can have its namespaces (NMIC).
    pub shared_namespaces: bool,
    /// FNA: bit 0 a format formats all namespaces, bit 1 so does an erase, bit 2 it erases by key.
    pub fna: u8,
    /// CRDT1 to CRDT3: the delays that a status may name, in units of 100 ms.
    pub retry_delays: [u16; 3],
    /// MTFA: for how long it may pause for new firmware, in units of 100 ms; 0 says nothing.
    pub mtfa: u16,
}

impl Default for ModelOptions {
    /// One namespace of 16 MiB in blocks of 512 bytes behind a volatile cache.
    fn default() -> Self {
        Self {
            namespaces: vec![ModelNamespace::new(16 << 20, 512)],
            mdts: 7,
            mqes: 1023,
            queues: 8,
            vectors: 9,
            dstrd: 0,
            to: 4,
            capacity_bytes: 64 << 20,
            oncs: oncs::DSM | oncs::WRITE_ZEROES,
            volatile_cache: true,
            reports_limits: true,
            dmrl: 0,
            shuffle: None,
            never_ready: false,
            never_disables: false,
            never_shuts_down: false,
            can_be_cut_off: true,
            scatter_gather: false,
            shadow_doorbells: false,
            aborts: Aborts::Work,
            acl: 3,
            aerl: 3,
            subsystem_reset: false,
            never_comes_back: false,
            shared_namespaces: false,
            fna: 0b100,
            retry_delays: [0; 3],
            mtfa: 0,
        }
    }
}

/// What the controller does wrong with one I/O command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// None: the command is done and answered well.
    Honest,
    /// Completes another identifier instead, one that is not in flight.
    UnknownCommand,
    /// Completes it twice.
    RepeatedCommand,
    /// Completes it, and the command of the next identifier too.
    NextToo,
    /// Names another submission queue.
    WrongQueue,
    /// Says that it fetched one more command than was committed.
    BadHead,
    /// Does not move its SQ Head Pointer.
    Unfetched,
    /// Names a head of one command earlier, as one whose cores answer beside each other may.
    StaleHead,
    /// Writes the completion with the phase of the last pass.
    BadPhase,
    /// Fails it with this status.
    Status(Status),
    /// Never answers.
    Stuck,
    /// Completes with this for the second half of the entry, but for the phase bit.
    Garbage(u64),
}

/// What the model has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// I/O commands by opcode.
    pub commands: BTreeMap<u8, u64>,
    /// Commands with scatter/gather lists.
    pub scatter_gather: u64,
    /// Writes with FUA.
    pub fua: u64,
    /// Write Zeroes with DEAC.
    pub deac: u64,
    /// Ranges (LBA, blocks) of all Dataset Management commands, in order.
    pub ranges: Vec<(u64, u32)>,
    /// Writes to submission doorbells of I/O queues.
    pub sq_doorbells: u64,
    /// Writes to completion doorbells of I/O queues.
    pub cq_doorbells: u64,
    /// Queue and identifier of the commands that it was asked to abort.
    pub aborts: Vec<(u16, u16)>,
    /// How often CC.EN was set.
    pub enabled: u64,
    /// Requests for events, answered or not.
    pub event_requests: u64,
}

#[derive(Debug)]
struct Sq {
    base: u64,
    entries: u32,
    head: u32,
    cqid: u16,
    /// What it says its head is; stays behind when it lies.
    reported_head: u32,
}

#[derive(Debug)]
struct Cq {
    base: u64,
    entries: u32,
    tail: u32,
    phase: bool,
    vector: Option<u16>,
}

/// A command that was fetched and not answered.
#[derive(Debug)]
struct Fetched {
    qid: u16,
    entry: SubmissionEntry,
    lie: Lie,
}

#[derive(Debug)]
struct State {
    options: ModelOptions,
    cc: Cc,
    csts: Csts,
    aqa: Aqa,
    asq: u64,
    acq: u64,
    sqs: BTreeMap<u16, Sq>,
    cqs: BTreeMap<u16, Cq>,
    shadow: Option<ShadowPages>,
    media: BTreeMap<u32, Medium>,
    /// What the first half of a fused operation came to, until the second comes.
    fused_failed: Option<bool>,
    reservations: BTreeMap<u32, Reservations>,
    admin: AdminState,
    fetched: Vec<Fetched>,
    lies: VecDeque<Lie>,
    admin_lies: VecDeque<Lie>,
    events: Events,
    /// Vectors of what was completed beside the command at hand.
    to_fire: Vec<u16>,
    another: bool,
    lists_for_ever: bool,
    /// Where Identify's answers come from when they are made up.
    mumbles: Option<fastrand::Rng>,
    held: bool,
    random: fastrand::Rng,
    seen: Seen,
    doorbells: Arc<[AtomicU32]>,
    pool: DmaPool,
}

struct Vector {
    fd: OwnedFd,
    on: AtomicBool,
    pending: AtomicBool,
}

type Hook = Box<dyn FnOnce() + Send>;

/// An NVMe controller in this process. See the [module](self).
pub struct Model {
    state: Mutex<State>,
    /// What the doorbells were last written with.
    doorbells: Arc<[AtomicU32]>,
    vectors: Vec<Vector>,
    deferred: AtomicBool,
    /// Writes to submission doorbells of I/O queues that were deferred.
    deferred_sq: AtomicU64,
    removed: AtomicBool,
    cut_off: AtomicBool,
    asked_back: AtomicBool,
    /// What is to happen at the next look at CSTS.
    look_hook: Mutex<Option<Hook>>,
    /// The register that the memory-mapped doorbells start behind, in words a doorbell.
    stride: u32,
}

/// Size of the model's BAR in bytes.
const BAR_BYTES: usize = 0x4000;

impl Model {
    /// A controller that reaches the memory of `pool`.
    ///
    /// # Panics
    ///
    /// When the process cannot have more file descriptors.
    pub fn new(options: ModelOptions, pool: DmaPool) -> Arc<Self> {
        let stride = 4 << options.dstrd;
        let vector = |_| Vector {
            fd: rustix::event::eventfd(0, eventfd_flags()).expect("an eventfd"),
            on: AtomicBool::new(false),
            pending: AtomicBool::new(false),
        };
        let doorbells = (BAR_BYTES - register::DOORBELLS as usize) / stride as usize;
        let doorbells: Arc<[_]> = (0..doorbells).map(|_| AtomicU32::new(0)).collect();
        Arc::new(Self {
            doorbells: Arc::clone(&doorbells),
            vectors: (0..options.vectors).map(vector).collect(),
            deferred: AtomicBool::new(false),
            deferred_sq: AtomicU64::new(0),
            removed: AtomicBool::new(false),
            cut_off: AtomicBool::new(false),
            asked_back: AtomicBool::new(false),
            look_hook: Mutex::new(None),
            stride,
            state: Mutex::new(State {
                media: (1..).zip(options.namespaces.iter().map(|&it| Medium::new(it))).collect(),
                random: fastrand::Rng::with_seed(options.shuffle.unwrap_or(0)),
                fused_failed: None,
                reservations: BTreeMap::new(),
                admin: AdminState::new(),
                cc: Cc::new(),
                csts: Csts::new(),
                aqa: Aqa::new(),
                shadow: None,
                asq: 0,
                acq: 0,
                sqs: BTreeMap::new(),
                cqs: BTreeMap::new(),
                fetched: Vec::new(),
                lies: VecDeque::new(),
                admin_lies: VecDeque::new(),
                events: Events::default(),
                to_fire: Vec::new(),
                another: false,
                lists_for_ever: false,
                mumbles: None,
                held: false,
                seen: Seen::default(),
                doorbells,
                pool,
                options,
            }),
        })
    }

    /// With `true`, commands are done by [`step`](Model::step) only, not inside doorbell writes.
    pub fn set_deferred(&self, deferred: bool) {
        self.deferred.store(deferred, Ordering::Relaxed);
    }

    /// What the controller does with the next I/O commands, one each; then it is honest again.
    pub fn lie(&self, lies: impl IntoIterator<Item = Lie>) {
        self.lock().lies.extend(lies);
    }

    /// With `true`, I/O commands are fetched and not answered until it is `false` again.
    pub fn hold(&self, held: bool) {
        self.lock().held = held;
        self.step();
    }

    /// Sets CSTS.CFS and does nothing any more.
    pub fn fail_fatally(&self) {
        self.lock().csts.set_cfs(true);
    }

    /// Takes the function off the bus: every register reads as all ones.
    pub fn remove(&self) {
        self.removed.store(true, Ordering::Relaxed);
    }

    /// Makes a block of a namespace unreadable until it is rewritten.
    pub fn spoil(&self, nsid: u32, lba: u64) {
        if let Some(medium) = self.lock().media.get_mut(&nsid) {
            medium.bad.insert(lba);
        }
    }

    /// Gives a namespace another number of blocks, as something else than this host would.
    pub fn resize(&self, nsid: u32, blocks: u64) {
        if let Some(medium) = self.lock().media.get_mut(&nsid) {
            medium.resize(blocks);
        }
    }

    /// Formats a namespace with blocks of another size, as another host would.
    pub fn reformat(&self, nsid: u32, block_size: u32) {
        if let Some(medium) = self.lock().media.get_mut(&nsid) {
            let bytes = medium.namespace.blocks << medium.namespace.lbads;
            medium.namespace.lbads = block_size.ilog2() as u8;
            medium.namespace.blocks = bytes >> medium.namespace.lbads;
            medium.erase();
        }
    }

    /// Deletes a namespace and makes another of the same identifier and shape.
    pub fn replace(&self, nsid: u32) {
        if let Some(medium) = self.lock().media.get_mut(&nsid) {
            medium.replaced = true;
            medium.erase();
        }
    }

    /// Attaches a namespace to this controller, or detaches it.
    pub fn attach(&self, nsid: u32, attached: bool) {
        if let Some(medium) = self.lock().media.get_mut(&nsid) {
            medium.attached = attached;
        }
    }

    /// Another MDTS, as new firmware may have it.
    pub fn set_mdts(&self, mdts: u8) {
        self.lock().options.mdts = mdts;
    }

    /// Lists a thousand namespaces behind whatever it is asked for, none of which is there.
    pub fn list_for_ever(&self) {
        self.lock().lists_for_ever = true;
    }

    /// Another host registers `key` with a namespace and acquires a reservation of type `kind`.
    pub fn other_host(&self, nsid: u32, key: u64, kind: u8) {
        self.lock().reservations.entry(nsid).or_default().other_host(key, kind);
    }

    /// Cuts the power: the controller is disabled and its volatile cache is lost.
    pub fn power_cut(&self) {
        let mut state = self.lock();
        state.reset();
        state.cc = Cc::new();
        state.csts = Csts::new();
        state.media.values_mut().for_each(Medium::power_cut);
    }

    /// What it has seen since the last call.
    pub fn take_seen(&self) -> Seen {
        let seen = std::mem::take(&mut self.lock().seen);
        let deferred = self.deferred_sq.swap(0, Ordering::Relaxed);
        Seen { sq_doorbells: seen.sq_doorbells + deferred, ..seen }
    }

    /// How many I/O queues there are.
    pub fn io_queues(&self) -> usize {
        self.lock().sqs.keys().filter(|&&qid| qid != 0).count()
    }

    /// Whether it is enabled.
    pub fn is_enabled(&self) -> bool {
        self.lock().cc.en()
    }

    /// Whether it was shut down in order.
    pub fn is_shut_down(&self) -> bool {
        self.lock().csts.shst() == SHST_COMPLETE
    }

    /// Whether its memory was taken out of its reach.
    pub fn is_cut_off(&self) -> bool {
        self.cut_off.load(Ordering::Relaxed)
    }

    /// Fetches every command that the doorbells say is there, and answers what it has.
    pub fn step(&self) {
        let state = &mut *self.lock();
        if !state.csts.rdy() || state.csts.cfs() || self.removed.load(Ordering::Relaxed) {
            return;
        }
        let reachable = !self.cut_off.load(Ordering::Relaxed);
        let qids: Vec<_> = state.sqs.keys().copied().collect();
        for qid in qids {
            let register = self.doorbells[usize::from(qid) * 2].load(Ordering::Relaxed);
            let tail = state.tail(qid, register);
            while reachable && state.fetch(qid, tail) {
                // Admin commands are answered one by one: they make and delete queues.
                if qid == 0 {
                    self.answer(state);
                }
            }
            state.knows_tail(qid, tail);
        }
        self.answer(state);
    }

    fn answer(&self, state: &mut State) {
        let mut index = 0;
        while index < state.fetched.len() {
            let rest = index..state.fetched.len();
            let at = match state.options.shuffle {
                Some(_) if state.fetched[index].qid != 0 => state.random.usize(rest),
                _ => index,
            };
            let fetched = &state.fetched[at];
            if fetched.lie == Lie::Stuck || (fetched.qid != 0 && state.held) {
                state.fetched.swap(index, at);
                index += 1;
                continue;
            }
            let fetched = state.fetched.remove(at);
            let vector = state.complete(fetched);
            state.to_fire.drain(..).chain(vector).for_each(|vector| self.fire(vector));
        }
    }

    fn fire(&self, vector: u16) {
        let Some(vector) = self.vectors.get(usize::from(vector)) else { return };
        if vector.on.load(Ordering::Relaxed) {
            let _ = rustix::io::write(&vector.fd, &1u64.to_ne_bytes());
        } else {
            vector.pending.store(true, Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_doorbell(&self, offset: u32, value: u32) {
        let index = (offset - register::DOORBELLS) / self.stride;
        self.doorbells[index as usize].store(value, Ordering::Relaxed);
        if self.deferred.load(Ordering::Relaxed) && index > 1 {
            // Without the lock, which several queues would wait for.
            self.deferred_sq.fetch_add(u64::from(index.is_multiple_of(2)), Ordering::Relaxed);
            return;
        }
        if index > 1 {
            let mut state = self.lock();
            let submission = index.is_multiple_of(2);
            let seen = &mut state.seen;
            *if submission { &mut seen.sq_doorbells } else { &mut seen.cq_doorbells } += 1;
        }
        self.step();
    }
}

impl State {
    /// Forgets all queues, as CC.EN = 0 does.
    fn reset(&mut self) {
        self.sqs.clear();
        self.cqs.clear();
        self.fetched.clear();
        self.shadow = None;
        self.reset_events();
    }

    /// Fetches the next command of a queue; `false` when there is none.
    fn fetch(&mut self, qid: u16, tail: u32) -> bool {
        let Some(sq) = self.sqs.get_mut(&qid) else { return false };
        // Base 2.0c §3.3.1.5 leaves a tail outside of the queue to an asynchronous event.
        if tail >= sq.entries || sq.head == tail {
            return false;
        }
        let mut bytes = [0; SQE_SIZE];
        if prp::read(&self.pool, sq.base + u64::from(sq.head) * SQE_SIZE as u64, &mut bytes)
            .is_err()
        {
            self.csts.set_cfs(true);
            return false;
        }
        sq.head = (sq.head + 1) % sq.entries;
        let entry = SubmissionEntry::read_from_bytes(&bytes).expect("64 bytes");
        if qid == 0 && entry.cdw0.get() as u8 == Opcode::ASYNCHRONOUS_EVENT_REQUEST.0 {
            self.seen.event_requests += 1;
        }
        let lie = match qid {
            0 => self.admin_lies.pop_front().unwrap_or(Lie::Honest),
            _ => self.lies.pop_front().unwrap_or(Lie::Honest),
        };
        self.fetched.push(Fetched { qid, entry, lie });
        true
    }

    /// Does a command and writes its completion; the vector to fire, if any.
    fn complete(&mut self, fetched: Fetched) -> Option<u16> {
        let Fetched { qid, entry, lie } = fetched;
        let done = match (qid, lie) {
            (_, Lie::Status(status)) => Err(self.as_it_may_say(status)),
            (0, _) => self.execute_admin_unless_kept(&entry)?.map(u64::from),
            _ => self.execute_io(&entry),
        };
        if let Err(status) = done {
            self.log_error(qid, &entry, status);
        }
        let (status, value) = (done.err().unwrap_or(Status::SUCCESS), done.unwrap_or(0));
        // The queue may have been deleted meanwhile.
        let sq = self.sqs.get_mut(&qid)?;
        if lie != Lie::Unfetched {
            // Whatever is answered first, the head is where fetching stands.
            sq.reported_head = sq.head;
        }
        let cid = (entry.cdw0.get() >> 16) as u16;
        let sqhd = match lie {
            Lie::BadHead => (sq.head + 1) % sq.entries,
            Lie::StaleHead => (sq.head + sq.entries - 1) % sq.entries,
            _ => sq.reported_head,
        };
        let cqid = sq.cqid;
        let completion = CompletionEntry {
            dw0: (value as u32).into(),
            dw1: ((value >> 32) as u32).into(),
            sqhd: (sqhd as u16).into(),
            sqid: if lie == Lie::WrongQueue { qid + 1 } else { qid }.into(),
            cid: if lie == Lie::UnknownCommand { cid ^ 0x8000 } else { cid }.into(),
            status: (status.0 << 1).into(),
        };
        let completion = match lie {
            Lie::Garbage(word) => CompletionEntry {
                sqhd: (word as u16).into(),
                sqid: ((word >> 16) as u16).into(),
                cid: ((word >> 32) as u16).into(),
                status: ((word >> 48) as u16 & !1).into(),
                ..completion
            },
            _ => completion,
        };
        let vector = self.post(cqid, completion, lie == Lie::BadPhase);
        if lie == Lie::NextToo {
            let cid = cid.wrapping_add(1).into();
            self.post(cqid, CompletionEntry { cid, ..completion }, false);
        }
        if lie == Lie::RepeatedCommand {
            self.post(cqid, completion, false);
        }
        vector
    }

    /// The status as the controller may put it: an error names a delay only when the host keeps them.
    fn as_it_may_say(&self, status: Status) -> Status {
        if status.code() == Status::SUCCESS || self.host_keeps_delays() {
            return status;
        }
        Status(status.0 & !(0b11 << 11))
    }

    /// Does an admin command; `None` for one whose answer comes later, or never.
    fn execute_admin_unless_kept(
        &mut self,
        entry: &SubmissionEntry,
    ) -> Option<Result<u32, Status>> {
        match Opcode(entry.cdw0.get() as u8) {
            Opcode::ABORT => self.abort(entry).map(Ok),
            Opcode::ASYNCHRONOUS_EVENT_REQUEST => {
                self.request_event(*entry);
                None
            }
            _ => Some(self.execute_admin(entry)),
        }
    }

    /// Answers an admin command that was kept; the vector to fire, if any.
    fn answer_admin(&mut self, entry: &SubmissionEntry, status: Status, value: u64) -> Option<u16> {
        let sq = self.sqs.get(&0)?;
        let completion = CompletionEntry {
            dw0: (value as u32).into(),
            dw1: ((value >> 32) as u32).into(),
            sqhd: (sq.reported_head as u16).into(),
            sqid: 0.into(),
            cid: ((entry.cdw0.get() >> 16) as u16).into(),
            status: (status.0 << 1).into(),
        };
        self.post(0, completion, false)
    }

    fn post(&mut self, cqid: u16, mut entry: CompletionEntry, bad_phase: bool) -> Option<u16> {
        let cq = self.cqs.get_mut(&cqid)?;
        let phase = cq.phase != bad_phase;
        entry.status = (entry.status.get() | u16::from(phase)).into();
        let at = cq.base + u64::from(cq.tail) * CQE_SIZE as u64;
        cq.tail = (cq.tail + 1) % cq.entries;
        if cq.tail == 0 {
            cq.phase = !cq.phase;
        }
        let (first, second) = entry.as_bytes().split_at(8);
        let word = u64::from_ne_bytes(second.try_into().expect("8 bytes"));
        let written = prp::write(&self.pool, at, first).is_ok()
            && prp::place(&self.pool, at + 8).is_ok_and(|place| {
                // Release: pairs with the driver's Acquire of the phase; data and the first half are
                // written before.
                self.pool.region().store(word, place, Ordering::Release).is_ok()
            });
        if !written {
            self.csts.set_cfs(true);
        }
        cq.vector
    }

    fn write_cc(&mut self, cc: Cc) {
        let was = std::mem::replace(&mut self.cc, cc);
        if cc.en() && !was.en() {
            self.reset();
            self.admin.settings.reset();
            self.admin.firmware.reset();
            self.doorbells.iter().for_each(|doorbell| doorbell.store(0, Ordering::Relaxed));
            let admin_sq = u32::from(self.aqa.asqs()) + 1;
            let admin_cq = u32::from(self.aqa.acqs()) + 1;
            let sizes =
                cc.iosqes() == 6 && cc.iocqes() == 4 && cc.mps() == 0 && matches!(cc.css(), 0 | 6);
            if !sizes {
                self.csts.set_cfs(true);
            }
            let (base, entries) = (self.asq, admin_sq);
            self.sqs.insert(0, Sq { base, entries, head: 0, cqid: 0, reported_head: 0 });
            let (base, entries) = (self.acq, admin_cq);
            self.cqs.insert(0, Cq { base, entries, tail: 0, phase: true, vector: None });
            let back = self.seen.enabled > 0 && self.options.never_comes_back;
            self.seen.enabled += 1;
            self.csts = self.csts.with_rdy(!self.options.never_ready && !back).with_shst(0);
        }
        if !cc.en() && was.en() && !self.options.never_disables {
            self.reset();
            self.csts = self.csts.with_rdy(false).with_cfs(false);
        }
        if cc.shn() != 0 && was.shn() == 0 && !self.options.never_shuts_down {
            self.media.values_mut().for_each(Medium::flush);
            self.csts.set_shst(SHST_COMPLETE);
        }
    }

    /// The medium of a namespace that is attached to this controller.
    fn medium(&mut self, nsid: u32) -> Result<&mut Medium, Status> {
        let attached = self.media.get_mut(&nsid).filter(|medium| medium.attached);
        attached.ok_or(Status::INVALID_NAMESPACE)
    }

    /// The register takes one value (Base 2.0c §3.1.3.7).
    fn reset_subsystem(&mut self, value: u32) {
        if self.options.subsystem_reset && value == 0x4e56_4d65 {
            self.reset();
            self.cc = Cc::new();
            self.csts = Csts::new().with_nssro(true);
            // It may, like a power cut: nothing says that the volatile cache survives.
            self.media.values_mut().for_each(Medium::power_cut);
        }
    }

    /// Whether it has the zoned command set beside the other one.
    fn has_zones(&self) -> bool {
        self.media.values().any(|medium| medium.namespace.zone_blocks > 0)
    }

    fn cap(&self) -> Cap {
        Cap::new()
            .with_nssrs(self.options.subsystem_reset)
            .with_mqes(self.options.mqes)
            .with_cqr(true)
            .with_to(self.options.to)
            .with_dstrd(self.options.dstrd)
            .with_css(1 | u8::from(self.has_zones()) << 6)
            .with_mpsmax(4)
    }
}

impl Registers for Model {
    fn len_bytes(&self) -> usize {
        BAR_BYTES
    }

    fn read32(&self, offset: u32) -> u32 {
        if self.removed.load(Ordering::Relaxed) {
            return u32::MAX;
        }
        if offset == register::CSTS {
            let hook = self.look_hook.lock().unwrap_or_else(PoisonError::into_inner).take();
            hook.into_iter().for_each(|hook| hook());
        }
        let state = self.lock();
        match offset {
            register::VS => 0x0002_0000,
            register::CC => state.cc.into(),
            register::CSTS => state.csts.into(),
            register::AQA => state.aqa.into(),
            _ => 0,
        }
    }

    fn read64(&self, offset: u32) -> u64 {
        if self.removed.load(Ordering::Relaxed) {
            return u64::MAX;
        }
        match offset {
            register::CAP => self.lock().cap().into(),
            _ => 0,
        }
    }

    fn write32(&self, offset: u32, value: u32) {
        if self.removed.load(Ordering::Relaxed) {
            return;
        }
        match offset {
            register::CC => self.lock().write_cc(value.into()),
            register::NSSR => self.lock().reset_subsystem(value),
            register::AQA => self.lock().aqa = value.into(),
            register::DOORBELLS.. => self.write_doorbell(offset, value),
            _ => {}
        }
    }

    fn write64(&self, offset: u32, value: u64) {
        match offset {
            register::ASQ => self.lock().asq = value,
            register::ACQ => self.lock().acq = value,
            _ => {}
        }
    }
}

impl Function for Model {
    fn name(&self) -> &str {
        "model"
    }

    fn vectors(&self) -> u16 {
        self.vectors.len() as u16
    }

    fn event_fd(&self, vector: u16) -> Option<BorrowedFd<'_>> {
        self.vectors.get(usize::from(vector)).map(|vector| vector.fd.as_fd())
    }

    fn set_interrupt(&self, vector: u16, on: bool) -> bool {
        let Some(entry) = self.vectors.get(usize::from(vector)) else { return false };
        entry.on.store(on, Ordering::Relaxed);
        if on && entry.pending.swap(false, Ordering::Relaxed) {
            self.fire(vector);
        }
        on
    }

    fn is_asked_back(&self) -> bool {
        self.asked_back.load(Ordering::Relaxed)
    }

    fn cut_off(&self) -> bool {
        let can = self.lock().options.can_be_cut_off;
        self.cut_off.store(can, Ordering::Relaxed);
        can
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").finish_non_exhaustive()
    }
}

fn eventfd_flags() -> rustix::event::EventfdFlags {
    rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK
}

/// A clock that stands still but for [`sleep`](Clock::sleep) and [`advance`](ModelClock::advance).
#[derive(Debug, Default)]
pub struct ModelClock {
    now_ns: AtomicU64,
}

impl ModelClock {
    /// A clock at zero.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Lets time pass.
    pub fn advance(&self, duration: Duration) {
        self.now_ns.fetch_add(duration.as_nanos() as u64, Ordering::Relaxed);
    }
}

impl Clock for ModelClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.now_ns.load(Ordering::Relaxed))
    }

    fn sleep(&self, duration: Duration) {
        self.advance(duration);
    }
}
