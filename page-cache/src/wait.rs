//! Wait queues: entries that carry what waking means.
//!
//! Whoever cannot go on leaves a waiter on exactly one queue. Waking it is a callback, not a
//! thread made runnable: the waker does not know whether an operation goes back on its reactor's run
//! queue, a thread is unparked, or a future's `Waker` is called. The entry is an explicit value of
//! the operation, never hidden state of a thread.
//!
//! A queue lies under the same lock as the state it waits for, so check-then-enqueue is atomic.
//! Waking takes entries out under the lock, into a list of wakes, and calls them after it is dropped: every
//! entry is woken exactly once and no callback runs under a lock.
//!
//! # What waking means
//!
//! A waker shows an entry what has changed, and the entry's **wake function** decides: it is taken out and
//! woken with something, or it **stays**. A reader stays while a page is being written to; whoever waits until
//! nobody is busy with a page stays, too, when a write to it is followed by its writeback. The functions
//! are a closed set, so an entry names its own (`Wants`) and needs no pointer to code. A waker takes
//! *one*, *n* or *all* of those who would be woken, first come first.
//!
//! # Who is woken
//!
//! *Page state wakes everybody. Scarce things are handed over, not advertised*: a frame or room goes
//! to the first waiter inside its [`Wakeup`], so a newcomer cannot take it in between.
//!
//! The right to change a page next is such a thing, for those who keep the page to themselves while the
//! device is at it: stable writers, and whoever has to fill blocks. They are **exclusive** waiters. When the page
//! is quiet it is *reserved* and its **turn** handed to the first of them alone ([`Wakeup::Turn`]): a thousand
//! stable writers of one page are a thousand wake-ups, not half a million. Newcomers queue behind. Who
//! was handed a turn uses it or gives it back in that step, and it goes to the next; readers and
//! flushers of what is in flight look, all together, whoever has the turn.
//!
//! | who | waits for | exclusive |
//! |---|---|---|
//! | a reader | a page that can be read | no |
//! | a writer to the cache | the same, once; overtaken then, for the page's turn | no; yes |
//! | a discard, a flush of what is in flight | a page that nobody is busy with | no |
//! | a stable or partial write, a reader of missing blocks, the flusher for what it is to write | the page's turn | yes |
//! | anybody | a frame, room, a range under bypass | handed over one by one |
//!
//! # Where entries lie
//!
//! An operation waits on one queue at a time, so it has one entry for all of them, made with its
//! lane and linked into whatever queue it waits on. A queue is two links; enqueueing,
//! waking and removing allocate nothing and walk nothing. Pages have no queue of their own: a shard
//! has some, and a page's entries lie, marked with its slot, in the one that its slot hashes to.
//!
//! # Removal
//!
//! An operation that is cancelled leaves its queue. Its entry remembers the queue it was
//! left on. Under that place's lock it is still linked, and then it is taken off and will not be
//! woken; or a waker has taken it out, and then its one wake-up is on its way to the lane, with
//! whatever was handed over in it, and is waited for. There is no third case, because taking out is
//! what the lock protects.

use std::sync::Arc;

use uaio_driver::{DmaBuf, IoError, Token};

use crate::barrier::RangeId;
use crate::page::Blocks;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::waited::WaitKind;

/// What a waiter is woken with.
#[derive(Debug)]
pub enum Wakeup {
    /// What was waited for has changed: look again.
    Retry,
    /// A reader's page is there: its frame, pinned in the reader's name, and which blocks are good.
    Filled(DmaBuf, Blocks),
    /// A frame, taken from the shard's pool in this waiter's name. Whoever does not need it any more
    /// puts it back, and it goes to the next.
    Frame(DmaBuf),
    /// Room for one more dirty page, taken in this waiter's name.
    Room,
    /// The page is quiet, and it is this waiter's turn to change it: nobody else begins to until it
    /// was used or given back.
    Turn,
    /// The range is this waiter's to bypass the cache in.
    Entered(RangeId),
    /// The range that was under bypass is not: nobody enters what overlaps it until all who waited for a
    /// page of it have looked, and given this back.
    Pass(RangeId),
    /// What was waited for has ended.
    Ended(Result<(), IoError>),
}

/// How a waiter is told; the wake callback of a wait queue entry.
///
/// Runs in the waker's thread, under no lock, possibly from inside a completion: it must not block
/// and not call back into the cache.
pub trait WakeTarget: Send + Sync {
    /// Tells the waiter that `token` names, exactly once for each time it enqueued.
    fn wake(&self, token: Token, wakeup: Wakeup);
}

/// What a waiter waits for: names the wake function of its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wants {
    /// Whatever is handed to it, or that what it waits for has ended.
    Anything,
    /// A page that can be read, and a pin of it.
    Read,
    /// A page that can be read, or written to while it is under writeback.
    Look,
    /// A page that nobody is busy with.
    Quiet,
    /// The same, for itself: exclusive.
    Turn,
}

impl Wants {
    fn from_u32(word: u32) -> Self {
        const ALL: [Wants; 5] =
            [Wants::Anything, Wants::Read, Wants::Look, Wants::Quiet, Wants::Turn];
        ALL[word as usize]
    }
}

/// The lock under which an entry was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The shard of this number: a page's queue, or the queue for a frame.
    Shard(u32),
    /// The dirty room of this number.
    Room(u32),
    /// A range under bypass.
    Barriers,
    /// The flushes that wait.
    Orders,
}

impl Place {
    const NOWHERE: u32 = u32::MAX;

    fn to_u32(self) -> u32 {
        match self {
            Self::Shard(number) => number << 2,
            Self::Room(number) => number << 2 | 1,
            Self::Barriers => 2,
            Self::Orders => 3,
        }
    }

    fn from_u32(word: u32) -> Option<Self> {
        match (word, word & 3) {
            (Self::NOWHERE, _) => None,
            (_, 0) => Some(Self::Shard(word >> 2)),
            (_, 1) => Some(Self::Room(word >> 2)),
            (_, 2) => Some(Self::Barriers),
            (_, _) => Some(Self::Orders),
        }
    }
}

/// The key of an entry that waits for a frame of a shard; the others there wait for the page in a slot.
pub(crate) const FOR_A_FRAME: u64 = u64::MAX;

/// Names an entry: the lane's number, and the operation's slot in the lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Link(u64);

impl Link {
    /// There is no neighbour on this side.
    const END: Self = Self(u64::MAX);
    /// The entry is on no queue.
    const UNLINKED: Self = Self(u64::MAX - 1);

    fn new(lane: u32, slot: u32) -> Self {
        Self(u64::from(lane) << 32 | u64::from(slot))
    }
}

/// The entry of one operation. But for `place` it is only touched under the lock of the queue that
/// the operation waits on; it is made of atomics because that is not always the same lock.
struct Entry {
    next: AtomicU64,
    prev: AtomicU64,
    /// What it waits for, where several things share a queue; set before it is linked.
    key: AtomicU64,
    generation: AtomicU32,
    wants: AtomicU32,
    /// Where it was left, until its wake-up has arrived. The operation's owner's alone.
    place: AtomicU32,
}

/// The entries of a lane's operations, one each, and whom to tell.
pub(crate) struct Entries {
    target: Arc<dyn WakeTarget>,
    lane: u32,
    entries: Box<[Entry]>,
}

impl Entries {
    /// What an operation's entry takes.
    pub(crate) const BYTES: usize = size_of::<Entry>();

    /// For the lane of this number, which has `operations` operations.
    pub(crate) fn new(lane: u32, operations: usize, target: Arc<dyn WakeTarget>) -> Arc<Self> {
        let entry = || Entry {
            next: AtomicU64::new(Link::END.0),
            prev: AtomicU64::new(Link::UNLINKED.0),
            key: AtomicU64::new(0),
            generation: AtomicU32::new(0),
            wants: AtomicU32::new(Wants::Anything as u32),
            place: AtomicU32::new(Place::NOWHERE),
        };
        let entries = (0..operations).map(|_| entry()).collect();
        Arc::new(Self { target, lane, entries })
    }

    /// The lane's number.
    pub(crate) fn lane(&self) -> u32 {
        self.lane
    }

    /// How many operations the lane has.
    pub(crate) fn operations(&self) -> u32 {
        self.entries.len() as u32
    }

    /// Where the operation in `slot` left its entry, if its wake-up has not arrived since.
    pub(crate) fn place(&self, slot: u32) -> Option<Place> {
        Place::from_u32(self.entries[slot as usize].place.load(Ordering::Relaxed))
    }

    /// What the operation in `slot` waits for, if it is on a queue or its wake-up is on its way. Only the
    /// operation's owner may ask: nobody else changes what this looks at.
    pub(crate) fn kind(&self, slot: u32) -> Option<WaitKind> {
        Some(match self.place(slot)? {
            Place::Shard(_) => {
                let key = self.entries[slot as usize].key.load(Ordering::Relaxed);
                if key == FOR_A_FRAME { WaitKind::Frame } else { WaitKind::Page }
            }
            Place::Room(_) => WaitKind::Room,
            Place::Barriers => WaitKind::Range,
            Place::Orders => WaitKind::Flush,
        })
    }

    /// The wake-up of the operation in `slot` has arrived, or will not come.
    pub(crate) fn arrived(&self, slot: u32) {
        self.entries[slot as usize].place.store(Place::NOWHERE, Ordering::Relaxed);
    }
}

/// An entry that is about to be left on a queue, or has been taken out to be woken.
#[derive(Clone)]
pub(crate) struct Waiter {
    entries: Arc<Entries>,
    token: Token,
    wants: Wants,
}

impl Waiter {
    /// The entry of a lane's operation.
    pub(crate) fn new(entries: &Arc<Entries>, token: Token, wants: Wants) -> Self {
        Self { entries: Arc::clone(entries), token, wants }
    }

    /// What it waits for.
    pub(crate) fn wants(&self) -> Wants {
        self.wants
    }

    /// Notes where the entry is left, for what is no [`WaitTable`].
    pub(crate) fn left_at(&self, place: Place) {
        self.entries.entries[self.token.slot as usize]
            .place
            .store(place.to_u32(), Ordering::Relaxed);
    }

    /// Whether it is the entry of this operation.
    pub(crate) fn is(&self, entries: &Arc<Entries>, slot: u32) -> bool {
        Arc::ptr_eq(&self.entries, entries) && self.token.slot == slot
    }
}

/// Waiters taken out of their queues, to be called when no lock is held. An empty one has allocated nothing;
/// a lane keeps its own from turn to turn, so that only a larger crowd than ever before allocates. Pins that
/// are dropped, and what an administrator does, take a new one, when somebody waits.
#[must_use = "waiters that are not woken hang for ever"]
#[derive(Default)]
pub(crate) struct Wakes {
    woken: Vec<(Waiter, Wakeup)>,
}

impl Wakes {
    /// What one of them takes.
    pub(crate) const BYTES: usize = size_of::<(Waiter, Wakeup)>();

    /// With room for `capacity` waiters before it allocates.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { woken: Vec::with_capacity(capacity) }
    }

    pub(crate) fn push(&mut self, waiter: Waiter, wakeup: Wakeup) {
        self.woken.push((waiter, wakeup));
    }

    /// Calls every callback. No lock may be held.
    pub(crate) fn run(&mut self) {
        for (waiter, wakeup) in self.woken.drain(..) {
            waiter.entries.target.wake(waiter.token, wakeup);
        }
    }
}

impl Drop for Wakes {
    fn drop(&mut self) {
        self.run();
    }
}

/// First in, first out; its entries are reached through a [`WaitTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WaitQueue {
    head: Link,
    tail: Link,
}

impl WaitQueue {
    pub(crate) const EMPTY: Self = Self { head: Link::END, tail: Link::END };

    pub(crate) fn is_empty(&self) -> bool {
        self.head == Link::END
    }
}

/// The way from the wait queues under one lock to the entries linked into them.
pub(crate) struct WaitTable {
    place: Place,
    /// By number.
    lanes: Vec<Option<Arc<Entries>>>,
}

impl WaitTable {
    /// For the queues under this lock.
    pub(crate) fn new(place: Place) -> Self {
        Self { place, lanes: Vec::new() }
    }

    /// The operations of a lane may wait here from now on.
    pub(crate) fn join(&mut self, entries: &Arc<Entries>) {
        let lane = entries.lane as usize;
        self.lanes.resize_with(self.lanes.len().max(lane + 1), || None);
        self.lanes[lane] = Some(Arc::clone(entries));
    }

    /// A lane has gone; none of its entries is linked any more.
    pub(crate) fn leave(&mut self, lane: u32) {
        self.lanes[lane as usize] = None;
    }

    fn lane(&self, link: Link) -> &Arc<Entries> {
        match self.lanes.get((link.0 >> 32) as usize) {
            Some(Some(entries)) => entries,
            Some(None) | None => panic!("an entry of a lane that has gone is on a queue: {link:?}"),
        }
    }

    fn entry(&self, link: Link) -> &Entry {
        &self.lane(link).entries[link.0 as u32 as usize]
    }

    fn next(&self, link: Link) -> Link {
        Link(self.entry(link).next.load(Ordering::Relaxed))
    }

    /// Leaves an entry at the end of a queue. `key` says what it waits for, where several things
    /// share the queue.
    ///
    /// # Panics
    ///
    /// When the operation is on a queue already.
    pub(crate) fn enqueue(&self, queue: &mut WaitQueue, waiter: &Waiter, key: u64) {
        let Waiter { entries, token, wants } = waiter;
        let entry = &entries.entries[token.slot as usize];
        let prev = entry.prev.load(Ordering::Relaxed);
        assert_eq!(Link(prev), Link::UNLINKED, "an operation waits on two queues");
        waiter.left_at(self.place);
        entry.generation.store(token.generation, Ordering::Relaxed);
        entry.wants.store(*wants as u32, Ordering::Relaxed);
        self.link_last(queue, entry, Link::new(entries.lane, token.slot), key);
    }

    fn link_last(&self, queue: &mut WaitQueue, entry: &Entry, link: Link, key: u64) {
        entry.key.store(key, Ordering::Relaxed);
        entry.next.store(Link::END.0, Ordering::Relaxed);
        entry.prev.store(queue.tail.0, Ordering::Relaxed);
        match queue.tail {
            Link::END => queue.head = link,
            tail => self.entry(tail).next.store(link.0, Ordering::Relaxed),
        }
        queue.tail = link;
    }

    fn unlink(&self, queue: &mut WaitQueue, link: Link) -> Waiter {
        self.take_out(queue, link);
        let entry = self.entry(link);
        let generation = entry.generation.load(Ordering::Relaxed);
        Waiter {
            entries: Arc::clone(self.lane(link)),
            token: Token { slot: link.0 as u32, generation },
            wants: Wants::from_u32(entry.wants.load(Ordering::Relaxed)),
        }
    }

    fn take_out(&self, queue: &mut WaitQueue, link: Link) {
        let entry = self.entry(link);
        let next = Link(entry.next.load(Ordering::Relaxed));
        let prev = Link(entry.prev.swap(Link::UNLINKED.0, Ordering::Relaxed));
        match prev {
            Link::END => queue.head = next,
            prev => self.entry(prev).next.store(next.0, Ordering::Relaxed),
        }
        match next {
            Link::END => queue.tail = prev,
            next => self.entry(next).prev.store(prev.0, Ordering::Relaxed),
        }
    }

    /// What the first of a queue waits for, where several things share it.
    pub(crate) fn first_key(&self, queue: &WaitQueue) -> Option<u64> {
        let first = (!queue.is_empty()).then_some(queue.head)?;
        Some(self.entry(first).key.load(Ordering::Relaxed))
    }

    /// Moves the first entry of a queue to the end of another under the same lock, where it waits for `key`.
    /// The queue is not empty.
    pub(crate) fn move_first(&self, queue: &mut WaitQueue, other: &mut WaitQueue, key: u64) {
        let link = queue.head;
        self.take_out(queue, link);
        self.link_last(other, self.entry(link), link, key);
    }

    /// Takes the first entry out, to be woken.
    pub(crate) fn pop(&self, queue: &mut WaitQueue) -> Option<Waiter> {
        if queue.is_empty() {
            return None;
        }
        Some(self.unlink(queue, queue.head))
    }

    /// Wakes those who wait for `key`, first come first, `most` of them. `answer` is their wake
    /// function: what one is woken with, or `None` when it stays. Says how many were woken.
    pub(crate) fn wake(
        &self,
        queue: &mut WaitQueue,
        key: u64,
        most: usize,
        wakes: &mut Wakes,
        mut answer: impl FnMut(Wants) -> Option<Wakeup>,
    ) -> usize {
        let mut count = 0;
        let mut at = queue.head;
        while at != Link::END && count < most {
            let next = self.next(at);
            let entry = self.entry(at);
            if entry.key.load(Ordering::Relaxed) == key
                && let Some(wakeup) = answer(Wants::from_u32(entry.wants.load(Ordering::Relaxed)))
            {
                wakes.push(self.unlink(queue, at), wakeup);
                count += 1;
            }
            at = next;
        }
        count
    }

    /// What the operation waits for, by key and wake function, when its entry is still linked; then it
    /// can be [removed](WaitTable::remove). `None` when a waker has taken it out.
    pub(crate) fn waits_for(&self, entries: &Entries, slot: u32) -> Option<(u64, Wants)> {
        let entry = &entries.entries[slot as usize];
        let linked = Link(entry.prev.load(Ordering::Relaxed)) != Link::UNLINKED;
        let wants = || Wants::from_u32(entry.wants.load(Ordering::Relaxed));
        linked.then(|| (entry.key.load(Ordering::Relaxed), wants()))
    }

    /// Takes an entry that is linked into this queue off it; it will not be woken.
    pub(crate) fn remove(&self, queue: &mut WaitQueue, entries: &Entries, slot: u32) {
        let _nobody_wakes_it = self.unlink(queue, Link::new(entries.lane, slot));
        entries.arrived(slot);
    }

    /// What those on a queue wait for, in order. For tests.
    pub(crate) fn waiting(&self, queue: &WaitQueue) -> Vec<(u64, Wants)> {
        let mut waiting = Vec::new();
        let mut at = queue.head;
        while at != Link::END {
            let entry = self.entry(at);
            let wants = Wants::from_u32(entry.wants.load(Ordering::Relaxed));
            waiting.push((entry.key.load(Ordering::Relaxed), wants));
            at = self.next(at);
        }
        waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Log(Mutex<Vec<u32>>);

    impl WakeTarget for Log {
        fn wake(&self, token: Token, _: Wakeup) {
            self.0.lock().unwrap().push(token.slot);
        }
    }

    fn scene(operations: usize) -> (Arc<Log>, Arc<Entries>, WaitTable) {
        let log = Arc::new(Log::default());
        let lane = Entries::new(3, operations, log.clone());
        let mut table = WaitTable::new(Place::Barriers);
        table.join(&lane);
        (log, lane, table)
    }

    fn waiter(lane: &Arc<Entries>, slot: u32) -> Waiter {
        wanting(lane, slot, Wants::Anything)
    }

    fn wanting(lane: &Arc<Entries>, slot: u32, wants: Wants) -> Waiter {
        Waiter::new(lane, Token { slot, generation: 0 }, wants)
    }

    fn wake_all(table: &WaitTable, queue: &mut WaitQueue, wakes: &mut Wakes) {
        while let Some(waiter) = table.pop(queue) {
            wakes.push(waiter, Wakeup::Retry);
        }
        assert!(queue.is_empty());
    }

    #[test]
    fn waiters_leave_in_the_order_they_came() {
        let (log, lane, table) = scene(40);
        let (mut left, mut right) = (WaitQueue::EMPTY, WaitQueue::EMPTY);
        for slot in 0..40 {
            let queue = if slot % 2 == 0 { &mut left } else { &mut right };
            table.enqueue(queue, &waiter(&lane, slot), 0);
        }
        let mut wakes = Wakes::default();
        wake_all(&table, &mut left, &mut wakes);
        wake_all(&table, &mut right, &mut wakes);
        assert!(log.0.lock().unwrap().is_empty(), "a callback ran before the lock was dropped");
        wakes.run();
        let order: Vec<u32> = (0..40).step_by(2).chain((1..40).step_by(2)).collect();
        assert_eq!(*log.0.lock().unwrap(), order);
    }

    #[test]
    fn a_dropped_list_of_wakes_still_wakes() {
        let (log, lane, _) = scene(2);
        let mut wakes = Wakes::default();
        wakes.push(waiter(&lane, 1), Wakeup::Retry);
        drop(wakes);
        assert_eq!(*log.0.lock().unwrap(), [1]);
    }

    #[test]
    fn only_those_who_wait_for_the_key_are_taken_out_of_a_shared_queue() {
        let (log, lane, table) = scene(6);
        let mut queue = WaitQueue::EMPTY;
        (0..6)
            .for_each(|slot| table.enqueue(&mut queue, &waiter(&lane, slot), u64::from(slot % 3)));
        let mut wakes = Wakes::default();
        let taken = table.wake(&mut queue, 1, usize::MAX, &mut wakes, |_| Some(Wakeup::Retry));
        let left: Vec<u64> = table.waiting(&queue).into_iter().map(|(key, _)| key).collect();
        assert_eq!((taken, left), (2, vec![0, 2, 0, 2]));
        wakes.run();
        assert_eq!(*log.0.lock().unwrap(), [1, 4]);
    }

    #[test]
    fn one_n_or_all_are_woken_and_who_is_not_stays_in_its_place() {
        let (log, lane, table) = scene(7);
        let mut queue = WaitQueue::EMPTY;
        for slot in 0..7 {
            let wants = if slot % 2 == 0 { Wants::Read } else { Wants::Quiet };
            table.enqueue(&mut queue, &wanting(&lane, slot, wants), 0);
        }
        let mut wake = |most, wanted| {
            let mut wakes = Wakes::default();
            let answer = |wants| (wants == wanted).then_some(Wakeup::Retry);
            table.wake(&mut queue, 0, most, &mut wakes, answer)
        };
        assert_eq!(wake(1, Wants::Quiet), 1);
        assert_eq!(wake(2, Wants::Read), 2);
        assert_eq!(wake(usize::MAX, Wants::Turn), 0, "nobody's wake function says so");
        assert_eq!(wake(usize::MAX, Wants::Read), 2);
        assert_eq!(wake(usize::MAX, Wants::Quiet), 2);
        assert_eq!(*log.0.lock().unwrap(), [1, 0, 2, 4, 6, 3, 5]);
    }

    #[test]
    fn an_entry_is_removed_from_anywhere_once_and_waits_again() {
        for gone in [0, 3, 5] {
            let (log, lane, table) = scene(6);
            let mut queue = WaitQueue::EMPTY;
            (0..6).for_each(|slot| table.enqueue(&mut queue, &waiter(&lane, slot), 9));
            assert_eq!(lane.place(gone), Some(Place::Barriers));
            assert_eq!(table.waits_for(&lane, gone), Some((9, Wants::Anything)));
            table.remove(&mut queue, &lane, gone);
            assert_eq!((table.waits_for(&lane, gone), lane.place(gone)), (None, None));
            table.enqueue(&mut queue, &waiter(&lane, gone), 9);
            wake_all(&table, &mut queue, &mut Wakes::default());
            let order: Vec<u32> = (0..6).filter(|slot| *slot != gone).chain([gone]).collect();
            assert_eq!(*log.0.lock().unwrap(), order);
        }
    }

    #[test]
    fn an_entry_that_a_waker_took_out_is_not_there_to_be_removed() {
        let (_, lane, table) = scene(1);
        let mut queue = WaitQueue::EMPTY;
        table.enqueue(&mut queue, &waiter(&lane, 0), 0);
        let woken = table.pop(&mut queue);
        assert_eq!(table.waits_for(&lane, 0), None);
        assert_eq!(lane.place(0), Some(Place::Barriers), "its wake-up has not arrived yet");
        lane.arrived(0);
        assert_eq!((lane.place(0), woken.is_some()), (None, true));
    }

    #[test]
    #[should_panic(expected = "an operation waits on two queues")]
    fn an_operation_waits_on_one_queue_at_a_time() {
        let (_, lane, table) = scene(1);
        table.enqueue(&mut WaitQueue::EMPTY.clone(), &waiter(&lane, 0), 0);
        table.enqueue(&mut WaitQueue::EMPTY.clone(), &waiter(&lane, 0), 0);
    }

    #[test]
    fn places_are_told_apart() {
        for place in
            [Place::Shard(0), Place::Shard(63), Place::Room(5), Place::Barriers, Place::Orders]
        {
            assert_eq!(Place::from_u32(place.to_u32()), Some(place));
        }
        assert_eq!(Place::from_u32(Place::NOWHERE), None);
    }
}
