//! What the user gets.

use uaio_driver::IoError;

use crate::buffers::Buffers;

/// The answer to one iocb: exactly one for each that `submit` took.
#[derive(Debug)]
#[must_use = "an event carries the memory of its command"]
pub struct Event {
    /// The word that was put on the iocb, which says which it was.
    pub user_data: u64,
    /// How many bytes were moved, or why none was. A transfer that failed, was cancelled or timed
    /// out after some bytes is short; asking for the rest tells why.
    pub result: Result<usize, IoError>,
    /// The iocb's memory.
    pub buffers: Buffers,
    /// More events of this iocb are to come: of a multishot poll only. Its memory comes with the
    /// last.
    pub more: bool,
}
