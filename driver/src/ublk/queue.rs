//! The thread of one queue: it owns the queue's ring and its queue of the device.
//!
//! ```text
//!        ┌───────────────────────────── one turn ─────────────────────────────┐
//!  kernel│ requests ──► tags ──► submit … commit ──► poll ──► tags ──► results│ one io_uring_enter
//!        └────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! # Waiting
//!
//! A turn in which nothing happened is followed by the cheapest wait that loses nothing:
//!
//! | the device says | the thread |
//! |---|---|
//! | [`Armed::Yes`] | sleeps in its ring until a request, the device's event descriptor or the doorbell |
//! | [`Armed::Ready`] | takes the next turn |
//! | [`Armed::MustPoll`] | spins, then yields, then naps: see [`PollOptions`] |
//!
//! Every sleep ends by itself after a tick, so that a device whose deadlines are only noticed in
//! `poll` notices them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use libublk::io::{UblkDev, UblkQueue};
use libublk::{UblkError, ublk_init_task_ring, with_task_io_ring_mut};

use crate::block::{Armed, Geometry, IoQueue};
use crate::clock::Clock;
use crate::dma::DmaBuf;
use crate::request::Completion;

use super::doorbell::{self, Doorbell};
use super::error::ServerError;
use super::ring::{self, Event, Ring};
use super::shield;
use super::stats::QueueStats;
use super::tags::{BadTag, Tags, Turn};

/// How many completions a turn takes at most, so that new requests are not kept waiting.
const BUDGET: usize = 128;
/// How many ticks an idle queue sleeps through.
const IDLE_TICKS: u32 = 10;

/// How a queue thread waits for a device that only can be polled.
///
/// The numbers are turns in a row in which nothing happened. After all of them the thread naps: the
/// latency that polling less adds to a request is at most one `nap`, and the time the kernel takes
/// to run the thread again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollOptions {
    /// Turns without letting go of the CPU.
    pub spin_turns: u32,
    /// Turns after those, each of which lets others run first (`sched_yield`).
    pub yield_turns: u32,
    /// How long each wait after those is. A new request ends it early.
    pub nap: Duration,
    /// The longest sleep while requests are in flight at a device that tells of completions; ten of
    /// them when none are. Nothing that a device tells of waits for it: it is how soon a device that
    /// looks at its deadlines in `poll` looks at them.
    pub tick: Duration,
}

impl Default for PollOptions {
    /// Some tens of microseconds of spinning, some hundreds of yielding (a flash drive answers
    /// within both), then naps of 50 µs. A tick of 100 ms.
    fn default() -> Self {
        Self {
            spin_turns: 200,
            yield_turns: 1000,
            nap: Duration::from_micros(50),
            tick: Duration::from_millis(100),
        }
    }
}

/// All that a queue thread needs, made before it starts.
pub(super) struct QueueSetup {
    pub(super) index: u16,
    pub(super) dev: Arc<UblkDev>,
    pub(super) device: Box<dyn IoQueue>,
    pub(super) geometry: Geometry,
    pub(super) io_max_bytes: u32,
    pub(super) frames: Vec<DmaBuf>,
    pub(super) poll: PollOptions,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) doorbell: Arc<Doorbell>,
    pub(super) stats: Arc<QueueStats>,
    pub(super) fail_new_io: Arc<AtomicBool>,
}

/// Serves one queue until the kernel has taken every tag back. Calls `ready` when all tags have been
/// offered.
///
/// The device's queue is dropped, and so drained, on this thread.
///
/// # Errors
///
/// When the queue could not be set up, or the kernel refused something that leaves a request without
/// an answer. The ring goes with the thread then, and the kernel fails what was in flight.
pub(super) fn serve(setup: QueueSetup, ready: impl FnOnce()) -> Result<(), ServerError> {
    let QueueSetup { index, dev, .. } = &setup;
    let (index, dev, depth) = (*index, Arc::clone(dev), setup.dev.dev_info.queue_depth);
    shield::block_signals();
    shield::exact_timers();
    shield::shield_thread();
    ublk_init_task_ring(|cell| {
        let ring = ring::build_ring(depth).map_err(UblkError::IOError)?;
        // The thread is new, so the cell is empty.
        cell.set(ring.into()).map_err(|_| UblkError::OtherError(-libc::EEXIST))
    })
    .map_err(|error| ServerError::kernel("io_uring_setup", error))?;
    let queue = UblkQueue::new(index, &dev)
        .map_err(|error| ServerError::kernel("mapping a queue's descriptors", error))?;
    // libublk's `UblkQueue` borrows the thread's ring when it is made and when it is dropped, and
    // `get_iod` in between does not, so the loop may hold it for good.
    with_task_io_ring_mut(|ring| {
        let doorbell = Arc::clone(&setup.doorbell);
        let mut ring = Ring::new(ring, &queue, &doorbell, setup.io_max_bytes);
        let lost = |source| ServerError::Kernel { what: "io_uring_enter", source };
        ring.fetch_all(depth).map_err(lost)?;
        ready();
        QueueLoop::new(depth, setup).run(&mut ring, depth)
    })
}

struct QueueLoop {
    device: Box<dyn IoQueue>,
    tags: Tags,
    poll: PollOptions,
    clock: Arc<dyn Clock>,
    doorbell: Arc<Doorbell>,
    stats: Arc<QueueStats>,
    fail_new_io: Arc<AtomicBool>,
    index: u16,
    /// Tags that the kernel has taken back.
    aborted: u16,
    /// Turns in a row in which nothing happened.
    idle_turns: u32,
    events: Vec<Event>,
    completions: Vec<Completion>,
}

impl QueueLoop {
    fn new(depth: u16, setup: QueueSetup) -> Self {
        let tags = Tags::new(depth, setup.geometry, setup.io_max_bytes, setup.frames);
        Self {
            device: setup.device,
            tags,
            poll: setup.poll,
            clock: setup.clock,
            doorbell: setup.doorbell,
            stats: setup.stats,
            fail_new_io: setup.fail_new_io,
            index: setup.index,
            aborted: 0,
            idle_turns: 0,
            events: Vec::with_capacity(usize::from(depth) * 2 + 8),
            completions: Vec::with_capacity(BUDGET),
        }
    }

    fn run(mut self, ring: &mut Ring<'_>, depth: u16) -> Result<(), ServerError> {
        let lost = |source| ServerError::Kernel { what: "io_uring_enter", source };
        while self.aborted < depth {
            if self.turn(ring, depth)? {
                self.idle_turns = 0;
                // With nothing at the device the results leave in the call that sleeps.
                if self.busy() {
                    Self::enter_if_wanted(ring).map_err(lost)?;
                    continue;
                }
            }
            if self.aborted < depth {
                self.wait(ring).map_err(lost)?;
            }
        }
        Ok(())
    }

    fn busy(&self) -> bool {
        self.device.in_flight() > 0 || self.tags.anyone_waits()
    }

    /// Takes what the kernel and the device have. Says whether there was anything.
    fn turn(&mut self, ring: &mut Ring<'_>, depth: u16) -> Result<bool, ServerError> {
        ring.reap(depth, &mut self.events);
        // The clock is read once a batch of requests and once a batch of completions: through the
        // vDSO it is a TSC read and a multiplication.
        let mut now = Duration::ZERO;
        if !self.events.is_empty() {
            now = self.clock.now();
        }
        let mut turn = Turn {
            device: &mut *self.device,
            port: ring,
            stats: &self.stats,
            now,
            fail_new_io: self.fail_new_io.load(Ordering::Relaxed),
        };
        let happened = !self.events.is_empty();
        for event in self.events.drain(..) {
            match event {
                Event::Request(tag) => {
                    let descriptor = turn.port.descriptor(tag);
                    self.tags
                        .start(tag, descriptor, &mut turn)
                        .map_err(|BadTag(tag)| broken(self.index, tag.into(), 0))?;
                }
                Event::Aborted(_) => self.aborted += 1,
                Event::Broken { tag, errno } => return Err(broken(self.index, tag, errno)),
                Event::Rung => {}
                Event::Device => {
                    if let Some(fd) = turn.device.event_fd() {
                        doorbell::quiet(fd);
                    }
                }
            }
        }
        turn.device.commit();
        let polled = turn.device.poll(BUDGET, &mut self.completions);
        if polled > 0 {
            turn.now = self.clock.now();
            for completion in self.completions.drain(..) {
                self.tags.finish(completion, &mut turn);
            }
            self.tags.go_on(&mut turn);
            turn.device.commit();
        }
        self.stats.set_in_flight(self.tags.held());
        Ok(happened || polled > 0)
    }

    /// Waits for something to happen, as the device allows.
    fn wait(&mut self, ring: &mut Ring<'_>) -> std::io::Result<()> {
        self.doorbell.announce_sleep();
        // `arm` looks at the device's queue once more, after the announcement: the doorbell's step 3.
        let waited = match self.device.arm() {
            Armed::Yes => {
                let tick = self.poll.tick;
                let at_most = if self.busy() { tick } else { tick.saturating_mul(IDLE_TICKS) };
                ring.sleep(self.device.event_fd(), at_most)
            }
            Armed::Ready => Self::enter_if_wanted(ring),
            Armed::MustPoll => self.back_off(ring),
        };
        self.doorbell.revoke_sleep();
        waited
    }

    fn back_off(&mut self, ring: &mut Ring<'_>) -> std::io::Result<()> {
        self.idle_turns = self.idle_turns.saturating_add(1);
        let PollOptions { spin_turns, yield_turns, nap, .. } = self.poll;
        if self.idle_turns > spin_turns.saturating_add(yield_turns) {
            return ring.sleep(None, nap);
        }
        if self.idle_turns > spin_turns {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
        Self::enter_if_wanted(ring)
    }

    fn enter_if_wanted(ring: &mut Ring<'_>) -> std::io::Result<()> {
        if ring.wants_enter() { ring.enter() } else { Ok(()) }
    }
}

fn broken(queue: u16, tag: u64, errno: i32) -> ServerError {
    ServerError::Protocol { queue, tag, errno }
}
