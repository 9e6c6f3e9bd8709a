//! Doubly linked lists through a table: membership costs two words and no allocation.

/// The end of a list, and the mark of what is in none.
const NONE: u32 = u32::MAX;

/// The links of every member, by slot. One table serves one list that slots may be in.
#[derive(Debug)]
pub(crate) struct List {
    /// `(previous, next)` by slot.
    links: Vec<(u32, u32)>,
    head: u32,
    tail: u32,
    len: usize,
}

/// Marks a slot that is in no list; no slot is its own neighbour.
const fn outside(slot: u32) -> (u32, u32) {
    (slot, slot)
}

impl List {
    /// An empty list over `slots` slots.
    pub(crate) fn new(slots: usize) -> Self {
        let links = (0..slots as u32).map(outside).collect();
        Self { links, head: NONE, tail: NONE, len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn contains(&self, slot: u32) -> bool {
        self.links[slot as usize] != outside(slot)
    }

    pub(crate) fn head(&self) -> Option<u32> {
        (self.head != NONE).then_some(self.head)
    }

    /// The member after `slot`.
    pub(crate) fn next(&self, slot: u32) -> Option<u32> {
        let next = self.links[slot as usize].1;
        (next != NONE).then_some(next)
    }

    /// The members, first to last.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors(self.head(), |slot| self.next(*slot))
    }

    /// The members, last to first.
    pub(crate) fn iter_back(&self) -> impl Iterator<Item = u32> + '_ {
        let tail = (self.tail != NONE).then_some(self.tail);
        std::iter::successors(tail, |slot| {
            let previous = self.links[*slot as usize].0;
            (previous != NONE).then_some(previous)
        })
    }

    pub(crate) fn push_back(&mut self, slot: u32) {
        self.insert_after((self.tail != NONE).then_some(self.tail), slot);
    }

    /// Inserts `slot` after `before`, or at the front.
    ///
    /// # Panics
    ///
    /// When `slot` is in the list already.
    pub(crate) fn insert_after(&mut self, before: Option<u32>, slot: u32) {
        assert!(!self.contains(slot), "slot {slot} is in the list already");
        let previous = before.unwrap_or(NONE);
        let next = match before {
            Some(before) => self.links[before as usize].1,
            None => self.head,
        };
        self.links[slot as usize] = (previous, next);
        self.join(previous, slot);
        self.join(slot, next);
        self.len += 1;
    }

    pub(crate) fn pop_front(&mut self) -> Option<u32> {
        let head = self.head()?;
        self.remove(head);
        Some(head)
    }

    /// Takes `slot` out; nothing happens when it is not in the list.
    pub(crate) fn remove(&mut self, slot: u32) {
        if !self.contains(slot) {
            return;
        }
        let (previous, next) = self.links[slot as usize];
        self.join(previous, next);
        self.links[slot as usize] = outside(slot);
        self.len -= 1;
    }

    fn join(&mut self, left: u32, right: u32) {
        match left {
            NONE => self.head = right,
            left => self.links[left as usize].1 = right,
        }
        match right {
            NONE => self.tail = left,
            right => self.links[right as usize].0 = left,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaves_like_a_deque_with_removal() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut list, mut oracle) = (List::new(16), Vec::<u32>::new());
        for _ in 0..2000 {
            let slot = random.u32(..16);
            let at = oracle.iter().position(|other| *other == slot);
            match (random.u8(..4), at) {
                (0 | 1, None) => {
                    list.push_back(slot);
                    oracle.push(slot);
                }
                (2, None) => {
                    let before = random.usize(..=oracle.len());
                    list.insert_after(before.checked_sub(1).map(|at| oracle[at]), slot);
                    oracle.insert(before, slot);
                }
                (2, Some(at)) => {
                    list.remove(slot);
                    oracle.remove(at);
                }
                (3, _) => {
                    let first = (!oracle.is_empty()).then(|| oracle.remove(0));
                    assert_eq!(list.pop_front(), first);
                }
                _ => {}
            }
            assert_eq!(list.iter().collect::<Vec<_>>(), oracle);
            assert_eq!(list.len(), oracle.len());
        }
    }
}
