//! Flushes that wait for the flusher, and the flusher that they wait for.
//!
//! Whoever orders a flush takes the lock of the orders, so under it nobody looks at pages: what is to be known of
//! them is looked up before.

use std::ops::Range;
use std::sync::Arc;

use uaio_driver::{IoError, IoErrorKind, Wake};

use crate::wait::{Place, Waiter, Wakes, Wakeup};

use super::Cache;

/// The error of what needs a flusher when there is none.
pub(crate) const NO_FLUSHER: IoError = IoError::new(IoErrorKind::Cancelled);

/// A flush that waits: for everything up to `seq` in its pages to be on the device, and then for a
/// device flush.
pub(crate) struct Ticket {
    /// Higher than those of the tickets before it.
    pub(crate) id: u64,
    pub(crate) seq: u64,
    /// The pages it covers.
    pub(crate) pages: Range<u64>,
    pub(crate) waiter: Waiter,
    /// What failed to be written in its pages is to be tried again at once.
    pub(crate) retry_failed: bool,
}

impl Ticket {
    /// The pages of a flush that covers all there are.
    pub(crate) const ALL: Range<u64> = 0..u64::MAX;

    pub(crate) fn is_whole(&self) -> bool {
        self.pages == Self::ALL
    }
}

/// What the flusher is asked for.
#[derive(Default)]
pub(crate) struct Orders {
    pub(crate) tickets: Vec<Ticket>,
    pub(crate) flushes: u64,
}

impl Cache {
    /// Asks for everything acknowledged so far in these pages to be stable; the waiter gets the
    /// result.
    pub(crate) fn order_flush(&self, pages: Range<u64>, waiter: Waiter) {
        let mut orders = self.orders.lock();
        orders.flushes += 1;
        waiter.left_at(Place::Orders);
        let seq = self.last_seq();
        let ticket = Ticket { id: orders.flushes, seq, pages, waiter, retry_failed: true };
        orders.tickets.push(ticket);
        drop(orders);
        let flusher = self.flusher.lock().clone();
        match flusher {
            Some(flusher) => flusher.wake(),
            // Nobody would ever answer.
            None => self.fail_tickets(&mut Wakes::default(), NO_FLUSHER, |_| true),
        }
    }

    pub(crate) fn ring_flusher(&self) {
        // Under no lock: it may be a call of the kernel, and is somebody else's code.
        let flusher = self.flusher.lock().clone();
        if let Some(flusher) = flusher {
            flusher.wake();
        }
    }

    /// Names the flusher, if there is none; says whether there was none.
    pub(crate) fn add_flusher(&self, wake: Arc<dyn Wake>, wakes: &mut Wakes) -> bool {
        {
            let _one_at_a_time = self.flusher_changes.lock();
            let mut flusher = self.flusher.lock();
            if flusher.is_some() {
                return false;
            }
            *flusher = Some(Arc::clone(&wake));
        }
        self.set_flusher(Some(wake), wakes);
        true
    }

    /// Names the flusher; without one, whoever needs it fails instead of waiting for ever.
    pub(crate) fn set_flusher(&self, wake: Option<Arc<dyn Wake>>, wakes: &mut Wakes) {
        let _one_at_a_time = self.flusher_changes.lock();
        let broken = if wake.is_some() { None } else { Some(NO_FLUSHER) };
        *self.flusher.lock() = wake;
        self.rooms().for_each(|room| room.set_broken(broken, wakes));
        if let Some(error) = broken {
            self.fail_tickets(wakes, error, |_| true);
            self.shards().for_each(|shard| shard.lock().fail_frame_waiters(error, wakes));
        }
    }

    /// Fails the flushes that cover what could not be written of these pages, the oldest of it numbered
    /// `oldest`. They fail now: it was tried, and waiting longer would be for as long as the device
    /// pleases.
    ///
    /// The pages are looked at before the flushes are, not for each of them: with a thousand flushes of ranges
    /// and a command of 256 pages nobody could order another for as long. It allocates, once for a command that
    /// failed.
    pub(crate) fn fail_covering(
        &self,
        wakes: &mut Wakes,
        error: IoError,
        pages: &Range<u64>,
        oldest: u64,
    ) {
        let last = {
            let orders = self.orders.lock();
            if orders.tickets.is_empty() {
                return;
            }
            orders.flushes
        };
        // Each page of which something could not be written, and since when it is dirty.
        let failed: Vec<(u64, u64)> = pages
            .clone()
            .filter_map(|page| {
                let shard = self.shard(page);
                let slot = shard.find(page).filter(|slot| shard.attempts(*slot) > 0)?;
                Some((page, shard.page(slot).dirty_since()?))
            })
            .collect();
        self.fail_tickets(wakes, error, |ticket| {
            // Who came since has it tried again.
            if ticket.id > last || ticket.seq < oldest {
                return false;
            }
            // Some of the pages may be of the range, and others what is old enough.
            let covers =
                |(page, since): &(u64, u64)| ticket.pages.contains(page) && *since <= ticket.seq;
            ticket.is_whole() || failed.iter().any(covers)
        });
    }

    /// Fails the flushes that wait and are to fail: `covers` is asked under the lock of the orders, and takes
    /// none.
    pub(crate) fn fail_tickets(
        &self,
        wakes: &mut Wakes,
        error: IoError,
        covers: impl Fn(&Ticket) -> bool,
    ) {
        let mut orders = self.orders.lock();
        orders.tickets.retain(|ticket| {
            let failed = covers(ticket);
            if failed {
                wakes.push(ticket.waiter.clone(), Wakeup::Ended(Err(error)));
            }
            !failed
        });
    }
}
