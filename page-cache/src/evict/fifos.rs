//! Two queues, small and main: what S3-FIFO and Lap have in common.

use super::Pages;
use super::list::{Links, List};

/// Bits of a page's mark: its uses, and whether it belongs in the main queue.
const USES: u8 = 0b11;
const MAIN: u8 = 0b100;

/// What both policies take over from S3-FIFO as it was published.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// The small queue is one part in so many of all pages.
    pub(super) small_part: usize,
    /// Uses while in the small queue from which on a page is worth keeping, at most 3. One is not enough: a
    /// request that is repeated, or split, uses a page twice within moments and then never again.
    pub(super) worth_keeping: u8,
}

impl Shape {
    pub(super) const PUBLISHED: Self = Self { small_part: 10, worth_keeping: 2 };
}

/// The small and the main queue with a mark for each page, and the walk that finds a victim.
#[derive(Debug)]
pub(super) struct Fifos {
    small: List,
    main: List,
    marks: Vec<u8>,
    shape: Shape,
}

/// What happens on the walk that a policy may want to know.
pub(super) trait Walk {
    /// A page was put at the end of the main queue, which has `len` pages now.
    fn main_pushed(&mut self, slot: u32, len: usize);

    /// A page that was put there has reached the front of the main queue, and is taken out.
    fn main_popped(&mut self, slot: u32);

    /// A page has left the main queue before it reached the front.
    fn main_left(&mut self, slot: u32);

    /// A page that came in under `key` was evicted from the small queue.
    fn small_evicted(&mut self, key: u64);
}

impl Fifos {
    pub(super) fn new(slots: usize, shape: Shape) -> Self {
        Self { small: List::EMPTY, main: List::EMPTY, marks: vec![0; slots], shape }
    }

    pub(super) fn resize(&mut self, slots: usize) {
        self.marks.resize(slots, 0);
        self.marks.shrink_to_fit();
    }

    pub(super) fn moved(&mut self, links: &mut Links, from: u32, to: u32) {
        let mark = self.marks[from as usize];
        self.marks[to as usize] = mark;
        if links.is_linked(from) {
            let list = if mark & MAIN != 0 { &mut self.main } else { &mut self.small };
            list.replace(links, from, to);
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.marks.capacity()
    }

    pub(super) fn admit(&mut self, slot: u32, to_main: bool) {
        self.marks[slot as usize] = if to_main { MAIN } else { 0 };
    }

    /// A page in use is at the most already, and a line that is not written need not be owned.
    #[inline]
    pub(super) fn hit(&mut self, slot: u32) {
        let mark = &mut self.marks[slot as usize];
        if *mark & USES < USES {
            *mark += 1;
        }
    }

    pub(super) fn link(&mut self, links: &mut Links, slot: u32, walk: &mut impl Walk) {
        if self.marks[slot as usize] & MAIN != 0 {
            self.push_main(links, slot, walk);
        } else {
            self.small.push_back(links, slot);
        }
    }

    pub(super) fn unlink(&mut self, links: &mut Links, slot: u32, walk: &mut impl Walk) {
        if self.marks[slot as usize] & MAIN != 0 {
            self.main.remove(links, slot);
            walk.main_left(slot);
        } else {
            self.small.remove(links, slot);
        }
    }

    fn push_main(&mut self, links: &mut Links, slot: u32, walk: &mut impl Walk) {
        self.main.push_back(links, slot);
        walk.main_pushed(slot, self.main.len());
    }

    /// The page that goes. Pages that are not usable, pinned for the moment, are passed over.
    pub(super) fn victim(
        &mut self,
        links: &mut Links,
        pages: &impl Pages,
        walk: &mut impl Walk,
    ) -> Option<u32> {
        let linked = self.small.len() + self.main.len();
        let small_target = (linked / self.shape.small_part).max(1);
        // Each page of the small queue is looked at once, and each of the main queue once for each
        // of its uses and once more; past that nothing that was there is usable.
        let mut small_left = self.small.len();
        let mut main_left = usize::from(USES + 1) * linked;
        loop {
            let main_done = self.main.is_empty() || main_left == 0;
            if small_left > 0 && (self.small.len() >= small_target || main_done) {
                small_left -= 1;
                let Some(slot) = self.small.pop_front(links) else { break };
                let mark = &mut self.marks[slot as usize];
                if *mark & USES >= self.shape.worth_keeping {
                    *mark = MAIN;
                    self.push_main(links, slot, walk);
                } else if pages.usable(slot) {
                    walk.small_evicted(pages.key(slot));
                    return Some(slot);
                } else {
                    self.small.push_back(links, slot);
                }
            } else if !main_done {
                main_left -= 1;
                let Some(slot) = self.main.pop_front(links) else { break };
                walk.main_popped(slot);
                let mark = &mut self.marks[slot as usize];
                if *mark & USES > 0 {
                    *mark -= 1;
                } else if pages.usable(slot) {
                    return Some(slot);
                }
                self.push_main(links, slot, walk);
            } else {
                break;
            }
        }
        // What came over from the small queue last has not been looked at.
        let slot = self.main.iter(links).find(|slot| pages.usable(*slot))?;
        self.unlink(links, slot, walk);
        Some(slot)
    }
}
