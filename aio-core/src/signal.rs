//! Signals with a value, as the kernel's own asynchronous I/O would send them.
#![expect(unsafe_code, reason = "no safe interface queues a signal with a value")]

use std::io;

/// A signal to be queued with its value: `si_code` is `SI_ASYNCIO`, `si_value` the value, `si_pid` and
/// `si_uid` this process and its user (`sigqueue(3)`, `sigaction(2)`).
///
/// Signals beyond `RLIMIT_SIGPENDING` are not queued; the context counts those as lost notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal {
    signal: i32,
    value: usize,
    /// 0 for the process.
    thread: i32,
}

/// What the kernel takes: `siginfo_t` of a queued signal (include/uapi/asm-generic/siginfo.h, 64 bit).
#[repr(C)]
struct SigInfo {
    si_signo: i32,
    si_errno: i32,
    si_code: i32,
    pad: i32,
    si_pid: i32,
    si_uid: u32,
    si_value: usize,
    rest: [u8; 96],
}

const _: () = assert!(size_of::<SigInfo>() == size_of::<libc::siginfo_t>());

impl Signal {
    /// To this process, any of its threads (`SIGEV_SIGNAL`). `value` is `sival_ptr` or, in its lower
    /// half, `sival_int`.
    ///
    /// # Errors
    ///
    /// EINVAL for a number that is no signal.
    pub fn to_process(signal: i32, value: usize) -> io::Result<Self> {
        Self::new(signal, value, 0)
    }

    /// To one thread of this process, by its number (`gettid(2)`; `SIGEV_THREAD_ID`).
    ///
    /// # Errors
    ///
    /// EINVAL for a number that is no signal, or a thread that cannot be.
    pub fn to_thread(thread: i32, signal: i32, value: usize) -> io::Result<Self> {
        if thread <= 0 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        Self::new(signal, value, thread)
    }

    fn new(signal: i32, value: usize, thread: i32) -> io::Result<Self> {
        if !(1..=libc::SIGRTMAX()).contains(&signal) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        Ok(Self { signal, value, thread })
    }

    /// Queues it now.
    ///
    /// # Errors
    ///
    /// EAGAIN when as many signals are queued as may be (`RLIMIT_SIGPENDING`), ESRCH for a thread that is gone.
    pub fn send(self) -> io::Result<()> {
        let process = std::process::id().cast_signed();
        let info = SigInfo {
            si_signo: self.signal,
            si_errno: 0,
            si_code: libc::SI_ASYNCIO,
            pad: 0,
            si_pid: process,
            si_uid: rustix::process::getuid().as_raw(),
            si_value: self.value,
            rest: [0; 96],
        };
        let result = if self.thread == 0 {
            // SAFETY: the kernel reads one siginfo_t, which `info` has the size and layout of.
            unsafe {
                libc::syscall(libc::SYS_rt_sigqueueinfo, process, self.signal, &raw const info)
            }
        } else {
            // SAFETY: as above.
            unsafe {
                libc::syscall(
                    libc::SYS_rt_tgsigqueueinfo,
                    process,
                    self.thread,
                    self.signal,
                    &raw const info,
                )
            }
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
