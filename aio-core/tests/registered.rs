//! Registered memory: the device reads and writes the caller's own frames, by the same rules as any
//! direct command.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{GateState, Stack, stack, with_thread};
use uaio_core::{
    AsyncContext, Buffers, Cancel, Context, ContextOptions, Event, Handle, Iocb, OpenOptions,
    Reactor, Refusal, RegisteredBuffer, VolumeOptions,
};
use uaio_driver::sim::{SimDevice, SimOptions};
use uaio_driver::{BlockDevice, DmaPool, IoError, IoErrorKind, Op, PoolOptions, SystemClock};
use uaio_page_cache::{Cache, CacheOptions};

const PAGE: usize = 4096;
const DIRECT: OpenOptions = OpenOptions { direct: true, dsync: false };
const STABLE: OpenOptions = OpenOptions { direct: true, dsync: true };

/// A stack with 64 frames beside the cache's.
fn with_room() -> (Stack, Context) {
    let stack = stack(64, VolumeOptions::default());
    let context = stack.reactor.context(ContextOptions::events(16)).unwrap();
    (stack, context)
}

fn free(stack: &Stack) -> usize {
    stack.volume.cache().device().pool().free_frames()
}

fn wait(context: &Context) -> Event {
    let mut events = Vec::new();
    context.get_events(1, 1, &mut events, Some(Duration::from_secs(20))).unwrap();
    events.remove(0)
}

fn run(context: &Context, iocb: Iocb) -> (Result<usize, IoError>, RegisteredBuffer) {
    context.submit(iocb).unwrap();
    let event = wait(context);
    (event.result, event.buffers.into_registered().expect("its memory comes back"))
}

/// Bytes that say where they are.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| random.u8(..)).collect()
}

fn filled(stack: &Stack, bytes: &[u8]) -> RegisteredBuffer {
    let mut buffer = stack.volume.registered_buffer(bytes.len()).unwrap();
    buffer.copy_from_slice(0, bytes);
    buffer
}

fn bytes(buffer: &RegisteredBuffer) -> Vec<u8> {
    let mut bytes = vec![0; buffer.len()];
    buffer.copy_to_slice(0, &mut bytes);
    bytes
}

fn read(handle: &Handle, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    assert_eq!(handle.pread(&mut bytes, offset), Ok(len));
    bytes
}

/// Where the frames of a buffer lie.
fn places(buffer: &RegisteredBuffer) -> Vec<usize> {
    buffer
        .words()
        .step_by(PAGE / 8)
        .map(|word| std::ptr::from_ref::<AtomicU64>(word) as usize)
        .collect()
}

fn moved(gate: &Arc<GateState>) -> Vec<(Op, Vec<usize>)> {
    std::mem::take(&mut gate.moved.lock().unwrap())
}

#[test]
fn the_device_moves_the_very_frames_of_a_registered_buffer_and_no_frame_is_lost() {
    let (stack, context) = with_room();
    let before = free(&stack);
    let direct = stack.volume.open(DIRECT);
    // Aligned to pages, within one, across several from a block on, and a single block.
    for (round, (offset, len)) in
        [(0, 4 * PAGE), (8192, 512), (1536, 5 * PAGE), (512, 512), (3584, 1024)]
            .into_iter()
            .enumerate()
    {
        let data = pattern(round as u64, len);
        let buffer = filled(&stack, &data);
        let places = places(&buffer);
        let used = &places[..len.div_ceil(PAGE)];
        moved(&stack.gate);
        let (result, buffer) = run(&context, Iocb::pwrite_registered(&direct, offset, buffer));
        assert_eq!(result, Ok(len));
        let mut buffer = buffer;
        assert_eq!(moved(&stack.gate), [(Op::Write { fua: false }, used.to_vec())]);
        buffer.copy_from_slice(0, &vec![0; len]);
        let (result, buffer) = run(&context, Iocb::pread_registered(&direct, offset, buffer));
        assert_eq!(result, Ok(len));
        assert_eq!(moved(&stack.gate), [(Op::Read, used.to_vec())]);
        assert!(bytes(&buffer) == data, "{offset}+{len}");
        assert_eq!(read(&direct, offset, len), data);
    }
    assert_eq!(free(&stack), before, "a frame was lost");
    assert_eq!(stack.volume.cache().frames_lent(), 0);
}

#[test]
fn a_long_command_goes_piece_by_piece_out_of_one_buffer() {
    let stack = common::stack_beside(700, 64, VolumeOptions::default());
    let context = stack.reactor.context(ContextOptions::events(4)).unwrap();
    let direct = stack.volume.open(DIRECT);
    // Three pieces of at most a mebibyte.
    let len = (2 << 20) + 5 * PAGE + 512;
    let data = pattern(9, len);
    // Past the end it is short.
    let start = common::SIZE - (len as u64 - 1024);
    let (result, buffer) =
        run(&context, Iocb::pwrite_registered(&direct, start, filled(&stack, &data)));
    assert_eq!(result, Ok(len - 1024));
    assert_eq!(buffer.len(), len);
    assert!(read(&direct, start, len - 1024) == data[..len - 1024]);
    let (result, buffer) = run(&context, Iocb::pread_registered(&direct, start, buffer));
    assert_eq!(result, Ok(len - 1024));
    assert!(bytes(&buffer) == data);
    let (result, _) = run(&context, Iocb::pread_registered(&direct, common::SIZE, buffer));
    assert_eq!(result, Ok(0));
}

#[test]
fn what_is_dirty_in_the_cache_is_what_a_registered_read_gives() {
    let (stack, context) = with_room();
    let (cached, direct) = (stack.volume.open(OpenOptions::default()), stack.volume.open(DIRECT));
    let old = pattern(1, 4 * PAGE);
    cached.pwrite(&old, 0).unwrap();
    cached.fsync().unwrap();
    stack.volume.cache().drop_clean(0..common::SIZE);
    // One whole page, one block of another, a few bytes of a third.
    let mut newest = old;
    for range in [0..PAGE, PAGE + 512..PAGE + 1024, 2 * PAGE + 7..2 * PAGE + 19] {
        newest[range.clone()].fill(0xab);
        cached.pwrite(&newest[range.clone()], range.start as u64).unwrap();
    }
    let buffer = stack.volume.registered_buffer(4 * PAGE).unwrap();
    let (result, buffer) = run(&context, Iocb::pread_registered(&direct, 0, buffer));
    assert_eq!(result, Ok(4 * PAGE));
    assert!(bytes(&buffer) == newest);
}

#[test]
fn a_registered_write_replaces_what_is_cached_and_only_that() {
    let (stack, context) = with_room();
    let (cached, direct) = (stack.volume.open(OpenOptions::default()), stack.volume.open(DIRECT));
    let mut newest = pattern(2, 4 * PAGE);
    cached.pwrite(&newest, 0).unwrap();
    // Part of a dirty page, a whole one, part of the next; the rest stays dirty.
    let (start, len) = (512, 2 * PAGE);
    let data = pattern(3, len);
    newest[start..start + len].copy_from_slice(&data);
    let (result, buffer) =
        run(&context, Iocb::pwrite_registered(&direct, start as u64, filled(&stack, &data)));
    assert_eq!(result, Ok(len));
    drop(buffer);
    assert!(read(&cached, 0, 4 * PAGE) == newest);
    cached.fsync().unwrap();
    stack.volume.cache().drop_clean(0..common::SIZE);
    assert!(read(&cached, 0, 4 * PAGE) == newest, "an older write came after it");
}

#[test]
fn the_buffer_can_be_written_again_while_a_reader_pins_what_it_wrote() {
    let (stack, context) = with_room();
    let (cached, direct) = (stack.volume.open(OpenOptions::default()), stack.volume.open(DIRECT));
    let (_, mut buffer) =
        run(&context, Iocb::pwrite_registered(&direct, 0, filled(&stack, &[5; PAGE])));
    assert_eq!(read(&cached, 0, PAGE), [5; PAGE]);
    let pin = cached.try_pin(0).expect("it is cached");
    buffer.copy_from_slice(0, &[6; PAGE]);
    let (result, mut buffer) = run(&context, Iocb::pwrite_registered(&direct, 0, buffer));
    assert_eq!(result, Ok(PAGE));
    buffer.copy_from_slice(0, &[7; PAGE]);
    let mut seen = [0; PAGE];
    pin.frame().read(0, &mut seen);
    assert_eq!(seen, [5; PAGE], "a pinned page stays as it was");
    drop(pin);
    assert_eq!(read(&cached, 0, PAGE), [6; PAGE]);
}

#[test]
fn a_stable_registered_write_is_stable_alone_and_beside_others() {
    let pool = DmaPool::new(PoolOptions::frames(128)).unwrap();
    let options = SimOptions::sized(1 << 20, 512);
    let device = Arc::new(SimDevice::new(options, 7, pool).unwrap());
    assert!(device.capabilities().volatile_cache);
    let cache = Cache::new(device.clone(), CacheOptions::frames(64)).unwrap();
    let reactor = Reactor::new(Arc::new(SystemClock::new())).unwrap();
    let volume = reactor.attach(cache, VolumeOptions::default()).unwrap();
    let context = reactor.context(ContextOptions::events(16)).unwrap();
    let stable = volume.open(STABLE);
    for at_once in [1, 6] {
        for n in 0..at_once {
            let mut buffer = volume.registered_buffer(2 * PAGE).unwrap();
            buffer.copy_from_slice(0, &[10 * at_once as u8 + n as u8; 2 * PAGE]);
            let iocb = Iocb::pwrite_registered(&stable, n * 8192, buffer);
            context.submit(iocb.with_user_data(n)).unwrap();
        }
        for _ in 0..at_once {
            let event = wait(&context);
            assert_eq!(event.result, Ok(2 * PAGE));
            let start = event.user_data as usize * 8192;
            let durable = &device.durable_image()[start..start + 8192];
            let byte = 10 * at_once as u8 + event.user_data as u8;
            assert!(durable.iter().all(|seen| *seen == byte), "write {}", event.user_data);
        }
    }
}

#[test]
fn memory_that_cannot_be_used_is_refused_and_comes_back() {
    let (stack, context) = with_room();
    let (cached, direct) = (stack.volume.open(OpenOptions::default()), stack.volume.open(DIRECT));
    let refused = |iocb: Iocb| {
        let refused = context.submit(iocb).expect_err("it was taken");
        assert_eq!(refused.reason, Refusal::Invalid);
        refused.iocb.into_buffers().into_registered().expect("its memory comes back")
    };
    let buffer = stack.volume.registered_buffer(PAGE).unwrap();
    let buffer = refused(Iocb::pread_registered(&cached, 0, buffer));
    let buffer = refused(Iocb::pwrite_registered(&cached, 0, buffer));
    let mut buffer = refused(Iocb::pread_registered(&direct, 100, buffer));
    buffer.set_len(700);
    refused(Iocb::pwrite_registered(&direct, 0, buffer));
    // Of another device's pool.
    let other = common::stack(64, VolumeOptions::default());
    let foreign = other.volume.registered_buffer(PAGE).unwrap();
    refused(Iocb::pread_registered(&direct, 0, foreign));
    assert!(stack.volume.registered_buffer(0).is_err());
    assert!(stack.volume.registered_buffer(100).is_err());
    assert!(stack.volume.registered_buffer(PAGE << 20).is_err());
    assert_eq!(context.outstanding(), 0);
}

#[test]
fn an_error_of_the_device_gives_the_buffer_back_once_and_leaves_nothing_dirty() {
    let (stack, context) = with_room();
    let before = free(&stack);
    let direct = stack.volume.open(DIRECT);
    stack.gate.fails.store(true, Ordering::SeqCst);
    let media = Err(IoError::new(IoErrorKind::Media));
    let (result, buffer) =
        run(&context, Iocb::pwrite_registered(&direct, 0, filled(&stack, &[1; 2 * PAGE])));
    assert_eq!(result, media);
    let (result, buffer) = run(&context, Iocb::pread_registered(&direct, 0, buffer));
    assert_eq!(result, media);
    stack.gate.fails.store(false, Ordering::SeqCst);
    assert_eq!(stack.volume.cache().dirty_ranges(), []);
    let (result, buffer) = run(&context, Iocb::pread_registered(&direct, 0, buffer));
    assert_eq!(result, Ok(2 * PAGE), "the buffer is as good as new");
    drop(buffer);
    assert_eq!(free(&stack), before);
    assert_eq!(stack.volume.cache().frames_lent(), 0);
}

#[test]
fn cancelled_while_the_device_is_at_it_the_frames_stay_the_devices_until_it_is_done() {
    for writes in [false, true] {
        let (stack, context) = with_room();
        let before = free(&stack);
        let direct = stack.volume.open(DIRECT);
        stack.gate.stick(true);
        let buffer = filled(&stack, &[9; PAGE]);
        let iocb = match writes {
            true => Iocb::pwrite_registered(&direct, 0, buffer),
            false => Iocb::pread_registered(&direct, 0, buffer),
        };
        let ticket = context.submit(iocb).unwrap();
        stack.reactor.turn();
        assert_eq!(context.cancel(ticket), Cancel::InProgress);
        (0..20).for_each(|_| _ = stack.reactor.turn());
        assert_eq!(context.outstanding(), 1, "its memory is the device's");
        assert!(free(&stack) < before);
        stack.gate.stick(false);
        let event = wait(&context);
        // The device was asked to end it, and this one does so while it has not begun.
        assert_eq!(stack.gate.cancels.load(Ordering::SeqCst), 1);
        assert_eq!(event.result, Err(IoError::new(IoErrorKind::Cancelled)));
        assert_eq!(event.buffers.len(), PAGE, "its memory comes back");
        assert_eq!(context.outstanding(), 0, "one event, not two");
        drop(event);
        assert_eq!(free(&stack), before);
    }
}

#[test]
fn a_context_dropped_mid_flight_loses_no_registered_frame() {
    let (stack, context) = with_room();
    let before = free(&stack);
    let direct = stack.volume.open(DIRECT);
    for n in 0..8 {
        let buffer = filled(&stack, &[9; 2 * PAGE]);
        let iocb = match n % 2 {
            0 => Iocb::pwrite_registered(&direct, n * 4096, buffer),
            _ => Iocb::pread_registered(&direct, n * 4096, buffer),
        };
        context.submit(iocb).unwrap();
    }
    drop(context);
    while stack.reactor.turn() {}
    assert_eq!(free(&stack), before);
    assert_eq!(stack.volume.cache().frames_lent(), 0);
}

#[test]
fn a_future_takes_registered_memory_and_gives_it_back() {
    let (stack, context) = with_room();
    let before = free(&stack);
    let direct = stack.volume.open(DIRECT);
    let aio = AsyncContext::new(context);
    with_thread(&stack.reactor, || {
        smol::block_on(async {
            let data = pattern(4, 3 * PAGE);
            let done = aio.run(Iocb::pwrite_registered(&direct, 512, filled(&stack, &data))).await;
            assert_eq!(done.result, Ok(3 * PAGE));
            let Buffers::Registered(mut buffer) = done.buffers else {
                panic!("{:?}", done.buffers)
            };
            buffer.copy_from_slice(0, &[0; 3 * PAGE]);
            let done = aio.run(Iocb::pread_registered(&direct, 512, buffer)).await;
            assert!(bytes(&done.buffers.into_registered().unwrap()) == data);
        });
        drop(aio);
    });
    assert_eq!(free(&stack), before);
}
