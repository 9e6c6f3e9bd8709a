//! Reads that are answered at submission: those of which the kernel has all bytes in its page cache.
//!
//! A read of cached pages takes less time than telling another thread of it. So it is tried with `RWF_NOWAIT`, which
//! blocks nowhere, as long as that succeeds. A try that fails costs a system call, and may begin to read from the disk;
//! after each the next is farther away, so that a program whose files are not cached pays for one request in a thousand.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::real;
use crate::user::Fault;

/// The longest way between two tries.
const GAP_MAX: u32 = 1024;
/// The longest read that is copied at submission: what the program would wait for as long as for two wakings.
const LEN_MAX: usize = 64 << 10;

/// Whether to try.
#[derive(Debug, Default)]
pub(super) struct Luck {
    /// Reads to come before the next try; threads that use one context may lose a count to each other.
    wait: AtomicU32,
    /// How many there were before this one.
    gap: AtomicU32,
}

impl Luck {
    /// Whether this read is to be tried.
    fn is_in(&self) -> bool {
        let wait = self.wait.load(Ordering::Relaxed);
        if wait > 0 {
            self.wait.store(wait - 1, Ordering::Relaxed);
        }
        wait == 0
    }

    /// What came of it.
    fn came(&self, hit: bool) {
        let gap = match hit {
            true => 0,
            false => (self.gap.load(Ordering::Relaxed) * 4).clamp(4, GAP_MAX),
        };
        self.gap.store(gap, Ordering::Relaxed);
        self.wait.store(gap, Ordering::Relaxed);
    }
}

/// Reads all `len` bytes at `offset` into `address` without waiting for anything, or does not; then the bytes there may
/// have been written all the same. Pipes and sockets have no offset, so it never takes anything from them.
pub(super) fn read(
    luck: &Luck,
    fd: i32,
    address: usize,
    len: usize,
    offset: u64,
) -> Result<(), Fault> {
    if len == 0 || len > LEN_MAX || !luck.is_in() {
        return Err(Fault);
    }
    let vector = [address, len];
    let at = (&raw const vector).expose_provenance();
    // The offset comes in two words, of which 64-bit kernels take the first.
    let arguments = [fd as usize, at, 1, offset as usize, 0, libc::RWF_NOWAIT as usize];
    let hit = real::raw(libc::SYS_preadv2, arguments) == Ok(len);
    luck.came(hit);
    if hit { Ok(()) } else { Err(Fault) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_read_of_what_is_cached_is_answered_and_one_that_would_be_short_is_not() {
        let path = std::env::temp_dir().join(format!("uaio-inline-{}", std::process::id()));
        std::fs::write(&path, [7; 100]).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut bytes = [0u8; 64];
        let at = (&raw mut bytes).expose_provenance();
        let luck = Luck::default();
        assert_eq!(read(&luck, file.as_raw_fd(), at, 64, 10), Ok(()));
        assert_eq!(bytes, [7; 64]);
        assert_eq!(read(&luck, file.as_raw_fd(), at, 64, 90), Err(Fault));
        assert_eq!(read(&luck, file.as_raw_fd(), at, 64, 10), Err(Fault), "no luck lately");
        let tries = (0..100).take_while(|_| read(&luck, file.as_raw_fd(), at, 64, 10).is_err());
        assert_eq!(tries.count(), 3);
        assert_eq!(read(&luck, file.as_raw_fd(), 8, 64, 10), Err(Fault), "an address that is none");
    }

    #[test]
    fn nothing_is_taken_from_a_pipe() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"bytes").unwrap();
        let mut bytes = [0u8; 5];
        let at = (&raw mut bytes).expose_provenance();
        assert_eq!(read(&Luck::default(), reader.as_raw_fd(), at, 5, 0), Err(Fault));
        std::io::Read::read_exact(&mut { reader }, &mut bytes).unwrap();
        assert_eq!(&bytes, b"bytes");
    }

    #[test]
    fn who_never_hits_tries_once_in_a_thousand() {
        let luck = Luck::default();
        let mut tries = 0;
        for _ in 0..100_000 {
            if luck.is_in() {
                tries += 1;
                luck.came(false);
            }
        }
        assert!(tries < 105, "{tries}");
        luck.came(true);
        assert!(luck.is_in());
    }
}
