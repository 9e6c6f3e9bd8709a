//! Least recently used, to compare with.

use super::list::{Links, List};
use super::{Pages, Policy};

/// Least recently used: a hit moves the page to the end of the list.
#[derive(Debug)]
pub struct Lru {
    list: List,
    linked: Vec<bool>,
}

impl Policy for Lru {
    fn new(slots: usize) -> Self {
        Self { list: List::EMPTY, linked: vec![false; slots] }
    }

    fn resize(&mut self, slots: usize) {
        self.linked.resize(slots, false);
        self.linked.shrink_to_fit();
    }

    fn moved(&mut self, links: &mut Links, from: u32, to: u32) {
        if std::mem::take(&mut self.linked[from as usize]) {
            self.list.replace(links, from, to);
            self.linked[to as usize] = true;
        }
    }

    fn admit(&mut self, _slot: u32, _key: u64) {}

    fn hit(&mut self, links: &mut Links, slot: u32) {
        if self.linked[slot as usize] {
            self.list.remove(links, slot);
            self.list.push_back(links, slot);
        }
    }

    fn link(&mut self, links: &mut Links, slot: u32) {
        self.list.push_back(links, slot);
        self.linked[slot as usize] = true;
    }

    fn unlink(&mut self, links: &mut Links, slot: u32) {
        self.list.remove(links, slot);
        self.linked[slot as usize] = false;
    }

    fn victim(&mut self, links: &mut Links, pages: &impl Pages) -> Option<u32> {
        let slot = self.list.iter(links).find(|slot| pages.usable(*slot))?;
        self.unlink(links, slot);
        Some(slot)
    }

    fn remembers(&self, _key: u64) -> bool {
        false
    }

    fn memory_bytes(&self) -> usize {
        self.linked.capacity()
    }
}
