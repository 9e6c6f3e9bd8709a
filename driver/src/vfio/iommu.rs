//! An IOMMU container with one group and one pool in it.
#![expect(unsafe_code, reason = "mapping memory for a device's DMA")]

use std::io;
use std::sync::Arc;

use vfio_ioctls::{VfioContainer, VfioError};

use crate::dma::{DmaPool, FRAME_SIZE};
use crate::error::DeviceError;

use super::ioctl::{self, IovaRange};
use super::lockable;

/// Makes a container.
pub(super) fn container() -> Result<Arc<VfioContainer>, DeviceError> {
    VfioContainer::new(None).map(Arc::new).map_err(|error| match error {
        VfioError::OpenContainer(source) => DeviceError::Os {
            what: "cannot open /dev/vfio/vfio (load vfio and vfio_iommu_type1, be root)".into(),
            source,
        },
        other => DeviceError::Os {
            what: "the kernel's VFIO cannot do type 1 IOMMUs (load vfio_iommu_type1)".into(),
            source: io::Error::other(other),
        },
    })
}

/// Maps all of `pool` at its IOVA, once a group is in the container.
///
/// # Errors
///
/// [`DeviceError::Invalid`] when the pool is outside of what the IOMMU takes; the text says which
/// addresses to choose.
pub(super) fn map(container: &VfioContainer, pool: &DmaPool) -> Result<(), DeviceError> {
    lockable::check(pool.len_bytes() as u64)?;
    let ranges = ioctl::iova_ranges(ioctl::fd_of(container))
        .map_err(|source| DeviceError::Os { what: "VFIO_IOMMU_GET_INFO".into(), source })?;
    check_aperture(&ranges, pool.iova().0, pool.len_bytes() as u64)?;
    // SAFETY: the pool's memory is one mapping of `len_bytes` that is reached only through volatile
    // accesses and atomics, never as a Rust reference; whoever maps it keeps the pool until it is
    // unmapped (`VfioFunction` holds both, and closes the container first).
    let mapped = unsafe { container.vfio_dma_map(pool.iova().0, pool.len_bytes(), pool.as_ptr()) };
    mapped.map_err(|error| {
        let what = format!("cannot map {} bytes for DMA", pool.len_bytes());
        match error {
            VfioError::IommuDmaMap(errno) if errno.errno() == libc::ENOMEM => DeviceError::Os {
                what: format!("{what}; raise the limit of locked memory (ulimit -l)"),
                source: io::Error::from_raw_os_error(libc::ENOMEM),
            },
            VfioError::IommuDmaMap(errno) => {
                DeviceError::Os { what, source: io::Error::from_raw_os_error(errno.errno()) }
            }
            other => DeviceError::Os { what, source: io::Error::other(other) },
        }
    })
}

/// Takes the pool out of the device's reach. Whether it is.
pub(super) fn unmap(container: &VfioContainer, pool: &DmaPool) -> bool {
    container.vfio_dma_unmap(pool.iova().0, pool.len_bytes()).is_ok()
}

fn check_aperture(ranges: &[IovaRange], start: u64, len: u64) -> Result<(), DeviceError> {
    let end = start.saturating_add(len - 1);
    // A kernel that does not say is asked by mapping.
    let fits = ranges.iter().any(|range| range.start <= start && end <= range.end);
    if ranges.is_empty() || fits {
        return Ok(());
    }
    let page = FRAME_SIZE as u64;
    let room = |range: &&IovaRange| range.end - range.start >= len - 1 && range.start < range.end;
    let hint = match ranges.iter().filter(room).max_by_key(|range| range.end - range.start) {
        Some(range) => format!("choose one from {:#x} on", range.start.next_multiple_of(page)),
        None => "make the pool smaller".to_owned(),
    };
    let there: Vec<_> =
        ranges.iter().map(|range| format!("{:#x}-{:#x}", range.start, range.end)).collect();
    Err(DeviceError::Invalid(format!(
        "the pool at IOVA {start:#x}-{end:#x} is outside of what the IOMMU takes ({}); {hint}",
        there.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_outside_the_aperture_is_refused_with_where_to_put_it() {
        let ranges = [
            IovaRange { start: 0, end: 0xfedf_ffff },
            IovaRange { start: 0xfef0_0000, end: 0x7f_ffff_ffff },
        ];
        check_aperture(&ranges, 4 << 30, 1 << 30).unwrap();
        check_aperture(&ranges, 0, 0xfee0_0000).unwrap();
        check_aperture(&[], 1 << 50, 4096).unwrap();
        let error = check_aperture(&ranges, 1 << 40, 4096).unwrap_err().to_string();
        assert_eq!(
            error,
            "the pool at IOVA 0x10000000000-0x10000000fff is outside of what the IOMMU takes \
             (0x0-0xfedfffff, 0xfef00000-0x7fffffffff); choose one from 0xfef00000 on"
        );
        assert!(check_aperture(&ranges, 0xfee0_0000, 4096).is_err(), "the interrupt window");
        assert!(check_aperture(&ranges, u64::MAX - 4095, 1 << 20).is_err());
        let error = check_aperture(&ranges, 0, 1 << 40).unwrap_err().to_string();
        assert!(error.ends_with("make the pool smaller"), "{error}");
    }
}
