//! Where a result goes: into its control block, then to whoever is to be told, then to the list that it was of.
#![expect(
    unsafe_code,
    reason = "references that are handed from thread to thread, and memory of the program's"
)]

use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use uaio_core::host::Memory;

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
    /// Of a write that is to move all, as write(2) does where it may wait.
    pub(super) rest: Option<Rest>,
}

/// What of a write is still to be moved.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rest {
    pub(super) address: usize,
    pub(super) len_bytes: usize,
    pub(super) moved_bytes: usize,
}

impl Landing {
    /// Puts down what was done in the thread that asked for it, and tells it.
    pub(super) fn land_here(self, result: Result<usize, i32>) {
        self.control.land(result);
        self.notice.tell();
        if let Some(group) = self.group {
            if result.is_err() {
                group.fail();
            }
            if let Some(notice) = group.finish_one() {
                notice.tell();
            }
        }
        suspend::tell();
    }

    /// The address of its control block.
    pub(crate) fn address(&self) -> usize {
        self.control.address()
    }

    /// What is still to be written after this result, if anything is.
    pub(crate) fn rest_after(&mut self, result: i64) -> Option<Memory> {
        let rest = self.rest.as_mut()?;
        let moved =
            usize::try_from(result).ok().filter(|moved| (1..rest.len_bytes).contains(moved))?;
        rest.address += moved;
        rest.len_bytes -= moved;
        rest.moved_bytes += moved;
        let address = std::ptr::with_exposed_provenance_mut(rest.address);
        // SAFETY: what is left of the program's own, which it leaves alone until the request is over (aio(7)).
        Some(unsafe { Memory::raw(address, rest.len_bytes) })
    }

    /// What the request came to, when this is the last result: what was moved, if anything was, as of write(2).
    pub(crate) fn in_all(&self, result: i64) -> i64 {
        match self.rest {
            Some(Rest { moved_bytes, .. }) if moved_bytes > 0 => moved_bytes as i64 + result.max(0),
            _ => result,
        }
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
        let Landing { control, notice, group, rest: _ } = landing;
        control.land(usize::try_from(result).map_err(|_| result.unsigned_abs() as i32));
        notice.tell_from_reactor();
        if let Some(group) = group {
            if result < 0 {
                group.fail();
            }
            if let Some(notice) = group.finish_one() {
                notice.tell_from_reactor();
                Group::leave(group);
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
    /// The next of those that are [left](Group::leave).
    next: AtomicPtr<Group>,
}

/// Groups that are over, for the next who makes one to drop: the reactor must not free what the program's threads
/// allocated, see `serve::inbox`.
static LEFT: AtomicPtr<Group> = AtomicPtr::new(null_mut());

impl Group {
    /// Nothing yet but its submitter.
    pub(super) fn new(notice: Notice) -> Arc<Self> {
        let mut first = LEFT.swap(null_mut(), Ordering::Acquire);
        while !first.is_null() {
            // SAFETY: `leave` gave it away, and the swap gave it to us.
            let group = unsafe { Arc::from_raw(first) };
            first = group.next.load(Ordering::Relaxed);
        }
        let (left, failed) = (AtomicU32::new(1), AtomicBool::new(false));
        Arc::new(Self { left, failed, notice, next: AtomicPtr::new(null_mut()) })
    }

    /// The reactor is done with it: it is the last of its requests that comes here.
    fn leave(self: Arc<Self>) {
        let group = Arc::into_raw(self).cast_mut();
        let mut first = LEFT.load(Ordering::Relaxed);
        loop {
            // SAFETY: of the reference that was just given away; whoever takes it does so after the exchange.
            unsafe { &(*group).next }.store(first, Ordering::Relaxed);
            match LEFT.compare_exchange_weak(first, group, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => first = now,
            }
        }
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
