//! Ends: of scopes, contexts, futures and reactors. Each returns, however it meets what is in progress,
//! and what was taken has its event.

mod common;

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context as Task, Wake, Waker};
use std::time::Duration;

use common::{stack, with_thread};
use uaio_core::host::{Descriptor, HostOp, Position};
use uaio_core::{
    AsyncContext, ContextOptions, HostOptions, Iocb, Notify, OpenOptions, Reactor, Refusal,
    VolumeOptions,
};
use uaio_driver::ram::RamDevice;
use uaio_driver::sim::{SimDevice, SimOptions};
use uaio_driver::{DmaPool, IoErrorKind, PoolOptions, SystemClock};
use uaio_page_cache::{Cache, CacheOptions};

const PAGE: usize = 4096;
const DIRECT: OpenOptions = OpenOptions { direct: true, dsync: false };
const SHORT: Duration = Duration::from_millis(30);

/// Runs `test` on a thread of its own; it returns within 20 seconds.
fn returns<T: Send + 'static>(what: &str, test: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, is_done) = mpsc::channel();
    std::thread::spawn(move || done.send(test()));
    is_done.recv_timeout(Duration::from_secs(20)).unwrap_or_else(|_| panic!("{what} hangs"))
}

#[test]
fn a_scope_ends_whose_commands_were_all_answered_at_once() {
    returns("a scope of hits", || {
        let stack = stack(64, VolumeOptions::default());
        let handle = stack.volume.open(OpenOptions::default());
        handle.pwrite(&[7; 2 * PAGE], 0).unwrap();
        let mut bytes = [[0; PAGE]; 2];
        let ((), results) = stack
            .reactor
            .scope(4, |scope| {
                let [first, second] = &mut bytes;
                scope.pread(&handle, 0, first);
                scope.pread(&handle, PAGE as u64, second);
            })
            .unwrap();
        assert_eq!(results, [Ok(PAGE), Ok(PAGE)]);
        assert_eq!(bytes, [[7; PAGE]; 2]);
    });
}

/// The event of an abandoned command is taken out by its notice, so whoever waits for the end of the
/// context waits for no event.
#[test]
fn the_last_name_of_an_async_context_goes_while_the_device_is_at_an_abandoned_write() {
    returns("dropping the context", || {
        for round in 0..200u64 {
            let stack = stack(64, VolumeOptions::default());
            let handle = stack.volume.open(DIRECT);
            let aio = AsyncContext::new(stack.reactor.context(ContextOptions::events(4)).unwrap());
            let gate = Arc::clone(&stack.gate);
            gate.stick(true);
            with_thread(&stack.reactor, || {
                let mut task = Task::from_waker(Waker::noop());
                let mut writes: Vec<_> = (0..4u64)
                    .map(|page| Box::pin(aio.pwrite(&handle, page * 4096, vec![9; PAGE])))
                    .collect();
                for write in &mut writes {
                    assert!(write.as_mut().poll(&mut task).is_pending());
                }
                // One that still waits to be started is cancelled there, and the device never sees it.
                while gate.moved.lock().unwrap().len() < 4 {
                    std::thread::yield_now();
                }
                drop(writes);
                let opener = std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_micros(round * 20));
                    gate.stick(false);
                });
                drop(aio);
                opener.join().unwrap();
            });
            assert_eq!(stack.gate.completed.load(Ordering::SeqCst), 4, "it waited");
        }
    });
}

/// A task that drops all it has when it is woken first.
struct DropAll(Mutex<Vec<Pin<Box<dyn Future<Output = ()> + Send>>>>);

impl Wake for DropAll {
    fn wake(self: Arc<Self>) {
        let all = std::mem::take(&mut *self.0.lock().unwrap());
        drop(all);
    }
}

/// The reactor's own thread cannot wait for what it would have to turn itself.
#[test]
fn the_last_future_may_be_dropped_by_a_waker_on_the_reactors_thread() {
    returns("the reactor's thread", || {
        let stack = stack(64, VolumeOptions::default());
        let stuck = stack.volume.open(DIRECT);
        let pool = stack.volume.cache().device().pool().clone();
        let ram = Arc::new(RamDevice::new(1 << 20, 512, pool).unwrap());
        let cache = Cache::new(ram, CacheOptions::frames(16)).unwrap();
        let free = stack.reactor.attach(cache, VolumeOptions::default()).unwrap();
        let free = free.open(DIRECT);
        let aio = AsyncContext::new(stack.reactor.context(ContextOptions::events(4)).unwrap());
        stack.gate.stick(true);
        let all = Arc::new(DropAll(Mutex::default()));
        let waker = Waker::from(Arc::clone(&all));
        let mut task = Task::from_waker(&waker);
        // Each future has a name of the context; there is no other.
        let (one, two) = (aio.clone(), aio);
        let mut write: Pin<Box<dyn Future<Output = ()> + Send>> =
            Box::pin(async move { drop(one.pwrite(&stuck, 0, vec![9; PAGE]).await) });
        let mut read: Pin<Box<dyn Future<Output = ()> + Send>> =
            Box::pin(async move { drop(two.pread(&free, 0, vec![0; PAGE]).await) });
        assert!(write.as_mut().poll(&mut task).is_pending());
        assert!(read.as_mut().poll(&mut task).is_pending());
        all.0.lock().unwrap().extend([write, read]);
        let (gate, left) = (Arc::clone(&stack.gate), Arc::clone(&all));
        with_thread(&stack.reactor, || {
            let start = std::time::Instant::now();
            while !left.0.lock().unwrap().is_empty() {
                assert!(start.elapsed() < Duration::from_secs(10), "the read did not end");
                std::thread::sleep(Duration::from_millis(1));
            }
            // The thread turns on: it serves another context.
            let context = stack.reactor.context(ContextOptions::events(1)).unwrap();
            let other = stack.volume.open(DIRECT);
            context.submit(Iocb::pread(&other, 8192, vec![0; PAGE])).unwrap();
            gate.stick(false);
            let mut events = Vec::new();
            let patience = Some(Duration::from_secs(10));
            assert_eq!(context.get_events(1, 1, &mut events, patience), Ok(1));
        });
    });
}

/// What is cancelled at the device holds its place in the lane until the device is done, and the last
/// flush needs one.
#[test]
fn a_reactor_is_closed_while_the_device_is_at_reads_that_were_cancelled() {
    returns("close", || {
        let few = VolumeOptions { operations: 2, ..VolumeOptions::default() };
        let stack = stack(64, few);
        let handle = stack.volume.open(OpenOptions::default());
        let context = stack.reactor.context(ContextOptions::events(8)).unwrap();
        handle.pwrite(&[3; PAGE], 0).unwrap();
        stack.gate.stick(true);
        for page in 1..3u64 {
            context.submit(Iocb::pread(&handle, page << 20, vec![0; PAGE])).unwrap();
        }
        assert_eq!(context.cancel_all(), 2);
        let gate = Arc::clone(&stack.gate);
        let opener = std::thread::spawn(move || {
            std::thread::sleep(SHORT);
            gate.stick(false);
        });
        stack.reactor.close().unwrap();
        opener.join().unwrap();
        assert_eq!(stack.volume.cache().dirty_ranges(), []);
    });
}

/// The last flush is under way: what is submitted now is refused, and never taken without an event.
#[test]
fn a_submission_while_the_last_flush_runs_is_refused_or_has_its_event() {
    returns("close", || {
        let stack = stack(64, VolumeOptions::default());
        let handle = stack.volume.open(OpenOptions::default());
        let context = stack.reactor.context(ContextOptions::events(8)).unwrap();
        handle.pwrite(&[3; PAGE], 0).unwrap();
        stack.gate.stick(true);
        std::thread::scope(|threads| {
            let closer = threads.spawn(|| stack.reactor.close());
            std::thread::sleep(SHORT);
            // Longer than the flush takes.
            let taken = context.submit(Iocb::pread(&handle, 0, vec![0; 8 << 20]));
            stack.gate.stick(false);
            assert!(closer.join().unwrap().is_ok());
            match taken {
                Err(refused) => assert_eq!(refused.reason, Refusal::Closed),
                Ok(_) => {
                    let mut events = Vec::new();
                    let patience = Some(Duration::from_secs(5));
                    assert_eq!(context.get_events(1, 8, &mut events, patience), Ok(1));
                }
            }
        });
    });
}

/// Reads that never end, from several threads, until they are refused: those that were taken are
/// cancelled, whichever side of the close they came in on.
#[test]
fn a_host_is_closed_while_endless_reads_are_submitted() {
    for _ in 0..20 {
        returns("close", || {
            let stack = stack(16, VolumeOptions::default());
            let host = stack.reactor.attach_host(HostOptions::default()).unwrap();
            let context = stack.reactor.context(ContextOptions::events(64)).unwrap();
            let (reader, _writer) = std::io::pipe().unwrap();
            let fd = Descriptor::new(reader);
            let taken = AtomicUsize::new(0);
            let submit = || {
                let mut seen = Vec::new();
                loop {
                    let (fd, at) = (fd.clone(), Position::Current);
                    let read = HostOp::Read { fd, memory: vec![0; 4].into(), at, flags: 0 };
                    match context.submit(Iocb::host(&host, read)) {
                        Ok(_) => _ = taken.fetch_add(1, Ordering::Relaxed),
                        Err(refused) if refused.reason == Refusal::Closed => return,
                        Err(_) => {
                            context.get_events(0, 64, &mut seen, None).unwrap();
                        }
                    }
                }
            };
            std::thread::scope(|threads| {
                threads.spawn(submit);
                threads.spawn(submit);
                while taken.load(Ordering::Relaxed) == 0 {
                    std::thread::yield_now();
                }
                stack.reactor.close().unwrap();
            });
            assert_eq!(context.outstanding(), 0, "every one has its event");
        });
    }
}

/// Chains that go from the host to the volume, to its sync and to the host again, while everything is
/// closed: what one goes on with may be open, be closed just now, or be gone. Each has its event, and
/// what was acknowledged as stable is on the device.
#[test]
fn a_chain_that_goes_on_while_the_reactor_is_closed_has_all_its_events() {
    const CHAINS: usize = 12;
    let mut went = [0; 5];
    for round in 0..60u64 {
        let (device, stable) = returns("close", move || {
            let pool = DmaPool::new(PoolOptions::frames(128)).unwrap();
            let device = SimDevice::new(SimOptions::sized(1 << 20, 512), round, pool).unwrap();
            let device = Arc::new(device);
            let cache = Cache::new(Arc::clone(&device) as _, CacheOptions::frames(64)).unwrap();
            let reactor = Reactor::new(Arc::new(SystemClock::new())).unwrap();
            let volume = reactor.attach(cache, VolumeOptions::default()).unwrap();
            let host = reactor.attach_host(HostOptions::default()).unwrap();
            let handle = volume.open(OpenOptions::default());
            let context = reactor.context(ContextOptions::events(4 * CHAINS)).unwrap();
            let (reader, mut writer) = std::io::pipe().unwrap();
            let fd = Descriptor::new(reader);
            let read = || {
                let (fd, at) = (fd.clone(), Position::Current);
                Iocb::host(&host, HostOp::Read { fd, memory: vec![0; 1].into(), at, flags: 0 })
            };
            for chain in 0..CHAINS as u64 {
                let write = Iocb::pwrite(&handle, chain * 4096, vec![chain as u8 + 1; PAGE]);
                let (sync, last) = (Iocb::fsync(&handle), read().with_user_data(4 * chain + 3));
                let first = read().with_user_data(4 * chain);
                let chain = first
                    .then(write.with_user_data(4 * chain + 1))
                    .then(sync.with_user_data(4 * chain + 2))
                    .then(last);
                context.submit(chain).unwrap();
            }
            with_thread(&reactor, || {
                std::thread::scope(|threads| {
                    threads.spawn(|| {
                        for _ in 0..2 * CHAINS {
                            std::io::Write::write_all(&mut writer, &[1]).unwrap();
                            std::thread::sleep(Duration::from_micros(10));
                        }
                    });
                    std::thread::sleep(Duration::from_micros(round * 20));
                    reactor.close().unwrap();
                });
            });
            let mut events = Vec::new();
            let patience = Some(Duration::from_secs(10));
            let got = context.get_events(4 * CHAINS, 4 * CHAINS, &mut events, patience);
            assert_eq!(got, Ok(4 * CHAINS), "some have no event");
            let mut results = vec![None; 4 * CHAINS];
            for event in events {
                let result = &mut results[event.user_data as usize];
                assert_eq!(result.replace(event.result), None, "two events");
            }
            let mut stable = Vec::new();
            for results in results.chunks(4) {
                let done =
                    results.iter().take_while(|result| matches!(result, Some(Ok(_)))).count();
                let ends = [IoErrorKind::Cancelled, IoErrorKind::Gone];
                let ended = results[done..]
                    .iter()
                    .flatten()
                    .all(|result| result.is_err_and(|error| ends.contains(&error.kind)));
                assert!(ended, "{results:?}");
                stable.push(done);
            }
            (device, stable)
        });
        let image = device.durable_image();
        for (chain, done) in stable.into_iter().enumerate() {
            went[done] += 1;
            if done >= 2 {
                // Written: the close saved what was not stable yet.
                let seen = &image[chain * PAGE..][..PAGE];
                assert_eq!(seen, [chain as u8 + 1; PAGE], "round {round}, chain {chain}");
            }
        }
    }
    println!("chains by how many of four were done: {went:?}");
}

/// Calls a function when it is woken first.
struct OnWake(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Wake for OnWake {
    fn wake(self: Arc<Self>) {
        let run = self.0.lock().unwrap().take();
        run.into_iter().for_each(|run| run());
    }
}

fn on_wake(run: impl FnOnce() + Send + 'static) -> Notify {
    Notify::Waker(Waker::from(Arc::new(OnWake(Mutex::new(Some(Box::new(run)))))))
}

/// Closing answers several at once: the notice of the first has the last name of their context, which
/// cannot wait for the second.
#[test]
fn the_last_name_of_a_context_goes_in_a_notice_while_its_reactor_is_closed() {
    returns("close", || {
        let stack = stack(16, VolumeOptions::default());
        let host = stack.reactor.attach_host(HostOptions::default()).unwrap();
        let context = Arc::new(stack.reactor.context(ContextOptions::events(4)).unwrap());
        let (reader, _writer) = std::io::pipe().unwrap();
        let fd = Descriptor::new(reader);
        let read = || {
            let (fd, at) = (fd.clone(), Position::Current);
            let op = HostOp::Read { fd, memory: vec![0; 4].into(), at, flags: 0 };
            Iocb::host(&host, op)
        };
        let name = Arc::clone(&context);
        context.submit(read().with_notify(on_wake(move || drop(name)))).unwrap();
        context.submit(read()).unwrap();
        drop(context);
        stack.reactor.close().unwrap();
    });
}

#[test]
fn a_notice_makes_a_context_while_the_reactor_is_closed() {
    returns("close", || {
        let stack = Arc::new(stack(16, VolumeOptions::default()));
        let host = stack.reactor.attach_host(HostOptions::default()).unwrap();
        let context = stack.reactor.context(ContextOptions::events(4)).unwrap();
        let (reader, _writer) = std::io::pipe().unwrap();
        let (fd, at) = (Descriptor::new(reader), Position::Current);
        let op = HostOp::Read { fd, memory: vec![0; 4].into(), at, flags: 0 };
        let (made, is_made) = mpsc::channel();
        let name = Arc::clone(&stack);
        let notify = on_wake(move || {
            let context = name.reactor.context(ContextOptions::events(1));
            made.send(context.is_ok()).unwrap();
        });
        context.submit(Iocb::host(&host, op).with_notify(notify)).unwrap();
        stack.reactor.close().unwrap();
        assert_eq!(is_made.try_recv(), Ok(true));
    });
}

/// The notice of the first takes until the volume that the chain goes on with is gone.
#[test]
fn what_a_chain_goes_on_with_is_answered_when_it_is_gone() {
    returns("the chain", || {
        let stack = stack(16, VolumeOptions::default());
        let host = stack.reactor.attach_host(HostOptions::default()).unwrap();
        let handle = stack.volume.open(OpenOptions::default());
        let context = stack.reactor.context(ContextOptions::events(4)).unwrap();
        let (entered, is_entered) = mpsc::channel();
        let (closed, is_closed) = mpsc::channel();
        let first =
            Iocb::host(&host, HostOp::Nop).with_user_data(1).with_notify(on_wake(move || {
                entered.send(()).unwrap();
                is_closed.recv().unwrap();
            }));
        let write = Iocb::pwrite(&handle, 0, vec![1; PAGE]).with_user_data(2);
        let last = Iocb::host(&host, HostOp::Nop).with_user_data(3);
        with_thread(&stack.reactor, || {
            // Not on this thread, which is to close it.
            std::thread::scope(|threads| {
                threads.spawn(|| context.submit(first.then(write).then(last)).unwrap());
                is_entered.recv().unwrap();
                stack.reactor.close().unwrap();
                closed.send(()).unwrap();
            });
        });
        let mut events = Vec::new();
        assert_eq!(context.get_events(3, 3, &mut events, Some(10 * SHORT)), Ok(3));
        let results: Vec<_> = events
            .iter()
            .map(|event| (event.user_data, event.result.map_err(|error| error.kind)))
            .collect();
        let (gone, cancelled) = (Err(IoErrorKind::Gone), Err(IoErrorKind::Cancelled));
        assert_eq!(results, [(1, Ok(0)), (2, gone), (3, cancelled)]);
    });
}
