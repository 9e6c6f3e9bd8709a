//! The NVMe drives of this machine, as sysfs shows them; nothing is opened.

use serde::Serialize;
use uaio_driver::vfio::NvmeFunction;

use crate::holders::{self, Holder};
use crate::record::{Record, RunDir};
use crate::system::System;

/// One drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Drive {
    /// Its PCI address.
    pub(crate) address: String,
    /// Its model, while the kernel's driver has it.
    pub(crate) model: Option<String>,
    /// Its serial number, likewise.
    pub(crate) serial: Option<String>,
    /// Vendor and device, as in `lspci -n`.
    pub(crate) pci_id: String,
    /// The driver it is bound to.
    pub(crate) driver: Option<String>,
    /// Its IOMMU group.
    pub(crate) iommu_group: Option<u32>,
    /// The kernel's block devices for its namespaces.
    pub(crate) disks: Vec<String>,
    /// Who uses it, in words.
    pub(crate) in_use_by: Vec<String>,
}

/// A drive with its users.
pub(crate) fn drive(system: &System, run: &RunDir, function: NvmeFunction) -> Drive {
    let NvmeFunction {
        address,
        driver,
        iommu_group,
        vendor,
        device,
        model,
        serial,
        block_devices: disks,
        ..
    } = function;
    let address = address.to_string();
    let mut in_use_by: Vec<String> = held(system, &disks).iter().map(Holder::to_string).collect();
    in_use_by.extend(users(system, run, &address, iommu_group));
    let pci_id = format!("{vendor:04x}:{device:04x}");
    Drive { address, model, serial, pci_id, driver, iommu_group, disks, in_use_by }
}

/// Who uses one of the kernel's disks.
pub(crate) fn held(system: &System, disks: &[String]) -> Vec<Holder> {
    let me = [std::process::id()];
    disks.iter().flat_map(|disk| holders::of_block_device(system, disk, &me)).collect()
}

/// Who drives it through VFIO: servers of ours by the device they serve, others by their process.
pub(crate) fn users(
    system: &System,
    run: &RunDir,
    address: &str,
    group: Option<u32>,
) -> Vec<String> {
    let ours: Vec<Record> = run
        .records()
        .into_iter()
        .filter(|record| record.is_alive(system) && serves(record, address))
        .collect();
    let mut users: Vec<String> = ours
        .iter()
        .map(|record| format!("served as /dev/ublkb{} by process {}", record.id, record.pid))
        .collect();
    if let Some(group) = group {
        let except: Vec<u32> = ours.iter().map(|record| record.pid).collect();
        let node = format!("/dev/vfio/{group}");
        users.extend(holders::of_node(system, &node, &except).iter().map(Holder::to_string));
    }
    users
}

fn serves(record: &Record, address: &str) -> bool {
    let drive = record.backend.strip_prefix("nvme:");
    drive.is_some_and(|drive| drive.split('/').next() == Some(address))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn file(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, text).expect("a file");
    }

    /// A machine where a disk of the kernel is mounted and another process drives IOMMU group 7.
    fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        let at = |path: &str, text: &str| file(root.path(), path, text);
        at("sys/class/block/nvme0n1/dev", "259:0\n");
        at("sys/class/block/nvme0n1/nvme0n1p1/dev", "259:1\n");
        at("sys/class/block/nvme0n1/nvme0n1p1/partition", "1\n");
        at("proc/1/mountinfo", "20 1 259:1 / / rw - ext4 /dev/nvme0n1p1 rw\n");
        at("proc/1/comm", "init\n");
        at("proc/9/comm", "qemu\n");
        fs::create_dir_all(root.path().join("proc/9/fd")).expect("a directory");
        symlink("/dev/vfio/7", root.path().join("proc/9/fd/8")).expect("a link");
        root
    }

    fn function(driver: &str, iommu_group: Option<u32>, disks: &[&str]) -> NvmeFunction {
        NvmeFunction {
            address: "0000:00:04.0".parse().expect("an address"),
            driver: Some(driver.into()),
            iommu_group,
            vendor: 0x1b36,
            device: 0x10,
            model: None,
            serial: None,
            block_devices: disks.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn a_drive_is_shown_with_who_uses_it() {
        let root = machine();
        let run = RunDir::new(root.path().join("run"));
        let users = |function| drive(&System::new(root.path()), &run, function).in_use_by;
        let mounted = function("nvme", Some(6), &["nvme0n1", "nvme0n2"]);
        assert_eq!(users(mounted.clone()), ["nvme0n1p1 is mounted on /"]);
        let driven = function("vfio-pci", Some(7), &[]);
        assert_eq!(users(driven), ["/dev/vfio/7 is open in process 9 (qemu)"]);
        assert!(users(function("vfio-pci", Some(8), &[])).is_empty());
        assert_eq!(drive(&System::new(root.path()), &run, mounted).pci_id, "1b36:0010");
    }

    #[test]
    fn a_drive_of_ours_is_named_by_the_device_it_is_served_as() {
        let root = machine();
        let run = RunDir::new(root.path().join("run"));
        run.create().expect("the directory");
        file(
            root.path(),
            "proc/9/stat",
            "9 (qemu) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 55 0 0\n",
        );
        let record = Record::of_this_process(&System::new("/"), crate::cli::DeviceId(3));
        let backend = "nvme:0000:00:05.0/1".to_string();
        run.write(&Record { pid: 9, start_time_ticks: 55, backend, ..record }).expect("a record");
        let users = users(&System::new(root.path()), &run, "0000:00:05.0", Some(7));
        assert_eq!(users, ["served as /dev/ublkb3 by process 9"]);
    }
}
