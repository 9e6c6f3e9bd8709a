//! Where a result goes: into its control block, then to whoever is to be told, then to the list that it was of.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::control::Control;
use super::notice::Notice;
use super::sleep::{self, Cancellation, Ended};
use super::suspend;

/// What is needed when the result of a request comes. It is all here: of the block only the result is written, after
/// which it may be gone.
#[derive(Debug)]
pub(crate) struct Landing {
    pub(super) control: Control,
    pub(super) notice: Notice,
    pub(super) group: Option<Arc<Group>>,
}

impl Landing {
    /// The address of its control block.
    pub(crate) fn address(&self) -> usize {
        self.control.address()
    }
}

/// What a turn of the reactor put into control blocks, and has to tell.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    landed: bool,
}

impl Batch {
    /// Puts a result down: what the system call of the same name returns, or a negative errno.
    pub(crate) fn land(&mut self, landing: Landing, result: i64) {
        let Landing { control, notice, group } = landing;
        control.land(usize::try_from(result).map_err(|_| result.unsigned_abs() as i32));
        notice.tell_from_reactor();
        if let Some(group) = group {
            if result < 0 {
                group.fail();
            }
            if let Some(notice) = group.finish_one() {
                notice.tell_from_reactor();
            }
        }
        self.landed = true;
    }

    /// Tells those who wait for one of several.
    pub(crate) fn tell(&mut self) {
        if std::mem::take(&mut self.landed) {
            suspend::tell();
        }
    }
}

/// The requests of one `lio_listio`.
#[derive(Debug)]
pub(super) struct Group {
    /// Requests that are not over, and one for whoever submits them.
    left: AtomicU32,
    failed: AtomicBool,
    /// When all are over.
    notice: Notice,
}

impl Group {
    /// Nothing yet but its submitter.
    pub(super) fn new(notice: Notice) -> Arc<Self> {
        Arc::new(Self { left: AtomicU32::new(1), failed: AtomicBool::new(false), notice })
    }

    /// One more.
    pub(super) fn add(&self) {
        self.left.fetch_add(1, Ordering::Relaxed);
    }

    /// One of them failed.
    pub(super) fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Whether one failed, as far as they are over.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// One is over. What to tell if it was the last.
    pub(super) fn finish_one(&self) -> Option<Notice> {
        // Release: who sees that all are over sees whether they failed. Acquire: the last one sees it of the others.
        if self.left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return None;
        }
        sleep::wake(&raw const self.left);
        Some(self.notice)
    }

    /// Waits until all are over. The submitter has finished.
    pub(super) fn wait(&self) -> Result<(), i32> {
        loop {
            let left = self.left.load(Ordering::Acquire);
            if left == 0 {
                return Ok(());
            }
            if sleep::wait(&raw const self.left, left, None, Cancellation::None)
                == Ended::Interrupted
                && self.left.load(Ordering::Acquire) > 0
            {
                return Err(libc::EINTR);
            }
        }
    }
}
