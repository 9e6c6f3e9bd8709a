//! One io_uring: set up, registered, filled, entered, reaped. What the kernel is asked is in
//! `queue.rs`; what may go wrong with the ring itself is here.
#![expect(unsafe_code, reason = "entries carry addresses; the kernel reads and writes there")]

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use io_uring::types::{CancelBuilder, Timespec};
use io_uring::{IoUring, Probe, opcode, squeue};

use crate::dma::DmaPool;
use crate::error::DeviceError;
use crate::slots::Token;

/// How much of the pool one registered buffer covers: what the kernel takes at most
/// (`io_buffer_validate` in io_uring/rsrc.c).
pub(super) const REGISTERED_MAX: usize = 1 << 30;

/// `IORING_ENTER_GETEVENTS` (include/uapi/linux/io_uring.h).
const ENTER_GETEVENTS: u32 = 1;

/// Who has the kernel take what is in a ring.
#[derive(Clone, Copy)]
pub(super) enum Submits<'a> {
    /// The caller, by entering it.
    Caller,
    /// The same, in a ring whose completions are polled for.
    Polled,
    /// A thread of the kernel (`IORING_SETUP_SQPOLL`).
    Thread(&'a SubmitThread),
}

/// A thread of the kernel that submits for all rings of a device: that of a ring of its own, which is
/// otherwise not used, so that rings may come and go.
pub(super) struct SubmitThread {
    ring: IoUring,
    idle_ms: u32,
}

impl SubmitThread {
    /// Starts it; it sleeps after `idle` without anything to submit.
    pub(super) fn start(idle: Duration) -> io::Result<Self> {
        let idle_ms = u32::try_from(idle.as_millis()).unwrap_or(u32::MAX).max(1);
        let ring = IoUring::builder().dontfork().setup_sqpoll(idle_ms).build(1)?;
        Ok(Self { ring, idle_ms })
    }
}

/// A ring, and which of its entries the kernel has not taken yet.
///
/// # Invariants
///
/// `pending` names the entries between the submission ring's head and tail, in their order; with a thread
/// that submits, those of them that it has not been told of.
pub(super) struct Ring {
    ring: IoUring,
    pending: VecDeque<Token>,
    /// A thread of the kernel takes the entries.
    has_thread: bool,
}

impl Ring {
    /// A ring for `depth` entries, with `file` as its registered file 0.
    ///
    /// `SINGLE_ISSUER` and `DEFER_TASKRUN` are out of the question: they tie a ring to one thread,
    /// and a queue may move. `COOP_TASKRUN` spares the interruption of a running thread for each
    /// completion, and its flag in the ring says when the kernel wants to be entered; kernels before
    /// 5.19 have neither and interrupt. Where a thread of the kernel submits, completions are its, too.
    pub(super) fn new(depth: u16, file: &File, submits: Submits<'_>) -> Result<Self, DeviceError> {
        let entries = u32::from(depth).next_power_of_two();
        let build = |modern: bool| {
            let mut builder = IoUring::builder();
            builder.dontfork();
            if modern {
                builder.setup_submit_all();
            }
            match submits {
                Submits::Thread(thread) => {
                    let SubmitThread { ring, idle_ms } = thread;
                    builder.setup_sqpoll(*idle_ms).setup_attach_wq(ring.as_raw_fd());
                }
                Submits::Caller | Submits::Polled if modern => {
                    builder.setup_coop_taskrun().setup_taskrun_flag();
                }
                Submits::Caller | Submits::Polled => {}
            }
            if matches!(submits, Submits::Polled) {
                builder.setup_iopoll();
            }
            builder.build(entries)
        };
        let ring = match build(true) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => build(false),
            other => other,
        };
        let ring = ring.map_err(|source| DeviceError::Os {
            what: match source.raw_os_error() {
                Some(libc::EPERM | libc::ENOSYS) => {
                    "io_uring_setup (is io_uring allowed here? see sysctl kernel.io_uring_disabled)"
                }
                _ => "io_uring_setup",
            }
            .to_owned(),
            source,
        })?;
        let registered = ring.submitter().register_files(&[file.as_raw_fd()]);
        registered.map_err(|source| DeviceError::Os {
            what: "registering the file with io_uring".to_owned(),
            source,
        })?;
        let pending = VecDeque::with_capacity(entries as usize);
        Ok(Self { ring, pending, has_thread: matches!(submits, Submits::Thread(_)) })
    }

    /// Registers the whole pool, in buffers of [`REGISTERED_MAX`]: its pages are pinned once instead
    /// of for every request. The ring must be dropped before the pool's memory may go; the kernel
    /// holds the pages, so even the wrong order would not let it write elsewhere.
    pub(super) fn register_pool(&self, pool: &DmaPool) -> io::Result<()> {
        let starts = (0..pool.len_bytes()).step_by(REGISTERED_MAX);
        let buffers: Vec<libc::iovec> = starts
            .map(|start| libc::iovec {
                iov_base: pool.as_ptr().wrapping_add(start).cast(),
                iov_len: REGISTERED_MAX.min(pool.len_bytes() - start),
            })
            .collect();
        // SAFETY: the buffers are exactly the pool's mapping, which is readable, writable and mapped
        // while a handle to it lives; the queue that owns this ring keeps one.
        unsafe { self.ring.submitter().register_buffers(&buffers) }
    }

    /// Whether the kernel takes lists of pieces of registered memory (Linux 6.15).
    pub(super) fn takes_registered_lists(&self) -> bool {
        let mut probe = Probe::new();
        let probed = self.ring.submitter().register_probe(&mut probe).is_ok();
        probed
            && probe.is_supported(opcode::ReadvFixed::CODE)
            && probe.is_supported(opcode::WritevFixed::CODE)
    }

    /// Puts an entry into the submission ring. Does not enter the kernel.
    ///
    /// # Safety
    ///
    /// Whatever memory the entry names stays valid, and unmoved, until the completion that carries
    /// `token` has been reaped or the entry is handed back by [`submit`](Ring::submit).
    ///
    /// # Panics
    ///
    /// When the ring is full: the queue never has more requests than entries.
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry, token: Token) {
        let entry = entry.user_data(token.to_u64());
        let mut entries = self.ring.submission();
        // SAFETY: the caller vouches for the memory.
        let pushed = unsafe { entries.push(&entry) };
        assert!(pushed.is_ok(), "the ring has fewer entries than the queue has slots");
        drop(entries);
        self.pending.push_back(token);
    }

    /// Whether there are entries that the kernel has not taken.
    pub(super) fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Has the kernel take the entries. It may leave some when it is short of memory: they stay
    /// pending, for the next call. Where a thread submits, it is woken if it sleeps, and takes them all.
    ///
    /// # Errors
    ///
    /// The errno of an `io_uring_enter` that will never succeed.
    pub(super) fn submit(&mut self) -> Result<(), i32> {
        while !self.pending.is_empty() {
            match self.ring.submitter().submit() {
                // Awake, or woken: it has some already and will have the others.
                Ok(_) if self.has_thread => self.pending.clear(),
                Ok(0) => break,
                Ok(taken) => drop(self.pending.drain(..taken.min(self.pending.len()))),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => break,
                    errno => {
                        let errno = errno.unwrap_or(libc::EIO);
                        self.keep_taken(errno);
                        return Err(errno);
                    }
                },
            }
        }
        Ok(())
    }

    /// Where a thread submits it may have taken entries, or take them yet, whatever entering the kernel says: they
    /// are in flight, and their memory is the device's. Only what a thread that has died left in the ring was
    /// never taken.
    fn keep_taken(&mut self, errno: i32) {
        if !self.has_thread {
            return;
        }
        let left = if errno == libc::EOWNERDEAD { self.ring.submission().len() } else { 0 };
        let taken = self.pending.len().saturating_sub(left);
        drop(self.pending.drain(..taken));
    }

    /// The next entry that the kernel never took, when it will take no more.
    pub(super) fn take_pending(&mut self) -> Option<Token> {
        self.pending.pop_front()
    }

    /// Whether completions wait for this thread to enter the kernel.
    pub(super) fn wants_entering(&mut self) -> bool {
        let entries = self.ring.submission();
        entries.taskrun() || entries.cq_overflow()
    }

    /// Enters the kernel to run what waits there, or to poll the device, without waiting. What it
    /// says does not matter: the next call asks again, and completions show what came of it.
    pub(super) fn run_completions(&self) {
        // SAFETY: submits nothing, waits for nothing, passes no argument.
        let _ =
            unsafe { self.ring.submitter().enter::<libc::sigset_t>(0, 0, ENTER_GETEVENTS, None) };
    }

    /// Takes one completion out: whose it is, and its result or negative errno.
    pub(super) fn reap(&mut self) -> Option<(Token, i32)> {
        let entry = self.ring.completion().next()?;
        Some((Token::from_u64(entry.user_data()), entry.result()))
    }

    /// Whether there are completions to reap.
    pub(super) fn has_completions(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Asks the kernel to end what `token` names, without waiting for it. Whether it does shows in the
    /// completion, which comes either way; kernels before 6.0 cannot be asked.
    pub(super) fn cancel(&self, token: Token) {
        let timeout = Timespec::new();
        let which = CancelBuilder::user_data(token.to_u64());
        let _ = self.ring.submitter().register_sync_cancel(Some(timeout), which);
    }

    /// Cancels what has not started. Bounded to one second; what runs on is not known here.
    pub(super) fn cancel_all(&self) {
        let timeout = Timespec::new().sec(1);
        let _ = self.ring.submitter().register_sync_cancel(Some(timeout), CancelBuilder::any());
    }

    /// Lets go of file and pool now. A ring that is closed does so too, but later, in a worker of the
    /// kernel: until then the file stays locked, its file system busy and the memory pinned. Only for
    /// a ring with nothing in flight: with, older kernels wait for it here.
    pub(super) fn release(&self) {
        // What was never registered cannot be let go of; nothing else can go wrong.
        let _ = self.ring.submitter().unregister_files();
        let _ = self.ring.submitter().unregister_buffers();
    }

    /// The ring's descriptor: readable while it has completions.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring owns the descriptor and lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}
