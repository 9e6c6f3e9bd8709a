//! The child of a fork has no context: not the threads that serve one, and perhaps not the locks, which
//! another thread may have held. So this is asked before anything is locked.
#![expect(unsafe_code, reason = "registers what the C library is to call in a child")]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::Errno;

static IS_CHILD: AtomicBool = AtomicBool::new(false);

extern "C" fn in_child() {
    IS_CHILD.store(true, Ordering::Relaxed);
}

/// Sees to it that the child of a fork knows what it is. Whoever makes a process without the C library's
/// `fork`, and goes on in it, is not seen.
pub(crate) fn watch() -> Result<(), Errno> {
    check()?;
    static WATCHED: OnceLock<i32> = OnceLock::new();
    let watched = WATCHED.get_or_init(|| {
        // SAFETY: the function only stores a word, which a child may do, and is there for as long as
        // the library is: the C library forgets it when that is unloaded.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) }
    });
    if *watched == 0 { Ok(()) } else { Err(Errno(*watched)) }
}

/// EINVAL in the child of a fork.
pub(crate) fn check() -> Result<(), Errno> {
    if IS_CHILD.load(Ordering::Relaxed) { Err(Errno::INVAL) } else { Ok(()) }
}
