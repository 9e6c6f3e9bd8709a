//! What keeps a server from waiting for its own device.
//!
//! When memory runs short the kernel writes dirty pages to `/dev/ublkbN`, that is, to us. If we then
//! wait for memory that only that write would free, the machine hangs. So a server holds what it
//! needs before it serves:
//!
//! | what | how | who | without it |
//! |---|---|---|---|
//! | no page of ours is ever fetched | `mlockall(MCL_CURRENT \| MCL_FUTURE)` | the process | a page fault waits for a device, perhaps ours |
//! | allocations for us do not start I/O | `PR_SET_IO_FLUSHER` | each thread | reclaim writes to our device and waits for it |
//! | we are not the victim | `oom_score_adj` −1000 | the process | the one process that could free memory is killed |
//!
//! Each needs a privilege (CAP_IPC_LOCK or RLIMIT_MEMLOCK, CAP_SYS_RESOURCE). What may not be had is
//! reported, not hidden: the server works without, until memory is short.
//!
//! `MCL_ONFAULT` is not used: it locks a page when it is first touched, and that touch would come in
//! the middle of a request.
#![expect(unsafe_code, reason = "prctl, mlockall and the signal mask have no safe wrapper here")]

use std::fmt;
use std::io;

/// include/uapi/linux/prctl.h; not in libc for every target.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Whether one protection holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shielded {
    /// It does.
    Yes,
    /// It does not; the kernel's errno says why.
    No(i32),
}

impl Shielded {
    fn from(result: io::Result<()>) -> Self {
        match result {
            Ok(()) => Self::Yes,
            Err(error) => Self::No(error.raw_os_error().unwrap_or(0)),
        }
    }
}

/// What protects the process, and what may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShieldReport {
    /// Memory is locked, now and for what comes.
    pub memory: Shielded,
    /// The OOM killer leaves the process alone.
    pub oom_killer: Shielded,
    /// Threads made from here on (and the calling one) do not start I/O when they allocate.
    pub io_flusher: Shielded,
}

impl ShieldReport {
    /// Whether everything holds.
    pub fn is_complete(&self) -> bool {
        let Self { memory, oom_killer, io_flusher } = *self;
        [memory, oom_killer, io_flusher].iter().all(|&part| part == Shielded::Yes)
    }
}

impl fmt::Display for ShieldReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("memory is not locked", self.memory),
            ("the OOM killer may choose this process", self.oom_killer),
            ("allocations may start I/O", self.io_flusher),
        ];
        let mut first = true;
        for (text, shielded) in parts {
            let Shielded::No(errno) = shielded else { continue };
            let reason = io::Error::from_raw_os_error(errno);
            write!(f, "{}{text} ({reason})", if first { "" } else { "; " })?;
            first = false;
        }
        if first { f.write_str("shielded against memory shortage") } else { Ok(()) }
    }
}

/// Shields the process: call it before the server starts and before other threads are made, which
/// inherit the part that is a thread's. Memory is populated as it is locked, so a large heap takes
/// its time here instead of in the middle of a request.
pub fn shield_process() -> ShieldReport {
    ShieldReport {
        memory: Shielded::from(lock_memory()),
        oom_killer: Shielded::from(std::fs::write("/proc/self/oom_score_adj", "-1000")),
        io_flusher: shield_thread(),
    }
}

/// Makes allocations for the calling thread start no I/O (`PR_SET_IO_FLUSHER`, prctl(2)). Every
/// thread that a request may wait for needs it; the server's own have it.
pub fn shield_thread() -> Shielded {
    Shielded::from(prctl(PR_SET_IO_FLUSHER, 1))
}

/// Lets a timed wait of the calling thread end when it is asked to, not up to 50 µs later.
pub(super) fn exact_timers() {
    // Cannot fail for the calling thread (prctl(2)); if it did, naps would be 50 µs longer.
    let _ = prctl(libc::PR_SET_TIMERSLACK, 1);
}

fn prctl(option: libc::c_int, value: libc::c_ulong) -> io::Result<()> {
    let zero: libc::c_ulong = 0;
    // SAFETY: the options used here take one integer and no pointer.
    check(unsafe { libc::prctl(option, value, zero, zero, zero) })
}

fn lock_memory() -> io::Result<()> {
    // SAFETY: takes flags only; it changes no contents.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) })
}

/// Leaves every signal to the process's other threads.
///
/// A signal would end a wait inside libublk's control commands early, which it does not notice: it
/// takes the answer for missing, and finds it when it waits for the next one's. The signals that a
/// thread's own instructions raise stay.
pub(super) fn block_signals() {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `set` is writable memory of the type the call fills.
    unsafe { libc::sigfillset(set.as_mut_ptr()) };
    // SAFETY: sigfillset has filled it, and cannot fail with a valid pointer.
    let mut set = unsafe { set.assume_init() };
    for own in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGABRT] {
        // SAFETY: `set` is initialised and `own` is a signal's number.
        unsafe { libc::sigdelset(&mut set, own) };
    }
    // SAFETY: `set` is initialised; the old mask is not asked for.
    let errno = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &set, std::ptr::null_mut()) };
    assert_eq!(errno, 0, "pthread_sigmask fails only for an unknown operation");
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_what_may_not_be_had_and_why() {
        let whole = ShieldReport {
            memory: Shielded::Yes,
            oom_killer: Shielded::Yes,
            io_flusher: Shielded::Yes,
        };
        assert!(whole.is_complete());
        assert_eq!(whole.to_string(), "shielded against memory shortage");
        let report = ShieldReport {
            memory: Shielded::No(libc::ENOMEM),
            io_flusher: Shielded::No(libc::EPERM),
            ..whole
        };
        assert!(!report.is_complete());
        assert_eq!(
            report.to_string(),
            "memory is not locked (Cannot allocate memory (os error 12)); \
             allocations may start I/O (Operation not permitted (os error 1))"
        );
    }

    #[test]
    fn a_shielded_thread_says_so() {
        std::thread::spawn(|| {
            exact_timers();
            block_signals();
            match shield_thread() {
                Shielded::Yes => assert!(prctl_get(PR_SET_IO_FLUSHER + 1) == 1),
                Shielded::No(errno) => assert_eq!(errno, libc::EPERM),
            }
        })
        .join()
        .unwrap();
    }

    fn prctl_get(option: libc::c_int) -> libc::c_int {
        let zero: libc::c_ulong = 0;
        // SAFETY: the option takes no pointer.
        unsafe { libc::prctl(option, zero, zero, zero, zero) }
    }
}
