//! Waiting for descriptors and for time, and any other call.

use std::time::Duration;

use crate::host::{Argument, Call, CallRefused, Descriptor, EpollWait, HostOp};

/// poll(2) of one descriptor, once; the result is the events that are there.
pub fn poll(fd: &Descriptor, events: i16) -> HostOp {
    HostOp::Poll { fd: fd.clone(), events: u32::from(events as u16), multishot: false }
}

/// The same with an answer each time, until it is cancelled.
pub fn poll_all(fd: &Descriptor, events: i16) -> HostOp {
    HostOp::Poll { fd: fd.clone(), events: u32::from(events as u16), multishot: true }
}

/// epoll_wait(2) for at most `events_max` events; give it a timeout as any other operation.
pub fn epoll_wait(fd: &Descriptor, events_max: usize) -> HostOp {
    let events = vec![libc::epoll_event { events: 0, u64: 0 }; events_max];
    HostOp::EpollWait(Box::new(EpollWait { fd: fd.clone(), events }))
}

/// Nothing for so long.
pub fn sleep(time: Duration) -> HostOp {
    HostOp::Sleep(time)
}

/// Any other call; see [`Call::new`].
///
/// # Errors
///
/// When the call is not one that can be made, or its arguments are not what it takes.
pub fn call(number: i64, arguments: Vec<Argument>) -> Result<HostOp, CallRefused> {
    Ok(HostOp::Call(Box::new(Call::new(number, arguments)?)))
}
