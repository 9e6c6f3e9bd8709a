//! A bounded table of things in flight, addressed by tokens that go stale.
//!
//! Whoever hands something to a device gets an answer that names it. The name is a [`Token`]: the
//! slot it lies in and the generation of that slot. A slot is used again at once, its generation
//! moves on, so an answer that comes twice, late or for something never sent finds nothing.

/// Names one thing in flight: a slot, and which of the slot's successive tenants.
///
/// A token is opaque to the device that carries it; it returns it as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token {
    /// Index of the slot, below the table's capacity.
    pub slot: u32,
    /// Generation of the slot; wraps after 2^32 tenants.
    pub generation: u32,
}

impl Token {
    /// The token as one word, for rings that carry 64 bits of user data.
    pub const fn to_u64(self) -> u64 {
        (self.generation as u64) << 32 | self.slot as u64
    }

    /// The inverse of [`Token::to_u64`]; every value is a token, though perhaps a stale one.
    pub const fn from_u64(word: u64) -> Self {
        Self { slot: word as u32, generation: (word >> 32) as u32 }
    }
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    tenant: Option<T>,
}

/// A table of at most `capacity` tenants. Allocates once, when made.
///
/// Slots are reused last in, first out, so a queue that is hardly used stays in few cache lines.
#[derive(Debug)]
pub struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T> Slots<T> {
    /// An empty table for `capacity` tenants.
    ///
    /// # Panics
    ///
    /// When `capacity` does not fit 32 bits.
    pub fn new(capacity: usize) -> Self {
        let count = u32::try_from(capacity).expect("a table of slots is indexed by 32 bits");
        Self {
            slots: (0..count).map(|_| Slot { generation: 0, tenant: None }).collect(),
            free: (0..count).rev().collect(),
        }
    }

    /// Makes room for `capacity` tenants, if there is less. Tokens stay what they are; tenants may move,
    /// and it allocates, so it is not for the data path.
    ///
    /// # Panics
    ///
    /// As [`new`](Slots::new).
    pub fn grow(&mut self, capacity: usize) {
        let count = u32::try_from(capacity).expect("a table of slots is indexed by 32 bits");
        let old = self.slots.len() as u32;
        self.slots.extend((old..count).map(|_| Slot { generation: 0, tenant: None }));
        // Behind those that were used before.
        self.free.splice(0..0, (old..count).rev());
    }

    /// Puts `tenant` into a free slot, or hands it back when there is none.
    pub fn insert(&mut self, tenant: T) -> Result<Token, T> {
        let Some(slot) = self.free.pop() else { return Err(tenant) };
        let entry = &mut self.slots[slot as usize];
        entry.tenant = Some(tenant);
        Ok(Token { slot, generation: entry.generation })
    }

    /// Takes the tenant that `token` names out; `None` when the token is stale or was never given.
    pub fn remove(&mut self, token: Token) -> Option<T> {
        let entry = self.slots.get_mut(token.slot as usize)?;
        if entry.generation != token.generation {
            return None;
        }
        let tenant = entry.tenant.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(token.slot);
        Some(tenant)
    }

    /// Drops the tenant that `token` names, where it lies; says whether there was one.
    pub fn discard(&mut self, token: Token) -> bool {
        let Some(entry) = self.slots.get_mut(token.slot as usize) else { return false };
        if entry.generation != token.generation || entry.tenant.is_none() {
            return false;
        }
        entry.tenant = None;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(token.slot);
        true
    }

    /// The tenant that `token` names, if it is still there.
    pub fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let entry = self.slots.get_mut(token.slot as usize)?;
        if entry.generation != token.generation {
            return None;
        }
        entry.tenant.as_mut()
    }

    /// The tenant that `token` names, if it is still there.
    pub fn get(&self, token: Token) -> Option<&T> {
        let entry = self.slots.get(token.slot as usize)?;
        if entry.generation != token.generation {
            return None;
        }
        entry.tenant.as_ref()
    }

    /// The token of a tenant that is as `wanted`; looks through all slots. Not for the data path.
    pub fn find(&self, mut wanted: impl FnMut(&T) -> bool) -> Option<Token> {
        (0u32..).zip(&self.slots).find_map(|(slot, entry)| {
            let tenant = entry.tenant.as_ref()?;
            wanted(tenant).then_some(Token { slot, generation: entry.generation })
        })
    }

    /// How many tenants there are.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether there is no tenant.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many more tenants fit.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// How many tenants fit in all.
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// All tenants, in slot order. For what is rare: it looks at every slot.
    pub fn tenants(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter_map(|entry| entry.tenant.as_ref())
    }

    /// Tokens of all tenants, in slot order. For teardown; not for the data path.
    pub fn tokens(&self) -> Vec<Token> {
        (0u32..)
            .zip(&self.slots)
            .filter(|(_, entry)| entry.tenant.is_some())
            .map(|(slot, entry)| Token { slot, generation: entry.generation })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_grows_keeps_its_tenants_and_their_tokens() {
        let mut slots = Slots::new(1);
        let first = slots.insert(1).unwrap();
        slots.grow(3);
        slots.grow(2);
        assert_eq!((slots.capacity(), slots.free(), slots.get(first)), (3, 2, Some(&1)));
        assert_eq!(slots.insert(2).map(|token| token.slot), Ok(1));
        assert_eq!(slots.insert(3).map(|token| token.slot), Ok(2));
        assert_eq!(slots.insert(4), Err(4));
        assert_eq!(slots.remove(first), Some(1));
        assert!(!slots.discard(first));
        let again = slots.insert(5).unwrap();
        assert!(slots.discard(again) && !slots.discard(again));
        assert_eq!((slots.get(again), slots.free()), (None, 1));
        assert!(!slots.discard(Token { slot: 3, generation: 0 }));
    }

    #[test]
    fn a_stale_token_never_reaches_the_next_tenant() {
        let mut slots = Slots::new(1);
        let first = slots.insert("first").unwrap();
        assert_eq!(slots.insert("no room"), Err("no room"));
        assert_eq!(slots.remove(first), Some("first"));
        assert_eq!(slots.remove(first), None);
        let second = slots.insert("second").unwrap();
        assert_eq!(second.slot, first.slot);
        assert_eq!(slots.get(first), None);
        assert_eq!(slots.remove(first), None);
        assert!(!slots.discard(first));
        assert_eq!(slots.get_mut(second), Some(&mut "second"));
        assert_eq!(slots.tokens(), vec![second]);
        assert_eq!(slots.find(|tenant| *tenant == "second"), Some(second));
        assert_eq!(slots.find(|tenant| *tenant == "first"), None);
        assert_eq!(slots.tenants().collect::<Vec<_>>(), [&"second"]);
    }

    #[test]
    fn a_token_survives_being_carried_as_one_word() {
        let token = Token { slot: 0xdead_beef, generation: 0x0123_4567 };
        assert_eq!(Token::from_u64(token.to_u64()), token);
    }

    #[test]
    fn a_token_out_of_range_finds_nothing() {
        let mut slots = Slots::<u8>::new(2);
        assert_eq!(slots.remove(Token { slot: 7, generation: 0 }), None);
        assert_eq!(slots.get(Token { slot: u32::MAX, generation: 0 }), None);
        // A free slot's own generation is not a tenant either.
        assert_eq!(slots.remove(Token { slot: 0, generation: 0 }), None);
        assert_eq!((slots.len(), slots.free(), slots.capacity()), (0, 2, 2));
    }
}
