//! VFIO: the only place that touches PCI.
//!
//! | file | what |
//! |---|---|
//! | [`PciAddress`] | how a function is named |
//! | `sysfs` | what is there, whether it can be taken, [`bind`] and [`unbind`] |
//! | `function` | an open function: group, container, interrupts, the pool mapped for it |
//! | `iommu`, `ioctl`, `mmio`, `sigbus` | the `unsafe` parts, a fence around each |
//!
//! A function is taken through its IOMMU group (`/dev/vfio/N`), which one process can hold at a time:
//! a second server on the same drive is refused by the kernel. Its memory accesses go through the
//! IOMMU, which lets it reach the pool and nothing else. When the process ends, however it ends, the
//! kernel stops and resets the function.

mod address;
mod function;
mod ioctl;
mod iommu;
mod mmio;
mod sigbus;
mod sysfs;

pub use address::PciAddress;
pub use function::VfioFunction;
pub use sysfs::{NvmeFunction, bind, list, unbind};
