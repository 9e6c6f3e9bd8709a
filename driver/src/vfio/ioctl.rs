//! The two VFIO calls that `vfio-ioctls` has no face for (`include/uapi/linux/vfio.h`).
#![expect(unsafe_code, reason = "ioctl(2) on VFIO descriptors")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_PCI_MSIX_IRQ_INDEX,
    VFIO_PCI_REQ_IRQ_INDEX,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `_IO(';', 100 + 10)`.
const VFIO_DEVICE_SET_IRQS: libc::Ioctl = 0x3b00 + 110;
/// `_IO(';', 100 + 12)`.
const VFIO_IOMMU_GET_INFO: libc::Ioctl = 0x3b00 + 112;

/// `struct vfio_iommu_type1_info`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct IommuInfo {
    argsz: u32,
    flags: u32,
    iova_pgsizes: u64,
    cap_offset: u32,
    pad: u32,
}

/// `struct vfio_info_cap_header`, and what follows it in `..._cap_iova_range`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct IovaRangeCap {
    id: u16,
    version: u16,
    next: u32,
    nr_iovas: u32,
    reserved: u32,
}

/// `struct vfio_iova_range`: both ends are inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct IovaRange {
    pub(super) start: u64,
    pub(super) end: u64,
}

/// The descriptor of a VFIO object of `vfio-ioctls`, for as long as that is borrowed.
pub(super) fn fd_of<T: AsRawFd>(object: &T) -> BorrowedFd<'_> {
    // SAFETY: containers and devices of `vfio-ioctls` own their descriptor until they are dropped,
    // which the borrow keeps from happening.
    unsafe { BorrowedFd::borrow_raw(object.as_raw_fd()) }
}

const INFO_CAPS: u32 = 1 << 1;
const CAP_IOVA_RANGE: u16 = 1;
/// The longest answer that is asked for; a handful of ranges is usual.
const INFO_BYTES_MAX: usize = 64 << 10;

/// The IOVA ranges that the container's IOMMU takes; empty when the kernel does not say (before 5.4).
pub(super) fn iova_ranges(container: BorrowedFd<'_>) -> io::Result<Vec<IovaRange>> {
    let mut len = size_of::<IommuInfo>();
    loop {
        // A buffer of u64 is aligned for every structure in it.
        let mut buffer = vec![0u64; len.div_ceil(8)];
        let bytes = buffer.as_mut_bytes();
        let argsz = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        bytes[..4].copy_from_slice(&argsz.to_ne_bytes());
        // SAFETY: the descriptor is open while it is borrowed, and the argument points to `argsz`
        // writable bytes, which is what VFIO_IOMMU_GET_INFO reads and writes at most.
        let done =
            unsafe { libc::ioctl(container.as_raw_fd(), VFIO_IOMMU_GET_INFO, bytes.as_mut_ptr()) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        let info = IommuInfo::read_from_prefix(bytes).map_err(|_| short())?.0;
        let wanted = info.argsz as usize;
        if wanted > len && wanted <= INFO_BYTES_MAX {
            len = wanted;
            continue;
        }
        return parse(bytes, &info);
    }
}

/// Walks the chain of capabilities; every offset goes forward, so the walk ends.
fn parse(bytes: &[u8], info: &IommuInfo) -> io::Result<Vec<IovaRange>> {
    let mut at = if info.flags & INFO_CAPS != 0 { info.cap_offset as usize } else { 0 };
    while at >= size_of::<IommuInfo>() {
        let rest = bytes.get(at..).ok_or_else(short)?;
        let (cap, rest) = IovaRangeCap::read_from_prefix(rest).map_err(|_| short())?;
        if cap.id == CAP_IOVA_RANGE {
            let count = cap.nr_iovas as usize;
            let len = count.checked_mul(size_of::<IovaRange>()).ok_or_else(short)?;
            let ranges = rest.get(..len).ok_or_else(short)?.chunks_exact(size_of::<IovaRange>());
            return Ok(ranges
                .map(|range| IovaRange::read_from_bytes(range).expect("16 bytes"))
                .collect());
        }
        if cap.next as usize <= at {
            break;
        }
        at = cap.next as usize;
    }
    Ok(Vec::new())
}

fn short() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "VFIO_IOMMU_GET_INFO gave less than it says")
}

/// Makes the kernel signal the descriptor when it wants the function back, and again every few seconds
/// until it has it (`VFIO_PCI_REQ_IRQ_INDEX`).
pub(super) fn set_request(device: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> io::Result<()> {
    set_irqs(device, VFIO_PCI_REQ_IRQ_INDEX, 0, &[Some(fd)])
}

/// Makes the MSI-X vectors from `start` on signal the descriptors, or nothing where there is none
/// (`VFIO_DEVICE_SET_IRQS`). The first call enables as many vectors as it names.
pub(super) fn set_msix(
    device: BorrowedFd<'_>,
    start: u32,
    fds: &[Option<BorrowedFd<'_>>],
) -> io::Result<()> {
    set_irqs(device, VFIO_PCI_MSIX_IRQ_INDEX, start, fds)
}

fn set_irqs(
    device: BorrowedFd<'_>,
    index: u32,
    start: u32,
    fds: &[Option<BorrowedFd<'_>>],
) -> io::Result<()> {
    let count = u32::try_from(fds.len()).map_err(io::Error::other)?;
    // struct vfio_irq_set: five words, then a descriptor a vector, -1 for none.
    let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    let argsz = 4 * (5 + count);
    let mut words = vec![argsz, flags, index, start, count];
    let raw = |fd: &Option<BorrowedFd<'_>>| fd.map_or(-1, |fd| fd.as_raw_fd());
    words.extend(fds.iter().map(raw).map(RawFd::cast_unsigned));
    // SAFETY: the descriptor is open while it is borrowed, and the argument points to `argsz`
    // readable bytes that hold a whole vfio_irq_set, which is all that the call reads.
    match unsafe { libc::ioctl(device.as_raw_fd(), VFIO_DEVICE_SET_IRQS, words.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;
    use vfio_bindings::bindings::vfio as kernel;

    #[test]
    fn our_layouts_are_the_kernels() {
        assert_eq!(size_of::<IommuInfo>(), size_of::<kernel::vfio_iommu_type1_info>());
        assert_eq!(
            offset_of!(IommuInfo, cap_offset),
            offset_of!(kernel::vfio_iommu_type1_info, cap_offset)
        );
        assert_eq!(
            size_of::<IovaRangeCap>(),
            size_of::<kernel::vfio_iommu_type1_info_cap_iova_range>()
        );
        assert_eq!(
            offset_of!(IovaRangeCap, nr_iovas),
            offset_of!(kernel::vfio_iommu_type1_info_cap_iova_range, nr_iovas)
        );
        assert_eq!(size_of::<IovaRange>(), size_of::<kernel::vfio_iova_range>());
        assert_eq!(u32::from(CAP_IOVA_RANGE), kernel::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE);
        assert_eq!(offset_of!(kernel::vfio_irq_set, count), 16);
    }

    fn info(cap_offset: u32) -> IommuInfo {
        IommuInfo { argsz: 0, flags: INFO_CAPS, iova_pgsizes: 0, cap_offset, pad: 0 }
    }

    #[test]
    fn ranges_are_found_behind_other_capabilities() {
        let mut bytes = vec![0; 24];
        let other = IovaRangeCap { id: 3, version: 1, next: 40, nr_iovas: 9, reserved: 0 };
        bytes.extend_from_slice(other.as_bytes());
        let cap = IovaRangeCap { id: 1, version: 1, next: 0, nr_iovas: 2, reserved: 0 };
        bytes.extend_from_slice(cap.as_bytes());
        let ranges = [
            IovaRange { start: 0, end: 0xfedf_ffff },
            IovaRange { start: 0xfef0_0000, end: 0x7f_ffff_ffff },
        ];
        ranges.iter().for_each(|range| bytes.extend_from_slice(range.as_bytes()));
        assert_eq!(parse(&bytes, &info(24)).unwrap(), ranges);
        assert_eq!(parse(&bytes, &IommuInfo { flags: 0, ..info(24) }).unwrap(), []);
        assert!(parse(&bytes[..60], &info(24)).is_err(), "cut short");
        assert!(parse(&bytes, &info(5000)).is_err(), "outside");
    }
}
