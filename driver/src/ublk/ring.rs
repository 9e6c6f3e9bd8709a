//! A queue's ring and character device: the kernel's side of the data path.
//!
//! The ring is the thread's own and the one that libublk keeps for the thread; libublk has put the
//! character device in as fixed file 0 and mapped the descriptors. The I/O commands are built here
//! instead of with libublk's `complete_io_cmd`: that one counts commands up in a `u32` which only
//! libublk's own wait loop counts down, so with a loop of our own it overflows after 2^32 requests;
//! and it drops results silently once libublk has seen the first abort.
//!
//! # Entering the kernel
//!
//! The ring has DEFER_TASKRUN and TASKRUN_FLAG: what the kernel has for us waits, with a flag in
//! shared memory, until we enter. So a turn reads two words of shared memory to know that there is
//! nothing to do, and one `io_uring_enter` submits all results, takes all new requests and, when
//! there is nothing else, sleeps.
//!
//! # Copying
//!
//! Data is copied by `preadv`/`pwritev` on the character device (USER_COPY), straight between the
//! frames and the pages of the block request: one system call a request, all frames at once. The
//! copy is the thread's own work in any case. As SQEs it would be worse: the character device has no
//! FMODE_NOWAIT, so io_uring would hand every copy to a worker thread.
#![expect(unsafe_code, reason = "submission queue entries, and copies to and from frames")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types};
use libublk::io::{UblkIOCtx, UblkQueue};
use libublk::sys;

use crate::dma::FRAME_SIZE;
use crate::request::SgList;

use super::command::{Descriptor, Errno};
use super::tags::Port;
use crate::doorbell::Doorbell;

/// `user_data` of a poll of the doorbell; a tag's command carries the tag, below 2^16.
const DOORBELL: u64 = 1 << 32;
/// `user_data` of a poll of the device's event descriptor.
const DEVICE: u64 = 2 << 32;

/// What the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The tag holds a new request.
    Request(u16),
    /// The tag's command has ended for good: the device is being stopped.
    Aborted(u16),
    /// The kernel did not take the tag's command: its request can never be answered.
    Broken {
        /// The tag.
        tag: u64,
        /// What the kernel said.
        errno: i32,
    },
    /// The doorbell rang.
    Rung,
    /// The device's event descriptor became readable.
    Device,
}

/// Makes a queue's ring: at most one command of each tag and the two polls are ever outstanding.
pub(super) fn build_ring(depth: u16) -> io::Result<IoUring> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build((u32::from(depth) + 2).next_power_of_two())
}

/// The kernel's side of one queue.
pub(super) struct Ring<'a> {
    ring: &'a mut IoUring,
    queue: &'a UblkQueue<'a>,
    cdev: RawFd,
    doorbell: &'a Doorbell,
    doorbell_armed: bool,
    device_armed: bool,
    /// One piece of memory of a request each; room for all of the largest.
    pieces: Vec<libc::iovec>,
    /// The first failure to reach the kernel, to be reported by the turn.
    failure: Option<io::Error>,
}

impl<'a> Ring<'a> {
    /// The ring of `queue`, which libublk has registered the character device in. Reads and writes
    /// carry at most `io_max_bytes`.
    pub(super) fn new(
        ring: &'a mut IoUring,
        queue: &'a UblkQueue<'a>,
        doorbell: &'a Doorbell,
        io_max_bytes: u32,
    ) -> Self {
        Self {
            ring,
            queue,
            cdev: queue.dev.tgt.fds[0],
            doorbell,
            doorbell_armed: false,
            device_armed: false,
            pieces: Vec::with_capacity(SgList::frames_for(0, io_max_bytes as usize)),
            failure: None,
        }
    }

    /// Offers every tag to the kernel.
    pub(super) fn fetch_all(&mut self, depth: u16) -> io::Result<()> {
        (0..depth).for_each(|tag| self.command(sys::UBLK_U_IO_FETCH_REQ, tag, 0));
        self.enter()
    }

    /// The request that the kernel has put on `tag`, below the queue's depth.
    pub(super) fn descriptor(&self, tag: u16) -> Descriptor {
        // The kernel wrote it before it posted the completion that we have read, and writes it again
        // only after we hand the tag back.
        let io = self.queue.get_iod(tag);
        Descriptor { op_flags: io.op_flags, sectors: io.nr_sectors, start_sector: io.start_sector }
    }

    /// Moves what the kernel has posted to the end of `events`.
    pub(super) fn reap(&mut self, depth: u16, events: &mut Vec<Event>) {
        for entry in self.ring.completion() {
            events.push(match (entry.user_data(), entry.result()) {
                (DOORBELL, _) => {
                    self.doorbell_armed = false;
                    self.doorbell.hush();
                    Event::Rung
                }
                (DEVICE, _) => {
                    self.device_armed = false;
                    Event::Device
                }
                (tag, 0) if tag < u64::from(depth) => Event::Request(tag as u16),
                (tag, sys::UBLK_IO_RES_ABORT) if tag < u64::from(depth) => {
                    Event::Aborted(tag as u16)
                }
                (tag, result) => Event::Broken { tag, errno: -result },
            });
        }
    }

    /// Whether a call of [`enter`](Ring::enter) has something to do.
    pub(super) fn wants_enter(&mut self) -> bool {
        let submission = self.ring.submission();
        !submission.is_empty() || submission.taskrun() || submission.cq_overflow()
    }

    /// Submits everything and takes what the kernel has, without waiting.
    pub(super) fn enter(&mut self) -> io::Result<()> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        passed_over(self.ring.submit())
    }

    /// Submits everything and sleeps until something is posted, at most `at_most`.
    ///
    /// With a device's event descriptor, that wakes too, until its next event is taken.
    pub(super) fn sleep(
        &mut self,
        device: Option<BorrowedFd<'_>>,
        at_most: Duration,
    ) -> io::Result<()> {
        if !self.doorbell_armed {
            self.doorbell_armed = true;
            self.poll_add(self.doorbell.as_fd().as_raw_fd(), DOORBELL);
        }
        if let Some(device) = device
            && !self.device_armed
        {
            self.device_armed = true;
            self.poll_add(device.as_raw_fd(), DEVICE);
        }
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let timeout = types::Timespec::from(at_most);
        let arguments = types::SubmitArgs::new().timespec(&timeout);
        passed_over(self.ring.submitter().submit_with_args(1, &arguments))
    }

    fn poll_add(&mut self, fd: RawFd, user_data: u64) {
        let poll = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32);
        self.push(&poll.build().user_data(user_data));
    }

    fn command(&mut self, op: u32, tag: u16, result: i32) {
        // struct ublksrv_io_cmd: q_id, tag, result, addr. With USER_COPY addr is 0.
        let mut payload = [0; 16];
        payload[0..2].copy_from_slice(&self.queue.get_qid().to_ne_bytes());
        payload[2..4].copy_from_slice(&tag.to_ne_bytes());
        payload[4..8].copy_from_slice(&result.to_ne_bytes());
        let command = opcode::UringCmd16::new(types::Fixed(0), op).cmd(payload);
        self.push(&command.build().user_data(u64::from(tag)));
    }

    fn push(&mut self, entry: &Entry) {
        // SAFETY: neither command refers to memory: a ublk I/O command carries its payload inside,
        // a poll names a descriptor. A stale descriptor would be the kernel's EBADF, not memory's.
        if unsafe { self.ring.submission().push(entry) }.is_err() {
            // The ring has room for every tag and both polls, so this cannot be.
            self.failure = Some(io::Error::other("the submission ring is full"));
        }
    }

    /// The frames' first `len_bytes` bytes as pieces of memory, neighbours as one.
    fn fill_pieces(&mut self, data: &SgList, len_bytes: usize) {
        self.pieces.clear();
        let mut left = len_bytes;
        for frame in &data.frames {
            let len = left.min(FRAME_SIZE);
            left -= len;
            let start = frame.as_ptr();
            match self.pieces.last_mut() {
                Some(last) if last.iov_base.addr() + last.iov_len == start.addr() => {
                    last.iov_len += len;
                }
                _ => self.pieces.push(libc::iovec { iov_base: start.cast(), iov_len: len }),
            }
        }
    }

    fn position(&self, tag: u16) -> libc::off_t {
        UblkIOCtx::ublk_user_copy_pos(self.queue.get_qid(), tag, 0) as libc::off_t
    }
}

impl Port for Ring<'_> {
    fn copy_in(&mut self, tag: u16, data: &SgList, len_bytes: usize) -> Result<(), Errno> {
        self.fill_pieces(data, len_bytes);
        let (count, position) = (self.pieces.len() as libc::c_int, self.position(tag));
        // SAFETY: the pieces lie in frames that `data` owns alone, writable and alive for the call;
        // a neighbouring frame's bytes are joined only when both are in `data`.
        let copied = unsafe { libc::preadv(self.cdev, self.pieces.as_ptr(), count, position) };
        whole(copied, len_bytes)
    }

    fn copy_out(&mut self, tag: u16, data: &SgList, len_bytes: usize) -> Result<(), Errno> {
        self.fill_pieces(data, len_bytes);
        let (count, position) = (self.pieces.len() as libc::c_int, self.position(tag));
        // SAFETY: as for `copy_in`; the kernel only reads the frames.
        let copied = unsafe { libc::pwritev(self.cdev, self.pieces.as_ptr(), count, position) };
        whole(copied, len_bytes)
    }

    fn complete(&mut self, tag: u16, result: i32) {
        self.command(sys::UBLK_U_IO_COMMIT_AND_FETCH_REQ, tag, result);
    }
}

/// A copy that is not whole fails its request: the tag's pages do not hold what was asked for.
fn whole(copied: isize, len_bytes: usize) -> Result<(), Errno> {
    if usize::try_from(copied) == Ok(len_bytes) { Ok(()) } else { Err(Errno(libc::EIO)) }
}

/// `io_uring_enter`'s refusals that mean "look at the completions, then again".
fn passed_over(entered: io::Result<usize>) -> io::Result<()> {
    match entered {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            // Time is up; a signal; completions must be taken first; no memory at the moment.
            Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
            _ => Err(error),
        },
    }
}
