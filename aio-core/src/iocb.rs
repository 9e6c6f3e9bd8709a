//! What the user asks: owned in, and owned out again with the event or the refusal.

use uaio_driver::{IoError, IoErrorKind};

use crate::volume::Handle;

/// The most buffers of one vectored command (`IOV_MAX` of Linux).
pub const BUFFERS_MAX: usize = 1024;

/// What an [`Iocb`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Fill the buffers from the volume.
    Read,
    /// Write the buffers to the volume.
    Write,
    /// Make stable everything whose event was there before this was submitted.
    Fsync,
    /// The same on a volume, which has no metadata of its own.
    Fdatasync,
}

/// Memory of a command. It belongs to the command until its event.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum Buffers {
    /// None: a sync.
    #[default]
    None,
    /// One: `pread`, `pwrite`.
    One(Vec<u8>),
    /// Several, as one run of bytes: `preadv`, `pwritev`.
    Many(Vec<Vec<u8>>),
}

impl Buffers {
    /// How many bytes they hold.
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(bytes) => bytes.len(),
            Self::Many(pieces) => pieces.iter().map(Vec::len).sum(),
        }
    }

    /// Whether they hold no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The memory of `pread` or `pwrite`; empty for anything else.
    pub fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::One(bytes) => bytes,
            Self::None | Self::Many(_) => Vec::new(),
        }
    }

    /// The memory of `preadv` or `pwritev`; empty for anything else.
    pub fn into_pieces(self) -> Vec<Vec<u8>> {
        match self {
            Self::Many(pieces) => pieces,
            Self::None | Self::One(_) => Vec::new(),
        }
    }
}

/// A command on a handle, with its memory.
///
/// The length is that of the buffers. A read or write on a **direct** handle needs offset and length
/// in whole blocks of the volume; the memory may lie anywhere. At the end of the volume a read is
/// short, past it 0 bytes; a write that would cross it is short, one that starts there gets ENOSPC:
/// as a block device has it (`blkdev_read_iter`, `blkdev_write_iter` in block/fops.c).
#[derive(Debug)]
pub struct Iocb {
    pub(crate) handle: Handle,
    pub(crate) command: Command,
    pub(crate) offset: u64,
    pub(crate) buffers: Buffers,
    pub(crate) user_data: u64,
}

impl Iocb {
    fn new(handle: &Handle, command: Command, offset: u64, buffers: Buffers) -> Self {
        Self { handle: handle.clone(), command, offset, buffers, user_data: 0 }
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

    /// Puts a word on it that comes back in the event.
    #[must_use]
    pub fn with_user_data(mut self, user_data: u64) -> Self {
        self.user_data = user_data;
        self
    }

    /// What it does.
    pub fn command(&self) -> Command {
        self.command
    }

    /// Its memory, taken back from one that was refused.
    pub fn into_buffers(self) -> Buffers {
        self.buffers
    }

    /// What there is to do: an answer at once, or so many bytes to move (0 for a sync).
    pub(crate) fn plan(&self) -> Result<Plan, Refusal> {
        let len = self.buffers.len();
        let volume = self.handle.volume();
        if matches!(self.command, Command::Fsync | Command::Fdatasync) {
            return Ok(Plan::Go(0));
        }
        let pieces = if let Buffers::Many(pieces) = &self.buffers { pieces.len() } else { 1 };
        let end = self.offset.checked_add(len as u64);
        if pieces > BUFFERS_MAX || end.is_none_or(|end| end > i64::MAX as u64) {
            return Err(Refusal::Invalid);
        }
        let block_size = u64::from(volume.block_size());
        if self.handle.is_direct() && !(self.offset | len as u64).is_multiple_of(block_size) {
            return Err(Refusal::Invalid);
        }
        // At most `len`, so it fits.
        let room = volume.size_bytes().saturating_sub(self.offset).min(len as u64) as usize;
        let error = |kind| Ok(Plan::Answer(Err(IoError::new(kind))));
        match self.command {
            Command::Write if volume.is_read_only() => error(IoErrorKind::ReadOnly),
            Command::Write if room == 0 && len > 0 => error(IoErrorKind::NoSpace),
            _ if room == 0 => Ok(Plan::Answer(Ok(0))),
            _ => Ok(Plan::Go(room)),
        }
    }

    /// Does a read whose bytes are all cached, in the caller's thread; says whether it did. Only a
    /// cached handle's: a direct one is for those who do not want the cache's bookkeeping.
    pub(crate) fn try_hit(&mut self, len: usize) -> bool {
        if self.command != Command::Read || self.handle.is_direct() {
            return false;
        }
        let cache = self.handle.volume().cache();
        match &mut self.buffers {
            Buffers::None => false,
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

/// Why an iocb was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// The context has as many commands and events as it holds: get events, then submit again
    /// (EAGAIN).
    #[error("the context has no event slot free")]
    NoSlot,
    /// More is waiting for the volume than its inbox holds: submit again later (EAGAIN).
    #[error("the volume's inbox is full")]
    Busy,
    /// A direct handle and an offset or length that is not in whole blocks, more than
    /// [`BUFFERS_MAX`] buffers, an end past what a file offset can say, or a handle of another
    /// reactor (EINVAL).
    #[error("the command is not possible")]
    Invalid,
    /// The volume has been closed (ENODEV).
    #[error("the volume is closed")]
    Closed,
}

impl Refusal {
    /// The positive errno that says this to a program.
    pub fn errno(self) -> i32 {
        use rustix::io::Errno;
        let errno = match self {
            Self::NoSlot | Self::Busy => Errno::AGAIN,
            Self::Invalid => Errno::INVAL,
            Self::Closed => Errno::NODEV,
        };
        errno.raw_os_error()
    }
}

/// An iocb that was not taken, as it was, with the reason.
#[derive(Debug)]
#[must_use = "the command inside was not submitted and will have no event"]
pub struct Refused {
    /// The iocb. The contents of a read's buffers may have changed.
    pub iocb: Iocb,
    /// Why.
    pub reason: Refusal,
}
