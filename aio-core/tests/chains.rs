//! Links, timeouts, priorities, and what else a command on a volume can be.

mod common;

use std::time::{Duration, Instant};

use common::{SIZE, names, stack, with_thread};
use uaio_core::{
    Advice, Cancel, Context, ContextOptions, Event, Iocb, OpenOptions, Priority, Refusal,
    VolumeOptions,
};
use uaio_driver::{IoError, IoErrorKind};

const PAGE: usize = 4096;
const FAR: u64 = 128 * 1024;
const CANCELLED: Result<usize, IoError> = Err(IoError::new(IoErrorKind::Cancelled));
const TIMED_OUT: Result<usize, IoError> = Err(IoError::new(IoErrorKind::TimedOut));

fn events(context: &Context, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    let wait = Some(Duration::from_secs(20));
    assert_eq!(context.get_events(count, 1000, &mut events, wait), Ok(count));
    events
}

fn order(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.user_data).collect()
}

/// The sync covers the write, and its event comes after the write's.
#[test]
fn a_linked_sync_begins_when_the_write_is_done() {
    for threaded in [false, true] {
        let stack = stack(64, VolumeOptions::default());
        let handle = stack.volume.open(OpenOptions::default());
        let context = stack.reactor.context(ContextOptions::events(8)).unwrap();
        let test = || {
            for round in 0..20u8 {
                let write = Iocb::pwrite(&handle, u64::from(round) * FAR, vec![round; PAGE]);
                let chain = write.with_user_data(1).then(Iocb::fsync(&handle).with_user_data(2));
                let ticket = context.submit(chain).unwrap();
                let seen = events(&context, 2);
                assert_eq!(order(&seen), [1, 2]);
                assert!(seen.iter().all(|event| event.result.is_ok()));
                assert_eq!(stack.volume.cache().dirty_ranges(), []);
                assert!(uaio_core::suspend(&[(&context, ticket)], 1, None));
            }
        };
        if threaded { with_thread(&stack.reactor, test) } else { test() }
    }
}

#[test]
fn what_follows_a_failed_or_short_one_is_not_begun() {
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    let context = stack.reactor.context(ContextOptions::events(16)).unwrap();
    // Short: half of it is past the end.
    let short = Iocb::pread(&handle, SIZE - 100, vec![0; 200]).with_user_data(1);
    // Fails at once.
    let fails = Iocb::pwrite(&handle, SIZE, vec![0; 1]).with_user_data(1);
    for (first, result) in [(short, Ok(100)), (fails, Err(IoError::new(IoErrorKind::NoSpace)))] {
        let chain = first
            .then(Iocb::pwrite(&handle, 0, vec![66; 1]).with_user_data(2))
            .then(Iocb::fsync(&handle).with_user_data(3));
        let ticket = context.submit(chain).unwrap();
        let seen = events(&context, 3);
        assert_eq!(order(&seen), [1, 2, 3]);
        assert_eq!(seen[0].result, result);
        assert_eq!([seen[1].result, seen[2].result], [CANCELLED; 2]);
        assert_eq!(seen[1].buffers.len(), 1, "its memory comes back");
        assert!(context.is_over(ticket));
    }
    let mut byte = [1];
    handle.pread(&mut byte, 0).unwrap();
    assert_eq!(byte, [0], "the write was begun");
    assert_eq!(context.outstanding(), 0);
}

#[test]
fn cancelling_a_chain_ends_what_has_not_been_done() {
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions { direct: true, dsync: false });
    let context = stack.reactor.context(ContextOptions::events(8)).unwrap();
    stack.gate.stick(true);
    let chain = Iocb::pwrite(&handle, 0, vec![1; PAGE])
        .with_user_data(1)
        .then(Iocb::pwrite(&handle, FAR, vec![2; PAGE]).with_user_data(2))
        .then(Iocb::fsync(&handle).with_user_data(3));
    let ticket = context.submit(chain).unwrap();
    assert_eq!(context.cancel(ticket), Cancel::InProgress);
    stack.gate.stick(false);
    let seen = events(&context, 3);
    assert_eq!(order(&seen), [1, 2, 3]);
    assert_eq!(seen[0].result, Ok(PAGE), "the device was at it");
    assert_eq!([seen[1].result, seen[2].result], [CANCELLED; 2]);
}

#[test]
fn a_chain_has_all_its_slots_or_is_refused_whole() {
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    let direct = stack.volume.open(OpenOptions { direct: true, dsync: false });
    let context = stack.reactor.context(ContextOptions::events(2)).unwrap();
    let write = || Iocb::pwrite(&handle, 0, vec![1; 9]);
    let refused = context.submit(write().then(write()).then(write())).unwrap_err();
    assert_eq!(refused.reason, Refusal::NoSlot);
    // One of it is not possible: none of it is done.
    let refused = context.submit(write().then(Iocb::pread(&direct, 1, vec![0; 1]))).unwrap_err();
    assert_eq!(refused.reason, Refusal::Invalid);
    context.submit(write().then(write())).unwrap();
    assert_eq!(events(&context, 2).len(), 2);
    // Long ones take no stack: neither in progress nor when they are dropped.
    let long = (0..50_000).fold(write(), |chain, _| chain.then(write()));
    let refused = context.submit(long).unwrap_err();
    drop(refused);
    let wide = stack.reactor.context(ContextOptions::events(50_001)).unwrap();
    let long = (0..50_000).fold(write(), |chain, _| chain.then(write()));
    wide.submit(long).unwrap();
    let mut seen = Vec::new();
    assert_eq!(wide.get_events(50_001, 60_000, &mut seen, None), Ok(50_001));
    assert!(seen.iter().all(|event| event.result == Ok(9)));
}

#[test]
fn a_timeout_ends_a_read_that_the_device_holds_back_and_one_that_waits_to_be_started() {
    for threaded in [false, true] {
        let few = VolumeOptions { operations: 1, ..VolumeOptions::default() };
        let stack = stack(64, few);
        let handle = stack.volume.open(OpenOptions::default());
        let context = stack.reactor.context(ContextOptions::events(8)).unwrap();
        let test = || {
            stack.gate.stick(true);
            let start = Instant::now();
            let waits = [40, 10].map(Duration::from_millis);
            for (name, wait) in waits.into_iter().enumerate() {
                let read = Iocb::pread(&handle, name as u64 * FAR, vec![0; PAGE]);
                context.submit(read.with_timeout(wait).with_user_data(name as u64)).unwrap();
            }
            let seen = events(&context, 1);
            assert_eq!((seen[0].user_data, seen[0].result), (1, TIMED_OUT), "the queued one");
            assert!(start.elapsed() >= waits[1]);
            let seen = events(&context, 1);
            assert_eq!((seen[0].user_data, seen[0].result), (0, TIMED_OUT));
            assert!(start.elapsed() >= waits[0]);
            assert_eq!(seen[0].buffers.len(), PAGE);
            stack.gate.stick(false);
            // One that is done in time is not touched.
            let read = Iocb::pread(&handle, 2 * FAR, vec![0; PAGE]);
            context.submit(read.with_timeout(Duration::from_secs(30))).unwrap();
            assert_eq!(events(&context, 1)[0].result, Ok(PAGE));
        };
        if threaded { with_thread(&stack.reactor, test) } else { test() }
    }
}

/// What waits is started by class, first in first out in each, and the lowest class gets its share.
#[test]
fn priorities_order_what_waits_and_nobody_starves() {
    let few = VolumeOptions { operations: 1, inbox: 200, ..VolumeOptions::default() };
    let stack = stack(64, few);
    let handle = stack.volume.open(OpenOptions { direct: true, dsync: false });
    let context = stack.reactor.context(ContextOptions::events(200)).unwrap();
    stack.gate.stick(true);
    let classes = [Priority::Idle, Priority::BestEffort, Priority::RealTime];
    context.submit(Iocb::pread(&handle, 0, vec![0; PAGE]).with_user_data(999)).unwrap();
    for name in 0..60u64 {
        let priority = classes[name as usize % 3];
        let read = Iocb::pread(&handle, 0, vec![0; PAGE]).with_priority(priority);
        context.submit(read.with_user_data(name)).unwrap();
    }
    stack.gate.stick(false);
    let seen = order(&events(&context, 61));
    let of = |class: u64| seen.iter().copied().filter(move |name| *name < 99 && name % 3 == class);
    for class in 0..3 {
        assert!(of(class).is_sorted(), "first in, first out in its class");
    }
    let place = |name: u64| seen.iter().position(|seen| *seen == name).unwrap();
    // Real time before the others, but for one in sixteen.
    assert!(of(2).map(place).max() < Some(24), "{seen:?}");
    assert!(place(0) <= 16, "the lowest class starves: {seen:?}");
}

#[test]
fn discards_and_zeroes_are_in_whole_blocks_inside_the_volume() {
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    let context = stack.reactor.context(ContextOptions::events(8)).unwrap();
    handle.pwrite(&[7; 3 * PAGE], 0).unwrap();
    for bad in [
        Iocb::write_zeroes(&handle, 1, 512),
        Iocb::discard(&handle, 0, 100),
        Iocb::write_zeroes(&handle, SIZE - 512, 1024),
        Iocb::discard(&handle, u64::MAX - 511, 512),
        Iocb::sync_range(&handle, u64::MAX, 2),
        Iocb::pread(&handle, i64::MAX as u64, vec![0; 1]),
        Iocb::pread(&handle, u64::MAX, vec![0; 1]),
    ] {
        let refused = context.submit(bad).unwrap_err();
        assert_eq!(refused.reason.errno(), 22, "EINVAL");
    }
    let chain = Iocb::write_zeroes(&handle, 512, 1024)
        .with_user_data(1)
        .then(Iocb::sync_range(&handle, 0, 4096).with_user_data(2))
        .then(Iocb::pread(&handle, 0, vec![1; 2048]).with_user_data(3))
        .then(Iocb::discard(&handle, 4096, 4096).with_user_data(4));
    context.submit(chain).unwrap();
    let seen = events(&context, 4);
    assert_eq!(names(&seen), [1, 2, 3, 4]);
    assert!(seen.iter().all(|event| event.result.is_ok()), "{seen:?}");
    let bytes = seen.into_iter().nth(2).unwrap().buffers.into_bytes();
    assert!(bytes[..512].iter().chain(&bytes[1536..]).all(|byte| *byte == 7));
    assert_eq!(bytes[512..1536], [0; 1024]);
}

/// Cold pages are there when the event is; those that are there take no device; the end cuts it.
#[test]
fn readahead_is_done_when_the_pages_are_there() {
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    let context = stack.reactor.context(ContextOptions::events(8)).unwrap();
    stack.gate.stick(true);
    context.submit(Iocb::readahead(&handle, 100, 8 * PAGE as u64)).unwrap();
    let mut seen = Vec::new();
    let short = Some(Duration::from_millis(10));
    assert_eq!(context.get_events(1, 8, &mut seen, short), Ok(0), "before the device was asked");
    stack.gate.stick(false);
    assert_eq!(events(&context, 1)[0].result, Ok(8 * PAGE));
    stack.gate.stick(true);
    assert_eq!(handle.pread(&mut [0; 8 * PAGE], 100), Ok(8 * PAGE));
    context.submit(Iocb::readahead(&handle, 0, 9 * PAGE as u64)).unwrap();
    assert_eq!(context.get_events(0, 8, &mut seen, None), Ok(1), "all is there, so at once");
    stack.gate.stick(false);
    context.submit(Iocb::readahead(&handle, SIZE - 100, 4096)).unwrap();
    context.submit(Iocb::readahead(&handle, SIZE, 4096)).unwrap();
    let mut seen: Vec<_> =
        events(&context, 2).into_iter().map(|event| event.result.unwrap()).collect();
    seen.sort_unstable();
    assert_eq!(seen, [0, 100], "the last did not wait for the device");
}

/// A handle that is advised of random reads brings nothing in beyond them; one of sequential reads
/// does from the first on.
#[test]
fn advice_is_the_handles_own() {
    for (advice, more) in [(Advice::Random, false), (Advice::Sequential, true)] {
        let stack = stack(256, VolumeOptions::default());
        let handle = stack.volume.open(OpenOptions::default());
        handle.advise(0..SIZE, advice);
        for page in 0..4 {
            handle.pread(&mut [0; PAGE], page * PAGE as u64).unwrap();
        }
        while stack.reactor.turn() {}
        let there = (4..8).filter(|page| handle.try_pin(page * PAGE as u64).is_some()).count();
        assert_eq!(there > 0, more, "{advice:?}");
    }
}
