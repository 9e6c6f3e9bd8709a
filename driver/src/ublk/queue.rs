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
//! A turn in which nothing happened is followed by the cheapest wait that loses nothing. While the
//! device has requests the thread looks again and again, in shared memory and at the device, and
//! enters the kernel only to let others run: what is done meanwhile is answered without an interrupt
//! or a wake-up. With nothing at the device it does not look: requests come in larger batches to one
//! who sleeps, and on a busy machine the CPU is better spent by whoever sends them. Then it does what
//! the device says:
//!
//! | [`IoQueue::arm`] | the thread |
//! |---|---|
//! | [`Armed::Yes`] | sleeps in its ring until a request, the device's event descriptor or the doorbell |
//! | [`Armed::Ready`] | takes the next turn |
//! | [`Armed::MustPoll`] | naps in its ring, for [`PollOptions::nap`] at most |
//!
//! Looking pays when something comes while it goes on. Each time nothing did, it is left out the
//! next time, then the next three times, seven, and so on to 63; when something did, it is back at
//! once. So a queue with little to do, or a slow device, costs next to no time on the CPU.
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

use super::error::ServerError;
use super::looking::{Looking, Next, PollOptions};
use super::ring::{self, Event, Ring};
use super::shield;
use super::stats::QueueStats;
use super::tags::{BadTag, Tags, Turn};
use crate::doorbell::{self, Doorbell};

/// How many completions a turn takes at most, so that new requests are not kept waiting.
const BUDGET: usize = 128;
/// How many ticks an idle queue sleeps through.
const IDLE_TICKS: u32 = 10;

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
    looking: Looking,
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
            looking: Looking::default(),
            events: Vec::with_capacity(usize::from(depth) * 2 + 8),
            completions: Vec::with_capacity(BUDGET),
        }
    }

    fn run(mut self, ring: &mut Ring<'_>, depth: u16) -> Result<(), ServerError> {
        let lost = |source| ServerError::Kernel { what: "io_uring_enter", source };
        while self.aborted < depth {
            if self.turn(ring, depth)? {
                self.looking.found();
                // The results leave now, or, when there is nothing else to do, in the call that
                // sleeps.
                if self.busy() {
                    Self::enter_if_wanted(ring).map_err(lost)?;
                }
                continue;
            }
            self.wait(ring).map_err(lost)?;
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
        let next = if self.busy() { self.looking.next(&self.poll) } else { Next::Sleep };
        match next {
            Next::Spin => std::hint::spin_loop(),
            Next::Yield => std::thread::yield_now(),
            Next::Sleep => return self.sleep(ring),
        }
        Self::enter_if_wanted(ring)
    }

    fn sleep(&mut self, ring: &mut Ring<'_>) -> std::io::Result<()> {
        self.doorbell.announce_sleep();
        // `arm` looks at the device's queue once more, after the announcement: the doorbell's step 3.
        let slept = match self.device.arm() {
            Armed::Yes => {
                let tick = self.poll.tick;
                let at_most = if self.busy() { tick } else { tick.saturating_mul(IDLE_TICKS) };
                ring.sleep(self.device.event_fd(), at_most)
            }
            Armed::Ready => Self::enter_if_wanted(ring),
            Armed::MustPoll => ring.sleep(None, self.poll.nap),
        };
        self.doorbell.revoke_sleep();
        slept
    }

    fn enter_if_wanted(ring: &mut Ring<'_>) -> std::io::Result<()> {
        if ring.wants_enter() { ring.enter() } else { Ok(()) }
    }
}

fn broken(queue: u16, tag: u64, errno: i32) -> ServerError {
    ServerError::Protocol { queue, tag, errno }
}
