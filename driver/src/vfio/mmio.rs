//! A mapped BAR.
#![expect(unsafe_code, reason = "mapping a BAR and accessing its registers")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};

use super::sigbus;

/// A BAR mapped into this process, accessed register by register.
///
/// # Removal
///
/// Reads of a function that is gone from the bus give all ones. When vfio-pci itself lets the function
/// go (unplug with notice) or its memory is disabled, the kernel answers accesses to the mapping with
/// SIGBUS; `sigbus.rs` makes them read all ones too. [`detach`](Bar::detach) does so without a fault.
///
/// # Invariants
///
/// `base` is page-aligned and valid for reads and writes of `len_bytes` bytes until it is dropped.
#[derive(Debug)]
pub(super) struct Bar {
    base: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: the mapping is of the process, not of a thread; it is only accessed by single volatile
// loads and stores, which the device takes from any thread.
unsafe impl Send for Bar {}
// SAFETY: as for Send; there is nothing else to race on.
unsafe impl Sync for Bar {}

impl Bar {
    /// Maps `len_bytes` bytes of `device` from `offset` on.
    pub(super) fn map(device: BorrowedFd<'_>, offset: u64, len_bytes: usize) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let fd = device.as_raw_fd();
        // SAFETY: a new shared mapping at an address that the kernel chooses replaces nothing.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), len_bytes, prot, libc::MAP_SHARED, fd, offset)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // INVARIANT: a successful mmap of len_bytes is page-aligned, readable and writable.
        let base: NonNull<u8> =
            NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at zero"))?;
        // A forked child has no business with the registers.
        // SAFETY: the range is the mapping just made.
        let advised =
            unsafe { libc::madvise(base.as_ptr().cast(), len_bytes, libc::MADV_DONTFORK) };
        let advised = if advised == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
        let bar = Self { base, len_bytes };
        advised?;
        base.as_ptr().expose_provenance();
        if sigbus::watch(base.as_ptr(), len_bytes) { Ok(bar) } else { Err(sigbus::too_many()) }
    }

    /// Lets go of the function's memory: from now on every register reads as all ones, and writes go
    /// nowhere. `false` when the kernel has no memory for that.
    pub(super) fn detach(&self) -> bool {
        // SAFETY: by the invariant this is the mapping made in `map`, and accesses are volatile.
        unsafe { sigbus::put_ones(self.base.as_ptr(), self.len_bytes) }
    }

    pub(super) fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    #[inline]
    fn register<T>(&self, offset: u32) -> *mut T {
        let offset = offset as usize;
        let fits = offset.is_multiple_of(size_of::<T>())
            && self.len_bytes.checked_sub(size_of::<T>()).is_some_and(|last| offset <= last);
        assert!(fits, "register {offset:#x} outside of a BAR of {:#x} bytes", self.len_bytes);
        // SAFETY: offset + size_of::<T>() <= len_bytes was just checked, and by the invariant the
        // mapping is that long.
        unsafe { self.base.as_ptr().add(offset) }.cast()
    }

    #[inline]
    pub(super) fn read32(&self, offset: u32) -> u32 {
        let register = self.register::<u32>(offset);
        // SAFETY: in range and aligned (`register`); a register is read by one volatile load.
        u32::from_le(unsafe { register.read_volatile() })
    }

    #[inline]
    pub(super) fn read64(&self, offset: u32) -> u64 {
        let register = self.register::<u64>(offset);
        // SAFETY: in range and aligned (`register`); a register is read by one volatile load.
        u64::from_le(unsafe { register.read_volatile() })
    }

    #[inline]
    pub(super) fn write32(&self, offset: u32, value: u32) {
        let register = self.register::<u32>(offset);
        before_device_write();
        // SAFETY: in range and aligned (`register`); a register is written by one volatile store.
        unsafe { register.write_volatile(value.to_le()) };
    }

    #[inline]
    pub(super) fn write64(&self, offset: u32, value: u64) {
        let register = self.register::<u64>(offset);
        before_device_write();
        // SAFETY: in range and aligned (`register`); a register is written by one volatile store.
        unsafe { register.write_volatile(value.to_le()) };
    }
}

/// Orders every earlier store to memory before the store to a register that follows: pairs with the
/// device, which fetches from memory after it sees the register.
///
/// On x86-64 a store to uncached memory is not moved before earlier stores to cached memory (Intel
/// SDM vol. 3A §9.2.2, AMD APM vol. 2 §7.4.2), so only the compiler has to be held: a Release fence is
/// no instruction there. Elsewhere it is the strongest fence Rust has, which no other machine has
/// proven to be enough.
#[inline]
fn before_device_write() {
    fence(if cfg!(target_arch = "x86_64") { Ordering::Release } else { Ordering::SeqCst });
}

impl Drop for Bar {
    fn drop(&mut self) {
        sigbus::forget(self.base.as_ptr());
        // SAFETY: by the invariant this is the mapping made in `map`, and nothing uses it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn bar(len_bytes: usize) -> Bar {
        let path =
            std::env::temp_dir().join(format!("uaio-bar-{}-{len_bytes}", std::process::id()));
        let mut options = std::fs::OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file.set_len(len_bytes as u64).unwrap();
        Bar::map(file.as_fd(), 0, len_bytes).unwrap()
    }

    #[test]
    fn registers_are_little_endian_words_at_their_offsets() {
        let bar = bar(8192);
        bar.write32(0x1000, 0x0403_0201);
        bar.write32(0x1004, 0x0807_0605);
        assert_eq!(bar.read64(0x1000), 0x0807_0605_0403_0201);
        bar.write64(0x28, 7);
        assert_eq!((bar.read32(0x28), bar.read32(0x2c)), (7, 0));
    }

    #[test]
    #[should_panic(expected = "register 0x1000 outside of a BAR of 0x1000 bytes")]
    fn an_access_outside_the_bar_never_happens() {
        bar(4096).write32(0x1000, 1);
    }

    #[test]
    fn registers_that_are_gone_read_as_ones_instead_of_ending_the_process() {
        let path = std::env::temp_dir().join(format!("uaio-bar-gone-{}", std::process::id()));
        let mut options = std::fs::OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file.set_len(8192).unwrap();
        let gone = Bar::map(file.as_fd(), 0, 8192).unwrap();
        let other = bar(8192);
        other.write32(0x1c, 7);
        gone.write32(0x1000, 5);
        // A file that ends before its mapping faults as a BAR does that the kernel took away.
        file.set_len(0).unwrap();
        gone.write32(0x1000, 6);
        assert_eq!((gone.read32(0x1c), gone.read64(0)), (u32::MAX, u64::MAX));
        assert_eq!(other.read32(0x1c), 7, "another one is as it was");
        assert!(other.detach());
        assert_eq!(other.read32(0x1c), u32::MAX);
    }
}
