//! The admin queue pair: commands posted and taken, or one at a time and waited for, each with a
//! deadline (Base 2.0c §5).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use zerocopy::IntoBytes;

use crate::clock::Clock;
use crate::dma::{DmaPool, DmaRegion};

use super::commands::Command;
use super::failure::{Failure, Violation};
use super::fate::{Fate, Standing};
use super::registers::{Doorbell, Function};
use super::ring::{self, BadFetch, CompletionRing, Cqe, SubmissionRing};
use super::shadow::Shadow;
use super::spec::command::{self, Opcode, SubmissionEntry, cns};
use super::spec::feature::HOST_BEHAVIOR;
use super::spec::identify::IDENTIFY_SIZE;
use super::spec::layout::Layout;
use super::spec::{Cap, Status};
use super::transfer::Transfer;

/// How many admin commands the rings hold: more than events, aborts and queues of a reset need at once.
const DEPTH: u16 = 31;
/// How often an admin command's completion is looked for.
pub(super) const POLL_INTERVAL: Duration = Duration::from_micros(50);

/// Why an admin command did not do what it was to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AdminError {
    /// The controller answered with an error; it goes on.
    Status(Status),
    /// The controller is ended or is being reset; the command was not sent.
    Failed(Failure),
    /// The controller was ended or reset while it had the command, which may have been done or not.
    Lost(Failure),
}

/// Names an admin command in flight: its Command Identifier, whose upper bits tell successive tenants
/// of a slot apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u16);

/// Bits of an admin Command Identifier that name the slot. Slot 31 does not exist, so no identifier is
/// FFFFh.
const SLOT_BITS: u32 = 5;
const SLOT_MASK: u16 = (1 << SLOT_BITS) - 1;

/// What becomes of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Somebody holds the ticket and asks for it.
    Answer,
    /// An Abort: nobody asks.
    Abort,
    /// An Asynchronous Event Request: it may take for ever, and its answer is an event.
    Event,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Free,
    InFlight { purpose: Purpose, due: Duration, long: bool },
    Answered { status: Status, dw0: u32 },
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    cid: u16,
    state: State,
}

/// The admin queue pair and one page for what it transfers.
///
/// Commands are posted, and their answers taken when they are there ([`post`](AdminQueue::post),
/// [`service`](AdminQueue::service), [`take`](AdminQueue::take)), so that aborts, events and the queues
/// of a controller that was reset go on beside a command that somebody waits for.
#[derive(Debug)]
pub(super) struct AdminQueue {
    sq: SubmissionRing,
    cq: CompletionRing,
    sq_doorbell: Doorbell,
    cq_doorbell: Doorbell,
    data: DmaRegion,
    /// What log pages that events name are read to.
    event_data: DmaRegion,
    /// What this host understands (Host Behavior Support), for every bring-up.
    behavior: DmaRegion,
    slots: [Slot; DEPTH as usize],
    /// Dwords 0 and 1 of the events that came.
    events: Vec<u64>,
    /// A request for events was refused.
    event_refused: bool,
    timeout: Duration,
    fate: Arc<Fate>,
    clock: Arc<dyn Clock>,
}

impl AdminQueue {
    /// Frames that an admin queue takes from the pool.
    pub(super) const FRAMES: usize = 5;

    /// The rings, in memory, for [`enable`](super::controller) to tell the controller of; `None` when
    /// the pool has no room.
    pub(super) fn new(
        pool: &DmaPool,
        function: &Arc<dyn Function>,
        cap: Cap,
        timeout: Duration,
        fate: Arc<Fate>,
        clock: Arc<dyn Clock>,
    ) -> Option<Self> {
        Some(Self {
            sq: SubmissionRing::new(pool, 0, DEPTH)?,
            cq: CompletionRing::new(pool, 0, DEPTH, ring::entries_for(DEPTH))?,
            sq_doorbell: Doorbell::submission(function, cap, 0, None),
            cq_doorbell: Doorbell::completion(function, cap, 0, None),
            data: pool.take_region(1)?,
            event_data: pool.take_region(1)?,
            behavior: pool.take_region(1)?,
            slots: std::array::from_fn(|slot| Slot { cid: slot as u16, state: State::Free }),
            events: Vec::with_capacity(usize::from(DEPTH)),
            event_refused: false,
            timeout,
            fate,
            clock,
        })
    }

    pub(super) fn sq(&self) -> &SubmissionRing {
        &self.sq
    }

    pub(super) fn cq(&self) -> &CompletionRing {
        &self.cq
    }

    /// Identify with `cns` of `nsid`: the data structure, copied out of DMA memory.
    pub(super) fn identify(
        &mut self,
        cns: u32,
        nsid: u32,
    ) -> Result<[u8; IDENTIFY_SIZE], AdminError> {
        self.execute(Opcode::IDENTIFY, self.identify_entry(cns, nsid))?;
        Ok(page(&self.data))
    }

    fn identify_entry(&self, cns: u32, nsid: u32) -> SubmissionEntry {
        SubmissionEntry {
            nsid: nsid.into(),
            prp1: self.data.iova().0.into(),
            cdw10: cns.into(),
            ..Default::default()
        }
    }

    /// Sends Identify; when it is answered, [`identified_as`](AdminQueue::identified_as) has it.
    pub(super) fn post_identify(
        &mut self,
        cns: u32,
        nsid: u32,
    ) -> Result<Option<Ticket>, AdminError> {
        self.post(Opcode::IDENTIFY, self.identify_entry(cns, nsid), Purpose::Answer)
    }

    /// What the last Identify gave.
    pub(super) fn identified_as<T: Layout>(&self) -> T {
        T::decode(&page(&self.data))
    }

    /// Sends Get Log Page for the first `len_bytes` of a page, at most 4096, all namespaces, for
    /// [`event_data`](AdminQueue::event_data). Reading it lets the events of the page come again.
    pub(super) fn post_log(
        &mut self,
        log_page: u8,
        len_bytes: u32,
    ) -> Result<Option<Ticket>, AdminError> {
        // NUMD is 0's based, in dwords; RAE is 0.
        let cdw10 = (len_bytes / 4 - 1) << 16 | u32::from(log_page);
        let entry = SubmissionEntry {
            nsid: u32::MAX.into(),
            prp1: self.event_data.iova().0.into(),
            cdw10: cdw10.into(),
            ..Default::default()
        };
        self.post(Opcode::GET_LOG_PAGE, entry, Purpose::Answer)
    }

    /// What the last Get Log Page of `post_log` gave.
    pub(super) fn event_data(&self) -> [u8; IDENTIFY_SIZE] {
        page(&self.event_data)
    }

    /// An Identify data structure with a type.
    pub(super) fn identify_as<T: Layout>(&mut self, cns: u32, nsid: u32) -> Result<T, AdminError> {
        self.identify(cns, nsid)?;
        Ok(self.identified_as())
    }

    /// The active namespaces with identifiers above `after`, ascending, at most 1024 (CNS 02h).
    pub(super) fn active_namespaces(&mut self, after: u32) -> Result<Vec<u32>, AdminError> {
        let bytes = self.identify(cns::ACTIVE_NAMESPACES, after)?;
        let ids = bytes.chunks_exact(4).map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]]));
        Ok(ids.take_while(|&id| id != 0).collect())
    }

    /// Asks for `count` I/O queues of each kind and returns how many were granted (Base 2.0c
    /// §5.27.1.5: the count is 0's based both ways, and may be more or fewer than asked).
    pub(super) fn set_number_of_queues(&mut self, count: u16) -> Result<u16, AdminError> {
        let granted = self.execute(Opcode::SET_FEATURES, number_of_queues_entry(count))?;
        let (submission, completion) = (granted as u16, (granted >> 16) as u16);
        Ok(submission.min(completion).saturating_add(1).min(count))
    }

    /// Sends Doorbell Buffer Config.
    pub(super) fn set_shadow(&mut self, shadow: &Shadow) -> Result<(), AdminError> {
        self.execute(Opcode::DOORBELL_BUFFER_CONFIG, shadow.config_entry()).map(drop)
    }

    /// Sends Set Features.
    pub(super) fn set(&mut self, entry: SubmissionEntry) -> Result<(), AdminError> {
        self.execute(Opcode::SET_FEATURES, entry).map(drop)
    }

    /// The command that says that this host keeps the delays that a status names (Base 2.0c
    /// §5.27.1.18, ACRE), and else nothing of what it understands.
    pub(super) fn retry_delays_entry(&self) -> SubmissionEntry {
        // Relaxed: ordered before the controller's read by the doorbell's write.
        self.behavior.words()[0].store(1u64.to_le(), Ordering::Relaxed);
        SubmissionEntry {
            prp1: self.behavior.iova().0.into(),
            cdw10: u32::from(HOST_BEHAVIOR).into(),
            ..Default::default()
        }
    }

    /// Asks for `count` I/O queues without waiting.
    pub(super) fn post_number_of_queues(
        &mut self,
        count: u16,
    ) -> Result<Option<Ticket>, AdminError> {
        self.post(Opcode::SET_FEATURES, number_of_queues_entry(count), Purpose::Answer)
    }

    /// The entry of somebody else's command with its data in `transfer`.
    pub(super) fn entry_of(command: &Command, transfer: Option<&Transfer>) -> SubmissionEntry {
        let (prp1, prp2) = transfer.map_or((0, 0), Transfer::prps);
        let [cdw10, cdw11, cdw12, cdw13, cdw14, cdw15] = command.cdw10.map(Into::into);
        SubmissionEntry {
            nsid: command.nsid.into(),
            cdw2: command.cdw2.into(),
            cdw3: command.cdw3.into(),
            prp1: prp1.into(),
            prp2: prp2.into(),
            cdw10,
            cdw11,
            cdw12,
            cdw13,
            cdw14,
            cdw15,
            ..Default::default()
        }
    }

    /// Sends one command and waits for its completion: dword 0 of it. Nothing else is done with the
    /// queue meanwhile, so only for what is quick; [`NvmeController::command`] waits without it.
    ///
    /// [`NvmeController::command`]: super::NvmeController::command
    fn execute(&mut self, opcode: Opcode, entry: SubmissionEntry) -> Result<u32, AdminError> {
        let ticket = loop {
            if let Some(ticket) = self.post(opcode, entry, Purpose::Answer)? {
                break ticket;
            }
            self.service();
            self.clock.sleep(POLL_INTERVAL);
        };
        loop {
            self.service();
            if let Some(answer) = self.take(ticket) {
                return answer;
            }
            if let Some(failure) = self.fate.examine() {
                return Err(self.fail(failure));
            }
            self.clock.sleep(POLL_INTERVAL);
        }
    }

    /// Sends a command that takes at most the admin timeout; `None` when as many are in flight as the
    /// rings hold. Does not wait.
    pub(super) fn post(
        &mut self,
        opcode: Opcode,
        entry: SubmissionEntry,
        purpose: Purpose,
    ) -> Result<Option<Ticket>, AdminError> {
        match self.fate.standing() {
            // While it is revived, only who revives it does this.
            Standing::Running(_) | Standing::Reviving => {
                Ok(self.put(opcode, entry, purpose, self.timeout))
            }
            Standing::Stopping | Standing::Ending | Standing::Quiet | Standing::Never => {
                Err(self.failed())
            }
        }
    }

    /// [`post`](AdminQueue::post) by whoever does not revive the controller: only while it serves, and
    /// with an `epoch` only while it has not been reset since. The command may take `timeout`.
    pub(super) fn post_for(
        &mut self,
        opcode: Opcode,
        entry: SubmissionEntry,
        epoch: Option<u32>,
        timeout: Duration,
    ) -> Result<Option<Ticket>, AdminError> {
        // Whoever has this queue keeps it from running again after a reset; it may only stop meanwhile,
        // and then takes nothing of this.
        match self.fate.standing() {
            Standing::Running(now) if epoch.is_none_or(|epoch| epoch == now) => {
                Ok(self.put(opcode, entry, Purpose::Answer, timeout))
            }
            _ => Err(self.failed()),
        }
    }

    fn failed(&self) -> AdminError {
        AdminError::Failed(self.fate.trouble().unwrap_or(self.fate.reason()))
    }

    fn lost(&self) -> AdminError {
        AdminError::Lost(self.fate.trouble().unwrap_or(self.fate.reason()))
    }

    fn put(
        &mut self,
        opcode: Opcode,
        mut entry: SubmissionEntry,
        purpose: Purpose,
        timeout: Duration,
    ) -> Option<Ticket> {
        let long = timeout > self.timeout;
        let free = |slot: &&mut Slot| matches!(slot.state, State::Free);
        let slot = self.slots.iter_mut().find(free)?;
        let due = self.clock.now().saturating_add(timeout);
        slot.state = State::InFlight { purpose, due, long };
        let cid = slot.cid;
        entry.cdw0 = (u32::from(cid) << 16 | u32::from(opcode.0)).into();
        let words: [u64; 8] = zerocopy::transmute!(entry);
        for (place, word) in self.sq.entry().iter().zip(words) {
            // The bytes of the entry as they are; ordered before the device's fetch by the doorbell.
            place.store(word, Ordering::Relaxed);
        }
        self.sq.advance();
        if let Some(tail) = self.sq.commit() {
            self.sq_doorbell.ring(tail);
        }
        if long {
            self.tell_long();
        }
        Some(Ticket(cid))
    }

    /// Says until when commands that may take long may keep the controller from others.
    fn tell_long(&self) {
        let long = self.slots.iter().filter_map(|slot| match slot.state {
            State::InFlight { due, long: true, .. } => Some(due),
            State::InFlight { .. } | State::Free | State::Answered { .. } => None,
        });
        self.fate.set_long_until(long.max().unwrap_or_default());
    }

    /// Takes in what has completed, and ends the controller when a command is late. Does not wait.
    pub(super) fn service(&mut self) {
        while let Some(cqe) = self.cq.peek() {
            let value = self.cq.value();
            self.cq.advance();
            if let Err(violation) = self.complete(cqe, value) {
                self.fail(Failure::Protocol(violation));
                return;
            }
        }
        if let Some(head) = self.cq.tell() {
            self.cq_doorbell.ring(head);
        }
        let now = self.clock.now();
        let late = |slot: &Slot| match slot.state {
            State::InFlight { purpose, due, .. } => purpose != Purpose::Event && now >= due,
            State::Free | State::Answered { .. } => false,
        };
        if self.slots.iter().any(late) && !self.fate.is_paused(now) {
            self.fail(Failure::TimedOut { qid: 0, waited_ms: self.timeout.as_millis() as u64 });
        }
    }

    fn complete(&mut self, cqe: Cqe, value: u64) -> Result<(), Violation> {
        let (sqid, sqhd, cid) = (cqe.sqid(), cqe.sqhd(), cqe.cid());
        match self.sq.fetched(cqe) {
            Err(BadFetch::Queue) => return Err(Violation::WrongQueue { qid: 0, sqid }),
            Err(BadFetch::Head) => return Err(Violation::BadHead { qid: 0, sqhd }),
            Ok(()) => {}
        }
        let unknown = Violation::UnknownCommand { qid: 0, cid };
        let slot = self.slots.get_mut(usize::from(cid & SLOT_MASK)).ok_or(unknown)?;
        let State::InFlight { purpose, long, .. } = slot.state else { return Err(unknown) };
        if slot.cid != cid {
            return Err(unknown);
        }
        slot.state = State::Answered { status: cqe.status(), dw0: value as u32 };
        match purpose {
            Purpose::Answer => {
                if long {
                    self.tell_long();
                }
                return Ok(());
            }
            // Whether it took shows in the command's own completion.
            Purpose::Abort => {}
            Purpose::Event if cqe.status().code() == Status::SUCCESS => self.events.push(value),
            // More were asked for than it takes, or it is being shut down.
            Purpose::Event => self.event_refused = true,
        }
        slot.vacate();
        Ok(())
    }

    /// Takes the answer of a command out: dword 0 of its completion. `None` when it is not there yet.
    pub(super) fn take(&mut self, ticket: Ticket) -> Option<Result<u32, AdminError>> {
        let slot = &mut self.slots[usize::from(ticket.0 & SLOT_MASK)];
        if slot.cid != ticket.0 {
            // The controller was reset meanwhile.
            return Some(Err(self.lost()));
        }
        match slot.state {
            State::Answered { status, dw0 } => {
                slot.vacate();
                Some(match status.code() {
                    Status::SUCCESS => Ok(dw0),
                    _ => Err(AdminError::Status(status)),
                })
            }
            State::InFlight { .. } | State::Free => match self.fate.standing() {
                Standing::Running(_) | Standing::Reviving => None,
                _ => Some(Err(self.lost())),
            },
        }
    }

    /// Whether a command has been answered or lost, for one whose answer nobody takes.
    pub(super) fn is_over(&self, ticket: Ticket) -> bool {
        let slot = &self.slots[usize::from(ticket.0 & SLOT_MASK)];
        slot.cid != ticket.0 || !matches!(slot.state, State::InFlight { .. })
    }

    /// How many commands of a purpose are in flight.
    pub(super) fn in_flight(&self, wanted: Purpose) -> usize {
        let is = |slot: &&Slot| matches!(slot.state, State::InFlight { purpose, .. } if purpose == wanted);
        self.slots.iter().filter(is).count()
    }

    /// Dwords 0 and 1 of the oldest event that came.
    pub(super) fn next_event(&mut self) -> Option<u64> {
        (!self.events.is_empty()).then(|| self.events.remove(0))
    }

    /// Whether a request for events was refused since the last call.
    pub(super) fn take_event_refused(&mut self) -> bool {
        std::mem::take(&mut self.event_refused)
    }

    /// Empties rings and slots. Only while the controller is disabled and quiet: then nothing of it is
    /// in flight, and the next bring-up starts at the first entries.
    pub(super) fn reset(&mut self) {
        self.sq.reset();
        self.cq.reset();
        self.events.clear();
        let in_use = |slot: &&mut Slot| !matches!(slot.state, State::Free);
        self.slots.iter_mut().filter(in_use).for_each(Slot::vacate);
        self.tell_long();
    }

    fn fail(&self, failure: Failure) -> AdminError {
        self.fate.fail(failure);
        AdminError::Failed(self.fate.trouble().unwrap_or(failure))
    }

    /// Gives the memory up for ever: the device may still use it.
    pub(super) fn leak(&mut self) {
        self.sq.leak();
        self.cq.leak();
        self.data.leak();
        self.event_data.leak();
        self.behavior.leak();
    }
}

fn number_of_queues_entry(count: u16) -> SubmissionEntry {
    let wanted = u32::from(count.max(1) - 1);
    SubmissionEntry {
        cdw10: command::FEATURE_NUMBER_OF_QUEUES.into(),
        cdw11: (wanted << 16 | wanted).into(),
        ..Default::default()
    }
}

/// The bytes of a page as the device left them.
fn page(region: &DmaRegion) -> [u8; IDENTIFY_SIZE] {
    let mut bytes = [0; IDENTIFY_SIZE];
    for (out, word) in bytes.chunks_exact_mut(8).zip(region.words()) {
        // Memory order on both sides.
        out.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
    }
    bytes
}

/// Creates completion queue `qid`, physically contiguous; it interrupts on `vector` if there is one.
pub(super) fn create_cq_entry(
    qid: u16,
    ring: &CompletionRing,
    vector: Option<u16>,
) -> SubmissionEntry {
    let interrupts = vector.map_or(0, |vector| u32::from(vector) << 16 | 1 << 1);
    SubmissionEntry {
        prp1: ring.iova().into(),
        cdw10: (u32::from(ring.size_zero_based()) << 16 | u32::from(qid)).into(),
        cdw11: (interrupts | 1).into(),
        ..Default::default()
    }
}

/// Creates submission queue `qid`, physically contiguous, completing into completion queue `qid`.
pub(super) fn create_sq_entry(qid: u16, ring: &SubmissionRing) -> SubmissionEntry {
    SubmissionEntry {
        prp1: ring.iova().into(),
        cdw10: (u32::from(ring.size_zero_based()) << 16 | u32::from(qid)).into(),
        cdw11: (u32::from(qid) << 16 | 1).into(),
        ..Default::default()
    }
}

/// Deletes submission or completion queue `qid`, by the opcode. The submission queue goes first; what
/// was in flight on it is aborted.
pub(super) fn delete_entry(qid: u16) -> SubmissionEntry {
    SubmissionEntry { cdw10: u32::from(qid).into(), ..Default::default() }
}

/// Aborts command `cid` of submission queue `qid`, if it can be.
pub(super) fn abort_entry(qid: u16, cid: u16) -> SubmissionEntry {
    SubmissionEntry { cdw10: (u32::from(cid) << 16 | u32::from(qid)).into(), ..Default::default() }
}

impl Slot {
    fn vacate(&mut self) {
        self.cid = self.cid.wrapping_add(1 << SLOT_BITS);
        self.state = State::Free;
    }
}

// Zeroed padding would go out to the device: the layout has none.
const _: () = {
    const fn has_no_padding<T: IntoBytes>() {}
    has_no_padding::<SubmissionEntry>();
};
