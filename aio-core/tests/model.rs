//! Random commands from several handles and contexts, against a map of bytes.
//!
//! Commands in flight do not overlap where one of them writes, so each has one right answer: what was
//! acknowledged. Some are cancelled or have a timeout: of a write that ended early each byte is what it
//! was or what it was to be, and nothing else. The device is simulated: it takes its time, in an order of its own, from one seed.
//! When a sync has succeeded and nothing is in flight, the device's *durable* image is the map. Small
//! caches, few operations and few requests make every wait happen.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use uaio_core::{
    Buffers, Context, ContextOptions, Event, Handle, Iocb, OpenOptions, Priority, Reactor, Ticket,
    VolumeOptions,
};
use uaio_driver::sim::{SimDevice, SimOptions};
use uaio_driver::{DmaPool, IoErrorKind, PoolOptions, SystemClock};
use uaio_page_cache::{Cache, CacheMode, CacheOptions};

const SIZE: usize = 2 << 20;
const BLOCK: usize = 512;
const COMMANDS: usize = 1500;

/// What was submitted: the bytes it covers, and what becomes of them.
struct Flight {
    range: Range<usize>,
    does: Does,
    /// It was cancelled, or has a timeout.
    may_end: bool,
}

enum Does {
    /// Reads them.
    Reads,
    /// Writes them; this is what was there.
    Writes(Vec<u8>),
    /// Neither.
    Nothing,
}

struct Model {
    bytes: Vec<u8>,
    flights: Vec<Option<Flight>>,
    contexts: Vec<Context>,
    /// Submissions by context, some of them over.
    tickets: Vec<(usize, u64, Ticket)>,
    /// Those that ended early.
    ended: usize,
    reader: Handle,
    random: fastrand::Rng,
}

impl Model {
    fn name(&mut self, flight: Flight) -> u64 {
        self.flights.push(Some(flight));
        self.flights.len() as u64 - 1
    }

    fn clashes(&self, range: &Range<usize>, writes: bool) -> bool {
        self.flights.iter().flatten().any(|other| {
            (matches!(other.does, Does::Writes(_)) || writes)
                && other.range.start < range.end
                && range.start < other.range.end
        })
    }

    fn check(&mut self, event: Event) {
        let flight = self.flights[event.user_data as usize].take().expect("an event twice");
        let range = flight.range;
        if flight.may_end && event.result != Ok(range.len()) {
            self.ended += 1;
            let done = match event.result {
                Ok(done) => done,
                Err(error) => {
                    let ends = [IoErrorKind::Cancelled, IoErrorKind::TimedOut];
                    assert!(ends.contains(&error.kind), "command {}: {error}", event.user_data);
                    0
                }
            };
            if let Does::Writes(old) = flight.does {
                self.settle(range, &old, done);
            }
            return;
        }
        assert_eq!(event.result, Ok(range.len()), "command {}", event.user_data);
        if !matches!(flight.does, Does::Reads) {
            return;
        }
        let seen = match event.buffers {
            Buffers::One(bytes) => bytes,
            Buffers::Many(pieces) => pieces.concat(),
            Buffers::Registered(buffer) => {
                let mut bytes = vec![0; buffer.len()];
                buffer.copy_to_slice(0, &mut bytes);
                bytes
            }
            _ => Vec::new(),
        };
        let right = self.bytes[range.clone()] == seen[..range.len()];
        assert!(right, "command {} read wrong bytes at {range:?}", event.user_data);
    }

    /// Looks at what a write that ended early has left: what it said it has done, and of the rest each
    /// byte as it was or as it was to be.
    fn settle(&mut self, range: Range<usize>, old: &[u8], done: usize) {
        let mut seen = vec![0; range.len()];
        assert_eq!(self.reader.pread(&mut seen, range.start as u64), Ok(range.len()));
        let new = &mut self.bytes[range.clone()];
        assert!(seen[..done] == new[..done], "acknowledged bytes are gone at {range:?}");
        for ((seen, old), new) in seen.iter().zip(old).zip(&*new).skip(done) {
            assert!(seen == old || seen == new, "a byte that nobody wrote in {range:?}");
        }
        new.copy_from_slice(&seen);
    }

    /// Cancels one of the last few submissions, or all of a context.
    fn random_cancel(&mut self) {
        let recent = self.tickets.len().min(8);
        if recent == 0 {
            return;
        }
        let at = self.tickets.len() - 1 - self.random.usize(..recent);
        let (context, _, ticket) = self.tickets[at];
        let all = self.random.u8(..10) == 0;
        for (other, flight, named) in &self.tickets {
            let hit = if all { *other == context } else { *named == ticket };
            if hit && let Some(flight) = &mut self.flights[*flight as usize] {
                flight.may_end = true;
            }
        }
        if all {
            self.contexts[context].cancel_all();
        } else {
            let _ = self.contexts[context].cancel(ticket);
        }
    }

    /// Gets at least `min` events of a context.
    fn gather(&mut self, context: usize, min: usize) {
        let mut events = Vec::new();
        let min = min.min(self.contexts[context].outstanding());
        self.contexts[context].get_events(min, 64, &mut events, None).unwrap();
        events.into_iter().for_each(|event| self.check(event));
    }

    fn finish(&mut self) {
        for context in 0..self.contexts.len() {
            while self.contexts[context].outstanding() > 0 {
                self.gather(context, 1);
            }
            self.gather(context, 0);
        }
        assert!(self.flights.iter().all(Option::is_none), "a command without an event");
    }

    /// Cuts `len` bytes into a few buffers, some empty.
    fn pieces(&mut self, data: Vec<u8>) -> Vec<Vec<u8>> {
        let mut rest = &data[..];
        let mut pieces = Vec::new();
        for _ in 0..self.random.usize(..5) {
            let (piece, left) = rest.split_at(self.random.usize(..=rest.len()));
            pieces.push(piece.to_vec());
            rest = left;
        }
        pieces.push(rest.to_vec());
        pieces
    }

    fn random_command(&mut self, handles: &[Handle]) {
        let handle = &handles[self.random.usize(..handles.len())];
        let context = self.random.usize(..self.contexts.len());
        let kind = self.random.u8(..20);
        if kind == 0 {
            let name = self.name(Flight { range: 0..0, does: Does::Nothing, may_end: false });
            let sync = match self.random.u8(..3) {
                0 => Iocb::fdatasync(handle),
                1 => Iocb::fsync(handle),
                _ => Iocb::sync_range(handle, 100, 5000),
            };
            self.submit(context, sync.with_user_data(name), name);
            return;
        }
        if kind == 1 {
            let start = self.random.usize(..SIZE);
            let range = start..(start + 50_000).min(SIZE);
            let (offset, len) = (start as u64, 50_000);
            let name = self.name(Flight { range, does: Does::Nothing, may_end: false });
            let iocb = Iocb::readahead(handle, offset, len);
            self.submit(context, iocb.with_user_data(name), name);
            return;
        }
        let grain = if handle.options().direct { BLOCK } else { 1 };
        let most = if self.random.u8(..40) == 0 { SIZE } else { 20_000 };
        let start = self.random.usize(..SIZE) / grain * grain;
        let asked = self.random.usize(..most) / grain * grain;
        // Past the end it is short.
        let range = start..(start + asked).min(SIZE);
        let writes = kind.is_multiple_of(2);
        if self.clashes(&range, writes) {
            self.finish();
        }
        let offset = start as u64;
        let mut data = vec![0; asked];
        let mut does = Does::Reads;
        let zeroes = writes && grain == BLOCK && range.len() == asked && self.random.u8(..4) == 0;
        if writes {
            if !zeroes {
                self.random.fill(&mut data);
            }
            does = Does::Writes(self.bytes[range.clone()].to_vec());
            let len = range.len();
            self.bytes[range.clone()].copy_from_slice(&data[..len]);
        }
        let may_end = self.random.u8(..20) == 0;
        let name = self.name(Flight { range, does, may_end });
        let mut registered = None;
        if !zeroes && grain == BLOCK && self.random.bool() {
            registered = handle.volume().registered_buffer(asked).ok();
        }
        if let Some(buffer) = &mut registered {
            buffer.copy_from_slice(0, &data);
        }
        let vectored = self.random.bool();
        let iocb = match (registered, writes, vectored) {
            (Some(buffer), true, _) => Iocb::pwrite_registered(handle, offset, buffer),
            (Some(buffer), false, _) => Iocb::pread_registered(handle, offset, buffer),
            (None, true, _) if zeroes => Iocb::write_zeroes(handle, offset, asked as u64),
            (None, false, false) => Iocb::pread(handle, offset, data),
            (None, false, true) => Iocb::preadv(handle, offset, self.pieces(data)),
            (None, true, false) => Iocb::pwrite(handle, offset, data),
            (None, true, true) => Iocb::pwritev(handle, offset, self.pieces(data)),
        };
        let mut iocb = iocb.with_user_data(name);
        if may_end {
            iocb = iocb.with_timeout(Duration::from_micros(self.random.u64(..300)));
        } else if self.random.u8(..8) == 0 && self.contexts[context].slots() > 3 {
            let sync = self.name(Flight { range: 0..0, does: Does::Nothing, may_end: true });
            iocb = iocb.then(Iocb::fsync(handle).with_user_data(sync));
            self.submit(context, iocb, name);
            // They are cancelled together.
            let (.., ticket) = self.tickets[self.tickets.len() - 1];
            self.tickets.push((context, sync, ticket));
            return;
        }
        self.submit(context, iocb, name);
    }

    fn submit(&mut self, context: usize, iocb: Iocb, name: u64) {
        let classes = [Priority::RealTime, Priority::BestEffort, Priority::Idle];
        let mut iocb = iocb.with_priority(classes[self.random.usize(..3)]);
        loop {
            match self.contexts[context].submit(iocb) {
                Ok(ticket) => return self.tickets.push((context, name, ticket)),
                Err(refused) => {
                    assert_eq!(refused.reason.errno(), 11, "{:?}", refused.reason);
                    self.gather(context, 1);
                    iocb = refused.iocb;
                }
            }
        }
    }
}

/// Runs each seed of `UAIO_SEEDS` many, or the one that `UAIO_SEED` names.
fn run(mode: CacheMode, frames: usize, options: VolumeOptions) {
    let seeds = std::env::var("UAIO_SEEDS").map_or(1, |seeds| seeds.parse::<u32>().unwrap());
    (0..seeds).for_each(|_| run_one(mode, frames, options));
}

fn run_one(mode: CacheMode, frames: usize, options: VolumeOptions) {
    let replayed = std::env::var("UAIO_SEED").map(|seed| seed.parse().unwrap());
    let seed = replayed.unwrap_or_else(|_| fastrand::u64(..));
    println!("{mode:?}, {frames} frames: seed {seed}");
    let pool = DmaPool::new(PoolOptions::frames(frames + 64)).unwrap();
    let device = SimDevice::new(SimOptions::sized(SIZE as u64, BLOCK as u32), seed, pool).unwrap();
    let device = Arc::new(device);
    let cache = Cache::new(device.clone(), CacheOptions { mode, ..CacheOptions::frames(frames) });
    let cache = cache.unwrap();
    let reactor = Reactor::new(Arc::new(SystemClock::new())).unwrap();
    let volume = reactor.attach(Arc::clone(&cache), options).unwrap();
    let handles = [(false, false), (false, false), (true, false), (false, true), (true, true)]
        .map(|(direct, dsync)| volume.open(OpenOptions { direct, dsync }));
    let contexts = [3, 17]
        .map(|events| reactor.context(ContextOptions::events(events)).unwrap())
        .into_iter()
        .collect();
    let mut model = Model {
        bytes: vec![0; SIZE],
        flights: Vec::new(),
        contexts,
        tickets: Vec::new(),
        ended: 0,
        reader: volume.open(OpenOptions::default()),
        random: fastrand::Rng::with_seed(seed),
    };
    for command in 0..COMMANDS {
        model.random_command(&handles);
        if model.random.u8(..12) == 0 {
            model.random_cancel();
        }
        if model.random.u8(..4) == 0 {
            let (context, min) = (model.random.usize(..2), model.random.usize(..4));
            model.gather(context, min);
        }
        if command % 250 == 249 {
            model.finish();
            handles[0].fsync().unwrap();
            assert!(device.durable_image() == model.bytes, "the sync was no sync (seed {seed})");
            cache.assert_sound();
            assert_eq!(cache.frames_lent(), 0, "seed {seed}");
        }
    }
    model.finish();
    // The synchronous calls see the same bytes.
    let mut all = vec![0; SIZE];
    assert_eq!(handles[0].pread(&mut all, 0), Ok(SIZE));
    assert!(all == model.bytes, "seed {seed}");
    assert!(model.ended > 0, "nothing ended early (seed {seed})");
    drop(model);
    reactor.close().unwrap();
    assert_eq!(cache.dirty_ranges(), []);
}

#[test]
fn reads_give_what_was_acknowledged_through_a_writeback_cache() {
    run(CacheMode::Writeback, 256, VolumeOptions::default());
}

#[test]
fn reads_give_what_was_acknowledged_through_a_writethrough_cache() {
    run(CacheMode::Writethrough, 256, VolumeOptions::default());
}

#[test]
fn reads_give_what_was_acknowledged_without_a_cache() {
    run(CacheMode::None, 64, VolumeOptions::default());
}

#[test]
fn reads_give_what_was_acknowledged_with_hardly_any_room() {
    let narrow = VolumeOptions { operations: 2, inbox: 3, depth: 2, writeback: true };
    for _ in 0..3 {
        run(CacheMode::Writeback, CacheOptions::FRAMES_MIN, narrow);
    }
}
