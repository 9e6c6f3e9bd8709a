//! Each contract of the crate page, by its name.

mod common;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{SIZE, names, stack, with_thread};
use uaio_core::{
    BUFFERS_MAX, CallError, ContextOptions, Event, Iocb, OpenOptions, Refusal, VolumeOptions,
};
use uaio_driver::IoErrorKind;

const PAGE: usize = 4096;
const DIRECT: OpenOptions = OpenOptions { direct: true, dsync: false };

fn options() -> VolumeOptions {
    VolumeOptions::default()
}

/// A device that answers nothing: submit returns, with a thread that turns and without, also when
/// more is submitted than is done at once, and get_events returns when its time is up.
#[test]
fn submit_never_blocks() {
    let few = VolumeOptions { operations: 4, inbox: 8, ..options() };
    for threaded in [false, true] {
        let stack = stack(64, few);
        let handle = stack.volume.open(OpenOptions::default());
        let context = stack.reactor.context(ContextOptions::events(32)).unwrap();
        stack.gate.stick(true);
        let test = || {
            let mut taken = 0;
            let mut longest = Duration::ZERO;
            let refused = loop {
                let iocb = Iocb::pread(&handle, taken * PAGE as u64, vec![0; PAGE]);
                let start = Instant::now();
                let submitted = context.submit(iocb.with_user_data(taken));
                longest = longest.max(start.elapsed());
                match submitted {
                    Ok(_) => taken += 1,
                    Err(refused) => break refused,
                }
            };
            assert_eq!(refused.reason, Refusal::Busy);
            assert_eq!(taken, 4 + 8, "what is done at once, and the inbox");
            // Anything that waits for the device waits for ever; this only excludes that.
            assert!(longest < Duration::from_secs(5), "submit took {longest:?}");
            let mut events = Vec::new();
            let start = Instant::now();
            let wait = Duration::from_millis(30);
            assert_eq!(context.get_events(1, 8, &mut events, Some(wait)), Ok(0));
            assert!(start.elapsed() >= wait, "it came back early");
            stack.gate.stick(false);
            context.get_events(12, 32, &mut events, None).unwrap();
            assert_eq!(names(&events), (0..12).collect::<Vec<_>>());
            context.submit(refused.iocb).unwrap();
            context.get_events(1, 32, &mut events, None).unwrap();
            assert_eq!(events[12].user_data, 12);
            assert!(events.iter().all(|event| event.result == Ok(PAGE)));
        };
        if threaded {
            with_thread(&stack.reactor, test);
        } else {
            test();
        }
    }
}

#[test]
fn a_context_without_a_free_slot_hands_the_iocb_back_whole() {
    let stack = stack(64, options());
    let handle = stack.volume.open(OpenOptions::default());
    let context = stack.reactor.context(ContextOptions::events(1)).unwrap();
    context.submit(Iocb::pwrite(&handle, 0, vec![1; 512])).unwrap();
    let refused =
        context.submit(Iocb::pwrite(&handle, 5, vec![7; 9]).with_user_data(3)).unwrap_err();
    assert_eq!(refused.reason, Refusal::NoSlot);
    assert_eq!(refused.reason.errno(), 11, "EAGAIN");
    // An event that was not taken out holds its slot.
    assert_eq!(context.outstanding(), 0);
    let mut events = Vec::new();
    assert_eq!(context.get_events(1, 1, &mut events, None), Ok(1));
    context.submit(refused.iocb).unwrap();
    context.get_events(1, 1, &mut events, None).unwrap();
    assert_eq!((events[1].user_data, events[1].result), (3, Ok(9)));
}

#[test]
fn get_events_keeps_to_min_max_and_timeout() {
    let stack = stack(64, options());
    let handle = stack.volume.open(OpenOptions::default());
    let context = stack.reactor.context(ContextOptions::events(8)).unwrap();
    let mut events: Vec<Event> = Vec::new();
    let forever = None;
    assert!(context.get_events(2, 1, &mut events, forever).is_err(), "EINVAL");
    assert_eq!(context.get_events(0, 8, &mut events, forever), Ok(0), "min 0 does not wait");
    assert_eq!(context.get_events(0, 0, &mut events, forever), Ok(0));
    assert_eq!(context.get_events(3, 8, &mut events, Some(Duration::ZERO)), Ok(0));
    for name in 0..5 {
        context
            .submit(Iocb::pwrite(&handle, name * 100, vec![0; 50]).with_user_data(name))
            .unwrap();
    }
    assert_eq!(context.get_events(1, 2, &mut events, forever), Ok(2), "no more than max");
    // Fewer than min when time is up, and those it has.
    let start = Instant::now();
    let wait = Duration::from_millis(20);
    assert_eq!(context.get_events(4, 8, &mut events, Some(wait)), Ok(3));
    assert!(start.elapsed() >= wait);
    assert_eq!(names(&events), [0, 1, 2, 3, 4]);
}

#[test]
fn a_cached_read_is_answered_in_the_submitters_thread() {
    let stack = stack(64, options());
    let handle = stack.volume.open(OpenOptions::default());
    handle.pwrite(&[9; 3 * PAGE], 0).unwrap();
    stack.gate.stick(true);
    let context = stack.reactor.context(ContextOptions::events(4)).unwrap();
    let before = stack.volume.cache().stats();
    context.submit(Iocb::pread(&handle, 100, vec![0; 2 * PAGE])).unwrap();
    context.submit(Iocb::preadv(&handle, 4000, vec![vec![0; 50], vec![], vec![0; 100]])).unwrap();
    assert_eq!(context.outstanding(), 0, "the events are there");
    let mut events = Vec::new();
    context.get_events(2, 2, &mut events, Some(Duration::ZERO)).unwrap();
    assert_eq!(events.remove(0).buffers.into_bytes(), vec![9; 2 * PAGE]);
    let pieces = events.remove(0).buffers.into_pieces();
    assert_eq!(pieces, [vec![9; 50], vec![], vec![9; 100]]);
    assert_eq!(stack.volume.cache().stats().misses, before.misses);
    stack.gate.stick(false);
}

/// One event, one notice: after each event the eventfd's value is one more, and the event is there
/// before it.
#[test]
fn the_eventfd_counts_events() {
    let stack = stack(64, options());
    let handle = stack.volume.open(OpenOptions::default());
    let with_fd = ContextOptions { events: 64, eventfd: true };
    let context = stack.reactor.context(with_fd).unwrap();
    assert!(stack.reactor.context(ContextOptions::events(1)).unwrap().event_fd().is_none());
    let fd = context.event_fd().unwrap();
    with_thread(&stack.reactor, || {
        for name in 0..40u64 {
            context.submit(Iocb::pread(&handle, name * 8192, vec![0; PAGE])).unwrap();
        }
        let mut noticed = 0;
        let mut events = Vec::new();
        while noticed < 40 {
            let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut fds, None).unwrap();
            let mut count = [0; 8];
            rustix::io::read(fd, &mut count).unwrap();
            noticed += u64::from_ne_bytes(count);
            context.get_events(0, 64, &mut events, None).unwrap();
            assert!(events.len() as u64 >= noticed, "a notice before its event");
        }
        assert_eq!((noticed, events.len()), (40, 40));
        assert!(rustix::io::read(fd, &mut [0; 8]).is_err(), "a notice without an event");
    });
}

#[test]
fn dropping_a_context_drains_it() {
    for threaded in [false, true] {
        let stack = stack(64, options());
        let handle = stack.volume.open(OpenOptions::default());
        stack.gate.stick(true);
        let test = || {
            let context = stack.reactor.context(ContextOptions::events(16)).unwrap();
            for page in 0..16 {
                context.submit(Iocb::pread(&handle, page * 8192, vec![0; 100])).unwrap();
            }
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(20));
                    assert_eq!(stack.gate.completed.load(Ordering::SeqCst), 0);
                    stack.gate.stick(false);
                });
                drop(context);
            });
            // What was read ahead may come on top.
            assert!(stack.gate.completed.load(Ordering::SeqCst) >= 16);
            assert_eq!(stack.volume.cache().frames_lent(), 0);
        };
        if threaded {
            with_thread(&stack.reactor, test);
        } else {
            test();
        }
    }
}

#[test]
fn closing_a_reactor_finishes_and_saves_everything() {
    let stack = stack(256, options());
    let handle = stack.volume.open(OpenOptions::default());
    let context = stack.reactor.context(ContextOptions::events(16)).unwrap();
    handle.pwrite(&[5; 10_000], 777).unwrap();
    for page in 0..8 {
        context.submit(Iocb::pread(&handle, (100 + page) * 8192, vec![0; 100])).unwrap();
    }
    assert_ne!(stack.volume.cache().dirty_ranges(), []);
    stack.reactor.close().unwrap();
    assert_eq!(context.outstanding(), 0);
    assert_eq!(stack.volume.cache().dirty_ranges(), []);
    stack.volume.cache().device().close().expect("a queue is still open");
    let refused = context.submit(Iocb::fsync(&handle)).unwrap_err();
    assert_eq!(refused.reason, Refusal::Closed);
    assert_eq!(handle.fsync(), Err(CallError::Refused(Refusal::Closed)));
}

#[test]
fn closing_says_what_could_not_be_saved() {
    let stack = stack(64, options());
    let handle = stack.volume.open(OpenOptions::default());
    handle.pwrite(&[5; 1024], 8192).unwrap();
    stack.gate.fails.store(true, Ordering::SeqCst);
    let errors = stack.reactor.close().unwrap_err();
    assert_eq!((errors[0].dirty.len(), errors[0].dirty[0].clone()), (1, 8192..9216));
    assert_eq!(errors[0].error.kind, IoErrorKind::Media);
    let text = errors[0].to_string();
    assert_eq!(
        text,
        "gate: 1024 bytes of acknowledged data are not stable: unrecovered media error"
    );
}

#[test]
fn a_failed_writeback_is_told_once_to_each_handle_open_then() {
    let stack = stack(64, options());
    let (first, second) = (stack.volume.open(DIRECT), stack.volume.open(OpenOptions::default()));
    second.pwrite(&[1; 512], 0).unwrap();
    stack.gate.fails.store(true, Ordering::SeqCst);
    let failed = second.fsync().unwrap_err();
    assert!(matches!(failed, CallError::Io(error) if error.kind == IoErrorKind::Media));
    assert!(second.fdatasync().is_err(), "while it stays dirty each sync fails");
    stack.gate.fails.store(false, Ordering::SeqCst);
    let late = stack.volume.open(OpenOptions::default());
    late.fsync().expect("it was opened after the error, and all is stable now");
    assert!(first.fsync().is_err(), "healed, and not told yet");
    first.fsync().expect("told");
    assert_eq!(stack.volume.cache().writeback_errors().len(), 1);
}

#[test]
fn a_failed_read_fails_alone() {
    let stack = stack(64, options());
    let handle = stack.volume.open(OpenOptions::default());
    stack.gate.fails.store(true, Ordering::SeqCst);
    let error = handle.pread(&mut [0; 100], 0).unwrap_err();
    assert_eq!(std::io::Error::from(error).raw_os_error(), Some(5), "EIO");
    stack.gate.fails.store(false, Ordering::SeqCst);
    assert_eq!(handle.pread(&mut [0; 100], 0), Ok(100));
}

#[test]
fn the_end_of_the_volume_is_that_of_a_block_device() {
    let stack = stack(64, options());
    for open in [OpenOptions::default(), DIRECT] {
        let handle = stack.volume.open(open);
        let mut out = [0; 2048];
        assert_eq!(handle.pread(&mut out, SIZE - 1024), Ok(1024));
        assert_eq!(handle.pread(&mut out, SIZE), Ok(0));
        assert_eq!(handle.pread(&mut out, SIZE + 4096), Ok(0));
        assert_eq!(handle.pread(&mut [], 0), Ok(0));
        assert_eq!(handle.pwrite(&out, SIZE - 512), Ok(512));
        assert_eq!(handle.pwrite(&[], SIZE), Ok(0));
        let full = handle.pwrite(&out, SIZE).unwrap_err();
        assert!(matches!(full, CallError::Io(error) if error.kind == IoErrorKind::NoSpace));
        let far = handle.pread(&mut out, i64::MAX as u64 - 511).unwrap_err();
        assert_eq!(far.errno(), 22);
        assert_eq!(handle.pread(&mut out, u64::MAX - 511).unwrap_err().errno(), 22);
    }
}

#[test]
fn a_direct_handle_takes_whole_blocks_only_and_agrees_with_the_cache() {
    let stack = stack(64, options());
    let (direct, cached) = (stack.volume.open(DIRECT), stack.volume.open(OpenOptions::default()));
    let mut out = [0; 1024];
    for (offset, len) in [(1, 512), (512, 511), (100, 100)] {
        assert_eq!(direct.pread(&mut out[..len], offset).unwrap_err().errno(), 22);
        assert_eq!(direct.pwrite(&out[..len], offset).unwrap_err().errno(), 22);
    }
    cached.pwrite(&[3; 700], 4000).unwrap();
    assert_eq!(direct.pread(&mut out, 4096), Ok(1024), "dirty data is seen");
    assert_eq!(out[..604], [3; 604]);
    direct.pwrite(&[4; 512], 4096).unwrap();
    cached.pread(&mut out, 4000).unwrap();
    assert_eq!((out[95], out[96], out[607], out[608]), (3, 4, 4, 3));
    // Pieces of odd lengths are one run of whole blocks.
    let context = stack.reactor.context(ContextOptions::events(2)).unwrap();
    context.submit(Iocb::pwritev(&direct, 0, vec![vec![1; 300], vec![2; 212]])).unwrap();
    let too_many = vec![vec![0; 512]; BUFFERS_MAX + 1];
    let refused = context.submit(Iocb::preadv(&direct, 0, too_many)).unwrap_err();
    assert_eq!(refused.reason, Refusal::Invalid);
    let mut events = Vec::new();
    context.get_events(1, 2, &mut events, None).unwrap();
    assert_eq!(events[0].result, Ok(512));
    cached.pread(&mut out[..512], 0).unwrap();
    assert_eq!((out[299], out[300], out[511]), (1, 2, 2));
}

#[test]
fn a_handle_of_another_reactor_is_refused() {
    let (one, other) = (stack(64, options()), stack(64, options()));
    let handle = other.volume.open(OpenOptions::default());
    let context = one.reactor.context(ContextOptions::events(1)).unwrap();
    assert_eq!(context.submit(Iocb::fsync(&handle)).unwrap_err().reason, Refusal::Invalid);
}

/// Longer than one lane operation, at an odd place, on both kinds of handle: one event.
#[test]
fn a_long_command_is_answered_once_with_its_whole_length() {
    let stack = stack(1024, options());
    let data: Vec<u8> = (0..5 << 20).map(|at: u32| (at / 7) as u8).collect();
    for (open, offset) in [(OpenOptions::default(), 1001), (DIRECT, 1536)] {
        let handle = stack.volume.open(open);
        let context = stack.reactor.context(ContextOptions::events(4)).unwrap();
        context.submit(Iocb::pwrite(&handle, offset, data.clone())).unwrap();
        let mut events = Vec::new();
        context.get_events(1, 4, &mut events, None).unwrap();
        let halves = vec![vec![0; 3_000_001], vec![0; data.len() - 3_000_001]];
        context.submit(Iocb::preadv(&handle, offset, halves)).unwrap();
        context.get_events(1, 4, &mut events, None).unwrap();
        assert_eq!(context.get_events(0, 4, &mut events, None), Ok(0));
        assert!(events.iter().all(|event| event.result == Ok(data.len())));
        assert!(events.remove(1).buffers.into_pieces().concat() == data, "other data came back");
    }
}

#[test]
fn submit_all_takes_as_many_as_there_is_room_for() {
    let stack = stack(64, options());
    let handle = stack.volume.open(OpenOptions::default());
    let context = stack.reactor.context(ContextOptions::events(3)).unwrap();
    let read = |name: u64| Iocb::pread(&handle, name * 4096, vec![0; 10]).with_user_data(name);
    let mut iocbs: VecDeque<Iocb> = (0..5).map(read).collect();
    assert_eq!(context.submit_all(&mut iocbs), Ok(3));
    assert_eq!(iocbs.len(), 2);
    assert_eq!(context.submit_all(&mut iocbs), Err(Refusal::NoSlot));
    let mut events = Vec::new();
    context.get_events(3, 3, &mut events, None).unwrap();
    assert_eq!(context.submit_all(&mut iocbs), Ok(2));
    context.get_events(2, 2, &mut events, None).unwrap();
    assert_eq!(names(&events), [0, 1, 2, 3, 4]);
}

/// Threads that wait on one context, each for a number of its own, and threads that submit: every
/// event goes to exactly one of them, and nobody is forgotten. With and without a thread that turns.
/// Of reads and writes of a volume; those of the host are in `host_cancel.rs`.
#[test]
fn ten_thousand_requests_are_in_flight_on_a_volume_at_once() {
    const COUNT: usize = 10_000;
    let options = VolumeOptions { inbox: COUNT, ..options() };
    let stack = stack(64, options);
    let handle = stack.volume.open(OpenOptions::default());
    let context = stack.reactor.context(ContextOptions::events(COUNT)).unwrap();
    stack.gate.stick(true);
    for id in 0..COUNT as u64 {
        // Each of a page of its own, up and down the volume, until it begins again: nothing to be cached.
        let offset = id * 37 % (SIZE / PAGE as u64) * PAGE as u64;
        let iocb = match id % 4 {
            0 => Iocb::pwrite(&handle, offset, vec![1; PAGE]),
            _ => Iocb::pread(&handle, offset, vec![0; PAGE]),
        };
        context.submit(iocb.with_user_data(id)).unwrap();
    }
    assert!(context.outstanding() > COUNT * 9 / 10, "{} are in flight", context.outstanding());
    stack.gate.stick(false);
    let mut events = Vec::new();
    assert_eq!(context.get_events(COUNT, COUNT, &mut events, None), Ok(COUNT));
    assert_eq!(names(&events), (0..COUNT as u64).collect::<Vec<_>>());
    assert!(events.iter().all(|event| event.result == Ok(PAGE)));
}

#[test]
fn every_event_reaches_exactly_one_of_many_waiting_threads() {
    const EACH: u64 = 2000;
    for threaded in [false, true] {
        let stack = stack(256, options());
        let context = stack.reactor.context(ContextOptions::events(48)).unwrap();
        let handle = stack.volume.open(OpenOptions::default());
        let seen = parking_lot::Mutex::new(HashSet::new());
        let count = AtomicUsize::new(0);
        let test = || {
            std::thread::scope(|scope| {
                for submitter in 0..2 {
                    let (context, handle) = (&context, &handle);
                    scope.spawn(move || {
                        let mut random = fastrand::Rng::with_seed(submitter);
                        for at in 0..EACH {
                            let name = submitter * EACH + at;
                            let place = random.u64(..SIZE - 4096);
                            let mut iocb =
                                Iocb::pread(handle, place, vec![0; 512]).with_user_data(name);
                            while let Err(refused) = context.submit(iocb) {
                                iocb = refused.iocb;
                                std::thread::yield_now();
                            }
                        }
                    });
                }
                for need in [1, 3, 7] {
                    let (context, seen, count) = (&context, &seen, &count);
                    scope.spawn(move || {
                        let mut events = Vec::new();
                        while count.load(Ordering::SeqCst) < 2 * EACH as usize {
                            let wait = Some(Duration::from_millis(100));
                            let got = context.get_events(need, 16, &mut events, wait).unwrap();
                            count.fetch_add(got, Ordering::SeqCst);
                            for event in events.drain(..) {
                                assert_eq!(event.result, Ok(512));
                                assert!(seen.lock().insert(event.user_data), "an event twice");
                            }
                        }
                    });
                }
            });
            assert_eq!(seen.lock().len(), 2 * EACH as usize);
        };
        if threaded {
            with_thread(&stack.reactor, test);
        } else {
            test();
        }
        assert_eq!(stack.volume.cache().frames_lent(), 0);
    }
}

/// Synchronous calls from many threads on a reactor without one: whoever is left waiting turns it.
#[test]
fn synchronous_callers_serve_each_other() {
    let stack = stack(64, options());
    let turns = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (stack, turns) = (&stack, &turns);
            scope.spawn(move || {
                let handle = stack.volume.open(OpenOptions::default());
                let mut random = fastrand::Rng::with_seed(thread);
                let own = thread * (SIZE / 4);
                let mut mirror = vec![0u8; 256 << 10];
                for round in 0..300 {
                    let at = random.usize(..mirror.len() - 9000);
                    let len = random.usize(1..9000);
                    if random.bool() {
                        mirror[at..at + len].fill(round as u8);
                        handle.pwrite(&mirror[at..at + len], own + at as u64).unwrap();
                    } else {
                        let mut out = vec![0; len];
                        handle.pread(&mut out, own + at as u64).unwrap();
                        assert_eq!(out, mirror[at..at + len]);
                    }
                    if random.u8(..50) == 0 {
                        handle.fsync().unwrap();
                    }
                    turns.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(turns.load(Ordering::Relaxed), 1200);
    // Nobody turns now; writebacks may be in flight.
    stack.reactor.close().unwrap();
    stack.volume.cache().assert_sound();
    assert_eq!(stack.volume.cache().frames_lent(), 0);
}

/// A wait that turns the reactor sleeps when nothing goes on, instead of burning the processor, and
/// an inline hit by another thread ends that sleep.
#[test]
fn a_sleeping_waiter_is_woken_by_an_event_that_needed_no_turn() {
    let stack = stack(64, options());
    let handle = stack.volume.open(OpenOptions::default());
    handle.pwrite(&[1; PAGE], 0).unwrap();
    let context = Arc::new(stack.reactor.context(ContextOptions::events(4)).unwrap());
    for _ in 0..20 {
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let mut events = Vec::new();
                context.get_events(1, 1, &mut events, Some(Duration::from_secs(60))).unwrap()
            });
            std::thread::sleep(Duration::from_millis(3));
            context.submit(Iocb::pread(&handle, 10, vec![0; 10])).unwrap();
            assert_eq!(waiter.join().unwrap(), 1);
        });
    }
}

/// A submitter whose command the sleeping reactor thread has not seen wakes it.
#[test]
fn a_sleeping_reactor_thread_is_woken_by_a_submission() {
    let stack = stack(64, options());
    let handle = stack.volume.open(OpenOptions::default());
    let context = stack.reactor.context(ContextOptions::events(4)).unwrap();
    with_thread(&stack.reactor, || {
        for page in 0..20 {
            std::thread::sleep(Duration::from_millis(3));
            context.submit(Iocb::pread(&handle, page * 8192, vec![0; 10])).unwrap();
            let mut events = Vec::new();
            let wait = Some(Duration::from_secs(60));
            assert_eq!(context.get_events(1, 1, &mut events, wait), Ok(1));
        }
    });
}

#[test]
fn a_reactor_can_be_stepped_by_hand() {
    let stack = stack(64, options());
    let handle = stack.volume.open(OpenOptions::default());
    let context = stack.reactor.context(ContextOptions::events(4)).unwrap();
    context.submit(Iocb::pread(&handle, 0, vec![0; 10])).unwrap();
    let mut turns = 0;
    while context.outstanding() > 0 {
        stack.reactor.turn();
        turns += 1;
        assert!(turns < 100, "nothing goes on");
    }
}
