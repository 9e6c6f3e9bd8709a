//! The host as a target: descriptors, sockets, names and system calls, through one engine.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use uaio_driver::{Armed, IoError, IoResult, Slots, Token};

use crate::host::{Credentials, Engine, HostDone, HostOp, HostRequest, OpId};
use crate::iocb::Work;
use crate::request::Request;
use crate::station::{Backend, Outcome, Station, Turned};

/// How the host is to be served.
#[derive(Clone, Copy, Debug)]
pub struct HostOptions {
    /// Operations in progress at once, at least 1, at most [`DEPTH_MAX`](crate::host::DEPTH_MAX). As many as
    /// the reactor's contexts have slots are, if that is more: an operation that waits for ever keeps none
    /// waiting that would end it.
    pub operations: usize,
    /// Operations that can wait in the inbox; those beyond are refused.
    pub inbox: usize,
    /// Worker threads at most, for what io_uring cannot do; started when there is work for one.
    pub workers: usize,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self { operations: 256, inbox: 1024, workers: 4 }
    }
}

/// The host's descriptors, sockets, names and calls, served by one [`Reactor`](crate::Reactor): what
/// iocbs on them name. Cloning it is another name for the same.
///
/// Operations are done with the [credentials of the context](crate::Context#credentials) that they are
/// submitted to, whichever thread turns the reactor; by a name made with
/// [`as_caller`](Host::as_caller), with those of its maker.
#[derive(Clone)]
pub struct Host {
    station: Arc<Station<Hosted>>,
    /// Of the thread that attached it: for contexts that were there before.
    attached: Credentials,
    /// Of the thread that made this name.
    own: Option<Credentials>,
}

impl Host {
    pub(crate) fn new(station: Arc<Station<Hosted>>, attached: Credentials) -> Self {
        Self { station, attached, own: None }
    }

    pub(crate) fn station(&self) -> &Arc<Station<Hosted>> {
        &self.station
    }

    /// A name for the host whose operations are done with the credentials that the calling thread
    /// has now, whatever the context. May wait for one turn of the reactor.
    ///
    /// # Errors
    ///
    /// ENODEV when the reactor was closed; ENOMEM or EBUSY when the kernel keeps no more of them.
    pub fn as_caller(&self) -> std::io::Result<Self> {
        let taken = self.station.with_backend(|hosted| hosted.engine.take_credentials());
        let gone = || Err(std::io::Error::from_raw_os_error(libc::ENODEV));
        let credentials = taken.unwrap_or_else(gone)?;
        let (station, attached) = (Arc::clone(&self.station), self.attached.clone());
        Ok(Self { station, attached, own: Some(credentials) })
    }

    /// Cancels every operation on a descriptor that is not over, of whatever context
    /// (`aio_cancel(fd, NULL)`); says how many there were. Each has its event.
    pub fn cancel_descriptor(&self, fd: &impl AsRawFd) -> usize {
        let fd = fd.as_raw_fd();
        self.station.cancel_all(
            &|request| matches!(&request.iocb.work, Work::Host(work) if work.fd == Some(fd)),
        )
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").finish_non_exhaustive()
    }
}

/// An operation of the host. While it is in progress the engine has the request.
#[derive(Debug)]
pub(crate) struct HostWork {
    pub(crate) host: Host,
    pub(crate) request: HostRequest,
    /// By which it is found while the engine has it.
    fd: Option<RawFd>,
    /// Its maker has said as whom it is to be done.
    as_said: bool,
    /// How many bytes it is to move, if that is what it does.
    pub(crate) asked: Option<usize>,
    /// What came of a multishot before it ended for want of a slot.
    held: Option<usize>,
    /// How many events of a multishot there were before its last.
    answers: u64,
}

impl HostWork {
    pub(crate) fn new(host: &Host, request: HostRequest) -> Self {
        let fd = request.op.descriptor().map(|fd| fd.as_raw_fd());
        let asked = match &request.op {
            HostOp::Read { memory, .. }
            | HostOp::Write { memory, .. }
            | HostOp::Send { memory, .. }
            | HostOp::Recv { memory, .. } => Some(memory.len()),
            HostOp::ReadV { memory, .. } | HostOp::WriteV { memory, .. } => memory.asked(),
            HostOp::Splice(between) | HostOp::Copy(between) => Some(between.len),
            _ => None,
        };
        let as_said = request.credentials.is_some();
        Self { host: host.clone(), request, fd, as_said, asked, held: None, answers: 0 }
    }

    /// Begins a submission of it: as whom it is done, out of what the context has, and nothing of what
    /// another submitter had that was refused.
    pub(crate) fn submitted(&mut self, context: &[Credentials]) {
        self.request.unsettle();
        if self.as_said {
            return;
        }
        let Host { attached, own, .. } = &self.host;
        let of_context = || context.iter().find(|taken| taken.engine() == attached.engine());
        let credentials = own.as_ref().or_else(of_context).unwrap_or(attached);
        self.request.credentials = Some(credentials.clone());
    }

    /// Takes down what else it needs of the submitter's thread.
    pub(crate) fn settle(&mut self) -> Result<(), Errno> {
        let request = &mut self.request;
        // These need nothing more, and asking costs system calls.
        let settled = matches!(
            request.op,
            HostOp::Nop
                | HostOp::Read { .. }
                | HostOp::ReadV { .. }
                | HostOp::Fsync { .. }
                | HostOp::SyncFileRange { .. }
                | HostOp::Accept(_)
                | HostOp::Recv { .. }
                | HostOp::RecvMsg { .. }
                | HostOp::Poll { .. }
                | HostOp::EpollWait(_)
                | HostOp::Sleep(_)
        );
        if settled {
            return Ok(());
        }
        request.settle()
    }

    /// Whether it may have more than one event.
    pub(crate) fn is_multishot(&self) -> bool {
        matches!(self.request.op, HostOp::Poll { multishot: true, .. })
    }

    fn take(&mut self) -> HostRequest {
        std::mem::replace(&mut self.request, HostOp::Nop.into())
    }
}

/// An operation of the host that is over, with all it brought and what the kernel put in. It is the
/// iocb's own allocation, so giving it back costs none.
pub struct HostReply(pub(crate) Box<HostWork>);

impl HostReply {
    /// The operation.
    pub fn op(&self) -> &HostOp {
        &self.0.request.op
    }

    /// How many events there were of it before this one, its last: of a multishot poll only. Who takes events
    /// out with several threads may look at them in another order.
    pub fn events_before(&self) -> u64 {
        self.0.answers
    }

    /// The operation, for its memory and descriptors to be taken out of.
    pub fn into_op(self) -> HostOp {
        self.0.request.op
    }
}

impl std::fmt::Debug for HostReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("HostReply").field(self.op()).finish()
    }
}

/// The engine, as a station's backend.
pub(crate) struct Hosted {
    engine: Engine,
    /// The engine's names of what is in progress, by slot.
    names: Vec<Option<OpId>>,
    done: Vec<HostDone>,
    /// Those that the engine would not start.
    refused: VecDeque<HostDone>,
}

impl Hosted {
    pub(crate) fn new(engine: Engine) -> Self {
        let depth = engine.depth();
        let (done, refused) = (Vec::with_capacity(depth), VecDeque::new());
        Self { engine, names: vec![None; depth], done, refused }
    }
}

impl Backend for Hosted {
    const MAY_WAIT: bool = true;
    const POLLED: bool = false;

    fn has_room(&self) -> bool {
        self.engine.in_flight() < self.engine.depth()
    }

    fn grow(&mut self, operations: usize) -> usize {
        self.engine.grow(operations);
        self.names.resize(self.engine.depth(), None);
        self.engine.depth()
    }

    fn start(&mut self, token: Token, request: &mut Request) {
        let Work::Host(work) = &mut request.iocb.work else {
            panic!("a command of a volume came to the host")
        };
        self.names[token.slot as usize] = None;
        let mut started = work.take();
        if started.io_priority == 0 {
            started.io_priority = request.iocb.priority.of_host();
        }
        match self.engine.start(token, started) {
            Ok(name) => self.names[token.slot as usize] = Some(name),
            Err(refused) => {
                let errno = rustix::io::Errno::from_raw_os_error(refused.reason.errno());
                let op = Some(refused.request.op);
                self.refused.push_back(HostDone { token, result: Err(errno), op });
            }
        }
    }

    fn turn(&mut self) -> bool {
        self.engine.commit();
        if self.done.is_empty() {
            let depth = self.engine.depth();
            self.engine.poll(depth, &mut self.done);
            // They are taken from the end, and are to be answered in order.
            self.done.reverse();
        }
        !self.done.is_empty()
    }

    fn next_finished(&mut self, requests: &mut Slots<Request>) -> Option<(Token, Outcome)> {
        let HostDone { token, result, op } =
            self.refused.pop_front().or_else(|| self.done.pop())?;
        let Some(request) = requests.get_mut(token) else {
            panic!("the engine finished what was not started: {token:?}")
        };
        let result = match result {
            Ok(value) => Ok(value as usize),
            Err(errno) => Err(IoError::host(errno.raw_os_error())),
        };
        let (has_slot, queue) = (op.is_none(), Arc::clone(request.queue()));
        let Work::Host(work) = &mut request.iocb.work else {
            panic!("a command of a volume came to the host")
        };
        if has_slot {
            // One of several answers of one operation, each of which has an event and so a slot. When
            // there is none the operation ends, as one of io_uring's does whose ring is full.
            if work.held.is_none() && queue.take_slots(1) {
                work.answers += 1;
                return Some((token, Outcome::More(result)));
            }
            let events = result.unwrap_or(0);
            work.held = Some(work.held.unwrap_or(0) | events);
            self.cancel(token);
            return Some((token, Outcome::GoesOn));
        }
        let held = work.held.take();
        if let Some(op) = op {
            work.request = op.into();
        }
        Some((token, Outcome::Over(held.map_or(result, Ok))))
    }

    fn cancel(&mut self, token: Token) {
        if let Some(name) = self.names[token.slot as usize] {
            // Its answer says whether that was in time.
            let _ = self.engine.cancel(name);
        }
    }

    fn commit(&mut self) {
        self.engine.commit();
    }

    fn is_untold(&self) -> bool {
        !self.engine.is_all_taken()
    }

    fn turn_background(&mut self, _: Duration) -> Turned {
        Turned::IDLE
    }

    fn arm(&mut self) -> Armed {
        let left = !self.done.is_empty() || !self.refused.is_empty();
        if left { Armed::Ready } else { self.engine.arm() }
    }

    fn arm_requests(&mut self) -> Armed {
        self.arm()
    }

    fn start_closing(&mut self) {}

    fn closed(&mut self) -> Option<IoResult> {
        Some(Ok(()))
    }

    fn take_credentials(station: &Station<Self>) -> Option<std::io::Result<Credentials>> {
        station.with_backend(|hosted| hosted.engine.take_credentials())
    }
}
