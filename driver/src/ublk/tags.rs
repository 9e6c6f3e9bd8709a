//! The tags of one queue: from a descriptor to requests, from completions to a result.
//!
//! A ublk queue has `depth` tags. Each is with the kernel, or holds one request of the block layer
//! for us; [`Tags`] is the table of them and makes every transition. It knows neither io_uring nor
//! libublk: the kernel is a [`Port`], so all of this runs in a test against a device in memory.
//!
//! ```text
//!              start                    room
//!     Idle ───────────► Waiting ───────────────────► InFlight ──┐ next piece of a discard
//!      ▲                   ▲                            │   ▲   │ or a write-zeroes
//!      │                   └─────── no room ────────────┤   └───┘
//!      └────────────── Port::complete ◄─────────────────┘ last piece, or an error
//! ```
//!
//! # No hold and wait
//!
//! A request waits in one line, first come first served, until the queue has both the frames for it
//! and a slot in the device's queue; then it takes both at once. What waits holds neither. The
//! reserve of frames covers the largest request, so the first in line always gets its turn.

use std::collections::VecDeque;
use std::time::Duration;

use crate::block::{Geometry, IoQueue};
use crate::dma::DmaBuf;
use crate::request::{Completion, Lba, Op, Refusal, Refused, Request, SgList};
use crate::slots::Token;

use super::command::{Command, Descriptor, Errno};
use super::stats::QueueStats;

/// The kernel's side of a queue.
pub(super) trait Port {
    /// Copies the `len_bytes` bytes that the tag's write request carries into `data`.
    fn copy_in(&mut self, tag: u16, data: &SgList, len_bytes: usize) -> Result<(), Errno>;

    /// Copies `len_bytes` bytes of `data` into the pages of the tag's read request.
    fn copy_out(&mut self, tag: u16, data: &SgList, len_bytes: usize) -> Result<(), Errno>;

    /// Hands the tag back with its result: bytes, 0, or a negative errno. Once for each `start`.
    fn complete(&mut self, tag: u16, result: i32);
}

/// Everything around the tags that one turn of the queue's thread works with.
pub(super) struct Turn<'a, P> {
    pub(super) device: &'a mut dyn IoQueue,
    pub(super) port: &'a mut P,
    pub(super) stats: &'a QueueStats,
    /// When the turn's batch of events was taken.
    pub(super) now: Duration,
    /// New requests fail with `EIO`; those begun go on.
    pub(super) fail_new_io: bool,
}

/// A request of the block layer that is ours.
#[derive(Clone, Copy, Debug)]
struct Work {
    command: Command,
    /// How many of the command's blocks are done.
    done_blocks: u32,
    since: Duration,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// The kernel has the tag.
    Idle,
    /// In line for frames or for a slot of the device's queue.
    Waiting(Work),
    /// `piece_blocks` blocks of it are with the device.
    InFlight { work: Work, piece_blocks: u32 },
}

struct Tag {
    state: State,
    /// Counts the requests sent to the device, so that an answer that comes twice finds nothing.
    generation: u32,
    /// The vector of the tag's frames: empty, with room for the largest request, while nothing of
    /// the tag is in flight.
    frames: Vec<DmaBuf>,
}

/// What became of an attempt to send the next piece.
enum Sent {
    /// It is with the device, or the request has been answered.
    Gone,
    /// There is no room: it waits.
    NoRoom,
}

/// The table of tags of one queue.
pub(super) struct Tags {
    geometry: Geometry,
    io_max_bytes: u32,
    tags: Box<[Tag]>,
    /// The line, first come first. Bounded by the depth: a tag stands in it once.
    line: VecDeque<u16>,
    /// Free frames. Sorted so that a request's frames mostly follow each other in memory, which
    /// makes one piece of them for the copy.
    reserve: Vec<DmaBuf>,
    held: u32,
}

impl Tags {
    /// A table of `depth` tags whose reads and writes carry at most `io_max_bytes`, which `frames`
    /// can hold at least once.
    pub(super) fn new(
        depth: u16,
        geometry: Geometry,
        io_max_bytes: u32,
        mut frames: Vec<DmaBuf>,
    ) -> Self {
        let frames_max = SgList::frames_for(0, io_max_bytes as usize);
        assert!(frames.len() >= frames_max, "{} frames, {frames_max} needed", frames.len());
        frames.sort_unstable_by_key(|frame| std::cmp::Reverse(frame.index()));
        let tag =
            || Tag { state: State::Idle, generation: 0, frames: Vec::with_capacity(frames_max) };
        Self {
            geometry,
            io_max_bytes,
            tags: (0..depth).map(|_| tag()).collect(),
            line: VecDeque::with_capacity(usize::from(depth)),
            reserve: frames,
            held: 0,
        }
    }

    /// How many tags hold a request.
    pub(super) fn held(&self) -> u32 {
        self.held
    }

    /// Whether requests stand in line.
    pub(super) fn anyone_waits(&self) -> bool {
        !self.line.is_empty()
    }

    /// Takes the request that the kernel has put on `tag`.
    ///
    /// A request on a tag out of range, or on one that holds a request already, cannot be answered
    /// without breaking another: it is left to the caller.
    pub(super) fn start<P: Port>(
        &mut self,
        tag: u16,
        descriptor: Descriptor,
        turn: &mut Turn<'_, P>,
    ) -> Result<(), BadTag> {
        match self.tags.get(usize::from(tag)) {
            Some(Tag { state: State::Idle, .. }) => {}
            _ => return Err(BadTag(tag)),
        }
        let command = match Command::check(descriptor, &self.geometry, self.io_max_bytes) {
            Ok(command) => command,
            Err(errno) => {
                turn.stats.refused();
                turn.port.complete(tag, -errno.0);
                return Ok(());
            }
        };
        let work = Work { command, done_blocks: 0, since: turn.now };
        self.held += 1;
        if turn.fail_new_io {
            self.answer(tag, work, Err(Errno(libc::EIO)), turn);
            return Ok(());
        }
        // While anyone waits, newcomers queue behind.
        if self.anyone_waits() {
            self.wait(tag, work);
        } else if let Sent::NoRoom = self.send(tag, work, turn) {
            self.wait(tag, work);
        }
        Ok(())
    }

    /// Takes a completion of the device. One that no request of ours waits for is dropped, and its
    /// frames go back to their pool.
    pub(super) fn finish<P: Port>(&mut self, completion: Completion, turn: &mut Turn<'_, P>) {
        let Completion { token, result, mut data } = completion;
        let index = token.slot as usize;
        let (tag, work, piece_blocks) = match self.tags.get(index) {
            Some(Tag { state: State::InFlight { work, piece_blocks }, generation, .. })
                if *generation == token.generation =>
            {
                (token.slot as u16, *work, *piece_blocks)
            }
            _ => return turn.stats.unexpected(),
        };
        let len_bytes = piece_blocks as usize * self.geometry.block_size as usize;
        let result = match result {
            Err(error) => Err(Errno(error.errno())),
            Ok(()) if work.command.op == Op::Read => turn.port.copy_out(tag, &data, len_bytes),
            Ok(()) => Ok(()),
        };
        // The frames are free again, and the vector goes back to its tag.
        self.reserve.extend(data.frames.drain(..).rev());
        self.tags[index].frames = data.frames;
        self.tags[index].generation = token.generation.wrapping_add(1);

        let work = Work { done_blocks: work.done_blocks + piece_blocks, ..work };
        if result.is_err() || work.done_blocks >= work.command.blocks {
            self.answer(tag, work, result, turn);
        } else if let Sent::NoRoom = self.send(tag, work, turn) {
            self.wait(tag, work);
        }
    }

    /// Sends what stands in line, as far as there is room.
    pub(super) fn go_on<P: Port>(&mut self, turn: &mut Turn<'_, P>) {
        while let Some(&tag) = self.line.front() {
            let State::Waiting(work) = self.tags[usize::from(tag)].state else {
                unreachable!("a tag in line is waiting: `wait` and this function say so");
            };
            match self.send(tag, work, turn) {
                Sent::NoRoom => return,
                Sent::Gone => self.line.pop_front(),
            };
        }
    }

    fn wait(&mut self, tag: u16, work: Work) {
        self.tags[usize::from(tag)].state = State::Waiting(work);
        self.line.push_back(tag);
    }

    /// Sends the next piece of a request, with all that it needs or not at all.
    fn send<P: Port>(&mut self, tag: u16, work: Work, turn: &mut Turn<'_, P>) -> Sent {
        let Command { op, lba, blocks } = work.command;
        let piece_blocks = (blocks - work.done_blocks).min(self.piece_max_blocks(op));
        if piece_blocks == 0 && op != Op::Flush {
            // The device does not do this at all.
            self.answer(tag, work, Err(Errno(libc::EOPNOTSUPP)), turn);
            return Sent::Gone;
        }
        let len_bytes = piece_blocks as usize * self.geometry.block_size as usize;
        let wanted = if op.has_data() { SgList::frames_for(0, len_bytes) } else { 0 };
        if self.reserve.len() < wanted && turn.device.in_flight() == 0 {
            // Nothing will come back: a device that could not be stopped has kept the frames.
            self.answer(tag, work, Err(Errno(libc::EIO)), turn);
            return Sent::Gone;
        }
        if self.reserve.len() < wanted || turn.device.in_flight() >= turn.device.depth() {
            return Sent::NoRoom;
        }
        let entry = &mut self.tags[usize::from(tag)];
        let mut data = SgList::new(std::mem::take(&mut entry.frames));
        data.frames.extend(self.reserve.drain(self.reserve.len() - wanted..).rev());
        if let Op::Write { .. } = op
            && let Err(errno) = turn.port.copy_in(tag, &data, len_bytes)
        {
            self.take_back(tag, data);
            self.answer(tag, work, Err(errno), turn);
            return Sent::Gone;
        }
        let token = Token { slot: u32::from(tag), generation: entry.generation };
        let lba = Lba(lba.0 + u64::from(work.done_blocks));
        let request = Request { token, op, lba, blocks: piece_blocks, data };
        match turn.device.submit(request) {
            Ok(()) => {
                entry.state = State::InFlight { work, piece_blocks };
                Sent::Gone
            }
            Err(Refused { request, reason }) => {
                self.take_back(tag, request.data);
                match refusal_errno(reason) {
                    None => Sent::NoRoom,
                    Some(errno) => {
                        self.answer(tag, work, Err(errno), turn);
                        Sent::Gone
                    }
                }
            }
        }
    }

    fn piece_max_blocks(&self, op: Op) -> u32 {
        match op {
            Op::Read | Op::Write { .. } => self.io_max_bytes / self.geometry.block_size,
            Op::Flush => 0,
            Op::Discard => self.geometry.discard_max_blocks,
            Op::WriteZeroes { .. } => self.geometry.write_zeroes_max_blocks,
        }
    }

    fn take_back(&mut self, tag: u16, mut data: SgList) {
        self.reserve.extend(data.frames.drain(..).rev());
        self.tags[usize::from(tag)].frames = data.frames;
    }

    fn answer<P: Port>(
        &mut self,
        tag: u16,
        work: Work,
        result: Result<(), Errno>,
        turn: &mut Turn<'_, P>,
    ) {
        self.tags[usize::from(tag)].state = State::Idle;
        self.held -= 1;
        let Command { op, blocks, .. } = work.command;
        let len_bytes = u64::from(blocks) * u64::from(self.geometry.block_size);
        let elapsed = turn.now.saturating_sub(work.since);
        turn.stats.done(op, len_bytes, result.is_ok(), elapsed);
        turn.port.complete(
            tag,
            match result {
                Err(errno) => -errno.0,
                // At most `io_max_bytes`, which libublk bounds by 32 MiB.
                Ok(()) if op.has_data() => len_bytes as i32,
                Ok(()) => 0,
            },
        );
    }
}

/// The kernel named a tag that cannot have a new request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadTag(pub(super) u16);

/// What a refusal means for the request; `None` is "later".
fn refusal_errno(reason: Refusal) -> Option<Errno> {
    Some(Errno(match reason {
        Refusal::Full => return None,
        Refusal::OutOfRange | Refusal::Failed => libc::EIO,
        Refusal::BadLength | Refusal::BadFrames => libc::EINVAL,
        Refusal::Unsupported => libc::EOPNOTSUPP,
        Refusal::ReadOnly => libc::EROFS,
    }))
}

#[cfg(test)]
mod tests;
