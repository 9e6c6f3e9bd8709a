//! A queue of a file or kernel block device: requests become entries of one ring, or two.
//!
//! A ring set up with `IOPOLL` takes nothing but reads and writes without sync, so on a device whose
//! completions can be polled a second ring takes the rest.
#![expect(unsafe_code, reason = "entries carry the addresses of frames and of their iovecs")]

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Shared;
use super::progress::{Progress, Step};
use super::ring::{REGISTERED_MAX, Ring, Submits};
use crate::block::{Armed, Cancel, IoQueue};
use crate::dma::FRAME_SIZE;
use crate::error::{DeviceError, IoError, IoErrorKind, IoResult};
use crate::request::{Completion, Op, Refusal, Refused, Request, SgList};
use crate::slots::{Slots, Token};

/// How long a dropped queue waits for the kernel.
const DRAIN_MS: u32 = 30_000;

/// What is written where a file system cannot zero a range.
#[repr(align(4096))]
struct ZeroPage([u8; FRAME_SIZE]);
static ZERO_PAGE: ZeroPage = ZeroPage([0; FRAME_SIZE]);

/// A request that the kernel has, or is about to get.
///
/// # Invariants
///
/// While an entry with its token is in a ring, the request stays in its slot: the frames that the
/// entry names are held until the completion came.
struct InFlight {
    request: Request,
    progress: Progress,
    /// In the ring whose completions are polled.
    polled: bool,
    /// Somebody asked for its end: what may be tried again is not.
    cancelled: bool,
}

/// For each slot as many iovecs as its request can need, made once.
struct Iovecs {
    vecs: Box<[libc::iovec]>,
    per_slot: usize,
}

// SAFETY: the addresses are of frames and of a static page, neither tied to a thread.
unsafe impl Send for Iovecs {}

impl Iovecs {
    fn new(depth: usize, per_slot: usize) -> Self {
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self { vecs: vec![empty; depth * per_slot].into_boxed_slice(), per_slot }
    }

    fn of_slot(&mut self, token: Token) -> &mut [libc::iovec] {
        let start = token.slot as usize * self.per_slot;
        &mut self.vecs[start..start + self.per_slot]
    }
}

/// Lists the `len_bytes` from `position` in the run on, with frames that follow each other in memory
/// joined. Says how many pieces there are.
fn list(data: &SgList, position: usize, len_bytes: usize, vecs: &mut [libc::iovec]) -> usize {
    let mut count = 0usize;
    data.each_piece(position, len_bytes, |frame, offset, range| {
        let start = frame.as_ptr().wrapping_add(offset);
        if let Some(last) = count.checked_sub(1).map(|last| &mut vecs[last])
            && last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == start
        {
            last.iov_len += range.len();
            return;
        }
        vecs[count] = libc::iovec { iov_base: start.cast(), iov_len: range.len() };
        count += 1;
    });
    count
}

/// What the kernel knows of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Registered {
    /// Nothing: every request pins its own pages.
    No,
    /// Where it lies: runs that are contiguous need no pinning.
    Runs,
    /// The same, and lists of pieces neither.
    Lists,
}

pub(super) struct UringQueue {
    shared: Arc<Shared>,
    plain: Ring,
    polled: Option<Ring>,
    /// How many requests are in the polled ring.
    polled_in_flight: usize,
    slots: Slots<InFlight>,
    iovecs: Iovecs,
    /// The pool is registered: what lies in it needs no page table walk.
    registered: Registered,
    /// Entries were pushed, or left behind, that no commit will come for.
    unfinished: bool,
    /// The kernel takes no more entries; what it never took is answered with this.
    failed: Option<IoError>,
}

impl UringQueue {
    pub(super) fn open(shared: Arc<Shared>, depth: u16) -> Result<Self, DeviceError> {
        let submits = shared.submit_thread.as_ref().map_or(Submits::Caller, Submits::Thread);
        let plain = Ring::new(depth, &shared.file, submits)?;
        let polled = match shared.polled {
            true => Some(Ring::new(depth, &shared.file, Submits::Polled)?),
            false => None,
        };
        let rings = [Some(&plain), polled.as_ref()];
        let registered =
            rings.into_iter().flatten().try_for_each(|ring| ring.register_pool(&shared.pool));
        let registered = match registered {
            Err(error) => {
                shared.warn_unregistered(&error);
                Registered::No
            }
            Ok(()) if plain.takes_registered_lists() => Registered::Lists,
            Ok(()) => Registered::Runs,
        };
        let per_slot = shared.geometry.transfer_max_bytes as usize / FRAME_SIZE + 1;
        Ok(Self {
            plain,
            polled,
            polled_in_flight: 0,
            slots: Slots::new(usize::from(depth)),
            iovecs: Iovecs::new(usize::from(depth), per_slot),
            registered,
            unfinished: false,
            failed: None,
            shared,
        })
    }

    /// Puts the entry for the next step of the slot's request into its ring.
    fn send(&mut self, token: Token) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        let vecs = self.iovecs.of_slot(token);
        let base = self.shared.pool.as_ptr() as usize;
        let entry = slot.entry(self.shared.geometry.block_size, (self.registered, base), vecs);
        let ring = match &mut self.polled {
            Some(polled) if slot.polled => {
                self.polled_in_flight += 1;
                polled
            }
            _ => &mut self.plain,
        };
        // SAFETY: the entry names frames of the request, the static zero page, or the slot's iovecs.
        // The request stays in its slot until `answer` takes it out, which happens when its
        // completion was reaped or the ring handed the entry back; the iovecs never move, and are
        // leaked together with the slots when the kernel does not let go of them.
        unsafe { ring.push(entry, token) };
    }

    fn enter(&mut self) {
        let rings = [Some(&mut self.plain), self.polled.as_mut()];
        for ring in rings.into_iter().flatten() {
            if !ring.is_pending() || self.failed.is_some() {
                continue;
            }
            match ring.submit() {
                Ok(()) => self.unfinished |= ring.is_pending(),
                Err(errno) => {
                    let error = IoError::from_errno(errno);
                    self.shared.fail(error);
                    self.failed = Some(error);
                }
            }
        }
    }

    /// Moves out what is in the completion rings, and what failed before it got into one.
    fn reap(&mut self, budget: usize, out: &mut Vec<Completion>) -> usize {
        let mut moved = 0;
        while moved < budget {
            let Some((token, result)) = self.next_result() else { break };
            if let Some(result) = self.take_result(token, result) {
                moved += usize::from(self.answer(token, result, out));
            }
        }
        if let Some(error) = self.failed {
            while moved < budget {
                let polled = self.polled.as_mut().and_then(Ring::take_pending);
                self.polled_in_flight -= usize::from(polled.is_some());
                let Some(token) = polled.or_else(|| self.plain.take_pending()) else { break };
                moved += usize::from(self.answer(token, Err(error), out));
            }
        }
        moved
    }

    fn next_result(&mut self) -> Option<(Token, i32)> {
        if self.polled_in_flight > 0
            && let Some(result) = self.polled.as_mut().and_then(Ring::reap)
        {
            self.polled_in_flight -= 1;
            return Some(result);
        }
        self.plain.reap()
    }

    /// Takes the kernel's result for a request: the request's own when it is done.
    fn take_result(&mut self, token: Token, result: i32) -> Option<IoResult> {
        // A completion for nothing in flight would be the kernel's mistake; it finds no slot.
        let slot = self.slots.get_mut(token)?;
        let op = slot.request.op;
        let before = slot.progress.step;
        let done = match result.checked_neg() {
            Some(libc::EOPNOTSUPP) if slot.polled => {
                // Polling was switched off under us: the ring that waits for interrupts takes it.
                slot.polled = false;
                None
            }
            _ => slot.progress.advance(op, self.shared.geometry.block_size, result),
        };
        if before == Step::ZeroRange && slot.progress.step == Step::WriteZeroes {
            self.shared.zero_range.store(false, Ordering::Relaxed);
        }
        let cancelled = slot.cancelled.then_some(IoError::new(IoErrorKind::Cancelled));
        match (done, cancelled.or(self.failed)) {
            (None, None) => {
                self.send(token);
                self.unfinished = true;
                None
            }
            (None, Some(error)) => Some(Err(error)),
            (Some(result), _) => Some(result),
        }
    }

    fn answer(&mut self, token: Token, result: IoResult, out: &mut Vec<Completion>) -> bool {
        let Some(InFlight { request, .. }) = self.slots.remove(token) else { return false };
        if let Err(error) = result
            && error.kind == IoErrorKind::Gone
        {
            self.shared.fail(error);
        }
        out.push(Completion { token: request.token, result, data: request.data });
        true
    }

    fn wants_entering(&mut self) -> bool {
        self.unfinished || self.polled_in_flight > 0 || self.plain.wants_entering()
    }

    fn enter_for_completions(&mut self) {
        if std::mem::take(&mut self.unfinished) {
            self.enter();
        }
        if self.polled_in_flight > 0
            && let Some(polled) = &self.polled
        {
            polled.run_completions();
        }
        if self.plain.wants_entering() {
            self.plain.run_completions();
        }
    }
}

impl InFlight {
    /// The entry for the next step; `registered` is where the registered pool begins.
    fn entry(
        &mut self,
        block_size: u32,
        (registered, base): (Registered, usize),
        vecs: &mut [libc::iovec],
    ) -> Entry {
        let file = types::Fixed(0);
        let Self { request, progress, .. } = self;
        let start = request.lba.0 * u64::from(block_size);
        let at = start + progress.done_bytes;
        let left_bytes = progress.len_bytes - progress.done_bytes;
        let fallocate =
            |mode| opcode::Fallocate::new(file, left_bytes).offset(at).mode(mode).build();
        match progress.step {
            Step::Sync => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
            Step::Punch => fallocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE),
            Step::ZeroRange => fallocate(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE),
            Step::WriteZeroes => {
                // Every iovec is the same page. Not registered, hence never a fixed write.
                let page = libc::iovec {
                    iov_base: std::ptr::from_ref(&ZERO_PAGE.0).cast_mut().cast(),
                    iov_len: FRAME_SIZE,
                };
                let most_bytes = (vecs.len() * FRAME_SIZE) as u64;
                progress.asked_bytes = left_bytes.min(most_bytes) as u32;
                let count = (progress.asked_bytes as usize).div_ceil(FRAME_SIZE);
                vecs[..count].fill(page);
                let over = count * FRAME_SIZE - progress.asked_bytes as usize;
                vecs[count - 1].iov_len -= over;
                opcode::Writev::new(file, vecs.as_ptr(), count as u32).offset(at).build()
            }
            Step::Transfer => {
                progress.asked_bytes = left_bytes as u32;
                let position = progress.done_bytes as usize;
                let count = list(&request.data, position, left_bytes as usize, vecs);
                let known = match registered {
                    Registered::No => false,
                    Registered::Runs => count == 1,
                    Registered::Lists => true,
                };
                let fixed = known.then(|| fixed_buffer(&vecs[..count], base)).flatten();
                let (buffer, len) = (vecs[0].iov_base.cast::<u8>(), vecs[0].iov_len as u32);
                let flags = match request.op {
                    Op::Write { fua: true } => libc::RWF_DSYNC,
                    _ => 0,
                };
                let (list, list_len) = (vecs.as_ptr(), count as u32);
                match (request.op == Op::Read, fixed, count) {
                    (true, Some(index), 1) => {
                        opcode::ReadFixed::new(file, buffer, len, index).offset(at).build()
                    }
                    (true, Some(index), _) => {
                        opcode::ReadvFixed::new(file, list, list_len, index).offset(at).build()
                    }
                    (true, None, _) => opcode::Readv::new(file, list, list_len).offset(at).build(),
                    (false, Some(index), 1) => opcode::WriteFixed::new(file, buffer, len, index)
                        .offset(at)
                        .rw_flags(flags)
                        .build(),
                    (false, Some(index), _) => {
                        opcode::WritevFixed::new(file, list, list_len, index)
                            .offset(at)
                            .rw_flags(flags)
                            .build()
                    }
                    (false, None, _) => {
                        opcode::Writev::new(file, list, list_len).offset(at).rw_flags(flags).build()
                    }
                }
            }
        }
    }
}

/// Which registered buffer holds all of the pieces, if one does. The pool begins at `base`.
fn fixed_buffer(pieces: &[libc::iovec], base: usize) -> Option<u16> {
    let mut buffers = pieces.iter().flat_map(|piece| {
        let first = piece.iov_base as usize - base;
        [first / REGISTERED_MAX, (first + piece.iov_len - 1) / REGISTERED_MAX]
    });
    let index = buffers.next()?;
    buffers.all(|other| other == index).then(|| u16::try_from(index).ok()).flatten()
}

impl IoQueue for UringQueue {
    fn submit(&mut self, request: Request) -> Result<(), Refused> {
        let Shared { geometry, capabilities, pool, .. } = &*self.shared;
        let reason = match geometry.check(capabilities, &request) {
            Err(reason) => reason,
            Ok(()) if !request.data.frames.iter().all(|frame| pool.owns(frame)) => {
                Refusal::BadFrames
            }
            Ok(()) if self.failed.is_some() => Refusal::Failed,
            Ok(()) => {
                let zero_range = self.shared.zero_range.load(Ordering::Relaxed);
                let step = Step::first(request.op, zero_range);
                let len_bytes = u64::from(request.blocks) * u64::from(geometry.block_size);
                let polled = self.polled.is_some()
                    && matches!(request.op, Op::Read | Op::Write { fua: false });
                let progress = Progress::new(step, len_bytes);
                match self.slots.insert(InFlight { request, progress, polled, cancelled: false }) {
                    Ok(token) => {
                        self.send(token);
                        return Ok(());
                    }
                    Err(InFlight { request, .. }) => {
                        return Err(Refused { request, reason: Refusal::Full });
                    }
                }
            }
        };
        Err(Refused { request, reason })
    }

    fn commit(&mut self) {
        self.enter();
    }

    fn poll(&mut self, budget: usize, out: &mut Vec<Completion>) -> usize {
        let moved = self.reap(budget, out);
        if moved == budget || !self.wants_entering() {
            return moved;
        }
        self.enter_for_completions();
        moved + self.reap(budget - moved, out)
    }

    /// What the kernel has not started (it waits for a worker, or for the file) ends; what the device
    /// has already goes on.
    fn cancel(&mut self, token: Token) -> Cancel {
        self.commit();
        let Some(slot) = self.slots.find(|slot| slot.request.token == token) else {
            return Cancel::NotFound;
        };
        match self.slots.get_mut(slot) {
            // The kernel does not cancel what it polls for.
            Some(in_flight) if !in_flight.polled => in_flight.cancelled = true,
            _ => return Cancel::Cannot,
        }
        self.plain.cancel(slot);
        Cancel::Asked
    }

    fn in_flight(&self) -> usize {
        self.slots.len()
    }

    fn depth(&self) -> usize {
        self.slots.capacity()
    }

    fn arm(&mut self) -> Armed {
        if self.slots.is_empty() {
            Armed::Yes
        } else if self.polled_in_flight > 0 {
            Armed::MustPoll
        } else if self.failed.is_some()
            || self.plain.is_pending()
            || self.plain.has_completions()
            || self.plain.wants_entering()
        {
            Armed::Ready
        } else {
            Armed::Yes
        }
    }

    /// The ring's own descriptor: readable while there are completions, so there is nothing to read
    /// empty; a `read` of it fails and does no harm.
    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.plain.fd())
    }
}

impl Drop for UringQueue {
    fn drop(&mut self) {
        // What was submitted and never committed goes too: the kernel is the shortest way to know
        // that nothing of it is left in a ring.
        self.enter();
        let mut out = Vec::with_capacity(self.slots.capacity());
        let (mut waited_ms, mut cancelled) = (0, false);
        while waited_ms < DRAIN_MS {
            self.poll(usize::MAX, &mut out);
            out.clear();
            if self.slots.is_empty() {
                break;
            }
            if waited_ms > DRAIN_MS / 2 && !cancelled {
                cancelled = true;
                self.plain.cancel_all();
            }
            // A polled completion makes nothing readable.
            let slice_ms = if self.polled_in_flight > 0 { 1 } else { 50 };
            waited_ms += slice_ms;
            let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(slice_ms) * 1_000_000 };
            let fd = self.plain.fd();
            // Interrupted or not, the next turn looks.
            let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout));
        }
        if self.slots.is_empty() {
            let rings = [Some(&self.plain), self.polled.as_ref()];
            rings.into_iter().flatten().for_each(Ring::release);
        } else {
            self.shared.fail(IoError::new(IoErrorKind::TimedOut));
            // The kernel may still write these frames and read these iovecs: they are leaked.
            std::mem::forget(std::mem::replace(&mut self.slots, Slots::new(0)));
            std::mem::forget(std::mem::replace(&mut self.iovecs, Iovecs::new(0, 0)));
        }
        self.shared.queues.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::{DmaPool, PoolOptions};
    use crate::request::Lba;

    /// Opcode, flags of the operation and length, where the kernel finds them in an entry (struct
    /// io_uring_sqe in include/uapi/linux/io_uring.h).
    fn fields(entry: &Entry) -> (u8, u32, u32) {
        // SAFETY: an entry is the kernel's structure of 64 bytes, without padding.
        let bytes: [u8; 64] = unsafe { std::mem::transmute_copy(entry) };
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        (bytes[0], word(28), word(24))
    }

    #[test]
    fn every_request_becomes_the_entry_that_keeps_its_promise() {
        let pool = DmaPool::new(PoolOptions::frames(8)).unwrap();
        let base = pool.as_ptr() as usize;
        let mut iovecs = Iovecs::new(1, 9);
        let token = Token { slot: 0, generation: 0 };
        let mut entry = |op: Op, step, indices: &[u32], registered| {
            let mut frames: Vec<_> = (0..8).map(|_| pool.take().unwrap()).collect();
            frames.sort_by_key(|frame| indices.iter().position(|index| *index == frame.index()));
            frames.retain(|frame| indices.contains(&frame.index()));
            let blocks = if op == Op::Flush { 0 } else { frames.len().max(1) as u32 };
            let request = Request { token, op, lba: Lba(2), blocks, data: SgList::new(frames) };
            let progress = Progress::new(step, u64::from(blocks) * 4096);
            let mut slot = InFlight { request, progress, polled: false, cancelled: false };
            fields(&slot.entry(4096, (registered, base), iovecs.of_slot(token)))
        };
        let write = |fua| Op::Write { fua };
        let dsync = libc::RWF_DSYNC as u32;
        let code = |code: u8, flags: u32, len: u32| (code, flags, len);
        let (readv, writev) = (opcode::Readv::CODE, opcode::Writev::CODE);
        let (read_fixed, write_fixed) = (opcode::ReadFixed::CODE, opcode::WriteFixed::CODE);
        let transfer = Step::Transfer;
        assert_eq!(
            entry(Op::Read, transfer, &[1, 2, 3], Registered::Runs),
            code(read_fixed, 0, 3 * 4096)
        );
        assert_eq!(entry(Op::Read, transfer, &[1, 2, 3], Registered::No), code(readv, 0, 1));
        assert_eq!(entry(Op::Read, transfer, &[3, 1, 2, 5], Registered::Runs), code(readv, 0, 3));
        assert_eq!(
            entry(write(false), transfer, &[4], Registered::Runs),
            code(write_fixed, 0, 4096)
        );
        assert_eq!(
            entry(write(true), transfer, &[4], Registered::Runs),
            code(write_fixed, dsync, 4096)
        );
        assert_eq!(entry(write(true), transfer, &[4, 2], Registered::Runs), code(writev, dsync, 2));
        assert_eq!(entry(write(false), transfer, &[4, 2], Registered::Runs), code(writev, 0, 2));
        let lists = Registered::Lists;
        let readv_fixed = opcode::ReadvFixed::CODE;
        let writev_fixed = opcode::WritevFixed::CODE;
        assert_eq!(entry(Op::Read, transfer, &[3, 1, 2, 5], lists), code(readv_fixed, 0, 3));
        assert_eq!(entry(Op::Read, transfer, &[1, 2, 3], lists), code(read_fixed, 0, 3 * 4096));
        assert_eq!(entry(write(true), transfer, &[4, 2], lists), code(writev_fixed, dsync, 2));
        let datasync = 1; // IORING_FSYNC_DATASYNC
        assert_eq!(
            entry(Op::Flush, Step::Sync, &[], Registered::Runs),
            code(opcode::Fsync::CODE, datasync, 0)
        );
        let fallocate = opcode::Fallocate::CODE;
        assert_eq!(entry(Op::Discard, Step::Punch, &[], Registered::Runs), code(fallocate, 0, 3));
        let zeroes = Op::WriteZeroes { may_unmap: false };
        assert_eq!(entry(zeroes, Step::ZeroRange, &[], Registered::Runs), code(fallocate, 0, 0x11));
        assert_eq!(entry(zeroes, Step::WriteZeroes, &[], Registered::Runs), code(writev, 0, 1));
    }

    #[test]
    fn a_run_across_two_registered_buffers_is_in_neither() {
        let piece = |start: usize, len: usize| libc::iovec {
            iov_base: std::ptr::without_provenance_mut(start),
            iov_len: len,
        };
        let of = |pieces: &[(usize, usize)]| {
            let pieces: Vec<_> = pieces.iter().map(|(start, len)| piece(*start, *len)).collect();
            fixed_buffer(&pieces, 0)
        };
        assert_eq!(of(&[(0, 4096)]), Some(0));
        assert_eq!(of(&[(REGISTERED_MAX - 4096, 4096)]), Some(0));
        assert_eq!(of(&[(REGISTERED_MAX, 4096)]), Some(1));
        assert_eq!(of(&[(REGISTERED_MAX - 4096, 8192)]), None);
        assert_eq!(of(&[(0, 4096), (REGISTERED_MAX - 4096, 4096)]), Some(0));
        assert_eq!(of(&[(0, 4096), (REGISTERED_MAX, 4096)]), None, "pieces of two buffers");
        assert_eq!(of(&[(usize::MAX / 2, 4096)]), None);
    }
}
