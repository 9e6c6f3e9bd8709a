//! How a thread is got out of a system call: by a signal to that thread, whose handler does nothing, and
//! which the call is not restarted after (`signal(7)`, EINTR).
//!
//! A signal that is sent to the *process* may be delivered to any thread that lets it through, so also
//! to one of these, though it is meant for somebody who waits for it with `sigwaitinfo(2)` or a signalfd
//! and has blocked it everywhere else. Three things keep it theirs:
//!
//! * The signal is a real-time one that nobody has a handler for, and that is not blocked where the
//!   first engine is made: who waits for one has it blocked before it starts threads.
//! * What comes and was not sent by [`Reach::interrupt`] is sent on as it was, and the thread blocks
//!   that signal from then on: so it waits for whoever waits for it, and does not come round again.
//! * That thread, and those that start later, are reached by another signal.
//!
//! A program that gives every signal back its default takes our handler away: it is installed again before
//! a signal is sent. One that has a handler of its own by then keeps it, and that thread is not reached.
//!
//! Left: a signal that was sent on is behind those of its number that were queued meanwhile.
#![expect(unsafe_code, reason = "installs a handler, and signals a thread")]

use std::collections::VecDeque;
use std::sync::OnceLock;

use parking_lot::Mutex;

/// Which signals are used.
struct Choice {
    /// What threads let through from now on; none when there is no more, and then nothing is
    /// interrupted.
    current: Option<i32>,
    /// Those that may be used when that turns out to be somebody else's.
    rest: VecDeque<i32>,
}

impl Choice {
    /// The highest first, but those that this thread blocks last.
    fn new() -> Self {
        let mut all: Vec<_> = (libc::SIGRTMIN()..=libc::SIGRTMAX()).rev().collect();
        let blocked = blocked();
        all.sort_by_key(|signal| has(&blocked, *signal));
        let mut choice = Self { current: None, rest: all.into() };
        choice.next();
        choice
    }

    fn next(&mut self) {
        self.current = std::iter::from_fn(|| self.rest.pop_front()).find(|signal| take(*signal));
    }
}

fn choice() -> &'static Mutex<Choice> {
    static CHOICE: OnceLock<Mutex<Choice>> = OnceLock::new();
    CHOICE.get_or_init(|| Mutex::new(Choice::new()))
}

/// Chooses the signal, if that has not been done: on a thread of the program's, whose mask says which
/// it waits for.
pub(super) fn prepare() {
    choice();
}

/// How a thread is reached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reach {
    thread: libc::pid_t,
    signal: Option<i32>,
}

impl Reach {
    /// This thread, which blocks every signal: from here on but one.
    pub(super) fn this_thread() -> Self {
        // SAFETY: asks who this thread is.
        let thread = unsafe { libc::gettid() };
        let mut choice = choice().lock();
        if choice.current.is_some_and(|signal| !is_ours(signal) && !take(signal)) {
            // The program has a use for it by now.
            choice.next();
        }
        let signal = choice.current;
        drop(choice);
        let_through(signal);
        Self { thread, signal }
    }

    /// Sees to it that this thread can be reached, after what may have been interrupted by somebody
    /// else's signal.
    pub(super) fn renew(&mut self) {
        let Some(signal) = self.signal.filter(|signal| has(&blocked(), *signal)) else { return };
        let mut choice = choice().lock();
        if choice.current == Some(signal) {
            choice.next();
        }
        self.signal = choice.current;
        drop(choice);
        let_through(self.signal);
    }

    /// Gets the thread, which is one of this process, out of what it waits in. One that is just about to
    /// wait is not reached: whoever wants to be sure comes again.
    pub(super) fn interrupt(self) {
        // A program may have put back what there was before us, of which it would die.
        if let Some(signal) = self.signal.filter(|signal| is_ours(*signal) || take(*signal)) {
            // SAFETY: sends a signal to a thread of this process, which has a handler for it.
            unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), self.thread, signal) };
        }
    }
}

/// Whether a signal has our handler.
fn is_ours(signal: i32) -> bool {
    handler_of(signal) == Some(handle as *const () as libc::sighandler_t)
}

/// What is done about a signal.
fn handler_of(signal: i32) -> Option<libc::sighandler_t> {
    // SAFETY: a structure of numbers and an address of a function or none, for which zero is a value.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: asks what there is; the address of a structure of ours.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut old) };
    (asked == 0).then_some(old.sa_sigaction)
}

/// Installs the handler, if nobody has one.
fn take(signal: i32) -> bool {
    if handler_of(signal) != Some(libc::SIG_DFL) {
        return false;
    }
    // SAFETY: a structure of numbers and an address of a function or none, for which zero is a value.
    let mut new: libc::sigaction = unsafe { std::mem::zeroed() };
    new.sa_sigaction = handle as *const () as libc::sighandler_t;
    // No SA_RESTART.
    new.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler does what may be done anywhere, and takes what SA_SIGINFO gives.
    (unsafe { libc::sigaction(signal, &raw const new, std::ptr::null_mut()) }) == 0
}

/// Ours has done its work when it is here. Another one is sent on, if this is a thread of the pool; any
/// other that lets it through would have died of it, and goes on.
extern "C" fn handle(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives the address of what came with the signal.
    let came = unsafe { &*info };
    let process = std::process::id();
    // SAFETY: what tgkill sends says who sent it.
    if came.si_code == libc::SI_TKILL && unsafe { came.si_pid() } == process.cast_signed() {
        return;
    }
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel gives the address of the state that this interrupted, and takes the mask from
    // there when the handler returns.
    let mask = unsafe { &mut (*context).uc_sigmask };
    let others = (1..=libc::SIGRTMAX()).filter(|other| {
        // Those before SIGRTMIN are the C library's, and the other two can be blocked by nobody.
        let free = !(32..libc::SIGRTMIN()).contains(other);
        free && ![signal, libc::SIGKILL, libc::SIGSTOP].contains(other)
    });
    if !others.into_iter().all(|other| has(mask, other)) {
        return;
    }
    // SAFETY: a set of the kernel's, which has a bit for this signal.
    unsafe { libc::sigaddset(mask, signal) };
    // SAFETY: the address of this thread's errno, which whoever was interrupted may be about to read.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let before = unsafe { *errno };
    // To ourselves whatever the code may be, and to the kernel that is this thread, by whose number it
    // finds the process: of kill(2) it takes a code from nobody else. One has just been taken out, so
    // there is room for one.
    // SAFETY: asks who this thread is.
    let thread = unsafe { libc::gettid() };
    // SAFETY: what the kernel gave, to this process.
    unsafe { libc::syscall(libc::SYS_rt_sigqueueinfo, thread, signal, info) };
    // SAFETY: as above.
    unsafe { *errno = before };
}

fn no_signals() -> libc::sigset_t {
    // SAFETY: a set of signals is numbers, for which zero is a value: none.
    unsafe { std::mem::zeroed() }
}

fn has(set: &libc::sigset_t, signal: i32) -> bool {
    // SAFETY: the address of a set.
    (unsafe { libc::sigismember(set, signal) }) == 1
}

/// What this thread blocks.
fn blocked() -> libc::sigset_t {
    let mut blocked = no_signals();
    // SAFETY: changes nothing, and says what there is in a set of ours.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut blocked) };
    blocked
}

/// Lets a signal through to this thread.
fn let_through(signal: Option<i32>) {
    let Some(signal) = signal else { return };
    let mut set = no_signals();
    // SAFETY: the address of a set of ours, and a signal that there is.
    unsafe { libc::sigaddset(&raw mut set, signal) };
    // SAFETY: of this thread alone.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) };
}
