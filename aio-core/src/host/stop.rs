//! How an operation is ended early, wherever it is.

use rustix::io::Errno;
use uaio_driver::Token;

use super::engine::{Cancel, Engine};
use super::slot::{Stage, Stop};
use super::word::Kind;

/// How often a cancel is sent at once that did not find its operation, which may just have been between
/// two places of the kernel. After that it is sent again every 10 ms.
const CANCELS_MAX: u8 = 8;

impl Engine {
    pub(super) fn stop(&mut self, token: Token, why: Stop) -> Cancel {
        let Some(slot) = self.slots.get_mut(token) else { return Cancel::Done };
        match slot.stage {
            Stage::Answered(_) => return Cancel::Done,
            _ => drop(slot.stop.get_or_insert(why)),
        }
        match slot.stage {
            Stage::Issued(_) => self.send_cancel(token, false),
            Stage::Working => {
                let job = self.workers.as_ref().and_then(|workers| workers.take(token));
                if let Some(job) = job {
                    self.working -= 1;
                    slot.request.op = job.op;
                    let errno = slot.stopped().unwrap_or(Errno::CANCELED);
                    self.answer(token, Err(errno));
                } else {
                    self.interrupt(token);
                }
            }
            // Its entry is not in the ring, and will not be.
            Stage::Waiting | Stage::Answered(_) => {}
        }
        Cancel::Asked
    }

    /// Sends a cancel, or, with `nap`, a timer after which another is sent. One at a time is on its way.
    pub(super) fn send_cancel(&mut self, token: Token, nap: bool) {
        if let Some(slot) = self.slots.get_mut(token)
            && !std::mem::replace(&mut slot.cancelling, true)
        {
            slot.napping = nap;
            self.send(token, Kind::CancelStep);
        }
    }

    /// Gets the worker out of the call that it has begun for an operation, and comes again until it is.
    pub(super) fn interrupt(&mut self, token: Token) {
        if let Some(workers) = &self.workers {
            workers.interrupt(token);
        }
        self.send_cancel(token, true);
    }

    /// A cancel has found its operation or not, or it is time for the next.
    pub(super) fn cancel_again(&mut self, token: Token, result: i32) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        slot.cancelling = false;
        let napped = std::mem::take(&mut slot.napping);
        match slot.stage {
            Stage::Working => self.interrupt(token),
            Stage::Issued(_) if napped => self.send_cancel(token, false),
            Stage::Issued(_) if matches!(-result, libc::ENOENT | libc::EALREADY) => {
                // Between two places of the kernel it is for a moment only; anything else takes longer.
                let at_once = slot.may_wait_for_ever() && slot.cancels < CANCELS_MAX;
                slot.cancels = slot.cancels.saturating_add(1);
                self.send_cancel(token, !at_once);
            }
            Stage::Issued(_) | Stage::Waiting | Stage::Answered(_) => return,
        }
        self.unfinished = true;
    }
}
