//! What the program's threads and the reactor share.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use uaio_driver::{Doorbell, Wake};

use super::guard::{Guard, Inside};
use super::inbox::Inbox;
use super::reply::{Cancelled, Reply};
use super::{Landing, Operation};
use crate::futex;

/// Which requests are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// Those of one control block, by its address: an iocb of a context, or an aiocb.
    One {
        /// The context's address for libaio; 0 for POSIX.
        context: usize,
        /// The control block's.
        block: u64,
    },
    /// All of POSIX AIO on a descriptor.
    Descriptor(RawFd),
    /// All of a context of libaio, by its address.
    Context(usize),
}

impl Which {
    /// Whether a request is one of them.
    pub(super) fn is(self, fd: RawFd, landing: &Landing) -> bool {
        match (self, landing) {
            (Self::One { context, block }, Landing::Event(event)) => {
                event.is_of(context) && event.obj() == block
            }
            (Self::One { context: 0, block }, Landing::Control(control)) => {
                control.address() as u64 == block
            }
            (Self::One { .. }, Landing::Control(_)) => false,
            (Self::Descriptor(which), Landing::Control(_)) => which == fd,
            (Self::Context(context), Landing::Event(event)) => event.is_of(context),
            (Self::Descriptor(_), Landing::Event(_)) | (Self::Context(_), Landing::Control(_)) => {
                false
            }
        }
    }
}

/// What a thread sends to the reactor.
#[derive(Debug)]
pub(super) enum Message {
    Operation(Operation),
    Cancel { which: Which, reply: Arc<Reply> },
}

/// How many requests were served, by whom.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Of libaio, the inline ones included.
    pub(crate) libaio: AtomicU64,
    /// Of POSIX AIO, the inline ones included.
    pub(crate) posix: AtomicU64,
    /// Answered in the submitter's thread, from the kernel's page cache.
    pub(crate) inline: AtomicU64,
    /// Ended with ECANCELED.
    pub(crate) cancelled: AtomicU64,
}

impl Counters {
    /// One more.
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests of both interfaces.
    pub(crate) fn requests(&self) -> u64 {
        self.libaio.load(Ordering::Relaxed) + self.posix.load(Ordering::Relaxed)
    }
}

/// What `last` says.
const GOING_ON: u32 = 0;
const ASKED: u32 = 1;
const SETTLED: u32 = 2;

/// The service of a process. It is never freed.
#[derive(Debug)]
pub(crate) struct Service {
    /// The process that it is of: a child of vfork(2) shares the memory, and is another.
    pid: u32,
    pub(super) inbox: Inbox<Message>,
    pub(super) bell: Doorbell,
    pub(crate) guard: Guard,
    /// Whether the process ends, and waits for what changes files.
    last: AtomicU32,
    /// The contexts of libaio.
    pub(crate) contexts: crate::libaio::Contexts,
    pub(crate) counters: Counters,
}

impl Service {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            pid: std::process::id(),
            inbox: Inbox::new(),
            bell: Doorbell::new()?,
            guard: Guard::new(),
            last: AtomicU32::new(GOING_ON),
            contexts: crate::libaio::Contexts::default(),
            counters: Counters::default(),
        })
    }

    /// Tells this process's requests from those that it has a copy of from its parent; never 0.
    pub(crate) fn generation(&self) -> u32 {
        self.pid
    }

    /// Whether this is the process that it is of.
    pub(crate) fn is_of_this_process(&self) -> bool {
        let pid = crate::real::raw(libc::SYS_getpid, [0; 6]);
        pid == Ok(self.pid as usize)
    }

    /// Hands requests to the reactor, in their order. Does not block.
    pub(crate) fn submit(&self, operations: impl Iterator<Item = Operation>) {
        let _inside = Inside::enter();
        let mut any = false;
        for operation in operations {
            self.guard.hold(operation.fd);
            self.inbox.push(Message::Operation(operation));
            any = true;
        }
        if any {
            self.bell.wake();
        }
    }

    /// Cancels, and waits for what came of it: about a second at most.
    pub(crate) fn cancel(&self, which: Which) -> Cancelled {
        let reply = Arc::new(Reply::default());
        {
            let _inside = Inside::enter();
            self.inbox.push(Message::Cancel { which, reply: Arc::clone(&reply) });
            self.bell.wake();
        }
        reply.wait()
    }

    /// Waits until the kernel has whatever was submitted on a number that is about to be closed. Async-signal-safe.
    #[cold]
    pub(crate) fn before_close(&self, fd: RawFd) {
        self.guard.before_close(fd, &self.bell);
    }

    /// For a process that ends: waits until writes and syncs that were submitted are done, so long at most.
    /// Async-signal-safe.
    pub(crate) fn settle(&self, most: Duration) {
        if Inside::is() {
            // The reactor itself, or a handler that interrupted a submission.
            return;
        }
        self.last.store(ASKED, Ordering::SeqCst);
        self.bell.wake();
        let step = Duration::from_millis(10);
        // A timer of the program's may interrupt each wait, so it is the clock that counts.
        let until = Instant::now() + most;
        while self.last.load(Ordering::Acquire) != SETTLED && Instant::now() < until {
            futex::wait(&self.last, ASKED, step);
        }
    }

    /// Whether the process is about to end.
    pub(super) fn is_ending(&self) -> bool {
        self.last.load(Ordering::Acquire) == ASKED
    }

    /// Nothing that changes a file is in progress.
    pub(super) fn settled(&self) {
        self.last.store(SETTLED, Ordering::Release);
        futex::wake(&self.last);
    }
}
