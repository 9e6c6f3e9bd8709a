//! Memory of a command.

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
            _ => Vec::new(),
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
