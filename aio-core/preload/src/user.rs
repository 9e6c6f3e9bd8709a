//! Memory of the program's: what it may give us, and what it may not.
//!
//! io_submit(2) says EFAULT of a bad address, so an address is tried before it is used. The kernel tries it: a
//! call that reads or writes eight bytes of the program's says EFAULT when they are not there, and costs a tenth
//! of process_vm_readv(2), which would copy them.
#![expect(unsafe_code, reason = "addresses of the program's are read and written")]

use crate::real;

/// The first address that no program has: on arm64 all of 48 bits are a program's, elsewhere (x86-64) half of
/// them. A larger address space of 52 or 57 bits is given only to who asks for it.
const USER_END: usize = if cfg!(target_arch = "aarch64") { 1 << 48 } else { 1 << 47 };
/// The smallest page.
const PAGE: usize = 4096;
/// How many bytes are tried at once: a set of signals of the kernel's.
const TRIED: usize = 8;

/// There is nothing at that address, or it may not be used so: EFAULT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault;

/// What is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

/// Tries addresses, and remembers the page that was good last: the iocbs of a call lie side by side.
///
/// It is for one call. Whoever unmaps memory during a call that it was given to gets what he deserves.
#[derive(Debug)]
pub(crate) struct Prober {
    access: Access,
    good: usize,
}

impl Prober {
    /// Tries whether memory may be read.
    pub(crate) fn reading() -> Self {
        Self { access: Access::Read, good: usize::MAX }
    }

    /// Tries whether memory may be written, which changes its bytes: it is for memory that is written next, of at
    /// least eight bytes.
    pub(crate) fn writing() -> Self {
        Self { access: Access::Write, good: usize::MAX }
    }

    /// Whether all of `len_bytes` bytes at `address` may be used.
    pub(crate) fn check(&mut self, address: usize, len_bytes: usize) -> Result<(), Fault> {
        if len_bytes == 0 {
            return Ok(());
        }
        if !is_of_program(address, len_bytes) {
            return Err(Fault);
        }
        let last = address + len_bytes - 1;
        let mut at = address;
        loop {
            if at / PAGE != self.good {
                // Never beyond the end, unless what is asked for is shorter; then within the page.
                let try_at =
                    if len_bytes < TRIED { at & !(TRIED - 1) } else { at.min(last + 1 - TRIED) };
                self.one(try_at)?;
                self.good = at / PAGE;
            }
            at = (at | (PAGE - 1)) + 1;
            if at > last {
                return Ok(());
            }
        }
    }

    fn one(&self, address: usize) -> Result<(), Fault> {
        // No address at all would be no argument; no program has anything in the first page.
        if address < PAGE {
            return Err(Fault);
        }
        // No call of this sort has such a number, so the mask stays what it is.
        const NOTHING: usize = 0x7fff;
        let errno = match self.access {
            Access::Read => {
                real::raw(libc::SYS_rt_sigprocmask, [NOTHING, address, 0, TRIED, 0, 0]).err()
            }
            Access::Write => {
                let block = libc::SIG_BLOCK as usize;
                real::raw(libc::SYS_rt_sigprocmask, [block, 0, address, TRIED, 0, 0]).err()
            }
        };
        if errno == Some(libc::EFAULT) { Err(Fault) } else { Ok(()) }
    }
}

/// Whether these bytes are in the program's half of the address space.
pub(crate) fn is_of_program(address: usize, len_bytes: usize) -> bool {
    address.checked_add(len_bytes).is_some_and(|end| end <= USER_END)
}

/// A copy of a program's list of buffers.
#[derive(Debug)]
pub(crate) struct List(pub(crate) Box<[libc::iovec]>);

// SAFETY: numbers, as far as this library is concerned: only the kernel looks there.
unsafe impl Send for List {}

/// Values of which any bytes are one.
///
/// # Safety
///
/// That is so.
pub(crate) unsafe trait Plain: Copy {}

// SAFETY: a number.
unsafe impl Plain for usize {}
// SAFETY: a number.
unsafe impl Plain for u64 {}
// SAFETY: two numbers.
unsafe impl Plain for libc::timespec {}
// SAFETY: an address and a number.
unsafe impl Plain for libc::iovec {}

/// A value of the program's.
pub(crate) fn read<T: Plain>(prober: &mut Prober, address: usize) -> Result<T, Fault> {
    prober.check(address, size_of::<T>())?;
    let from = std::ptr::with_exposed_provenance::<T>(address);
    // SAFETY: it was there a moment ago, and any bytes are a value. Unaligned, because nothing checks that;
    // the program may change it meanwhile, which gives one value or the other.
    Ok(unsafe { from.read_unaligned() })
}

/// Puts a value where the program wants it.
pub(crate) fn write<T: Plain>(prober: &mut Prober, address: usize, value: T) -> Result<(), Fault> {
    prober.check(address, size_of::<T>())?;
    let to = std::ptr::with_exposed_provenance_mut::<T>(address);
    // SAFETY: it was there a moment ago, and the program gave it to be written.
    unsafe { to.write_unaligned(value) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two pages, of which the second is `protection`.
    fn pages(protection: i32) -> usize {
        let (all, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new memory.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), 2 * PAGE, all, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        // SAFETY: the second page of it.
        assert_eq!(unsafe { libc::mprotect(at.wrapping_byte_add(PAGE), PAGE, protection) }, 0);
        at.expose_provenance()
    }

    #[test]
    fn what_is_not_there_or_may_not_be_used_so_is_a_fault_and_nothing_else_is() {
        let at = pages(libc::PROT_NONE);
        for (address, len, ok) in [
            (at, PAGE, true),
            (at, 1, true),
            (at + PAGE - 3, 3, true),
            (at + PAGE - 3, 4, false),
            (at + PAGE, 1, false),
            (at + PAGE - 64, 64, true),
            (at + PAGE - 32, 64, false),
            (0, 1, false),
            (0, 0, true),
            (8, 64, false),
            (usize::MAX - 8, 64, false),
            (USER_END - 8, 64, false),
        ] {
            let probers = [Prober::reading(), Prober::writing()];
            for mut prober in probers.into_iter().take(if len < TRIED { 1 } else { 2 }) {
                assert_eq!(prober.check(address, len).is_ok(), ok, "{prober:?} {address:x} {len}");
            }
        }
        let at = pages(libc::PROT_READ) + PAGE;
        assert_eq!(Prober::reading().check(at, PAGE), Ok(()));
        assert_eq!(Prober::writing().check(at, 8), Err(Fault));
    }

    #[test]
    fn a_page_that_was_good_says_nothing_of_the_next() {
        let at = pages(libc::PROT_NONE);
        let mut prober = Prober::reading();
        assert_eq!(prober.check(at, 8), Ok(()));
        assert_eq!(prober.check(at + PAGE, 8), Err(Fault));
        assert_eq!(prober.check(at, 2 * PAGE), Err(Fault));
    }

    #[test]
    fn trying_to_write_changes_nothing_outside() {
        let at = pages(libc::PROT_READ | libc::PROT_WRITE);
        for start in at + PAGE - 33..at + PAGE + 2 {
            for len in [8, 32, 35] {
                // SAFETY: two pages of this test's.
                unsafe {
                    std::ptr::with_exposed_provenance_mut::<u8>(at).write_bytes(0xaa, 2 * PAGE)
                };
                Prober::writing().check(start, len).unwrap();
                for outside in (at..start).chain(start + len..at + 2 * PAGE) {
                    // SAFETY: as above.
                    let byte = unsafe { std::ptr::with_exposed_provenance::<u8>(outside).read() };
                    assert_eq!(byte, 0xaa, "{start:x} {len} {outside:x}");
                }
            }
        }
    }

    #[test]
    fn trying_to_read_changes_neither_the_memory_nor_the_signal_mask() {
        let word = 0x5555_5555_5555_5555u64;
        let mask = || {
            let mut mask = 0u64;
            let to = (&raw mut mask).expose_provenance();
            real::raw(libc::SYS_rt_sigprocmask, [0, 0, to, 8, 0, 0]).unwrap();
            mask
        };
        let before = mask();
        let at = (&raw const word).expose_provenance();
        assert_eq!(read::<u64>(&mut Prober::reading(), at), Ok(word));
        assert_eq!(mask(), before);
    }
}
