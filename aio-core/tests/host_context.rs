//! The host behind the same iocbs, contexts and events.

mod common;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{names, stack, with_thread};
use uaio_core::host::{Argument, Call, Descriptor, HostOp, Memory, Position};
use uaio_core::{
    Cancel, Context, ContextOptions, Event, Host, HostOptions, Iocb, OpenOptions, Reactor,
    VolumeOptions,
};
use uaio_driver::IoErrorKind;

const ECANCELED: i32 = 125;

fn events(context: &Context, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    let wait = Some(Duration::from_secs(20));
    assert_eq!(context.get_events(count, 20_000, &mut events, wait), Ok(count));
    events.sort_by_key(|event| event.user_data);
    events
}

fn read(host: &Host, fd: &Descriptor, len: usize) -> Iocb {
    let memory = Memory::from(vec![0; len]);
    let (fd, at) = (fd.clone(), Position::Current);
    Iocb::host(host, HostOp::Read { fd, memory, at, flags: 0 })
}

fn write(host: &Host, fd: &Descriptor, bytes: &[u8]) -> Iocb {
    let memory = Memory::from(bytes.to_vec());
    let (fd, at) = (fd.clone(), Position::Current);
    Iocb::host(host, HostOp::Write { fd, memory, at, flags: 0 })
}

fn bytes(event: Event) -> Vec<u8> {
    match event.buffers.into_host() {
        Some(HostOp::Read { memory, .. }) => memory.into_vec(),
        other => panic!("a read brings its memory back, not {other:?}"),
    }
}

fn turn(reactor: &Reactor, times: usize) {
    for _ in 0..times {
        reactor.turn();
    }
}

fn pipe() -> (Descriptor, Descriptor) {
    let (reader, writer) = std::io::pipe().unwrap();
    (Descriptor::new(reader), Descriptor::new(writer))
}

/// A read that waits in a pipe, a write into it, a read of a volume: one context, with a thread that
/// turns and without.
#[test]
fn a_descriptor_and_a_volume_share_a_context() {
    for threaded in [false, true] {
        let stack = stack(64, VolumeOptions::default());
        let host = stack.reactor.attach_host(HostOptions::default()).unwrap();
        let handle = stack.volume.open(OpenOptions::default());
        let context = stack.reactor.context(ContextOptions::events(8)).unwrap();
        let test = || {
            let (reader, writer) = pipe();
            context.submit(read(&host, &reader, 10).with_user_data(1)).unwrap();
            context.submit(Iocb::pread(&handle, 0, vec![1; 100]).with_user_data(2)).unwrap();
            assert_eq!(events(&context, 1)[0].user_data, 2);
            assert_eq!(context.outstanding(), 1);
            context.submit(write(&host, &writer, b"hello").with_user_data(3)).unwrap();
            let mut seen = events(&context, 2);
            assert_eq!(names(&seen), [1, 3]);
            assert!(seen.iter().all(|event| event.result == Ok(5) && !event.more));
            assert_eq!(bytes(seen.swap_remove(0))[..5], *b"hello");
        };
        if threaded { with_thread(&stack.reactor, test) } else { test() }
    }
}

#[test]
fn an_errno_of_the_host_comes_as_it_is() {
    let stack = stack(64, VolumeOptions::default());
    let host = stack.reactor.attach_host(HostOptions::default()).unwrap();
    let context = stack.reactor.context(ContextOptions::events(8)).unwrap();
    let (reader, writer) = pipe();
    context.submit(write(&host, &reader, b"x")).unwrap();
    let error = events(&context, 1)[0].result.unwrap_err();
    assert_eq!((error.kind, error.errno()), (IoErrorKind::Host, 9), "EBADF, not EROFS");
    drop(reader);
    let _ = writer;
}

#[test]
fn what_waits_at_a_descriptor_is_cancelled_by_ticket_by_descriptor_and_by_context() {
    let stack = stack(64, VolumeOptions::default());
    let host = stack.reactor.attach_host(HostOptions::default()).unwrap();
    let contexts =
        [8, 8].map(|slots| stack.reactor.context(ContextOptions::events(slots)).unwrap());
    let (ours, _ours) = pipe();
    let (theirs, _theirs) = pipe();
    let ticket = contexts[0].submit(read(&host, &ours, 8).with_user_data(1)).unwrap();
    for (context, fd, name) in [(0, &ours, 2), (1, &ours, 3), (0, &theirs, 4), (1, &theirs, 5)] {
        contexts[context].submit(read(&host, fd, 8).with_user_data(name)).unwrap();
    }
    assert_ne!(contexts[0].cancel(ticket), Cancel::Over);
    let seen = events(&contexts[0], 1);
    assert_eq!((seen[0].user_data, seen[0].result.unwrap_err().errno()), (1, ECANCELED));
    let held = seen.into_iter().next().and_then(|event| event.buffers.into_host());
    let fd = held.as_ref().and_then(HostOp::descriptor).unwrap();
    assert_eq!(host.cancel_descriptor(fd), 2);
    assert_eq!(names(&events(&contexts[0], 1)), [2]);
    assert_eq!(names(&events(&contexts[1], 1)), [3]);
    assert_eq!(contexts[1].cancel_all(), 1);
    assert_eq!(names(&events(&contexts[1], 1)), [5]);
    assert_eq!(contexts[0].outstanding(), 1);
    // The last one goes with its context, which does not wait for the pipe.
    let start = Instant::now();
    drop(contexts);
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_timeout_ends_what_waits_at_a_descriptor() {
    let stack = stack(64, VolumeOptions::default());
    let host = stack.reactor.attach_host(HostOptions::default()).unwrap();
    let context = stack.reactor.context(ContextOptions::events(8)).unwrap();
    let (reader, _writer) = pipe();
    let start = Instant::now();
    let wait = Duration::from_millis(20);
    context.submit(read(&host, &reader, 8).with_timeout(wait)).unwrap();
    let seen = events(&context, 1);
    assert_eq!(seen[0].result.unwrap_err().kind, IoErrorKind::TimedOut);
    assert!(start.elapsed() >= wait);
}

/// A write to a pipe, then one to a volume, then its sync: each begins when the one before is done.
#[test]
fn a_chain_goes_from_the_host_to_a_volume_and_back() {
    let stack = stack(64, VolumeOptions::default());
    let host = stack.reactor.attach_host(HostOptions::default()).unwrap();
    let handle = stack.volume.open(OpenOptions::default());
    let context = stack.reactor.context(ContextOptions::events(8)).unwrap();
    let (reader, writer) = pipe();
    let chain = read(&host, &reader, 2)
        .with_user_data(1)
        .then(Iocb::pwrite(&handle, 0, vec![5; 4096]).with_user_data(2))
        .then(Iocb::fsync(&handle).with_user_data(3))
        .then(write(&host, &writer, b"done").with_user_data(4));
    let ticket = context.submit(chain).unwrap();
    let mut none = Vec::new();
    let wait = Some(Duration::from_millis(10));
    assert_eq!(context.get_events(1, 8, &mut none, wait), Ok(0));
    context.submit(write(&host, &writer, b"go").with_user_data(0)).unwrap();
    let seen = events(&context, 5);
    assert_eq!(names(&seen), [0, 1, 2, 3, 4]);
    assert!(seen.iter().all(|event| event.result.is_ok()), "{seen:?}");
    assert!(context.is_over(ticket));
    assert_eq!(stack.volume.cache().dirty_ranges(), []);
}

/// A multishot poll gives an event for each time, and ends with one that says so when the context has
/// no slot left for it.
#[test]
fn a_multishot_poll_has_an_event_each_time_and_ends_when_there_is_no_slot() {
    let stack = stack(64, VolumeOptions::default());
    let host = stack.reactor.attach_host(HostOptions::default()).unwrap();
    let context = stack.reactor.context(ContextOptions::events(3)).unwrap();
    let notice = uaio_core::NoticeFd::new().unwrap();
    let fd = Descriptor::new(notice.as_fd().try_clone_to_owned().unwrap());
    let poll = HostOp::Poll { fd, events: 1, multishot: true };
    let ticket = context.submit(Iocb::host(&host, poll)).unwrap();
    for _ in 0..4 {
        rustix::io::write(&notice, &1u64.to_ne_bytes()).unwrap();
        let seen = events(&context, 1);
        assert_eq!((seen[0].result, seen[0].more), (Ok(1), true));
        notice.take();
    }
    // Nobody takes these: two fit beside the slot of the poll itself, which has the last.
    for _ in 0..4 {
        rustix::io::write(&notice, &1u64.to_ne_bytes()).unwrap();
        turn(&stack.reactor, 50);
        notice.take();
    }
    let seen = events(&context, 3);
    let more: Vec<bool> = seen.iter().map(|event| event.more).collect();
    assert_eq!(more, [true, true, false]);
    assert!(context.is_over(ticket));
    assert_eq!(context.outstanding(), 0);
}

/// Ten thousand reads in flight, each of a pipe that has nothing yet; then all of them are answered.
#[test]
fn ten_thousand_in_flight() {
    const COUNT: usize = 10_000;
    let stack = stack(64, VolumeOptions::default());
    let options = HostOptions { operations: COUNT + 1, ..HostOptions::default() };
    let host = stack.reactor.attach_host(options).unwrap();
    let context = stack.reactor.context(ContextOptions::events(COUNT + 1)).unwrap();
    let (reader, writer) = pipe();
    for name in 0..COUNT as u64 {
        context.submit(read(&host, &reader, 1).with_user_data(name)).unwrap();
    }
    turn(&stack.reactor, 100);
    assert_eq!(context.outstanding(), COUNT);
    context.submit(write(&host, &writer, &[7; COUNT]).with_user_data(u64::MAX)).unwrap();
    let seen = events(&context, COUNT + 1);
    assert_eq!(names(&seen)[..COUNT], (0..COUNT as u64).collect::<Vec<_>>());
    let moved: usize = seen.iter().map(|event| event.result.unwrap()).sum();
    assert_eq!(moved, 2 * COUNT);
}

#[test]
fn closing_the_reactor_cancels_what_waits_at_the_host() {
    let stack = stack(64, VolumeOptions::default());
    let host = stack.reactor.attach_host(HostOptions::default()).unwrap();
    let context = Arc::new(stack.reactor.context(ContextOptions::events(8)).unwrap());
    let (reader, _writer) = pipe();
    context.submit(read(&host, &reader, 8)).unwrap();
    stack.reactor.close().unwrap();
    assert_eq!(events(&context, 1)[0].result.unwrap_err().kind, IoErrorKind::Cancelled);
    let refused = context.submit(read(&host, &reader, 8)).unwrap_err();
    assert_eq!(refused.reason.errno(), 19, "ENODEV");
}

fn flock(host: &Host, path: &std::path::Path) -> Iocb {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    let fd = Argument::Descriptor(Descriptor::new(file));
    let how = Argument::Value(libc::LOCK_EX as u64);
    let call = Call::new(libc::SYS_flock, vec![fd, how]).unwrap();
    Iocb::host(host, HostOp::Call(Box::new(call)))
}

/// A call that waits for ever at a worker is interrupted with its context, and with its reactor.
#[test]
fn a_context_and_a_reactor_go_while_a_call_waits_for_ever() {
    let path = std::env::temp_dir().join(format!("uaio-flock-{}", std::process::id()));
    let held = std::fs::File::create(&path).unwrap();
    held.lock().unwrap();
    let stack = stack(16, VolumeOptions::default());
    let host = stack.reactor.attach_host(HostOptions::default()).unwrap();
    let context = stack.reactor.context(ContextOptions::events(8)).unwrap();
    for _ in 0..6 {
        context.submit(flock(&host, &path)).unwrap();
    }
    drop(context);
    let context = stack.reactor.context(ContextOptions::events(8)).unwrap();
    for data in 0..6 {
        context.submit(flock(&host, &path).with_user_data(data)).unwrap();
    }
    // Cancelled by its deadline, too.
    stack.reactor.close().unwrap();
    let seen = events(&context, 6);
    let errno = |event: &Event| event.result.unwrap_err().errno();
    assert!(seen.iter().all(|event| errno(event) == ECANCELED), "{seen:?}");
    std::fs::remove_file(path).unwrap();
}

/// How often this thread has gone to sleep in the kernel.
fn sleeps() -> i64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

/// Every write makes the file longer, needs blocks for that, and is to be stable: whoever did that in the
/// submitter's thread would sleep each time.
#[test]
fn writes_that_extend_and_allocate_on_a_file_never_block_the_submitter() {
    const COUNT: usize = 200;
    const LEN: usize = 64 << 10;
    let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = directory.join(format!("extended-{}", std::process::id()));
    let file = std::fs::File::create_new(&path).unwrap();
    let stack = stack(16, VolumeOptions::default());
    let host = stack.reactor.attach_host(HostOptions::default()).unwrap();
    let context = stack.reactor.context(ContextOptions::events(COUNT + 1)).unwrap();
    let fd = Descriptor::new(file.try_clone().unwrap());
    let write = |number: usize| {
        let (fd, at) = (fd.clone(), Position::At((number * LEN) as u64));
        let memory = Memory::from(vec![number as u8; LEN]);
        Iocb::host(&host, HostOp::Write { fd, memory, at, flags: libc::RWF_DSYNC })
    };
    let iocbs: Vec<_> = (0..COUNT).map(write).collect();
    with_thread(&stack.reactor, || {
        let before = sleeps();
        for (number, iocb) in iocbs.into_iter().enumerate() {
            context.submit(iocb.with_user_data(number as u64)).unwrap();
        }
        let slept = sleeps() - before;
        let seen = events(&context, COUNT);
        assert!(seen.iter().all(|event| event.result == Ok(LEN)));
        // A lock of the kernel's may be taken now and then, but no write is waited for.
        assert!(slept < COUNT as i64 / 10, "{slept} of {COUNT} submissions slept");
        let allocate = HostOp::Fallocate { fd: fd.clone(), mode: 0, offset: 0, len: 64 << 20 };
        context.submit(Iocb::host(&host, allocate)).unwrap();
        assert_eq!(events(&context, 1)[0].result, Ok(0));
    });
    let contents = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(contents.len(), 64 << 20);
    for (number, record) in contents.chunks(LEN).take(COUNT).enumerate() {
        assert!(record.iter().all(|byte| *byte == number as u8), "record {number}");
    }
}
