//! A cache, its lanes and its flusher on a simulated device, stepped by one random schedule.
//!
//! Each step has a number of its own from which all its choices are drawn, so that a schedule is a
//! list of numbers, and a schedule that fails can be shortened: see [`shortest`].

use std::sync::Arc;
use std::time::Duration;

use uaio_driver::block::PollsAnyway;
use uaio_driver::sim::{Effect, Fault, FaultOn, SimDevice, SimOptions};
use uaio_driver::{
    BlockDevice, DmaBuf, DmaPool, Geometry, IoError, IoErrorKind, IoResult, PoolOptions, SgList,
    Slots, Token,
};
use uaio_page_cache::{
    Advice, Amount, Buffer, Cache, CacheMode, CacheOptions, CacheStats, Cancelled, DirtyLimits,
    Finished, Flusher, Handle, Lane, OpKind, Operation,
};

use super::history::{History, UNIT, WriteId};

const SIZE: usize = 48 << 10;
/// Turns without anything going on before the suite calls the cache hung.
const PATIENCE: u32 = 200_000;

/// What kind of world.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub mode: CacheMode,
    pub frames: usize,
    pub shards: usize,
    pub block_size: u32,
    pub lanes: usize,
    pub steps: usize,
    pub faults: bool,
    pub crash: bool,
    /// At some moment the device is unplugged.
    pub gone: bool,
    /// And keeps frames of what it had in flight, for ever.
    pub keeps: bool,
    /// Flushes that fail take with them what the device's cache holds.
    pub loses: bool,
    /// Lanes whose device queue holds one request.
    pub depth_one: bool,
}

impl Plan {
    /// The frames that there are, of which the cache starts with `frames`.
    fn frames_max(&self) -> usize {
        self.frames * 3 / 2
    }
}

struct Pending {
    kind: OpKind,
    write: WriteId,
    start: u64,
    offset: usize,
    len: usize,
    lane: usize,
    cancelled: Option<Cancelled>,
}

pub struct World {
    plan: Plan,
    /// Of the step that is being taken.
    random: fastrand::Rng,
    unplugged: bool,
    /// Whether each step says what it does.
    tells: bool,
    device: Arc<SimDevice>,
    cache: Arc<Cache>,
    // Lanes drain when dropped and need the flusher for that, which nobody turns then: they are
    // taken apart by hand at the end, or forgotten with the crash.
    lanes: Vec<Lane>,
    handles: Vec<Arc<Handle>>,
    flusher: Option<Flusher>,
    history: History,
    pending: Slots<Pending>,
    now: Duration,
    failed_flushes: usize,
    /// What the cache told as lost, and how many commands had failed by then.
    lost: Vec<std::ops::Range<u64>>,
    failed_commands: u64,
    /// Frames for operations with registered memory, those that are in none now.
    registered: Vec<DmaBuf>,
    /// How many of them the device keeps.
    kept: usize,
    /// Frames for the caches that are made after a crash.
    boot_pool: DmaPool,
}

/// How many of them.
const BOOT_FRAMES: usize = SIZE / 4096 + 5;

/// Frames for registered memory: enough for the longest operation, from any block of the first on, and
/// for another.
const REGISTERED: usize = 12;

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Nobody turns the flusher any more, so the lanes would drain for ever.
            std::mem::forget(std::mem::take(&mut self.lanes));
        }
    }
}

impl World {
    pub fn new(plan: Plan, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let pool = DmaPool::new(PoolOptions::frames(plan.frames_max() + REGISTERED)).unwrap();
        let registered = (0..REGISTERED).map_while(|_| pool.take()).collect();
        let sized = SimOptions::sized(SIZE as u64, plan.block_size);
        let options = SimOptions {
            geometry: Geometry { transfer_max_bytes: 16 << 10, ..sized.geometry },
            latency_steps: 0..=random.u32(0..30),
            keeps_frames: plan.keeps,
            ..sized
        };
        let device = Arc::new(SimDevice::new(options, random.u64(..), pool).unwrap());
        let cache_options = CacheOptions {
            mode: plan.mode,
            shards: plan.shards,
            dirty_max_percent: random.u8(10..=90),
            ..CacheOptions::frames(plan.frames)
        };
        let cache = Cache::new(device.clone(), cache_options).unwrap();
        let depth = random.u16(1..6);
        let flusher = Flusher::new(Arc::clone(&cache), depth, Arc::new(PollsAnyway)).unwrap();
        let mut depth = || if plan.depth_one { 1 } else { random.u16(1..6) };
        let lanes = (0..plan.lanes)
            .map(|_| Lane::new(Arc::clone(&cache), 5, depth(), Arc::new(PollsAnyway)))
            .map(|lane| lane.unwrap())
            .collect();
        let handles = (0..plan.lanes).map(|_| cache.open()).collect();
        Self {
            plan,
            random,
            unplugged: false,
            tells: false,
            device,
            cache,
            lanes,
            handles,
            flusher: Some(flusher),
            history: History::new(SIZE),
            pending: Slots::new(64),
            now: Duration::ZERO,
            failed_flushes: 0,
            lost: Vec::new(),
            failed_commands: 0,
            registered,
            kept: 0,
            boot_pool: DmaPool::new(PoolOptions::frames(BOOT_FRAMES)).unwrap(),
        }
    }

    /// Says what each step does.
    pub fn telling(mut self) -> Self {
        self.tells = true;
        self
    }

    /// Takes these steps, and then ends in good order, or by a loss of power. Gives what the cache
    /// had counted when the steps were taken.
    pub fn run(mut self, steps: &[u64]) -> CacheStats {
        for step in steps {
            self.random = fastrand::Rng::with_seed(*step);
            let before = self.device.operations();
            self.step();
            if self.plan.crash && self.device.operations() != before {
                self.check_crash();
            }
        }
        self.random = fastrand::Rng::with_seed(0);
        let stats = self.cache.stats();
        match (self.unplugged, self.plan.crash) {
            (true, _) => self.finish_without_device(),
            (false, true) => self.crash(),
            (false, false) => self.finish(),
        }
        stats
    }

    fn tell(&self, what: impl FnOnce() -> String) {
        if self.tells {
            eprintln!("    {}", what());
        }
    }

    fn step(&mut self) {
        match self.random.u8(..14) {
            0..4 => self.start(),
            4..9 => {
                let lane = self.random.usize(..self.lanes.len());
                self.turn(lane);
            }
            9..11 => self.turn_flusher(),
            11 => self.cancel(),
            12 => self.administrate(),
            _ if self.plan.gone && self.random.u8(..4) == 0 => {
                self.tell(|| "the device is unplugged".into());
                self.device.unplug();
                self.unplugged = true;
            }
            _ if self.plan.faults => self.fault(),
            _ => {}
        }
        self.cache.assert_sound();
        self.note_lost();
    }

    /// What the cache tells as lost may be gone, and only that.
    fn note_lost(&mut self) {
        let lost = self.cache.lost_ranges();
        // A unit that is listed still may have been written and lost again.
        let failed = self.device.counts().failed;
        let again = failed != self.failed_commands;
        for unit in lost.iter().flat_map(|lost| (lost.start..lost.end).step_by(UNIT)) {
            assert!(self.plan.faults || self.unplugged, "{lost:?} was lost");
            if again || !self.lost.iter().any(|known| known.contains(&unit)) {
                self.history.lose(unit as usize..unit as usize + UNIT);
            }
        }
        (self.lost, self.failed_commands) = (lost, failed);
    }

    /// What an administrator does to a cache in use, none of which may change what is read, or what is
    /// stable.
    fn administrate(&mut self) {
        let first = self.random.u64(..=SIZE as u64);
        let range = first..self.random.u64(first..=SIZE as u64);
        match self.random.u8(..9) {
            7 => {
                let used = self.cache.memory();
                let frames = self.random.u64(..=self.plan.frames_max() as u64 + 20);
                let most = used.tables + used.lanes + frames * (4096 + 64);
                let most = (self.random.u8(..4) > 0).then_some(most);
                let set = self.cache.set_memory_max(most);
                self.tell(|| format!("a memory limit of {most:?}: {set:?}"));
            }
            0 | 1 => {
                let least = self.plan.shards * CacheOptions::FRAMES_MIN;
                let frames = self.random.usize(least..=self.plan.frames_max());
                self.tell(|| format!("resize to {frames} frames"));
                // While the cache shrinks it has frames that it is to grow by.
                let _ = self.cache.resize(frames);
            }
            2 => {
                let percent = self.random.u8(1..=90);
                self.tell(|| format!("dirty limit {percent} %"));
                self.cache.set_dirty_max(percent).unwrap();
            }
            5 => {
                let pages = self.random.u64(1..=self.plan.frames_max() as u64);
                let limits = DirtyLimits {
                    background: Amount::Bytes(self.random.u64(1..=pages) * 4096),
                    hard: Amount::Bytes(pages * 4096),
                    age_max: Duration::from_millis(self.random.u64(100..5000)),
                };
                let set = self.cache.set_dirty_limits(limits);
                self.tell(|| format!("{limits:?}: {set:?}"));
            }
            6 => {
                let advice = [Advice::Normal, Advice::Sequential, Advice::Random, Advice::NoReuse]
                    [self.random.usize(..4)];
                let handle = self.random.usize(..self.handles.len());
                self.tell(|| format!("handle {handle}: {advice:?} for {range:?}"));
                self.handles[handle].advise(range, advice);
            }
            3 => {
                self.tell(|| format!("drop clean pages of {range:?}"));
                self.cache.drop_clean(range);
            }
            4 if self.random.bool() => {
                self.tell(|| format!("accept the loss of {range:?}"));
                self.cache.accept_loss(range);
            }
            _ => {
                let seen = self.cache.residency(range);
                assert!(seen.cached <= seen.pages, "{seen:?}");
                assert!(seen.dirty <= seen.cached && seen.writeback <= seen.cached, "{seen:?}");
            }
        }
    }

    fn fault(&mut self) {
        if self.random.u8(..3) == 0 {
            self.tell(|| "all faults are cleared".into());
            return self.device.clear_faults();
        }
        let on = match self.random.u8(..4) {
            0 => FaultOn::Flushes,
            1 | 2 if self.plan.loses => FaultOn::Flushes,
            1 => FaultOn::Reads,
            _ => FaultOn::Writes,
        };
        let block = self.random.u64(..SIZE as u64 / u64::from(self.plan.block_size));
        let blocks = block..block + self.random.u64(1..4);
        let effect = match self.random.u8(..6) {
            0 => Effect::Slow { steps: self.random.u32(1..40) },
            1 => Effect::Stuck,
            _ if self.plan.loses && on == FaultOn::Flushes => {
                Effect::FailAndLose(IoError::new(IoErrorKind::Media))
            }
            _ => Effect::Fail(IoError::new(IoErrorKind::Media)),
        };
        self.tell(|| format!("{effect:?} for {on:?} at {blocks:?}"));
        self.device.set_fault(Fault::new(on, effect).at(blocks).times(self.random.u32(1..4)));
    }

    fn start(&mut self) {
        let lane = self.random.usize(..self.lanes.len());
        if self.lanes[lane].in_flight() >= self.lanes[lane].depth() || self.pending.free() == 0 {
            return;
        }
        let units = SIZE / UNIT;
        let mut first = self.random.usize(..units);
        let mut count = self.random.usize(1..=(units - first).min(5 * 4096 / UNIT));
        let per_block = self.plan.block_size as usize / UNIT;
        let aligned = self.random.bool();
        if aligned {
            first = first / per_block * per_block;
            count = count.next_multiple_of(per_block).min(units - first);
        }
        let kind = match self.random.u8(..16) {
            0..6 => OpKind::Write {
                stable: self.random.u8(..5) == 0,
                direct: aligned && self.random.u8(..6) == 0,
            },
            6 if aligned && self.random.u8(..3) == 0 => OpKind::Discard,
            6 if aligned => OpKind::WriteZeroes { may_unmap: self.random.bool() },
            7 if self.random.u8(..3) == 0 => OpKind::FlushRange,
            7 => OpKind::Flush,
            8 if self.random.bool() => OpKind::Readahead,
            _ => OpKind::Read { direct: self.random.u8(..6) == 0 },
        };
        let (offset, len) =
            if kind == OpKind::Flush { (0, 0) } else { (first * UNIT, count * UNIT) };
        let (write, buffer) = match kind {
            OpKind::Write { .. } => {
                let write = self.history.begin(offset, len, false);
                (write, Buffer::Bytes(History::data(write, len)))
            }
            OpKind::WriteZeroes { .. } => (self.history.begin(offset, len, true), Buffer::None),
            OpKind::Discard => (self.history.begin_discard(offset, len), Buffer::None),
            _ => (0, Buffer::Bytes(vec![0xee; len])),
        };
        let direct =
            matches!(kind, OpKind::Read { direct: true } | OpKind::Write { direct: true, .. });
        let registers = aligned && direct && self.random.u8(..3) > 0;
        let buffer = if registers { self.register(buffer) } else { buffer };
        let what = if registers { " registered" } else { "" };
        self.tell(|| format!("lane {lane}: {kind:?}{what} {offset}+{len} (write {write})"));
        let start = self.history.tick();
        let Ok(token) =
            self.pending.insert(Pending { kind, write, start, offset, len, lane, cancelled: None })
        else {
            unreachable!("room was seen")
        };
        let handle = Arc::clone(&self.handles[lane]);
        let operation =
            Operation { token, kind, offset: offset as u64, len: len as u64, buffer, handle };
        assert!(self.lanes[lane].start(operation).is_ok());
        self.collect(lane);
    }

    /// The same bytes in registered memory, somewhere in its first frame, if there are frames for them.
    fn register(&mut self, buffer: Buffer) -> Buffer {
        let Buffer::Bytes(bytes) = buffer else { return buffer };
        let block_size = self.plan.block_size as usize;
        let from = self.random.usize(..4096 / block_size) * block_size;
        let count = (from + bytes.len()).div_ceil(4096);
        let Some(at) = self.registered.len().checked_sub(count) else {
            return Buffer::Bytes(bytes);
        };
        let list = SgList { frames: self.registered.split_off(at), offset: from as u32 };
        list.copy_from_slice(0, &bytes);
        Buffer::Registered { frames: list.frames, from }
    }

    /// Takes registered memory back, of which nobody else has a handle, and gives the bytes of it.
    fn unregister(&mut self, buffer: Buffer, len: usize, result: IoResult) -> Buffer {
        let Buffer::Registered { mut frames, from } = buffer else { return buffer };
        let kept = |frame: &mut DmaBuf| frame.is_shared();
        if self.unplugged && self.plan.keeps && result.is_err() {
            self.kept += frames.extract_if(.., kept).count();
            self.registered.append(&mut frames);
            return Buffer::None;
        }
        assert!(frames.iter().all(|frame| !frame.is_shared()), "given back while it was in use");
        let mut bytes = vec![0; len];
        let list = SgList { frames, offset: from as u32 };
        list.copy_to_slice(0, &mut bytes);
        self.registered.extend(list.frames);
        Buffer::Bytes(bytes)
    }

    /// Takes back one of the operations in progress.
    fn cancel(&mut self) {
        let tokens = self.pending.tokens();
        let Some(token) = self.random.choice(tokens) else { return };
        let Some(pending) = self.pending.get_mut(token) else { unreachable!("it is pending") };
        let outcome = self.lanes[pending.lane].cancel(token);
        if self.tells {
            eprintln!("    lane {}: cancel {:?}: {outcome:?}", pending.lane, pending.kind);
        }
        // All that has finished was collected, so the lane knows it.
        assert_ne!(outcome, Cancelled::Unknown, "{:?} was lost", pending.kind);
        pending.cancelled = Some(outcome);
        let lane = pending.lane;
        self.collect(lane);
        let over = self.pending.get(token).is_none();
        assert_eq!(over, outcome == Cancelled::Finished, "cancelled, and not answered at once");
    }

    fn turn(&mut self, lane: usize) -> bool {
        self.tell(|| format!("lane {lane}: turn"));
        let busy = self.lanes[lane].turn();
        self.collect(lane);
        busy
    }

    fn turn_flusher(&mut self) {
        self.now += Duration::from_millis(self.random.u64(..400));
        self.tell(|| format!("flusher: turn at {:?}", self.now));
        if let Some(flusher) = &mut self.flusher {
            flusher.turn(self.now);
        }
    }

    fn collect(&mut self, lane: usize) {
        self.note_lost();
        while let Some(Finished { token, result, buffer }) = self.lanes[lane].pop_finished() {
            let Some(pending) = self.pending.remove(token) else {
                panic!("{token:?} was answered twice")
            };
            assert_eq!(pending.lane, lane);
            let buffer = self.unregister(buffer, pending.len, result);
            self.check(pending, result, buffer);
        }
        let oldest = self.pending.tokens().into_iter();
        let oldest = oldest.filter_map(|token| self.pending.get(token)).map(|op| op.start).min();
        let now = self.history.tick();
        self.history.prune(oldest.unwrap_or(now));
    }

    fn check(&mut self, pending: Pending, result: IoResult, buffer: Buffer) {
        let Pending { kind, write, start, offset, len, cancelled, .. } = pending;
        if cancelled == Some(Cancelled::Finished) {
            assert_eq!(result, Err(IoError::new(IoErrorKind::Cancelled)), "{kind:?} at {offset}");
        }
        if let Err(error) = result {
            if cancelled.is_some() && error.kind == IoErrorKind::Cancelled {
                // A write that was taken back may show or not, like one that failed.
                return;
            }
            let allowed = self.plan.faults || self.unplugged;
            assert!(allowed, "{kind:?} at {offset}: {error}");
            self.failed_flushes += usize::from(kind == OpKind::Flush);
            return;
        }
        match (kind, buffer) {
            (OpKind::Read { .. }, Buffer::Bytes(bytes)) => {
                if let Err(wrong) = self.history.check_read(start, offset, &bytes) {
                    panic!("a read of {} bytes at {offset}: {wrong}", bytes.len());
                }
            }
            (OpKind::Write { stable, .. }, _) => self.history.end(write, stable),
            (OpKind::WriteZeroes { .. } | OpKind::Discard, _) => self.history.end(write, false),
            (OpKind::Flush, _) => self.history.flushed(start),
            (OpKind::FlushRange, _) => {
                self.history.flushed_range(start, offset..offset + len);
            }
            (OpKind::Readahead, _) => {}
            (kind, buffer) => panic!("{kind:?} gave {buffer:?} back"),
        }
    }

    /// Were power lost now, what is acknowledged as stable would be there, and nothing that was
    /// never written.
    fn check_crash(&mut self) {
        let image = self.device.crash_image(self.random.u64(..));
        if let Err(wrong) = self.history.check_crash(&image) {
            panic!("after a crash: {wrong}");
        }
        let read = self.read_again(&image);
        assert_eq!(read.len(), image.len());
        if let Err(wrong) = self.history.check_crash(&read) {
            panic!("after a crash, through a new cache: {wrong}");
        }
        assert!(read == image, "a new cache gives what is not on the device");
    }

    /// What a new cache gives over a device that boots from this image.
    fn read_again(&self, image: &[u8]) -> Vec<u8> {
        let Plan { block_size, mode, .. } = self.plan;
        let options =
            SimOptions { latency_steps: 0..=3, ..SimOptions::sized(SIZE as u64, block_size) };
        let device = SimDevice::from_image(options, image.to_vec(), 1, self.boot_pool.clone());
        let options = CacheOptions { mode, shards: 1, ..CacheOptions::frames(BOOT_FRAMES) };
        let cache = Cache::new(Arc::new(device.unwrap()), options).unwrap();
        let mut lane = Lane::new(Arc::clone(&cache), 1, 4, Arc::new(PollsAnyway)).unwrap();
        let operation = Operation {
            token: Token::from_u64(1),
            kind: OpKind::Read { direct: false },
            offset: 0,
            len: SIZE as u64,
            buffer: Buffer::Bytes(vec![0xee; SIZE]),
            handle: cache.open(),
        };
        assert!(lane.start(operation).is_ok());
        for _ in 0..PATIENCE {
            if let Some(Finished { result, buffer, .. }) = lane.pop_finished() {
                assert_eq!(result, Ok(()), "after a crash");
                let Buffer::Bytes(bytes) = buffer else { unreachable!("it gave bytes") };
                return bytes;
            }
            lane.turn();
        }
        panic!("a read after a crash hung: {:?}", cache.stats())
    }

    /// Nobody waits for ever for a device that has gone, and no frame is lost; what it does not have
    /// is named.
    fn finish_without_device(mut self) {
        self.tells = false;
        self.device.clear_faults();
        self.drain();
        for lane in 0..self.lanes.len() {
            self.flush(lane);
        }
        // Lent for good are frames that the device keeps, but for those that pages have, too.
        let (lent, kept) = (self.cache.frames_lent(), self.device.frames_kept() - self.kept);
        assert!(lent <= kept, "frames were lost: {lent} lent, {kept} kept");
        assert_eq!(self.registered.len() + self.kept, REGISTERED, "registered frames were lost");
        // Whoever comes now is answered, too, whether or not there is a frame for him.
        (0..SIZE / 4096).for_each(|page| self.read_page(page));
        self.cache.assert_sound();
        let dirty = self.cache.dirty_ranges().iter().map(|range| range.end - range.start).sum();
        let stats = self.cache.stats();
        let held = stats.dirty_bytes + stats.writeback_bytes;
        assert!(held >= dirty, "{dirty} dirty bytes in pages of {held}");
        drop(std::mem::take(&mut self.lanes));
        self.flusher = None;
    }

    /// Power is lost, with everything in flight.
    fn crash(mut self) {
        self.check_crash();
        // Nobody will turn the flusher again: the lanes cannot drain, as after a real crash.
        std::mem::forget(std::mem::take(&mut self.lanes));
        std::mem::forget(self.flusher.take());
    }

    /// Everything comes to its end, and a last flush makes all of it durable.
    fn finish(mut self) {
        self.tells = false;
        self.device.clear_faults();
        self.drain();
        // The flusher sends one device flush at a time: after this one none is in flight whose flushes were
        // cancelled, and which might yet fail and lose something.
        self.flush(0);
        self.note_lost();
        self.cache.accept_loss(0..SIZE as u64);
        // An error that nobody was told of yet is told once.
        for _ in 0..2 {
            for lane in 0..self.lanes.len() {
                self.flush(lane);
            }
        }
        let failed = self.failed_flushes;
        for lane in 0..self.lanes.len() {
            self.flush(lane);
        }
        assert_eq!(self.failed_flushes, failed, "an error was told twice");
        assert_eq!(self.cache.dirty_ranges(), [], "dirty after a flush");
        assert_eq!(self.cache.frames_lent(), 0, "frames were lost");
        let stats = self.cache.stats();
        assert_eq!(stats.frames, stats.frames_wanted, "frames that are too many were kept");
        let free = self.device.pool().free_frames() as u64;
        assert_eq!(free + stats.frames, self.plan.frames_max() as u64, "frames were lost");
        assert_eq!(self.registered.len(), REGISTERED, "registered frames were lost");
        self.cache.assert_sound();
        self.check_crash();
        (0..SIZE / 4096).for_each(|page| self.read_page(page));
        self.drain();
        drop(std::mem::take(&mut self.lanes));
        self.flusher = None;
    }

    fn flush(&mut self, lane: usize) {
        let start = self.history.tick();
        self.begin(lane, OpKind::Flush, 0, 0, start);
        self.drain();
    }

    fn read_page(&mut self, page: usize) {
        let start = self.history.tick();
        let lane = page % self.lanes.len();
        self.begin(lane, OpKind::Read { direct: false }, page * 4096, 4096, start);
        self.drain();
    }

    fn begin(&mut self, lane: usize, kind: OpKind, offset: usize, len: usize, start: u64) {
        let Ok(token) = self.pending.insert(Pending {
            kind,
            write: 0,
            start,
            offset,
            len,
            lane,
            cancelled: None,
        }) else {
            panic!("nothing else is in flight")
        };
        let buffer = Buffer::Bytes(vec![0; len]);
        let handle = Arc::clone(&self.handles[lane]);
        let operation =
            Operation { token, kind, offset: offset as u64, len: len as u64, buffer, handle };
        assert!(self.lanes[lane].start(operation).is_ok());
        self.collect(lane);
    }

    fn drain(&mut self) {
        for turn in 0.. {
            // What was cancelled is answered, and may still have something to give back.
            if self.pending.is_empty() && self.lanes.iter().all(|lane| lane.in_flight() == 0) {
                return;
            }
            for lane in 0..self.lanes.len() {
                self.turn(lane);
            }
            self.turn_flusher();
            self.cache.assert_sound();
            if turn == PATIENCE {
                let stuck: Vec<_> = self.pending.tokens();
                panic!("hung: {stuck:?} {:?}", self.cache.stats());
            }
        }
    }
}

/// The shortest schedule that still fails which can be had from one that does by leaving steps out:
/// ever smaller pieces of it, for as long as that helps and at most `tries` times.
pub fn shortest(steps: &[u64], tries: usize, fails: impl Fn(&[u64]) -> bool) -> Vec<u64> {
    let mut steps = steps.to_vec();
    let mut left = tries;
    let mut piece = steps.len().div_ceil(2);
    while piece > 0 {
        let (mut at, before) = (0, steps.len());
        while at < steps.len() && left > 0 {
            let end = (at + piece).min(steps.len());
            let without = [&steps[..at], &steps[end..]].concat();
            left -= 1;
            if fails(&without) { steps = without } else { at = end }
        }
        if piece == 1 && steps.len() == before {
            break;
        }
        piece = if piece == 1 { 1 } else { piece.div_ceil(2) };
        if left == 0 {
            break;
        }
    }
    steps
}
