//! Cancellation: what was submitted is taken back, or runs to its end, and its event says which.

use std::sync::Arc;

use crate::context::Context;
use crate::iocb::Work;
use crate::ticket::{Ending, Ticket};
use crate::volume::Handle;

/// What became of a submission that was to be cancelled (`aio_cancel(3)`, `io_cancel(2)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "one that is in progress still has its memory"]
pub enum Cancel {
    /// It did not happen, or not all of it: its event is there and says
    /// [`Cancelled`](uaio_driver::IoErrorKind::Cancelled) (`AIO_CANCELED`). Of a write, some may have
    /// been done; nothing of it was acknowledged.
    Cancelled,
    /// The device is at it, or it is just going from one place to another. Its event comes, or has
    /// come meanwhile, and says whether it was cancelled or how it went (`AIO_NOTCANCELED`,
    /// EINPROGRESS).
    InProgress,
    /// It was over before: its event is there and says how it went (`AIO_ALLDONE`).
    Over,
}

impl Context {
    /// Cancels a submission, and whatever of a chain has not been done.
    ///
    /// Where it is then decides, once, under the lock of its volume:
    ///
    /// | it | becomes |
    /// |---|---|
    /// | waits in the inbox, or behind what it is linked to | [`Cancel::Cancelled`] |
    /// | waits in the cache for a page, a frame, room or a flush | [`Cancel::Cancelled`] |
    /// | is a read that the device is at | [`Cancel::Cancelled`]; the frames are the device's until it is done, the caller's memory is not |
    /// | is a write that the device is at | [`Cancel::InProgress`] |
    /// | is over | [`Cancel::Over`] |
    ///
    /// What the device does for the submission alone (a direct read, a registered write, a discard) it is
    /// asked to end (an Abort of NVMe, a cancel of io_uring), if it can; what it does for pages of the cache
    /// goes on, since others may wait for them.
    ///
    /// Each has its one event in any case. May wait for one turn of the reactor, and for no device.
    pub fn cancel(&self, ticket: Ticket) -> Cancel {
        let tickets = self.queue().tickets();
        if !tickets.end(ticket, Ending::Cancelled) {
            return Cancel::Over;
        }
        let stations = self.shared().stations();
        // It may be on its way from one place to another, but it does not go on from there: whoever
        // starts it sees the mark.
        for _ in 0..2 {
            let Some((station, token)) = tickets.place(ticket) else { break };
            let station = stations.get(station as usize);
            if let Some(decided) = station.and_then(|station| station.cancel(ticket, token)) {
                return decided;
            }
        }
        Cancel::InProgress
    }

    /// Cancels everything that was submitted to this context and is not over; says how much that
    /// was, but for chains that are just going from one place to another: those end there. Each has
    /// its event; see [`cancel`](Context::cancel).
    pub fn cancel_all(&self) -> usize {
        let queue = self.queue();
        // A chain between two stations is in none of them; whoever takes it on sees the mark.
        queue.tickets().end_all(Ending::Cancelled);
        self.shared()
            .stations()
            .iter()
            .map(|station| station.cancel_all(&|request| Arc::ptr_eq(request.queue(), queue)))
            .sum()
    }
}

impl Handle {
    /// Cancels every command on this handle and its clones that is not over, of whatever context
    /// (`aio_cancel(fd, NULL)`); says how many there were. Each has its event; see
    /// [`Context::cancel`].
    pub fn cancel_all(&self) -> usize {
        self.volume().station().cancel_all(
            &|request| matches!(&request.iocb.work, Work::Volume(work) if work.handle.is(self)),
        )
    }
}
