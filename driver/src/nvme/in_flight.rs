//! The requests in flight on a queue, found by Command Identifier.
//!
//! A Command Identifier is 16 bits that the controller gives back. Ours holds the slot in its lower 10
//! bits and the low bits of the slot's generation above, so that a completion that comes twice, late
//! (up to 64 tenants of the slot later) or for nothing finds nothing. [`Slots`](crate::Slots) is the
//! same idea with 32 bits of generation; here only 16 bits travel, and a request may be part of a
//! command that another slot leads (discards).
//!
//! One number of a slot, its key, says which command is in it and that it is an ordinary one: so one
//! comparison finds what nearly every completion is for. A slot is one cache line.
//!
//! # Age
//!
//! Deadlines cost the data path no clock: each request is stamped with the table's tick, which the
//! queue moves on when it looks at the clock ([`deadlines`](super::deadlines)). How many ticks ago it
//! came is its age, and [`commands`](InFlight::commands) tells it of each.

use crate::request::{Completion, SgList};
use crate::slots::Token;

use super::record::{Record, Wish};

/// Bits of a Command Identifier that name the slot.
const SLOT_BITS: u32 = 10;
const SLOT_MASK: u16 = (1 << SLOT_BITS) - 1;

/// The largest depth. One less than the slot bits could name, so that no Command Identifier is FFFFh,
/// which the error log keeps for itself (Base 2.0c figure 87).
pub(super) const DEPTH_MAX: u16 = SLOT_MASK;

/// No slot.
const NONE: u16 = u16::MAX;

/// Beside the identifier in a slot's key: the command answers more than this request.
const LEADS: u32 = 1 << 16;
/// Beside the identifier in a slot's key: the request has no command of its own.
const FOLLOWS: u32 = 1 << 17;
/// Beside the identifier in a slot's key: nobody is in it; the identifier is that of the next tenant.
const FREE: u32 = 1 << 18;
/// Beside the identifier in a slot's key: an Abort for the command is under way. The slot is not given
/// to another before that is answered, or it could hit the next command of the same identifier.
const ASKED: u32 = 1 << 19;
/// Beside the identifier in a slot's key: the command has completed and its Abort has not.
const SETTLED: u32 = 1 << 20;
/// Beside the identifier in a slot's key: the command is over, and the request waits in its slot to be
/// sent again.
const PARKED: u32 = 1 << 21;

#[derive(Debug)]
#[repr(align(64))]
struct Entry {
    token: Token,
    /// The tenant's memory; empty when there is no tenant.
    data: SgList,
    /// What the tenant asks; stays when it goes, until the next one comes.
    record: Record,
    /// The identifier of the slot's tenant, and in the upper half what is special about it.
    key: u32,
    /// In flight: the next request that the same command answers. Free: the next free slot. In the
    /// upper half the tick at which the tenant came: one store sets both.
    next_and_tick: u32,
}

const _: () = assert!(size_of::<Entry>() == 64, "a slot is one cache line");

impl Entry {
    #[inline]
    fn cid(&self) -> u16 {
        self.key as u16
    }

    #[inline]
    fn next(&self) -> u16 {
        self.next_and_tick as u16
    }

    /// Takes the tenant out, as it is answered when its command is good. The slot is `next` of the free
    /// ones afterwards.
    #[inline]
    fn vacate(&mut self, next: u16) -> Completion {
        self.key = u32::from(self.cid().wrapping_add(1 << SLOT_BITS)) | FREE;
        self.next_and_tick = next.into();
        let data = std::mem::replace(&mut self.data, SgList::empty());
        Completion { token: self.token, result: Ok(()), data }
    }
}

/// The table. Allocates once, when made; the free slots are a list through it, last in, first out.
#[derive(Debug)]
pub(super) struct InFlight {
    entries: Box<[Entry]>,
    /// The first free slot; [`NONE`] when all are taken.
    free: u16,
    len: u16,
    parked: u16,
    /// The tick, where a slot has it, and no next slot.
    stamp: u32,
}

/// A slot that is free, to be filled.
#[derive(Debug)]
pub(super) struct Vacant<'a> {
    entry: &'a mut Entry,
    slot: u16,
    free: &'a mut u16,
    len: &'a mut u16,
    stamp: u32,
}

impl Vacant<'_> {
    /// The identifier of the command that will be in it.
    #[inline]
    pub(super) fn cid(&self) -> u16 {
        self.entry.cid()
    }

    #[inline]
    pub(super) fn slot(&self) -> u16 {
        self.slot
    }

    /// Puts a request with a command of its own into it.
    #[inline]
    pub(super) fn fill(self, token: Token, data: SgList, record: Record) {
        let Self { entry, free, len, stamp, .. } = self;
        *free = entry.next();
        *len += 1;
        entry.key ^= FREE;
        entry.token = token;
        // It was empty, so there is nothing to drop, which the compiler cannot know.
        std::mem::forget(std::mem::replace(&mut entry.data, data));
        entry.record = record;
        entry.next_and_tick = stamp;
    }
}

/// What the identifier of a completion names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// Nothing that could complete.
    Nothing,
    /// The command of this slot, to be [taken](InFlight::take).
    InFlight(u16),
    /// The command of this slot, which stays until its Abort is over.
    Asked(u16),
}

/// A request that has its answer, or will get one.
#[derive(Debug)]
pub(super) struct Answered {
    /// As it is when the command was good.
    pub(super) completion: Completion,
    /// The next request that the same command answers.
    pub(super) next: Option<u16>,
}

/// A command in flight, as deadlines and cancellation see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Command {
    /// Its identifier, for Abort. No other command in flight on the queue has it.
    pub(super) cid: u16,
    /// The request that leads it; others may share it.
    pub(super) token: Token,
    /// How many ticks ago it was submitted.
    pub(super) age: u32,
}

impl InFlight {
    /// An empty table of `depth` slots, 1 to [`DEPTH_MAX`].
    pub(super) fn new(depth: u16) -> Self {
        let entry = |slot| Entry {
            token: Token::from_u64(0),
            data: SgList::empty(),
            record: Record::NONE,
            key: u32::from(slot) | FREE,
            next_and_tick: if slot + 1 == depth { NONE.into() } else { u32::from(slot) + 1 },
        };
        let entries = (0..depth).map(entry).collect();
        Self { entries, free: 0, len: 0, parked: 0, stamp: NONE.into() }
    }

    pub(super) fn depth(&self) -> usize {
        self.entries.len()
    }

    /// How many requests have a command.
    #[inline]
    pub(super) fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// How many requests are parked.
    #[inline]
    pub(super) fn parked(&self) -> usize {
        usize::from(self.parked)
    }

    /// A free slot; `None` when all are taken.
    #[inline]
    pub(super) fn vacant(&mut self) -> Option<Vacant<'_>> {
        let Self { entries, free, len, stamp, .. } = self;
        let slot = *free;
        // NONE is no slot of any table.
        let entry = entries.get_mut(usize::from(slot))?;
        Some(Vacant { entry, slot, free, len, stamp: *stamp })
    }

    /// Puts a request into a free slot, to be answered by the command of `last`'s chain: the slot.
    pub(super) fn follow(&mut self, last: u16, token: Token, record: Record) -> Option<u16> {
        let vacant = self.vacant()?;
        let slot = vacant.slot();
        vacant.fill(token, SgList::empty(), record);
        self.entries[usize::from(slot)].key |= FOLLOWS;
        let last = &mut self.entries[usize::from(last)];
        last.next_and_tick = last.next_and_tick & !u32::from(u16::MAX) | u32::from(slot);
        last.key |= LEADS;
        Some(slot)
    }

    /// The identifier of the command that leads from `slot`.
    pub(super) fn cid(&self, slot: u16) -> u16 {
        self.entries[usize::from(slot)].cid()
    }

    /// Takes the one request out that the command `cid` answers and gives it to `take`. `false`, and
    /// nothing happens, when no such command is in flight, or it answers more than one.
    // Not an `Option` of it: a completion that is only moved once is not taken apart on the way.
    #[inline]
    pub(super) fn complete(&mut self, cid: u16, take: impl FnOnce(Completion)) -> bool {
        let slot = cid & SLOT_MASK;
        let Some(entry) = self.entries.get_mut(usize::from(slot)) else { return false };
        if entry.key != u32::from(cid) {
            return false;
        }
        take(entry.vacate(self.free));
        self.free = slot;
        self.len -= 1;
        true
    }

    /// What `cid` names, of whatever kind the command is.
    pub(super) fn named(&mut self, cid: u16) -> Named {
        let slot = cid & SLOT_MASK;
        match self.entries.get_mut(usize::from(slot)) {
            Some(entry) if entry.key & !LEADS == u32::from(cid) => Named::InFlight(slot),
            Some(entry) if entry.key & !LEADS == u32::from(cid) | ASKED => {
                entry.key |= SETTLED;
                Named::Asked(slot)
            }
            Some(_) | None => Named::Nothing,
        }
    }

    /// The command in `slot` fails, whatever the controller says, and goes the longer way.
    pub(super) fn doom(&mut self, slot: u16) {
        let entry = &mut self.entries[usize::from(slot)];
        entry.key |= LEADS;
        entry.record.wish = Wish::CacheLost;
    }

    /// An Abort for the command in `slot` is under way.
    pub(super) fn set_asked(&mut self, slot: u16) {
        self.entries[usize::from(slot)].key |= ASKED;
    }

    /// The Abort for the command in `slot` is over, as the command may be.
    pub(super) fn clear_asked(&mut self, slot: u16) {
        self.entries[usize::from(slot)].key &= !(ASKED | SETTLED);
    }

    /// Takes whatever request is in `slot` out.
    pub(super) fn take(&mut self, slot: u16) -> Option<Answered> {
        let entry = self.entries.get_mut(usize::from(slot))?;
        if entry.key & FREE != 0 {
            return None;
        }
        let next = Some(entry.next()).filter(|&next| next != NONE);
        let count = if entry.key & PARKED == 0 { &mut self.len } else { &mut self.parked };
        *count -= 1;
        let completion = entry.vacate(self.free);
        self.free = slot;
        Some(Answered { completion, next })
    }

    /// The command in `slot` is over, and its request stays there, as old as it is, until it is taken
    /// out to be sent again: the next request that the same command answers.
    pub(super) fn park(&mut self, slot: u16) -> Option<u16> {
        let entry = &mut self.entries[usize::from(slot)];
        debug_assert_eq!(entry.key & (FREE | PARKED), 0, "slot {slot}");
        let next = Some(entry.next()).filter(|&next| next != NONE);
        entry.key = u32::from(entry.cid()) | PARKED;
        entry.next_and_tick |= u32::from(NONE);
        self.len -= 1;
        self.parked += 1;
        next
    }

    /// The slot of the parked request that has the token. Looks through all slots.
    pub(super) fn find_parked(&self, token: Token) -> Option<u16> {
        let is = |entry: &Entry| entry.key & PARKED != 0 && entry.token == token;
        self.entries.iter().position(is).map(|slot| slot as u16)
    }

    /// How many ticks ago the request in `slot` came.
    pub(super) fn age(&self, slot: u16) -> u32 {
        let came = (self.entries[usize::from(slot)].next_and_tick >> 16) as u16;
        self.tick().wrapping_sub(came).into()
    }

    /// Makes the request in `slot` as old as that.
    pub(super) fn set_age(&mut self, slot: u16, age: u32) {
        let came = self.tick().wrapping_sub(age as u16);
        let entry = &mut self.entries[usize::from(slot)];
        entry.next_and_tick = u32::from(came) << 16 | u32::from(entry.next());
    }

    /// The request in flight that has the token: the identifier of its command, or `None` inside when
    /// its command is not its alone. Looks through all slots.
    pub(super) fn find(&self, token: Token) -> Option<Option<u16>> {
        let is = |entry: &&Entry| entry.key & (FREE | PARKED) == 0 && entry.token == token;
        let entry = self.entries.iter().find(is)?;
        Some((entry.key & (LEADS | FOLLOWS | SETTLED) == 0).then(|| entry.cid()))
    }

    /// Every command in flight, in slot order, and what it asks. For deadlines and cancellation, not for
    /// the data path.
    pub(super) fn commands(&mut self) -> impl Iterator<Item = (Command, &mut Record)> + '_ {
        let tick = self.tick();
        let others = FOLLOWS | FREE | SETTLED | PARKED;
        self.entries.iter_mut().filter(move |entry| entry.key & others == 0).map(move |entry| {
            let age = tick.wrapping_sub((entry.next_and_tick >> 16) as u16).into();
            (Command { cid: entry.cid(), token: entry.token, age }, &mut entry.record)
        })
    }

    /// What the request in `slot` asks, or the last one there asked.
    pub(super) fn record(&self, slot: u16) -> Record {
        self.entries[usize::from(slot)].record
    }

    /// The same, to be changed.
    pub(super) fn record_mut(&mut self, slot: u16) -> &mut Record {
        &mut self.entries[usize::from(slot)].record
    }

    /// Moves the tick on: every request in flight is one older.
    pub(super) fn grow_older(&mut self) {
        self.stamp = self.stamp.wrapping_add(1 << 16);
    }

    fn tick(&self) -> u16 {
        (self.stamp >> 16) as u16
    }
}

/// The slot that an identifier names.
pub(super) fn slot_of(cid: u16) -> u16 {
    cid & SLOT_MASK
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(word: u64) -> Token {
        Token::from_u64(word)
    }

    fn complete(table: &mut InFlight, cid: u16) -> Option<Completion> {
        let mut taken = None;
        let is_taken = table.complete(cid, |completion| taken = Some(completion));
        assert_eq!(is_taken, taken.is_some());
        taken
    }

    fn complete_any(table: &mut InFlight, cid: u16) -> Option<Answered> {
        match table.named(cid) {
            Named::InFlight(slot) => table.take(slot),
            Named::Asked(_) | Named::Nothing => None,
        }
    }

    #[test]
    fn a_slot_is_kept_until_the_abort_of_its_command_is_over() {
        let mut table = InFlight::new(1);
        let (slot, cid) = put(&mut table, 1).unwrap();
        table.set_asked(slot);
        assert!(complete(&mut table, cid).is_none(), "not on the short way");
        assert_eq!(table.named(cid), Named::Asked(slot));
        assert_eq!(table.named(cid), Named::Nothing, "a second time");
        assert_eq!((table.find(token(1)), table.commands().count()), (Some(None), 0));
        assert!(table.vacant().is_none());
        table.clear_asked(slot);
        assert_eq!(table.take(slot).unwrap().completion.token, token(1));
        // An Abort that is over before its command leaves an ordinary one.
        let (slot, cid) = put(&mut table, 2).unwrap();
        table.set_asked(slot);
        table.clear_asked(slot);
        assert_eq!(complete(&mut table, cid).unwrap().token, token(2));
    }

    /// Fills a free slot: the slot and the identifier.
    fn put(table: &mut InFlight, word: u64) -> Option<(u16, u16)> {
        let vacant = table.vacant()?;
        let names = (vacant.slot(), vacant.cid());
        vacant.fill(token(word), SgList::empty(), Record::NONE);
        Some(names)
    }

    #[test]
    fn an_identifier_is_good_once() {
        let mut table = InFlight::new(2);
        let cid = table.vacant().unwrap().cid();
        assert!(complete(&mut table, cid).is_none(), "not yet in flight");
        let (slot, _) = put(&mut table, 7).unwrap();
        assert_eq!(table.len(), 1);
        for complete in [
            complete as fn(&mut InFlight, u16) -> Option<Completion>,
            |table: &mut InFlight, cid: u16| {
                complete_any(table, cid).map(|answered| answered.completion)
            },
        ] {
            assert!(complete(&mut table, cid ^ 1).is_none(), "another slot");
            assert!(complete(&mut table, cid ^ 1 << SLOT_BITS).is_none(), "another generation");
            assert!(complete(&mut table, 0x3ff).is_none(), "no such slot");
        }
        assert_eq!(complete(&mut table, cid).unwrap().token, token(7));
        assert!(complete(&mut table, cid).is_none(), "a second time");
        assert!(complete_any(&mut table, cid).is_none(), "a second time");
        let (again, next) = put(&mut table, 8).unwrap();
        assert_eq!(again, slot);
        assert_ne!(next, cid);
        assert!(complete(&mut table, cid).is_none(), "the last tenant's identifier");
        assert_eq!(complete_any(&mut table, next).unwrap().completion.token, token(8));
        let later = next.wrapping_add(1 << SLOT_BITS);
        assert!(complete(&mut table, later).is_none(), "the next one's");
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn no_identifier_is_ffff() {
        let mut table = InFlight::new(DEPTH_MAX);
        for _ in 0..65 {
            let mut cids = Vec::new();
            while let Some((_, cid)) = put(&mut table, 0) {
                assert_ne!(cid, u16::MAX);
                cids.push(cid);
            }
            assert_eq!(cids.len(), usize::from(DEPTH_MAX));
            assert!(cids.into_iter().all(|cid| complete(&mut table, cid).is_some()));
        }
    }

    #[test]
    fn followers_are_answered_by_their_leader_only() {
        let mut table = InFlight::new(3);
        let (leader, cid) = put(&mut table, 1).unwrap();
        let follower = table.follow(leader, token(2), Record::NONE).unwrap();
        let follower_cid = table.cid(follower);
        assert!(complete(&mut table, follower_cid).is_none(), "it has no command");
        assert!(complete_any(&mut table, follower_cid).is_none(), "it has no command");
        assert!(complete(&mut table, cid).is_none(), "it answers more than one");
        let first = complete_any(&mut table, cid).unwrap();
        assert_eq!((first.completion.token, first.next), (token(1), Some(follower)));
        let second = table.take(follower).unwrap();
        assert_eq!((second.completion.token, second.next), (token(2), None));
        assert!(table.take(follower).is_none());
        assert_eq!(table.len(), 0);
        let (slot, cid) = put(&mut table, 3).unwrap();
        assert_eq!(slot, follower);
        assert!(complete(&mut table, cid).is_some(), "an ordinary command again");
    }

    #[test]
    fn the_age_of_a_command_is_the_ticks_since_it_came() {
        let mut table = InFlight::new(4);
        table.stamp |= 0xfffe_0000;
        let (leader, first) = put(&mut table, 1).unwrap();
        table.grow_older();
        table.follow(leader, token(2), Record::NONE).unwrap();
        table.grow_older();
        let (_, third) = put(&mut table, 3).unwrap();
        table.grow_older();
        let found: Vec<_> = table.commands().map(|(command, _)| command).collect();
        let want = [
            Command { cid: first, token: token(1), age: 3 },
            Command { cid: third, token: token(3), age: 1 },
        ];
        assert_eq!(found, want);
        complete(&mut table, third);
        assert_eq!(table.commands().count(), 1);
    }
}
