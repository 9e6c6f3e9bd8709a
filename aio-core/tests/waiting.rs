//! Waiting for submissions, and being told of them: `suspend`, lists, notices.

mod common;

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use common::{names, stack, with_thread};
use rustix::event::{PollFd, PollFlags, epoll, poll};
use uaio_core::{
    Callbacks, Cancel, Context, ContextOptions, Event, HostOptions, Iocb, NoticeFd, Notify,
    OpenOptions, Refusal, Signal, Ticket, VolumeOptions, suspend,
};

const PAGE: usize = 4096;
const SHORT: Option<Duration> = Some(Duration::from_millis(15));
const LONG: Option<Duration> = Some(Duration::from_secs(20));
/// Where a page is that no other test command touches.
const FAR: u64 = 128 * 1024;

fn events(context: &Context, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    assert_eq!(context.get_events(count, 5000, &mut events, LONG), Ok(count));
    events
}

/// Reads that the device holds back, over two contexts of one reactor; the first, two of four and all
/// four are let go in turn.
#[test]
fn suspend_waits_for_the_first_for_m_of_n_and_for_all_over_several_contexts() {
    for threaded in [false, true] {
        let stack = stack(64, VolumeOptions::default());
        let handle = stack.volume.open(OpenOptions::default());
        let contexts = [4, 4].map(|n| stack.reactor.context(ContextOptions::events(n)).unwrap());
        let test = || {
            stack.gate.stick(true);
            let mut list = Vec::new();
            for at in 0..4u64 {
                let context = &contexts[at as usize % 2];
                let read = Iocb::pread(&handle, at * FAR, vec![0; PAGE]).with_user_data(at);
                list.push((context, context.submit(read).unwrap()));
            }
            let start = Instant::now();
            assert!(!suspend(&list, 1, SHORT), "nothing is over");
            assert!(start.elapsed() >= SHORT.unwrap());
            assert!(suspend(&list, 0, SHORT), "nothing is needed");
            // One is over: the first, and no more.
            assert_eq!(contexts[1].cancel(list[3].1), Cancel::Cancelled);
            assert!(suspend(&list, 1, LONG));
            assert!(!suspend(&list, 2, SHORT));
            assert_eq!(contexts[0].cancel(list[0].1), Cancel::Cancelled);
            assert!(suspend(&list, 2, LONG));
            assert!(!suspend(&list, 3, SHORT));
            // The others come while it waits.
            std::thread::scope(|scope| {
                let waiter = scope.spawn(|| suspend(&list, 4, LONG));
                std::thread::sleep(Duration::from_millis(5));
                stack.gate.stick(false);
                assert!(waiter.join().unwrap());
            });
            // Events are where they were.
            assert_eq!(names(&events(&contexts[0], 2)), [0, 2]);
            assert_eq!(names(&events(&contexts[1], 2)), [1, 3]);
            assert!(suspend(&list, 4, SHORT), "it stays over");
            let twice = [list[0], list[0]];
            assert!(suspend(&twice, 2, SHORT));
        };
        if threaded { with_thread(&stack.reactor, test) } else { test() }
    }
}

#[test]
fn suspend_spans_contexts_of_several_reactors() {
    let stacks = [(); 2].map(|()| stack(64, VolumeOptions::default()));
    let contexts: Vec<_> = stacks
        .iter()
        .map(|stack| stack.reactor.context(ContextOptions::events(4)).unwrap())
        .collect();
    let mut list = Vec::new();
    for (stack, context) in stacks.iter().zip(&contexts) {
        stack.gate.stick(true);
        let handle = stack.volume.open(OpenOptions::default());
        list.push((context, context.submit(Iocb::pread(&handle, 0, vec![0; PAGE])).unwrap()));
    }
    assert!(!suspend(&list, 1, SHORT));
    stacks[1].gate.stick(false);
    assert!(suspend(&list, 1, LONG));
    assert!(!suspend(&list, 2, SHORT));
    stacks[0].gate.stick(false);
    assert!(suspend(&list, 2, LONG));
}

/// Threads that wait for lists of their own, for events, and one that turns.
#[test]
fn many_threads_wait_for_one_context_each_for_its_own() {
    const EACH: u64 = 200;
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    let context = stack.reactor.context(ContextOptions::events(4000)).unwrap();
    with_thread(&stack.reactor, || {
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (handle, context) = (&handle, &context);
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(thread);
                    for _ in 0..EACH {
                        let list: Vec<_> = (0..4)
                            .map(|_| {
                                let at = random.u64(..1500) * 4096;
                                let read = Iocb::pread(handle, at, vec![0; 512]);
                                (context, context.submit(read).unwrap())
                            })
                            .collect();
                        let need = random.usize(..=4);
                        assert!(suspend(&list, need, LONG), "{need} of 4");
                        assert!(suspend(&list, 4, LONG));
                        assert!(list.iter().all(|(_, ticket)| context.is_over(*ticket)));
                    }
                });
            }
        });
    });
    assert_eq!(events(&context, 4 * 4 * EACH as usize).len(), 3200);
}

#[test]
fn a_list_is_one_submission_whose_failed_element_stops_no_other() {
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    let direct = stack.volume.open(OpenOptions { direct: true, dsync: false });
    let context = stack.reactor.context(ContextOptions::events(4)).unwrap();
    stack.gate.stick(true);
    let notice = NoticeFd::new().unwrap();
    let list = [
        Iocb::pread(&handle, 0, vec![0; PAGE]).with_user_data(0),
        Iocb::pread(&direct, 1, vec![0; PAGE]).with_user_data(1),
        Iocb::pread(&handle, FAR, vec![0; PAGE]).with_user_data(2),
        Iocb::pwrite(&handle, common::SIZE, vec![0; PAGE]).with_user_data(3),
        Iocb::pread(&handle, 2 * FAR, vec![0; PAGE]).with_user_data(4),
        Iocb::pread(&handle, 3 * FAR, vec![0; PAGE]).with_user_data(5),
    ];
    let listed = context.listio(list, Notify::Descriptor(notice.clone()));
    // One is not possible, one is over the context's depth; both come back whole.
    let refused: Vec<_> =
        listed.refused.iter().map(|refused| (refused.iocb.user_data(), refused.reason)).collect();
    assert_eq!(refused, [(1, Refusal::Invalid), (5, Refusal::NoSlot)]);
    assert_eq!(listed.tickets.len(), 4);
    assert_eq!(notice.take(), 0, "the list is not done");
    // One that fails later stops nothing either.
    let seen = events(&context, 1);
    assert_eq!((seen[0].user_data, seen[0].result.unwrap_err().errno()), (3, 28), "ENOSPC");
    stack.gate.stick(false);
    let seen = events(&context, 3);
    assert_eq!(names(&seen), [0, 2, 4]);
    assert_eq!(notice.take(), 1, "one notice for all of them");
}

#[test]
fn a_list_that_is_waited_for_is_done_when_the_call_returns() {
    for threaded in [false, true] {
        let stack = stack(64, VolumeOptions::default());
        let handle = stack.volume.open(OpenOptions::default());
        let context = stack.reactor.context(ContextOptions::events(8)).unwrap();
        let test = || {
            let list = (0..8).map(|at| Iocb::pread(&handle, at * FAR, vec![0; PAGE]));
            let listed = context.listio_wait(list);
            assert_eq!((listed.tickets.len(), listed.refused.len()), (8, 0));
            assert_eq!(context.outstanding(), 0);
            let mut seen = Vec::new();
            assert_eq!(context.get_events(0, 8, &mut seen, None), Ok(8));
            let empty = context.listio_wait([]);
            assert!(empty.tickets.is_empty());
        };
        if threaded { with_thread(&stack.reactor, test) } else { test() }
    }
}

#[test]
fn the_notice_of_a_list_that_nothing_was_taken_of_comes_at_once() {
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions { direct: true, dsync: false });
    let context = stack.reactor.context(ContextOptions::events(8)).unwrap();
    let notice = NoticeFd::new().unwrap();
    let listed =
        context.listio([Iocb::pread(&handle, 1, vec![0; 1])], Notify::Descriptor(notice.clone()));
    assert_eq!((listed.refused.len(), notice.take()), (1, 1));
}

/// A hit, a miss and a failure each ring their descriptor once, which epoll sees; it stays readable
/// until it is read.
#[test]
fn a_descriptor_per_operation_becomes_readable_and_works_with_epoll() {
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    handle.pwrite(&[1; PAGE], 0).unwrap();
    let context = stack.reactor.context(ContextOptions::events(8)).unwrap();
    with_thread(&stack.reactor, || {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let notices: Vec<NoticeFd> = (0..3).map(|_| NoticeFd::new().unwrap()).collect();
        for (name, notice) in notices.iter().enumerate() {
            let data = epoll::EventData::new_u64(name as u64);
            epoll::add(&epoll, notice, data, epoll::EventFlags::IN).unwrap();
        }
        let iocbs = [
            Iocb::pread(&handle, 0, vec![0; PAGE]),
            Iocb::pread(&handle, FAR, vec![0; PAGE]),
            Iocb::pwrite(&handle, common::SIZE, vec![0; 1]),
        ];
        for (name, (iocb, notice)) in iocbs.into_iter().zip(&notices).enumerate() {
            let iocb = iocb.with_notify(Notify::Descriptor(notice.clone()));
            context.submit(iocb.with_user_data(name as u64)).unwrap();
        }
        let mut ready = std::collections::HashSet::new();
        while ready.len() < 3 {
            let mut found = Vec::with_capacity(8);
            epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut found), None).unwrap();
            ready.extend(found.iter().map(|event| event.data.u64()));
        }
        for notice in &notices {
            let mut fds = [PollFd::new(notice, PollFlags::IN)];
            assert_eq!(poll(&mut fds, Some(&rustix::event::Timespec::default())), Ok(1));
            assert_eq!((notice.take(), notice.take()), (1, 0), "once");
        }
    });
    assert_eq!(names(&events(&context, 3)), [0, 1, 2]);
    assert_eq!(context.notices_lost(), 0);
    let _ = notices_are_descriptors as fn(&NoticeFd);
}

fn notices_are_descriptors(notice: &NoticeFd) {
    let _ = notice.as_fd();
}

#[test]
fn a_callback_runs_on_the_notification_thread_and_may_submit_and_wait() {
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    let context = Arc::new(stack.reactor.context(ContextOptions::events(8)).unwrap());
    let callbacks = Callbacks::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    with_thread(&stack.reactor, || {
        std::thread::scope(|scope| {
            let runner = scope.spawn(|| callbacks.run());
            for name in 0..3u64 {
                let (calls, inner, theirs) = (seen.clone(), Arc::clone(&context), handle.clone());
                let notify = Notify::callback(&callbacks, move || {
                    // It blocks, and holds nobody up who turns.
                    let ticket = inner.submit(Iocb::fsync(&theirs).with_user_data(100)).unwrap();
                    assert!(suspend(&[(&inner, ticket)], 1, LONG));
                    calls.lock().unwrap().push((name, std::thread::current().id()));
                });
                let read = Iocb::pread(&handle, name * FAR, vec![0; PAGE]).with_notify(notify);
                context.submit(read.with_user_data(name)).unwrap();
            }
            assert_eq!(names(&events(&context, 6)), [0, 1, 2, 100, 100, 100]);
            callbacks.stop();
            let runner_id = runner.thread().id();
            runner.join().unwrap();
            let seen = seen.lock().unwrap();
            assert_eq!(seen.len(), 3);
            assert!(seen.iter().all(|(_, thread)| *thread == runner_id));
        });
        // Stopped: the event comes, the notice is counted as lost.
        let notify = Notify::callback(&callbacks, || panic!("nobody calls this"));
        context.submit(Iocb::fsync(&handle).with_notify(notify)).unwrap();
        let _ = events(&context, 1);
        while context.notices_lost() == 0 {
            std::thread::yield_now();
        }
        assert_eq!(context.notices_lost(), 1);
    });
}

struct CountingWaker(AtomicUsize, std::thread::Thread);

impl Wake for CountingWaker {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
        self.1.unpark();
    }
}

#[test]
fn a_waker_is_woken_once_after_its_event_is_there() {
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    let context = stack.reactor.context(ContextOptions::events(8)).unwrap();
    with_thread(&stack.reactor, || {
        let woken = Arc::new(CountingWaker(AtomicUsize::new(0), std::thread::current()));
        for at in 0..20u64 {
            let notify = Notify::Waker(Waker::from(woken.clone()));
            context.submit(Iocb::pread(&handle, at * FAR, vec![0; 9]).with_notify(notify)).unwrap();
            while woken.0.load(Ordering::SeqCst) < at as usize + 1 {
                std::thread::park();
            }
            let mut seen = Vec::new();
            assert_eq!(context.get_events(0, 8, &mut seen, None), Ok(1), "a notice too early");
        }
        assert_eq!(woken.0.load(Ordering::SeqCst), 20);
    });
}

#[test]
fn a_signal_that_is_none_and_a_thread_that_cannot_be_are_refused() {
    assert_eq!(Signal::to_process(0, 1).unwrap_err().raw_os_error(), Some(22));
    assert_eq!(Signal::to_process(65, 1).unwrap_err().raw_os_error(), Some(22));
    assert_eq!(Signal::to_thread(0, 10, 1).unwrap_err().raw_os_error(), Some(22));
}

#[test]
fn a_signal_to_a_thread_that_is_gone_is_a_lost_notice_and_the_event_is_there() {
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    let context = stack.reactor.context(ContextOptions::events(8)).unwrap();
    let gone = std::thread::spawn(|| rustix::thread::gettid().as_raw_nonzero().get());
    let gone = gone.join().unwrap();
    while std::path::Path::new(&format!("/proc/self/task/{gone}")).exists() {
        std::thread::yield_now();
    }
    let signal = Signal::to_thread(gone, 10, 1).unwrap();
    context.submit(Iocb::fsync(&handle).with_notify(Notify::Signal(signal))).unwrap();
    let _ = events(&context, 1);
    while context.notices_lost() == 0 {
        stack.reactor.turn();
    }
}

/// Any words are a ticket, if one of nothing: what is not in progress is over.
#[test]
fn words_of_no_submission_name_one_that_is_over() {
    let stack = stack(16, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    let context = stack.reactor.context(ContextOptions::events(2)).unwrap();
    stack.gate.stick(true);
    let live = context.submit(Iocb::pread(&handle, 0, vec![0; 10])).unwrap();
    let (number, word) = live.to_words();
    for other in [0, 1, word + (1 << 32), word - (1 << 32), u64::MAX, u64::MAX - 1] {
        let ticket = Ticket::from_words(number, other);
        assert!(context.is_over(ticket), "{other:#x}");
        assert_eq!(context.cancel(ticket), Cancel::Over, "{other:#x}");
        assert!(suspend(&[(&context, ticket)], 1, Some(Duration::from_secs(5))));
    }
    assert!(!context.is_over(Ticket::from_words(number, word)));
    stack.gate.stick(false);
    assert_eq!(events(&context, 1)[0].result, Ok(10));
}

/// The counter of an eventfd that blocks is full: the notice is lost, and whoever completes goes on.
#[test]
fn a_full_eventfd_costs_its_notice_and_holds_up_nobody() {
    let stack = stack(16, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    let context = stack.reactor.context(ContextOptions::events(2)).unwrap();
    let full = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    let notice = NoticeFd::from_fd(std::sync::Arc::new(full));
    let read = Iocb::pread(&handle, 0, vec![0; 10]);
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::scope(|threads| {
        threads.spawn(|| {
            context.submit(read.with_notify(Notify::Descriptor(notice.clone()))).unwrap();
            done.send(events(&context, 1).len()).unwrap();
        });
        let got = is_done.recv_timeout(Duration::from_secs(10));
        // So that the thread ends in any case.
        assert_eq!(notice.take(), u64::MAX - 1);
        assert_eq!(got, Ok(1));
    });
    assert_eq!(context.notices_lost(), 1);
    assert_eq!(notice.take(), 0, "and does not wait");
}

#[test]
fn sizes_that_are_not_possible_are_refused() {
    let stack = stack(16, VolumeOptions::default());
    for events in [0, usize::MAX, uaio_core::EVENTS_MAX + 1] {
        assert!(stack.reactor.context(ContextOptions::events(events)).is_err(), "{events}");
    }
    let huge = [
        VolumeOptions { operations: usize::MAX, ..VolumeOptions::default() },
        VolumeOptions { inbox: usize::MAX, ..VolumeOptions::default() },
    ];
    for options in huge {
        assert!(stack.reactor.attach(stack.volume.cache().clone(), options).is_err());
    }
    let huge = [
        HostOptions { operations: usize::MAX, ..HostOptions::default() },
        HostOptions { inbox: usize::MAX, ..HostOptions::default() },
    ];
    for options in huge {
        assert!(stack.reactor.attach_host(options).is_err());
    }
}
