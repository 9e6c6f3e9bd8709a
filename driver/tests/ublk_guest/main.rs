//! The ublk server against a real kernel: serves memory and uses `/dev/ublkbN` as a program would.
//!
//! Needs root and the `ublk_drv` module, so the tests run in the guest:
//! `ublk_guest --ignored --test-threads 1`.

mod moody;
mod user;

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use uaio_driver::ram::RamDevice;
use uaio_driver::ublk::{
    self, DeviceState, OpKind, PollOptions, Server, ServerError, ServerOptions, ServerState,
};
use uaio_driver::{BlockDevice, DmaPool, PoolOptions};

use moody::{Mood, MoodyDevice, Tells};
use user::{Aligned, direct, discard, load, spawn_load, write_dsync, zero_out};

const PATIENCE: Duration = Duration::from_secs(30);
const SIZE: u64 = 16 << 20;
const FRAMES: usize = 9000;

fn ram(block_size: u32) -> RamDevice {
    let pool = DmaPool::new(PoolOptions::frames(FRAMES)).unwrap();
    RamDevice::new(SIZE, block_size, pool).unwrap()
}

fn moody(mood: &Arc<Mood>) -> Arc<MoodyDevice> {
    Arc::new(MoodyDevice::new(ram(512), mood))
}

fn options() -> ServerOptions {
    ServerOptions { depth: 32, reserve_bytes: 4 << 20, ..ServerOptions::default() }
}

fn serve(device: &Arc<impl BlockDevice + 'static>) -> Server {
    Server::start(Arc::clone(device) as _, options()).unwrap()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn is_known(id: u32) -> bool {
    Path::new(&format!("/sys/class/ublk-char/ublkc{id}")).exists()
        || Path::new(&format!("/sys/block/ublkb{id}")).exists()
}

fn assert_nothing_left(id: u32, device: &dyn BlockDevice) {
    assert!(!is_known(id));
    assert_eq!(device.pool().free_frames(), FRAMES, "frames were lost");
    device.close().expect("every queue is closed");
}

// ---- serving -----------------------------------------------------------------------------------

#[test]
#[ignore = "needs ublk_drv"]
fn what_is_written_discarded_and_zeroed_is_what_is_read() {
    for block_size in [512, 4096] {
        let device = Arc::new(ram(block_size));
        let server = serve(&device);
        let file = direct(server.path());
        let seed = fastrand::u64(..);
        println!("blocks of {block_size} bytes: seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let block_size = block_size as usize;
        let blocks = SIZE as usize / block_size;
        let mut bytes = vec![0u8; SIZE as usize];
        let mut data = Aligned::zeroed(2 << 20);
        for round in 0..300 {
            let most_bytes = if round % 10 == 0 { 2 << 20 } else { 64 << 10 };
            let count = random.usize(1..=most_bytes / block_size);
            let first = random.usize(..=blocks - count);
            let range = first * block_size..(first + count) * block_size;
            let (offset, len) = (range.start as u64, range.len());
            match random.u8(..6) {
                0..=2 => {
                    random.fill(&mut bytes[range.clone()]);
                    data[..len].copy_from_slice(&bytes[range]);
                    file.write_all_at(&data[..len], offset).unwrap();
                }
                3 => {
                    zero_out(&file, offset, len as u64).unwrap();
                    bytes[range].fill(0);
                }
                4 => {
                    // This device's discarded blocks read as zeroes.
                    discard(&file, offset, len as u64).unwrap();
                    bytes[range].fill(0);
                }
                _ => {
                    file.read_exact_at(&mut data[..len], offset).unwrap();
                    assert!(data[..len] == bytes[range], "seed {seed}");
                }
            }
        }
        for (index, part) in bytes.chunks(2 << 20).enumerate() {
            file.read_exact_at(&mut data[..part.len()], (index as u64) << 21).unwrap();
            assert!(data[..part.len()] == *part, "part {index}, seed {seed}");
        }
        let stats = server.stats();
        assert!(stats.op(OpKind::Discard).done > 0 && stats.op(OpKind::WriteZeroes).done > 0);
        assert!(stats.op(OpKind::Read).latency.percentile(50.0).is_some());
        assert!(stats.ops().all(|op| op.errors == 0), "{stats:?}");
        assert_eq!((stats.refused, stats.unexpected), (0, 0));
        drop(file);
        server.stop(PATIENCE).unwrap();
        assert_eq!(server.state(), ServerState::Stopped);
        assert_nothing_left(server.id(), &*device);
    }
}

fn queue_attribute(server: &Server, name: &str) -> String {
    let path = format!("/sys/block/ublkb{}/queue/{name}", server.id());
    std::fs::read_to_string(path).unwrap().trim().to_owned()
}

#[test]
#[ignore = "needs ublk_drv"]
fn the_kernel_knows_what_the_device_can_do() {
    let server = serve(&Arc::new(ram(4096)));
    let attribute = |name| queue_attribute(&server, name);
    assert_eq!(attribute("logical_block_size"), "4096");
    assert_eq!(attribute("max_hw_sectors_kb"), "512");
    assert_eq!(attribute("write_cache"), "write through");
    assert_eq!(attribute("fua"), "0");
    assert_ne!(attribute("discard_max_hw_bytes"), "0");
    assert_ne!(attribute("write_zeroes_max_bytes"), "0");
    assert!(server.info().flag_names().contains(&"USER_COPY".to_owned()));
    assert_eq!(server.path(), Path::new(&format!("/dev/ublkb{}", server.id())));
    server.stop(PATIENCE).unwrap();
}

#[test]
#[ignore = "needs ublk_drv"]
fn flush_and_fua_reach_a_device_with_a_volatile_cache_and_no_other() {
    for volatile_cache in [true, false] {
        let mood = Arc::new(Mood { volatile_cache, ..Mood::new(Tells::Wake, 0) });
        let server = serve(&moody(&mood));
        let file = direct(server.path());
        let cache = if volatile_cache { "write back" } else { "write through" };
        assert_eq!(queue_attribute(&server, "write_cache"), cache);
        let count = || (mood.flushes.load(Ordering::Relaxed), mood.fuas.load(Ordering::Relaxed));
        let data = Aligned::zeroed(4096);
        let before = count();
        file.write_all_at(&data, 0).unwrap();
        assert_eq!(count(), before, "a plain write is neither");
        file.sync_all().unwrap();
        let expected = u64::from(volatile_cache);
        assert_eq!(count().0 - before.0, expected, "fsync is a flush");
        assert_eq!(write_dsync(&file, &data, 8192).unwrap(), 4096);
        assert_eq!(count().1 - before.1, expected, "RWF_DSYNC is FUA");
        drop(file);
        server.stop(PATIENCE).unwrap();
    }
}

#[test]
#[ignore = "needs ublk_drv"]
fn every_way_a_device_tells_of_completions_serves_a_verified_load() {
    // A wake-up that is lost costs a whole tick: far more than anything else here.
    let tick = Duration::from_secs(10);
    let poll = PollOptions { tick, ..PollOptions::default() };
    // Naps at once, so that the last stage of the back-off is walked too.
    let naps = PollOptions { spin_turns: 0, yield_turns: 0, ..poll };
    let rounds = [
        (Tells::Polled, poll, 50),
        (Tells::Polled, naps, 200),
        (Tells::Event, poll, 0),
        (Tells::Event, poll, 100),
        (Tells::Wake, poll, 0),
        (Tells::Wake, poll, 100),
    ];
    for (tells, poll, latency_us) in rounds {
        let device = moody(&Arc::new(Mood::new(tells, latency_us)));
        let options = ServerOptions { queues: 2, poll, ..options() };
        let server = Server::start(Arc::clone(&device) as _, options).unwrap();
        let end = Arc::new(AtomicBool::new(false));
        let loads = spawn_load(server.path(), SIZE, 4, &end);
        std::thread::sleep(Duration::from_secs(2));
        end.store(true, Ordering::Relaxed);
        let done: u64 = loads.into_iter().map(|load| load.join().unwrap().unwrap()).sum();
        let stats = server.stats();
        let at = |percent| stats.op(OpKind::Read).latency.percentile(percent).unwrap();
        let (p50, p99, most) = (at(50.0), at(99.0), at(100.0));
        println!("{tells:?}, {latency_us} µs: {done} in 2 s; reads {p50:?}, {p99:?}, {most:?}");
        assert!(done > 0 && most < tick / 2, "{tells:?}: {done}, {most:?}");
        server.stop(PATIENCE).unwrap();
        assert_nothing_left(server.id(), &*device);
    }
}

// ---- errors ------------------------------------------------------------------------------------

#[test]
#[ignore = "needs ublk_drv"]
fn one_bad_block_fails_the_requests_that_cover_it_and_no_others() {
    let mood = Arc::new(Mood::new(Tells::Event, 0));
    let server = serve(&moody(&mood));
    let file = direct(server.path());
    let mut data = Aligned::zeroed(8192);
    mood.bad_block.store(1000, Ordering::Relaxed);
    let offset = 1000 * 512;
    let errno = |result: io::Result<()>| result.unwrap_err().raw_os_error();
    assert_eq!(errno(file.read_exact_at(&mut data[..512], offset)), Some(libc::EIO));
    assert_eq!(errno(file.write_all_at(&data[..1024], offset - 512)), Some(libc::EIO));
    file.read_exact_at(&mut data[..512], offset - 512).unwrap();
    file.write_all_at(&data[..512], offset + 512).unwrap();
    mood.bad_block.store(u64::MAX, Ordering::Relaxed);
    file.read_exact_at(&mut data[..512], offset).unwrap();
    let stats = server.stats();
    assert!(stats.op(OpKind::Read).errors >= 1 && stats.op(OpKind::Write).errors >= 1);
    assert_eq!(server.state(), ServerState::Live);
    drop(file);
    server.stop(PATIENCE).unwrap();
}

#[test]
#[ignore = "needs ublk_drv"]
fn new_io_fails_at_once_when_told_while_old_io_goes_on() {
    let mood = Arc::new(Mood::new(Tells::Wake, 0));
    let server = serve(&moody(&mood));
    let file = Arc::new(direct(server.path()));
    mood.hold.store(true, Ordering::Relaxed);
    let old = {
        let file = Arc::clone(&file);
        std::thread::spawn(move || file.write_all_at(&Aligned::zeroed(4096), 0))
    };
    wait_until("the write does not come", || server.stats().in_flight > 0);
    server.fail_new_io(true);
    let mut data = Aligned::zeroed(4096);
    let refused = file.read_exact_at(&mut data, 8192).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EIO));
    mood.hold.store(false, Ordering::Relaxed);
    old.join().unwrap().expect("what was in flight goes on");
    server.fail_new_io(false);
    file.read_exact_at(&mut data, 8192).unwrap();
    drop(file);
    server.stop(PATIENCE).unwrap();
}

#[test]
#[ignore = "needs ublk_drv"]
fn what_cannot_be_served_is_refused_and_leaves_nothing() {
    let before = ublk::devices(PATIENCE).unwrap();
    let device = Arc::new(ram(512));
    let start = |options| Server::start(Arc::clone(&device) as _, options).unwrap_err();
    let error = start(ServerOptions { queues: 65, ..options() });
    assert_eq!(error.to_string(), "65 queues are not possible with this device: take 1 to 64");
    let error = start(ServerOptions { reserve_bytes: 64 << 20, depth: 256, ..options() });
    assert!(matches!(error, ServerError::NoFrames { wanted: 16384, got: FRAMES }), "{error}");
    assert_eq!(device.pool().free_frames(), FRAMES);
    assert_eq!(ublk::devices(PATIENCE).unwrap(), before);
    let error = ublk::remove(999_999, PATIENCE).unwrap_err();
    assert_eq!(error.to_string(), "there is no ublk device 999999");
    device.close().unwrap();
}

#[test]
fn without_the_driver_the_error_says_how_to_load_it() {
    if Path::new("/dev/ublk-control").exists() {
        return;
    }
    let error = Server::start(Arc::new(ram(512)), options()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "/dev/ublk-control does not exist: load the driver with `modprobe ublk_drv`"
    );
    assert!(matches!(ublk::devices(PATIENCE), Err(ServerError::NoDriver)));
}

// ---- the end -----------------------------------------------------------------------------------

#[test]
#[ignore = "needs ublk_drv"]
fn twenty_times_up_and_down() {
    let device = Arc::new(ram(512));
    for round in 0..20 {
        let server = serve(&device);
        let file = direct(server.path());
        let mut data = Aligned::zeroed(4096);
        data.fill(round);
        file.write_all_at(&data, 0).unwrap();
        drop(file);
        server.stop(PATIENCE).unwrap();
        assert_nothing_left(server.id(), &*device);
    }
}

#[test]
#[ignore = "needs ublk_drv"]
fn stop_under_load_ends_every_request_and_loses_no_frame() {
    for tells in [Tells::Polled, Tells::Event, Tells::Wake] {
        let device = moody(&Arc::new(Mood::new(tells, 100)));
        let options = ServerOptions { queues: 2, ..options() };
        let server = Server::start(Arc::clone(&device) as _, options).unwrap();
        let end = Arc::new(AtomicBool::new(false));
        let loads = spawn_load(server.path(), SIZE, 6, &end);
        std::thread::sleep(Duration::from_millis(500));
        let start = Instant::now();
        server.stop(PATIENCE).unwrap();
        println!("{tells:?}: stopped under load in {:?}", start.elapsed());
        for load in loads {
            // A request is done or fails; were one lost, its load would not end.
            // A disk that is gone has no size: a write then gets ENOSPC, a read the end of file.
            let error = load.join().unwrap().expect_err("the device is gone");
            let gone = matches!(error.raw_os_error(), Some(libc::EIO | libc::ENXIO | libc::ENOSPC));
            assert!(gone || error.kind() == io::ErrorKind::UnexpectedEof, "{error}");
        }
        assert_nothing_left(server.id(), &*device);
    }
}

#[test]
#[ignore = "needs ublk_drv"]
fn a_stop_that_takes_too_long_says_what_it_waits_for_and_can_be_asked_again() {
    let mood = Arc::new(Mood::new(Tells::Event, 0));
    let device = moody(&mood);
    let server = serve(&device);
    let file = direct(server.path());
    mood.hold.store(true, Ordering::Relaxed);
    let writer = std::thread::spawn(move || file.write_all_at(&Aligned::zeroed(4096), 0));
    wait_until("the write does not come", || server.stats().in_flight > 0);
    let error = server.stop(Duration::from_millis(300)).unwrap_err();
    let text = "timed out after 300 ms: stopping the device, which waits for its requests";
    assert_eq!(error.to_string(), text);
    assert!(matches!(server.state(), ServerState::Stopping(_)));
    mood.hold.store(false, Ordering::Relaxed);
    server.stop(PATIENCE).unwrap();
    writer.join().unwrap().expect("a write that was in flight is done before the device goes");
    assert_nothing_left(server.id(), &*device);
}

#[test]
#[ignore = "needs ublk_drv"]
fn the_last_handle_may_be_dropped_inside_every_kind_of_completion() {
    for kind in OpKind::ALL {
        let mood = Arc::new(Mood::new(Tells::Event, 0));
        let server = Server::start(moody(&mood), options()).unwrap();
        let id = server.id();
        let file = direct(server.path());
        *mood.last_words.lock().unwrap() = Some((kind, server));
        let mut data = Aligned::zeroed(4096);
        let done = match kind {
            OpKind::Read => file.read_exact_at(&mut data, 0),
            OpKind::Write => file.write_all_at(&data, 0),
            OpKind::Flush => file.sync_all(),
            OpKind::Discard => discard(&file, 0, 4096),
            OpKind::WriteZeroes => zero_out(&file, 0, 4096),
        };
        done.unwrap_or_else(|error| panic!("{kind}: {error}"));
        drop(file);
        let dropped_by = || mood.dropped_by.lock().unwrap().clone();
        wait_until("the device is not let go", || dropped_by().is_some());
        assert!(mood.last_words.lock().unwrap().is_none(), "{kind}: dropped in its completion");
        assert_eq!(dropped_by().as_deref(), Some("ublk-control"), "{kind}");
        assert!(!is_known(id), "{kind}");
    }
}

/// Not a test by itself: the process that the next one kills.
#[test]
#[ignore = "is started by another test"]
fn serve_until_killed() {
    let Some(told) = std::env::var_os("UAIO_TEST_TOLD") else { return };
    let server = serve(&Arc::new(ram(512)));
    std::fs::write(told, server.id().to_string()).unwrap();
    std::thread::sleep(Duration::from_secs(300));
}

#[test]
#[ignore = "needs ublk_drv"]
fn a_killed_servers_device_fails_its_io_in_time_and_is_told_from_the_living_and_removed() {
    let told = std::env::temp_dir().join(format!("uaio-killed-{}", std::process::id()));
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "serve_until_killed"])
        .env("UAIO_TEST_TOLD", &told)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut read = None;
    wait_until("the child does not serve", || {
        read = std::fs::read_to_string(&told).ok().and_then(|text| text.parse::<u32>().ok());
        read.is_some()
    });
    let id = read.unwrap();
    let ours = serve(&Arc::new(ram(512)));
    assert_ne!(ours.id(), id);
    let of = |id| ublk::devices(PATIENCE).unwrap().into_iter().find(|device| device.id == id);
    let device = of(id).unwrap();
    assert_eq!((device.state, device.our_pid), (DeviceState::Live, Some(child.id())));
    assert_eq!((device.server_pid, device.queues), (Some(child.id()), 1));
    assert_eq!(ublk::dead_devices(PATIENCE).unwrap(), []);

    let path = PathBuf::from(format!("/dev/ublkb{id}"));
    let file = direct(&path);
    let end = AtomicBool::new(false);
    let load = std::thread::spawn(move || load(&path, 0..SIZE, 1, &end));
    std::thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    child.kill().unwrap();
    let error = load.join().unwrap().expect_err("the server is gone");
    println!("{error} {:?} after the kill", start.elapsed());
    assert!(start.elapsed() < PATIENCE);
    // Found while its process is still a zombie, and removed while its disk is still open.
    let dead = ublk::dead_devices(PATIENCE).unwrap();
    assert_eq!(dead.iter().map(|device| device.id).collect::<Vec<_>>(), [id]);
    ublk::remove(id, PATIENCE).unwrap();
    child.wait().unwrap();
    assert_eq!(of(id), None);
    assert_eq!(ublk::dead_devices(PATIENCE).unwrap(), []);
    drop(file);
    ours.stop(PATIENCE).expect("the other device is untouched");
    let _ = std::fs::remove_file(told);
}
