//! What sysfs knows about NVMe functions, and giving them to vfio-pci and back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::DeviceError;

use super::PciAddress;

/// PCI class code of an NVM Express I/O controller: mass storage, non-volatile memory, NVMe.
const CLASS_NVME: u32 = 0x01_08_02;
/// Base class and subclass of PCI bridges, which share their ports' groups without harm.
const CLASS_BRIDGE: u32 = 0x06_04;
/// How long the kernel may take to move a function from one driver to another.
const BIND_TIMEOUT: Duration = Duration::from_secs(10);

/// An NVMe function as sysfs shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvmeFunction {
    /// Where it is.
    pub address: PciAddress,
    /// The driver that it is bound to, such as `nvme` or `vfio-pci`.
    pub driver: Option<String>,
    /// Its IOMMU group; `None` without an IOMMU.
    pub iommu_group: Option<u32>,
    /// PCI vendor.
    pub vendor: u16,
    /// PCI device.
    pub device: u16,
    /// Model, as long as the kernel's driver has it.
    pub model: Option<String>,
    /// Serial number, as long as the kernel's driver has it.
    pub serial: Option<String>,
    /// The kernel's block devices on it, such as `nvme0n1`, sorted.
    pub block_devices: Vec<String>,
}

/// All NVMe functions of this machine, by address.
///
/// # Errors
///
/// When sysfs cannot be read.
pub fn list() -> Result<Vec<NvmeFunction>, DeviceError> {
    Sysfs::new().list()
}

/// Gives the NVMe function at `address` to vfio-pci. Its block devices of the kernel vanish: the caller
/// has made sure that nobody uses them ([`NvmeFunction::block_devices`]). Nothing happens when it has
/// it already. Blocks while the kernel's driver lets go.
///
/// # Errors
///
/// One line that says what to do. The function is left with the driver that it had, if that is
/// possible.
pub fn bind(address: PciAddress) -> Result<(), DeviceError> {
    Sysfs::new().bind(address)
}

/// Gives the function at `address` back to the kernel's driver.
///
/// # Errors
///
/// One line that says what to do.
pub fn unbind(address: PciAddress) -> Result<(), DeviceError> {
    Sysfs::new().unbind(address)
}

/// The NUMA node that the function at `address` is attached to; `None` on a machine with one node, or
/// one that does not say.
pub fn numa_node(address: PciAddress) -> Option<u32> {
    Sysfs::new().numa_node(address)
}

/// A sysfs, at a root that tests choose.
#[derive(Clone, Debug)]
pub(super) struct Sysfs {
    root: PathBuf,
}

impl Sysfs {
    pub(super) fn new() -> Self {
        Self { root: PathBuf::from("/sys") }
    }

    fn pci(&self) -> PathBuf {
        self.root.join("bus/pci")
    }

    /// The function's folder.
    pub(super) fn path(&self, address: PciAddress) -> PathBuf {
        self.pci().join("devices").join(address.to_string())
    }

    fn list(&self) -> Result<Vec<NvmeFunction>, DeviceError> {
        let folder = self.pci().join("devices");
        let mut found = Vec::new();
        for name in names(&folder).map_err(|error| os("list the PCI devices", error))? {
            let Ok(address) = name.parse() else { continue };
            if self.class(address) == Some(CLASS_NVME) {
                found.push(self.function(address));
            }
        }
        found.sort_by_key(|function| function.address);
        Ok(found)
    }

    fn function(&self, address: PciAddress) -> NvmeFunction {
        let path = self.path(address);
        let (mut model, mut serial, mut block_devices) = (None, None, Vec::new());
        // The kernel's driver: DEVICE/nvme/nvme0/{model,serial,nvme0n1}; with multipath the block
        // devices are named nvme0c0n1 there and nvme0n1 is what is mounted.
        for controller in names(&path.join("nvme")).unwrap_or_default() {
            let folder = path.join("nvme").join(&controller);
            model = text(&folder.join("model"));
            serial = text(&folder.join("serial"));
            let inside = names(&folder).unwrap_or_default();
            let blocks = inside.into_iter().filter(|name| name.starts_with("nvme"));
            block_devices.extend(blocks.map(|name| without_path(&name)));
        }
        block_devices.sort();
        block_devices.dedup();
        NvmeFunction {
            address,
            driver: self.driver(address),
            iommu_group: self.iommu_group(address),
            vendor: hex(&path.join("vendor")).unwrap_or(0) as u16,
            device: hex(&path.join("device")).unwrap_or(0) as u16,
            model,
            serial,
            block_devices,
        }
    }

    fn class(&self, address: PciAddress) -> Option<u32> {
        hex(&self.path(address).join("class"))
    }

    fn driver(&self, address: PciAddress) -> Option<String> {
        link_name(&self.path(address).join("driver"))
    }

    fn iommu_group(&self, address: PciAddress) -> Option<u32> {
        link_name(&self.path(address).join("iommu_group"))?.parse().ok()
    }

    fn numa_node(&self, address: PciAddress) -> Option<u32> {
        // -1 is none.
        text(&self.path(address).join("numa_node"))?.parse().ok()
    }

    /// Checks that there is an NVMe function at `address`, alone in an IOMMU group: the group.
    fn check_usable(&self, address: PciAddress) -> Result<u32, DeviceError> {
        let invalid = |text: String| Err(DeviceError::Invalid(format!("{address}: {text}")));
        if !self.path(address).exists() {
            return invalid("there is no such PCI device".into());
        }
        match self.class(address) {
            Some(CLASS_NVME) => {}
            class => {
                let class = class.unwrap_or(0);
                return invalid(format!("not an NVMe drive (PCI class {class:#08x})"));
            }
        }
        let Some(group) = self.iommu_group(address) else {
            return invalid(
                "no IOMMU: enable VT-d or AMD-Vi in the firmware and boot with intel_iommu=on or \
                 amd_iommu=on"
                    .into(),
            );
        };
        let members = self.path(address).join("iommu_group/devices");
        for name in names(&members).map_err(|error| os("list the IOMMU group", error))? {
            let Ok(other) = name.parse::<PciAddress>() else { continue };
            // Devices of a group reach each other past the IOMMU, so it must be alone; bridges do not
            // start transfers of their own.
            let class = self.class(other).unwrap_or(0) >> 8;
            if other != address && class != CLASS_BRIDGE {
                return invalid(format!(
                    "its IOMMU group {group} is shared with {other}; use a slot with a group of its \
                     own"
                ));
            }
        }
        Ok(group)
    }

    /// Checks that the function can be taken: the group to take.
    pub(super) fn check_bound(&self, address: PciAddress) -> Result<u32, DeviceError> {
        let group = self.check_usable(address)?;
        match self.driver(address).as_deref() {
            Some("vfio-pci") => Ok(group),
            Some(other) => Err(DeviceError::Invalid(format!(
                "{address}: bound to the driver {other}; bind it to vfio-pci first"
            ))),
            None => Err(DeviceError::Invalid(format!(
                "{address}: bound to no driver; bind it to vfio-pci first"
            ))),
        }
    }

    fn bind(&self, address: PciAddress) -> Result<(), DeviceError> {
        self.check_usable(address)?;
        let was = self.driver(address);
        if was.as_deref() == Some("vfio-pci") {
            return Ok(());
        }
        if !self.pci().join("drivers/vfio-pci").exists() {
            return Err(DeviceError::Invalid(format!(
                "{address}: the kernel has no vfio-pci driver; load it with: modprobe vfio-pci"
            )));
        }
        let result = self.move_to(address, "vfio-pci", Some("vfio-pci"));
        if result.is_err() && was.is_some() {
            // Back to what it was, as far as that goes; the first error is the one to tell.
            let _ = self.move_to(address, "\n", was.as_deref());
        }
        result
    }

    fn unbind(&self, address: PciAddress) -> Result<(), DeviceError> {
        if !self.path(address).exists() {
            return Err(DeviceError::Invalid(format!("{address}: there is no such PCI device")));
        }
        if self.class(address) != Some(CLASS_NVME) {
            return Err(DeviceError::Invalid(format!("{address}: not an NVMe drive")));
        }
        match self.driver(address).as_deref() {
            Some("nvme") => Ok(()),
            Some("vfio-pci") | None => self.move_to(address, "\n", Some("nvme")),
            Some(other) => Err(DeviceError::Invalid(format!(
                "{address}: bound to the driver {other}, not to vfio-pci"
            ))),
        }
    }

    /// Sets the override (a newline clears it), takes the function from its driver and has the kernel
    /// look for another one, which must be `expected`.
    fn move_to(
        &self,
        address: PciAddress,
        driver_override: &str,
        expected: Option<&str>,
    ) -> Result<(), DeviceError> {
        let path = self.path(address);
        let name = address.to_string();
        write(&path.join("driver_override"), driver_override)?;
        if path.join("driver").exists() {
            write(&path.join("driver/unbind"), &name)?;
        }
        write(&self.pci().join("drivers_probe"), &name)?;
        let start = Instant::now();
        while self.driver(address).as_deref() != expected {
            if start.elapsed() > BIND_TIMEOUT {
                return Err(DeviceError::TimedOut {
                    what: format!("{address}: binding to {}", expected.unwrap_or("no driver")),
                    waited_ms: start.elapsed().as_millis() as u64,
                });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

/// `nvme0c1n2`, a path of a multipath device, is `nvme0n2` to those who mount it.
fn without_path(name: &str) -> String {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if let Some((controller, rest)) = name.split_once('c')
        && let Some((path, namespace)) = rest.split_once('n')
        && controller.strip_prefix("nvme").is_some_and(digits)
        && digits(path)
    {
        return format!("{controller}n{namespace}");
    }
    name.to_owned()
}

fn names(folder: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(folder)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

fn text(file: &Path) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn hex(file: &Path) -> Option<u32> {
    u32::from_str_radix(text(file)?.trim_start_matches("0x"), 16).ok()
}

fn link_name(link: &Path) -> Option<String> {
    Some(fs::read_link(link).ok()?.file_name()?.to_string_lossy().into_owned())
}

fn write(file: &Path, value: &str) -> Result<(), DeviceError> {
    fs::write(file, value).map_err(|error| os(&format!("write {}", file.display()), error))
}

fn os(what: &str, source: io::Error) -> DeviceError {
    DeviceError::Os { what: format!("cannot {what}"), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A sysfs of plain files.
    struct Fake {
        sysfs: Sysfs,
    }

    impl Fake {
        fn new() -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let root =
                std::env::temp_dir().join(format!("uaio-sysfs-{}-{count}", std::process::id()));
            fs::create_dir_all(root.join("bus/pci/devices")).unwrap();
            fs::create_dir_all(root.join("bus/pci/drivers/nvme")).unwrap();
            Self { sysfs: Sysfs { root } }
        }

        fn device(&self, name: &str, class: &str, driver: Option<&str>, group: Option<u32>) {
            let path = self.sysfs.pci().join("devices").join(name);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("class"), class).unwrap();
            fs::write(path.join("vendor"), "0x1b36\n").unwrap();
            fs::write(path.join("device"), "0x0010\n").unwrap();
            if let Some(driver) = driver {
                let folder = self.sysfs.pci().join("drivers").join(driver);
                fs::create_dir_all(&folder).unwrap();
                symlink(folder, path.join("driver")).unwrap();
            }
            if let Some(group) = group {
                let folder = self.sysfs.root.join(format!("kernel/iommu_groups/{group}"));
                fs::create_dir_all(folder.join("devices")).unwrap();
                symlink(&path, folder.join("devices").join(name)).unwrap();
                symlink(folder, path.join("iommu_group")).unwrap();
            }
        }

        fn error(&self, address: &str) -> String {
            self.sysfs.check_bound(address.parse().unwrap()).unwrap_err().to_string()
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.sysfs.root);
        }
    }

    #[test]
    fn each_reason_not_to_take_a_function_is_one_clear_line() {
        let fake = Fake::new();
        fake.device("0000:00:01.0", "0x060400", Some("pcieport"), Some(3));
        fake.device("0000:00:02.0", "0x020000", Some("e1000e"), Some(2));
        fake.device("0000:00:03.0", "0x010802", Some("vfio-pci"), None);
        fake.device("0000:00:04.0", "0x010802", Some("nvme"), Some(4));
        fake.device("0000:00:05.0", "0x010802", Some("vfio-pci"), Some(2));
        fake.device("0000:00:06.0", "0x010802", None, Some(6));
        fake.device("0000:00:07.0", "0x010802", Some("vfio-pci"), Some(3));
        assert_eq!(fake.error("00:09.0"), "0000:00:09.0: there is no such PCI device");
        assert_eq!(fake.error("00:02.0"), "0000:00:02.0: not an NVMe drive (PCI class 0x020000)");
        assert!(fake.error("00:03.0").starts_with("0000:00:03.0: no IOMMU: enable"));
        assert_eq!(
            fake.error("00:04.0"),
            "0000:00:04.0: bound to the driver nvme; bind it to vfio-pci first"
        );
        assert_eq!(
            fake.error("00:05.0"),
            "0000:00:05.0: its IOMMU group 2 is shared with 0000:00:02.0; use a slot with a group \
             of its own"
        );
        assert!(fake.error("00:06.0").contains("bound to no driver"));
        // A bridge in the group does no harm.
        assert_eq!(fake.sysfs.check_bound("00:07.0".parse().unwrap()).unwrap(), 3);
    }

    #[test]
    fn the_numa_node_is_what_the_kernel_says_if_it_says_one() {
        let fake = Fake::new();
        fake.device("0000:00:04.0", "0x010802", None, None);
        let address = "00:04.0".parse().unwrap();
        assert_eq!(fake.sysfs.numa_node(address), None, "nothing said");
        for (said, node) in [("-1\n", None), ("0\n", Some(0)), ("3\n", Some(3))] {
            fs::write(fake.sysfs.path(address).join("numa_node"), said).unwrap();
            assert_eq!(fake.sysfs.numa_node(address), node);
        }
    }

    #[test]
    fn binding_without_the_driver_says_how_to_load_it_and_changes_nothing() {
        let fake = Fake::new();
        fake.device("0000:00:04.0", "0x010802", Some("nvme"), Some(4));
        let address = "00:04.0".parse().unwrap();
        let error = fake.sysfs.bind(address).unwrap_err().to_string();
        assert!(error.ends_with("modprobe vfio-pci"), "{error}");
        assert!(!fake.sysfs.path(address).join("driver_override").exists());
    }

    #[test]
    fn list_names_driver_group_model_and_block_devices() {
        let fake = Fake::new();
        fake.device("0000:00:02.0", "0x020000", Some("e1000e"), Some(2));
        fake.device("0000:00:05.0", "0x010802", Some("vfio-pci"), Some(5));
        fake.device("0000:00:04.0", "0x010802", Some("nvme"), Some(4));
        let path = fake.sysfs.path("00:04.0".parse().unwrap()).join("nvme/nvme0");
        for block in ["nvme0n1", "nvme0c0n2", "power"] {
            fs::create_dir_all(path.join(block)).unwrap();
        }
        fs::write(path.join("model"), "QEMU NVMe Ctrl      \n").unwrap();
        let found = fake.sysfs.list().unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].driver.as_deref(), Some("nvme"));
        assert_eq!(found[0].model.as_deref(), Some("QEMU NVMe Ctrl"));
        assert_eq!(found[0].block_devices, ["nvme0n1", "nvme0n2"]);
        assert_eq!((found[0].vendor, found[0].device), (0x1b36, 0x10));
        assert_eq!(found[1].driver.as_deref(), Some("vfio-pci"));
        assert_eq!((found[1].iommu_group, found[1].block_devices.len()), (Some(5), 0));
    }
}
