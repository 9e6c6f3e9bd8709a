//! What `uring` promises about kernel block devices and full file systems. Needs root and loop
//! devices; `UAIO_TEST_DEVICE=/dev/…` adds a device whose contents may be destroyed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use uaio_driver::uring::{UringDevice, UringOptions};
use uaio_driver::{
    BlockDevice, Completion, DmaPool, Health, IoErrorKind, IoQueue, Lba, Op, PoolOptions,
    QueueOptions, Request, SgList, Token, conformance,
};

const TOKEN: Token = Token { slot: 0, generation: 0 };

/// Runs a program that must succeed; what it printed.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// An image in the system's scratch folder on a loop device; both go with it.
struct Loop {
    image: PathBuf,
    device: PathBuf,
    mounted: Option<PathBuf>,
}

impl Loop {
    fn new(size_bytes: u64, sector_size: u32) -> Self {
        let name = format!("uaio-loop-{}-{:016x}", std::process::id(), fastrand::u64(..));
        let image = std::env::temp_dir().join(name);
        std::fs::File::create_new(&image).unwrap().set_len(size_bytes).unwrap();
        let sector = sector_size.to_string();
        let arguments = ["--find", "--show", "--sector-size", &sector, image.to_str().unwrap()];
        let device = PathBuf::from(run("losetup", &arguments));
        Self { image, device, mounted: None }
    }

    fn mount(&mut self) -> &Path {
        let folder = self.image.with_extension("mount");
        std::fs::create_dir(&folder).unwrap();
        run("mkfs.ext4", &["-q", "-F", self.device.to_str().unwrap()]);
        run("mount", &[self.device.to_str().unwrap(), folder.to_str().unwrap()]);
        self.mounted.insert(folder)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Some(folder) = &self.mounted {
            run("umount", &[folder.to_str().unwrap()]);
            std::fs::remove_dir(folder).unwrap();
        }
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
        let _ = std::fs::remove_file(&self.image);
    }
}

fn pool() -> DmaPool {
    DmaPool::new(PoolOptions::frames(1024)).unwrap()
}

fn one(queue: &mut dyn IoQueue, request: Request) -> Completion {
    queue.submit(request).unwrap();
    queue.commit();
    let mut out = Vec::new();
    let start = Instant::now();
    while queue.poll(1, &mut out) == 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "hung");
    }
    out.remove(0)
}

#[test]
#[ignore = "needs root and loop devices"]
fn a_loop_device_conforms_in_both_sector_sizes() {
    for sector_size in [512, 4096] {
        let disk = Loop::new(64 << 20, sector_size);
        let device = UringDevice::open(&UringOptions::existing(&disk.device), pool()).unwrap();
        let geometry = device.geometry();
        assert_eq!((geometry.block_size, geometry.size_bytes()), (sector_size, 64 << 20));
        conformance::run(&device);
        device.close().unwrap();
        assert_eq!(device.health(), Health::Good);
    }
}

#[test]
#[ignore = "needs UAIO_TEST_DEVICE, a block device whose contents may be destroyed"]
fn the_given_device_conforms_polled_and_not() {
    let path = std::env::var_os("UAIO_TEST_DEVICE").expect("UAIO_TEST_DEVICE is not set");
    for polled in [false, true] {
        let options = UringOptions { polled, ..UringOptions::existing(&path) };
        let device = UringDevice::open(&options, pool()).unwrap();
        println!("{device:?}");
        if polled {
            // `UAIO_TEST_POLLED` says that the device must be polled, so that this is not vacuous.
            let must = std::env::var_os("UAIO_TEST_POLLED").is_some();
            assert!(!must || device.is_polled(), "{device:?} is not polled");
        }
        conformance::run(&device);
        device.close().unwrap();
        assert_eq!(device.health(), Health::Good);
        assert!(device.warnings().is_empty(), "{:?}", device.warnings());
    }
}

#[test]
#[ignore = "needs root and loop devices"]
fn a_device_that_is_mounted_or_served_is_refused() {
    let mut disk = Loop::new(64 << 20, 512);
    let device = disk.device.clone();
    let served = UringDevice::open(&UringOptions::existing(&device), pool()).unwrap();
    let expected = format!(
        "{} is mounted or held by something else: Device or resource busy (os error 16)",
        device.display()
    );
    let again = UringDevice::open(&UringOptions::existing(&device), pool());
    assert_eq!(again.unwrap_err().to_string(), expected);
    drop(served);
    disk.mount();
    let mounted = UringDevice::open(&UringOptions::existing(&device), pool());
    assert_eq!(mounted.unwrap_err().to_string(), expected);
}

/// A sparse file promises more than its file system has. The write that no longer fits must say so,
/// and what was acknowledged must stay.
#[test]
#[ignore = "needs root and loop devices"]
fn a_full_file_system_is_no_space_and_loses_nothing_acknowledged() {
    let mut disk = Loop::new(16 << 20, 512);
    let path = disk.mount().join("disk");
    let device = UringDevice::open(&UringOptions::create(&path, 64 << 20), pool()).unwrap();
    let mut queue = device.open_queue(QueueOptions::polled(1)).unwrap();
    let block_size = device.geometry().block_size;
    let per_piece = (256 << 10) / block_size;
    let data = |value: u8| {
        let frames = (0..64).map(|_| device.pool().take().unwrap()).collect();
        let data = SgList::new(frames);
        data.copy_from_slice(0, &vec![value; 256 << 10]);
        data
    };
    let mut acknowledged = 0;
    let error = loop {
        let lba = Lba(acknowledged * u64::from(per_piece));
        let value = acknowledged as u8 + 1;
        let done = one(&mut *queue, Request::write(TOKEN, lba, per_piece, data(value), true));
        match done.result {
            Ok(()) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 64, "16 MiB took more than 16 MiB");
    };
    assert_eq!(error.kind, IoErrorKind::NoSpace);
    assert!(acknowledged > 20, "only {acknowledged} pieces fitted");
    for piece in 0..acknowledged {
        let lba = Lba(piece * u64::from(per_piece));
        let done = one(&mut *queue, Request::read(TOKEN, lba, per_piece, data(0)));
        assert_eq!(done.result, Ok(()));
        let mut bytes = vec![0; 256 << 10];
        done.data.copy_to_slice(0, &mut bytes);
        assert!(bytes.iter().all(|byte| *byte == piece as u8 + 1), "piece {piece}");
    }
    // Not for good: a discard makes room, and the same write fits.
    let discard = Request::on_blocks(TOKEN, Op::Discard, Lba(0), per_piece * 4);
    assert_eq!(one(&mut *queue, discard).result, Ok(()));
    assert_eq!(one(&mut *queue, Request::flush(TOKEN)).result, Ok(()));
    let lba = Lba(acknowledged * u64::from(per_piece));
    let again = Request::write(TOKEN, lba, per_piece, data(9), true);
    assert_eq!(one(&mut *queue, again).result, Ok(()));
}
