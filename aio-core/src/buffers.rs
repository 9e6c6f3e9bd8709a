//! Memory of a command.

use crate::host::HostOp;
use crate::hosted::HostReply;
use crate::registered::RegisteredBuffer;

/// Memory of a command. It belongs to the command until its event.
#[derive(Debug, Default)]
#[non_exhaustive]
pub enum Buffers {
    /// None: a sync.
    #[default]
    None,
    /// One: `pread`, `pwrite`.
    One(Vec<u8>),
    /// Several, as one run of bytes: `preadv`, `pwritev`.
    Many(Vec<Vec<u8>>),
    /// Frames of the device: `pread_registered`, `pwrite_registered`.
    Registered(RegisteredBuffer),
    /// An operation of the host, whole, with all it brought and what the kernel put in.
    Host(HostReply),
}

impl Buffers {
    /// How many bytes they hold; what is the host's is not counted.
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(bytes) => bytes.len(),
            Self::Many(pieces) => pieces.iter().map(Vec::len).sum(),
            Self::Registered(buffer) => buffer.len(),
            Self::Host(_) => 0,
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
            _ => Vec::new(),
        }
    }

    /// The memory of `pread_registered` or `pwrite_registered`; none for anything else.
    pub fn into_registered(self) -> Option<RegisteredBuffer> {
        match self {
            Self::Registered(buffer) => Some(buffer),
            _ => None,
        }
    }

    /// The operation of the host; none for anything else.
    pub fn into_host(self) -> Option<HostOp> {
        match self {
            Self::Host(reply) => Some(reply.into_op()),
            _ => None,
        }
    }

    /// The memory of `preadv` or `pwritev`; empty for anything else.
    pub fn into_pieces(self) -> Vec<Vec<u8>> {
        match self {
            Self::Many(pieces) => pieces,
            _ => Vec::new(),
        }
    }
}
