//! Notification: how somebody is told that an event is there, or that a list is done.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::Waker;

use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::signal::Signal;

/// How a request, or a list of them, is told to be done: once, after its events are there.
///
/// Whatever needs somebody to go on while nobody waits needs a reactor with a thread.
#[derive(Debug, Default)]
#[non_exhaustive]
pub enum Notify {
    /// Not at all: `get_events` finds it (`SIGEV_NONE`).
    #[default]
    None,
    /// A descriptor goes up by one (`IOCB_FLAG_RESFD`): one of this operation alone, or one that
    /// several count on.
    Descriptor(NoticeFd),
    /// A signal, with its value (`SIGEV_SIGNAL`, `SIGEV_THREAD_ID`).
    Signal(Signal),
    /// A function, on the thread that is in [`Callbacks::run`] (`SIGEV_THREAD`).
    Callback(Callbacks, Callback),
    /// A task. It is woken on the thread that completes, so it must not wait for this reactor.
    Waker(Waker),
}

impl Notify {
    /// Has `run` called on the thread of `callbacks`.
    pub fn callback(callbacks: &Callbacks, run: impl FnOnce() + Send + 'static) -> Self {
        Self::Callback(callbacks.clone(), Callback(Box::new(run)))
    }

    /// Gives the notice; says whether it arrived. Does not block and is called under no lock.
    #[must_use = "a notice that did not arrive is counted"]
    pub(crate) fn send(self) -> bool {
        match self {
            Self::None => true,
            Self::Descriptor(fd) => fd.ring(),
            Self::Signal(signal) => signal.send().is_ok(),
            Self::Callback(callbacks, callback) => callbacks.push(callback),
            Self::Waker(waker) => {
                waker.wake();
                true
            }
        }
    }
}

/// An eventfd that notices count on: it is readable from the first one until it is read, and works
/// with epoll. Cloning it is another name for the same descriptor.
#[derive(Clone, Debug)]
pub struct NoticeFd {
    fd: Arc<OwnedFd>,
    /// Writing to it could wait.
    blocks: bool,
}

impl NoticeFd {
    /// A new one, not readable.
    ///
    /// # Errors
    ///
    /// When the process has no descriptor left.
    pub fn new() -> std::io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { fd: Arc::new(fd), blocks: false })
    }

    /// One that is there already: an eventfd of the caller's. Whatever else it is, 8 bytes are
    /// written to it at each notice. One that would block then (it is not `EFD_NONBLOCK`, and its counter
    /// is full) is not written to, which the context counts as a lost notice. It is looked at first: who
    /// makes it block (`F_SETFL`) after this call, or fills it up between the look and the write, from
    /// another thread or process, makes the reactor wait until it is read. One that is `EFD_NONBLOCK` never
    /// does.
    pub fn from_fd(eventfd: Arc<OwnedFd>) -> Self {
        let flags = rustix::fs::fcntl_getfl(&eventfd);
        let blocks = !flags.is_ok_and(|flags| flags.contains(rustix::fs::OFlags::NONBLOCK));
        Self { fd: eventfd, blocks }
    }

    /// How many notices came since the last time, without waiting; 0 when none did.
    pub fn take(&self) -> u64 {
        let mut count = [0; 8];
        if self.blocks && !self.is_ready(PollFlags::IN) {
            return 0;
        }
        match rustix::io::read(&self.fd, &mut count) {
            Ok(8) => u64::from_ne_bytes(count),
            _ => 0,
        }
    }

    pub(crate) fn ring(&self) -> bool {
        if self.blocks && !self.is_ready(PollFlags::OUT) {
            return false;
        }
        // The counter holds 2^64 - 2 notices, so one of our own cannot be full.
        rustix::io::write(&self.fd, &1u64.to_ne_bytes()).is_ok()
    }

    fn is_ready(&self, wanted: PollFlags) -> bool {
        let mut fds = [PollFd::new(&self.fd, wanted)];
        // Interrupted is as good as no.
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1))
    }
}

impl AsFd for NoticeFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A function to be called once.
pub struct Callback(Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for Callback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Callback").finish()
    }
}

/// Functions that wait to be called, and the thread or threads that call them: those in
/// [`run`](Callbacks::run). A function may take its time, wait, submit and get events; it holds up
/// only those behind it.
#[derive(Clone, Debug, Default)]
pub struct Callbacks(Arc<Line>);

#[derive(Debug, Default)]
struct Line {
    waiting: Mutex<Waiting>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    callbacks: VecDeque<Callback>,
    stopped: bool,
}

impl Callbacks {
    /// Nobody waits, nobody calls.
    pub fn new() -> Self {
        Self::default()
    }

    /// Calls functions, first in, first out, until [`stop`](Callbacks::stop); those that wait then
    /// are called first. A function that panics takes this thread with it.
    pub fn run(&self) {
        let mut waiting = self.0.waiting.lock();
        loop {
            match waiting.callbacks.pop_front() {
                Some(Callback(run)) => {
                    drop(waiting);
                    run();
                    waiting = self.0.waiting.lock();
                }
                None if waiting.stopped => return,
                None => self.0.more.wait(&mut waiting),
            }
        }
    }

    /// Ends [`run`](Callbacks::run) for good. A function that comes later is not called, which the
    /// context counts as a lost notice.
    pub fn stop(&self) {
        self.0.waiting.lock().stopped = true;
        self.0.more.notify_all();
    }

    /// The same, but what waits is not called either: for a function that is called back, behind which
    /// nobody waits for the others. Says how many there were.
    pub fn stop_now(&self) -> usize {
        self.stop();
        let waiting = std::mem::take(&mut self.0.waiting.lock().callbacks);
        // Dropped under no lock: what they own is the caller's.
        waiting.len()
    }

    fn push(&self, callback: Callback) -> bool {
        let mut waiting = self.0.waiting.lock();
        if waiting.stopped {
            return false;
        }
        waiting.callbacks.push_back(callback);
        drop(waiting);
        self.0.more.notify_one();
        true
    }
}
