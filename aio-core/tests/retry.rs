//! The two halves of every operation, and what happens between them.

mod common;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{names, stack, with_thread};
use uaio_core::{Context, ContextOptions, Event, Handle, Iocb, OpenOptions, VolumeOptions};

const PAGE: usize = 4096;
const FAR: u64 = 128 * 1024;
const DSYNC: OpenOptions = OpenOptions { direct: false, dsync: true };

fn events(context: &Context, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    let wait = Some(Duration::from_secs(20));
    assert_eq!(context.get_events(count, 1000, &mut events, wait), Ok(count));
    events.sort_by_key(|event| event.user_data);
    events
}

/// Every command there is, by name.
fn every_command(handle: &Handle) -> Vec<Iocb> {
    let offset = 3 * FAR;
    vec![
        Iocb::pwrite(handle, offset, vec![1; PAGE]),
        Iocb::pwritev(handle, offset + 100, vec![vec![2; 10], vec![3; 20]]),
        Iocb::pread(handle, offset, vec![0; PAGE]),
        Iocb::preadv(handle, offset, vec![vec![0; 10], vec![0; 500]]),
        Iocb::readahead(handle, offset, FAR),
        Iocb::fsync(handle),
        Iocb::fdatasync(handle),
        Iocb::sync_range(handle, offset, PAGE as u64),
        Iocb::write_zeroes(handle, offset, PAGE as u64),
        Iocb::discard(handle, offset, PAGE as u64),
    ]
}

/// Asynchronous, and as a call: the same iocb, the same submit, and for the call a wait at its end.
#[test]
fn submit_and_complete_are_the_two_halves_of_every_operation() {
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    let context = stack.reactor.context(ContextOptions::events(16)).unwrap();
    for (name, iocb) in (0u64..).zip(every_command(&handle)) {
        let ticket = context.submit(iocb.with_user_data(name)).unwrap();
        assert!(uaio_core::suspend(&[(&context, ticket)], 1, None));
    }
    let halves: Vec<_> = events(&context, 10).into_iter().map(|event| event.result).collect();
    assert!(halves.iter().all(Result::is_ok), "{halves:?}");
    for (iocb, result) in every_command(&handle).into_iter().zip(halves) {
        context.submit(iocb).unwrap();
        assert_eq!(events(&context, 1)[0].result, result, "with a wait at its end");
    }
    assert_eq!(handle.pwrite(&[1; PAGE], 3 * FAR), Ok(PAGE));
    assert_eq!(handle.pread(&mut [0; PAGE], 3 * FAR), Ok(PAGE));
    assert_eq!(handle.fsync(), Ok(()));
}

/// Cold, partly cached, read-modify-write, stable, sync, and more writes than there are frames: the
/// device answers nothing, and every submit returns. Then every one of them is right.
#[test]
fn buffered_operations_that_need_the_device_never_block_the_submitter() {
    for threaded in [false, true] {
        let stack = stack(64, VolumeOptions::default());
        let handle = stack.volume.open(OpenOptions::default());
        let stable = stack.volume.open(DSYNC);
        let context = stack.reactor.context(ContextOptions::events(400)).unwrap();
        handle.pwrite(&[9; PAGE], FAR).unwrap();
        handle.fsync().unwrap();
        let test = || {
            stack.gate.stick(true);
            let mut longest = Duration::ZERO;
            let mut count = 0;
            let mut submit = |iocb: Iocb| {
                let start = Instant::now();
                context.submit(iocb.with_user_data(count)).unwrap();
                longest = longest.max(start.elapsed());
                count += 1;
            };
            submit(Iocb::pread(&handle, 0, vec![1; PAGE]));
            submit(Iocb::pread(&handle, FAR, vec![1; 2 * PAGE]));
            submit(Iocb::pwrite(&handle, 2 * FAR + 7, vec![2; 10]));
            submit(Iocb::pwrite(&stable, 3 * FAR, vec![3; PAGE]));
            submit(Iocb::fsync(&handle));
            (0..150).for_each(|page| {
                submit(Iocb::pwrite(&handle, 4 * FAR + page * 4096, vec![page as u8; PAGE]));
            });
            // Anything that waits for the device waits for ever; this only excludes that.
            assert!(longest < Duration::from_secs(5), "submit took {longest:?}");
            stack.gate.stick(false);
            let seen = events(&context, count as usize);
            assert_eq!(names(&seen), (0..count).collect::<Vec<_>>());
            assert!(seen.iter().all(|event| event.result.is_ok()));
            let mut seen = seen.into_iter().map(|event| event.buffers.into_bytes());
            assert_eq!(seen.next(), Some(vec![0; PAGE]));
            assert_eq!(seen.next(), Some([vec![9; PAGE], vec![0; PAGE]].concat()));
            let mut bytes = [0; PAGE];
            handle.pread(&mut bytes, 2 * FAR).unwrap();
            assert_eq!((bytes[6], &bytes[7..17], bytes[17]), (0, &[2; 10][..], 0));
            for page in 0..150 {
                handle.pread(&mut bytes, 4 * FAR + page * 4096).unwrap();
                assert_eq!(bytes, [page as u8; PAGE]);
            }
        };
        if threaded { with_thread(&stack.reactor, test) } else { test() }
    }
}

#[test]
fn many_syncs_at_once_share_one_flush() {
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    let context = stack.reactor.context(ContextOptions::events(200)).unwrap();
    handle.pwrite(&[1; PAGE], 0).unwrap();
    stack.gate.stick(true);
    for name in 0..100u64 {
        let sync = match name % 3 {
            0 => Iocb::fsync(&handle),
            1 => Iocb::fdatasync(&handle),
            _ => Iocb::sync_range(&handle, 0, PAGE as u64),
        };
        context.submit(sync.with_user_data(name)).unwrap();
    }
    for _ in 0..100 {
        stack.reactor.turn();
    }
    assert_eq!(context.outstanding(), 100, "none is done before the device");
    stack.gate.stick(false);
    let seen = events(&context, 100);
    assert!(seen.iter().all(|event| event.result == Ok(0)));
    assert_eq!(stack.volume.cache().dirty_ranges(), []);
    // The first may have gone before the others came; all those share the next.
    let flushes = stack.gate.flushes.load(Ordering::SeqCst);
    assert!((1..=2).contains(&flushes), "{flushes} flushes for 100 syncs");
}
