//! A PCI function taken through VFIO.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use vfio_bindings::bindings::vfio::{
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
    VFIO_REGION_INFO_FLAG_MMAP,
};
use vfio_ioctls::{VfioContainer, VfioDevice, VfioError, VfioOps, VfioRegionInfoCap};

use crate::dma::DmaPool;
use crate::error::DeviceError;
use crate::nvme::{Function, Registers};

use super::mmio::Bar;
use super::sysfs::Sysfs;
use super::{PciAddress, ioctl, iommu};

/// PCI configuration space: the Command register, its memory-space and bus-master bits.
const PCI_COMMAND: u64 = 4;
const PCI_COMMAND_MEMORY: u16 = 1 << 1;
const PCI_COMMAND_MASTER: u16 = 1 << 2;

/// How much of BAR 0 is mapped at most: registers and doorbells, not a controller memory buffer.
const BAR_BYTES_MAX: u64 = 1 << 20;

/// How many interrupt vectors are used at most.
const VECTORS_MAX: u32 = 256;

/// A PCI function that this process holds, with BAR 0 and a pool mapped.
///
/// Dropping it gives the function back to the kernel, which stops and resets it, and only then lets
/// the pool go.
pub struct VfioFunction {
    name: String,
    bar: Bar,
    // Fields are dropped in this order: descriptors of the device before the container's (which unmaps
    // the pool), the pool last.
    /// `None` once it was given back.
    device: RwLock<Option<VfioDevice>>,
    /// Readable when the kernel wants the function back; `None` when it cannot say (before 4.0).
    request: Option<OwnedFd>,
    container: Arc<VfioContainer>,
    event_fds: Vec<OwnedFd>,
    cut_off: AtomicBool,
    pool: DmaPool,
}

impl VfioFunction {
    /// Takes the NVMe function at `address`, maps BAR 0 and `pool`, and lets it be a bus master.
    ///
    /// # Errors
    ///
    /// One line that says what to do; nothing is changed then.
    pub fn open(address: PciAddress, pool: &DmaPool) -> Result<Self, DeviceError> {
        let sysfs = Sysfs::new();
        let group = sysfs.check_bound(address)?;
        let container = iommu::container()?;
        let ops: Arc<dyn VfioOps> = container.clone();
        let device = VfioDevice::new(&sysfs.path(address), ops, false)
            .map_err(|error| refused(address, group, error))?;
        let named = |what: &str, source: io::Error| DeviceError::Os {
            what: format!("{address}: {what}"),
            source,
        };
        let bar = map_bar(&device).map_err(|error| named("cannot map BAR 0", error))?;
        let event_fds = event_fds(&device).map_err(|error| named("cannot use MSI-X", error))?;
        let request = request_fd(&device);
        iommu::map(&container, pool)
            .map_err(|error| DeviceError::Invalid(format!("{address}: {error}")))?;
        let function = Self {
            name: address.to_string(),
            bar,
            device: RwLock::new(Some(device)),
            request,
            container,
            event_fds,
            cut_off: AtomicBool::new(false),
            pool: pool.clone(),
        };
        function
            .enable_bus_master()
            .map_err(|error| named("cannot enable bus mastering", error))?;
        Ok(function)
    }

    fn device(&self) -> RwLockReadGuard<'_, Option<VfioDevice>> {
        self.device.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the device, with which the kernel stops and resets it. The library looks the group up in
    /// sysfs then, and panics when it is not there any more: what was unplugged without notice is left
    /// to the end of the process.
    fn close_device(&self) {
        let device = self.device.write().unwrap_or_else(PoisonError::into_inner).take();
        let gone = self.name.parse().is_ok_and(|address| !Sysfs::new().path(address).exists());
        if gone {
            std::mem::forget(device);
        }
    }

    fn enable_bus_master(&self) -> io::Result<()> {
        let command = self.command() | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
        let bytes = command.to_le_bytes();
        if let Some(device) = &*self.device() {
            device.region_write(VFIO_PCI_CONFIG_REGION_INDEX, &bytes, PCI_COMMAND);
        }
        // The library only logs a write that failed, so it is read back.
        match self.command() & PCI_COMMAND_MASTER {
            0 => Err(io::Error::other("the Command register does not take it")),
            _ => Ok(()),
        }
    }

    fn command(&self) -> u16 {
        let mut bytes = [0; 2];
        if let Some(device) = &*self.device() {
            device.region_read(VFIO_PCI_CONFIG_REGION_INDEX, &mut bytes, PCI_COMMAND);
        }
        u16::from_le_bytes(bytes)
    }
}

fn map_bar(device: &VfioDevice) -> io::Result<Bar> {
    let index = VFIO_PCI_BAR0_REGION_INDEX;
    if device.get_region_flags(index) & VFIO_REGION_INFO_FLAG_MMAP == 0 {
        return Err(io::Error::other("it cannot be mapped"));
    }
    let mut len_bytes = device.get_region_size(index);
    // A kernel that keeps the MSI-X table from us maps only what is around it; registers come first.
    for cap in device.get_region_caps(index) {
        if let VfioRegionInfoCap::SparseMmap(sparse) = cap {
            let first = sparse.areas.iter().find(|area| area.offset == 0);
            len_bytes = first.map_or(0, |area| area.size);
        }
    }
    let len_bytes = len_bytes.min(BAR_BYTES_MAX) as usize;
    if len_bytes < 0x2000 {
        return Err(io::Error::other("it is too small for an NVMe controller"));
    }
    Bar::map(ioctl::fd_of(device), device.get_region_offset(index), len_bytes)
}

/// Enables MSI-X with no vector signalling anything yet; its descriptors.
fn event_fds(device: &VfioDevice) -> io::Result<Vec<OwnedFd>> {
    use rustix::event::{EventfdFlags, eventfd};
    let count = device.get_irq_info(VFIO_PCI_MSIX_IRQ_INDEX).map_or(0, |irq| irq.count);
    if count == 0 {
        return Ok(Vec::new());
    }
    let count = count.min(VECTORS_MAX) as usize;
    ioctl::set_msix(ioctl::fd_of(device), 0, &vec![None; count])?;
    let new = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    (0..count).map(|_| Ok(new()?)).collect()
}

/// What the kernel signals when it wants the function back.
fn request_fd(device: &VfioDevice) -> Option<OwnedFd> {
    use rustix::event::{EventfdFlags, eventfd};
    let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()?;
    ioctl::set_request(ioctl::fd_of(device), fd.as_fd()).ok().map(|()| fd)
}

fn refused(address: PciAddress, group: u32, error: VfioError) -> DeviceError {
    match error {
        VfioError::OpenGroup(source, _) if source.raw_os_error() == Some(libc::EBUSY) => {
            DeviceError::Invalid(format!("{address}: held by another process (/dev/vfio/{group})"))
        }
        VfioError::OpenGroup(source, _) if source.kind() == io::ErrorKind::PermissionDenied => {
            DeviceError::Invalid(format!(
                "{address}: no permission on /dev/vfio/{group}; be root, or its owner"
            ))
        }
        VfioError::OpenGroup(source, _) => {
            DeviceError::Os { what: format!("{address}: cannot open /dev/vfio/{group}"), source }
        }
        VfioError::GroupViable => DeviceError::Invalid(format!(
            "{address}: another device of IOMMU group {group} is bound to a driver of the kernel"
        )),
        other => DeviceError::Os {
            what: format!("{address}: VFIO does not give it"),
            source: io::Error::other(other),
        },
    }
}

impl Registers for VfioFunction {
    fn len_bytes(&self) -> usize {
        self.bar.len_bytes()
    }

    fn read32(&self, offset: u32) -> u32 {
        self.bar.read32(offset)
    }

    fn read64(&self, offset: u32) -> u64 {
        self.bar.read64(offset)
    }

    fn write32(&self, offset: u32, value: u32) {
        self.bar.write32(offset, value);
    }

    fn write64(&self, offset: u32, value: u64) {
        self.bar.write64(offset, value);
    }
}

impl Function for VfioFunction {
    fn name(&self) -> &str {
        &self.name
    }

    fn vectors(&self) -> u16 {
        self.event_fds.len() as u16
    }

    fn event_fd(&self, vector: u16) -> Option<BorrowedFd<'_>> {
        self.event_fds.get(usize::from(vector)).map(AsFd::as_fd)
    }

    fn set_interrupt(&self, vector: u16, on: bool) -> bool {
        let Some(fd) = self.event_fd(vector) else { return false };
        // A vector without a descriptor stays masked in the device, which keeps it pending.
        let fds = [on.then_some(fd)];
        let device = self.device();
        let Some(device) = &*device else { return false };
        ioctl::set_msix(ioctl::fd_of(device), vector.into(), &fds).is_ok() && on
    }

    fn is_asked_back(&self) -> bool {
        let mut count = [0; 8];
        // Nobody else reads it, and whoever finds it acts on it for good.
        self.request.as_ref().is_some_and(|fd| rustix::io::read(fd, &mut count).is_ok())
    }

    fn give_back(&self) {
        // The kernel waits for the device's descriptor, which the mapping holds too.
        if self.bar.detach() {
            self.close_device();
        }
    }

    fn cut_off(&self) -> bool {
        // Whatever it still sends ends at the IOMMU, which has nothing mapped for it any more.
        let already = self.cut_off.load(Ordering::Acquire);
        let done = already || iommu::unmap(&self.container, &self.pool);
        self.cut_off.store(done, Ordering::Release);
        done
    }
}

impl Drop for VfioFunction {
    fn drop(&mut self) {
        self.close_device();
    }
}

impl std::fmt::Debug for VfioFunction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VfioFunction")
            .field("name", &self.name)
            .field("bar_bytes", &self.bar.len_bytes())
            .field("vectors", &self.event_fds.len())
            .finish_non_exhaustive()
    }
}
