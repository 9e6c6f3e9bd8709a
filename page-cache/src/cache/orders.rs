//! What is asked of the flusher: flushes, and device flushes for stable writes.
//!
//! Whoever wants something to be stable leaves one entry here and polls nothing but its own queue. All device
//! flushes of a cache are sent by its flusher, one at a time, and who waits goes through these lists:
//!
//! | list | who | until |
//! |---|---|---|
//! | `tickets` | flushes | what they cover is on the device |
//! | `joined` | stable writes of all lanes, which are on the device already | a device flush is sent |
//! | `covered` | whom the device flush in flight covers | it has ended |
//!
//! Who is in any of them can be cancelled at once, whatever the flusher does, or does not. And here is the flusher
//! itself, or that there is none: then nobody waits.
//!
//! Whoever orders something takes the lock of the orders, so under it nobody looks at pages: what is to be known of
//! them is looked up before.

use std::ops::Range;
use std::sync::Arc;

use uaio_driver::{IoError, IoErrorKind, IoResult, Wake};

use crate::covered::Covered;
use crate::wait::{Entries, Place, Waiter, Wakes, Wakeup};

use super::Cache;

/// The error of what needs a flusher when there is none.
pub(super) const NO_FLUSHER: IoError = IoError::new(IoErrorKind::Cancelled);

/// A flush that waits: for everything up to `seq` in its pages to be on the device, and then for a
/// device flush.
pub(crate) struct Ticket {
    /// Higher than those of the tickets before it.
    pub(crate) id: u64,
    pub(crate) seq: u64,
    /// The pages it covers.
    pub(crate) pages: Range<u64>,
    waiter: Waiter,
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
    joined: Vec<Waiter>,
    covered: Vec<Waiter>,
    /// Flushes that were ever ordered.
    pub(crate) flushes: u64,
}

impl Orders {
    /// The lanes have so many operations, each of which may be in one of the lists.
    pub(super) fn reserve(&mut self, operations: usize) {
        let Self { tickets, joined, covered, .. } = self;
        tickets.reserve_exact(operations.saturating_sub(tickets.len()));
        joined.reserve_exact(operations.saturating_sub(joined.len()));
        covered.reserve_exact(operations.saturating_sub(covered.len()));
    }

    /// They have no more than so many any longer.
    pub(super) fn shrink(&mut self, operations: usize) {
        self.tickets.shrink_to(operations);
        self.joined.shrink_to(operations);
        self.covered.shrink_to(operations);
    }

    /// Bytes of memory, with what the flusher has for each flush that waits.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.tickets.capacity() * (size_of::<Ticket>() + Covered::BYTES_A_TICKET)
            + (self.joined.capacity() + self.covered.capacity()) * size_of::<Waiter>()
    }

    /// A device flush is about to be sent: it covers the stable writes that have joined and the flushes that are
    /// `ready`. Says whether there are any.
    pub(crate) fn cover(&mut self, ready: impl Fn(&Ticket) -> bool) -> bool {
        let Self { tickets, joined, covered, .. } = self;
        covered.append(joined);
        tickets.retain(|ticket| {
            let ready = ready(ticket);
            if ready {
                covered.push(ticket.waiter.clone());
            }
            !ready
        });
        !covered.is_empty()
    }

    /// The device flush has ended, and so has the wait of those whom it covers.
    pub(crate) fn ended(&mut self, result: IoResult, wakes: &mut Wakes) {
        for waiter in self.covered.drain(..) {
            wakes.push(waiter, Wakeup::Ended(result));
        }
    }

    /// Ends the wait of an operation; `false` when it has been woken.
    pub(super) fn cancel(&mut self, entries: &Arc<Entries>, slot: u32) -> bool {
        let is_it = |waiter: &Waiter| waiter.is(entries, slot);
        let Self { tickets, joined, covered, .. } = self;
        if let Some(at) = tickets.iter().position(|ticket| is_it(&ticket.waiter)) {
            tickets.remove(at);
        } else if let Some(at) = joined.iter().position(is_it) {
            joined.remove(at);
        } else if let Some(at) = covered.iter().position(is_it) {
            covered.remove(at);
        } else {
            return false;
        }
        entries.arrived(slot);
        true
    }
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
        self.ring_for_order();
    }

    /// Asks for a device flush that is sent from now on; the waiter, whose data the device has taken, gets its
    /// result.
    pub(crate) fn order_device_flush(&self, waiter: Waiter) {
        let mut orders = self.orders.lock();
        waiter.left_at(Place::Orders);
        // Who joined before has rung; and when a flush is in flight the flusher looks here as that ends. So a
        // crowd that shares a flush rings once.
        let rings = orders.joined.is_empty() && orders.covered.is_empty();
        orders.joined.push(waiter);
        drop(orders);
        if rings {
            self.ring_for_order();
        }
    }

    fn ring_for_order(&self) {
        if !self.ring_flusher() {
            // Nobody would ever answer.
            self.fail_orders(NO_FLUSHER, &mut Wakes::default());
        }
    }

    /// Rings the flusher; `false` when there is none.
    pub(crate) fn ring_flusher(&self) -> bool {
        // Under no lock: it may be a call of the kernel, and is somebody else's code.
        let flusher = self.flusher.lock().clone();
        if let Some(flusher) = &flusher {
            flusher.wake();
        }
        flusher.is_some()
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
            self.fail_orders(error, wakes);
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
        let covers = |ticket: &Ticket| {
            // Who came since has it tried again.
            if ticket.id > last || ticket.seq < oldest {
                return false;
            }
            // Some of the pages may be of the range, and others what is old enough.
            let covers =
                |(page, since): &(u64, u64)| ticket.pages.contains(page) && *since <= ticket.seq;
            ticket.is_whole() || failed.iter().any(covers)
        };
        self.orders.lock().tickets.retain(|ticket| {
            let failed = covers(ticket);
            if failed {
                wakes.push(ticket.waiter.clone(), Wakeup::Ended(Err(error)));
            }
            !failed
        });
    }

    /// Fails all who wait for the flusher.
    pub(crate) fn fail_orders(&self, error: IoError, wakes: &mut Wakes) {
        let mut orders = self.orders.lock();
        orders.cover(|_| true);
        orders.ended(Err(error), wakes);
    }
}
