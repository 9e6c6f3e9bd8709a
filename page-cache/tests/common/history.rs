//! The oracle: what a read, or the medium after a crash, may show.
//!
//! The device is looked at in units of 64 bytes, smaller than any block, and every write fills its
//! units with a number of its own. A value is possible if no other write both began after the value's
//! write had ended and had itself ended (or become stable) before one looks. That is linearizability
//! of each unit, and for a crash the same with *stable* in place of *ended*.
//!
//! A discard is a write of nobody knows what: of zeroes, or of anything that was ever written there, because
//! the device may do nothing, and what the cache had and the device never got is forgotten.

use std::ops::Range;

pub const UNIT: usize = 64;
const NEVER: u64 = u64::MAX;

/// The number of a write; it is also what its units hold. 0 is the device's first state.
pub type WriteId = u64;

#[derive(Clone, Debug)]
struct Write {
    bytes: Range<usize>,
    start: u64,
    end: u64,
    stable: u64,
    /// What its units hold: its number, or 0 for a write of zeroes.
    value: u64,
    /// Or anything that was ever there.
    discards: bool,
}

/// Every write so far, and which units each touched.
pub struct History {
    now: u64,
    /// By number.
    writes: Vec<Write>,
    units: Vec<Vec<WriteId>>,
    /// By unit, every value that was ever on its way there.
    values: Vec<Vec<u64>>,
    /// When what had been written to a unit was lost: nothing that had begun by then counts, unless it
    /// was stable.
    lost: Vec<Vec<u64>>,
}

impl History {
    pub fn new(size_bytes: usize) -> Self {
        let first =
            Write { bytes: 0..size_bytes, start: 0, end: 0, stable: 0, value: 0, discards: false };
        Self {
            now: 1,
            writes: vec![first],
            units: vec![vec![0]; size_bytes / UNIT],
            values: vec![vec![0]; size_bytes / UNIT],
            lost: vec![Vec::new(); size_bytes / UNIT],
        }
    }

    /// The moment; every call is later than the one before.
    pub fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// A write of these bytes begins; its number.
    pub fn begin(&mut self, offset: usize, len: usize, zeroes: bool) -> WriteId {
        self.begin_any(offset, len, zeroes, false)
    }

    /// A discard of these bytes begins; its number.
    pub fn begin_discard(&mut self, offset: usize, len: usize) -> WriteId {
        self.begin_any(offset, len, true, true)
    }

    fn begin_any(&mut self, offset: usize, len: usize, zeroes: bool, discards: bool) -> WriteId {
        let start = self.tick();
        let id = self.writes.len() as WriteId;
        let value = if zeroes { 0 } else { id };
        self.writes.push(Write {
            bytes: offset..offset + len,
            start,
            end: NEVER,
            stable: NEVER,
            value,
            discards,
        });
        for unit in offset / UNIT..(offset + len) / UNIT {
            self.units[unit].push(id);
            self.values[unit].push(value);
        }
        id
    }

    /// The bytes of a write.
    pub fn data(id: WriteId, len: usize) -> Vec<u8> {
        id.to_le_bytes().iter().copied().cycle().take(len).collect()
    }

    /// A write was acknowledged. One that failed never is: its data may show or not, at any time.
    pub fn end(&mut self, id: WriteId, stable: bool) {
        let now = self.tick();
        let write = &mut self.writes[id as usize];
        write.end = now;
        if stable {
            write.stable = now;
        }
    }

    /// A flush that began at `start` has succeeded: what had ended by then is stable.
    pub fn flushed(&mut self, start: u64) {
        let now = self.tick();
        for write in &mut self.writes {
            if write.end < start && write.stable == NEVER {
                write.stable = now;
            }
        }
    }

    /// The same of a flush of a range. A write that lies in it only partly is left out: it is stable
    /// as a whole or not.
    pub fn flushed_range(&mut self, start: u64, bytes: Range<usize>) {
        let now = self.tick();
        for write in &mut self.writes {
            let inside = bytes.start <= write.bytes.start && write.bytes.end <= bytes.end;
            if inside && write.end < start && write.stable == NEVER {
                write.stable = now;
            }
        }
    }

    /// The cache says that these bytes were lost: what has ended, and is not stable, may be gone.
    pub fn lose(&mut self, bytes: Range<usize>) {
        let now = self.tick();
        let units = &mut self.lost[bytes.start / UNIT..bytes.end.div_ceil(UNIT)];
        units.iter_mut().for_each(|lost| lost.push(now));
    }

    /// Forgets writes that can never be seen again: a later one was stable before `before`, when
    /// the oldest operation still going on began, and had begun after they ended.
    pub fn prune(&mut self, before: u64) {
        let writes = &self.writes;
        for (unit, lost) in self.units.iter_mut().zip(&self.lost) {
            if unit.len() < 4 {
                continue;
            }
            let of = |id: &WriteId| &writes[*id as usize];
            let kept = |write: &&Write| {
                lost.iter().all(|lost| write.start > *lost || write.stable < *lost)
            };
            let stable = unit.iter().map(of).filter(kept).filter(|write| write.stable < before);
            let floor = stable.map(|write| write.start).max().unwrap_or(0);
            unit.retain(|id| of(id).end >= floor);
        }
    }

    /// Checks what a read from `start` to now has given.
    pub fn check_read(&mut self, start: u64, offset: usize, bytes: &[u8]) -> Result<(), String> {
        self.tick();
        self.check(offset, bytes, |write| write.end < start)
    }

    /// Checks what the medium holds after power was lost now.
    pub fn check_crash(&self, bytes: &[u8]) -> Result<(), String> {
        self.check(0, bytes, |write| write.stable != NEVER)
    }

    fn check(
        &self,
        offset: usize,
        bytes: &[u8],
        settled: impl Fn(&Write) -> bool,
    ) -> Result<(), String> {
        for (unit, bytes) in (offset / UNIT..).zip(bytes.chunks_exact(UNIT)) {
            let mut words = bytes.chunks_exact(8).map(|word| {
                let mut value = [0; 8];
                value.copy_from_slice(word);
                u64::from_le_bytes(value)
            });
            let value = words.next().unwrap_or(0);
            if words.any(|word| word != value) {
                return Err(format!("unit {unit} is torn"));
            }
            let known = || self.units[unit].iter().map(|id| &self.writes[*id as usize]);
            let lost = &self.lost[unit];
            // One that was in progress then may have been lost in part.
            let kept =
                |write: &Write| lost.iter().all(|lost| write.start > *lost || write.stable < *lost);
            let possible = known().any(|write| {
                let overtaken =
                    |later: &Write| later.start > write.end && settled(later) && kept(later);
                let gives =
                    write.value == value || (write.discards && self.values[unit].contains(&value));
                gives && !known().any(overtaken)
            });
            if !possible {
                let known: Vec<_> = known().collect();
                return Err(format!("unit {unit} holds {value}, of {known:?}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oracle_itself_refuses_what_is_impossible() {
        let mut history = History::new(128);
        let first = history.begin(0, 128, false);
        history.end(first, false);
        let start = history.tick();
        let old = vec![0; 64];
        // A read after the end must not show what was before; a crash may.
        assert!(history.check_read(start, 0, &old).is_err());
        assert!(history.check_crash(&[0; 128]).is_ok());
        history.flushed(start);
        assert!(history.check_crash(&[0; 128]).is_err());
        let second = history.begin(64, 64, false);
        let mixed = [History::data(first, 64), History::data(second, 64)].concat();
        assert!(history.check_crash(&mixed).is_ok(), "a write in flight may have reached it");
        let start = history.tick();
        assert!(history.check_read(start, 0, &mixed).is_ok());
        assert!(history.check_read(start, 0, &History::data(first, 128)).is_ok());
        let torn = [History::data(first, 8), History::data(second, 56)].concat();
        assert!(history.check_read(start, 0, &torn).is_err());
        assert!(history.check_crash(&[History::data(99, 64), vec![0; 64]].concat()).is_err());
    }

    #[test]
    fn a_discard_may_leave_what_was_there_and_not_what_comes_from_elsewhere() {
        let mut history = History::new(64);
        let first = history.begin(0, 64, false);
        history.end(first, true);
        let second = history.begin(0, 64, false);
        history.end(second, true);
        let discard = history.begin_discard(0, 64);
        history.end(discard, true);
        let start = history.tick();
        for id in [0, first, second] {
            assert!(history.check_read(start, 0, &History::data(id, 64)).is_ok());
            assert!(history.check_crash(&History::data(id, 64)).is_ok());
        }
        assert!(history.check_read(start, 0, &History::data(discard, 64)).is_err());
        let third = history.begin(0, 64, false);
        history.end(third, true);
        let start = history.tick();
        assert!(history.check_read(start, 0, &History::data(second, 64)).is_err());
        assert!(history.check_crash(&[0; 64]).is_err());
    }
}
