//! The host in the model: files, pipes, sockets, an eventfd, timers; what is in flight there, and what
//! each of them may say.
//!
//! Of a file, as of a volume, what is in flight together does not overlap where one of them writes; one
//! that makes the file longer or shorter has all of it from there on. A stream (a pipe, one direction of
//! a pair of sockets) has one writer and one reader in flight at most, so it has one order of bytes; they
//! may wait for each other, or for what [`Hosts::help`] puts in from outside. The eventfd has any
//! number of them, and a sum that must come out.

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use uaio_core::host::{Descriptor, HostOp, HostRequest, Position, Vectored};
use uaio_core::{Buffers, Host, Iocb};
use uaio_driver::{IoError, IoErrorKind};

/// About how long a file becomes.
const LEN: usize = 100_000;

pub(crate) struct Hosts {
    pub(crate) host: Host,
    files: Vec<Modelled>,
    streams: Vec<Stream>,
    counter: Counter,
}

struct Modelled {
    file: File,
    fd: Descriptor,
    bytes: Vec<u8>,
    /// Every write goes to its end (`O_APPEND`).
    appends: bool,
}

struct Stream {
    reader: (Descriptor, Arc<OwnedFd>),
    writer: (Descriptor, Arc<OwnedFd>),
    socket: bool,
    /// What was written, and what is to be by the write in flight.
    sent: Vec<u8>,
    /// How many of these certainly were.
    written: usize,
    /// How many of these were read; several numbers are possible after a read whose answer nobody saw.
    taken: Vec<usize>,
    reads: bool,
    writes: bool,
}

struct Counter {
    fd: (Descriptor, Arc<OwnedFd>),
    /// What was added, by what is in flight too, and what was read.
    added: u64,
    taken: u64,
    /// Reads and polls in flight.
    waiting: usize,
    /// An answer was seen by nobody, so the sum need not come out.
    unknown: bool,
}

/// An operation in flight.
#[derive(Debug)]
pub(crate) struct Flying {
    /// The descriptor it is found by.
    pub(crate) fd: RawFd,
    /// It may wait for another one.
    pub(crate) waits: bool,
    does: Does,
}

impl Flying {
    pub(crate) fn writes_to_a_stream(&self) -> bool {
        matches!(self.does, Does::StreamWrite { .. })
    }
}

#[derive(Debug)]
enum Does {
    /// The file and what is read of it; and what is claimed, which may be past the end.
    Read {
        file: usize,
        range: Range<usize>,
        claim: Range<usize>,
    },
    /// What it claims of the file, what was there, and what becomes of it.
    Change {
        file: usize,
        claim: Range<usize>,
        old: Vec<u8>,
        change: Change,
    },
    /// Makes a file stable, or waits: it is to say 0.
    Zero,
    /// A timer that is not to be over before.
    Sleep(Instant),
    StreamRead {
        stream: usize,
        len: usize,
    },
    StreamWrite {
        stream: usize,
        len: usize,
    },
    Count,
    Add(u64),
    Poll,
}

#[derive(Debug)]
enum Change {
    /// Bytes, from so far behind the beginning of the claim on.
    Transfer { at: usize, data: Vec<u8> },
    /// All or nothing; what is there then.
    Whole(Vec<u8>),
}

/// What is there after so many bytes of a change.
fn after(old: &[u8], change: &Change, done: usize) -> Vec<u8> {
    match change {
        Change::Whole(new) => new.clone(),
        Change::Transfer { .. } if done == 0 => old.to_vec(),
        Change::Transfer { at, data } => {
            let mut bytes = old.to_vec();
            bytes.resize(bytes.len().max(at + done), 0);
            bytes[*at..at + done].copy_from_slice(&data[..done]);
            bytes
        }
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

fn is_ready(fd: &impl AsFd, wanted: PollFlags) -> bool {
    let mut fds = [PollFd::new(fd, wanted)];
    poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
}

fn named(fd: OwnedFd) -> (Descriptor, Arc<OwnedFd>) {
    let fd = Arc::new(fd);
    (Descriptor::from(Arc::clone(&fd)), fd)
}

fn random_bytes(random: &mut fastrand::Rng, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes
}

impl Hosts {
    /// Three files in a directory, of which the last takes every write at its end; a pipe; a pair of
    /// sockets, which is two streams; an eventfd.
    pub(crate) fn new(host: Host, directory: &Path) -> Self {
        let files = [false, false, true].map(|appends| {
            let path = directory.join("file");
            let mut options = File::options();
            let options = options.read(true).create_new(true).append(appends).write(true);
            let file = options.open(&path).unwrap();
            std::fs::remove_file(path).unwrap();
            let fd = Descriptor::new(file.try_clone().unwrap());
            Modelled { file, fd, bytes: Vec::new(), appends }
        });
        let (reader, writer) = std::io::pipe().unwrap();
        let (reader, writer) = (named(reader.into()), named(writer.into()));
        let (left, right) = std::os::unix::net::UnixStream::pair().unwrap();
        let (left, right) = (named(left.into()), named(right.into()));
        let streams =
            [(reader, writer, false), (left.clone(), right.clone(), true), (right, left, true)]
                .map(|(reader, writer, socket)| Stream {
                    reader,
                    writer,
                    socket,
                    sent: Vec::new(),
                    written: 0,
                    taken: vec![0],
                    reads: false,
                    writes: false,
                });
        let fd = named(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let counter = Counter { fd, added: 0, taken: 0, waiting: 0, unknown: false };
        Self { host, files: files.into(), streams: streams.into(), counter }
    }

    /// A descriptor to cancel everything on.
    pub(crate) fn random_descriptor(&self, random: &mut fastrand::Rng) -> Descriptor {
        match random.usize(..self.files.len() + self.streams.len() + 1) {
            at if at < self.files.len() => self.files[at].fd.clone(),
            at => match self.streams.get(at - self.files.len()) {
                Some(stream) => stream.reader.0.clone(),
                None => self.counter.fd.0.clone(),
            },
        }
    }

    /// An operation that gets on with `flying`; none when it clashes with one of those.
    pub(crate) fn random<'a>(
        &mut self,
        random: &mut fastrand::Rng,
        flying: impl Iterator<Item = &'a Flying>,
    ) -> Option<(Iocb, Flying)> {
        let (op, flight) = match random.u8(..10) {
            0..=4 => self.on_file(random, flying)?,
            5..=7 => self.on_stream(random)?,
            8 => self.on_counter(random),
            _ => {
                let time = Duration::from_micros(random.u64(..2000));
                let does = Does::Sleep(Instant::now() + time);
                (HostOp::Sleep(time), Flying { fd: -1, waits: false, does })
            }
        };
        let request = HostRequest::from(op);
        let request = if random.u8(..8) == 0 { request.away() } else { request };
        Some((Iocb::host(&self.host, request), flight))
    }

    fn on_file<'a>(
        &mut self,
        random: &mut fastrand::Rng,
        mut flying: impl Iterator<Item = &'a Flying>,
    ) -> Option<(HostOp, Flying)> {
        let file = random.usize(..self.files.len());
        let Modelled { fd, bytes, appends, .. } = &mut self.files[file];
        let (end, fd) = (bytes.len(), fd.clone());
        let at = random.usize(..LEN);
        let len = random.usize(1..20_000);
        let data = random_bytes(random, len);
        let kind = random.u8(..12);
        let (claim, change, op) = match kind {
            0 => {
                let op = HostOp::Fsync { fd, data_only: random.bool() };
                return Some((op, Flying { fd: self.raw(file), waits: false, does: Does::Zero }));
            }
            1..=4 => {
                let claim = at..at + len;
                let clash = flying.any(|other| {
                    matches!(&other.does, Does::Change { file: theirs, claim: claimed, .. }
                        if *theirs == file && overlap(claimed, &claim))
                });
                if clash {
                    return None;
                }
                let range = at.min(end)..(at + len).min(end).max(at.min(end));
                let at = Position::At(at as u64);
                let op = if random.bool() {
                    HostOp::Read { fd, memory: vec![0; len].into(), at, flags: 0 }
                } else {
                    let memory = Vectored::new(pieces(random, vec![0; len]));
                    HostOp::ReadV { fd, memory, at, flags: 0 }
                };
                let does = Does::Read { file, range, claim };
                return Some((op, Flying { fd: self.raw(file), waits: false, does }));
            }
            5 => {
                let new = vec![0; at.saturating_sub(end)];
                let op = HostOp::Ftruncate { fd, len: at as u64 };
                (at.min(end)..usize::MAX, Change::Whole(new), op)
            }
            6 if at + len <= end => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                let op = HostOp::Fallocate { fd, mode, offset: at as u64, len: len as u64 };
                (at..at + len, Change::Whole(vec![0; len]), op)
            }
            _ => {
                let flag = !*appends && kind == 7;
                let at = if *appends || flag { end } else { at };
                let claim = if at + len > end { at.min(end)..usize::MAX } else { at..at + len };
                let mut flags = if flag { libc::RWF_APPEND } else { 0 };
                flags |= if random.u8(..4) == 0 { libc::RWF_DSYNC } else { 0 };
                let change = Change::Transfer { at: at - claim.start, data: data.clone() };
                let at = match *appends {
                    true if random.bool() => Position::Current,
                    // Wherever that is, it goes to the end.
                    true => Position::At(3),
                    false => Position::At(if flag { 3 } else { at as u64 }),
                };
                let op = if random.bool() {
                    HostOp::Write { fd, memory: data.into(), at, flags }
                } else {
                    HostOp::WriteV { fd, memory: Vectored::new(pieces(random, data)), at, flags }
                };
                (claim, change, op)
            }
        };
        let clash = flying.any(|other| match &other.does {
            Does::Read { file: theirs, claim: claimed, .. }
            | Does::Change { file: theirs, claim: claimed, .. } => {
                *theirs == file && overlap(claimed, &claim)
            }
            _ => false,
        });
        if clash {
            return None;
        }
        let old = self.files[file].bytes[claim.start..claim.end.min(end)].to_vec();
        let done = if let Change::Transfer { data, .. } = &change { data.len() } else { 0 };
        self.put(file, &claim, &after(&old, &change, done));
        let does = Does::Change { file, claim, old, change };
        Some((op, Flying { fd: self.raw(file), waits: false, does }))
    }

    fn raw(&self, file: usize) -> RawFd {
        self.files[file].fd.as_raw_fd()
    }

    /// Notes what is in a claim.
    fn put(&mut self, file: usize, claim: &Range<usize>, now: &[u8]) {
        let bytes = &mut self.files[file].bytes;
        let end = claim.end.min(bytes.len());
        bytes.splice(claim.start..end, now.iter().copied());
    }

    fn on_stream(&mut self, random: &mut fastrand::Rng) -> Option<(HostOp, Flying)> {
        let at = random.usize(..self.streams.len());
        let stream = &mut self.streams[at];
        if random.bool() {
            if std::mem::replace(&mut stream.reads, true) {
                return None;
            }
            let len = random.usize(1..30_000);
            let (fd, memory) = (stream.reader.0.clone(), vec![0; len].into());
            let raw = fd.as_raw_fd();
            let op = match stream.socket && random.bool() {
                true => HostOp::Recv { fd, memory, flags: 0 },
                false => HostOp::Read { fd, memory, at: Position::Current, flags: 0 },
            };
            let does = Does::StreamRead { stream: at, len };
            return Some((op, Flying { fd: raw, waits: true, does }));
        }
        if std::mem::replace(&mut stream.writes, true) {
            return None;
        }
        let len = random.usize(1..30_000);
        let data = random_bytes(random, len);
        stream.sent.extend(&data);
        let fd = stream.writer.0.clone();
        let raw = fd.as_raw_fd();
        let op = match stream.socket && random.bool() {
            true => HostOp::Send { fd, memory: data.into(), flags: 0 },
            false if random.bool() => {
                let memory = Vectored::new(pieces(random, data));
                HostOp::WriteV { fd, memory, at: Position::Current, flags: 0 }
            }
            false => HostOp::Write { fd, memory: data.into(), at: Position::Current, flags: 0 },
        };
        let does = Does::StreamWrite { stream: at, len };
        Some((op, Flying { fd: raw, waits: true, does }))
    }

    fn on_counter(&mut self, random: &mut fastrand::Rng) -> (HostOp, Flying) {
        let fd = self.counter.fd.0.clone();
        let (raw, at) = (fd.as_raw_fd(), Position::Current);
        let (op, waits, does) = match random.u8(..4) {
            0 => {
                let events = libc::POLLIN as u32;
                (HostOp::Poll { fd, events, multishot: false }, true, Does::Poll)
            }
            1 => (HostOp::Read { fd, memory: vec![0; 8].into(), at, flags: 0 }, true, Does::Count),
            _ => {
                let value = random.u64(1..1000);
                self.counter.added += value;
                let memory = value.to_ne_bytes().to_vec().into();
                (HostOp::Write { fd, memory, at, flags: 0 }, false, Does::Add(value))
            }
        };
        self.counter.waiting += usize::from(waits);
        (op, Flying { fd: raw, waits, does })
    }

    /// Takes an answer in. One that `may_end` may have ended before its time.
    pub(crate) fn answered(
        &mut self,
        flying: Flying,
        result: Result<usize, IoError>,
        buffers: Buffers,
        may_end: bool,
        what: &str,
    ) {
        let ended = may_end
            && result.is_err_and(|error| {
                matches!(error.kind, IoErrorKind::Cancelled | IoErrorKind::TimedOut)
            });
        // Nothing of it was done.
        let done = if ended { Ok(0) } else { result };
        let Ok(done) = done else { panic!("{what}: {result:?}") };
        let memory = || {
            let op = buffers.into_host().expect("its operation");
            let mut bytes = match op {
                HostOp::ReadV { .. } => op.into_pieces().concat(),
                op => op.into_bytes(),
            };
            bytes.truncate(done);
            bytes
        };
        match flying.does {
            Does::Read { file, range, .. } => {
                let whole = done == range.len() || may_end && done < range.len();
                assert!(whole, "{what}: read {done} of {range:?}");
                let right = memory() == self.files[file].bytes[range.start..range.start + done];
                assert!(right, "{what}: other bytes at {range:?}");
            }
            Does::Change { file, claim, old, change } => {
                let all = match &change {
                    Change::Whole(_) => 0,
                    Change::Transfer { data, .. } => data.len(),
                };
                if ended || done < all {
                    assert!(may_end, "{what}: wrote {done} of {all}");
                    let now = if done == 0 { old } else { after(&old, &change, done) };
                    self.put(file, &claim, &now);
                    let seen = self.seen(file, &claim);
                    assert!(seen == now, "{what}: it was done all the same, at {claim:?}");
                } else {
                    assert_eq!(done, all, "{what}");
                }
            }
            Does::Zero => assert_eq!(done, 0, "{what}"),
            Does::Sleep(until) => {
                assert!(ended || Instant::now() >= until, "{what}: it ended early");
            }
            Does::StreamRead { stream, .. } => {
                let stream = &mut self.streams[stream];
                stream.reads = false;
                assert!(ended || done > 0, "{what}: nobody closed it");
                stream.took(&memory(), what);
            }
            Does::StreamWrite { stream, len } => {
                let stream = &mut self.streams[stream];
                stream.writes = false;
                assert!(done <= len && (ended || done > 0), "{what}: wrote {done} of {len}");
                stream.written += done;
                stream.sent.truncate(stream.written);
                stream.taken.retain(|taken| *taken <= stream.written);
                assert!(!stream.taken.is_empty(), "{what}: more was read than written");
            }
            Does::Count => {
                self.counter.waiting -= 1;
                if !ended {
                    let value = u64::from_ne_bytes(memory().try_into().unwrap());
                    self.counter.taken += value;
                    let Counter { added, taken, unknown, .. } = &self.counter;
                    assert!(value > 0 && (*unknown || taken <= added), "{what}: {value}");
                }
            }
            Does::Add(value) => {
                assert_eq!(done, if ended { 0 } else { 8 }, "{what}");
                self.counter.added -= if ended { value } else { 0 };
            }
            Does::Poll => {
                self.counter.waiting -= 1;
                assert!(ended || done & libc::POLLIN as usize != 0, "{what}: {done:#x}");
            }
        }
    }

    /// Takes in that one is over and nobody saw how it went. None that writes to a stream.
    pub(crate) fn lost(&mut self, flying: Flying, what: &str) {
        match flying.does {
            Does::Change { file, claim, old, change } => {
                let seen = self.seen(file, &claim);
                let done = match &change {
                    Change::Whole(_) => 0,
                    Change::Transfer { at, data } => {
                        let there = seen.get(*at..).unwrap_or_default().iter();
                        there.zip(data).take_while(|(seen, new)| seen == new).count()
                    }
                };
                let possible = seen == old || seen == after(&old, &change, done);
                assert!(possible, "{what}: neither as it was nor as it was to be, at {claim:?}");
                self.put(file, &claim, &seen);
            }
            Does::StreamRead { stream, len } => {
                let stream = &mut self.streams[stream];
                stream.reads = false;
                let sent = stream.sent.len();
                let possible = stream.taken.iter().flat_map(|at| *at..=(at + len).min(sent));
                let mut possible: Vec<_> = possible.collect();
                possible.sort_unstable();
                possible.dedup();
                stream.taken = possible;
            }
            Does::Count => {
                self.counter.waiting -= 1;
                self.counter.unknown = true;
            }
            Does::Add(_) => self.counter.unknown = true,
            Does::Poll => self.counter.waiting -= 1,
            Does::StreamWrite { .. } => panic!("{what}: nobody is to abandon it"),
            Does::Read { .. } | Does::Zero | Does::Sleep(_) => {}
        }
    }

    /// What a file has in a claim.
    fn seen(&self, file: usize, claim: &Range<usize>) -> Vec<u8> {
        let file = &self.files[file].file;
        let end = claim.end.min(file.metadata().unwrap().len() as usize);
        let mut seen = vec![0; end.saturating_sub(claim.start)];
        file.read_exact_at(&mut seen, claim.start as u64).unwrap();
        seen
    }

    /// What the streams are waiting for.
    pub(crate) fn streams(&self) -> String {
        let state = |stream: &Stream| {
            let Stream { reads, writes, sent, written, taken, .. } = stream;
            let has_bytes = is_ready(&stream.reader.1, PollFlags::IN);
            let has_room = is_ready(&stream.writer.1, PollFlags::OUT);
            let sent = sent.len();
            format!(
                "{{ reads: {reads}, writes: {writes}, sent: {sent}, written: {written}, taken: {taken:?}, has_bytes: {has_bytes}, has_room: {has_room} }}"
            )
        };
        self.streams.iter().map(state).collect::<Vec<_>>().join("\n")
    }

    /// Ends waits that nothing in flight would end: for bytes, for room, for a number.
    pub(crate) fn help(&mut self, random: &mut fastrand::Rng) {
        for stream in &mut self.streams {
            if stream.reads && !stream.writes && !is_ready(&stream.reader.1, PollFlags::IN) {
                let len = random.usize(1..100);
                let data = random_bytes(random, len);
                assert_eq!(rustix::io::write(&stream.writer.1, &data), Ok(len));
                stream.sent.extend(data);
                stream.written += len;
            }
            if stream.writes && !stream.reads && is_ready(&stream.reader.1, PollFlags::IN) {
                stream.drain();
            }
        }
        let counter = &mut self.counter;
        if counter.waiting > 0 && !is_ready(&counter.fd.1, PollFlags::IN) {
            rustix::io::write(&counter.fd.1, &1u64.to_ne_bytes()).unwrap();
            counter.added += 1;
        }
    }

    /// Compares everything, with nothing in flight.
    pub(crate) fn check(&mut self) {
        for (number, Modelled { file, bytes, .. }) in self.files.iter().enumerate() {
            let mut seen = vec![0; file.metadata().unwrap().len() as usize];
            file.read_exact_at(&mut seen, 0).unwrap();
            assert!(seen == *bytes, "file {number} differs");
        }
        for (number, stream) in self.streams.iter_mut().enumerate() {
            while is_ready(&stream.reader.1, PollFlags::IN) {
                stream.drain();
            }
            let empty = stream.taken.contains(&stream.sent.len());
            assert!(empty, "stream {number}: bytes are missing");
            (stream.written, stream.taken) = (0, vec![0]);
            stream.sent.clear();
        }
        let counter = &mut self.counter;
        if is_ready(&counter.fd.1, PollFlags::IN) {
            let mut value = [0; 8];
            assert_eq!(rustix::io::read(&counter.fd.1, &mut value), Ok(8));
            counter.taken += u64::from_ne_bytes(value);
        }
        assert!(counter.unknown || counter.taken == counter.added, "the sum is another");
        (counter.added, counter.taken, counter.unknown) = (0, 0, false);
    }
}

impl Stream {
    /// Reads what there is, from outside.
    fn drain(&mut self) {
        let mut bytes = [0; 10_000];
        let len = rustix::io::read(&self.reader.1, &mut bytes).unwrap();
        assert!(len > 0, "nobody closed it");
        self.took(&bytes[..len], "from outside");
    }

    /// Somebody read these bytes.
    fn took(&mut self, bytes: &[u8], what: &str) {
        let sent = &self.sent;
        self.taken.retain(|at| sent[*at..].starts_with(bytes));
        self.taken.iter_mut().for_each(|at| *at += bytes.len());
        assert!(!self.taken.is_empty(), "{what}: {} other bytes than were sent", bytes.len());
    }
}

/// Cuts bytes into a few buffers, some empty.
pub(crate) fn pieces(random: &mut fastrand::Rng, data: Vec<u8>) -> Vec<Vec<u8>> {
    let mut rest = &data[..];
    let mut pieces = Vec::new();
    for _ in 0..random.usize(..5) {
        let (piece, left) = rest.split_at(random.usize(..=rest.len()));
        pieces.push(piece.to_vec());
        rest = left;
    }
    pieces.push(rest.to_vec());
    pieces
}
