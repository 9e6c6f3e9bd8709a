//! A small cache on a simulated drive, stepped by hand.

use std::sync::Arc;
use std::time::Duration;

use uaio_driver::block::PollsAnyway;
use uaio_driver::sim::{SimDevice, SimOptions};
use uaio_driver::{BlockDevice, DmaPool, IoError, IoErrorKind, IoResult, PoolOptions, Token};
use uaio_page_cache::{
    Buffer, Cache, CacheMode, CacheOptions, Cancelled, Finished, Flusher, Handle, Lane, OpKind,
    Operation,
};

pub const PAGE: u64 = 4096;
pub const READ: OpKind = OpKind::Read { direct: false };
pub const WRITE: OpKind = OpKind::Write { stable: false, direct: false };
pub const STABLE: OpKind = OpKind::Write { stable: true, direct: false };
pub const CANCELLED: IoError = IoError::new(IoErrorKind::Cancelled);
pub const MEDIA: IoError = IoError::new(IoErrorKind::Media);

/// A cache of 64 frames over 1 MiB of simulated drive, stepped by hand.
pub struct Rig {
    pub device: SimDevice,
    pub cache: Arc<Cache>,
    pub lanes: Vec<Lane>,
    pub handle: Arc<Handle>,
    pub flusher: Option<Flusher>,
    pub now: Duration,
    pub finished: Vec<(u64, IoResult, Vec<u8>)>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Nobody turns the flusher any more, so the lanes might drain for ever; and it waits for the
            // device.
            self.device.clear_faults();
            std::mem::forget(std::mem::take(&mut self.lanes));
        }
    }
}

impl Rig {
    pub fn new(mode: CacheMode) -> Self {
        Self::with(CacheOptions { mode, ..CacheOptions::frames(64) })
    }

    pub fn with(options: CacheOptions) -> Self {
        Self::sized(1 << 20, options)
    }

    pub fn sized(size_bytes: u64, options: CacheOptions) -> Self {
        Self::of_lanes(size_bytes, options, 1, 64)
    }

    pub fn seeded(size_bytes: u64, options: CacheOptions, seed: u64) -> Self {
        Self::of_lanes(size_bytes, options, seed, 64)
    }

    /// With two lanes of so many operations.
    pub fn of_lanes(size_bytes: u64, options: CacheOptions, seed: u64, operations: usize) -> Self {
        let pool = DmaPool::new(PoolOptions::frames(options.frames + 8)).unwrap();
        let sim = SimOptions { latency_steps: 1..=1, ..SimOptions::sized(size_bytes, 512) };
        let device = SimDevice::new(sim, seed, pool).unwrap();
        let below: Arc<dyn BlockDevice> = Arc::new(device.clone());
        let cache = Cache::new(below, options).unwrap();
        let flusher = Some(super::user::flusher(&cache, 16));
        let lane = || Lane::new(Arc::clone(&cache), operations, 16, Arc::new(PollsAnyway)).unwrap();
        Self {
            lanes: vec![lane(), lane()],
            handle: cache.open(),
            now: Duration::ZERO,
            finished: Vec::new(),
            device,
            cache,
            flusher,
        }
    }

    /// Starts an operation on lane 0.
    pub fn start(&mut self, id: u64, kind: OpKind, offset: u64, bytes: Vec<u8>) {
        self.start_on(0, id, kind, offset, bytes);
    }

    pub fn start_on(&mut self, lane: usize, id: u64, kind: OpKind, offset: u64, bytes: Vec<u8>) {
        let operation = Operation {
            token: Token::from_u64(id),
            kind,
            offset,
            len: bytes.len() as u64,
            buffer: Buffer::Bytes(bytes),
            handle: Arc::clone(&self.handle),
        };
        assert!(self.lanes[lane].start(operation).is_ok());
        self.collect();
    }

    pub fn cancel(&mut self, lane: usize, id: u64) -> Cancelled {
        let outcome = self.lanes[lane].cancel(Token::from_u64(id));
        self.collect();
        self.cache.assert_sound();
        outcome
    }

    pub fn collect(&mut self) {
        for lane in &mut self.lanes {
            while let Some(Finished { token, result, buffer }) = lane.pop_finished() {
                let bytes = if let Buffer::Bytes(bytes) = buffer { bytes } else { Vec::new() };
                self.finished.push((token.to_u64(), result, bytes));
            }
        }
    }

    pub fn turn_lanes(&mut self) {
        self.lanes.iter_mut().for_each(|lane| _ = lane.turn());
        self.collect();
        self.cache.assert_sound();
    }

    pub fn turn_flusher(&mut self) {
        if let Some(flusher) = &mut self.flusher {
            flusher.turn(self.now);
        }
        self.cache.assert_sound();
    }

    pub fn turn(&mut self) {
        self.turn_lanes();
        self.turn_flusher();
    }

    /// Whether the flusher writes everything, though nobody asks for it.
    pub fn write_all(&mut self, all: bool) {
        self.flusher.as_mut().unwrap().write_all(all);
    }

    pub fn turns(&mut self, count: usize) {
        (0..count).for_each(|_| self.turn());
    }

    pub fn result(&mut self, id: u64) -> Option<IoResult> {
        let found = self.finished.iter().find(|(done, ..)| *done == id)?;
        Some(found.1)
    }

    /// Turns until an operation is finished; its result and bytes.
    pub fn wait(&mut self, id: u64) -> (IoResult, Vec<u8>) {
        for _ in 0..10_000 {
            if let Some(at) = self.finished.iter().position(|(done, ..)| *done == id) {
                let (_, result, bytes) = self.finished.remove(at);
                return (result, bytes);
            }
            self.turn();
        }
        panic!("operation {id} hung: {:?}", self.cache.stats());
    }

    pub fn run(&mut self, kind: OpKind, offset: u64, bytes: Vec<u8>) -> (IoResult, Vec<u8>) {
        self.start(u64::MAX, kind, offset, bytes);
        self.wait(u64::MAX)
    }

    pub fn flush(&mut self) -> IoResult {
        self.run(OpKind::Flush, 0, Vec::new()).0
    }
}

pub fn page(byte: u8) -> Vec<u8> {
    vec![byte; PAGE as usize]
}
