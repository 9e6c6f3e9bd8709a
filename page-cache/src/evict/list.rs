//! Doubly linked lists through one table: membership costs two words and no allocation.

/// The end of a list.
const NONE: u32 = u32::MAX;

/// The links of every slot. Several lists share one table, because a slot is in one list at most:
/// what a page may be linked into follows from its state.
#[derive(Debug)]
pub struct Links {
    /// `(previous, next)` by slot.
    links: Vec<(u32, u32)>,
}

/// Marks a slot that is in no list; no slot is its own neighbour.
const fn outside(slot: u32) -> (u32, u32) {
    (slot, slot)
}

impl Links {
    /// For `slots` slots, none of them in a list.
    pub fn new(slots: usize) -> Self {
        Self { links: (0..slots as u32).map(outside).collect() }
    }

    /// For this many slots from now on; those that go are in no list.
    pub fn resize(&mut self, slots: usize) {
        let old = self.links.len() as u32;
        self.links.truncate(slots);
        self.links.extend((old..slots as u32).map(outside));
        self.links.shrink_to_fit();
    }

    /// Whether `slot` is in some list.
    pub(crate) fn is_linked(&self, slot: u32) -> bool {
        self.links[slot as usize] != outside(slot)
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> usize {
        self.links.capacity() * size_of::<(u32, u32)>()
    }
}

/// A list of slots.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    head: u32,
    tail: u32,
    len: u32,
}

impl List {
    pub(crate) const EMPTY: Self = Self { head: NONE, tail: NONE, len: 0 };

    pub(crate) fn len(&self) -> usize {
        self.len as usize
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn head(&self) -> Option<u32> {
        (self.head != NONE).then_some(self.head)
    }

    pub(crate) fn tail(&self) -> Option<u32> {
        (self.tail != NONE).then_some(self.tail)
    }

    /// The members, first to last.
    pub(crate) fn iter<'a>(&self, links: &'a Links) -> impl Iterator<Item = u32> + use<'a> {
        std::iter::successors(self.head(), |slot| {
            let next = links.links[*slot as usize].1;
            (next != NONE).then_some(next)
        })
    }

    /// The members, last to first.
    pub(crate) fn iter_back<'a>(&self, links: &'a Links) -> impl Iterator<Item = u32> + use<'a> {
        std::iter::successors(self.tail(), |slot| {
            let previous = links.links[*slot as usize].0;
            (previous != NONE).then_some(previous)
        })
    }

    pub(crate) fn push_back(&mut self, links: &mut Links, slot: u32) {
        self.insert_after(links, self.tail(), slot);
    }

    pub(crate) fn push_front(&mut self, links: &mut Links, slot: u32) {
        self.insert_after(links, None, slot);
    }

    /// Inserts `slot` after `before`, or at the front.
    ///
    /// # Panics
    ///
    /// When `slot` is in a list already.
    pub(crate) fn insert_after(&mut self, links: &mut Links, before: Option<u32>, slot: u32) {
        assert!(!links.is_linked(slot), "slot {slot} is in a list already");
        let previous = before.unwrap_or(NONE);
        let next = match before {
            Some(before) => links.links[before as usize].1,
            None => self.head,
        };
        links.links[slot as usize] = (previous, next);
        self.join(links, previous, slot);
        self.join(links, slot, next);
        self.len += 1;
    }

    pub(crate) fn pop_front(&mut self, links: &mut Links) -> Option<u32> {
        let head = self.head()?;
        self.remove(links, head);
        Some(head)
    }

    /// Takes `slot` out, which is in this list.
    ///
    /// # Panics
    ///
    /// When it is in none.
    pub(crate) fn remove(&mut self, links: &mut Links, slot: u32) {
        assert!(links.is_linked(slot), "slot {slot} is in no list");
        let (previous, next) = links.links[slot as usize];
        self.join(links, previous, next);
        links.links[slot as usize] = outside(slot);
        self.len -= 1;
    }

    /// Puts `to`, which is in no list, in the place of `from`, which is in this one.
    ///
    /// # Panics
    ///
    /// When they are not so.
    pub(crate) fn replace(&mut self, links: &mut Links, from: u32, to: u32) {
        let before = links.links[from as usize].0;
        self.remove(links, from);
        self.insert_after(links, (before != NONE).then_some(before), to);
    }

    fn join(&mut self, links: &mut Links, left: u32, right: u32) {
        match left {
            NONE => self.head = right,
            left => links.links[left as usize].1 = right,
        }
        match right {
            NONE => self.tail = left,
            right => links.links[right as usize].0 = left,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_lists_of_one_table_behave_like_deques_with_removal() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let mut links = Links::new(16);
        let (mut lists, mut oracles) = ([List::EMPTY; 2], [const { Vec::<u32>::new() }; 2]);
        for _ in 0..4000 {
            let slot = random.u32(..16);
            let which = random.usize(..2);
            let (list, oracle) = (&mut lists[which], &mut oracles[which]);
            let at = oracle.iter().position(|other| *other == slot);
            match (random.u8(..6), at, links.is_linked(slot)) {
                (5, Some(at), true) => {
                    let other = random.u32(..16);
                    if !links.is_linked(other) {
                        list.replace(&mut links, slot, other);
                        oracle[at] = other;
                    }
                }
                (0 | 1, None, false) => {
                    list.push_back(&mut links, slot);
                    oracle.push(slot);
                }
                (2, None, false) => {
                    let before = random.usize(..=oracle.len());
                    let after = before.checked_sub(1).map(|at| oracle[at]);
                    list.insert_after(&mut links, after, slot);
                    oracle.insert(before, slot);
                }
                (2 | 4, Some(at), true) => {
                    list.remove(&mut links, slot);
                    oracle.remove(at);
                }
                (3, _, _) => {
                    let first = (!oracle.is_empty()).then(|| oracle.remove(0));
                    assert_eq!(list.pop_front(&mut links), first);
                }
                _ => {}
            }
            for (list, oracle) in lists.iter().zip(&oracles) {
                assert_eq!(list.iter(&links).collect::<Vec<_>>(), *oracle);
                assert!(list.iter_back(&links).eq(oracle.iter().rev().copied()));
                assert_eq!(list.len(), oracle.len());
            }
        }
    }
}
