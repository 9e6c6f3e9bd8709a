//! Who tells the device what was submitted: the submitter, or the reactor's thread.

mod common;

use std::time::{Duration, Instant};

use common::{names, stack, with_thread};
use uaio_core::{ContextOptions, Iocb, OpenOptions, VolumeOptions};

const PAGE: usize = 4096;
const LONG: Option<Duration> = Some(Duration::from_secs(60));

/// Which says also that everything reaches the device while the submitter does nothing.
#[test]
fn a_busy_device_is_told_by_the_reactors_thread_and_not_in_submit() {
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    let context = stack.reactor.context(ContextOptions::events(32)).unwrap();
    let own = std::thread::current().id();
    let before = with_thread(&stack.reactor, || {
        let mut events = Vec::new();
        // Until the thread has begun.
        while stack.gate.told_by.lock().unwrap().last().is_none_or(|thread| *thread == own) {
            stack.volume.cache().drop_clean(0..u64::MAX);
            for page in [2000, 1000] {
                context.submit(Iocb::pread(&handle, page * PAGE as u64, vec![0; 1])).unwrap();
            }
            context.get_events(2, 2, &mut events, LONG).unwrap();
        }
        let before = stack.gate.told_by.lock().unwrap().len();
        stack.gate.stick(true);
        let submit = |page: u64| {
            // Nothing is read ahead from this.
            let offset = (page * page * 7 + 3) * PAGE as u64;
            let read = Iocb::pread(&handle, offset, vec![0; PAGE]);
            context.submit(read.with_user_data(page)).unwrap();
        };
        let told = |count: usize| {
            let start = Instant::now();
            while stack.gate.told_by.lock().unwrap().len() < before + count {
                assert!(start.elapsed() < Duration::from_secs(60), "it was not told");
                std::thread::yield_now();
            }
        };
        submit(0);
        told(1);
        for page in 1..16 {
            submit(page);
            // Awake and asleep: the nap of a thread that polls is at most a millisecond.
            std::thread::sleep(Duration::from_millis(page % 3));
        }
        told(16);
        stack.gate.stick(false);
        events.clear();
        assert_eq!(context.get_events(16, 16, &mut events, LONG), Ok(16));
        assert_eq!(names(&events), (0..16).collect::<Vec<_>>());
        before
    });
    let told_by = stack.gate.told_by.lock().unwrap()[before..].to_vec();
    assert_eq!(told_by.len(), 16);
    assert!(told_by[1..].iter().all(|thread| *thread != own), "{told_by:?}, submitter {own:?}");
}

/// When nothing else is in progress and nobody is awake, another thread would only take longer.
#[test]
fn a_request_that_is_alone_is_told_in_submit_while_the_reactors_thread_sleeps() {
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    let context = stack.reactor.context(ContextOptions::events(1)).unwrap();
    let own = std::thread::current().id();
    with_thread(&stack.reactor, || {
        let mut events = Vec::new();
        let start = Instant::now();
        for page in 0.. {
            // It falls asleep when nothing has gone on for a while, which is not for us to see.
            std::thread::sleep(Duration::from_millis(5));
            stack.volume.cache().drop_clean(0..u64::MAX);
            let offset = page % 64 * 2 * PAGE as u64;
            context.submit(Iocb::pread(&handle, offset, vec![0; PAGE])).unwrap();
            context.get_events(1, 1, &mut events, LONG).unwrap();
            if stack.gate.told_by.lock().unwrap().last() == Some(&own) {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "the thread was told each time");
        }
    });
}

/// The thread may stop between any two steps of a submission.
#[test]
fn what_was_left_to_a_thread_that_stops_is_told_all_the_same() {
    for round in 0..300 {
        let stack = stack(64, VolumeOptions::default());
        let handle = stack.volume.open(OpenOptions::default());
        let context = stack.reactor.context(ContextOptions::events(8)).unwrap();
        std::thread::scope(|threads| {
            let turning = threads.spawn(|| stack.reactor.run());
            for page in 0..8 {
                if page == round % 8 {
                    stack.reactor.stop();
                }
                context.submit(Iocb::pread(&handle, page * 2 * PAGE as u64, vec![0; 10])).unwrap();
            }
            turning.join().unwrap();
        });
        let mut events = Vec::new();
        assert_eq!(context.get_events(8, 8, &mut events, LONG), Ok(8), "round {round}");
    }
}
