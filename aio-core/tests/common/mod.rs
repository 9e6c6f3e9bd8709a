//! What several tests need.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;

use uaio_core::{Event, Reactor, Volume, VolumeOptions};
use uaio_driver::ram::RamDevice;
use uaio_driver::{
    Armed, BlockDevice, Cancel, Capabilities, Completion, DeviceError, DmaPool, Geometry, Health,
    IoError, IoErrorKind, IoQueue, Op, PoolOptions, QueueOptions, Refused, Request, SystemClock,
    Token,
};
use uaio_page_cache::{Cache, CacheOptions};

/// A device that can be stuck and can fail.
pub struct Gate {
    ram: RamDevice,
    pub state: Arc<GateState>,
}

#[derive(Default)]
pub struct GateState {
    /// It completes nothing.
    pub stuck: AtomicBool,
    /// It fails what it completes.
    pub fails: AtomicBool,
    pub completed: AtomicUsize,
    /// Requests that it was asked to end early.
    pub cancels: AtomicUsize,
    /// Flushes sent to it.
    pub flushes: AtomicUsize,
    /// What it was asked to move, and where the frames for that lie, since they were taken last.
    pub moved: Mutex<Vec<(Op, Vec<usize>)>>,
    /// Which thread made it see what, in order.
    pub told_by: Mutex<Vec<ThreadId>>,
}

impl GateState {
    pub fn stick(&self, stuck: bool) {
        self.stuck.store(stuck, Ordering::SeqCst);
    }
}

struct GateQueue {
    inner: Box<dyn IoQueue>,
    state: Arc<GateState>,
    /// How many requests it has not been made to see.
    untold: usize,
}

impl BlockDevice for Gate {
    fn name(&self) -> &str {
        "gate"
    }
    fn geometry(&self) -> Geometry {
        self.ram.geometry()
    }
    fn capabilities(&self) -> Capabilities {
        self.ram.capabilities()
    }
    fn pool(&self) -> &DmaPool {
        self.ram.pool()
    }
    fn health(&self) -> Health {
        self.ram.health()
    }
    fn open_queue(&self, options: QueueOptions) -> Result<Box<dyn IoQueue>, DeviceError> {
        let inner = self.ram.open_queue(options)?;
        Ok(Box::new(GateQueue { inner, state: Arc::clone(&self.state), untold: 0 }))
    }
    fn close(&self) -> Result<(), DeviceError> {
        self.ram.close()
    }
}

impl IoQueue for GateQueue {
    fn submit(&mut self, request: Request) -> Result<(), Refused> {
        if request.op == Op::Flush {
            self.state.flushes.fetch_add(1, Ordering::SeqCst);
        }
        if request.op.has_data() {
            let places = request.data.frames.iter().map(|frame| frame.as_ptr() as usize).collect();
            self.state.moved.lock().unwrap().push((request.op, places));
        }
        self.inner.submit(request)?;
        self.untold += 1;
        Ok(())
    }
    fn commit(&mut self) {
        let told =
            std::iter::repeat_n(std::thread::current().id(), std::mem::take(&mut self.untold));
        self.state.told_by.lock().unwrap().extend(told);
        self.inner.commit();
    }
    fn poll(&mut self, budget: usize, out: &mut Vec<Completion>) -> usize {
        if self.state.stuck.load(Ordering::SeqCst) {
            return 0;
        }
        let first = out.len();
        let count = self.inner.poll(budget, out);
        self.state.completed.fetch_add(count, Ordering::SeqCst);
        if self.state.fails.load(Ordering::SeqCst) {
            for completion in &mut out[first..] {
                completion.result = Err(IoError::new(IoErrorKind::Media));
            }
        }
        count
    }
    fn cancel(&mut self, token: Token) -> Cancel {
        self.state.cancels.fetch_add(1, Ordering::SeqCst);
        self.inner.cancel(token)
    }
    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }
    fn depth(&self) -> usize {
        self.inner.depth()
    }
    fn arm(&mut self) -> Armed {
        if self.inner.in_flight() > 0 { Armed::MustPoll } else { Armed::Yes }
    }
    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

pub const SIZE: u64 = 8 << 20;

/// A reactor with one volume: a cache of `frames` frames over a gate.
pub struct Stack {
    pub volume: Volume,
    pub gate: Arc<GateState>,
    pub reactor: Reactor,
}

pub fn stack(frames: usize, options: VolumeOptions) -> Stack {
    stack_beside(64, frames, options)
}

/// The same with `spare` frames in the pool that are not the cache's.
pub fn stack_beside(spare: usize, frames: usize, options: VolumeOptions) -> Stack {
    let pool = DmaPool::new(PoolOptions::frames(frames + spare)).unwrap();
    let state = Arc::new(GateState::default());
    let ram = RamDevice::new(SIZE, 512, pool).unwrap();
    let gate = Gate { ram, state: Arc::clone(&state) };
    let cache = Cache::new(Arc::new(gate), CacheOptions::frames(frames)).unwrap();
    let reactor = Reactor::new(Arc::new(SystemClock::new())).unwrap();
    let volume = reactor.attach(cache, options).unwrap();
    Stack { volume, gate: state, reactor }
}

/// Runs `test` beside a thread in `Reactor::run`.
pub fn with_thread<T>(reactor: &Reactor, test: impl FnOnce() -> T) -> T {
    struct Stop<'a>(&'a Reactor);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.stop();
        }
    }
    std::thread::scope(|scope| {
        let _stop = Stop(reactor);
        scope.spawn(|| reactor.run());
        test()
    })
}

/// The user data of events, sorted.
pub fn names(events: &[Event]) -> Vec<u64> {
    let mut names: Vec<u64> = events.iter().map(|event| event.user_data).collect();
    names.sort_unstable();
    names
}
