//! What is said over a control socket: one line of JSON asks, one line answers, and that is all.
//!
//! Lines are bounded, both ends have a deadline, and both say which version they speak. What the
//! other end sends is data and can at worst be refused.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cli::Mode;
use crate::exit::{Exit, Failure};

/// The version this program speaks.
pub(crate) const VERSION: u32 = 1;

/// The longest request line, with its end.
pub(crate) const REQUEST_MAX_BYTES: usize = 4 << 10;

/// The longest answer line, with its end: room for a few thousand ranges of unsaved data.
pub(crate) const ANSWER_MAX_BYTES: usize = 1 << 20;

/// A question to a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Request {
    /// What the client speaks.
    pub(crate) version: u32,
    /// What it wants.
    pub(crate) command: Command,
}

/// What a server can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "snake_case", deny_unknown_fields)]
pub(crate) enum Command {
    /// What it serves, and how.
    Info,
    /// What it has done.
    Stats,
    /// Make everything stable that was acknowledged before.
    Flush {
        /// Only this range.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        range: Option<FlushRange>,
        /// How long to try.
        deadline_ms: u64,
    },
    /// How much of a range is cached.
    Residency {
        /// Where the range begins.
        offset_bytes: u64,
        /// How long it is; what lies past the device does not count.
        len_bytes: u64,
    },
    /// Let go of the clean pages of a range.
    DropClean {
        /// Where the range begins.
        offset_bytes: u64,
        /// How long it is; what lies past the device does not count.
        len_bytes: u64,
    },
    /// Which data of a range may be lost.
    Lost {
        /// Where the range begins.
        offset_bytes: u64,
        /// How long it is; what lies past the device does not count.
        len_bytes: u64,
    },
    /// What may be lost of a range is known: flushes need not fail for it. Answered with what still is.
    AcceptLoss {
        /// Where the range begins.
        offset_bytes: u64,
        /// How long it is.
        len_bytes: u64,
    },
    /// Give the cache another size.
    Resize {
        /// How large.
        size_bytes: u64,
        /// How long to wait until it has it.
        deadline_ms: u64,
    },
    /// Set how much may be dirty, for how long, and how much memory the cache may take.
    Limit(Limits),
    /// Stop.
    Delete {
        /// Although the device is open.
        force: bool,
        /// Although data would be lost.
        discard_dirty: bool,
        /// How long to try.
        deadline_ms: u64,
    },
}

impl Command {
    /// How long the answer may take, beyond the time on the way.
    pub(crate) fn deadline(self) -> Duration {
        let milliseconds = match self {
            Self::Info
            | Self::Stats
            | Self::Residency { .. }
            | Self::DropClean { .. }
            | Self::Lost { .. }
            | Self::AcceptLoss { .. }
            | Self::Limit(_) => 5_000,
            Self::Flush { deadline_ms, .. }
            | Self::Resize { deadline_ms, .. }
            | Self::Delete { deadline_ms, .. } => deadline_ms,
        };
        // A day, as on the command line: a deadline that overflows a clock is no deadline.
        Duration::from_millis(milliseconds.min(86_400_000))
    }
}

/// A part of a device that is to be made stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FlushRange {
    /// Where it begins.
    pub(crate) offset_bytes: u64,
    /// How long it is; what lies past the device does not count.
    pub(crate) len_bytes: u64,
}

/// How much of a cache may be dirty, for how long, and how much memory it may take; what is absent stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Limits {
    /// Above it writers wait.
    pub(crate) hard: Option<Amount>,
    /// Above it the oldest pages are written; half of the other, if that alone is there.
    pub(crate) background: Option<Amount>,
    /// Age in milliseconds after which a page is written.
    pub(crate) age_ms: Option<u32>,
    /// How much memory it may take in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory_max: Option<MemoryMax>,
}

/// The most memory of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum MemoryMax {
    /// As much as it takes.
    None,
    /// So many bytes.
    Bytes(u64),
}

/// A part of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Amount {
    /// Percent of it.
    Percent(u8),
    /// So many bytes.
    Bytes(u64),
}

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Response {
    /// What the server speaks.
    pub(crate) version: u32,
    /// The answer.
    pub(crate) result: Outcome,
}

/// Done, or why not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// It was done.
    Ok(Answer),
    /// It was not.
    Error(Failure),
}

/// What a command gives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    /// To [`Command::Info`].
    Info(Box<Info>),
    /// To [`Command::Stats`].
    Stats(Box<Stats>),
    /// To [`Command::Residency`].
    Residency(Residency),
    /// To [`Command::DropClean`].
    Dropped(Dropped),
    /// To [`Command::Lost`] and [`Command::AcceptLoss`].
    Lost(Lost),
    /// To the others.
    Done,
}

/// What is served, and how. Printed as it is by `aioctl info --json`: fields are added, not changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Info {
    pub(crate) id: u32,
    pub(crate) path: String,
    pub(crate) backend: String,
    /// `serving`, or how far a stop has come.
    pub(crate) state: String,
    /// `good`, or what has happened to the backend.
    pub(crate) health: String,
    pub(crate) size_bytes: u64,
    pub(crate) block_size_bytes: u32,
    pub(crate) io_max_bytes: u32,
    pub(crate) read_only: bool,
    pub(crate) mode: Mode,
    pub(crate) cache_bytes: u64,
    /// Whether a write may be lost at power failure before the next flush: what the kernel is told.
    pub(crate) volatile_cache: bool,
    pub(crate) queues: u16,
    pub(crate) depth: u16,
    /// The ublk features in force.
    pub(crate) flags: Vec<String>,
    /// What the kernel did not have or not allow, and what follows from it.
    pub(crate) degraded: Vec<String>,
    pub(crate) dma_bytes: u64,
    pub(crate) hugepages: bool,
    pub(crate) pid: u32,
    /// Where the server writes its log; absent where that is its stderr.
    #[serde(default)]
    pub(crate) log: Option<String>,
    pub(crate) uptime_s: u64,
}

/// What a server has done since its start. Printed as it is by `aioctl stats --json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stats {
    pub(crate) id: u32,
    pub(crate) path: String,
    pub(crate) uptime_s: u64,
    pub(crate) in_flight: u64,
    pub(crate) operations: Vec<OperationStats>,
    /// Absent without a cache.
    pub(crate) cache: Option<CacheStats>,
    /// Absent for what is no NVMe drive.
    #[serde(default)]
    pub(crate) drive: Option<DriveStats>,
}

/// What had to be done about failures of an NVMe drive, all its namespaces together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct DriveStats {
    /// Why it serves no more; absent while it does.
    pub(crate) failure: Option<String>,
    /// How often, by the rung of the ladder.
    pub(crate) counts: BTreeMap<String, u64>,
    /// What happened to it, the newest last.
    pub(crate) events: Vec<String>,
}

/// One kind of operation. Percentiles are absent until there was one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct OperationStats {
    pub(crate) name: String,
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    pub(crate) errors: u64,
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    pub(crate) p99_9_us: Option<f64>,
    pub(crate) p99_99_us: Option<f64>,
}

/// The cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct CacheStats {
    /// Hits over all reads; absent until there was a read.
    pub(crate) hit_rate: Option<f64>,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) cached_bytes: u64,
    pub(crate) dirty_bytes: u64,
    /// Above it writers wait.
    pub(crate) dirty_limit_bytes: u64,
    pub(crate) written_back_bytes: u64,
    pub(crate) failed_writebacks: u64,
    /// What it has, and what it is to have: less while it shrinks.
    #[serde(default)]
    pub(crate) size_bytes: u64,
    #[serde(default)]
    pub(crate) size_wanted_bytes: u64,
    /// Memory beside the frames: index, records, wait queues, what is remembered of pages that have left.
    #[serde(default)]
    pub(crate) tables_bytes: u64,
    /// All of its memory: frames, tables, and what its queues take.
    #[serde(default)]
    pub(crate) memory_bytes: u64,
    /// The most it may take; absent without a limit.
    #[serde(default)]
    pub(crate) memory_max_bytes: Option<u64>,
    #[serde(default)]
    pub(crate) writeback_bytes: u64,
    /// Reads that waited for a page that another was reading.
    #[serde(default)]
    pub(crate) merged: u64,
    #[serde(default)]
    pub(crate) evicted: u64,
    #[serde(default)]
    pub(crate) readahead: u64,
    #[serde(default)]
    pub(crate) readahead_used: u64,
    #[serde(default)]
    pub(crate) readahead_wasted: u64,
    /// How often an operation had to wait for a frame.
    #[serde(default)]
    pub(crate) frame_waits: u64,
    /// How often a writer had to wait below the dirty limit.
    #[serde(default)]
    pub(crate) dirty_waits: u64,
    /// Waits of operations that are over, by what they waited for.
    #[serde(default)]
    pub(crate) waits: Vec<WaitStats>,
}

/// Waits for one thing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct WaitStats {
    pub(crate) name: String,
    pub(crate) count: u64,
    /// All of them together.
    pub(crate) time_us: u64,
}

/// How much of a range is cached. Printed as it is by `aioctl cache residency --json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Residency {
    pub(crate) range_bytes: u64,
    pub(crate) cached_bytes: u64,
    pub(crate) dirty_bytes: u64,
    pub(crate) writeback_bytes: u64,
    /// Absent for a range that is too long to tell.
    pub(crate) recently_evicted_bytes: Option<u64>,
}

/// What became of a range that was to be dropped. Printed as it is by `aioctl cache drop --json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Dropped {
    pub(crate) dropped_bytes: u64,
    pub(crate) kept_bytes: u64,
}

/// What of a range may be lost. Printed as it is by `aioctl cache lost --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lost {
    /// Of all ranges together.
    pub(crate) lost_bytes: u64,
    /// In order.
    pub(crate) ranges: Vec<LostRange>,
}

/// Neighbouring blocks that may be lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LostRange {
    pub(crate) offset_bytes: u64,
    pub(crate) len_bytes: u64,
}

/// Reads one line of at most `max_bytes`, its end included. `Ok(None)`: the other end closed without
/// a word.
///
/// # Errors
///
/// `InvalidData` for a line that is too long, has no end or is not what is expected; `TimedOut`; what
/// the kernel said. The deadline is for the whole line, however slowly it drips in.
pub(crate) fn receive<T: DeserializeOwned>(
    stream: &UnixStream,
    max_bytes: usize,
    deadline: Instant,
) -> std::io::Result<Option<T>> {
    let mut line = Vec::new();
    let mut piece = [0; 4096];
    loop {
        stream.set_read_timeout(Some(left(deadline)?))?;
        let count = match (&mut (&*stream)).read(&mut piece) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Err(ErrorKind::TimedOut.into());
            }
            Err(error) => return Err(error),
        };
        let end = piece[..count].iter().position(|&byte| byte == b'\n');
        line.extend_from_slice(&piece[..end.unwrap_or(count)]);
        if line.len() >= max_bytes {
            return Err(std::io::Error::new(ErrorKind::InvalidData, "the line is too long"));
        }
        match (end, count) {
            (Some(_), _) => {
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|error| std::io::Error::new(ErrorKind::InvalidData, error));
            }
            (None, 0) if line.is_empty() => return Ok(None),
            (None, 0) => {
                return Err(std::io::Error::new(ErrorKind::InvalidData, "the line has no end"));
            }
            (None, _) => {}
        }
    }
}

/// Sends one line.
///
/// # Errors
///
/// `TimedOut` when the other end does not read; what the kernel said.
pub(crate) fn send<T: Serialize>(
    stream: &UnixStream,
    message: &T,
    deadline: Instant,
) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message).map_err(std::io::Error::other)?;
    line.push(b'\n');
    let mut rest = &line[..];
    while !rest.is_empty() {
        stream.set_write_timeout(Some(left(deadline)?))?;
        match (&mut (&*stream)).write(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => rest = &rest[count..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Err(ErrorKind::TimedOut.into());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What is left until then; never zero, which a socket takes for "for ever".
fn left(deadline: Instant) -> std::io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Asks the server behind `stream` and waits for its answer, bounded. `log` is where it writes its
/// log, for a message.
///
/// # Errors
///
/// What the server answered; or that it did not answer, in time or at all.
pub(crate) fn ask(stream: &UnixStream, command: Command, log: &str) -> Result<Answer, Failure> {
    // The server keeps the command's deadline; what is added is for the way there and back.
    let deadline = Instant::now() + command.deadline() + Duration::from_secs(5);
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::TimedOut => Failure::new(
            Exit::TimedOut,
            "the server did not answer in time",
            format!("try again, or look at {log}"),
        ),
        ErrorKind::InvalidData => Failure::new(
            Exit::Failure,
            format!("the server's answer is not understood: {error}"),
            "use the aioctl that the server was started with",
        ),
        _ => Failure::os("talking to the server", error),
    };
    send(stream, &Request { version: VERSION, command }, deadline).map_err(failed)?;
    match receive::<Response>(stream, ANSWER_MAX_BYTES, deadline).map_err(failed)? {
        Some(Response { result: Outcome::Ok(answer), .. }) => Ok(answer),
        Some(Response { result: Outcome::Error(failure), .. }) => Err(failure),
        None => Err(Failure::new(
            Exit::Failure,
            "the server closed the connection without an answer",
            format!("look at {log}"),
        )),
    }
}
