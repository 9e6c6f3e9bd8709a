//! The one service of a process: when it starts, and that a child of fork(2) has none.
//!
//! A child of fork has a copy of all memory and none of the threads: locks may be held for ever by threads that are
//! not there. So one word in a page that the kernel wipes in the child (MADV_WIPEONFORK) says whether there is a
//! service, and nothing of one is touched before it was read.
#![expect(unsafe_code, reason = "a page that is wiped in a child, and signals")]

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};
use std::time::Duration;

use uaio_core::host::EngineError;

use super::reactor;
use super::service::Service;
use crate::futex;

/// What the word in the page says.
const ABSENT: u32 = 0;
const STARTING: u32 = 1;
const RUNNING: u32 = 2;
/// It could not be started, and is not tried again.
const REFUSED: u32 = 3;

static PAGE: AtomicPtr<AtomicU32> = AtomicPtr::new(std::ptr::null_mut());
static SERVICE: AtomicPtr<Service> = AtomicPtr::new(std::ptr::null_mut());
static ERROR: AtomicPtr<EngineError> = AtomicPtr::new(std::ptr::null_mut());

/// The service of this process, if it was started. Async-signal-safe.
#[inline]
pub(crate) fn running() -> Option<&'static Service> {
    // Acquire: pairs with the exchange in `page`.
    let page = PAGE.load(Ordering::Acquire);
    if page.is_null() {
        return None;
    }
    // SAFETY: once it is there it stays.
    let word = unsafe { &*page };
    if word.load(Ordering::Acquire) != RUNNING {
        return None;
    }
    let service = SERVICE.load(Ordering::Relaxed);
    // SAFETY: stored before the word that was read, and never freed.
    unsafe { service.as_ref() }
}

/// What this process has of a service.
#[derive(Debug)]
pub(crate) enum State {
    /// None yet.
    Absent,
    /// This one.
    Running(&'static Service),
    /// None, since it could not be started.
    Refused,
}

/// What this process has of a service. Async-signal-safe.
pub(crate) fn state() -> State {
    if let Some(service) = running() {
        return State::Running(service);
    }
    let page = PAGE.load(Ordering::Acquire);
    // SAFETY: once it is there it stays.
    match unsafe { page.as_ref() }.map(|word| word.load(Ordering::Acquire)) {
        Some(REFUSED) => State::Refused,
        None if !ERROR.load(Ordering::Acquire).is_null() => State::Refused,
        _ => State::Absent,
    }
}

/// The service of this process, which this starts if it must.
///
/// # Errors
///
/// Why there is none; it is said on stderr once.
pub(crate) fn service() -> Result<&'static Service, &'static EngineError> {
    if let Some(service) = running() {
        return Ok(service);
    }
    let word = match page() {
        Ok(word) => word,
        Err(error) => return Err(refuse_for_good(error)),
    };
    loop {
        match word.compare_exchange(ABSENT, STARTING, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => break,
            Err(STARTING) => drop(futex::wait(word, STARTING, Duration::from_secs(1))),
            Err(_) => {
                let error = ERROR.load(Ordering::Acquire);
                // SAFETY: it was stored before the word, and is never freed.
                let error = unsafe { error.as_ref() };
                return running().ok_or_else(|| error.expect("the word says so"));
            }
        }
    }
    let result = start();
    match &result {
        Ok(service) => {
            SERVICE.store(std::ptr::from_ref(*service).cast_mut(), Ordering::Relaxed);
            word.store(RUNNING, Ordering::Release);
        }
        Err(error) => {
            ERROR.store(std::ptr::from_ref(*error).cast_mut(), Ordering::Release);
            word.store(REFUSED, Ordering::Release);
            // Children that try again find the same, and need not say it again.
            static SAID: AtomicBool = AtomicBool::new(false);
            if !SAID.swap(true, Ordering::Relaxed) {
                say(format!("uaio: {error}; using the AIO of the C library and the kernel\n"));
            }
        }
    }
    futex::wake(word);
    result
}

fn start() -> Result<&'static Service, &'static EngineError> {
    crate::own::none();
    let _high = crate::own::High::new();
    let service = Service::new().map_err(|error| leak(EngineError::Os(error)))?;
    let service: &'static Service = Box::leak(Box::new(service));
    reactor::start(service).map_err(leak)?;
    Ok(service)
}

/// Writes a line to stderr, as far as that is possible.
pub(crate) fn say(line: String) {
    let at = line.as_ptr().expose_provenance();
    let _ = crate::real::raw(libc::SYS_write, [2, at, line.len(), 0, 0, 0]);
}

/// For the rest of the process.
fn leak(error: EngineError) -> &'static EngineError {
    Box::leak(Box::new(error))
}

/// There is no page that is wiped in a child (before Linux 4.14): neither this process nor its children get a service.
fn refuse_for_good(error: std::io::Error) -> &'static EngineError {
    let old = ERROR.load(Ordering::Acquire);
    // SAFETY: never freed.
    if let Some(error) = unsafe { old.as_ref() } {
        return error;
    }
    say(format!(
        "uaio: no memory that is wiped on fork: {error}; using the AIO of the C library and the kernel\n"
    ));
    let error = leak(EngineError::Os(error));
    ERROR.store(std::ptr::from_ref(error).cast_mut(), Ordering::Release);
    error
}

/// The page, which is made once and inherited.
fn page() -> std::io::Result<&'static AtomicU32> {
    let mut page = PAGE.load(Ordering::Acquire);
    if page.is_null() {
        if !ERROR.load(Ordering::Acquire).is_null() {
            return Err(std::io::ErrorKind::Unsupported.into());
        }
        let new = wiped_page()?;
        match PAGE.compare_exchange(page, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => page = new,
            // Another thread was faster; its page serves as well. This one is left.
            Err(theirs) => page = theirs,
        }
    }
    // SAFETY: not null, zeroed memory of ours, which stays.
    Ok(unsafe { &*page })
}

fn wiped_page() -> std::io::Result<*mut AtomicU32> {
    const LEN: usize = 4096;
    let (access, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: new memory, wherever the kernel likes.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), LEN, access, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the page that was just made.
    if unsafe { libc::madvise(at, LEN, libc::MADV_WIPEONFORK) } != 0 {
        let error = std::io::Error::last_os_error();
        // SAFETY: as above; nobody else knows it.
        unsafe { libc::munmap(at, LEN) };
        return Err(error);
    }
    Ok(at.cast())
}

/// Blocks all signals of this thread as long as it lives, so that a thread that is made meanwhile has them blocked:
/// signals are the program's, and its handlers run in its own threads.
pub(super) struct Quiet(libc::sigset_t);

impl Quiet {
    pub(super) fn new() -> Self {
        // SAFETY: sets of signals are numbers, for which zero is a value.
        let (mut all, mut old): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
        // SAFETY: the address of a set of ours.
        unsafe { libc::sigfillset(&raw mut all) };
        // SAFETY: the addresses of two sets of ours.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old) };
        Self(old)
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let null = std::ptr::null_mut();
        // SAFETY: the set that was there before.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, null) };
    }
}
