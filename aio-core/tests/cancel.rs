//! Cancellation: each case is decided once, and said once.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{names, stack, with_thread};
use uaio_core::{Cancel, Context, ContextOptions, Event, Iocb, OpenOptions, VolumeOptions};
use uaio_driver::{IoError, IoErrorKind};

const PAGE: usize = 4096;
const DIRECT: OpenOptions = OpenOptions { direct: true, dsync: false };
const CANCELLED: Result<usize, IoError> = Err(IoError::new(IoErrorKind::Cancelled));

fn events(context: &Context, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    assert_eq!(
        context.get_events(count, 1000, &mut events, Some(Duration::from_secs(20))),
        Ok(count)
    );
    events.sort_by_key(|event| event.user_data);
    events
}

#[test]
fn a_queued_request_is_cancelled_at_once_though_the_device_is_stuck() {
    let few = VolumeOptions { operations: 1, inbox: 8, ..VolumeOptions::default() };
    let stack = stack(64, few);
    let handle = stack.volume.open(OpenOptions::default());
    let context = stack.reactor.context(ContextOptions::events(8)).unwrap();
    stack.gate.stick(true);
    let read = |page: u64| Iocb::pread(&handle, page * 8192, vec![7; PAGE]).with_user_data(page);
    let tickets: Vec<_> = (0..4).map(|page| context.submit(read(page)).unwrap()).collect();
    assert_eq!(context.cancel(tickets[2]), Cancel::Cancelled);
    let seen = events(&context, 1);
    assert_eq!((seen[0].user_data, seen[0].result), (2, CANCELLED));
    assert_eq!(seen[0].buffers.len(), PAGE, "its memory comes back");
    assert!(context.is_over(tickets[2]));
    assert_eq!(context.cancel(tickets[2]), Cancel::Over, "a second time");
    stack.gate.stick(false);
    let seen = events(&context, 3);
    assert_eq!(names(&seen), [0, 1, 3]);
    assert!(seen.iter().all(|event| event.result == Ok(PAGE)));
}

#[test]
fn a_read_that_the_device_is_at_gives_its_memory_back_and_its_frames_stay_the_devices() {
    for options in [OpenOptions::default(), DIRECT] {
        let stack = stack(64, VolumeOptions::default());
        let handle = stack.volume.open(options);
        let context = stack.reactor.context(ContextOptions::events(8)).unwrap();
        stack.gate.stick(true);
        let ticket = context.submit(Iocb::pread(&handle, 0, vec![0; PAGE])).unwrap();
        assert_eq!(context.cancel(ticket), Cancel::Cancelled);
        let seen = events(&context, 1);
        assert_eq!(seen[0].result, CANCELLED);
        assert_eq!(seen[0].buffers.len(), PAGE);
        assert_eq!(stack.gate.completed.load(Ordering::SeqCst), 0);
        assert!(stack.volume.cache().frames_lent() > 0, "the device may still write");
        stack.gate.stick(false);
        // Once the device is done, the frames are back and everything goes on as ever.
        assert_eq!(handle.pread(&mut [0; PAGE], 0), Ok(PAGE));
        while stack.reactor.turn() {}
        assert_eq!(stack.volume.cache().frames_lent(), 0);
        assert_eq!(context.outstanding(), 0, "one event, not two");
    }
}

#[test]
fn a_write_that_the_device_is_at_runs_on_and_says_how_it_went() {
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(DIRECT);
    let context = stack.reactor.context(ContextOptions::events(8)).unwrap();
    stack.gate.stick(true);
    let ticket = context.submit(Iocb::pwrite(&handle, 0, vec![9; PAGE])).unwrap();
    assert_eq!(context.cancel(ticket), Cancel::InProgress);
    assert_eq!(context.outstanding(), 1, "its memory is the device's");
    assert_eq!(context.cancel(ticket), Cancel::InProgress, "again, to no more effect");
    stack.gate.stick(false);
    let seen = events(&context, 1);
    assert_eq!(seen[0].result, Ok(PAGE));
    assert_eq!(seen[0].buffers.len(), PAGE);
    let mut out = [0; PAGE];
    handle.pread(&mut out, 0).unwrap();
    assert_eq!(out, [9; PAGE]);
    assert_eq!(context.cancel(ticket), Cancel::Over);
}

#[test]
fn a_request_that_waits_for_another_ones_page_is_cancelled_alone() {
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    let context = stack.reactor.context(ContextOptions::events(8)).unwrap();
    stack.gate.stick(true);
    context.submit(Iocb::pread(&handle, 0, vec![0; PAGE]).with_user_data(1)).unwrap();
    let waits = context.submit(Iocb::pread(&handle, 100, vec![0; 200]).with_user_data(2)).unwrap();
    context.submit(Iocb::pwrite(&handle, 50, vec![3; 10]).with_user_data(3)).unwrap();
    assert_eq!(context.cancel(waits), Cancel::Cancelled);
    assert_eq!(events(&context, 1)[0].user_data, 2);
    stack.gate.stick(false);
    let seen = events(&context, 2);
    assert_eq!(names(&seen), [1, 3]);
    assert!(seen.iter().all(|event| event.result.is_ok()));
}

#[test]
fn a_sync_that_waits_for_the_device_is_cancelled_and_covers_nothing() {
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    let context = stack.reactor.context(ContextOptions::events(8)).unwrap();
    handle.pwrite(&[1; PAGE], 0).unwrap();
    stack.gate.stick(true);
    let ticket = context.submit(Iocb::fsync(&handle)).unwrap();
    while stack.reactor.turn() {}
    assert_eq!(context.cancel(ticket), Cancel::Cancelled);
    assert_eq!(events(&context, 1)[0].result, CANCELLED);
    stack.gate.stick(false);
    assert_eq!(handle.fsync(), Ok(()));
    assert_eq!(stack.volume.cache().dirty_ranges(), []);
}

#[test]
fn a_handle_cancels_its_own_and_nothing_else() {
    let few = VolumeOptions { operations: 4, inbox: 16, ..VolumeOptions::default() };
    let stack = stack(64, few);
    let (ours, theirs) =
        (stack.volume.open(OpenOptions::default()), stack.volume.open(OpenOptions::default()));
    let contexts =
        [8, 8].map(|slots| stack.reactor.context(ContextOptions::events(slots)).unwrap());
    stack.gate.stick(true);
    for page in 0..6u64 {
        for context in &contexts {
            let handle = if page % 2 == 0 { &ours } else { &theirs };
            let read = Iocb::pread(handle, page * 8192, vec![0; 100]).with_user_data(page);
            context.submit(read).unwrap();
        }
    }
    assert_eq!(ours.clone().cancel_all(), 6);
    for context in &contexts {
        let seen = events(context, 3);
        assert_eq!(names(&seen), [0, 2, 4]);
        assert!(seen.iter().all(|event| event.result == CANCELLED));
    }
    stack.gate.stick(false);
    for context in &contexts {
        let seen = events(context, 3);
        assert_eq!(names(&seen), [1, 3, 5]);
        assert!(seen.iter().all(|event| event.result == Ok(100)));
    }
}

#[test]
fn a_context_cancels_all_of_its_own_and_nothing_else() {
    let few = VolumeOptions { operations: 4, inbox: 16, ..VolumeOptions::default() };
    let stack = stack(64, few);
    let handle = stack.volume.open(OpenOptions::default());
    let contexts =
        [8, 8].map(|slots| stack.reactor.context(ContextOptions::events(slots)).unwrap());
    stack.gate.stick(true);
    for page in 0..8u64 {
        let read = Iocb::pread(&handle, page * 8192, vec![0; 100]).with_user_data(page);
        contexts[page as usize % 2].submit(read).unwrap();
    }
    assert_eq!(contexts[0].cancel_all(), 4);
    assert_eq!(names(&events(&contexts[0], 4)), [0, 2, 4, 6]);
    assert_eq!(contexts[1].outstanding(), 4);
    stack.gate.stick(false);
    let seen = events(&contexts[1], 4);
    assert!(seen.iter().all(|event| event.result == Ok(100)));
}

/// A ticket of another context, one that is stale, and one made up.
#[test]
fn a_ticket_that_names_nothing_cancels_nothing() {
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    let contexts =
        [4, 4].map(|slots| stack.reactor.context(ContextOptions::events(slots)).unwrap());
    stack.gate.stick(true);
    let ticket = contexts[0].submit(Iocb::pread(&handle, 0, vec![0; 100])).unwrap();
    let other = contexts[1].submit(Iocb::pread(&handle, 0, vec![0; 100])).unwrap();
    assert_eq!(contexts[1].cancel(ticket), Cancel::Over);
    let (context, word) = ticket.to_words();
    assert_eq!(uaio_core::Ticket::from_words(context, word), ticket);
    for word in [word + 1, word ^ 1 << 32, u64::MAX] {
        let made_up = uaio_core::Ticket::from_words(context, word);
        assert_eq!(contexts[0].cancel(made_up), Cancel::Over);
    }
    stack.gate.stick(false);
    assert_eq!(events(&contexts[0], 1)[0].result, Ok(100));
    assert_eq!(events(&contexts[1], 1)[0].result, Ok(100));
    // The slot's next tenant is not reached by the old name.
    stack.gate.stick(true);
    let next = contexts[1].submit(Iocb::pread(&handle, 80_000, vec![0; 100])).unwrap();
    assert_ne!(next, other);
    assert_eq!(contexts[1].cancel(other), Cancel::Over);
    stack.gate.stick(false);
    assert_eq!(events(&contexts[1], 1)[0].result, Ok(100));
}

/// Submitters, a thread that cancels what they submitted, and a thread that turns: every command has
/// exactly one event, and what `cancel` said about it is what its event says. `UAIO_RACES` sets how
/// many, 30 thousand by default, a million in `cargo ci test`.
#[test]
fn cancel_against_completion_is_decided_exactly_once() {
    let races = std::env::var("UAIO_RACES").map_or(30_000, |races| races.parse::<u64>().unwrap());
    let few = VolumeOptions { operations: 8, inbox: 32, ..VolumeOptions::default() };
    let stack = stack(32, few);
    let handles = [OpenOptions::default(), DIRECT].map(|options| stack.volume.open(options));
    let context = stack.reactor.context(ContextOptions::events(24)).unwrap();
    // What `cancel` said of each: 0 nothing, 1 cancelled, 2 in progress, 3 over.
    let said: Vec<AtomicU64> = (0..races).map(|_| AtomicU64::new(0)).collect();
    let (sender, receiver) = std::sync::mpsc::sync_channel(8);
    let counts = [0; 3].map(|_| AtomicU64::new(0));
    let ended = AtomicBool::new(false);
    with_thread(&stack.reactor, || {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut random = fastrand::Rng::with_seed(1);
                for (name, ticket) in receiver {
                    (0..random.u32(..60)).for_each(|_| std::hint::spin_loop());
                    let cancel = context.cancel(ticket);
                    counts[cancel as usize].fetch_add(1, Ordering::Relaxed);
                    said[name as usize].store(1 + cancel as u64, Ordering::SeqCst);
                }
                ended.store(true, Ordering::SeqCst);
            });
            let mut random = fastrand::Rng::with_seed(2);
            let mut seen: Vec<Event> = Vec::new();
            let mut results: Vec<Option<Result<usize, IoError>>> = vec![None; races as usize];
            let mut answered = 0;
            let mut next = 0;
            while answered < races {
                if next < races {
                    let handle = &handles[random.usize(..2)];
                    let offset = random.u64(..64) * 8192;
                    let iocb = match random.u8(..8) {
                        0..4 => Iocb::pread(handle, offset, vec![0; 512]),
                        4..7 => Iocb::pwrite(handle, offset, vec![0; 512]),
                        _ => Iocb::fsync(handle),
                    };
                    if let Ok(ticket) = context.submit(iocb.with_user_data(next)) {
                        sender.send((next, ticket)).unwrap();
                        next += 1;
                    }
                }
                seen.clear();
                let min = usize::from(context.outstanding() > 20 || next == races);
                let wait = Some(Duration::from_secs(20));
                let count = context.get_events(min, 24, &mut seen, wait).unwrap();
                assert!(count >= min, "a command without an event");
                answered += count as u64;
                for event in &seen {
                    let before = results[event.user_data as usize].replace(event.result);
                    assert_eq!(before, None, "two events of {}", event.user_data);
                }
            }
            drop(sender);
            let start = Instant::now();
            while !ended.load(Ordering::SeqCst) {
                assert!(start.elapsed() < Duration::from_secs(20));
                std::thread::yield_now();
            }
            for (name, result) in results.iter().enumerate() {
                let result = result.expect("answered");
                match said[name].load(Ordering::SeqCst) {
                    1 => assert_eq!(result, CANCELLED, "{name} was said to be cancelled"),
                    2 => assert!(result.is_ok() || result == CANCELLED, "{name}: {result:?}"),
                    _ => {
                        assert!(result.is_ok(), "{name} was over when it was cancelled: {result:?}")
                    }
                }
            }
        });
    });
    println!("cancelled, in progress, over: {counts:?}");
    assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) > 0), "{counts:?}");
    stack.volume.cache().assert_sound();
    stack.reactor.close().unwrap();
    assert_eq!(stack.volume.cache().frames_lent(), 0);
}

/// What the device does for one command alone it is asked to end; what it does for pages it is not, since
/// others may wait for them.
#[test]
fn a_cancel_reaches_the_device_for_what_it_does_for_the_command_alone() {
    for (options, asked) in [(DIRECT, 1), (OpenOptions::default(), 0)] {
        let stack = stack(64, VolumeOptions::default());
        let handle = stack.volume.open(options);
        let context = stack.reactor.context(ContextOptions::events(8)).unwrap();
        stack.gate.stick(true);
        let ticket = context.submit(Iocb::pread(&handle, 0, vec![0; PAGE])).unwrap();
        assert_eq!(context.cancel(ticket), Cancel::Cancelled);
        assert_eq!(stack.gate.cancels.load(Ordering::SeqCst), asked, "a read");
        stack.gate.stick(false);
        assert_eq!(events(&context, 1)[0].result, CANCELLED);
    }
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(DIRECT);
    let context = stack.reactor.context(ContextOptions::events(8)).unwrap();
    stack.gate.stick(true);
    let ticket = context.submit(Iocb::discard(&handle, 0, 4096)).unwrap();
    assert_eq!(context.cancel(ticket), Cancel::InProgress);
    assert_eq!(stack.gate.cancels.load(Ordering::SeqCst), 1, "a discard");
    stack.gate.stick(false);
    assert_eq!(events(&context, 1).len(), 1);
}
