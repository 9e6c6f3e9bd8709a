//! Every bench, its rows and what they are to reach.

use std::fmt;

use super::preload::Interface;

/// What the figures of a row count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Operations a second; more is better.
    Iops,
    /// Time for one operation; less is better.
    Nanoseconds,
    /// Instructions for one request; less is better.
    Instructions,
    /// Throughput in percent of what it was; more is better.
    Percent,
}

impl Unit {
    /// How many times better `ours` is than `peer`.
    pub fn ratio(self, ours: f64, peer: f64) -> f64 {
        match self {
            Self::Iops | Self::Percent => ours / peer,
            Self::Nanoseconds | Self::Instructions => peer / ours,
        }
    }
}

impl Unit {
    /// The fewest rounds a ratio may be made of: a count comes out the same each time.
    pub fn rounds_min(self) -> usize {
        match self {
            Self::Iops | Self::Nanoseconds | Self::Percent => 9,
            Self::Instructions => 1,
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Iops => "IOPS",
            Self::Nanoseconds => "ns",
            Self::Instructions => "instructions",
            Self::Percent => "%",
        })
    }
}

/// A row of a bench.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    /// Its name, empty when the bench has only one; such a row is `-` in the program's lines.
    pub name: &'static str,
    /// What the ratio is to reach.
    pub target: f64,
    /// What is counted.
    pub unit: Unit,
}

impl Row {
    /// What the program's lines call it.
    pub fn key(&self) -> &'static str {
        if self.name.is_empty() { "-" } else { self.name }
    }
}

/// Where a bench's rounds come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// An example of a package, on the host.
    Host {
        /// The package.
        package: &'static str,
        /// The example.
        example: &'static str,
    },
    /// An example of a package under callgrind, on the host: see [`crate::jobs::bench`].
    Callgrind {
        /// The package.
        package: &'static str,
        /// The example.
        example: &'static str,
        /// What happens inside functions whose name contains this counts, also in what they call.
        counted: &'static str,
        /// Functions whose name contains one of these do not count.
        not_counted: &'static [&'static str],
        /// Nor do these, and what they call: the device.
        device: &'static [&'static str],
        /// How many requests a round makes; the program's argument is the number of rounds.
        round_requests: u32,
        /// How many instructions a request may take.
        budget: u32,
    },
    /// Unmodified programs with the preload library and without: see [`super::preload`].
    Preload {
        /// What they speak.
        interface: Interface,
    },
    /// A scenario of the job `bench`.
    Guest {
        /// Its name.
        scenario: &'static str,
    },
}

/// A bench.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bench {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it measures, against what.
    pub what: &'static str,
    /// Its rows.
    pub rows: &'static [Row],
    /// Where its rounds come from.
    pub source: Source,
}

/// A row.
const fn row(name: &'static str, target: f64, unit: Unit) -> Row {
    Row { name, target, unit }
}

/// All of them.
pub const ALL: &[Bench] = &[
    Bench {
        name: "cache-hit",
        what: "4 KiB random reads of cached pages, against pread of a page-cached file",
        rows: &[
            row("copied-1M", 4.0, Unit::Nanoseconds),
            row("copied-256M", 1.6, Unit::Nanoseconds),
            row("pinned-256M", 2.0, Unit::Nanoseconds),
        ],
        source: Source::Host { package: "uaio-core", example: "bench_cache_hit" },
    },
    Bench {
        name: "cache-scale",
        what: "what a second thread gains on cached reads, against what it gains on memcpy alone",
        rows: &[row("", 0.9, Unit::Percent)],
        source: Source::Host { package: "uaio-core", example: "bench_cache_scale" },
    },
    Bench {
        name: "osync",
        what: "sequential 64 KiB stable writes of a file, against pwrite with O_DSYNC one at a time",
        rows: &[
            row("depth-64", 4.0, Unit::Iops),
            row("depth-1", 0.95, Unit::Iops),
            row("depth-64-holes", 4.0, Unit::Iops),
        ],
        source: Source::Host { package: "uaio-core", example: "bench_osync" },
    },
    Bench {
        name: "aio-2006",
        what: "the table of 2006, 64 KiB at depth 64, against pread and pwrite one at a time and glibc's AIO",
        rows: &[
            row("random-read", 2.37, Unit::Iops),
            row("random-osync-write", 1.79, Unit::Iops),
            row("sequential-read", 1.05, Unit::Iops),
            row("sequential-osync-write", 3.76, Unit::Iops),
            row("random-read-glibc", 1.0, Unit::Iops),
            row("random-osync-write-glibc", 1.0, Unit::Iops),
            row("sequential-read-glibc", 1.0, Unit::Iops),
            row("sequential-osync-write-glibc", 1.0, Unit::Iops),
        ],
        source: Source::Host { package: "uaio-core", example: "bench_aio_2006" },
    },
    Bench {
        name: "seq-read",
        what: "a cold file read in order, 128 KiB at a time, against pread through the kernel's page cache",
        rows: &[row("fits", 1.0, Unit::Nanoseconds), row("quarter", 1.0, Unit::Nanoseconds)],
        source: Source::Host { package: "uaio-core", example: "bench_seq_read" },
    },
    Bench {
        name: "buffered-cold",
        what: "cold 4 KiB random reads of a file at depth 32, every block once, against libaio and io_uring, buffered",
        rows: &[
            row("libaio", 4.0, Unit::Iops),
            row("io_uring", 1.3, Unit::Iops),
            // Each read a command of its own, as it is for the peers: against buffered io_uring, and against
            // the most that there is to be had of the disk.
            row("alone-io_uring", 1.0, Unit::Iops),
            row("alone-direct", 0.95, Unit::Iops),
        ],
        source: Source::Host { package: "uaio-core", example: "bench_buffered_cold" },
    },
    Bench {
        name: "submit-block",
        what: "time in submit that 99 of 100 do not exceed, same load, on a reactor with a thread, against libaio buffered",
        rows: &[row("", 20.0, Unit::Nanoseconds)],
        source: Source::Host { package: "uaio-core", example: "bench_submit_block" },
    },
    Bench {
        name: "engine",
        what: "4 KiB random reads of a host file at depth 32 by iocb and event, against io_uring in a tight loop",
        rows: &[row("buffered-32", 0.95, Unit::Iops), row("direct-32", 0.95, Unit::Iops)],
        source: Source::Host { package: "uaio-core", example: "bench_engine" },
    },
    Bench {
        name: "posix-aio",
        what: "fio's posixaio engine with the preload library, cold 4 KiB random reads at depth 32, against glibc and io_uring",
        rows: &[
            row("buffered-32", 2.5, Unit::Iops),
            row("buffered-32-io_uring", 0.95, Unit::Iops),
            row("direct-32", 3.5, Unit::Iops),
            row("direct-32-io_uring", 0.95, Unit::Iops),
        ],
        source: Source::Preload { interface: Interface::Posix },
    },
    Bench {
        name: "libaio",
        what: "fio's libaio engine with the preload library, cold 4 KiB random reads and stable writes, against the kernel's AIO and io_uring",
        rows: &[
            row("buffered-32", 2.5, Unit::Iops),
            row("buffered-32-io_uring", 0.95, Unit::Iops),
            row("submit-p99", 10.0, Unit::Nanoseconds),
            row("direct-32", 0.95, Unit::Iops),
            row("direct-32-io_uring", 0.95, Unit::Iops),
            row("osync-16", 1.0, Unit::Iops),
            row("osync-16-io_uring", 0.95, Unit::Iops),
            row("fsync-16", 1.0, Unit::Iops),
            row("fsync-16-io_uring", 0.95, Unit::Iops),
        ],
        source: Source::Preload { interface: Interface::Libaio },
    },
    Bench {
        name: "hit-cpu",
        what: "instructions of a cached 4 KiB read from submit to event, the copy too, against a budget",
        rows: &[row("", 1.0, Unit::Instructions)],
        source: Source::Callgrind {
            package: "uaio-core",
            example: "request_cpu",
            counted: "request_cpu::counted_hit",
            not_counted: &["request_cpu::counted_"],
            device: &["uaio_driver::ram::"],
            round_requests: 64,
            budget: 1500,
        },
    },
    Bench {
        name: "miss-cpu",
        what: "instructions of an uncached 4 KiB read from submit to event, but for the device's",
        rows: &[row("", 1.0, Unit::Instructions)],
        source: Source::Callgrind {
            package: "uaio-core",
            example: "request_cpu",
            counted: "request_cpu::counted_miss",
            not_counted: &["request_cpu::counted_"],
            device: &["uaio_driver::ram::"],
            round_requests: 64,
            budget: 5000,
        },
    },
    Bench {
        name: "engine-cpu",
        what: "instructions of a 4 KiB read of a host file from submit to event, but for the kernel's",
        rows: &[row("", 1.0, Unit::Instructions)],
        source: Source::Callgrind {
            package: "uaio-core",
            example: "engine_cpu",
            counted: "engine_cpu::counted_engine",
            not_counted: &["engine_cpu::counted_"],
            device: &[],
            round_requests: 64,
            budget: 3000,
        },
    },
    Bench {
        name: "nvme-cpu",
        what: "instructions of submit, commit and poll of a 4 KiB read at depth 128, against a budget",
        rows: &[row("", 1.0, Unit::Instructions)],
        source: Source::Callgrind {
            package: "uaio-driver",
            example: "nvme_cpu",
            counted: "nvme_cpu::counted_",
            // The loops of the program itself.
            not_counted: &["nvme_cpu::counted_"],
            device: &["uaio_driver::nvme::model::"],
            round_requests: 128,
            budget: 150,
        },
    },
    Bench {
        name: "nvme-threads",
        what: "a 4 KiB read on two threads with a queue each, against one thread alone",
        rows: &[row("", 0.9, Unit::Nanoseconds)],
        source: Source::Host { package: "uaio-driver", example: "nvme_threads" },
    },
    Bench {
        name: "nvme-guest",
        what: "4 KiB random reads of an emulated drive, against the kernel's driver with io_uring",
        rows: &[row("depth-1", 1.35, Unit::Iops), row("depth-32", 2.5, Unit::Iops)],
        source: Source::Guest { scenario: "bench-nvme" },
    },
    Bench {
        name: "ublk",
        what: "uncached 4 KiB random reads through /dev/ublkbN, against the kernel's device and rublk's loop",
        rows: &[row("depth-32-kernel", 0.9, Unit::Iops), row("depth-1-rublk", 1.0, Unit::Iops)],
        source: Source::Guest { scenario: "bench-ublk" },
    },
];
