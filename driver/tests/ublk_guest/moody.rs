//! A device in memory whose moods a test chooses: how it tells of completions, how long they take,
//! which block is bad, and whose last handle goes while a completion is handled.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use uaio_driver::ram::RamDevice;
use uaio_driver::ublk::{OpKind, Server};
use uaio_driver::{
    Armed, BlockDevice, Capabilities, Completion, DeviceError, DmaPool, Geometry, Health, IoError,
    IoErrorKind, IoQueue, Op, QueueOptions, Refused, Request, Token, Wake,
};

/// How the device tells of completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tells {
    /// Not at all: it must be polled.
    Polled,
    /// By its event descriptor.
    Event,
    /// By the queue's wake.
    Wake,
}

/// What happens to requests, shared with the test.
pub(crate) struct Mood {
    pub(crate) tells: Tells,
    pub(crate) latency: Duration,
    pub(crate) volatile_cache: bool,
    /// The block that is bad; `u64::MAX` for none.
    pub(crate) bad_block: AtomicU64,
    /// Completions are held back.
    pub(crate) hold: AtomicBool,
    pub(crate) flushes: AtomicU64,
    pub(crate) fuas: AtomicU64,
    /// The server's last handle, to be dropped in the poll that completes such an operation.
    pub(crate) last_words: Mutex<Option<(OpKind, Server)>>,
    /// The thread that dropped the device.
    pub(crate) dropped_by: Mutex<Option<String>>,
}

impl Mood {
    pub(crate) fn new(tells: Tells, latency_us: u64) -> Self {
        Self {
            tells,
            latency: Duration::from_micros(latency_us),
            volatile_cache: true,
            bad_block: AtomicU64::new(u64::MAX),
            hold: AtomicBool::new(false),
            flushes: AtomicU64::new(0),
            fuas: AtomicU64::new(0),
            last_words: Mutex::new(None),
            dropped_by: Mutex::new(None),
        }
    }
}

pub(crate) struct MoodyDevice {
    ram: RamDevice,
    mood: Arc<Mood>,
}

impl MoodyDevice {
    pub(crate) fn new(ram: RamDevice, mood: &Arc<Mood>) -> Self {
        Self { ram, mood: Arc::clone(mood) }
    }
}

impl Drop for MoodyDevice {
    fn drop(&mut self) {
        let name = std::thread::current().name().unwrap_or("?").to_owned();
        *self.mood.dropped_by.lock().unwrap() = Some(name);
    }
}

impl BlockDevice for MoodyDevice {
    fn name(&self) -> &str {
        "moody"
    }

    fn geometry(&self) -> Geometry {
        self.ram.geometry()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { volatile_cache: self.mood.volatile_cache, ..self.ram.capabilities() }
    }

    fn pool(&self) -> &DmaPool {
        self.ram.pool()
    }

    fn health(&self) -> Health {
        Health::Good
    }

    fn open_queue(&self, options: QueueOptions) -> Result<Box<dyn IoQueue>, DeviceError> {
        let wake = Arc::clone(&options.wake);
        let inner = self.ram.open_queue(options)?;
        let event = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let ripe = Arc::new(AtomicUsize::new(0));
        let (ripen, unripe) = mpsc::channel();
        let (mood, theirs, bell) = (Arc::clone(&self.mood), Arc::clone(&ripe), Arc::clone(&event));
        std::thread::spawn(move || ripener(&mood, &unripe, &theirs, &bell, &*wake));
        let mood = Arc::clone(&self.mood);
        Ok(Box::new(MoodyQueue { inner, mood, ripe, event, ripen, ops: Vec::new(), fresh: 0 }))
    }

    fn close(&self) -> Result<(), DeviceError> {
        self.ram.close()
    }
}

/// The device's own time: makes committed requests ready some time later, and tells.
fn ripener(
    mood: &Mood,
    unripe: &mpsc::Receiver<usize>,
    ripe: &AtomicUsize,
    event: &OwnedFd,
    wake: &dyn Wake,
) {
    for count in unripe {
        if !mood.latency.is_zero() {
            std::thread::sleep(mood.latency);
        }
        while mood.hold.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        ripe.fetch_add(count, Ordering::Release);
        match mood.tells {
            Tells::Polled => {}
            Tells::Event => drop(rustix::io::write(event, &1u64.to_ne_bytes())),
            Tells::Wake => wake.wake(),
        }
    }
}

struct MoodyQueue {
    inner: Box<dyn IoQueue>,
    mood: Arc<Mood>,
    /// Completions that may be polled.
    ripe: Arc<AtomicUsize>,
    event: Arc<OwnedFd>,
    ripen: mpsc::Sender<usize>,
    /// What is in flight, and whether it will fail.
    ops: Vec<(Token, OpKind, bool)>,
    /// Submitted and not committed.
    fresh: usize,
}

impl IoQueue for MoodyQueue {
    fn submit(&mut self, request: Request) -> Result<(), Refused> {
        let bad = self.mood.bad_block.load(Ordering::Relaxed);
        let covered = request.lba.0..request.lba.0 + u64::from(request.blocks);
        let (token, op) = (request.token, request.op);
        self.inner.submit(request)?;
        let kind = match op {
            Op::Read => OpKind::Read,
            Op::Write { .. } => OpKind::Write,
            Op::Flush => OpKind::Flush,
            Op::Discard => OpKind::Discard,
            Op::WriteZeroes { .. } => OpKind::WriteZeroes,
        };
        if op == Op::Flush {
            self.mood.flushes.fetch_add(1, Ordering::Relaxed);
        }
        if op == (Op::Write { fua: true }) {
            self.mood.fuas.fetch_add(1, Ordering::Relaxed);
        }
        self.ops.push((token, kind, covered.contains(&bad)));
        self.fresh += 1;
        Ok(())
    }

    fn commit(&mut self) {
        self.inner.commit();
        if self.fresh > 0 {
            self.ripen.send(std::mem::take(&mut self.fresh)).unwrap();
        }
    }

    fn poll(&mut self, budget: usize, out: &mut Vec<Completion>) -> usize {
        let count = self.inner.poll(budget.min(self.ripe.load(Ordering::Acquire)), out);
        self.ripe.fetch_sub(count, Ordering::Relaxed);
        let first = out.len() - count;
        for completion in &mut out[first..] {
            let at = self.ops.iter().position(|(token, ..)| *token == completion.token).unwrap();
            let (_, kind, fails) = self.ops.swap_remove(at);
            if fails {
                completion.result = Err(IoError::new(IoErrorKind::Device));
            }
            let mut last_words = self.mood.last_words.lock().unwrap();
            if last_words.as_ref().is_some_and(|(wanted, _)| *wanted == kind) {
                // The last handle goes while this completion is being handled.
                drop(last_words.take());
            }
        }
        count
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    fn depth(&self) -> usize {
        self.inner.depth()
    }

    fn arm(&mut self) -> Armed {
        match self.mood.tells {
            _ if self.ripe.load(Ordering::Acquire) > 0 => Armed::Ready,
            Tells::Polled if self.in_flight() > 0 => Armed::MustPoll,
            _ => Armed::Yes,
        }
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        (self.mood.tells == Tells::Event).then(|| self.event.as_fd())
    }
}
