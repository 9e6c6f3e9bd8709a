//! The requests in flight on a queue, found by Command Identifier.
//!
//! A Command Identifier is 16 bits that the controller gives back. Ours holds the slot in its lower 10
//! bits and the low bits of the slot's generation above, so that a completion that comes twice, late
//! (up to 64 tenants of the slot later) or for nothing finds nothing. [`Slots`](crate::Slots) is the
//! same idea with 32 bits of generation; here only 16 bits travel, and a request may be part of a
//! command that another slot leads (discards).

use crate::request::SgList;
use crate::slots::Token;

/// Bits of a Command Identifier that name the slot.
const SLOT_BITS: u32 = 10;
const SLOT_MASK: u16 = (1 << SLOT_BITS) - 1;

/// The largest depth. One less than the slot bits could name, so that no Command Identifier is FFFFh,
/// which the error log keeps for itself (Base 2.0c figure 87).
pub(super) const DEPTH_MAX: u16 = SLOT_MASK;

/// No slot.
const NONE: u16 = u16::MAX;

#[derive(Debug)]
struct Entry {
    token: Token,
    /// The tenant's memory; `None` is a free slot.
    data: Option<SgList>,
    /// The identifier of the slot's present tenant, or of its next. That of a follower names another
    /// slot, so that no completion reaches it.
    cid: u16,
    /// In flight: the next request that the same command answers. Free: the next free slot.
    next: u16,
    /// How many deadline scans it has lived through.
    scans: u16,
}

/// The table. Allocates once, when made; the free slots are a list through it, last in, first out.
#[derive(Debug)]
pub(super) struct InFlight {
    entries: Box<[Entry]>,
    /// The first free slot; [`NONE`] when all are taken.
    free: u16,
    len: u16,
}

/// A request that has its answer.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) token: Token,
    pub(super) data: SgList,
    /// The next request that the same command answers.
    pub(super) next: Option<u16>,
}

impl InFlight {
    /// An empty table of `depth` slots, 1 to [`DEPTH_MAX`].
    pub(super) fn new(depth: u16) -> Self {
        let entry = |slot| Entry {
            token: Token::from_u64(0),
            data: None,
            cid: slot,
            next: if slot + 1 == depth { NONE } else { slot + 1 },
            scans: 0,
        };
        Self { entries: (0..depth).map(entry).collect(), free: 0, len: 0 }
    }

    pub(super) fn depth(&self) -> usize {
        self.entries.len()
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// A free slot and the identifier of its next command; `None` when all are taken. The slot must be
    /// [`put`](InFlight::put) to before the next one is asked for.
    #[inline]
    pub(super) fn free_slot(&self) -> Option<(u16, u16)> {
        // NONE is no slot of any table.
        self.entries.get(usize::from(self.free)).map(|entry| (self.free, entry.cid))
    }

    /// Puts a request with a command of its own into the slot that `free_slot` gave.
    #[inline]
    pub(super) fn put(&mut self, slot: u16, token: Token, data: SgList) {
        let entry = &mut self.entries[usize::from(slot)];
        self.free = entry.next;
        self.len += 1;
        entry.token = token;
        // There was nothing, so there is nothing to drop, which the compiler cannot know.
        std::mem::forget(entry.data.replace(data));
        entry.next = NONE;
        entry.scans = 0;
    }

    /// Puts a request into the slot that the command of `last`'s chain answers.
    pub(super) fn put_behind(&mut self, last: u16, slot: u16, token: Token) {
        self.put(slot, token, SgList::empty());
        self.entries[usize::from(slot)].cid |= SLOT_MASK;
        self.entries[usize::from(last)].next = slot;
    }

    /// The identifier of the command that leads from `slot`.
    pub(super) fn cid(&self, slot: u16) -> u16 {
        self.entries[usize::from(slot)].cid
    }

    /// Takes the request out that the command `cid` answers; `None` when no such command is in flight.
    #[inline]
    pub(super) fn complete(&mut self, cid: u16) -> Option<Answered> {
        let slot = cid & SLOT_MASK;
        let entry = self.entries.get(usize::from(slot))?;
        if entry.cid != cid {
            return None;
        }
        self.vacate(slot, cid)
    }

    /// Takes whatever request is in `slot` out.
    pub(super) fn take(&mut self, slot: u16) -> Option<Answered> {
        let cid = self.entries.get(usize::from(slot))?.cid;
        self.vacate(slot, cid & !SLOT_MASK | slot)
    }

    /// Frees `slot`, whose command was `cid`, if there is somebody in it.
    #[inline]
    fn vacate(&mut self, slot: u16, cid: u16) -> Option<Answered> {
        let entry = self.entries.get_mut(usize::from(slot))?;
        let data = entry.data.take()?;
        let next = (entry.next != NONE).then_some(entry.next);
        entry.cid = cid.wrapping_add(1 << SLOT_BITS);
        entry.next = self.free;
        self.free = slot;
        self.len -= 1;
        Some(Answered { token: entry.token, data, next })
    }

    /// Lets every request grow older by one scan; whether one has lived through more than `limit`.
    pub(super) fn scan(&mut self, limit: u16) -> bool {
        let mut late = false;
        for entry in self.entries.iter_mut().filter(|entry| entry.data.is_some()) {
            entry.scans = entry.scans.saturating_add(1);
            late |= entry.scans > limit;
        }
        late
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(word: u64) -> Token {
        Token::from_u64(word)
    }

    #[test]
    fn an_identifier_is_good_once() {
        let mut table = InFlight::new(2);
        let (slot, cid) = table.free_slot().unwrap();
        assert!(table.complete(cid).is_none(), "not yet in flight");
        table.put(slot, token(7), SgList::empty());
        assert_eq!(table.len(), 1);
        assert!(table.complete(cid ^ 1).is_none(), "another slot");
        assert!(table.complete(cid ^ 1 << SLOT_BITS).is_none(), "another generation");
        assert!(table.complete(0x3ff).is_none(), "no such slot");
        assert_eq!(table.complete(cid).unwrap().token, token(7));
        assert!(table.complete(cid).is_none(), "a second time");
        let (again, next) = table.free_slot().unwrap();
        assert_eq!(again, slot);
        assert_ne!(next, cid);
        table.put(again, token(8), SgList::empty());
        assert!(table.complete(cid).is_none(), "the last tenant's identifier");
        assert_eq!(table.complete(next).unwrap().token, token(8));
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn no_identifier_is_ffff() {
        let mut table = InFlight::new(DEPTH_MAX);
        for _ in 0..64 {
            let mut cids = Vec::new();
            while let Some((slot, cid)) = table.free_slot() {
                assert_ne!(cid, u16::MAX);
                table.put(slot, token(0), SgList::empty());
                cids.push(cid);
            }
            assert_eq!(cids.len(), usize::from(DEPTH_MAX));
            assert!(cids.into_iter().all(|cid| table.complete(cid).is_some()));
        }
    }

    #[test]
    fn followers_are_answered_by_their_leader_only() {
        let mut table = InFlight::new(3);
        let (leader, cid) = table.free_slot().unwrap();
        table.put(leader, token(1), SgList::empty());
        let (follower, follower_cid) = table.free_slot().unwrap();
        table.put_behind(leader, follower, token(2));
        assert!(table.complete(follower_cid).is_none(), "it has no command");
        let first = table.complete(cid).unwrap();
        assert_eq!((first.token, first.next), (token(1), Some(follower)));
        let second = table.take(follower).unwrap();
        assert_eq!((second.token, second.next), (token(2), None));
        assert!(table.take(follower).is_none());
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn a_request_is_late_after_more_scans_than_the_limit() {
        let mut table = InFlight::new(2);
        let (slot, _) = table.free_slot().unwrap();
        table.put(slot, token(1), SgList::empty());
        assert_eq!([(); 4].map(|()| table.scan(3)), [false, false, false, true]);
    }
}
