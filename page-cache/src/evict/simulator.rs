//! A policy on a stream of page numbers, without a cache: for comparing policies.

use hashbrown::HashMap;

use super::{Links, Pages, Policy};

/// Pages that are all there is: a number each, never dirty, never pinned.
struct Held(Vec<u64>);

impl Pages for Held {
    fn usable(&self, _slot: u32) -> bool {
        true
    }

    fn key(&self, slot: u32) -> u64 {
        self.0[slot as usize]
    }
}

/// Runs the same policy code as the cache does.
pub struct Simulator<P> {
    policy: P,
    links: Links,
    held: Held,
    slots: HashMap<u64, u32>,
    vacant: Vec<u32>,
}

impl<P: Policy> Simulator<P> {
    /// A cache of `pages` pages.
    pub fn new(pages: usize) -> Self {
        Self::of(P::new(pages), pages)
    }

    /// The same with a policy that was made for so many.
    pub fn of(policy: P, pages: usize) -> Self {
        Self {
            policy,
            links: Links::new(pages),
            held: Held(vec![0; pages]),
            slots: HashMap::with_capacity(pages),
            vacant: (0..pages as u32).rev().collect(),
        }
    }

    /// A page is used; says whether it was there. It is afterwards.
    pub fn reference(&mut self, key: u64) -> bool {
        if let Some(slot) = self.slots.get(&key) {
            self.policy.hit(&mut self.links, *slot);
            return true;
        }
        let slot = match self.vacant.pop() {
            Some(slot) => slot,
            None => {
                let victim = self.policy.victim(&mut self.links, &self.held);
                let Some(slot) = victim else { return false };
                self.slots.remove(&self.held.0[slot as usize]);
                slot
            }
        };
        self.held.0[slot as usize] = key;
        self.slots.insert(key, slot);
        self.policy.admit(slot, key);
        self.policy.link(&mut self.links, slot);
        false
    }

    /// The part of `keys` that were not there.
    pub fn miss_ratio(mut self, keys: impl IntoIterator<Item = u64>) -> f64 {
        let (mut misses, mut total) = (0u64, 0u64);
        for key in keys {
            misses += u64::from(!self.reference(key));
            total += 1;
        }
        misses as f64 / total.max(1) as f64
    }
}
