//! The backend of a volume: a lane through its cache, and the cache's flusher.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use uaio_driver::{Armed, Doorbell, IoResult, Slots, Token, Wake};
use uaio_page_cache::{Buffer, Finished, Flusher, Lane, OpKind, Operation};

use crate::request::Request;
use crate::station::{Backend, Outcome, Turned};

/// What is stepped under a volume's lock. The lane goes before the flusher, and waits for nothing of it.
pub(crate) struct Cached {
    lane: Lane,
    flusher: Option<Writeback>,
    /// How the last flush went, when the volume is being closed.
    last_flush: Option<IoResult>,
}

/// The flusher and when it is to be turned: when rung, while it has something in flight, and once
/// its time has come. It looks at every shard, so it is not turned for every completion of the lane.
struct Writeback {
    flusher: Flusher,
    rung: Arc<FlusherBell>,
    busy: bool,
    next: Duration,
}

/// How the flusher is rung.
#[derive(Debug)]
pub(crate) struct FlusherBell {
    rung: AtomicBool,
    bell: Arc<Doorbell>,
}

impl FlusherBell {
    pub(crate) fn new(bell: Arc<Doorbell>) -> Arc<Self> {
        Arc::new(Self { rung: AtomicBool::new(true), bell })
    }
}

impl Wake for FlusherBell {
    fn wake(&self) {
        // Release: pairs with the swap in `turn`, so that the flusher sees what it was rung for.
        self.rung.store(true, Ordering::Release);
        self.bell.wake();
    }
}

/// The token of the flush of [`Backend::start_closing`]; no request has it, for there are fewer slots.
const LAST_FLUSH: Token = Token { slot: u32::MAX, generation: 0 };

impl Cached {
    pub(crate) fn new(lane: Lane, flusher: Option<(Flusher, Arc<FlusherBell>)>) -> Self {
        let flusher = flusher.map(|(flusher, rung)| Writeback {
            flusher,
            rung,
            busy: true,
            next: Duration::ZERO,
        });
        Self { lane, flusher, last_flush: None }
    }
}

impl Backend for Cached {
    const MAY_WAIT: bool = false;
    const POLLED: bool = true;

    /// An operation that was cancelled may hold its place in the lane until the device is done.
    fn has_room(&self) -> bool {
        self.lane.in_flight() < self.lane.depth()
    }

    /// What is in progress here is over in a bounded time, so what waits for a place gets one.
    fn grow(&mut self, _: usize) -> usize {
        self.lane.depth()
    }

    fn start(&mut self, token: Token, request: &mut Request) {
        let started = self.lane.start(request.next_operation(token));
        assert!(started.is_ok(), "the lane is full");
    }

    fn turn(&mut self) -> bool {
        self.lane.turn()
    }

    fn next_finished(&mut self, requests: &mut Slots<Request>) -> Option<(Token, Outcome)> {
        loop {
            let Finished { token, result, buffer } = self.lane.pop_finished()?;
            if token == LAST_FLUSH {
                self.last_flush = Some(result);
                continue;
            }
            let Some(request) = requests.get_mut(token) else {
                panic!("the lane finished what was not started: {token:?}")
            };
            let outcome = if request.piece_done(result, buffer) {
                // The piece before has just left its place in the lane.
                self.start(token, request);
                Outcome::GoesOn
            } else {
                Outcome::Over(request.result(result))
            };
            return Some((token, outcome));
        }
    }

    fn cancel(&mut self, token: Token) {
        // Whether it is over or runs on: it will be finished, and says how.
        let _ = self.lane.cancel(token);
    }

    fn commit(&mut self) {
        self.lane.commit();
    }

    fn is_untold(&self) -> bool {
        self.lane.is_untold()
    }

    fn turn_background(&mut self, now: Duration) -> Turned {
        self.flusher.as_mut().map_or(Turned::IDLE, |writeback| writeback.turn(now))
    }

    fn arm(&mut self) -> Armed {
        let lane = self.lane.arm();
        let flusher = self.flusher.as_mut().map_or(Armed::Yes, Writeback::arm);
        match (lane, flusher) {
            (Armed::Ready, _) | (_, Armed::Ready) => Armed::Ready,
            (Armed::MustPoll, _) | (_, Armed::MustPoll) => Armed::MustPoll,
            (Armed::Yes, Armed::Yes) => Armed::Yes,
        }
    }

    fn arm_requests(&mut self) -> Armed {
        self.lane.arm()
    }

    fn start_closing(&mut self) {
        self.last_flush = None;
        if self.flusher.is_none() {
            self.last_flush = Some(Ok(()));
            return;
        }
        let flush = Operation {
            token: LAST_FLUSH,
            kind: OpKind::Flush,
            offset: 0,
            len: 0,
            buffer: Buffer::None,
            handle: self.lane.cache().open(),
        };
        let started = self.lane.start(flush);
        assert!(started.is_ok(), "the lane has room, as was asked");
    }

    fn closed(&mut self) -> Option<IoResult> {
        self.last_flush
    }
}

impl Writeback {
    fn turn(&mut self, now: Duration) -> Turned {
        // Acquire: pairs with the store in `FlusherBell::wake`.
        let rung = self.rung.rung.swap(false, Ordering::Acquire);
        if rung || self.busy || self.flusher.in_flight() > 0 || now >= self.next {
            let turn = self.flusher.turn(now);
            (self.busy, self.next) = (turn.busy, turn.next);
            return Turned { busy: turn.busy, polls: false, next: turn.next };
        }
        Turned { next: self.next, ..Turned::IDLE }
    }

    fn arm(&mut self) -> Armed {
        if self.busy || self.rung.rung.load(Ordering::Acquire) {
            return Armed::Ready;
        }
        self.flusher.arm()
    }
}
