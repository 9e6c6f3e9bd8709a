//! A machine made of files: each kind of holder is found, and nobody else.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

struct Machine {
    root: tempfile::TempDir,
}

impl Machine {
    /// A disk `ublkb0` (259:4) with a partition `ublkb0p1` (259:5), a disk `sda` (8:0), one process.
    fn new() -> Self {
        let machine = Self { root: tempfile::tempdir().expect("a directory") };
        machine.file("sys/class/block/ublkb0/dev", "259:4\n");
        machine.file("sys/class/block/ublkb0/ublkb0p1/dev", "259:5\n");
        machine.file("sys/class/block/ublkb0/ublkb0p1/partition", "1\n");
        machine.file("sys/class/block/ublkb0/queue/rotational", "0\n");
        machine.file("sys/class/block/sda/dev", "8:0\n");
        machine.process(10, "init", "mnt:[1]");
        machine
    }

    fn file(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, text).expect("a file");
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        symlink(target, path).expect("a link");
    }

    fn process(&self, pid: u32, comm: &str, namespace: &str) {
        self.file(&format!("proc/{pid}/comm"), comm);
        self.link(&format!("proc/{pid}/ns/mnt"), namespace);
    }

    fn mounts(&self, pid: u32, lines: &[&str]) {
        self.file(&format!("proc/{pid}/mountinfo"), &lines.join("\n"));
    }

    fn holders(&self) -> Vec<Holder> {
        of_block_device(&System::new(self.root.path()), "ublkb0", &[])
    }
}

fn mount(device: &str, at: &str) -> Holder {
    Holder::Mount { device: device.into(), at: at.into() }
}

#[test]
fn an_idle_disk_has_no_holders() {
    let machine = Machine::new();
    machine.mounts(
        10,
        &["21 1 8:0 / / rw shared:1 - ext4 /dev/sda rw", "22 1 0:5 / /proc rw - proc proc rw"],
    );
    machine.file("proc/swaps", "Filename Type Size Used Priority\n/dev/sda partition 1 0 -2\n");
    machine.link("proc/10/fd/0", "/dev/sda");
    machine.link("proc/10/fd/1", "socket:[77]");
    assert_eq!(machine.holders(), []);
    assert_eq!(of_block_device(&System::new("/nonexistent"), "ublkb0", &[]), []);
}

#[test]
fn a_mount_is_found_by_number_in_any_namespace_with_its_path_in_plain() {
    let machine = Machine::new();
    machine.mounts(10, &["21 1 8:0 / / rw shared:1 - ext4 /dev/sda rw"]);
    machine.process(11, "container", "mnt:[2]");
    machine.mounts(
        11,
        &["40 1 259:5 / /srv/my\\040disk rw,noatime shared:3 master:2 - xfs /dev/x rw"],
    );
    assert_eq!(machine.holders(), [mount("ublkb0p1", "/srv/my disk")]);
}

#[test]
fn a_mount_of_btrfs_is_found_by_its_source() {
    let machine = Machine::new();
    machine.mounts(10, &["40 1 0:55 /@ /data rw - btrfs /dev/ublkb0 rw,subvol=/@"]);
    assert_eq!(machine.holders(), [mount("ublkb0", "/data")]);
}

#[test]
fn one_table_is_read_for_each_namespace() {
    let machine = Machine::new();
    machine.mounts(10, &["21 1 8:0 / / rw - ext4 /dev/sda rw"]);
    machine.process(11, "same", "mnt:[1]");
    // The fixture's second table of the same namespace is a lie that must not be looked at.
    machine.mounts(11, &["40 1 259:4 / /lie rw - ext4 /dev/ublkb0 rw"]);
    assert_eq!(machine.holders(), []);
}

#[test]
fn swap_stacked_devices_and_loops_are_found() {
    let machine = Machine::new();
    machine
        .file("proc/swaps", "Filename Type Size Used Priority\n/dev/ublkb0p1 partition 1 0 -2\n");
    machine.file("sys/class/block/ublkb0/holders/dm-3", "");
    machine.file("sys/block/loop7/loop/backing_file", "/dev/ublkb0\n");
    machine.file("sys/block/loop8/loop/backing_file", "/var/x.img\n");
    assert_eq!(
        machine.holders(),
        [
            Holder::Swap { device: "ublkb0p1".into() },
            Holder::Stacked { device: "ublkb0".into(), by: "dm-3".into() },
            Holder::Stacked { device: "ublkb0".into(), by: "loop7".into() },
        ]
    );
}

#[test]
fn a_process_that_has_the_node_open_is_named_and_the_excepted_is_not() {
    let machine = Machine::new();
    machine.process(20, "fio", "mnt:[1]");
    machine.process(21, "aioctl", "mnt:[1]");
    machine.link("proc/20/fd/3", "/dev/ublkb0");
    machine.link("proc/21/fd/3", "/dev/ublkb0");
    let system = System::new(machine.root.path());
    let fio = Holder::Process { device: "ublkb0".into(), pid: 20, comm: "fio".into() };
    assert_eq!(of_block_device(&system, "ublkb0", &[21]), [fio]);
    assert_eq!(machine.holders()[0].to_string(), "ublkb0 is open in process 20 (fio)");
}

#[test]
fn a_file_is_held_by_its_writers_and_not_by_its_readers() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk.img");
    fs::write(&path, "x").expect("a file");
    let system = System::new("/");
    let reader = fs::File::open(&path).expect("open for reading");
    assert_eq!(of_file(&system, &path, &[]), []);
    let writer = fs::OpenOptions::new().append(true).open(&path).expect("open for writing");
    let me = std::process::id();
    let held = of_file(&system, &path, &[]);
    assert!(
        matches!(&held[..], [Holder::Process { pid, .. }] if *pid == me),
        "{held:?} instead of this process, {me}"
    );
    assert_eq!(of_file(&system, &path, &[me]), []);
    drop((reader, writer));
}

#[test]
fn a_broken_mount_table_is_no_reason_to_panic() {
    let machine = Machine::new();
    let seed = 0x5eed;
    let mut random = seed;
    let mut next = || {
        random =
            u64::wrapping_add(u64::wrapping_mul(random, 6364136223846793005), 1442695040888963407);
        random >> 33
    };
    let pieces = ["259:4", " ", " - ", "\\04", "\\", "259:", ":", "/dev/ublkb0", "ext4", "é", "\n"];
    for round in 0..2000 {
        let text: String = (0..next() % 16).map(|_| pieces[(next() % 11) as usize]).collect();
        machine.mounts(10, &[&text]);
        // Whatever it finds, it is one of the disk's own parts.
        for holder in machine.holders() {
            assert!(
                matches!(holder, Holder::Mount { ref device, .. } if device == "ublkb0"),
                "seed {seed:#x}, round {round}: {holder:?} from {text:?}"
            );
        }
    }
}

#[test]
fn many_holders_are_one_short_line() {
    let all: Vec<Holder> = (0..6).map(|n| mount("ublkb0", &format!("/m{n}"))).collect();
    assert!(listed(&all).ends_with("ublkb0 is mounted on /m3 and 2 more"), "{}", listed(&all));
}
