//! The C face, compiled by the C compiler of this machine and run: its layouts, what `uaio.h` says, and
//! the example.

use std::fmt::Write;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::Command;

use uaio::layout::{
    UaioCall, UaioEvent, UaioIocb, UaioNames, UaioNotify, UaioStatx, UaioTo, UaioWait,
};

/// Where this test's own files go.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Compiles, with every warning an error; links the library that was built with this test.
fn compile(name: &str, source: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let test = std::env::current_exe().unwrap();
    let library = test.parent().unwrap();
    let program = folder(name).join(name);
    let output = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-pthread", "-D_GNU_SOURCE"])
        .arg(source)
        .arg("-I")
        .arg(root.join("include"))
        .arg("-o")
        .arg(&program)
        .arg("-L")
        .arg(library)
        .arg(format!("-Wl,-rpath,{}", library.display()))
        .arg("-luaio")
        .output()
        .expect("cc is there, since Rust links with it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}

fn run(program: &Path, argument: Option<&Path>) -> String {
    let output = Command::new(program).args(argument).output().unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {out}{err}", output.status);
    out.into_owned()
}

/// The header is held against the Rust types by the C compiler.
#[test]
fn the_header_has_the_layouts_of_the_library() {
    let mut source = String::from("#include <stddef.h>\n#include \"uaio.h\"\n");
    let mut check = |what: String, is: usize| {
        writeln!(source, "_Static_assert({what} == {is}, \"{what} is not {is}\");").unwrap();
    };
    macro_rules! layout {
        ($rust:ident, $c:literal, $($field:ident),+) => {
            check(format!("sizeof(struct {})", $c), size_of::<$rust>());
            $(check(format!("offsetof(struct {}, {})", $c, stringify!($field)), offset_of!($rust, $field));)+
        };
    }
    layout!(
        UaioIocb,
        "uaio_iocb",
        data,
        opcode,
        priority,
        fd,
        buf,
        nbytes,
        offset,
        flags,
        resfd,
        timeout_ms,
        status,
        key,
        notify,
        op_flags,
        reserved
    );
    layout!(UaioEvent, "uaio_event", data, obj, res, res2);
    layout!(UaioWait, "uaio_wait", context, iocb);
    layout!(UaioNotify, "uaio_notify", kind, signo, tid, fd, value, function);
    layout!(UaioNames, "uaio_names", old_path, new_path, new_fd, reserved);
    layout!(UaioStatx, "uaio_statx", path, status, mask, reserved);
    layout!(UaioTo, "uaio_to", offset, fd, reserved);
    layout!(UaioCall, "uaio_call", number, arguments);
    use uaio::layout::{self, opcode};
    for (name, is) in [
        ("UAIO_PREAD", usize::from(opcode::PREAD)),
        ("UAIO_PWRITE", usize::from(opcode::PWRITE)),
        ("UAIO_FSYNC", usize::from(opcode::FSYNC)),
        ("UAIO_FDSYNC", usize::from(opcode::FDSYNC)),
        ("UAIO_POLL", usize::from(opcode::POLL)),
        ("UAIO_NOOP", usize::from(opcode::NOOP)),
        ("UAIO_PREADV", usize::from(opcode::PREADV)),
        ("UAIO_PWRITEV", usize::from(opcode::PWRITEV)),
        ("UAIO_DISCARD", usize::from(opcode::DISCARD)),
        ("UAIO_WRITE_ZEROES", usize::from(opcode::WRITE_ZEROES)),
        ("UAIO_SYNC_RANGE", usize::from(opcode::SYNC_RANGE)),
        ("UAIO_READAHEAD", usize::from(opcode::READAHEAD)),
        ("UAIO_ACCEPT", usize::from(opcode::ACCEPT)),
        ("UAIO_CONNECT", usize::from(opcode::CONNECT)),
        ("UAIO_SEND", usize::from(opcode::SEND)),
        ("UAIO_RECV", usize::from(opcode::RECV)),
        ("UAIO_SENDMSG", usize::from(opcode::SENDMSG)),
        ("UAIO_RECVMSG", usize::from(opcode::RECVMSG)),
        ("UAIO_SHUTDOWN", usize::from(opcode::SHUTDOWN)),
        ("UAIO_POLL_MULTISHOT", usize::from(opcode::POLL_MULTISHOT)),
        ("UAIO_EPOLL_WAIT", usize::from(opcode::EPOLL_WAIT)),
        ("UAIO_OPENAT", usize::from(opcode::OPENAT)),
        ("UAIO_CLOSE", usize::from(opcode::CLOSE)),
        ("UAIO_UNLINKAT", usize::from(opcode::UNLINKAT)),
        ("UAIO_RENAMEAT", usize::from(opcode::RENAMEAT)),
        ("UAIO_LINKAT", usize::from(opcode::LINKAT)),
        ("UAIO_SYMLINKAT", usize::from(opcode::SYMLINKAT)),
        ("UAIO_MKDIRAT", usize::from(opcode::MKDIRAT)),
        ("UAIO_STATX", usize::from(opcode::STATX)),
        ("UAIO_FALLOCATE", usize::from(opcode::FALLOCATE)),
        ("UAIO_FTRUNCATE", usize::from(opcode::FTRUNCATE)),
        ("UAIO_FADVISE", usize::from(opcode::FADVISE)),
        ("UAIO_SPLICE", usize::from(opcode::SPLICE)),
        ("UAIO_COPY", usize::from(opcode::COPY)),
        ("UAIO_CALL", usize::from(opcode::CALL)),
        ("UAIO_EVENT_MORE", layout::EVENT_MORE as usize),
        ("UAIO_F_NOTIFY", layout::F_NOTIFY as usize),
        ("UAIO_F_LINK", layout::F_LINK as usize),
        ("UAIO_F_VOLUME", layout::F_VOLUME as usize),
        ("UAIO_F_RESFD", layout::F_RESFD as usize),
        ("UAIO_O_DIRECT", layout::O_DIRECT as usize),
        ("UAIO_O_DSYNC", layout::O_DSYNC as usize),
        ("UAIO_LIST_WAIT", layout::LIST_WAIT as usize),
        ("UAIO_LIST_NOWAIT", layout::LIST_NOWAIT as usize),
    ] {
        check(name.to_owned(), is);
    }
    source.push_str("int main(void) { return 0; }\n");
    let file = folder("layout").join("layout.c");
    std::fs::write(&file, source).unwrap();
    run(&compile("layout", &file), None);
}

#[test]
fn the_calls_do_what_the_header_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert_eq!(run(&compile("face", &root.join("tests/face.c")), None), "ok\n");
}

#[test]
fn getevents_makes_no_system_call_when_events_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert_eq!(run(&compile("quiet", &root.join("tests/quiet.c")), None), "ok\n");
}

#[test]
fn the_librarys_threads_take_no_signal_that_the_program_waits_for() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert_eq!(run(&compile("signals", &root.join("tests/signals.c")), None), "ok\n");
}

#[test]
fn names_files_and_calls_are_done_with_the_errno_of_the_man_page() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = compile("names", &root.join("tests/names.c"));
    let own = folder("names-own");
    std::fs::remove_dir_all(&own).unwrap();
    std::fs::create_dir(&own).unwrap();
    assert_eq!(run(&program, Some(&own)), "ok\n");
}

/// A program of the mix of `many.c`, and a directory for it.
fn many(name: &str) -> (PathBuf, PathBuf) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = compile(name, &root.join("tests/many.c"));
    let own = folder(&format!("{name}-own"));
    (program, own)
}

#[test]
fn ten_thousand_requests_of_every_kind_move_what_they_were_asked_to() {
    let (program, own) = many("many");
    // The program says the seed when something is wrong.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    for seed in [1, 2, 3, u64::from(now.subsec_nanos())] {
        let output = Command::new(&program).arg(&own).arg(seed.to_string()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said, "ok\n", "seed {seed}: {}: {err}", output.status);
    }
}

/// Valgrind (3.19) does not know io_uring: it sees neither what the kernel reads and writes for it, so the program
/// sets its buffers first, nor that the kernel uses what was freed. It sees all that the library and its caller do
/// with their memory, on every thread.
#[test]
#[ignore = "needs valgrind"]
fn under_valgrind_there_is_no_error_and_no_leak() {
    let (program, own) = many("many-checked");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let copy = compile("copy-checked", &root.join("examples/copy.c"));
    let file = own.join("source");
    std::fs::write(&file, vec![7; 1_000_001]).unwrap();
    let log = own.join("valgrind.log");
    let checked = |program: &Path, arguments: [&Path; 2], expected: &str| {
        let output = Command::new("valgrind")
            // Threads take turns, or the one that polls keeps the others waiting.
            .args(["--fair-sched=yes", "--leak-check=full", "--error-exitcode=9"])
            // What is possibly lost is the main thread's own, and the table of contexts: they stay.
            .args(["--errors-for-leak-kinds=definite,indirect"])
            .args(["--show-leak-kinds=definite,indirect"])
            .arg(format!("--log-file={}", log.display()))
            .arg(program)
            .args(arguments.iter().filter(|argument| !argument.as_os_str().is_empty()))
            .output()
            .expect("valgrind runs");
        let said = String::from_utf8_lossy(&output.stdout);
        let err = String::from_utf8_lossy(&output.stderr);
        let found = std::fs::read_to_string(&log).unwrap();
        let found: Vec<&str> = found.lines().filter(|line| line.starts_with("==")).collect();
        assert!(output.status.success(), "{}: {said}{err}{}", output.status, found.join("\n"));
        assert_eq!(said, expected);
    };
    checked(&copy, [&file, Path::new("")], "1000001 bytes copied\n");
    checked(&program, [&own, Path::new("7")], "ok\n");
}

#[test]
fn the_example_copies_a_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = compile("copy", &root.join("examples/copy.c"));
    let file = folder("copy").join("source");
    std::fs::write(&file, vec![7; 3_000_001]).unwrap();
    assert_eq!(run(&program, Some(&file)), "3000001 bytes copied\n");
    let missing = Command::new(&program).arg(folder("copy").join("nowhere")).output().unwrap();
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).ends_with("No such file or directory\n"));
}
