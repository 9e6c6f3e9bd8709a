//! What happens to accesses of registers that are not there any more.
//!
//! The kernel answers an access to a BAR whose function it has let go of, or whose memory it disabled,
//! with SIGBUS, which would end the process. The handler here puts memory of all ones where the BAR was:
//! the access goes on, and reads what a function that is gone from the bus reads as, which the driver
//! knows what to do with. Faults elsewhere go to whoever handled the signal before.
#![expect(unsafe_code, reason = "a signal handler, and mappings put over mappings")]

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many BARs can be mapped at once in a process and be seen to.
const BARS_MAX: usize = 64;

/// Start and length of a mapped BAR; a length of 0 is a free place. The length is written last and
/// cleared first, so that the handler, which may run at any time, sees a whole one.
struct Place {
    start: AtomicUsize,
    len_bytes: AtomicUsize,
}

static PLACES: [Place; BARS_MAX] =
    [const { Place { start: AtomicUsize::new(0), len_bytes: AtomicUsize::new(0) } }; BARS_MAX];

static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Sees to the BAR at `start` from now on. `false` when there are too many, or no handler can be had.
pub(super) fn watch(start: *mut u8, len_bytes: usize) -> bool {
    install();
    let claimed = PLACES.iter().find(|place| {
        // A place is claimed by its start.
        let taken = Ordering::AcqRel;
        place.start.compare_exchange(0, start.addr(), taken, Ordering::Relaxed).is_ok()
    });
    // Release: pairs with the handler's Acquire of the length.
    claimed.inspect(|place| place.len_bytes.store(len_bytes, Ordering::Release)).is_some()
}

/// Sees to the BAR at `start` no more; before it is unmapped.
pub(super) fn forget(start: *mut u8) {
    for place in &PLACES {
        if place.start.load(Ordering::Acquire) == start.addr() {
            place.len_bytes.store(0, Ordering::Release);
            place.start.store(0, Ordering::Release);
        }
    }
}

/// Puts memory of all ones where `len_bytes` from `start` on are mapped, at once: whoever reads sees
/// either what was or ones.
///
/// # Safety
///
/// The range is a whole mapping, page-aligned, that is only accessed volatile.
pub(super) unsafe fn put_ones(start: *mut u8, len_bytes: usize) -> bool {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at an address that the kernel chooses replaces nothing.
    let ones = unsafe { libc::mmap(ptr::null_mut(), len_bytes, prot, flags, -1, 0) };
    if ones == libc::MAP_FAILED {
        return false;
    }
    // SAFETY: the range is the mapping just made, which nobody else knows.
    unsafe { ptr::write_bytes(ones.cast::<u8>(), 0xff, len_bytes) };
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: the source is the mapping just made; the target is the caller's, who accesses it volatile
    // only, so that other contents are no surprise to the compiler.
    let moved =
        unsafe { libc::mremap(ones, len_bytes, len_bytes, flags, start.cast::<libc::c_void>()) };
    moved == start.cast()
}

fn install() {
    BEFORE.get_or_init(|| {
        // SAFETY: all zeroes is a sigaction: no handler, no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER | libc::SA_ONSTACK;
        // SAFETY: as above.
        let mut before: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        // SAFETY: both structures are valid; the handler only does what is listed there.
        unsafe { libc::sigaction(libc::SIGBUS, &raw const action, &raw mut before) };
        before
    });
}

/// Runs inside of whatever faulted: loads and stores of atomics, mmap and mremap, and what was there
/// before. Nothing allocates or locks (`OnceLock::get` is a load).
extern "C" fn handle(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo of this signal (SA_SIGINFO).
    let info_ref = unsafe { &*info };
    // SAFETY: SIGBUS is one of the signals that have an address.
    let address = unsafe { info_ref.si_addr() }.addr();
    for place in &PLACES {
        let len_bytes = place.len_bytes.load(Ordering::Acquire);
        let start = place.start.load(Ordering::Acquire);
        if len_bytes > 0 && (start..start + len_bytes).contains(&address) {
            let start = ptr::with_exposed_provenance_mut(start);
            // SAFETY: what is watched is a whole mapping of a BAR, accessed volatile (`Bar`), and it is
            // forgotten before it is unmapped.
            if unsafe { put_ones(start, len_bytes) } {
                return;
            }
        }
    }
    let Some(before) = BEFORE.get() else { return default() };
    match before.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => default(),
        handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
            type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);
            // SAFETY: with SA_SIGINFO that is what the word is.
            let handler: Handler = unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: without SA_SIGINFO that is what the word is.
            let handler: extern "C" fn(i32) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

/// The fault comes again, and ends the process as it would have.
fn default() {
    // SAFETY: signal(2) may be called in a handler.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

/// For a caller that wants to know why.
pub(super) fn too_many() -> io::Error {
    io::Error::other(format!("more than {BARS_MAX} drives in one process"))
}
