//! The host engine when operations end early: cancelled, out of time, left behind by their thread, or
//! dropped with the engine.

mod host;

use std::collections::HashMap;
use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use host::{Bench, errno, token};
use uaio_core::host::{
    Argument, Between, Call, Cancel, Descriptor, Engine, EngineOptions, HostDone, HostOp,
    HostRequest, Owner, Position,
};

fn read(fd: &Descriptor, len: usize) -> HostOp {
    HostOp::Read { fd: fd.clone(), memory: vec![0; len].into(), at: Position::Current, flags: 0 }
}

fn pipe() -> (Descriptor, PipeReader, PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    (Descriptor::new(reader.try_clone().unwrap()), reader, writer)
}

const SHORT: Duration = Duration::from_millis(20);

fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap());
    match number("UAIO_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("UAIO_SEEDS").unwrap_or(default),
    }
}

fn is_cancelled(done: &HostDone) -> bool {
    done.result == Err(errno(libc::ECANCELED))
}

#[test]
fn a_cancel_reaches_an_operation_wherever_it_is() {
    let mut bench = Bench::new(8);
    let (fd, _reader, _writer) = pipe();
    // Started, and not committed.
    let id = bench.start(read(&fd, 4));
    assert_eq!(bench.engine.cancel(id), Cancel::Asked);
    assert!(is_cancelled(&bench.wait(1)[0]));
    // With the kernel.
    let id = bench.start(read(&fd, 4));
    bench.engine.commit_and_wait(SHORT);
    assert_eq!(bench.engine.cancel(id), Cancel::Asked);
    assert_eq!(bench.engine.cancel(id), Cancel::Asked);
    let done = bench.wait(1).remove(0);
    assert!(is_cancelled(&done));
    // Its memory is back.
    let Some(HostOp::Read { memory, .. }) = done.op else { panic!("another operation") };
    assert_eq!(memory.into_vec(), [0; 4]);
    // Answered: the name is stale, also when the slot has another tenant.
    assert_eq!(bench.engine.cancel(id), Cancel::Done);
    let other = bench.start(read(&fd, 4));
    assert_eq!(bench.engine.cancel(id), Cancel::Done);
    assert_eq!(bench.engine.cancel(other), Cancel::Asked);
    assert!(is_cancelled(&bench.wait(1)[0]));
    assert_eq!(bench.engine.in_flight(), 0);
}

#[test]
fn a_cancel_that_comes_too_late_changes_nothing() {
    let mut bench = Bench::new(8);
    let (fd, _reader, mut writer) = pipe();
    writer.write_all(b"data").unwrap();
    let id = bench.start(read(&fd, 4));
    bench.engine.commit_and_wait(SHORT);
    // Done by the kernel, and not polled yet.
    assert_eq!(bench.engine.cancel(id), Cancel::Asked);
    assert_eq!(bench.wait(1)[0].result, Ok(4));
    assert_eq!(bench.engine.in_flight(), 0);
}

#[test]
fn a_call_that_a_worker_has_begun_is_interrupted_where_it_waits() {
    let mut bench = Bench::new(8);
    let path = bench.path().join("lock");
    let held = lock_file(&path);
    held.lock().unwrap();
    let first = bench.start(flock(&path, libc::LOCK_EX));
    let second = flock(&path, libc::LOCK_EX);
    bench.start(HostRequest::from(second).with_timeout(Duration::from_millis(60)));
    std::thread::sleep(SHORT);
    assert_eq!(bench.engine.cancel(first), Cancel::Asked);
    assert_eq!(bench.engine.cancel(first), Cancel::Asked, "again, to no more effect");
    let done = bench.wait(1).remove(0);
    assert!(is_cancelled(&done));
    assert!(matches!(done.op, Some(HostOp::Call(_))));
    assert_eq!(bench.engine.cancel(first), Cancel::Done);
    assert_eq!(bench.wait(1)[0].result, Err(errno(libc::ETIMEDOUT)));
    // Neither has the lock.
    held.unlock().unwrap();
    lock_file(&path).try_lock().unwrap();
    assert_eq!(bench.run(flock(&path, libc::LOCK_EX)).result, Ok(0), "workers go on");
}

/// Cancelled at any moment of its way into the call: the signal may come just before it waits.
#[test]
fn a_cancel_reaches_a_call_at_any_moment() {
    let mut bench = Bench::new(8);
    let path = bench.path().join("lock");
    let held = lock_file(&path);
    held.lock().unwrap();
    for round in 0..seeds(100).end {
        let id = bench.start(flock(&path, libc::LOCK_EX));
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_micros(round % 100) {}
        assert_eq!(bench.engine.cancel(id), Cancel::Asked);
        assert!(is_cancelled(&bench.wait(1)[0]), "{round}");
    }
}

/// More calls that wait than there are workers, and then what ends their wait, and anything else that
/// needs a worker.
#[test]
fn calls_that_wait_for_ever_keep_no_other_waiting() {
    let options = EngineOptions { workers: 2, ..EngineOptions::depth(16) };
    let mut bench = Bench::new(8);
    bench.engine = Engine::new(options).unwrap();
    let path = bench.path().join("lock");
    let held = Descriptor::new(lock_file(&path));
    assert_eq!(bench.run(flock_of(&held, libc::LOCK_EX)).result, Ok(0));
    for _ in 0..6 {
        bench.start(flock(&path, libc::LOCK_SH));
    }
    std::thread::sleep(SHORT);
    let [mut from, to] = [b"copied".as_slice(), b""].map(|bytes| bench.file(bytes));
    std::io::Seek::rewind(&mut from).unwrap();
    let (from, to) = (Descriptor::new(from), Descriptor::new(to));
    let (from_offset, to_offset, len, flags) = (Some(0), Some(0), 6, 0);
    let copy = HostOp::Copy(Box::new(Between { from, from_offset, to, to_offset, len, flags }));
    assert_eq!(bench.run_other(copy).result, Ok(6));
    assert_eq!(bench.run_other(flock_of(&held, libc::LOCK_UN)).result, Ok(0));
    assert!(bench.wait(6).iter().all(|done| done.result == Ok(0)));
}

fn lock_file(path: &std::path::Path) -> std::fs::File {
    std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap()
}

fn flock_of(fd: &Descriptor, how: i32) -> HostOp {
    let arguments = vec![Argument::Descriptor(fd.clone()), Argument::Value(how as u64)];
    HostOp::Call(Box::new(Call::new(libc::SYS_flock, arguments).unwrap()))
}

fn flock(path: &std::path::Path, how: i32) -> HostOp {
    flock_of(&Descriptor::new(lock_file(path)), how)
}

#[test]
fn all_operations_on_a_descriptor_are_cancelled_and_no_others() {
    let mut bench = Bench::new(16);
    let (one_end, _keep) = std::io::pipe().unwrap();
    let owner: Arc<OwnedFd> = Arc::new(one_end.try_clone().unwrap().into());
    let one = Descriptor::from(Arc::clone(&owner));
    let (two, _two_end, mut writer) = pipe();
    for _ in 0..3 {
        bench.start(read(&one, 4));
    }
    bench.start(HostOp::Poll { fd: one.clone(), events: libc::POLLIN as u32, multishot: true });
    bench.start(read(&two, 4));
    bench.engine.commit();
    // By number: another descriptor of the same file is another.
    assert_eq!(bench.engine.cancel_descriptor(one_end.as_fd()), 0);
    assert_eq!(bench.engine.cancel_descriptor(owner.as_fd()), 4);
    let done = bench.wait(4);
    assert!(done.iter().all(is_cancelled));
    writer.write_all(b"data").unwrap();
    assert_eq!(bench.wait(1)[0].result, Ok(4));
    for _ in 0..5 {
        bench.start(HostOp::Sleep(host::PATIENCE));
    }
    assert_eq!(bench.engine.cancel_all(), 5);
    assert!(bench.wait(5).iter().all(is_cancelled));
}

#[test]
fn a_cancelled_close_comes_back_open() {
    let mut bench = Bench::new(8);
    let (reader, _writer) = std::io::pipe().unwrap();
    let id = bench.start(HostOp::Close { fd: Some(reader.into()) });
    assert_eq!(bench.engine.cancel(id), Cancel::Asked);
    let done = bench.wait(1).remove(0);
    match (done.result, done.op) {
        (Err(_), Some(HostOp::Close { fd })) => assert!(fd.is_some()),
        (Ok(_), Some(HostOp::Close { fd })) => assert!(fd.is_none()),
        other => panic!("{other:?}"),
    }
}

/// Each read of a pipe is either cancelled or gets bytes, never both and never neither: the bytes
/// read and those left in the pipe are all that were written.
#[test]
fn a_cancel_races_with_completion_and_each_is_decided_once() {
    for seed in seeds(4) {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bench = Bench::new(64);
        let (fd, mut reader, mut writer) = pipe();
        let (mut written, mut got, mut answers, mut started) = (0u64, 0u64, 0, 0);
        let mut ids = HashMap::new();
        let mut done = Vec::new();
        while started < 5000 {
            match random.u32(..10) {
                0..=3 if bench.engine.in_flight() < 64 => {
                    started += 1;
                    let id = bench.start(read(&fd, 1));
                    ids.insert(started, id);
                }
                4..=6 => {
                    if let Some(id) = ids.get(&random.u64(started.max(20) - 20..=started)) {
                        let _ = bench.engine.cancel(*id);
                    }
                }
                7 if written < got + 60_000 => {
                    writer.write_all(&[7]).unwrap();
                    written += 1;
                }
                8 => bench.engine.commit(),
                _ => {
                    bench.engine.poll(random.usize(1..64), &mut done);
                }
            }
            for done in done.drain(..) {
                answers += 1;
                match done.result {
                    Ok(1) => got += 1,
                    result => assert_eq!(result, Err(errno(libc::ECANCELED)), "seed {seed}"),
                }
            }
        }
        bench.engine.cancel_all();
        let left = bench.engine.in_flight();
        for done in bench.wait(left) {
            answers += 1;
            got += done.result.unwrap_or(0);
        }
        assert_eq!((answers, bench.engine.in_flight()), (started, 0), "seed {seed}");
        drop(writer);
        let mut rest = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut rest).unwrap();
        assert_eq!(got + rest.len() as u64, written, "seed {seed}");
    }
}

#[test]
fn a_thread_that_ends_does_not_take_its_operations_along() {
    let mut bench = Bench::new(16);
    let (fd, _reader, mut writer) = pipe();
    let file = Descriptor::new(bench.file(&[5; 4096]));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            bench.start(read(&fd, 10));
            bench.start(HostRequest::from(read(&fd, 10)).away());
            bench.start(HostOp::Sleep(SHORT * 5));
            let (memory, at) = (vec![0; 4096].into(), Position::At(0));
            let op = HostOp::Read { fd: file.clone(), memory, at, flags: 0 };
            bench.start(HostRequest::from(op).away());
            bench.engine.commit();
        });
    });
    let begin = Instant::now();
    writer.write_all(&[1; 20]).unwrap();
    let mut results: Vec<_> = bench.wait(4).iter().map(|done| done.result).collect();
    results.sort_unstable_by_key(|result| result.unwrap());
    assert_eq!(results, [Ok(0), Ok(10), Ok(10), Ok(4096)]);
    assert!(begin.elapsed() < host::PATIENCE / 2);
}

#[test]
fn ten_thousand_operations_are_in_flight_at_once() {
    const COUNT: usize = 10_000;
    let mut bench = Bench::new(COUNT);
    let (fd, _reader, mut writer) = pipe();
    for _ in 0..COUNT {
        bench.start(read(&fd, 1));
    }
    bench.engine.commit();
    assert_eq!(bench.engine.in_flight(), COUNT);
    let full = bench.engine.start(token(0), read(&fd, 1).into()).unwrap_err();
    assert_eq!(full.reason.errno(), libc::EAGAIN);
    let half = vec![1; COUNT / 2];
    writer.write_all(&half).unwrap();
    assert!(bench.wait(COUNT / 2).iter().all(|done| done.result == Ok(1)));
    assert_eq!(bench.engine.cancel_all(), COUNT / 2);
    assert!(bench.wait(COUNT / 2).iter().all(is_cancelled));
    assert_eq!(bench.engine.in_flight(), 0);
}

#[test]
fn an_engine_dropped_in_mid_flight_lets_go_of_everything() {
    let (fd, reader, mut writer) = pipe();
    drop(reader);
    let begin = Instant::now();
    {
        let mut bench = Bench::new(64);
        for at in 0..40 {
            bench.start(HostRequest::from(read(&fd, 1 << 16)).with_timeout(SHORT * at));
        }
        bench.start(HostOp::Sleep(host::PATIENCE * 9));
        let path = c"/proc/self/status".into();
        let call = Call::new(libc::SYS_truncate, vec![Argument::Path(path), Argument::Value(0)]);
        bench.start(HostOp::Call(Box::new(call.unwrap())));
        let sock = Descriptor::new(std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        bench.start(HostOp::Recv { fd: sock, memory: vec![0; 100].into(), flags: 0 });
        bench.engine.commit();
        // Some that were never committed, too.
        bench.start(read(&fd, 1 << 16));
    }
    assert!(begin.elapsed() < Duration::from_secs(10));
    // The pipe has no reader left but ours: after it, none.
    drop(fd);
    assert_eq!(writer.write(b"x").unwrap_err().raw_os_error(), Some(libc::EPIPE));
}

#[test]
fn neither_descriptors_nor_memory_are_left_behind() {
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    // Other tests of this program open and close descriptors meanwhile: what is left behind here
    // grows with the rounds, what they have does not.
    let round = || {
        let mut bench = Bench::new(32);
        let (fd, _reader, _writer) = pipe();
        let directory = uaio_core::host::Directory::Current;
        for _ in 0..8 {
            bench.start(read(&fd, 1 << 20));
            let (path, opened) = (c"/dev/null".into(), None);
            let directory = directory.clone();
            let open = uaio_core::host::Open { directory, path, flags: 0, mode: 0, opened };
            bench.start(HostOp::Open(Box::new(open)));
        }
        // Answered and never taken out, or taken and dropped: closed either way.
        bench.engine.commit_and_wait(SHORT);
        let mut done = Vec::new();
        bench.engine.poll(4, &mut done);
    };
    round();
    let (before, memory) = (open(), resident());
    for _ in 0..100 {
        round();
    }
    let (after, memory_after) = (open(), resident());
    assert!(after < before + 200, "{before} descriptors became {after}");
    assert!(memory_after < memory + (200 << 20), "{memory} bytes became {memory_after}");
}

fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn an_engine_of_one_thread_works_there() {
    let mut bench = Bench::new(8);
    let options = EngineOptions { owner: Owner::ThisThread, ..EngineOptions::depth(8) };
    bench.engine = Engine::new(options).unwrap();
    let (fd, _reader, mut writer) = pipe();
    bench.start(read(&fd, 10));
    bench.engine.commit();
    writer.write_all(b"ok").unwrap();
    assert_eq!(bench.wait(1)[0].result, Ok(2));
    let id = bench.start(read(&fd, 10));
    bench.engine.commit();
    bench.engine.cancel(id);
    assert!(is_cancelled(&bench.wait(1)[0]));
    let file: OwnedFd = bench.file(b"file").into();
    let op = HostOp::Read {
        fd: Descriptor::new(file),
        memory: vec![0; 8].into(),
        at: Position::At(0),
        flags: 0,
    };
    assert_eq!(bench.run(op).result, Ok(4));
}

#[test]
fn an_armed_engine_makes_its_descriptor_readable() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use uaio_driver::Armed;
    let mut bench = Bench::new(8);
    let readable = |bench: &Bench, wait: Duration| {
        let fd = bench.engine.event_fd();
        let timeout = Timespec::try_from(wait).unwrap();
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap() > 0
    };
    assert_eq!(bench.engine.arm(), Armed::Yes);
    let (fd, _reader, mut writer) = pipe();
    bench.start(read(&fd, 10));
    // Not committed: sleeping now would be for ever.
    assert_eq!(bench.engine.arm(), Armed::Ready);
    bench.engine.commit();
    assert_eq!(bench.engine.arm(), Armed::Yes);
    assert!(!readable(&bench, SHORT));
    writer.write_all(b"x").unwrap();
    assert!(readable(&bench, host::PATIENCE));
    assert_eq!(bench.engine.arm(), Armed::Ready);
    assert_eq!(bench.wait(1)[0].result, Ok(1));
    // A worker's answer, too.
    bench.start(HostOp::Call(Box::new(Call::new(libc::SYS_sync, Vec::new()).unwrap())));
    bench.engine.commit();
    assert!(readable(&bench, host::PATIENCE));
    assert_eq!(bench.wait(1)[0].result, Ok(0));
}
