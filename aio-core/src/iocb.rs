//! What the user asks: owned in, and owned out again with the event or the refusal.

use std::collections::VecDeque;
use std::time::Duration;

use uaio_driver::{IoError, IoErrorKind};

use crate::buffers::Buffers;
use crate::host::HostRequest;
use crate::hosted::{Host, HostReply, HostWork};
use crate::notify::Notify;
use crate::refusal::Refusal;
use crate::registered::RegisteredBuffer;
use crate::volume::Handle;

/// The most buffers of one vectored command (`IOV_MAX` of Linux).
pub const BUFFERS_MAX: usize = 1024;

/// What an [`Iocb`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Command {
    /// Fill the buffers from the volume.
    Read,
    /// Write the buffers to the volume.
    Write,
    /// Make stable everything whose event was there before this was submitted.
    Fsync,
    /// The same on a volume, which has no metadata of its own.
    Fdatasync,
    /// The same for a range.
    SyncRange,
    /// Bring the range into the cache.
    Readahead,
    /// The blocks are not needed any more.
    Discard,
    /// The blocks read as zeroes afterwards.
    WriteZeroes,
}

/// When a command goes, of those that wait for the same volume or host: the classes of `ioprio_set(2)`.
///
/// It orders the inbox. What has been started is not overtaken by what comes later, and one in
/// sixteen is taken from the lowest class that waits, so no class starves another.
///
/// Reads and writes of the host have it at the disk, too, where the kernel's I/O scheduler looks at it
/// (`aio_reqprio` of `io_submit(2)`); what a volume's device does has none. Real time is the highest
/// level of best effort there: the kernel's own class of that name needs a privilege (EPERM) and starves
/// all others, and can be had by [`HostRequest::io_priority`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Before all others.
    RealTime,
    /// The usual.
    #[default]
    BestEffort,
    /// After all others.
    Idle,
}

impl Priority {
    /// As the kernel has it: the class from bit 13 on, the level below; 0 for the thread's own.
    pub(crate) fn of_host(self) -> u16 {
        const CLASS_SHIFT: u16 = 13;
        match self {
            Self::RealTime => 2 << CLASS_SHIFT,
            Self::BestEffort => 0,
            Self::Idle => 3 << CLASS_SHIFT,
        }
    }
}

/// A command on a volume.
#[derive(Debug)]
pub(crate) struct VolumeWork {
    pub(crate) handle: Handle,
    pub(crate) command: Command,
    pub(crate) offset: u64,
    /// Of a discard or zeroes, which bring no memory.
    pub(crate) range_bytes: u64,
    /// What is to be moved for all of it to be done, when there is less memory than that.
    pub(crate) asked_bytes: usize,
    pub(crate) buffers: Buffers,
}

/// What is to be done, and by whom.
#[derive(Debug)]
pub(crate) enum Work {
    /// On a volume, through its cache.
    Volume(VolumeWork),
    /// On the host, through its engine.
    Host(Box<HostWork>),
}

/// Iocbs that go one after the other. A list in one, so that dropping a long one does not recurse.
#[derive(Debug, Default)]
pub(crate) struct Links(pub(crate) VecDeque<Iocb>);

/// A command with its memory, and how it is to be done and told.
///
/// # Volumes
///
/// The length is that of the buffers. A read or write on a **direct** handle needs offset and length
/// in whole blocks of the volume; the memory may lie anywhere, and is copied once, unless it is
/// [registered](Iocb::pread_registered). At the end of the volume a read is
/// short, past it 0 bytes; a write that would cross it is short, one that starts there gets ENOSPC:
/// as a block device has it (`blkdev_read_iter`, `blkdev_write_iter` in block/fops.c).
///
/// # Links
///
/// [`then`](Iocb::then) makes a chain: each begins when the one before it has done all it was asked
/// to. When one fails, moves less than it was asked to, or is cancelled, those after it are not begun
/// and get [`IoErrorKind::Cancelled`]. Each has an event of its own, in order.
///
/// # Timeouts
///
/// Past its [timeout](Iocb::with_timeout) a command is cancelled. Its event says
/// [`IoErrorKind::TimedOut`] if that succeeded, and how it went if it did not.
#[derive(Debug)]
pub struct Iocb {
    pub(crate) work: Work,
    pub(crate) user_data: u64,
    pub(crate) notify: Notify,
    pub(crate) timeout: Option<Duration>,
    pub(crate) priority: Priority,
    pub(crate) links: Option<Box<Links>>,
}

impl Iocb {
    /// An operation of the host: on any descriptor, on names, any system call. Its result is what
    /// the system call of the same name returns.
    pub fn host(host: &Host, request: impl Into<HostRequest>) -> Self {
        Self::of(Work::Host(Box::new(HostWork::new(host, request.into()))))
    }

    fn of(work: Work) -> Self {
        Self {
            work,
            user_data: 0,
            notify: Notify::None,
            timeout: None,
            priority: Priority::BestEffort,
            links: None,
        }
    }

    fn new(handle: &Handle, command: Command, offset: u64, buffers: Buffers) -> Self {
        let handle = handle.clone();
        let (range_bytes, asked_bytes) = (0, 0);
        let work = VolumeWork { handle, command, offset, range_bytes, asked_bytes, buffers };
        Self::of(Work::Volume(work))
    }

    fn on_range(handle: &Handle, command: Command, offset: u64, range_bytes: u64) -> Self {
        let (handle, buffers, asked_bytes) = (handle.clone(), Buffers::None, 0);
        let work = VolumeWork { handle, command, offset, range_bytes, asked_bytes, buffers };
        Self::of(Work::Volume(work))
    }

    /// Reads as many bytes as `buffer` is long, from byte `offset` on.
    pub fn pread(handle: &Handle, offset: u64, buffer: Vec<u8>) -> Self {
        Self::new(handle, Command::Read, offset, Buffers::One(buffer))
    }

    /// Writes `buffer` from byte `offset` on.
    pub fn pwrite(handle: &Handle, offset: u64, buffer: Vec<u8>) -> Self {
        Self::new(handle, Command::Write, offset, Buffers::One(buffer))
    }

    /// Fills `buffers`, one after the other, from byte `offset` on.
    pub fn preadv(handle: &Handle, offset: u64, buffers: Vec<Vec<u8>>) -> Self {
        Self::new(handle, Command::Read, offset, Buffers::Many(buffers))
    }

    /// Writes `buffers`, one after the other, from byte `offset` on.
    pub fn pwritev(handle: &Handle, offset: u64, buffers: Vec<Vec<u8>>) -> Self {
        Self::new(handle, Command::Write, offset, Buffers::Many(buffers))
    }

    /// Reads as many bytes as `buffer` is long, from byte `offset` on, into its frames by the device
    /// itself. What is in the cache, which may be newer than the device, is copied from there instead.
    ///
    /// On a **direct** handle only: a cached one copies whatever the memory, and refuses this as
    /// [`Invalid`](Refusal::Invalid), as it does a buffer of another pool than the volume's.
    ///
    /// # Cancellation
    ///
    /// A read that the device is at ends when the device is done, as cancelled: until then the frames
    /// are the device's.
    ///
    /// # Example
    ///
    /// ```
    /// # use uaio_core::{Context, Iocb, OpenOptions, Volume};
    /// # fn example(volume: &Volume, context: &Context) -> Result<(), Box<dyn std::error::Error>> {
    /// let handle = volume.open(OpenOptions { direct: true, dsync: false });
    /// let mut buffer = volume.registered_buffer(64 << 10)?;
    /// buffer.copy_from_slice(0, b"straight from here");
    /// context.submit(Iocb::pwrite_registered(&handle, 0, buffer)).map_err(|refused| refused.reason)?;
    /// let mut events = Vec::new();
    /// context.get_events(1, 1, &mut events, None)?;
    /// let event = events.remove(0);
    /// event.result?;
    /// let buffer = event.buffers.into_registered();
    /// # Ok(())
    /// # }
    /// ```
    pub fn pread_registered(handle: &Handle, offset: u64, buffer: RegisteredBuffer) -> Self {
        Self::new(handle, Command::Read, offset, Buffers::Registered(buffer))
    }

    /// Writes `buffer` from byte `offset` on, out of its frames by the device itself. For the handle and
    /// the buffer see [`pread_registered`](Iocb::pread_registered).
    ///
    /// Who reads the same bytes meanwhile sees what is cached as it was, or waits. When it fails
    /// nothing of it is kept to be tried again, unlike other writes: each block is as it was or as it was
    /// to be.
    pub fn pwrite_registered(handle: &Handle, offset: u64, buffer: RegisteredBuffer) -> Self {
        Self::new(handle, Command::Write, offset, Buffers::Registered(buffer))
    }

    /// Makes stable every write on the volume, by whatever handle, whose event was there before this
    /// is submitted. Fails while any of it could not be made so; a writeback that failed and has
    /// healed since is told once to each handle that was open then.
    pub fn fsync(handle: &Handle) -> Self {
        Self::new(handle, Command::Fsync, 0, Buffers::None)
    }

    /// As [`fsync`](Iocb::fsync).
    pub fn fdatasync(handle: &Handle) -> Self {
        Self::new(handle, Command::Fdatasync, 0, Buffers::None)
    }

    /// Makes stable every write of the `len_bytes` bytes from `offset` on whose event was there before
    /// this is submitted (of the file calls, a `sync_file_range` that also waits for the drive). Nothing
    /// else is written out. A healed error is told as [`fsync`](Iocb::fsync) tells it, wherever on the
    /// volume it was.
    pub fn sync_range(handle: &Handle, offset: u64, len_bytes: u64) -> Self {
        Self::on_range(handle, Command::SyncRange, offset, len_bytes)
    }

    /// Brings `len_bytes` bytes from `offset` on into the cache, as far as the volume goes and the
    /// cache has room for (half of it); done when they are there, at once if they are (`readahead(2)`,
    /// which is done when it has begun; `POSIX_FADV_WILLNEED`). The result is the length that was
    /// looked at.
    pub fn readahead(handle: &Handle, offset: u64, len_bytes: u64) -> Self {
        Self::on_range(handle, Command::Readahead, offset, len_bytes)
    }

    /// Says that `len_bytes` bytes from `offset` on are not needed any more: whole blocks (`BLKDISCARD`).
    /// What they read as afterwards is undefined until they are written.
    pub fn discard(handle: &Handle, offset: u64, len_bytes: u64) -> Self {
        Self::on_range(handle, Command::Discard, offset, len_bytes)
    }

    /// Makes `len_bytes` bytes from `offset` on zeroes: whole blocks (`BLKZEROOUT`).
    pub fn write_zeroes(handle: &Handle, offset: u64, len_bytes: u64) -> Self {
        Self::on_range(handle, Command::WriteZeroes, offset, len_bytes)
    }

    /// Puts a word on it that comes back in the event.
    #[must_use]
    pub fn with_user_data(mut self, user_data: u64) -> Self {
        self.user_data = user_data;
        self
    }

    /// Says that a read or write of a volume was to move `bytes` bytes, of which the buffers are only
    /// what there is room for: what is linked to it begins when so many were moved, so not then. No more
    /// than the buffers are long says nothing new; of registered buffers, and of other commands, it is
    /// not looked at.
    #[must_use]
    pub fn with_asked(mut self, bytes: usize) -> Self {
        if let Work::Volume(work) = &mut self.work
            && !matches!(work.buffers, Buffers::Registered(_))
        {
            work.asked_bytes = bytes;
        }
        self
    }

    /// How its event is told, beside the context's own ways: once, after the event is there.
    #[must_use]
    pub fn with_notify(mut self, notify: Notify) -> Self {
        self.notify = notify;
        self
    }

    /// When it goes, of those that wait.
    #[must_use]
    pub fn with_priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// How long it may take from the time it begins: when it is submitted, or, of a chain, when the
    /// one before it is done. It needs a reactor with a thread, or somebody who waits.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Goes on with `next`, and what is linked to that, when this and what is linked to it are done.
    ///
    /// # Example
    ///
    /// A write that is stable when the second event is there:
    ///
    /// ```
    /// # use uaio_core::{Handle, Iocb};
    /// # fn example(handle: &Handle) -> Iocb {
    /// Iocb::pwrite(handle, 0, vec![1; 4096]).then(Iocb::fsync(handle))
    /// # }
    /// ```
    #[must_use]
    pub fn then(mut self, mut next: Self) -> Self {
        let after = next.links.take();
        let links = &mut self.links.get_or_insert_default().0;
        links.push_back(next);
        links.extend(after.into_iter().flat_map(|after| after.0));
        self
    }

    /// The word that was put on it.
    pub fn user_data(&self) -> u64 {
        self.user_data
    }

    /// How many events it will have: itself, and what is linked to it.
    pub(crate) fn count(&self) -> usize {
        1 + self.links.as_ref().map_or(0, |links| links.0.len())
    }

    /// Its memory, taken back from one that was refused.
    pub fn into_buffers(self) -> Buffers {
        self.work.into_buffers()
    }
}

impl Work {
    pub(crate) fn into_buffers(self) -> Buffers {
        match self {
            Self::Volume(work) => work.buffers,
            Self::Host(work) => Buffers::Host(HostReply(work)),
        }
    }
}

impl VolumeWork {
    /// How many bytes are to be moved; none when any success is all that there can be.
    pub(crate) fn asked(&self) -> Option<usize> {
        match self.command {
            Command::Read | Command::Write => Some(self.buffers.len().max(self.asked_bytes)),
            Command::Discard
            | Command::WriteZeroes
            | Command::Readahead
            | Command::Fsync
            | Command::Fdatasync
            | Command::SyncRange => None,
        }
    }

    /// What there is to do: an answer at once, or so many bytes to move (0 for a sync).
    pub(crate) fn plan(&self) -> Result<Plan, Refusal> {
        let volume = self.handle.volume();
        let in_blocks = matches!(self.command, Command::Discard | Command::WriteZeroes);
        let ranged = in_blocks || self.command == Command::Readahead;
        let len = if ranged { self.range_bytes } else { self.buffers.len() as u64 };
        match self.command {
            Command::Fsync | Command::Fdatasync => return Ok(Plan::Go(0)),
            Command::SyncRange => {
                let end = self.offset.checked_add(self.range_bytes);
                let possible = end.is_some_and(|end| end <= i64::MAX as u64);
                return if possible { Ok(Plan::Go(0)) } else { Err(Refusal::Invalid) };
            }
            Command::Read
            | Command::Write
            | Command::Readahead
            | Command::Discard
            | Command::WriteZeroes => {}
        }
        let pieces = if let Buffers::Many(pieces) = &self.buffers { pieces.len() } else { 1 };
        let end = self.offset.checked_add(len);
        if pieces > BUFFERS_MAX || end.is_none_or(|end| end > i64::MAX as u64) {
            return Err(Refusal::Invalid);
        }
        let block_size = u64::from(volume.block_size());
        let whole_blocks = in_blocks || (!ranged && self.handle.is_direct());
        if whole_blocks && !(self.offset | len).is_multiple_of(block_size) {
            return Err(Refusal::Invalid);
        }
        if let Buffers::Registered(buffer) = &self.buffers
            && !(self.handle.is_direct() && buffer.fits(volume.cache().device().pool()))
        {
            return Err(Refusal::Invalid);
        }
        let room = volume.size_bytes().saturating_sub(self.offset).min(len);
        if in_blocks && room < len {
            // As BLKDISCARD and BLKZEROOUT: all of it or nothing.
            return Err(Refusal::Invalid);
        }
        let error = |kind| Ok(Plan::Answer(Err(IoError::new(kind))));
        let writes = !matches!(self.command, Command::Read | Command::Readahead);
        match self.command {
            _ if writes && volume.is_read_only() => error(IoErrorKind::ReadOnly),
            Command::Write if room == 0 && len > 0 => error(IoErrorKind::NoSpace),
            _ if room == 0 => Ok(Plan::Answer(Ok(0))),
            // At most `len`, so it fits.
            _ => Ok(Plan::Go(room as usize)),
        }
    }

    /// What there is to do, once a read whose bytes are cached has been done.
    pub(crate) fn plan_and_try(&mut self) -> Result<Plan, Refusal> {
        Ok(match self.plan()? {
            Plan::Go(len) if self.try_hit(len) => Plan::Answer(Ok(len)),
            plan => plan,
        })
    }

    /// Does a read whose bytes are all cached, in the caller's thread; says whether it did. Only a
    /// cached handle's: a direct one is for those who do not want the cache's bookkeeping.
    pub(crate) fn try_hit(&mut self, len: usize) -> bool {
        if self.command != Command::Read || self.handle.is_direct() {
            return false;
        }
        let cache = self.handle.volume().cache();
        match &mut self.buffers {
            Buffers::None | Buffers::Registered(_) | Buffers::Host(_) => false,
            Buffers::One(bytes) => cache.try_read(self.offset, &mut bytes[..len]),
            Buffers::Many(pieces) => {
                let mut at = self.offset;
                let mut left = len;
                pieces.iter_mut().all(|piece| {
                    let part = piece.len().min(left);
                    let hit = cache.try_read(at, &mut piece[..part]);
                    at += part as u64;
                    left -= part;
                    hit
                })
            }
        }
    }
}

/// What an iocb comes to before anything is started.
pub(crate) enum Plan {
    /// The answer is known.
    Answer(Result<usize, IoError>),
    /// So many bytes are to be moved.
    Go(usize),
}
