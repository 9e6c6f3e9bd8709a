//! Synchronous calls: the same commands with a wait at the end, and the form with a timeout.

mod common;

use std::io::{IoSlice, IoSliceMut};
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::{SIZE, Stack, stack, with_thread};
use uaio_core::host::{Descriptor, Directory, HostOp, HostRequest};
use uaio_core::{
    BUFFERS_MAX, CallError, ContextOptions, HostOptions, Iocb, OpenOptions, Refusal, VolumeOptions,
    ops,
};
use uaio_driver::{IoError, IoErrorKind};

const PAGE: usize = 4096;
const CACHED: OpenOptions = OpenOptions { direct: false, dsync: false };
const DIRECT: OpenOptions = OpenOptions { direct: true, dsync: false };
const TIMED_OUT: Result<usize, CallError> = Err(CallError::Io(IoError::new(IoErrorKind::TimedOut)));
const INVALID: Result<usize, CallError> = Err(CallError::Refused(Refusal::Invalid));
const A_WHILE: Duration = Duration::from_secs(20);
const SOON: Duration = Duration::from_millis(30);

/// Runs `test` on a reactor without a thread, and on one with.
fn both(test: impl Fn(&Stack)) {
    test(&stack(64, VolumeOptions::default()));
    let threaded = stack(64, VolumeOptions::default());
    with_thread(&threaded.reactor, || test(&threaded));
}

/// Cuts it into pieces, some of them empty.
fn cut<'a>(random: &mut fastrand::Rng, mut bytes: &'a mut [u8]) -> Vec<IoSliceMut<'a>> {
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        let (piece, rest) = bytes.split_at_mut(random.usize(0..=bytes.len()));
        pieces.push(IoSliceMut::new(piece));
        bytes = rest;
    }
    pieces
}

/// The oracle is memory of the same size.
#[test]
fn random_calls_leave_the_volume_as_one_after_the_other_would() {
    const LEN: usize = 1 << 20;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    both(|stack| {
        let mut random = fastrand::Rng::with_seed(seed);
        let handles = [CACHED, DIRECT].map(|options| stack.volume.open(options));
        let mut oracle = vec![0u8; LEN];
        for _ in 0..400 {
            let handle = &handles[random.usize(..2)];
            let unit = if handle.options().direct { 512 } else { 1 };
            let start = random.usize(..LEN / unit) * unit;
            let len = random.usize(..=((LEN - start) / unit).min(40_000 / unit)) * unit;
            let (at, range) = (start as u64, start..start + len);
            let blocks = (at / 512 * 512, (len as u64).div_ceil(512) * 512);
            match random.u8(..8) {
                0 | 1 => {
                    let mut out = vec![1; len];
                    assert_eq!(handle.preadv(&mut cut(&mut random, &mut out), at), Ok(len));
                    assert_eq!(out, oracle[range]);
                }
                2 | 3 => {
                    let mut data: Vec<u8> = (0..len).map(|_| random.u8(..)).collect();
                    oracle[range].copy_from_slice(&data);
                    let pieces = cut(&mut random, &mut data);
                    let pieces: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
                    let written = match random.bool() {
                        true => handle.pwritev(&pieces, at),
                        false => handle.pwritev_within(&pieces, at, A_WHILE),
                    };
                    assert_eq!(written, Ok(len));
                }
                4 => {
                    let (at, len) = (blocks.0, blocks.1.min(LEN as u64 - blocks.0));
                    // What is discarded reads as anything.
                    assert_eq!(handle.discard(at, len), Ok(len as usize));
                    assert_eq!(handle.write_zeroes(at, len), Ok(len as usize));
                    oracle[at as usize..(at + len) as usize].fill(0);
                }
                5 => assert_eq!(handle.sync_range(at, len as u64), Ok(())),
                6 => assert_eq!(handle.readahead(at, len as u64), Ok(len)),
                _ => assert_eq!(handle.fdatasync(), Ok(())),
            }
        }
        let mut all = vec![0; LEN];
        assert_eq!(handles[0].pread(&mut all, 0), Ok(LEN));
        assert!(all == oracle, "seed {seed}");
    });
}

#[test]
fn a_call_on_a_range_does_what_its_command_does() {
    both(|stack| {
        let handle = stack.volume.open(CACHED);
        for page in [3, 5] {
            assert_eq!(handle.pwrite(&[9; PAGE], page * PAGE as u64), Ok(PAGE));
        }
        let dirty = |page: u64| page * PAGE as u64..(page + 1) * PAGE as u64;
        assert_eq!(handle.sync_range(3 * PAGE as u64, 1), Ok(()));
        assert_eq!(stack.volume.cache().dirty_ranges(), [dirty(5)], "that page and no other");
        assert!(stack.gate.flushes.load(Ordering::SeqCst) > 0);
        assert!(handle.try_pin(64 * PAGE as u64).is_none());
        assert_eq!(handle.readahead(64 * PAGE as u64, 2 * PAGE as u64), Ok(2 * PAGE));
        assert!(
            handle.try_pin(64 * PAGE as u64).is_some()
                && handle.try_pin(65 * PAGE as u64).is_some()
        );
        // The end of the volume, and past it.
        let mut out = [[1; 5], [2; 5]];
        let mut pieces = out.each_mut().map(|piece| IoSliceMut::new(piece));
        assert_eq!(handle.preadv(&mut pieces, SIZE - 7), Ok(7));
        assert_eq!(out, [[0; 5], [0, 0, 2, 2, 2]]);
        assert_eq!(handle.preadv(&mut [], SIZE), Ok(0));
        let no_space = Err(CallError::Io(IoError::new(IoErrorKind::NoSpace)));
        assert_eq!(handle.pwritev(&[IoSlice::new(&[1])], SIZE), no_space);
    });
}

#[test]
fn a_call_that_is_not_possible_is_refused_as_its_command_is() {
    both(|stack| {
        let (cached, direct) = (stack.volume.open(CACHED), stack.volume.open(DIRECT));
        let many = vec![IoSlice::new(b"x"); BUFFERS_MAX + 1];
        assert_eq!(cached.pwritev(&many, 0), INVALID);
        assert_eq!(cached.pwritev(&many[1..], 0), Ok(BUFFERS_MAX));
        let mut bytes = vec![0; BUFFERS_MAX + 1];
        let mut many: Vec<_> = bytes.chunks_mut(1).map(IoSliceMut::new).collect();
        assert_eq!(cached.preadv(&mut many, 0), INVALID);
        assert_eq!(direct.pread_within(&mut [0; 100], 0, SOON), INVALID);
        assert_eq!(cached.pwrite_within(&[0], u64::MAX, SOON), INVALID);
        assert_eq!(cached.discard(5, 512), INVALID);
        assert_eq!(cached.write_zeroes(SIZE, 512), INVALID);
        assert_eq!(cached.sync_range(u64::MAX, 1), Err(Refusal::Invalid.into()));
        assert_eq!(cached.readahead(u64::MAX, 1), INVALID);
    });
}

#[test]
fn a_call_that_is_done_in_time_is_as_one_without_a_timeout() {
    both(|stack| {
        for options in [CACHED, DIRECT] {
            let handle = stack.volume.open(options);
            let mut out = [0; PAGE];
            assert_eq!(handle.pwrite_within(&[4; PAGE], 0, A_WHILE), Ok(PAGE));
            assert_eq!(handle.pread_within(&mut out, 0, A_WHILE), Ok(PAGE));
            assert_eq!(out, [4; PAGE]);
            // Missed, and in two pieces.
            let (one, two) = out.split_at_mut(1024);
            let mut pieces = [IoSliceMut::new(one), IoSliceMut::new(two)];
            assert_eq!(handle.preadv_within(&mut pieces, 1 << 20, A_WHILE), Ok(PAGE));
            assert_eq!(out, [0; PAGE]);
        }
    });
}

/// The device answers when the caller has its memory again, and has perhaps freed it.
#[test]
fn a_read_whose_time_is_up_is_detached_at_once_from_a_device_that_is_stuck_and_answers_late() {
    both(|stack| {
        let (cached, direct) = (stack.volume.open(CACHED), stack.volume.open(DIRECT));
        for (at, handle) in [(0, &cached), (1 << 20, &direct)] {
            assert_eq!(direct.pwrite(&[5; PAGE], at), Ok(PAGE));
            let completed = stack.gate.completed.load(Ordering::SeqCst);
            stack.gate.stick(true);
            let mut out = [9; PAGE];
            let start = Instant::now();
            assert_eq!(handle.pread_within(&mut out, at, SOON), TIMED_OUT);
            assert!(start.elapsed() >= SOON);
            assert_eq!(stack.gate.completed.load(Ordering::SeqCst), completed, "it is stuck");
            stack.gate.stick(false);
            while stack.gate.completed.load(Ordering::SeqCst) == completed {
                assert!(start.elapsed() < A_WHILE, "the device never answers");
                stack.reactor.turn();
            }
            assert_eq!(out, [9; PAGE], "what came late");
            assert_eq!(handle.pread(&mut out, at), Ok(PAGE));
            assert_eq!(out, [5; PAGE]);
        }
    });
}

#[test]
fn a_direct_write_whose_time_is_up_returns_when_the_device_has_let_go_of_it_and_not_before() {
    both(|stack| {
        let direct = stack.volume.open(DIRECT);
        stack.gate.stick(true);
        let (tell, told) = mpsc::channel();
        std::thread::scope(|threads| {
            let direct = &direct;
            threads.spawn(move || {
                tell.send(direct.pwrite_within(&[7; PAGE], 0, SOON)).unwrap();
            });
            let early = told.recv_timeout(10 * SOON);
            // Before anything fails: it would be waited for.
            stack.gate.stick(false);
            assert!(early.is_err(), "the device may write it still: {early:?}");
            // The device has done it after all, and that is what is said.
            assert_eq!(told.recv_timeout(A_WHILE), Ok(Ok(PAGE)));
        });
        let mut out = [0; PAGE];
        assert_eq!(direct.pread(&mut out, 0), Ok(PAGE));
        assert_eq!(out, [7; PAGE]);
    });
}

#[test]
fn a_write_whose_time_is_up_while_it_waits_for_room_in_the_cache_never_lands() {
    both(|stack| {
        let handle = stack.volume.open(CACHED);
        stack.gate.stick(true);
        let mut pages = 0;
        while handle.pwrite_within(&[7; PAGE], pages * PAGE as u64, SOON) == Ok(PAGE) {
            pages += 1;
            assert!(pages < 100, "there are frames for 64");
        }
        assert!(pages > 0);
        let refused = handle.pwrite_within(&[7; PAGE], pages * PAGE as u64, SOON);
        assert_eq!(refused, TIMED_OUT);
        stack.gate.stick(false);
        assert_eq!(handle.fsync(), Ok(()));
        for page in 0..=pages {
            let mut out = [1; PAGE];
            assert_eq!(handle.pread(&mut out, page * PAGE as u64), Ok(PAGE));
            assert_eq!(out, [if page < pages { 7 } else { 0 }; PAGE], "page {page} of {pages}");
        }
    });
}

#[test]
fn a_call_whose_time_is_up_before_there_is_room_for_it_was_never_begun() {
    let few = VolumeOptions { operations: 1, inbox: 1, ..VolumeOptions::default() };
    let stack = stack(64, few);
    let handle = stack.volume.open(DIRECT);
    let context = stack.reactor.context(ContextOptions::events(2)).unwrap();
    stack.gate.stick(true);
    for at in [0, 4096] {
        context.submit(Iocb::pread(&handle, at, vec![0; PAGE])).unwrap();
    }
    assert_eq!(handle.pwrite_within(&[7; PAGE], 0, SOON), TIMED_OUT);
    stack.gate.stick(false);
    let mut events = Vec::new();
    assert_eq!(context.get_events(2, 2, &mut events, Some(A_WHILE)), Ok(2));
    let mut out = [1; PAGE];
    assert_eq!(handle.pread(&mut out, 0), Ok(PAGE));
    assert_eq!(out, [0; PAGE]);
}

fn pipe() -> (Descriptor, Descriptor) {
    let (reader, writer) = std::io::pipe().unwrap();
    (Descriptor::new(reader), Descriptor::new(writer))
}

fn host_error(errno: i32) -> Result<usize, CallError> {
    Err(CallError::Io(IoError::host(errno)))
}

#[test]
fn any_operation_of_the_host_is_a_call_that_waits_for_it() {
    both(|stack| {
        let host = stack.reactor.attach_host(HostOptions::default()).unwrap();
        let flags = libc::O_TMPFILE | libc::O_RDWR;
        let (opened, op) = host.call(ops::openat(Directory::Current, c"/tmp", flags, 0o600));
        let number = opened.unwrap();
        let file = op.into_descriptor().unwrap();
        assert_eq!(std::os::fd::AsRawFd::as_raw_fd(&file) as usize, number);
        let file = Descriptor::new(file);
        let (written, op) = host.call(ops::pwrite(&file, b"hello".to_vec(), 3));
        assert_eq!((written, op.into_bytes()), (Ok(5), b"hello".to_vec()));
        let (read, op) = host.call(ops::pread(&file, vec![1; 16], 2));
        assert_eq!((read, &op.into_bytes()[..7]), (Ok(6), &b"\0hello\x01"[..]));
        assert_eq!(host.call(ops::fsync(&file)).0, Ok(0));
        assert_eq!(host.call(ops::ftruncate(&file, 4)).0, Ok(0));
        assert_eq!(host.call(ops::pread(&file, vec![1; 16], 0)).0, Ok(4));
        // What fails brings its memory back, too.
        let (reader, writer) = pipe();
        let (failed, op) = host.call(ops::read(&writer, vec![8; 3]));
        assert_eq!((failed, op.into_bytes()), (host_error(libc::EBADF), vec![8; 3]));
        let (refused, op) = host.call(ops::poll_all(&reader, libc::POLLIN));
        assert_eq!(refused, INVALID);
        assert!(matches!(op, HostOp::Poll { .. }));
        assert_eq!(host.call(ops::sleep(Duration::from_millis(1))).0, Ok(0));
    });
}

#[test]
fn a_call_of_the_host_waits_until_there_is_something_or_its_time_is_up() {
    both(|stack| {
        let host = stack.reactor.attach_host(HostOptions::default()).unwrap();
        let (reader, writer) = pipe();
        let start = Instant::now();
        let request = HostRequest::from(ops::read(&reader, vec![1; 3])).with_timeout(SOON);
        let (late, op) = host.call(request);
        assert_eq!((late, op.into_bytes()), (host_error(libc::ETIMEDOUT), vec![1; 3]));
        assert!(start.elapsed() >= SOON);
        std::thread::scope(|threads| {
            let waits = threads.spawn(|| host.call(ops::read(&reader, vec![1; 3])));
            std::thread::sleep(SOON);
            assert!(!waits.is_finished());
            assert_eq!(host.call(ops::write(&writer, b"abc".to_vec())).0, Ok(3));
            let (read, op) = waits.join().unwrap();
            assert_eq!((read, op.into_bytes()), (Ok(3), b"abc".to_vec()));
        });
    });
}

/// As many wait for ever as the host was made for, and more; each has room.
#[test]
fn calls_of_the_host_that_wait_keep_none_waiting_that_would_end_them() {
    both(|stack| {
        let options = HostOptions { operations: 1, inbox: 1, workers: 1 };
        let host = stack.reactor.attach_host(options).unwrap();
        let (reader, writer) = pipe();
        std::thread::scope(|threads| {
            let waits: Vec<_> = (0..6)
                .map(|_| threads.spawn(|| host.call(ops::read(&reader, vec![0; 1])).0))
                .collect();
            std::thread::sleep(SOON);
            assert!(!waits.iter().any(|waits| waits.is_finished()));
            assert_eq!(host.call(ops::write(&writer, vec![1; 6])).0, Ok(6));
            for waits in waits {
                assert_eq!(waits.join().unwrap(), Ok(1));
            }
        });
    });
}

#[test]
fn a_call_on_what_was_closed_is_refused_and_brings_the_operation_back() {
    let stack = stack(64, VolumeOptions::default());
    let host = stack.reactor.attach_host(HostOptions::default()).unwrap();
    let handle = stack.volume.open(CACHED);
    stack.reactor.close().unwrap();
    let (reader, _writer) = pipe();
    let (refused, op) = host.call(ops::read(&reader, vec![3; 2]));
    assert_eq!((refused, op.into_bytes()), (Err(Refusal::Closed.into()), vec![3; 2]));
    assert_eq!(handle.pwrite_within(&[0], 0, SOON), Err(Refusal::Closed.into()));
    assert_eq!(handle.discard(0, 512), Err(Refusal::Closed.into()));
}
