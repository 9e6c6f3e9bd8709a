//! The end of a process: what was submitted is on its way, and how much it was is written down.
//!
//! The kernel's AIO goes on when its program has ended; io_uring's requests are cancelled then, those at least which the
//! kernel has not begun. So a process that ends waits for its writes and syncs, up to two seconds. One that is killed, or
//! becomes another by a call that is not interposed (execl(3)), does not.
#![expect(unsafe_code, reason = "symbols are exported by their names, and code runs at the end")]

use std::ffi::c_int;
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::real;
use crate::serve::process;

/// How long a process waits that ends.
const SETTLE_MAX: Duration = Duration::from_secs(2);
/// Names the file that gets a line at the end.
const STATS: &std::ffi::CStr = c"UAIO_PRELOAD_STATS";

/// The process that has been through [`before_end`].
static ENDED: AtomicU32 = AtomicU32::new(0);

/// To be called when the process is about to end. Async-signal-safe; once for each process.
pub(crate) fn before_end() {
    let Some(service) = process::running() else { return };
    // A child of vfork(2) is not the process whose memory it has.
    let pid = std::process::id();
    if !service.is_of_this_process() || ENDED.swap(pid, Ordering::Relaxed) == pid {
        return;
    }
    service.settle(SETTLE_MAX);
    // SAFETY: a name with a NUL at its end; nobody changes the environment any more, or should not.
    let path = unsafe { libc::getenv(STATS.as_ptr()) };
    if !path.is_null() {
        let mut line = Line { bytes: [0; 512], len: 0 };
        // It has room for all of it.
        let _ = write_line(&mut line, pid, service);
        append(path.expose_provenance(), &line.bytes[..line.len]);
    }
}

/// To be called when the process is about to become another program, or to end in a way of its own.
pub(crate) fn before_exec() {
    if let Some(service) = process::running()
        && service.is_of_this_process()
    {
        service.settle(SETTLE_MAX);
    }
}

/// Whether all threads of the program have ended, the first by pthread_exit(3), so that the process would have, too, if it
/// were not for the reactor.
pub(crate) fn is_alone() -> bool {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return false };
    let alive = tasks.flatten().filter(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // The name is in parentheses, and may have any in it.
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        !matches!(state, None | Some('Z' | 'X'))
    });
    alive.count() == 1
}

/// A line that needs no memory from anybody.
struct Line {
    bytes: [u8; 512],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

fn write_line(line: &mut Line, pid: u32, service: &crate::serve::Service) -> fmt::Result {
    let counters = &service.counters;
    let value = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    write!(line, "{{\"pid\":{pid},\"program\":\"")?;
    let mut name = [0u8; 16];
    let (get, to) = (libc::PR_GET_NAME as usize, (&raw mut name).expose_provenance());
    if real::raw(libc::SYS_prctl, [get, to, 0, 0, 0, 0]).is_ok() {
        for byte in name.into_iter().take_while(|byte| *byte != 0) {
            // What JSON would have escaped, or is half of a character, is left out.
            let plain = (b' '..0x7f).contains(&byte) && byte != b'"' && byte != b'\\';
            line.write_char(if plain { char::from(byte) } else { '?' })?;
        }
    }
    let (libaio, posix) = (value(&counters.libaio), value(&counters.posix));
    let (inline, cancelled) = (value(&counters.inline), value(&counters.cancelled));
    write!(line, "\",\"libaio\":{libaio},\"posix\":{posix},\"inline\":{inline},")?;
    writeln!(line, "\"cancelled\":{cancelled}}}")
}

/// Appends a line to a file, as far as that is possible: a program that ends is not told otherwise.
fn append(path: usize, line: &[u8]) {
    let here = libc::AT_FDCWD as usize;
    let flags = (libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND | libc::O_CLOEXEC) as usize;
    if let Ok(fd) = real::raw(libc::SYS_openat, [here, path, flags, 0o644, 0, 0]) {
        let at = line.as_ptr().expose_provenance();
        let _ = real::raw(libc::SYS_write, [fd, at, line.len(), 0, 0, 0]);
        let _ = real::raw(libc::SYS_close, [fd, 0, 0, 0, 0, 0]);
    }
}

/// Runs when the program returns from main or calls exit(3), after what it asked to be called then.
#[used]
// SAFETY: an array of functions without arguments, which this is.
#[unsafe(link_section = ".fini_array")]
static AT_EXIT: extern "C" fn() = at_exit;

extern "C" fn at_exit() {
    before_end();
}

/// _exit(2), which runs nothing else of the program's.
// SAFETY: it stands before the C library's, and makes the same system call.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn _exit(status: c_int) -> ! {
    before_end();
    loop {
        let _ = real::raw(libc::SYS_exit_group, [status as usize, 0, 0, 0, 0, 0]);
    }
}

/// _Exit(3).
// SAFETY: as for `_exit`.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn _Exit(status: c_int) -> ! {
    _exit(status)
}
