//! The commands as futures: on several executors, dropped at any time, in line for a slot.

mod common;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context as Task, Poll, Wake, Waker};
use std::time::Duration;

use common::{SIZE, stack, with_thread};
use futures_util::{StreamExt, stream::FuturesUnordered};
use uaio_core::{AsyncContext, ContextOptions, Iocb, OpenOptions, Refusal, VolumeOptions};

/// Counts how often it is woken.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Waits for something that other threads do.
fn until(what: &str, mut there: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !there() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what} did not come");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Writes, syncs and reads back with many commands at once; the oracle is the pattern.
async fn exercise(aio: AsyncContext, handle: uaio_core::Handle) {
    let writes: FuturesUnordered<_> =
        (0..200u64).map(|n| aio.pwrite(&handle, n * 5000, vec![n as u8; 5000])).collect();
    let written: Vec<_> = writes.collect().await;
    assert_eq!(written.len(), 200);
    assert!(written.iter().all(|(result, _)| *result == Ok(5000)));
    assert_eq!(aio.fsync(&handle).await, Ok(()));
    assert_eq!(aio.sync_range(&handle, 0, 4096).await, Ok(()));
    assert_eq!(aio.write_zeroes(&handle, 0, 4096).await, Ok(()));
    for n in 0..200u64 {
        let (result, bytes) = aio.pread(&handle, n * 5000, vec![255; 5000]).await;
        assert_eq!(result, Ok(5000));
        let zeroed = if n == 0 { 4096 } else { 0 };
        assert!(bytes[..zeroed].iter().all(|byte| *byte == 0), "{n}");
        assert!(bytes[zeroed..].iter().all(|byte| *byte == n as u8), "{n}");
    }
    let (result, pieces) = aio.preadv(&handle, 4999, vec![vec![9; 1], vec![9; 2]]).await;
    assert_eq!((result, pieces), (Ok(3), vec![vec![0], vec![1, 1]]));
    let (result, _) = aio.pwritev(&handle, 0, vec![vec![1], vec![2, 3]]).await;
    assert_eq!(result, Ok(3));
    let (result, bytes) = aio.pread(&handle, 0, vec![0; 3]).await;
    assert_eq!((result, bytes), (Ok(3), vec![1, 2, 3]));
}

#[test]
fn futures_run_on_tokio() {
    let stack = stack(32, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    let aio = AsyncContext::new(stack.reactor.context(ContextOptions::events(16)).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    with_thread(&stack.reactor, || {
        let tasks: Vec<_> = (0..4).map(|_| aio.clone()).collect();
        // One after the other where they write the same bytes; on the runtime's own threads.
        for aio in tasks {
            runtime.block_on(runtime.spawn(exercise(aio, handle.clone()))).unwrap();
        }
        drop(aio);
    });
}

#[test]
fn futures_run_on_smol() {
    let stack = stack(32, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    let aio = AsyncContext::new(stack.reactor.context(ContextOptions::events(3)).unwrap());
    with_thread(&stack.reactor, || {
        smol::block_on(smol::spawn(exercise(aio, handle)));
    });
}

#[test]
fn a_hit_is_ready_at_the_first_poll_and_takes_no_slot() {
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    handle.pwrite(&[7; 4096], 0).unwrap();
    let aio = AsyncContext::new(stack.reactor.context(ContextOptions::events(1)).unwrap());
    let mut task = Task::from_waker(Waker::noop());
    // A miss has the only slot; nobody turns the reactor.
    stack.gate.stick(true);
    let mut miss = pin!(aio.pread(&handle, 1 << 20, vec![0; 4096]));
    assert!(miss.as_mut().poll(&mut task).is_pending());
    let mut hit = pin!(aio.pread(&handle, 10, vec![0; 100]));
    let Poll::Ready((result, bytes)) = hit.as_mut().poll(&mut task) else {
        panic!("a hit waits");
    };
    assert_eq!((result, bytes), (Ok(100), vec![7; 100]));
    stack.gate.stick(false);
    with_thread(&stack.reactor, || assert_eq!(smol::block_on(miss).0, Ok(4096)));
}

#[test]
fn dropping_a_future_cancels_and_gives_its_slot_to_the_next_in_line() {
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    let aio = AsyncContext::new(stack.reactor.context(ContextOptions::events(1)).unwrap());
    stack.gate.stick(true);
    let count = Arc::new(Count::default());
    let waker = Waker::from(Arc::clone(&count));
    let mut task = Task::from_waker(&waker);
    let mut first = Box::pin(aio.pread(&handle, 0, vec![0; 4096]));
    let mut second = Box::pin(aio.pread(&handle, 1 << 20, vec![0; 4096]));
    let mut third = Box::pin(aio.pread(&handle, 2 << 20, vec![0; 4096]));
    assert!(first.as_mut().poll(&mut task).is_pending());
    assert!(second.as_mut().poll(&mut task).is_pending());
    assert!(third.as_mut().poll(&mut task).is_pending());
    assert_eq!(count.0.load(Ordering::SeqCst), 0);
    with_thread(&stack.reactor, || {
        drop(first);
        until("the slot of the first", || count.0.load(Ordering::SeqCst) == 1);
        // What was given to the second goes on to the third.
        drop(second);
        until("the slot of the second", || count.0.load(Ordering::SeqCst) == 2);
        assert!(third.as_mut().poll(&mut task).is_pending());
        stack.gate.stick(false);
        assert_eq!(smol::block_on(third).0, Ok(4096));
    });
}

#[test]
fn a_newcomer_does_not_overtake_who_waits_for_a_slot() {
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    let aio = AsyncContext::new(stack.reactor.context(ContextOptions::events(1)).unwrap());
    let (count, mut idle) = (Arc::new(Count::default()), Task::from_waker(Waker::noop()));
    let waker = Waker::from(Arc::clone(&count));
    stack.gate.stick(true);
    let mut first = Box::pin(aio.pread(&handle, 0, vec![0; 4096]));
    let mut second = Box::pin(aio.pread(&handle, 1 << 20, vec![0; 4096]));
    assert!(first.as_mut().poll(&mut idle).is_pending());
    assert!(second.as_mut().poll(&mut Task::from_waker(&waker)).is_pending());
    with_thread(&stack.reactor, || {
        drop(first);
        until("the slot of the first", || count.0.load(Ordering::SeqCst) == 1);
        let mut third = Box::pin(aio.pread(&handle, 2 << 20, vec![0; 4096]));
        assert!(third.as_mut().poll(&mut idle).is_pending());
        stack.gate.stick(false);
        // The third cannot be done before the second has been.
        let order = std::sync::Mutex::new(Vec::new());
        smol::block_on(async {
            let (second, third) = (
                async {
                    assert_eq!(second.await.0, Ok(4096));
                    order.lock().unwrap().push(2)
                },
                async {
                    assert_eq!(third.await.0, Ok(4096));
                    order.lock().unwrap().push(3)
                },
            );
            futures_util::future::join(third, second).await;
        });
        assert_eq!(*order.lock().unwrap(), [2, 3]);
    });
}

#[test]
fn a_chain_and_a_handle_of_another_reactor_are_refused_with_their_memory() {
    let (here, there) = (stack(64, VolumeOptions::default()), stack(64, VolumeOptions::default()));
    let aio = AsyncContext::new(here.reactor.context(ContextOptions::events(1)).unwrap());
    let (own, foreign) =
        (here.volume.open(OpenOptions::default()), there.volume.open(OpenOptions::default()));
    let chain = Iocb::pwrite(&own, 0, vec![1; 10]).then(Iocb::fsync(&own)).with_user_data(4);
    let finished = smol::block_on(aio.run(chain));
    assert_eq!(finished.result, Err(Refusal::Invalid.into()));
    assert_eq!((finished.user_data, finished.buffers.into_bytes()), (4, vec![1; 10]));
    let (result, bytes) = smol::block_on(aio.pwrite(&foreign, 0, vec![2; 10]));
    assert_eq!((result, bytes), (Err(Refusal::Invalid.into()), vec![2; 10]));
    // Nothing was lost: the only slot is there.
    with_thread(&here.reactor, || {
        assert_eq!(smol::block_on(aio.pwrite(&own, 0, vec![3; 10])).0, Ok(10));
    });
}

#[test]
fn the_future_of_a_closed_volume_says_so() {
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    let aio = AsyncContext::new(stack.reactor.context(ContextOptions::events(1)).unwrap());
    stack.reactor.close().unwrap();
    let (result, bytes) = smol::block_on(aio.pwrite(&handle, 0, vec![2; 10]));
    assert_eq!((result, bytes), (Err(Refusal::Closed.into()), vec![2; 10]));
}

#[test]
fn the_stream_gives_every_event_once_and_sleeps_between() {
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    let context = stack.reactor.context(ContextOptions::events(300)).unwrap();
    with_thread(&stack.reactor, || {
        let mut events = context.events();
        for round in 0..3u64 {
            stack.gate.stick(true);
            for n in 0..100 {
                let offset = round * (2 << 20) + n * 8192;
                let iocb = Iocb::pread(&handle, offset, vec![1; 512]).with_user_data(n);
                context.submit(iocb).unwrap();
            }
            let gate = Arc::clone(&stack.gate);
            let opener = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(5));
                gate.stick(false);
            });
            let mut seen: Vec<u64> = smol::block_on(async {
                let event = |event: uaio_core::Event| {
                    assert_eq!(event.result, Ok(512));
                    event.user_data
                };
                events.by_ref().take(100).map(event).collect().await
            });
            opener.join().unwrap();
            seen.sort_unstable();
            assert_eq!(seen, Vec::from_iter(0..100));
        }
        let mut more = pin!(events.next());
        assert!(more.as_mut().poll(&mut Task::from_waker(Waker::noop())).is_pending());
    });
}

/// Tasks that begin, poll and drop futures at random, on threads of their own. The oracle: every read
/// that is awaited brings the bytes of its place, and at the end every slot is free.
#[test]
fn dropped_at_any_time_no_slot_and_no_memory_is_lost() {
    let seed = std::env::var("UAIO_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("UAIO_SEED={seed}");
    let stack = stack(32, VolumeOptions { operations: 8, inbox: 8, ..VolumeOptions::default() });
    let handle = stack.volume.open(OpenOptions::default());
    let pattern = |offset: u64| (offset / 4096 % 251) as u8;
    for offset in (0..SIZE).step_by(4096) {
        handle.pwrite(&[pattern(offset); 4096], offset).unwrap();
    }
    let aio = AsyncContext::new(stack.reactor.context(ContextOptions::events(5)).unwrap());
    with_thread(&stack.reactor, || {
        std::thread::scope(|threads| {
            for thread in 0..3 {
                let (aio, handle) = (aio.clone(), handle.clone());
                threads.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(seed + thread);
                    let mut task = Task::from_waker(Waker::noop());
                    for _ in 0..2000 {
                        let offset = random.u64(..SIZE / 4096) * 4096;
                        let mut future = Box::pin(aio.pread(&handle, offset, vec![255; 4096]));
                        for _ in 0..random.usize(..3) {
                            if let Poll::Ready((result, bytes)) = future.as_mut().poll(&mut task) {
                                assert_eq!(
                                    (result, bytes),
                                    (Ok(4096), vec![pattern(offset); 4096])
                                );
                                future = Box::pin(aio.pread(&handle, offset, vec![255; 4096]));
                            }
                        }
                        if random.bool() {
                            let (result, bytes) = smol::block_on(future);
                            assert_eq!((result, bytes), (Ok(4096), vec![pattern(offset); 4096]));
                        }
                    }
                });
            }
        });
        // All five slots at once.
        let all: FuturesUnordered<_> =
            (0..5).map(|n| aio.pwrite(&handle, n * 4096, vec![1; 4096])).collect();
        let all: Vec<_> = smol::block_on(all.collect());
        assert!(all.iter().all(|(result, _)| *result == Ok(4096)));
    });
}

#[test]
fn a_scope_lends_memory_and_returns_when_all_is_done() {
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    let source: Vec<u8> = (0..1u32 << 20).map(|n| (n / 999) as u8).collect();
    let check = || {
        let ((), results) = stack
            .reactor
            .scope(4, |scope| {
                for (n, part) in source.chunks(70_000).enumerate() {
                    scope.pwrite(&handle, n as u64 * 70_000, part);
                }
                scope.fsync(&handle);
            })
            .unwrap();
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        let mut back = vec![0; 1 << 20];
        let ((), results) = stack
            .reactor
            .scope(4, |scope| {
                for (n, part) in back.chunks_mut(70_000).enumerate() {
                    scope.pread(&handle, n as u64 * 70_000, part);
                }
            })
            .unwrap();
        assert_eq!(results.iter().map(|result| result.unwrap()).sum::<usize>(), 1 << 20);
        assert!(back == source);
        // Past the end, short; what is not possible is refused in its place.
        let (mut short, mut odd) = ([5; 10], [5; 10]);
        let ((), results) = stack
            .reactor
            .scope(1, |scope| {
                scope.pread(&handle, SIZE - 4, &mut short);
                scope.pread(&handle, u64::MAX, &mut odd);
            })
            .unwrap();
        assert_eq!(results, [Ok(4), Err(Refusal::Invalid.into())]);
        assert_eq!((&short[4..], odd), (&[5; 6][..], [5; 10]));
    };
    // Without a thread, and with one.
    check();
    with_thread(&stack.reactor, check);
}

/// They can be moved between threads and kept in tasks.
#[test]
fn the_futures_are_send() {
    fn is_send<T: Send + 'static>(_: &T) {}
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    let aio = AsyncContext::new(stack.reactor.context(ContextOptions::events(1)).unwrap());
    is_send(&aio.run(Iocb::fsync(&handle)));
    is_send(&aio.pread(&handle, 0, Vec::new()));
    is_send(&aio.pwritev(&handle, 0, Vec::new()));
    is_send(&aio.fdatasync(&handle));
    is_send(&aio);
}
