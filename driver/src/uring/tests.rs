//! On regular files in the target folder, which must be on a file system with direct I/O.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::*;
use crate::block::Cancel;
use crate::conformance;
use crate::dma::PoolOptions;
use crate::error::IoErrorKind;
use crate::request::{Completion, Lba, Op, Refusal, Request, SgList};
use crate::slots::Token;

/// A folder of its own for one test, removed with what is in it.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> Self {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tmp");
        let folder =
            target.join(format!("uring-{}-{:016x}", std::process::id(), fastrand::u64(..)));
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const SIZE_BYTES: u64 = 8 << 20;

fn pool() -> DmaPool {
    DmaPool::new(PoolOptions::frames(1024)).unwrap()
}

fn create(scratch: &Scratch) -> UringDevice {
    UringDevice::open(&UringOptions::create(scratch.path("disk"), SIZE_BYTES), pool()).unwrap()
}

fn error_of(options: &UringOptions) -> String {
    UringDevice::open(options, pool()).map(drop).expect_err("opened").to_string()
}

fn queue_of(device: &UringDevice, depth: u16) -> Box<dyn IoQueue> {
    device.open_queue(QueueOptions::polled(depth)).unwrap()
}

/// Commits and polls until everything is answered; bounded.
fn finish(queue: &mut dyn IoQueue) -> Vec<Completion> {
    queue.commit();
    let mut out = Vec::new();
    let start = Instant::now();
    while queue.in_flight() > 0 {
        queue.poll(64, &mut out);
        assert!(start.elapsed() < Duration::from_secs(60), "hung");
    }
    out
}

fn one(queue: &mut dyn IoQueue, request: Request) -> Completion {
    queue.submit(request).unwrap();
    finish(queue).remove(0)
}

const TOKEN: Token = Token { slot: 1, generation: 2 };

fn filled(device: &UringDevice, frames: usize, value: u8) -> SgList {
    let data = SgList::new((0..frames).map(|_| device.pool().take().unwrap()).collect());
    data.copy_from_slice(0, &vec![value; frames * 4096]);
    data
}

fn bytes_of(data: &SgList, len_bytes: usize) -> Vec<u8> {
    let mut bytes = vec![0; len_bytes];
    data.copy_to_slice(0, &mut bytes);
    bytes
}

#[test]
fn a_file_conforms_in_every_block_size() {
    for block_size in [None, Some(512), Some(1024), Some(4096)] {
        let scratch = Scratch::new();
        let options =
            UringOptions { block_size, ..UringOptions::create(scratch.path("disk"), SIZE_BYTES) };
        let device = match UringDevice::open(&options, pool()) {
            Ok(device) => device,
            // A file system whose direct I/O has larger blocks says so.
            Err(DeviceError::Invalid(why)) if block_size.is_some_and(|size| size < 4096) => {
                assert!(why.contains("cannot have blocks"), "{why}");
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        assert!(device.capabilities().volatile_cache, "a file has a volatile cache");
        conformance::run(&device);
        device.close().unwrap();
        assert_eq!(device.health(), Health::Good);
        assert_eq!(device.warnings(), [""; 0]);
    }
}

#[test]
fn a_file_that_a_thread_of_the_kernel_submits_to_conforms_after_that_has_slept_too() {
    let scratch = Scratch::new();
    let sqpoll_idle = Some(Duration::from_millis(1));
    let options =
        UringOptions { sqpoll_idle, ..UringOptions::create(scratch.path("disk"), SIZE_BYTES) };
    let device = UringDevice::open(&options, pool()).unwrap();
    conformance::run(&device);
    let mut queue = queue_of(&device, 4);
    for _ in 0..3 {
        // It sleeps by now: a commit that did not wake it would hang here.
        std::thread::sleep(Duration::from_millis(20));
        let data = SgList::new(vec![device.pool().take().unwrap()]);
        let read = Request { token: TOKEN, op: Op::Read, lba: Lba(0), blocks: 1, data };
        assert_eq!(one(&mut *queue, read).result, Ok(()));
    }
    drop(queue);
    device.close().unwrap();
    assert_eq!(device.warnings(), [""; 0]);
    drop(device);
    // Nothing of the kernel's holds on to it.
    drop(UringDevice::open(&UringOptions::existing(scratch.path("disk")), pool()).unwrap());
}

#[test]
fn a_created_file_is_sparse_and_has_its_size() {
    let scratch = Scratch::new();
    let device = create(&scratch);
    let metadata = std::fs::metadata(scratch.path("disk")).unwrap();
    assert_eq!((metadata.len(), metadata.blocks()), (SIZE_BYTES, 0));
    assert_eq!(device.geometry().size_bytes(), SIZE_BYTES);
}

#[test]
fn a_file_that_exists_is_not_created_again_and_keeps_its_bytes() {
    let scratch = Scratch::new();
    let path = scratch.path("disk");
    std::fs::write(&path, [7; 4096]).unwrap();
    let error = error_of(&UringOptions::create(&path, SIZE_BYTES));
    assert_eq!(error, format!("cannot create {}: File exists (os error 17)", path.display()));
    assert_eq!(std::fs::read(&path).unwrap(), [7; 4096]);
}

#[test]
fn a_created_file_that_cannot_be_opened_is_removed_again() {
    let scratch = Scratch::new();
    let path = scratch.path("disk");
    let error = error_of(&UringOptions::create(&path, 1000));
    assert!(error.contains("has 1000 bytes, which is not a positive multiple"), "{error}");
    assert!(!path.exists());
}

#[test]
fn a_file_is_served_once_or_read_by_many() {
    let scratch = Scratch::new();
    let path = scratch.path("disk");
    let device = create(&scratch);
    let reading = UringOptions { read_only: true, ..UringOptions::existing(&path) };
    for options in [&UringOptions::existing(&path), &reading] {
        let expected = format!(
            "{} is locked by another server: Device or resource busy (os error 16)",
            path.display()
        );
        assert_eq!(error_of(options), expected);
    }
    drop(device);
    let readers = [(); 2].map(|()| UringDevice::open(&reading, pool()).unwrap());
    assert!(error_of(&UringOptions::existing(&path)).contains("is locked"));
    let mut queue = queue_of(&readers[0], 1);
    let refused = queue.submit(Request::write(TOKEN, Lba(0), 1, filled(&readers[0], 1, 1), false));
    assert_eq!(refused.unwrap_err().reason, Refusal::ReadOnly);
    assert_eq!(one(&mut *queue, Request::flush(TOKEN)).result, Ok(()));
}

/// A closed io_uring lets go of its file later, in a worker of the kernel; a device that was dropped
/// has let go.
#[test]
fn a_device_that_was_dropped_can_be_opened_again_at_once() {
    let scratch = Scratch::new();
    drop(create(&scratch));
    for round in 0..50 {
        let device = UringDevice::open(&UringOptions::existing(scratch.path("disk")), pool());
        let device = device.unwrap_or_else(|error| panic!("round {round}: {error}"));
        let mut queue = queue_of(&device, 4);
        assert_eq!(one(&mut *queue, Request::flush(TOKEN)).result, Ok(()));
    }
}

#[test]
fn what_cannot_be_a_backend_is_refused_with_what_to_do() {
    let scratch = Scratch::new();
    let path = scratch.path("disk");
    let existing = UringOptions::existing(&path);
    let line = |what: &str| format!("{} {what}", path.display());
    let missing = format!("cannot open {}: No such file or directory (os error 2)", path.display());
    assert_eq!(error_of(&existing), missing);
    std::fs::write(&path, []).unwrap();
    let empty = "has 0 bytes, which is not a positive multiple of the block size, 4096 bytes";
    let large = UringOptions { block_size: Some(4096), ..existing.clone() };
    assert_eq!(error_of(&large), line(empty));
    std::fs::write(&path, [0; 4608]).unwrap();
    let odd = "has 4608 bytes, which is not a positive multiple of the block size, 4096 bytes";
    assert_eq!(error_of(&large), line(odd));
    for block_size in [0, 256, 520, 8192] {
        let error = error_of(&UringOptions { block_size: Some(block_size), ..existing.clone() });
        assert!(error.contains(&format!("cannot have blocks of {block_size} bytes")), "{error}");
    }
    let error = error_of(&UringOptions::existing(scratch.path("")));
    assert!(error.ends_with("is neither a regular file nor a block device"), "{error}");
    let error = error_of(&UringOptions::existing("/dev/null"));
    assert_eq!(error, "/dev/null is neither a regular file nor a block device");
    // A regular file of a file system without direct I/O.
    let proc = UringOptions { read_only: true, ..UringOptions::existing("/proc/version") };
    let expected = "/proc/version is on a file system without direct I/O (O_DIRECT), and a backend \
                    is never buffered";
    assert_eq!(error_of(&proc), expected);
}

#[test]
fn scattered_frames_and_frames_in_a_row_carry_the_same_bytes() {
    let scratch = Scratch::new();
    let device = create(&scratch);
    let mut queue = queue_of(&device, 4);
    let len_bytes = 8 * 4096;
    let mut random = fastrand::Rng::with_seed(1);
    let mut bytes = vec![0; len_bytes];
    random.fill(&mut bytes);
    let blocks = len_bytes as u32 / device.geometry().block_size;
    let mut scattered = filled(&device, 8, 0);
    scattered.frames.reverse();
    scattered.copy_from_slice(0, &bytes);
    let done = one(&mut *queue, Request::write(TOKEN, Lba(8), blocks, scattered, true));
    assert_eq!(done.result, Ok(()));
    drop(done);
    for reversed in [false, true] {
        let mut data = filled(&device, 8, 0);
        if reversed {
            data.frames.reverse();
        }
        let done = one(&mut *queue, Request::read(TOKEN, Lba(8), blocks, data));
        assert_eq!(done.result, Ok(()));
        assert!(bytes_of(&done.data, len_bytes) == bytes, "reversed: {reversed}");
    }
}

#[test]
fn a_file_truncated_under_us_is_an_error_and_never_zeroes() {
    let scratch = Scratch::new();
    let device = create(&scratch);
    let mut queue = queue_of(&device, 4);
    let block_size = device.geometry().block_size;
    let blocks = 16384 / block_size;
    let done =
        one(&mut *queue, Request::write(TOKEN, Lba(0), blocks, filled(&device, 4, 5), false));
    assert_eq!(done.result, Ok(()));
    drop(done);
    let file = std::fs::OpenOptions::new().write(true).open(scratch.path("disk")).unwrap();
    for len_bytes in [0, 1000, 8192, 8192 + 1000] {
        file.set_len(len_bytes).unwrap();
        let done = one(&mut *queue, Request::read(TOKEN, Lba(0), blocks, filled(&device, 4, 9)));
        assert_eq!(done.result, Err(IoError::from_errno(libc::ENODATA)), "{len_bytes} bytes");
    }
}

#[test]
fn zeroes_are_zeroes_however_they_get_there() {
    let scratch = Scratch::new();
    let device = create(&scratch);
    let mut queue = queue_of(&device, 8);
    let block_size = device.geometry().block_size;
    let blocks = (SIZE_BYTES / u64::from(block_size)) as u32;
    let piece = 1 << 20;
    let read_at = |queue: &mut dyn IoQueue, at: u64| {
        let lba = Lba(at / u64::from(block_size));
        let data = filled(&device, piece / 4096, 0xaa);
        let done = one(queue, Request::read(TOKEN, lba, piece as u32 / block_size, data));
        assert_eq!(done.result, Ok(()));
        bytes_of(&done.data, piece)
    };
    for (may_unmap, zero_range) in [(true, true), (false, true), (false, false)] {
        device.shared.zero_range.store(zero_range, Ordering::Relaxed);
        for at in (0..SIZE_BYTES).step_by(piece) {
            let lba = Lba(at / u64::from(block_size));
            let data = filled(&device, piece / 4096, 0x55);
            let write = Request::write(TOKEN, lba, piece as u32 / block_size, data, false);
            assert_eq!(one(&mut *queue, write).result, Ok(()));
        }
        // Longer than one writev can be, and all but the first and the last block.
        let op = Op::WriteZeroes { may_unmap };
        let zeroes = Request::on_blocks(TOKEN, op, Lba(1), blocks - 2);
        assert_eq!(one(&mut *queue, zeroes).result, Ok(()));
        for at in (0..SIZE_BYTES).step_by(piece) {
            let mut expected = vec![0; piece];
            let edge = block_size as usize;
            if at == 0 {
                expected[..edge].fill(0x55);
            } else if at + piece as u64 == SIZE_BYTES {
                expected[piece - edge..].fill(0x55);
            }
            assert!(read_at(&mut *queue, at) == expected, "at {at}: {may_unmap} {zero_range}");
        }
    }
    assert!(!device.shared.zero_range.load(Ordering::Relaxed));
}

#[test]
fn a_discard_gives_the_space_back() {
    let scratch = Scratch::new();
    let device = create(&scratch);
    let mut queue = queue_of(&device, 4);
    let geometry = device.geometry();
    assert!(geometry.discard_max_blocks > 0, "this file system does not punch holes");
    let blocks = 65536 / geometry.block_size;
    let write = Request::write(TOKEN, Lba(0), blocks, filled(&device, 16, 1), true);
    assert_eq!(one(&mut *queue, write).result, Ok(()));
    let allocated = || std::fs::metadata(scratch.path("disk")).unwrap().blocks();
    assert!(allocated() >= 128);
    let discard = Request::on_blocks(TOKEN, Op::Discard, Lba(0), blocks);
    assert_eq!(one(&mut *queue, discard).result, Ok(()));
    assert_eq!(one(&mut *queue, Request::flush(TOKEN)).result, Ok(()));
    assert_eq!(allocated(), 0);
}

/// A queue may move to another thread between calls, and the thread it came from may end: what the
/// kernel had queued in its name may be taken back (seldom here), and then goes again.
#[test]
fn a_queue_moves_to_another_thread_with_everything_in_flight() {
    let scratch = Scratch::new();
    let device = create(&scratch);
    for round in 0..20 {
        let mut queue = queue_of(&device, 64);
        for slot in 0..60 {
            let token = Token { slot, generation: round };
            let request = match slot % 3 {
                0 => Request::flush(token),
                1 => Request::on_blocks(token, Op::Discard, Lba(u64::from(slot)), 1),
                _ => Request::write(token, Lba(u64::from(slot)), 1, filled(&device, 1, 3), true),
            };
            queue.submit(request).unwrap();
        }
        let mut queue = std::thread::spawn(move || {
            queue.commit();
            queue
        })
        .join()
        .unwrap();
        let done = finish(&mut *queue);
        assert_eq!(done.len(), 60);
        for one in done {
            assert_eq!(one.result, Ok(()), "{:?}", one.token);
        }
    }
}

/// The kernel has a few workers for what cannot be started at once; what waits for one can be ended.
#[test]
fn what_waits_for_a_worker_of_the_kernel_can_be_cancelled() {
    let scratch = Scratch::new();
    let device = create(&scratch);
    let (mut cancelled, mut generation) = (0, 0);
    // One round is enough but for workers that are quicker than this thread.
    while generation < 5 || cancelled == 0 {
        generation += 1;
        assert!(generation < 500, "of 500 times 128 flushes none waited");
        let mut queue = queue_of(&device, 128);
        let tokens = (0..128).map(|slot| Token { slot, generation });
        tokens.clone().for_each(|token| queue.submit(Request::flush(token)).unwrap());
        queue.commit();
        for token in tokens.rev() {
            assert_eq!(queue.cancel(token), Cancel::Asked, "nothing was polled out yet");
        }
        let done = finish(&mut *queue);
        assert_eq!(done.len(), 128);
        for one in done {
            match one.result {
                Ok(()) => {}
                Err(error) if error.kind == IoErrorKind::Cancelled => cancelled += 1,
                Err(error) => panic!("{:?}: {error}", one.token),
            }
        }
        assert_eq!(queue.cancel(Token { slot: 0, generation }), Cancel::NotFound);
    }
}

#[test]
fn what_was_never_committed_is_drained_too() {
    let scratch = Scratch::new();
    let device = create(&scratch);
    let free = device.pool().free_frames();
    let mut queue = queue_of(&device, 4);
    queue.submit(Request::write(TOKEN, Lba(0), 1, filled(&device, 1, 3), false)).unwrap();
    drop(queue);
    assert_eq!(device.pool().free_frames(), free);
    assert_eq!(device.health(), Health::Good);
    device.close().unwrap();
    assert!(device.open_queue(QueueOptions::polled(1)).is_err(), "opened after close");
}
