//! What an operation has become, taken out of it.

use std::os::fd::OwnedFd;

use crate::host::{HostOp, Message};

/// Each takes one thing out of an operation that is done, and drops the rest.
impl HostOp {
    /// The memory of a read, write, send or receive; for a message its first buffer; empty for
    /// anything else. The result says how much of it counts.
    pub fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::Read { memory, .. }
            | Self::Write { memory, .. }
            | Self::Send { memory, .. }
            | Self::Recv { memory, .. } => memory.into_vec(),
            Self::SendMsg { message, .. } | Self::RecvMsg { message, .. } => {
                message.buffers.into_iter().next().unwrap_or_default()
            }
            _ => Vec::new(),
        }
    }

    /// The buffers of a vectored read or write, or of a message; none for anything else.
    pub fn into_pieces(self) -> Vec<Vec<u8>> {
        match self {
            Self::ReadV { memory, .. } | Self::WriteV { memory, .. } => memory.into_buffers(),
            Self::SendMsg { message, .. } | Self::RecvMsg { message, .. } => message.buffers,
            _ => Vec::new(),
        }
    }

    /// The descriptor that it made: of an open, accept, or call that makes one. Of a close that was
    /// cancelled the one that is still open.
    pub fn into_descriptor(self) -> Option<OwnedFd> {
        match self {
            Self::Open(open) => open.opened,
            Self::Accept(accept) => accept.accepted,
            Self::Call(call) => call.opened,
            Self::Close { fd } => fd,
            _ => None,
        }
    }

    /// The message of a sendmsg or recvmsg.
    pub fn into_message(self) -> Option<Box<Message>> {
        match self {
            Self::SendMsg { message, .. } | Self::RecvMsg { message, .. } => Some(message),
            _ => None,
        }
    }

    /// The events of an epoll wait: the first so many of them as the result says.
    pub fn into_epoll_events(self) -> Vec<libc::epoll_event> {
        match self {
            Self::EpollWait(wait) => wait.events,
            _ => Vec::new(),
        }
    }

    /// What statx(2) said.
    pub fn into_status(self) -> Option<libc::statx> {
        match self {
            Self::Statx(statx) => Some(statx.status),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::host::Descriptor;
    use crate::ops;

    #[test]
    fn what_was_brought_is_taken_out_again_and_what_was_not_is_nothing() {
        let (reader, writer) = std::io::pipe().unwrap();
        let fd = Descriptor::new(reader);
        assert_eq!(ops::pread(&fd, vec![1, 2], 7).into_bytes(), [1, 2]);
        assert_eq!(ops::recv_from(&fd, vec![3]).into_bytes(), [3]);
        let pieces = vec![vec![1], vec![], vec![2, 3]];
        assert_eq!(ops::writev(&fd, pieces.clone()).into_pieces(), pieces);
        assert!(ops::close(writer).into_descriptor().is_some());
        assert!(ops::open(c"x", 0).into_descriptor().is_none());
        assert_eq!(ops::epoll_wait(&fd, 5).into_epoll_events().len(), 5);
        assert!(ops::fsync(&fd).into_bytes().is_empty());
        assert!(ops::fsync(&fd).into_message().is_none());
    }
}
