//! libaio, and the system calls of the kernel's AIO.

mod context;
pub(crate) mod exports;
mod inline;
pub(crate) mod layout;
mod ring;
mod setup;
mod submit;
mod wait;

use std::os::fd::AsFd;
use std::sync::Arc;

use context::Context;
pub(crate) use context::Contexts;
use layout::IoEvent;

use crate::own::OwnFd;

/// Where the result of an iocb goes.
#[derive(Debug)]
pub(crate) struct Landing {
    context: Arc<Context>,
    /// The iocb's address, and its word.
    obj: u64,
    data: u64,
    /// A poll, of which the kernel says 0 when it was cancelled.
    is_poll: bool,
    /// The eventfd that is told.
    notice: Option<Arc<OwnFd>>,
}

impl Landing {
    /// Whether it is of the context at this address.
    pub(crate) fn is_of(&self, context: usize) -> bool {
        self.context.address() == context
    }

    /// The iocb's address.
    pub(crate) fn obj(&self) -> u64 {
        self.obj
    }
}

/// What is to be told after events were put down: contexts, and eventfds with how often.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    contexts: Vec<Arc<Context>>,
    notices: Vec<(Arc<OwnFd>, u64)>,
}

impl Batch {
    /// Puts an event down.
    pub(crate) fn land(&mut self, landing: Landing, result: i64) {
        let Landing { context, obj, data, is_poll, notice } = landing;
        let result = if is_poll && result == -i64::from(libc::ECANCELED) { 0 } else { result };
        context.publish(IoEvent { data, obj, res: result, res2: 0 });
        if let Some(notice) = notice {
            match self.notices.iter_mut().find(|(one, _)| Arc::ptr_eq(one, &notice)) {
                Some((_, count)) => *count += 1,
                None => self.notices.push((notice, 1)),
            }
        }
        if !self.contexts.iter().any(|one| Arc::ptr_eq(one, &context)) {
            self.contexts.push(context);
        }
    }

    /// Tells whoever waits.
    pub(crate) fn tell(&mut self) {
        for (eventfd, count) in self.notices.drain(..) {
            tell(&eventfd, count);
        }
        for context in self.contexts.drain(..) {
            context.wake();
        }
    }
}

/// Adds to an eventfd, unless that would wait: one that is full is readable already.
fn tell(eventfd: &OwnFd, count: u64) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(eventfd, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if poll(&mut fds, Some(&now)) == Ok(1) {
        // The program's own writes may have filled it since; that is its loss.
        let _ = rustix::io::write(eventfd.as_fd(), &count.to_ne_bytes());
    }
}
