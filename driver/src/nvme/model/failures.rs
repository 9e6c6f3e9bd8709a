//! Aborts and asynchronous events of the model, and what it does about them when it is told to be bad.

use std::collections::{BTreeSet, VecDeque};

use crate::nvme::spec::{Status, SubmissionEntry};

use super::{Fetched, Lie, Model, State, prp};

/// What the controller makes of Abort (Base 2.0c §5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aborts {
    /// The command ends, and is completed as aborted before the Abort is.
    Work,
    /// It says that the command was not aborted, and goes on with it.
    Refused,
    /// It says that the command was aborted, and never completes it.
    Pretended,
    /// The Abort itself is not answered.
    Ignored,
    /// It is done only when [`Model::do_late_aborts`] says so, whatever has completed meanwhile.
    Late,
}

/// What the model keeps of events.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// Requests for events that are with it.
    requests: VecDeque<SubmissionEntry>,
    /// Events that no request was there for.
    waiting: VecDeque<u64>,
    /// Log pages whose events are not told again until they were read.
    masked: BTreeSet<u8>,
    /// What it answers to Get Log Page 04h.
    pub(super) changed_namespaces: Vec<u32>,
    /// What it answers to Get Log Page 80h, once each.
    pub(super) reservation_notices: VecDeque<u8>,
    /// Aborts that are done later.
    late_aborts: Vec<SubmissionEntry>,
}

impl Model {
    /// Tells of an event, with this dword 0, if one of its kind is not being dealt with.
    pub fn tell(&self, dw0: u32) {
        self.tell_about(dw0, 0);
    }

    /// The same of one that is about a namespace, with its identifier for dword 1.
    pub fn tell_about(&self, dw0: u32, nsid: u32) {
        let vector = self.lock().tell(u64::from(nsid) << 32 | u64::from(dw0));
        vector.into_iter().for_each(|vector| self.fire(vector));
    }

    /// Tells that namespaces changed, and which.
    pub fn tell_changed(&self, nsids: impl IntoIterator<Item = u32>) {
        self.lock().events.changed_namespaces = nsids.into_iter().collect();
        self.tell(0x0004_0002);
    }

    /// Does the Aborts that it has put off ([`Aborts::Late`]), and answers them.
    pub fn do_late_aborts(&self) {
        let state = &mut *self.lock();
        for entry in std::mem::take(&mut state.events.late_aborts) {
            let dw0 = state.end_command(&entry);
            let vector = state.answer_admin(&entry, Status::SUCCESS, dw0.into());
            state.to_fire.drain(..).chain(vector).for_each(|vector| self.fire(vector));
        }
    }

    /// Says that it is busy with itself (CSTS.PP) until it is told otherwise.
    pub fn pause(&self, paused: bool) {
        self.lock().csts.set_pp(paused);
    }

    /// Does `hook` at the next look at CSTS, before that is answered: what another thread may do
    /// between two steps of the driver.
    pub fn at_next_look(&self, hook: impl FnOnce() + Send + 'static) {
        *self.look_hook.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
            Some(Box::new(hook));
    }

    /// Tells of a reservation that was taken away (`kind` as in the log page).
    pub fn tell_reservation(&self, kind: u8) {
        self.lock().events.reservation_notices.push_back(kind);
        self.tell(0x0080_0006);
    }

    /// How many requests for events it has.
    pub fn event_requests(&self) -> usize {
        self.lock().events.requests.len()
    }

    /// What the controller does with the next admin commands, one each; then it is honest again.
    pub fn lie_admin(&self, lies: impl IntoIterator<Item = Lie>) {
        self.lock().admin_lies.extend(lies);
    }

    /// Writes a word somewhere into a completion queue, as a controller whose firmware lost its way
    /// would; `at` and `word` choose.
    pub fn scribble(&self, at: u64, word: u64) {
        let state = self.lock();
        let Some(cq) = state.cqs.values().nth(at as usize % state.cqs.len().max(1)) else { return };
        let place = cq.base + (at >> 8) % u64::from(cq.entries * 2) * 8;
        let _ = prp::write(&state.pool, place, &word.to_le_bytes());
    }

    /// Answers every Identify with bytes drawn from this seed from now on.
    pub fn mumble(&self, seed: u64) {
        self.lock().mumbles = Some(fastrand::Rng::with_seed(seed));
    }

    /// Says from the next Identify on that it is another drive.
    pub fn become_another(&self) {
        self.lock().another = true;
    }

    /// The kernel wants the function back.
    pub fn ask_back(&self) {
        self.asked_back.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

impl State {
    /// Abort: dword 0 of its completion says whether it did not. What it completed is posted before.
    pub(super) fn abort(&mut self, entry: &SubmissionEntry) -> Option<u32> {
        let (qid, cid) = (entry.cdw10.get() as u16, (entry.cdw10.get() >> 16) as u16);
        self.seen.aborts.push((qid, cid));
        let is = |one: &Fetched| one.qid == qid && (one.entry.cdw0.get() >> 16) as u16 == cid;
        let at = self.fetched.iter().position(is);
        match (self.options.aborts, at) {
            (Aborts::Ignored, _) => None,
            (Aborts::Late, _) => {
                self.events.late_aborts.push(*entry);
                None
            }
            (Aborts::Refused, _) | (_, None) => Some(1),
            (Aborts::Pretended, Some(at)) => {
                self.fetched[at].lie = Lie::Stuck;
                Some(0)
            }
            (Aborts::Work, Some(_)) => Some(self.end_command(entry)),
        }
    }

    /// Ends the command that an Abort names: dword 0 of the Abort's completion.
    fn end_command(&mut self, entry: &SubmissionEntry) -> u32 {
        let (qid, cid) = (entry.cdw10.get() as u16, (entry.cdw10.get() >> 16) as u16);
        let is = |one: &Fetched| one.qid == qid && (one.entry.cdw0.get() >> 16) as u16 == cid;
        let Some(at) = self.fetched.iter().position(is) else { return 1 };
        let aborted = self.fetched.remove(at);
        let lie = Lie::Status(Status::ABORT_REQUESTED);
        let vector = self.complete(Fetched { lie, ..aborted });
        self.to_fire.extend(vector);
        0
    }

    /// Takes a request for an event; answered when there is one.
    pub(super) fn request_event(&mut self, entry: SubmissionEntry) {
        self.events.requests.push_back(entry);
        if let Some(value) = self.events.waiting.pop_front() {
            self.tell(value);
        }
    }

    fn tell(&mut self, value: u64) -> Option<u16> {
        let log_page = (value >> 16) as u8;
        if self.events.masked.contains(&log_page) {
            return None;
        }
        let Some(entry) = self.events.requests.pop_front() else {
            self.events.waiting.push_back(value);
            return None;
        };
        self.events.masked.insert(log_page);
        self.answer_admin(&entry, Status::SUCCESS, value)
    }

    /// A log page was read: its events may come again.
    pub(super) fn log_was_read(&mut self, log_page: u8) {
        self.events.masked.remove(&log_page);
    }

    /// Forgets all that a reset forgets.
    pub(super) fn reset_events(&mut self) {
        let changed_namespaces = std::mem::take(&mut self.events.changed_namespaces);
        self.events = Events { changed_namespaces, ..Events::default() };
    }
}
