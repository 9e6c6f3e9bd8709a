//! The ring that a program may read for itself: `struct aio_ring`, where `io_context_t` points.
//!
//! It is mapped twice. The program's mapping is the program's: it may be moved, written over or unmapped. The library
//! writes through its own, and believes nothing of what is in it but the head, which it takes modulo the length.
#![expect(unsafe_code, reason = "memory that is shared with the program")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::layout::{IoEvent, RING_HEADER_BYTES, RING_MAGIC, header};

const PAGE: usize = 4096;

/// The ring of a context.
///
/// # Invariants
///
/// `ours` is a mapping of `len_bytes` bytes that stays until this is dropped; `nr` events behind the header fit into it.
#[derive(Debug)]
pub(super) struct Ring {
    ours: usize,
    user: usize,
    len_bytes: usize,
    nr: u32,
}

impl Ring {
    /// A ring with room for at least `events` events, and the one that stays empty.
    pub(super) fn new(id: u32, events: u32) -> io::Result<Self> {
        // As `aio_setup_ring`: two more, so that it can be told from an empty one, and whole pages.
        let bytes = RING_HEADER_BYTES + (events as usize + 2) * size_of::<IoEvent>();
        let len_bytes = bytes.next_multiple_of(PAGE);
        let nr = ((len_bytes - RING_HEADER_BYTES) / size_of::<IoEvent>()) as u32;
        let (ours, user) = twice(len_bytes)?;
        let ring = Self { ours, user, len_bytes, nr };
        let at = std::ptr::with_exposed_provenance_mut(ours);
        // SAFETY: the mapping that was just made. A child of fork(2) does not need it.
        unsafe { libc::madvise(at, len_bytes, libc::MADV_DONTFORK) };
        for (word, value) in [
            (header::ID, id),
            (header::NR, nr),
            (header::COMPAT_FEATURES, 1),
            (header::INCOMPAT_FEATURES, 0),
            (header::HEADER_LENGTH, RING_HEADER_BYTES as u32),
            // Last: who reads it for himself looks for this.
            (header::MAGIC, RING_MAGIC),
        ] {
            ring.word(word).store(value, Ordering::Release);
        }
        Ok(ring)
    }

    /// Where the program sees it.
    pub(super) fn user_address(&self) -> usize {
        self.user
    }

    /// Events in a lap. One fewer can be there at a time.
    pub(super) fn nr(&self) -> u32 {
        self.nr
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        let at = std::ptr::with_exposed_provenance::<AtomicU32>(self.ours).wrapping_add(at);
        // SAFETY: one of the eight words of the header, which is aligned, and lives as long as this. The program, too,
        // accesses it as an aligned word.
        unsafe { &*at }
    }

    /// How far the program, or we in its name, have read. Whatever is there, it is within the ring.
    pub(super) fn head(&self) -> u32 {
        // Acquire: pairs with the reader's store; the events before it are not read any more.
        self.word(header::HEAD).load(Ordering::Acquire) % self.nr
    }

    pub(super) fn set_head(&self, head: u32) {
        self.word(header::HEAD).store(head % self.nr, Ordering::Release);
    }

    /// Shows the events before `tail`.
    pub(super) fn set_tail(&self, tail: u32) {
        // Release: pairs with the reader's load; the events before it are there.
        self.word(header::TAIL).store(tail % self.nr, Ordering::Release);
    }

    fn event(&self, at: u32) -> *mut IoEvent {
        let offset = RING_HEADER_BYTES + (at % self.nr) as usize * size_of::<IoEvent>();
        std::ptr::with_exposed_provenance_mut(self.ours + offset)
    }

    /// Puts an event down. Nobody else writes meanwhile.
    pub(super) fn put(&self, at: u32, event: IoEvent) {
        // SAFETY: within the mapping, by the invariant, and aligned. A program that reads where nothing has been shown
        // to it reads nonsense, which is its own.
        unsafe { self.event(at).write_volatile(event) };
    }

    /// What is there.
    pub(super) fn get(&self, at: u32) -> IoEvent {
        // SAFETY: as for `put`; any bytes are an event.
        unsafe { self.event(at).read_volatile() }
    }

    /// Takes the program's mapping away, which it may have moved to `address`.
    pub(super) fn unmap_user(&self, address: usize) {
        let mut prober = crate::user::Prober::reading();
        let word =
            crate::user::read::<u64>(&mut prober, address + header::MAGIC * size_of::<u32>());
        // If it is there no more, what is there is none of ours.
        if word.is_ok_and(|word| word as u32 == RING_MAGIC) {
            unmap(address, self.len_bytes);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        unmap(self.ours, self.len_bytes);
    }
}

/// New memory, at two addresses.
fn twice(len_bytes: usize) -> io::Result<(usize, usize)> {
    let ours = map(None, len_bytes)?;
    let at = std::ptr::with_exposed_provenance_mut(ours);
    // SAFETY: shared memory that was just made: of a length of nothing mremap(2) makes a second mapping.
    let user = unsafe { libc::mremap(at, 0, len_bytes, libc::MREMAP_MAYMOVE) };
    if user != libc::MAP_FAILED {
        return Ok((ours, user.expose_provenance()));
    }
    unmap(ours, len_bytes);
    // valgrind does not know that; a file in memory counts against the size that the process's files may have.
    let memory = memfd_create("[aio]", MemfdFlags::CLOEXEC)?;
    ftruncate(&memory, len_bytes as u64)?;
    let ours = map(Some(&memory), len_bytes)?;
    let user = map(Some(&memory), len_bytes).inspect_err(|_| unmap(ours, len_bytes))?;
    Ok((ours, user))
}

fn map(memory: Option<&OwnedFd>, len_bytes: usize) -> io::Result<usize> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let (kind, fd) = memory.map_or((libc::MAP_ANONYMOUS, -1), |memory| (0, memory.as_raw_fd()));
    let flags = libc::MAP_SHARED | libc::MAP_POPULATE | kind;
    // SAFETY: new memory, wherever the kernel likes.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len_bytes, access, flags, fd, 0) };
    if at == libc::MAP_FAILED {
        Err(io::Error::last_os_error())
    } else {
        Ok(at.expose_provenance())
    }
}

fn unmap(at: usize, len_bytes: usize) {
    // SAFETY: a mapping that `map` made, which nobody uses any more.
    unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(at), len_bytes) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_is_as_a_program_expects_it_and_both_mappings_show_the_same() {
        let ring = Ring::new(7, 64).unwrap();
        let user = |word: usize| {
            let at = ring.user_address() + 4 * word;
            // SAFETY: the program's mapping, which is there.
            unsafe { std::ptr::with_exposed_provenance::<u32>(at).read_volatile() }
        };
        assert_eq!(user(header::ID), 7);
        assert_eq!(user(header::NR), ring.nr());
        assert_eq!([user(header::HEAD), user(header::TAIL)], [0, 0]);
        assert_eq!(user(header::MAGIC), 0xa10a_10a1);
        assert_eq!(user(header::COMPAT_FEATURES), 1);
        assert_eq!(user(header::INCOMPAT_FEATURES), 0);
        assert_eq!(user(header::HEADER_LENGTH), 32);
        assert!(ring.nr() >= 66);
        assert_eq!((32 + ring.nr() as usize * 32).next_multiple_of(PAGE), ring.len_bytes);
        let event = IoEvent { data: 1, obj: 2, res: 3, res2: 4 };
        ring.put(ring.nr() + 5, event);
        ring.set_tail(6);
        assert_eq!(user(header::TAIL), 6);
        assert_eq!((user(8 + 5 * 8), user(8 + 5 * 8 + 4)), (1, 3));
        assert_eq!(ring.get(5), event);
        ring.unmap_user(ring.user_address());
    }

    #[test]
    fn a_head_that_a_program_makes_up_stays_within_the_ring() {
        let ring = Ring::new(0, 4).unwrap();
        for head in [0, ring.nr() - 1, ring.nr(), u32::MAX] {
            ring.word(header::HEAD).store(head, Ordering::Relaxed);
            assert!(ring.head() < ring.nr());
        }
        ring.unmap_user(ring.user_address());
    }
}
