//! POSIX AIO as programs in C see it, with the library preloaded.

mod library;

use std::collections::BTreeSet;
use std::process::Command;

use library::{compile, done, folder, library};

/// The checks that fail, with why, of `posix.c` as this command runs it.
fn failed(command: &mut Command) -> Vec<(String, String)> {
    let out = done(command);
    let failed: Vec<_> = out.lines().filter_map(|line| line.strip_prefix("FAIL ")).collect();
    let count = out.lines().filter(|line| line.starts_with("ok ")).count() + failed.len();
    assert!(out.ends_with(&format!("{count} checks, {} failed\n", failed.len())), "{out}");
    let split = |line: &str| line.split_once(": ").map(|(name, why)| (name.into(), why.into()));
    failed.into_iter().map(|line| split(line).unwrap()).collect()
}

#[test]
fn every_sentence_of_the_suite_is_true_of_this_library() {
    let program = compile("posix.c");
    let own = folder("suite");
    let all = failed(Command::new(program).arg(own).env("LD_PRELOAD", library("suite")));
    assert_eq!(all, [], "what fails, and why");
}

/// Holds the table in the module's page against the checks that failed of the C library's own. Of a newer one than it
/// was written for it may say too much.
fn compare_with_table(glibc: Vec<(String, String)>) {
    let page = include_str!("../src/posix/mod.rs");
    let rows = page.lines().filter_map(|line| line.strip_prefix("//! | `")?.split_once("` | "));
    let rows: Vec<_> = rows.collect();
    assert!(!rows.is_empty());
    let names = done(Command::new(compile("posix.c")).arg("--list"));
    for (name, _) in &rows {
        assert!(names.lines().any(|line| line.starts_with(&format!("{name}: "))), "{name}");
    }
    for (name, why) in &glibc {
        assert!(rows.iter().any(|row| row.0 == name), "{name} is not in the table: {why}");
    }
    let version = done(Command::new("getconf").arg("GNU_LIBC_VERSION"));
    if version.trim() == "glibc 2.36" {
        let fails: BTreeSet<String> = glibc.into_iter().map(|(name, _)| name).collect();
        for (name, what) in rows {
            // What is a race for its threads it may win.
            let perhaps = what.starts_with("now and then");
            assert!(perhaps || fails.contains(name), "the table says that {name} fails");
        }
    }
}

/// Each difference is known, and on purpose.
#[test]
fn the_table_of_differences_is_what_the_c_library_does_not_do() {
    compare_with_table(failed(Command::new(compile("posix.c")).arg(folder("glibc"))));
}

#[test]
fn without_io_uring_the_c_library_does_it_all() {
    let mut program = Command::new(compile("posix.c"));
    let run = program.arg("--without").arg(folder("without")).env("LD_PRELOAD", library("without"));
    let mut fails = failed(run);
    // Until the first request of a process nobody knows that there is none, so two more are as they are with us.
    for name in ["a_child_inherits_no_request", "error_of_what_was_never_submitted"] {
        assert!(!fails.iter().any(|fail| fail.0 == name), "{name}");
        fails.push((name.into(), String::new()));
    }
    compare_with_table(fails);
}

/// A handler that interrupts a submit while it has a lock, half a message sent, or a lock of malloc's, and waits for
/// another request there.
#[test]
fn error_return_and_suspend_are_called_in_handlers_that_interrupt_all_others() {
    let mut program = Command::new(compile("posix_signals.c"));
    let out = done(program.arg(folder("signals")).arg("3").env("LD_PRELOAD", library("signals")));
    let signals =
        out.strip_prefix("ok ").and_then(|out| out.split(' ').next()?.parse::<u32>().ok());
    assert!(signals.is_some_and(|signals| signals > 1000), "{out}");
}

#[test]
fn random_programs_come_to_what_a_model_of_one_request_after_the_other_says() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u32>().ok());
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
    let (seed, count) = match number("UAIO_SEED") {
        Some(seed) => (seed, 1),
        None => (now, number("UAIO_SEEDS").unwrap_or(300)),
    };
    println!("UAIO_SEED={seed}, and {count} from there on");
    let mut program = Command::new(compile("posix_model.c"));
    let run = program.arg(folder("model")).args([seed.to_string(), count.to_string()]);
    assert_eq!(done(run.env("LD_PRELOAD", library("model"))), "ok\n");
}

#[test]
fn a_hundred_thousand_requests_come_out_right() {
    let mut program = Command::new(compile("posix_many.c"));
    let run = program.arg(folder("many")).arg("100000").env("LD_PRELOAD", library("many"));
    assert_eq!(done(run), "ok 100000\n");
}

/// `UAIO_REQUESTS=100000` for as many as above. Valgrind does not see what the kernel does for io_uring; it sees all that the library
/// and the program do with their memory.
#[test]
fn under_valgrind_there_is_no_error_and_no_leak() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        eprintln!("skipped: valgrind is not installed");
        return;
    }
    let (program, library) = (compile("posix_many.c"), library("valgrind"));
    let mut valgrind = Command::new("valgrind");
    // Threads take turns, or the one that polls keeps the others waiting.
    valgrind.args(["-q", "--fair-sched=yes", "--leak-check=full", "--error-exitcode=9"]);
    // What is possibly lost is the reactor's own, which stays.
    valgrind.args(["--errors-for-leak-kinds=definite,indirect"]);
    valgrind.args(["--show-leak-kinds=definite,indirect"]).arg(program);
    let requests = std::env::var("UAIO_REQUESTS").unwrap_or_else(|_| "4000".into());
    valgrind.arg(folder("valgrind")).arg(&requests).env("LD_PRELOAD", library);
    assert_eq!(done(&mut valgrind), format!("ok {requests}\n"));
}
