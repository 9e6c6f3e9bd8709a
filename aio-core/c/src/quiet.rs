//! Threads of the library's take no signals of the program's.
#![expect(
    unsafe_code,
    reason = "a thread inherits its mask from who starts it, and Rust has no call for it"
)]

/// Those that a thread gets for what it does itself. Blocked they are not delivered to a handler: the kernel
/// ends the process without asking it.
const OWN: [i32; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGSYS];

/// While this is there the calling thread takes no signal but its own faults, and the threads that it starts
/// take none from their first moment on: a signal to the process goes to a thread of the program's, and
/// waits if they all block it.
#[must_use = "the mask is what it was when this is dropped"]
pub(crate) struct Quiet(libc::sigset_t);

impl Quiet {
    pub(crate) fn new() -> Self {
        // SAFETY: sets of signals are numbers, for which zero is a value.
        let (mut most, mut old): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
        // SAFETY: the address of a set of ours.
        unsafe { libc::sigfillset(&raw mut most) };
        for signal in OWN {
            // SAFETY: as above.
            unsafe { libc::sigdelset(&raw mut most, signal) };
        }
        // SAFETY: the addresses of two sets of ours; it fails only for another first argument.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const most, &raw mut old) };
        Self(old)
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // SAFETY: the address of the set that was there before.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut())
        };
    }
}
