//! Telling a program that a request is over: `struct sigevent`, checked and taken down at submission.
#![expect(unsafe_code, reason = "signals, threads, and a function of the program's by address")]

use std::ffi::{c_int, c_void};
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use uaio_core::Signal;

use super::control::SigEvent;
use crate::serve::process;

/// `SIGEV_THREAD` of `<signal.h>`.
const SIGEV_THREAD: i32 = 2;
/// How long a thread is tried to be made when the system has none to give.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(2);

/// What is done when a request is over.
#[derive(Clone, Copy, Debug)]
pub(super) enum Notice {
    /// Nothing.
    None,
    /// A signal with a value; which one, should the kernel have no room for the value.
    Signal { signal: Signal, number: i32, thread: i32 },
    /// A function is called, by a thread that is made for it.
    Call(Call),
}

/// A function of the program's with its argument and the attributes of its thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    function: extern "C-unwind" fn(usize),
    value: usize,
    /// Looked at when the thread is made, so the program keeps them until then, as with the C library's.
    attributes: *const libc::pthread_attr_t,
}

// SAFETY: addresses, which every thread of the program may use.
unsafe impl Send for Call {}
// SAFETY: as above; none of them is changed.
unsafe impl Sync for Call {}

impl Notice {
    /// What a `struct sigevent` says; EINVAL for what it cannot say.
    pub(super) fn new(event: &SigEvent) -> Result<Self, i32> {
        let signal = |thread| {
            // A block of zeros asks for signal 0, which has always been none.
            if event.signo == 0 {
                return Ok(Self::None);
            }
            let signal = if thread == 0 {
                Signal::to_process(event.signo, event.value)
            } else {
                Signal::to_thread(thread, event.signo, event.value)
            };
            let signal = signal.map_err(|_| libc::EINVAL)?;
            Ok(Self::Signal { signal, number: event.signo, thread })
        };
        match event.notify {
            libc::SIGEV_NONE => Ok(Self::None),
            libc::SIGEV_SIGNAL => signal(0),
            libc::SIGEV_THREAD_ID => match event.target[0] as i32 {
                thread if thread > 0 => signal(thread),
                _ => Err(libc::EINVAL),
            },
            SIGEV_THREAD => {
                let function = std::ptr::with_exposed_provenance::<c_void>(event.target[0]);
                if function.is_null() {
                    return Err(libc::EINVAL);
                }
                // SAFETY: not null; the program says that it is a function of this type, as sigevent(7) has it:
                // a union of an int and an address is passed as an address is.
                let function = unsafe {
                    std::mem::transmute::<*const c_void, extern "C-unwind" fn(usize)>(function)
                };
                let attributes = std::ptr::with_exposed_provenance(event.target[1]);
                Ok(Self::Call(Call { function, value: event.value, attributes }))
            }
            _ => Err(libc::EINVAL),
        }
    }

    /// Does it, from the reactor: threads are made by another, since making one takes as long as a read.
    pub(super) fn tell_from_reactor(self) {
        match self {
            Self::Call(call) => call_later(call),
            Self::None | Self::Signal { .. } => self.tell(),
        }
    }

    /// Does it here.
    pub(super) fn tell(self) {
        match self {
            Self::None => {}
            Self::Signal { signal, number, thread } => {
                if signal.send().is_err() {
                    // No room for its value (RLIMIT_SIGPENDING): better without than not at all.
                    raise(number, thread);
                }
            }
            Self::Call(call) => call.begin(),
        }
    }
}

/// A signal without a value. That it cannot be sent means that its thread is gone.
fn raise(number: i32, thread: i32) {
    let process = std::process::id().cast_signed();
    if thread == 0 {
        // SAFETY: a signal to this process.
        unsafe { libc::kill(process, number) };
    } else {
        // SAFETY: a signal to a thread of this process.
        unsafe { libc::tgkill(process, thread, number) };
    }
}

thread_local! {
    /// The reactor's: to the thread that makes threads, once there has been one to be made. It is the reactor's own,
    /// so no child of a fork finds a lock of it held.
    static CALLER: std::cell::OnceCell<Option<Sender<Call>>> = const { std::cell::OnceCell::new() };
}

fn call_later(call: Call) {
    CALLER.with(|caller| {
        let caller = caller.get_or_init(|| {
            let (sender, calls) = mpsc::channel::<Call>();
            // The reactor blocks all signals, and so does what it starts.
            let made = std::thread::Builder::new().name("uaio-notify".into()).spawn(move || {
                for call in calls {
                    call.begin();
                }
            });
            made.is_ok().then_some(sender)
        });
        match caller.as_ref().map(|sender| sender.send(call)) {
            Some(Ok(())) => {}
            // No thread to be had for it: then here.
            Some(Err(_)) | None => call.begin(),
        }
    });
}

/// What a new thread gets.
struct Begun {
    call: Call,
    detach: bool,
}

type Start = extern "C-unwind" fn(*mut c_void) -> *mut c_void;

unsafe extern "C" {
    fn pthread_create(
        thread: *mut libc::pthread_t,
        attributes: *const libc::pthread_attr_t,
        start: Start,
        argument: *mut c_void,
    ) -> c_int;
}

impl Call {
    /// Whether its thread is to be joined, which one without attributes is as well.
    fn is_joinable(&self) -> bool {
        let mut state = libc::PTHREAD_CREATE_JOINABLE;
        if !self.attributes.is_null() {
            // SAFETY: the program's attributes, which it keeps until the thread is made.
            unsafe { pthread_attr_getdetachstate(self.attributes, &raw mut state) };
        }
        state == libc::PTHREAD_CREATE_JOINABLE
    }

    /// Makes the thread.
    fn begin(self) {
        let mut waited = Duration::ZERO;
        // Asked now: once the thread is made the attributes are the program's again.
        let argument = Box::into_raw(Box::new(Begun { call: self, detach: self.is_joinable() }));
        loop {
            let mut thread = 0;
            // SAFETY: the attributes are null or the program's; the argument is given to the thread.
            let errno = unsafe {
                pthread_create(&raw mut thread, self.attributes, called, argument.cast())
            };
            if errno == 0 {
                return;
            }
            if errno != libc::EAGAIN || waited >= PATIENCE {
                process::say(format!(
                    "uaio: no thread for SIGEV_THREAD after {} ms: {}\n",
                    waited.as_millis(),
                    std::io::Error::from_raw_os_error(errno)
                ));
                // SAFETY: it is from a box, and no thread has it.
                drop(unsafe { Box::from_raw(argument) });
                return;
            }
            std::thread::sleep(PAUSE);
            waited += PAUSE;
        }
    }
}

/// What the thread does: what the program wants, with all signals open, as a new thread of the program's. The
/// function may end the thread (pthread_exit(3)), which unwinds from here, so nothing is left to be dropped.
extern "C-unwind" fn called(argument: *mut c_void) -> *mut c_void {
    // SAFETY: the box that `begin` gave away.
    let Begun { call, detach } = *unsafe { Box::from_raw(argument.cast::<Begun>()) };
    open_signals();
    if detach {
        // Nobody knows its number, so nobody could join it.
        // SAFETY: this thread.
        let this = unsafe { libc::pthread_self() };
        // SAFETY: it is joinable.
        unsafe { libc::pthread_detach(this) };
    }
    (call.function)(call.value);
    std::ptr::null_mut()
}

fn open_signals() {
    let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: a set of ours.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: the set that was made empty.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut()) };
}

unsafe extern "C" {
    fn pthread_attr_getdetachstate(
        attributes: *const libc::pthread_attr_t,
        state: *mut c_int,
    ) -> c_int;
}
