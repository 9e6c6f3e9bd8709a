//! How a thread is got out of a system call: by a signal whose handler does nothing, and which is not
//! restarted after (`signal(7)`, EINTR).
#![expect(unsafe_code, reason = "installs a handler, and signals a thread")]

use std::sync::OnceLock;

extern "C" fn nothing(_: i32) {}

/// The signal: the highest real-time one that nobody has a handler for when it is needed first, for the
/// rest of the process. `None` when all are taken; then nothing is interrupted.
pub(super) fn signal() -> Option<i32> {
    static SIGNAL: OnceLock<Option<i32>> = OnceLock::new();
    *SIGNAL.get_or_init(|| (libc::SIGRTMIN()..=libc::SIGRTMAX()).rev().find(|signal| take(*signal)))
}

/// Installs the handler, if nobody has one.
fn take(signal: i32) -> bool {
    // SAFETY: a structure of numbers and an address of a function or none, for which zero is a value.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: asks what there is; the address of a structure of ours.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut old) };
    if asked != 0 || old.sa_sigaction != libc::SIG_DFL {
        return false;
    }
    // No flags: no SA_RESTART.
    // SAFETY: as above.
    let mut new: libc::sigaction = unsafe { std::mem::zeroed() };
    new.sa_sigaction = nothing as *const () as libc::sighandler_t;
    // SAFETY: the handler does nothing, so it may run anywhere.
    (unsafe { libc::sigaction(signal, &raw const new, std::ptr::null_mut()) }) == 0
}

/// Lets the signal through to this thread.
pub(super) fn let_through() {
    let Some(signal) = signal() else { return };
    // SAFETY: a set of signals is numbers, for which zero is a value.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the address of a set of ours, and a signal that there is.
    unsafe { libc::sigaddset(&raw mut set, signal) };
    // SAFETY: of this thread alone.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) };
}

/// The number of this thread.
pub(super) fn this_thread() -> libc::pid_t {
    // SAFETY: asks who this thread is.
    unsafe { libc::gettid() }
}

/// Gets a thread of this process out of what it waits in. One that is just about to wait is not reached:
/// whoever wants to be sure comes again.
pub(super) fn interrupt(thread: libc::pid_t) {
    if let Some(signal) = signal() {
        // SAFETY: sends a signal to a thread of this process, which has a handler for it.
        let _ = unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), thread, signal) };
    }
}
