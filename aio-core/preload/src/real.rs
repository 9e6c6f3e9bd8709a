//! What is behind the names that this library takes: the kernel, and the C library.
#![expect(unsafe_code, reason = "system calls, and functions of the C library by name")]

use std::ffi::{CStr, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

/// A system call by its number, without the C library: its `syscall` is one of the names that this library takes,
/// and errno is the program's. The result, or the errno.
pub(crate) fn raw(number: libc::c_long, arguments: [usize; 6]) -> Result<usize, i32> {
    let [a, b, c, d, e, f] = arguments;
    let result: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the calling convention of the kernel (syscall(2)): rcx and r11 are changed. What the call does is what
    // its caller asked for, with addresses that he vouches for, or that the kernel is to check.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above; the kernel changes nothing but x0.
    unsafe {
        std::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a as isize => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e, in("x5") f,
            options(nostack),
        );
    }
    // -4095 to -1 are errors, anything else is a result.
    if (-4095..0).contains(&result) { Err(-result as i32) } else { Ok(result as usize) }
}

/// A result as functions of C have it: -1 and errno.
pub(crate) fn with_errno(result: Result<usize, i32>) -> isize {
    match result {
        Ok(value) => value as isize,
        Err(errno) => {
            set_errno(errno);
            -1
        }
    }
}

/// Sets errno of this thread.
pub(crate) fn set_errno(errno: i32) {
    // SAFETY: the C library's own place for it.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: it is this thread's, and an int.
    unsafe { *place = errno };
}

/// A function of the library that this one stands before, found when it is first asked for.
#[derive(Debug)]
pub(crate) struct Next {
    name: &'static CStr,
    found: AtomicPtr<c_void>,
}

impl Next {
    /// The function of this name.
    pub(crate) const fn new(name: &'static CStr) -> Self {
        Self { name, found: AtomicPtr::new(std::ptr::null_mut()) }
    }

    /// Its address; null where there is none, as in a program that has this library in place of the other.
    pub(crate) fn get(&self) -> *mut c_void {
        let found = self.found.load(Ordering::Relaxed);
        if !found.is_null() {
            return found;
        }
        // SAFETY: a name with a NUL at its end.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
        self.found.store(found, Ordering::Relaxed);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_gives_its_result_or_its_errno() {
        let pid = raw(libc::SYS_getpid, [0; 6]).unwrap();
        assert_eq!(pid, std::process::id() as usize);
        assert_eq!(raw(libc::SYS_close, [usize::MAX, 0, 0, 0, 0, 0]), Err(libc::EBADF));
        // All six arguments arrive: a file's page at an offset is mapped.
        let (protection, flags) = (libc::PROT_READ as usize, libc::MAP_PRIVATE as usize);
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file) as usize;
        let at = raw(libc::SYS_mmap, [0, 4096, protection, flags, fd, 1]);
        assert_eq!(at, Err(libc::EINVAL), "an offset that is not a page's");
        let at = raw(libc::SYS_mmap, [0, 4096, protection, flags, fd, 0]).unwrap();
        raw(libc::SYS_munmap, [at, 4096, 0, 0, 0, 0]).unwrap();
    }

    #[test]
    fn an_error_is_minus_one_and_errno_and_a_result_is_itself() {
        assert_eq!(with_errno(Ok(7)), 7);
        assert_eq!(with_errno(Err(libc::EXDEV)), -1);
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EXDEV));
    }

    #[test]
    fn a_function_of_the_c_library_is_found_and_one_that_is_not_there_is_null() {
        assert!(!Next::new(c"aio_read").get().is_null());
        assert!(Next::new(c"uaio_is_not_there").get().is_null());
    }
}
