//! A device that is being served: what is known of it, and how it is saved and stopped.

use std::ops::Range;
use std::sync::mpsc::{RecvTimeoutError, Sender, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use uaio_driver::ublk::{self, OpKind, ServerError};
use uaio_driver::{BlockDevice, Health, IoError};
use uaio_page_cache::{Amount, Cache, CacheError, DirtyLimits};

use super::barrier::Barrier;
use super::control::Answers;
use super::detach::Started;
use super::shutdown::{Order, Stage, Stoppable};
use super::sizing;
use super::stack::{Drive, Stack};
use crate::cli::DeviceId;
use crate::exit::{Exit, Failure};
use crate::holders::{self, Holder};
use crate::kernel;
use crate::log;
use crate::protocol::{
    self, Answer, CacheStats, Command, Dropped, Info, Limits, Lost, LostRange, OperationStats,
    Residency, Stats, WaitStats,
};
use crate::record::log_name;
use crate::system::System;
use uaio_driver::url::ByteSize;

/// How much longer a client waits for a stop than the stop itself has.
const GRACE: Duration = Duration::from_secs(3);

/// How many ranges of unsaved data a message names; the log names [`LOGGED_RANGES`].
const SHOWN_RANGES: usize = 4;
const LOGGED_RANGES: usize = 200;

const PAGE_BYTES: u64 = uaio_driver::FRAME_SIZE as u64;

/// How often a shrinking cache is looked at.
const SHRINK_LOOK: Duration = Duration::from_millis(10);

/// How often a flush that fails is repeated after the last time that less was left, and the pause
/// before each.
const ATTEMPTS_IN_VAIN: u32 = 3;
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(20);

/// What the threads of a server share. Nothing of it is on the data path.
pub(crate) struct Shared {
    pub(crate) id: DeviceId,
    /// Which of the process's devices it is.
    pub(crate) index: usize,
    pub(crate) server: ublk::Server,
    pub(crate) started: Instant,
    /// The parts of [`Info`] that do not change.
    pub(crate) info: Info,
    pub(crate) stage: Mutex<Stage>,
    pub(crate) barrier: Mutex<Option<Barrier>>,
    pub(crate) cache: Option<Arc<Cache>>,
    pub(crate) bottom: Arc<dyn BlockDevice>,
    /// The drive, if it is a namespace of one; its stack closes it.
    pub(crate) drive: Weak<Drive>,
    /// To the control thread.
    pub(crate) orders: Sender<Event>,
    /// Told when the answer to a stop has been sent.
    pub(crate) unanswered: Arc<Unanswered>,
}

/// What the control thread is woken by.
pub(crate) enum Event {
    /// A signal asks to stop.
    Signal(i32),
    /// A client asks to stop.
    Delete {
        /// Which of the process's devices.
        index: usize,
        /// What was asked for.
        order: Order,
        /// Until when to try.
        deadline: Instant,
        /// Where the outcome goes.
        reply: SyncSender<Result<(), Failure>>,
    },
}

impl Shared {
    pub(crate) fn stage(&self) -> MutexGuard<'_, Stage> {
        // A stage is one word: no panic leaves it half written.
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the queue for flushes, when those before have done with it.
    fn barrier(&self, deadline: Instant) -> Result<MutexGuard<'_, Option<Barrier>>, Failure> {
        loop {
            match self.barrier.try_lock() {
                Ok(barrier) => return Ok(barrier),
                Err(std::sync::TryLockError::Poisoned(poisoned)) => {
                    return Ok(poisoned.into_inner());
                }
                Err(std::sync::TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    let what = "another flush is still under way";
                    return Err(Failure::new(Exit::TimedOut, what, "try again"));
                }
                Err(std::sync::TryLockError::WouldBlock) => {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }

    fn flush(&self, range: Option<Range<u64>>, deadline: Instant) -> Result<(), Failure> {
        let mut barrier = self.barrier(deadline)?;
        let Some(barrier) = barrier.as_mut() else {
            return Err(Failure::new(
                Exit::Unsupported,
                "the device has one queue only, and the kernel has it",
                format!("run `blockdev --flushbufs {}`", self.id),
            ));
        };
        self.flush_through(barrier, range, deadline)
    }

    /// Until everything is stable, or the failure that says what is not.
    fn save(&self, deadline: Instant) -> Result<(), Failure> {
        match self.barrier(deadline)?.as_mut() {
            Some(barrier) => self.flush_through(barrier, None, deadline),
            // The kernel flushes what it has a queue for; there is no cache of ours.
            None => Ok(()),
        }
    }

    /// A flush fails as soon as something it covers cannot be written, while other data is still on
    /// its way. So it is repeated for as long as that helps: what is then left cannot be written.
    fn flush_through(
        &self,
        barrier: &mut Barrier,
        range: Option<Range<u64>>,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let mut least = u64::MAX;
        let mut in_vain = 0;
        loop {
            let error = match barrier.flush(range.clone(), deadline) {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error,
                Err(failure) => return Err(self.late(failure, range.as_ref())),
            };
            // An error that has healed is told once, so nothing may be left, and the next one is
            // good.
            let ranges = self.unsaved_ranges(range.as_ref());
            let dirty = bytes_of(&ranges);
            in_vain = if dirty < least { 0 } else { in_vain + 1 };
            least = least.min(dirty);
            if in_vain == ATTEMPTS_IN_VAIN || Instant::now() >= deadline {
                return Err(unsaved(&ranges, error, self.info.log.as_deref()));
            }
            std::thread::sleep(BETWEEN_ATTEMPTS);
        }
    }

    fn late(&self, failure: Failure, range: Option<&Range<u64>>) -> Failure {
        match (failure.exit, bytes_of(&self.unsaved_ranges(range))) {
            (Exit::TimedOut, dirty @ 1..) => {
                let what = format!("{}, {dirty} bytes are left to write", failure.what);
                Failure::new(Exit::TimedOut, what, "try again, with a longer --deadline")
            }
            _ => failure,
        }
    }

    /// What the backend does not have of a range of bytes, or of all.
    fn unsaved_ranges(&self, range: Option<&Range<u64>>) -> Vec<Range<u64>> {
        let Some(cache) = &self.cache else { return Vec::new() };
        let mut dirty = cache.dirty_ranges();
        if let Some(range) = range {
            clip(&mut dirty, range);
        }
        dirty
    }

    /// Names in the log what could not be written, if that is why something failed.
    pub(crate) fn log_unsaved(&self, failure: &Failure) {
        if failure.exit == Exit::Unsaved {
            for range in self.unsaved_ranges(None).iter().take(LOGGED_RANGES) {
                log::line(format_args!("not written: bytes {} to {}", range.start, range.end - 1));
            }
        }
    }

    /// What is said when it can be opened.
    pub(crate) fn started(&self) -> Started {
        Started { id: self.id.0, path: self.id.to_string(), pid: std::process::id() }
    }

    fn cache(&self) -> Result<&Cache, Failure> {
        self.cache.as_deref().ok_or_else(|| {
            let what = format!("{} has no cache", self.id);
            Failure::new(Exit::Unsupported, what, "it is served with --mode none")
        })
    }

    /// Gives the cache another size, and waits until it has it.
    fn resize(&self, size_bytes: u64, deadline: Instant) -> Result<(), Failure> {
        let cache = self.cache()?;
        let frames = sizing::frames_of(ByteSize(size_bytes), ("", ""))?;
        cache.resize(frames).map_err(|error| refused(&error))?;
        loop {
            let stats = cache.stats();
            if stats.frames == stats.frames_wanted {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let left = ByteSize((stats.frames - stats.frames_wanted) * PAGE_BYTES);
                let what = format!("the cache is still larger by {left}, which is dirty or in use");
                return Err(Failure::new(Exit::TimedOut, what, "it goes on shrinking"));
            }
            std::thread::sleep(SHRINK_LOOK);
        }
    }

    fn info(&self) -> Info {
        let health = match self.bottom.health() {
            Health::Good => "good".into(),
            Health::Failed(error) => error.to_string(),
        };
        Info {
            state: self.stage().name().into(),
            health,
            uptime_s: self.started.elapsed().as_secs(),
            cache_bytes: self.cache.as_ref().map_or(0, |cache| cache.stats().frames * PAGE_BYTES),
            ..self.info.clone()
        }
    }

    fn stats(&self) -> Stats {
        let server = self.server.stats();
        Stats {
            id: self.id.0,
            path: self.id.to_string(),
            uptime_s: self.started.elapsed().as_secs(),
            in_flight: server.in_flight,
            operations: server.ops().map(operation).collect(),
            cache: self.cache.as_ref().map(|cache| cache_stats(cache)),
            drive: self.drive.upgrade().map(|drive| drive.stats()),
        }
    }

    fn delete(&self, order: Order, deadline: Duration) -> Result<Answer, Failure> {
        let (reply, outcome) = sync_channel(1);
        let until = Instant::now() + deadline;
        let event = Event::Delete { index: self.index, order, deadline: until, reply };
        if self.orders.send(event).is_err() {
            // The control thread has ended: the device is gone.
            return Ok(Answer::Done);
        }
        match outcome.recv_timeout(deadline + GRACE) {
            Ok(result) => result.map(|()| Answer::Done),
            Err(RecvTimeoutError::Disconnected) => Ok(Answer::Done),
            Err(RecvTimeoutError::Timeout) => Err(Failure::new(
                Exit::TimedOut,
                format!("{} is {}", self.id, self.stage().name()),
                "it goes on; try again",
            )),
        }
    }
}

/// Orders to stop whose answers have not been sent: the process does not end before they are.
#[derive(Debug, Default)]
pub(crate) struct Unanswered {
    count: Mutex<usize>,
    changed: Condvar,
}

impl Unanswered {
    fn begin(&self) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }

    fn end(&self) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.changed.notify_all();
    }

    /// Waits, bounded, until all are.
    pub(crate) fn wait(&self, at_most: Duration) {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = self.changed.wait_timeout_while(count, at_most, |count| *count > 0);
    }
}

impl Answers for Shared {
    fn prepare_thread(&self) {
        super::shield_thread();
    }

    fn answer(&self, command: Command) -> Result<Answer, Failure> {
        match command {
            Command::Info => Ok(Answer::Info(Box::new(self.info()))),
            Command::Stats => Ok(Answer::Stats(Box::new(self.stats()))),
            Command::Flush { range, .. } => {
                let range =
                    range.map(|it| it.offset_bytes..it.offset_bytes.saturating_add(it.len_bytes));
                let outcome = self.flush(range, Instant::now() + command.deadline());
                outcome.inspect_err(|failure| self.log_unsaved(failure)).map(|()| Answer::Done)
            }
            Command::Residency { offset_bytes, len_bytes } => {
                let range = offset_bytes..offset_bytes.saturating_add(len_bytes);
                Ok(Answer::Residency(residency(&self.cache()?.residency(range))))
            }
            Command::DropClean { offset_bytes, len_bytes } => {
                let range = offset_bytes..offset_bytes.saturating_add(len_bytes);
                let done = self.cache()?.drop_clean(range);
                Ok(Answer::Dropped(Dropped {
                    dropped_bytes: done.dropped * PAGE_BYTES,
                    kept_bytes: done.kept * PAGE_BYTES,
                }))
            }
            Command::Lost { offset_bytes, len_bytes } => {
                let range = offset_bytes..offset_bytes.saturating_add(len_bytes);
                Ok(Answer::Lost(lost(self.cache()?.lost_ranges(), &range)))
            }
            Command::AcceptLoss { offset_bytes, len_bytes } => {
                let range = offset_bytes..offset_bytes.saturating_add(len_bytes);
                let cache = self.cache()?;
                cache.accept_loss(range.clone());
                let (id, end) = (self.id, range.end);
                log::line(format_args!(
                    "{id}: what was lost in bytes {offset_bytes} to {end} is accepted"
                ));
                Ok(Answer::Lost(lost(cache.lost_ranges(), &range)))
            }
            Command::Resize { size_bytes, .. } => {
                let deadline = Instant::now() + command.deadline();
                self.resize(size_bytes, deadline).map(|()| Answer::Done)
            }
            Command::Limit(wanted) => {
                let cache = self.cache()?;
                let limits = merged(cache.dirty_limits(), wanted);
                let before = cache.memory_max();
                let limited = match wanted.memory_max {
                    None => Ok(()),
                    Some(protocol::MemoryMax::None) => cache.set_memory_max(None),
                    Some(protocol::MemoryMax::Bytes(bytes)) => cache.set_memory_max(Some(bytes)),
                };
                limited.map_err(|error| refused(&error))?;
                // What was set before is kept as far as it fits, as in a resize: only what is asked for is checked.
                if wanted.hard.is_some() || wanted.background.is_some() || wanted.age_ms.is_some() {
                    cache.set_dirty_limits(limits).map_err(|error| {
                        // All or nothing; what was in force fits.
                        _ = cache.set_memory_max(before);
                        refused(&error)
                    })?;
                }
                Ok(Answer::Done)
            }
            Command::Delete { force, discard_dirty, .. } => {
                self.unanswered.begin();
                self.delete(Order { force, discard_dirty }, command.deadline())
            }
        }
    }

    fn answered(&self, command: Command) {
        if matches!(command, Command::Delete { .. }) {
            self.unanswered.end();
        }
    }
}

fn operation(op: &ublk::OpStats) -> OperationStats {
    let percentile = |percent| op.latency.percentile(percent).map(|at| at.as_nanos() as f64 / 1e3);
    OperationStats {
        name: op.kind.to_string(),
        count: op.done,
        // A flush has no bytes, whatever the kernel's descriptor says.
        bytes: if op.kind == OpKind::Flush { 0 } else { op.bytes },
        errors: op.errors,
        p50_us: percentile(50.0),
        p99_us: percentile(99.0),
        p99_9_us: percentile(99.9),
        p99_99_us: percentile(99.99),
    }
}

fn bytes_of(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// Leaves what lies in `range`.
fn clip(ranges: &mut Vec<Range<u64>>, range: &Range<u64>) {
    for one in &mut *ranges {
        *one = one.start.max(range.start)..one.end.min(range.end);
    }
    ranges.retain(|one| !one.is_empty());
}

/// What of these may be lost, of a range.
fn lost(mut ranges: Vec<Range<u64>>, range: &Range<u64>) -> Lost {
    clip(&mut ranges, range);
    let lost_range =
        |one: &Range<u64>| LostRange { offset_bytes: one.start, len_bytes: one.end - one.start };
    Lost { lost_bytes: bytes_of(&ranges), ranges: ranges.iter().map(lost_range).collect() }
}

/// The limits in force with what is to be changed of them.
fn merged(now: DirtyLimits, wanted: Limits) -> DirtyLimits {
    let amount = |wanted| match wanted {
        protocol::Amount::Percent(percent) => Amount::Percent(percent),
        protocol::Amount::Bytes(bytes) => Amount::Bytes(bytes),
    };
    let half = |hard| match hard {
        Amount::Percent(percent) => Amount::Percent(percent.div_ceil(2)),
        Amount::Bytes(bytes) => Amount::Bytes(bytes / 2),
    };
    let hard = wanted.hard.map(amount);
    DirtyLimits {
        hard: hard.unwrap_or(now.hard),
        background: wanted.background.map(amount).or(hard.map(half)).unwrap_or(now.background),
        age_max: wanted
            .age_ms
            .map_or(now.age_max, |age_ms| Duration::from_millis(u64::from(age_ms))),
    }
}

/// What a cache does not do, and why.
fn refused(error: &CacheError) -> Failure {
    match error {
        CacheError::NoFrames { wanted, free } => Failure::new(
            Exit::Usage,
            format!(
                "the cache cannot grow by {}: {} of the memory for it is left",
                ByteSize(*wanted as u64 * PAGE_BYTES),
                ByteSize(*free as u64 * PAGE_BYTES)
            ),
            "take a smaller size, or start the server with a larger --cache-max",
        ),
        other => Failure::new(Exit::Usage, other.to_string(), "take another size"),
    }
}

fn residency(found: &uaio_page_cache::Residency) -> Residency {
    Residency {
        range_bytes: found.pages * PAGE_BYTES,
        cached_bytes: found.cached * PAGE_BYTES,
        dirty_bytes: found.dirty * PAGE_BYTES,
        writeback_bytes: found.writeback * PAGE_BYTES,
        recently_evicted_bytes: found.recently_evicted.map(|pages| pages * PAGE_BYTES),
    }
}

fn cache_stats(cache: &Cache) -> CacheStats {
    let (stats, memory) = (cache.stats(), cache.memory());
    CacheStats {
        hit_rate: (stats.hits + stats.misses > 0).then(|| stats.hit_rate()),
        hits: stats.hits,
        misses: stats.misses,
        cached_bytes: stats.cached * PAGE_BYTES,
        dirty_bytes: stats.dirty_bytes,
        dirty_limit_bytes: stats.dirty_limit_bytes,
        written_back_bytes: stats.written_back * PAGE_BYTES,
        failed_writebacks: stats.writeback_errors,
        size_bytes: stats.frames * PAGE_BYTES,
        size_wanted_bytes: stats.frames_wanted * PAGE_BYTES,
        tables_bytes: memory.tables,
        memory_bytes: memory.total(),
        memory_max_bytes: cache.memory_max(),
        writeback_bytes: stats.writeback_bytes,
        merged: stats.merged,
        evicted: stats.evicted,
        readahead: stats.readahead,
        readahead_used: stats.readahead_used,
        readahead_wasted: stats.readahead_wasted,
        frame_waits: stats.frame_waits,
        dirty_waits: stats.room_waits,
        waits: waits(&stats.waits),
    }
}

fn waits(waits: &uaio_page_cache::Waits) -> Vec<WaitStats> {
    let of = |name: &str, waited: uaio_page_cache::Waited| WaitStats {
        name: name.into(),
        count: waited.count,
        time_us: u64::try_from(waited.time.as_micros()).unwrap_or(u64::MAX),
    };
    vec![
        of("page", waits.page),
        of("frame", waits.frame),
        of("dirty limit", waits.room),
        of("device queue", waits.slot),
        of("discard", waits.range),
        of("flush", waits.flush),
    ]
}

/// What cannot be saved, by range.
fn unsaved(ranges: &[Range<u64>], error: IoError, log: Option<&str>) -> Failure {
    let bytes = bytes_of(ranges);
    if ranges.is_empty() {
        let what = format!("the backend cannot make its writes stable: {error}");
        return Failure::new(Exit::Unsaved, what, "try again; --discard-dirty gives them up");
    }
    let shown: Vec<String> = ranges
        .iter()
        .take(SHOWN_RANGES)
        .map(|range| format!("{} to {}", range.start, range.end - 1))
        .collect();
    let more = match ranges.len().saturating_sub(SHOWN_RANGES) {
        0 => String::new(),
        more => format!(" and {more} more ranges, see {}", log_name(log)),
    };
    Failure::new(
        Exit::Unsaved,
        format!("{bytes} bytes cannot be written, {error}: bytes {}{more}", shown.join(", ")),
        "they are kept: read them, or give them up with --discard-dirty",
    )
}

/// The control thread's side: the whole stack, to be stopped.
pub(crate) struct Serving {
    pub(crate) shared: Arc<Shared>,
    pub(crate) stack: Stack,
    pub(crate) system: System,
    pub(crate) discard: bool,
}

impl Serving {
    /// How far its stop has come.
    pub(crate) fn stage(&self) -> Stage {
        *self.shared.stage()
    }
}

impl Stoppable for Serving {
    fn holders(&self) -> Vec<Holder> {
        let name = format!("ublkb{}", self.shared.id.0);
        holders::of_block_device(&self.system, &name, &[std::process::id()])
    }

    fn fail_new_io(&mut self, fail: bool) {
        self.shared.server.fail_new_io(fail);
    }

    fn save(&mut self, deadline: Instant) -> Result<(), Failure> {
        self.shared.save(deadline)
    }

    fn give_up_unsaved(&mut self) {
        log::line(format_args!("given up: {} bytes", bytes_of(&self.shared.unsaved_ranges(None))));
        self.discard = true;
    }

    fn stop(&mut self, deadline: Instant) -> Result<(), Failure> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.shared.server.stop(left) {
            Ok(()) => Ok(()),
            Err(error @ ServerError::TimedOut { .. }) => {
                Err(kernel::failure(format!("stop {}", self.shared.id), error))
            }
            Err(error) => {
                // It failed before or while it was stopped: either way the device is gone, which is
                // what was wanted.
                log::line(format_args!("{}: {error}", self.shared.id));
                Ok(())
            }
        }
    }

    fn close(&mut self, deadline: Instant) -> Result<(), Failure> {
        *self.shared.barrier(deadline)? = None;
        self.stack.close(self.discard)
    }
}

#[cfg(test)]
mod tests {
    use uaio_driver::IoErrorKind;

    use super::*;

    #[test]
    fn what_is_lost_is_told_of_the_range_that_was_asked_for() {
        let found = lost(vec![0..4096, 8192..16384, 20480..24576], &(12288..20480));
        let range = LostRange { offset_bytes: 12288, len_bytes: 4096 };
        assert_eq!(found, Lost { lost_bytes: 4096, ranges: vec![range] });
        assert_eq!(lost(vec![], &(0..u64::MAX)), Lost::default());
    }

    #[test]
    fn what_cannot_be_saved_is_listed_by_range() {
        let error = IoError { status: 0x281, ..IoError::new(IoErrorKind::Media) };
        let ranges = [4096..8192, 65536..69632];
        assert_eq!(
            unsaved(&ranges, error, None).to_string(),
            "8192 bytes cannot be written, unrecovered media error (status 0x281): \
             bytes 4096 to 8191, 65536 to 69631; \
             they are kept: read them, or give them up with --discard-dirty"
        );
        let many: Vec<_> = (0..10u64).map(|n| n * 8192..n * 8192 + 512).collect();
        let line = unsaved(&many, error, Some("/run/uaio/0.log")).to_string();
        let said = "24576 to 25087 and 6 more ranges, see its log, /run/uaio/0.log;";
        assert!(line.contains(said), "{line}");
        assert!(
            unsaved(&[], error, None).what.starts_with("the backend cannot make its writes stable")
        );
    }
}
