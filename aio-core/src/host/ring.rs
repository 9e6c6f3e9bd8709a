//! One io_uring: set up, filled, entered, reaped. What the kernel is asked is in `entry.rs`.
#![expect(unsafe_code, reason = "entries carry addresses; the kernel reads and writes there")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, squeue};

/// The most entries that a submission ring has (`IORING_MAX_ENTRIES`).
const ENTRIES_MAX: u32 = 32_768;
/// `IORING_ENTER_GETEVENTS` (include/uapi/linux/io_uring.h).
const ENTER_GETEVENTS: u32 = 1;

/// Who enters the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// Any thread, one at a time.
    #[default]
    Anyone,
    /// The thread that made the engine, for ever (`SINGLE_ISSUER`, `DEFER_TASKRUN`, Linux 6.1): it
    /// is interrupted for no completion. Another that commits fails the ring with EEXIST. Older
    /// kernels ignore it.
    ThisThread,
}

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The kernel has no io_uring (it is older than 5.1, or was built without): ENOSYS. A seccomp
    /// filter may also say so.
    #[error("this kernel has no io_uring, or a seccomp filter hides it")]
    Missing,
    /// It may not be used here: EPERM.
    #[error("io_uring is not allowed here: {}", .disabled.why())]
    Forbidden {
        /// By what.
        disabled: Disabled,
    },
    /// It lacks what the engine is built on (5.11 and newer have it; all operations need 5.15).
    #[error("this kernel's io_uring has no {feature}")]
    TooOld {
        /// What it lacks.
        feature: &'static str,
    },
    /// There is no engine of this depth: EINVAL.
    #[error("a depth of {depth} is not possible: take 1 to {}", super::DEPTH_MAX)]
    Depth {
        /// What was asked for.
        depth: usize,
    },
    /// There is not enough memory, or no descriptor left.
    #[error("setting up io_uring: {0}")]
    Os(#[from] io::Error),
}

impl EngineError {
    /// The positive errno that says this to a program.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Missing | Self::TooOld { .. } => libc::ENOSYS,
            Self::Forbidden { .. } => libc::EPERM,
            Self::Depth { .. } => libc::EINVAL,
            Self::Os(error) => error.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}

/// What forbids io_uring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disabled {
    /// `kernel.io_uring_disabled` is 2: nobody may.
    ForAll,
    /// `kernel.io_uring_disabled` is 1: only a group and CAP_SYS_ADMIN may.
    ForMost,
    /// Neither, so a seccomp filter or a security module.
    ByFilter,
}

impl Disabled {
    fn find() -> Self {
        match std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").as_deref() {
            Ok("2\n") => Self::ForAll,
            Ok("1\n") => Self::ForMost,
            _ => Self::ByFilter,
        }
    }

    fn why(self) -> &'static str {
        match self {
            Self::ForAll => "sysctl kernel.io_uring_disabled is 2",
            Self::ForMost => {
                "sysctl kernel.io_uring_disabled is 1, and the process is not in kernel.io_uring_group"
            }
            Self::ByFilter => "by a seccomp filter or a security module",
        }
    }
}

pub(super) struct Ring {
    ring: IoUring,
    probe: Probe,
    /// Entries pushed and taken so far: those between are in the ring.
    pushed: u64,
    taken: u64,
}

impl Ring {
    pub(super) fn new(depth: u32, owner: Owner) -> Result<Self, EngineError> {
        let entries = depth.clamp(8, ENTRIES_MAX).next_power_of_two();
        // A timer, a cancel and an answer each.
        let completions = depth.saturating_mul(2).clamp(entries * 2, ENTRIES_MAX * 2);
        let build = |modern: bool| {
            let mut builder = IoUring::builder();
            builder.dontfork().setup_cqsize(completions).setup_clamp();
            if modern {
                builder.setup_submit_all();
                if owner == Owner::ThisThread {
                    builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
                }
            }
            builder.build(entries)
        };
        // `COOP_TASKRUN` is left out on purpose: the thread that started an operation may be away
        // computing when it is done, and then somebody else turns the engine. Without it the kernel
        // interrupts that thread instead of waiting for it to come by.
        let ring = match build(true) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => build(false),
            other => other,
        };
        let ring = ring.map_err(|error| match error.raw_os_error() {
            Some(libc::ENOSYS) => EngineError::Missing,
            Some(libc::EPERM | libc::EACCES) => {
                EngineError::Forbidden { disabled: Disabled::find() }
            }
            _ => EngineError::Os(error),
        })?;
        let features = [
            (ring.params().is_feature_nodrop(), "guarantee for completions (NODROP)"),
            (ring.params().is_feature_submit_stable(), "SUBMIT_STABLE"),
            (ring.params().is_feature_rw_cur_pos(), "reads where the file is (RW_CUR_POS)"),
            (ring.params().is_feature_cur_personality(), "personalities (CUR_PERSONALITY)"),
            (ring.params().is_feature_ext_arg(), "waits with a limit (EXT_ARG)"),
        ];
        if let Some((_, feature)) = features.into_iter().find(|(has, _)| !has) {
            return Err(EngineError::TooOld { feature });
        }
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        Ok(Self { ring, probe, pushed: 0, taken: 0 })
    }

    /// Whether the kernel has this operation.
    pub(super) fn has(&self, opcode: u8) -> bool {
        self.probe.is_supported(opcode)
    }

    /// Whether it holds as many entries as it can.
    pub(super) fn is_full(&mut self) -> bool {
        self.ring.submission().is_full()
    }

    /// Puts an entry into the ring, or says that it is full. Does not enter the kernel.
    ///
    /// # Safety
    ///
    /// Whatever memory the entry names stays valid, and unmoved, until its completion was reaped, or
    /// for ever if it never is.
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) -> bool {
        let mut entries = self.ring.submission();
        // SAFETY: the caller vouches for the memory.
        let pushed = unsafe { entries.push(entry) }.is_ok();
        self.pushed += u64::from(pushed);
        pushed
    }

    /// How many entries were pushed so far: the number of the next.
    pub(super) fn pushed(&self) -> u64 {
        self.pushed
    }

    /// How many of them the kernel has taken.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// Whether there are entries that the kernel has not taken.
    pub(super) fn is_pending(&self) -> bool {
        self.pushed != self.taken
    }

    /// Has the kernel take the entries. It may leave some when it is short of memory, for the next
    /// call. With `wait` it also sleeps until there is a completion, so long at most.
    ///
    /// # Errors
    ///
    /// The errno of an `io_uring_enter` that will never succeed.
    pub(super) fn submit(&mut self, wait: Option<Duration>) -> Result<(), i32> {
        loop {
            let result = match wait {
                None => self.ring.submitter().submit(),
                Some(time) => {
                    let time = Timespec::from(time);
                    let arguments = SubmitArgs::new().timespec(&time);
                    self.ring.submitter().submit_with_args(1, &arguments)
                }
            };
            // How much it took is told by how much the ring still holds, an error or not: it may have
            // failed to wait after it had taken everything.
            let left = self.ring.submission().len() as u64;
            let took = self.taken != self.pushed - left;
            self.taken = self.pushed - left;
            match result {
                Ok(_) if took && wait.is_none() && self.is_pending() => {}
                Ok(_) => return Ok(()),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) if wait.is_none() => {}
                    // Short of memory, or the time is up.
                    Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM | libc::ETIME | libc::EINTR) => {
                        return Ok(());
                    }
                    errno => return Err(errno.unwrap_or(libc::EIO)),
                },
            }
        }
    }

    /// Whether completions wait for this thread to enter the kernel.
    pub(super) fn wants_entering(&mut self) -> bool {
        let entries = self.ring.submission();
        entries.taskrun() || entries.cq_overflow()
    }

    /// Enters the kernel to run what waits there, without waiting. What it says does not matter: the
    /// next call asks again, and completions show what came of it.
    pub(super) fn run_completions(&self) {
        // SAFETY: submits nothing, waits for nothing, passes no argument.
        let _ =
            unsafe { self.ring.submitter().enter::<libc::sigset_t>(0, 0, ENTER_GETEVENTS, None) };
    }

    /// Takes completions out, as many as fit: word, result and flags of each.
    pub(super) fn reap(&mut self, out: &mut [(u64, i32, u32)]) -> usize {
        let mut count = 0;
        for (to, entry) in out.iter_mut().zip(self.ring.completion()) {
            *to = (entry.user_data(), entry.result(), entry.flags());
            count += 1;
        }
        count
    }

    /// Whether there are completions to reap.
    pub(super) fn has_completions(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    pub(super) fn register_personality(&self) -> io::Result<u16> {
        self.ring.submitter().register_personality()
    }

    pub(super) fn unregister_personality(&self, personality: u16) -> io::Result<()> {
        self.ring.submitter().unregister_personality(personality)
    }

    /// The ring's descriptor: readable while it has completions.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring owns the descriptor and lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}
