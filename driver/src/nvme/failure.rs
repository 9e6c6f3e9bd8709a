//! How a controller ends: what went wrong, and making sure that it touches memory no more.
//!
//! A controller is one domain of trust. Whatever breaks the protocol, does not answer in time, reports
//! a fatal status or goes away is disabled as a whole, and every request in flight on any of its queues
//! is answered, once, with the reason. No frame goes back to its owner before the controller is known
//! to be quiet: CC.EN = 0 and CSTS.RDY = 0, or its memory taken out of its reach by the IOMMU.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::clock::Clock;
use crate::error::{IoError, IoErrorKind};

use super::registers::{Function, Properties};

/// What a controller did that it may not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Violation {
    /// It completed a command that is not in flight: an identifier never given, or given back already.
    UnknownCommand {
        /// The completion queue it came in.
        qid: u16,
        /// The Command Identifier.
        cid: u16,
    },
    /// It put a completion into one queue that names another submission queue.
    WrongQueue {
        /// The completion queue it came in.
        qid: u16,
        /// The SQ Identifier it names.
        sqid: u16,
    },
    /// It said to have fetched commands that were not committed, or fewer than before.
    BadHead {
        /// The completion queue it came in.
        qid: u16,
        /// The SQ Head Pointer.
        sqhd: u16,
    },
    /// It completed more commands than it said to have fetched.
    Unfetched {
        /// The completion queue it came in.
        qid: u16,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::UnknownCommand { qid, cid } => {
                write!(f, "queue {qid} completed command {cid:#06x}, which is not in flight")
            }
            Self::WrongQueue { qid, sqid } => {
                write!(f, "queue {qid} has a completion of submission queue {sqid}")
            }
            Self::BadHead { qid, sqhd } => {
                write!(
                    f,
                    "queue {qid} has a submission head of {sqhd}, outside of what is committed"
                )
            }
            Self::Unfetched { qid } => {
                write!(f, "queue {qid} completed commands that it did not fetch")
            }
        }
    }
}

/// Why a controller serves no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// A command was not answered in time.
    TimedOut {
        /// The queue it was sent to; 0 is the admin queue.
        qid: u16,
        /// For how long at least, in milliseconds.
        waited_ms: u64,
    },
    /// CSTS.CFS: the controller says that it cannot go on.
    Fatal,
    /// Its registers read as all ones: it is gone from the bus.
    Removed,
    /// It broke the protocol.
    Protocol(Violation),
    /// It would not delete a queue, so it still may use the queue's memory.
    KeepsQueue {
        /// The queue.
        qid: u16,
    },
    /// It was shut down, by [`close`](crate::BlockDevice::close).
    Closed,
}

impl Failure {
    /// What requests in flight are answered with.
    pub const fn io_error(self) -> IoError {
        let kind = match self {
            Self::TimedOut { .. } => IoErrorKind::TimedOut,
            Self::Fatal | Self::Protocol(_) | Self::KeepsQueue { .. } => IoErrorKind::Device,
            Self::Removed | Self::Closed => IoErrorKind::Gone,
        };
        // Whatever the reason, this controller will not take them again.
        IoError { do_not_retry: true, ..IoError::new(kind) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut { qid, waited_ms } => {
                write!(f, "queue {qid} did not answer a command within {waited_ms} ms")
            }
            Self::Fatal => f.write_str("the controller reports a fatal status (CSTS.CFS)"),
            Self::Removed => f.write_str("the controller is gone from the bus"),
            Self::Protocol(violation) => {
                write!(f, "the controller broke the protocol: {violation}")
            }
            Self::KeepsQueue { qid } => write!(f, "the controller would not delete queue {qid}"),
            Self::Closed => f.write_str("the controller is shut down"),
        }
    }
}

/// Whether a controller that is to serve no more still may touch memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quiet {
    /// It may: look again later.
    NotYet,
    /// It touches nothing any more.
    Yes,
    /// It may for ever: whatever it was given is lost.
    Never,
}

const RUNNING: u8 = 0;
const QUIESCING: u8 = 1;
const QUIET: u8 = 2;
const NEVER_QUIET: u8 = 3;

/// The state that a controller and all its queues share.
#[derive(Debug)]
pub(super) struct Fate {
    state: AtomicU8,
    failure: OnceLock<Failure>,
    /// When it was told to stop.
    told: Mutex<Duration>,
    /// How long it may take to, from CAP.TO.
    ready_timeout: Duration,
    properties: Properties,
    function: Arc<dyn Function>,
    clock: Arc<dyn Clock>,
}

impl Fate {
    pub(super) fn new(
        function: Arc<dyn Function>,
        clock: Arc<dyn Clock>,
        ready_timeout: Duration,
    ) -> Self {
        Self {
            state: AtomicU8::new(RUNNING),
            failure: OnceLock::new(),
            told: Mutex::new(Duration::ZERO),
            ready_timeout,
            properties: Properties::new(Arc::clone(&function)),
            function,
            clock,
        }
    }

    /// Whether the controller serves. One load of a line that is hardly ever written.
    #[inline]
    pub(super) fn is_running(&self) -> bool {
        self.state.load(Ordering::Relaxed) == RUNNING
    }

    /// Why it does not, when it does not.
    pub(super) fn failure(&self) -> Option<Failure> {
        if self.is_running() { None } else { self.failure.get().copied() }
    }

    /// Ends the controller: the first reason stays, and CC.EN is cleared. Does not wait.
    pub(super) fn fail(&self, failure: Failure) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_running() {
            return;
        }
        // Set before the state says so, so that whoever sees the state finds the reason.
        self.failure.get_or_init(|| failure);
        *told = self.clock.now();
        if let Some(cc) = self.properties.cc() {
            self.properties.set_cc(cc.with_en(false));
        }
        self.state.store(QUIESCING, Ordering::Release);
    }

    /// Looks at the controller's status: what is wrong with it, if anything is. One register read.
    pub(super) fn examine(&self) -> Option<Failure> {
        match self.properties.csts() {
            None => Some(Failure::Removed),
            Some(csts) if csts.cfs() => Some(Failure::Fatal),
            Some(_) => None,
        }
    }

    /// Whether the controller that was ended touches memory no more. Does not wait.
    pub(super) fn quiet(&self) -> Quiet {
        match self.state.load(Ordering::Acquire) {
            QUIET => return Quiet::Yes,
            NEVER_QUIET => return Quiet::Never,
            _ => {}
        }
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if self.state.load(Ordering::Acquire) != QUIESCING {
            return if self.state.load(Ordering::Acquire) == QUIET {
                Quiet::Yes
            } else {
                Quiet::Never
            };
        }
        let stopped = match self.properties.csts() {
            // Base 2.0c §3.5.1: with RDY = 0 after EN = 0 all queues are gone and nothing is fetched
            // or written any more.
            Some(csts) if !csts.rdy() => true,
            Some(_) if self.clock.now() < *told + self.ready_timeout => return Quiet::NotYet,
            // It will not stop, or it cannot be asked: only the IOMMU can help.
            Some(_) | None => self.function.cut_off(),
        };
        self.state.store(if stopped { QUIET } else { NEVER_QUIET }, Ordering::Release);
        if stopped { Quiet::Yes } else { Quiet::Never }
    }

    /// [`quiet`](Fate::quiet), waited for; bounded by CAP.TO. For control paths. `false` is never.
    pub(super) fn wait_quiet(&self) -> bool {
        loop {
            match self.quiet() {
                Quiet::Yes => return true,
                Quiet::Never => return false,
                Quiet::NotYet => self.clock.sleep(Duration::from_millis(1)),
            }
        }
    }
}
