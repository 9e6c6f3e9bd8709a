//! Completion signals, in a program of one test: handlers are the process's.
#![expect(unsafe_code, reason = "handles signals")]

mod common;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{stack, with_thread};
use uaio_core::{ContextOptions, Event, Iocb, Notify, OpenOptions, Signal, VolumeOptions};

/// What the handler saw last: code, value, thread; and how many there were.
static SEEN: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];
static COUNT: AtomicUsize = AtomicUsize::new(0);
static TAKEN: Mutex<usize> = Mutex::new(0);

extern "C" fn handler(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives the address of what came with the signal.
    let info = unsafe { &*info };
    // SAFETY: it was queued with a value.
    let value = unsafe { info.si_value() };
    // SAFETY: asks who this thread is.
    let thread = unsafe { libc::gettid() };
    SEEN[0].store(info.si_code.cast_unsigned() as usize, Ordering::SeqCst);
    SEEN[1].store(value.sival_ptr as usize, Ordering::SeqCst);
    SEEN[2].store(thread as usize, Ordering::SeqCst);
    COUNT.fetch_add(1, Ordering::SeqCst);
}

fn handle_signal(signal: i32) {
    // SAFETY: a structure of numbers, for which zero is a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: the handler only stores to atomics; what was before is not asked for.
    let result = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    assert_eq!(result, 0);
}

/// Code, value and thread of the next signal, or nothing within the time.
fn next(wait: Duration) -> Option<(i32, usize, i32)> {
    let mut taken = TAKEN.lock().unwrap();
    let start = Instant::now();
    while COUNT.load(Ordering::SeqCst) == *taken {
        if start.elapsed() > wait {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    *taken += 1;
    let [code, value, thread] = [0, 1, 2].map(|at: usize| SEEN[at].load(Ordering::SeqCst));
    Some(((code as u32).cast_signed(), value, thread as i32))
}

#[test]
fn a_completion_signal_goes_to_the_process_or_the_thread_with_its_value() {
    let signal = libc::SIGRTMIN() + 3;
    let long = Duration::from_secs(20);
    handle_signal(signal);
    let stack = stack(64, VolumeOptions::default());
    let handle = stack.volume.open(OpenOptions::default());
    let context = stack.reactor.context(ContextOptions::events(8)).unwrap();
    with_thread(&stack.reactor, || {
        let mut events: Vec<Event> = Vec::new();
        let process = Signal::to_process(signal, 0xdead_beef_0000_0001).unwrap();
        let read = Iocb::pread(&handle, 0, vec![0; 100]).with_notify(Notify::Signal(process));
        context.submit(read).unwrap();
        let (code, value, _) = next(long).expect("no signal");
        assert_eq!((code, value), (libc::SI_ASYNCIO, 0xdead_beef_0000_0001));
        assert_eq!(context.get_events(0, 8, &mut events, None), Ok(1), "a signal before its event");
        // To one thread, which is not the one that the kernel would choose.
        std::thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            let (end, ended) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || {
                tell.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
                let _ = ended.recv();
            });
            let target = told.recv().unwrap();
            let thread = Signal::to_thread(target, signal, 7).unwrap();
            let read = Iocb::pread(&handle, 0, vec![0; 100]).with_notify(Notify::Signal(thread));
            context.submit(read).unwrap();
            assert_eq!(next(long), Some((libc::SI_ASYNCIO, 7, target)));
            drop(end);
        });
        // A list has one, however many are in it.
        let list = (0..5).map(|at| Iocb::pread(&handle, at * 100_000, vec![0; 100]));
        let notify = Notify::Signal(Signal::to_process(signal, 9).unwrap());
        let listed = context.listio(list, notify);
        assert_eq!(listed.tickets.len(), 5);
        let (code, value, _) = next(long).expect("no signal");
        assert_eq!((code, value), (libc::SI_ASYNCIO, 9));
        assert_eq!(context.outstanding(), 0, "a signal before its events");
        assert_eq!(next(Duration::from_millis(10)), None, "a second signal");
        assert_eq!(context.notices_lost(), 0);
    });
}
