//! Sockets.

use crate::host::{Accept, Descriptor, HostOp, Memory, Message, SocketAddress};

/// accept4(2): the connection is closed on exec, and brought by the answer.
pub fn accept(fd: &Descriptor) -> HostOp {
    let (address, accepted) = (SocketAddress::empty(), None);
    HostOp::Accept(Box::new(Accept { fd: fd.clone(), flags: 0, address, accepted }))
}

/// connect(2).
pub fn connect(fd: &Descriptor, address: impl Into<SocketAddress>) -> HostOp {
    HostOp::Connect { fd: fd.clone(), address: Box::new(address.into()) }
}

/// send(2).
pub fn send(fd: &Descriptor, buffer: impl Into<Memory>) -> HostOp {
    HostOp::Send { fd: fd.clone(), memory: buffer.into(), flags: 0 }
}

/// recv(2).
pub fn recv(fd: &Descriptor, buffer: impl Into<Memory>) -> HostOp {
    HostOp::Recv { fd: fd.clone(), memory: buffer.into(), flags: 0 }
}

/// sendto(2): one datagram to this address.
pub fn send_to(fd: &Descriptor, buffer: Vec<u8>, address: impl Into<SocketAddress>) -> HostOp {
    sendmsg(fd, Box::new(Message::new(vec![buffer]).to(address)))
}

/// recvfrom(2): one datagram, and whom it is from.
pub fn recv_from(fd: &Descriptor, buffer: Vec<u8>) -> HostOp {
    recvmsg(fd, Box::new(Message::new(vec![buffer]).from_anybody()))
}

/// sendmsg(2). A message that came back from a [`recvmsg`] may be sent.
pub fn sendmsg(fd: &Descriptor, message: Box<Message>) -> HostOp {
    HostOp::SendMsg { fd: fd.clone(), message, flags: 0 }
}

/// recvmsg(2).
pub fn recvmsg(fd: &Descriptor, message: Box<Message>) -> HostOp {
    HostOp::RecvMsg { fd: fd.clone(), message, flags: 0 }
}

/// shutdown(2).
pub fn shutdown(fd: &Descriptor, how: i32) -> HostOp {
    HostOp::Shutdown { fd: fd.clone(), how }
}
