//! libaio and the kernel's AIO, as the man pages have them: one program (`libaio.c`) against both. What is different is
//! listed here, and each for a reason.
#![expect(unsafe_code, reason = "a filter of system calls is set between fork and exec")]

mod library;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use library::{compile, done, folder, library};

/// Where ours is not as the kernel's, and why.
const DIFFERENT: &[(&str, &str)] = &[
    // aio_abi.h has NOOP, and the kernel has never had it; io_uring has.
    ("NOOP is EINVAL", "0 by event"),
    // Whether a descriptor can be read or synced at all the kernel finds out when it begins.
    ("a read of a directory is EINVAL", "-21 by event"),
    ("a sync of a pipe is EINVAL", "-22 by event"),
];

/// The program, with a file of this test's own.
fn program(test: &str) -> Command {
    static COMPILED: OnceLock<PathBuf> = OnceLock::new();
    let mut program = Command::new(COMPILED.get_or_init(|| compile("libaio.c")));
    program.arg(folder(test).join("file"));
    program
}

/// The lines in which the program found something else than the man pages say.
fn different(output: &str) -> Vec<(&str, &str)> {
    assert!(output.lines().filter(|line| line.starts_with("ok ")).count() > 100, "{output}");
    let found = output.lines().filter_map(|line| line.strip_prefix("DIFFERENT "));
    found.map(|line| line.split_once(": ").unwrap()).collect()
}

#[test]
fn the_kernel_does_what_the_man_pages_say() {
    assert_eq!(different(&done(&mut program("kernel"))), []);
}

#[test]
fn so_does_this_library_but_for_what_is_listed_and_every_request_is_its_own() {
    let stats = folder("ours").join("stats");
    let _ = std::fs::remove_file(&stats);
    let mut program = program("ours");
    program.env("LD_PRELOAD", library("ours")).env("UAIO_PRELOAD_STATS", &stats);
    assert_eq!(different(&done(&mut program)), DIFFERENT);
    let stats = std::fs::read_to_string(stats).unwrap();
    // The program itself, and four of its children: the one that becomes another program says nothing.
    assert_eq!(stats.lines().count(), 5, "{stats}");
    let last = stats.lines().last().unwrap();
    let number = |name: &str| {
        let (_, rest) = last.split_once(&format!("\"{name}\":")).unwrap();
        rest[..rest.find([',', '}']).unwrap()].parse::<u64>().unwrap()
    };
    assert!(number("libaio") > 4 * 300 * 8, "{last}");
    assert!(number("inline") > 0 && number("inline") < number("libaio"), "{last}");
    assert!(number("cancelled") >= 2 && number("posix") == 0, "{last}");
}

/// The kernel says of io_uring_setup(2) that it is not allowed, as in many containers.
#[test]
fn without_io_uring_it_says_so_once_and_the_kernels_aio_serves() {
    let mut command = program("without");
    command.env("LD_PRELOAD", library("without"));
    let instruction = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let mut filter = [
        // The number of the call.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            1,
            libc::SYS_io_uring_setup as u32,
        ),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, refuse),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let set = move || {
        let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
        // SAFETY: a number each, no address.
        unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        // SAFETY: the address of a program of four instructions, which the kernel copies.
        let set = unsafe {
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
        };
        if set == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: it makes two system calls, which may be done between fork and exec.
    unsafe { command.pre_exec(set) };
    let output = command.output().unwrap();
    assert_eq!(different(&String::from_utf8_lossy(&output.stdout)), []);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.lines().filter(|line| line.starts_with("uaio: ")).count(), 1, "{said}");
    assert!(said.contains("io_uring is not allowed here"), "{said}");
}

/// `UAIO_REQUESTS=100000` for the number that is claimed; a few thousand say as much each day.
#[test]
fn thousands_of_requests_under_valgrind_without_an_error_or_a_leak() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        eprintln!("skipped: valgrind is not installed");
        return;
    }
    let requests = std::env::var("UAIO_REQUESTS").unwrap_or_else(|_| "4000".into());
    let output = Command::new("valgrind")
        .args(["-q", "--error-exitcode=9", "--leak-check=full", "--errors-for-leak-kinds=definite"])
        .arg(program("valgrind").get_program())
        .args([folder("valgrind").join("file").as_os_str(), requests.as_ref()])
        .env("LD_PRELOAD", library("valgrind"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0 bad\n", "{said}");
}

/// Every symbol of libaio's with its version, and of the C library's what has to be taken; nothing else.
#[test]
fn the_symbols_and_their_versions_are_those_of_libaio() {
    let symbols = |library: &Path| {
        let output = done(Command::new("nm").args(["-D", "--with-symbol-versions"]).arg(library));
        let mut names: Vec<_> = output
            .lines()
            .filter_map(|line| line.split_once(" T ").map(|(_, name)| name.to_string()))
            .collect();
        names.sort();
        names
    };
    let ours = symbols(&library("symbols"));
    let (versioned, plain): (Vec<_>, Vec<_>) =
        ours.into_iter().partition(|name| name.contains("LIBAIO"));
    let known = [
        "io_cancel@@LIBAIO_0.4",
        "io_cancel@LIBAIO_0.1",
        "io_destroy@@LIBAIO_0.4",
        "io_getevents@@LIBAIO_0.4",
        "io_getevents@LIBAIO_0.1",
        "io_pgetevents@@LIBAIO_0.5",
        "io_queue_init@@LIBAIO_0.1",
        "io_queue_release@@LIBAIO_0.1",
        "io_queue_run@@LIBAIO_0.1",
        "io_queue_wait@@LIBAIO_0.4",
        "io_queue_wait@LIBAIO_0.1",
        "io_setup@@LIBAIO_0.4",
        "io_submit@@LIBAIO_0.1",
    ];
    assert_eq!(versioned, known);
    let expected = [
        "aio_",
        "lio_listio",
        "close",
        "fclose",
        "pclose",
        "freopen",
        "exec",
        "fexecve",
        "quick_exit",
        "dup2",
        "dup3",
        "syscall",
        "_exit",
        "_Exit",
        "uaio_preload_",
    ];
    let foreign: Vec<_> =
        plain.iter().filter(|name| !expected.iter().any(|start| name.starts_with(start))).collect();
    assert!(foreign.is_empty(), "{foreign:?}");
    let folder = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let theirs = ["libaio.so.1", "libaio.so.1t64"].map(|name| Path::new(&folder).join(name));
    match theirs.iter().find(|library| library.exists()) {
        Some(theirs) => assert_eq!(symbols(theirs), known),
        None => eprintln!("libaio is not installed, to compare with"),
    }
}
