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

/// The table in the module's page is what the C library does not do: each difference is known, and on purpose. Of a
/// newer C library it may say too much.
#[test]
fn the_table_of_differences_is_what_the_c_library_does_not_do() {
    let page = include_str!("../src/posix/mod.rs");
    let rows = page.lines().filter_map(|line| line.strip_prefix("//! | `")?.split_once("` | "));
    let (mut told, mut always) = (BTreeSet::new(), BTreeSet::new());
    for (name, what) in rows {
        told.insert(name.to_owned());
        // What is a race for its threads it may win.
        if !what.starts_with("now and then") {
            always.insert(name.to_owned());
        }
    }
    assert!(!always.is_empty());
    let program = compile("posix.c");
    let names = done(Command::new(&program).arg("--list"));
    for name in &told {
        assert!(names.lines().any(|line| line.starts_with(&format!("{name}: "))), "{name}");
    }
    let glibc = failed(Command::new(program).arg(folder("glibc")));
    for (name, why) in &glibc {
        assert!(told.contains(name), "{name} is not in the table: {why}");
    }
    let version = done(Command::new("getconf").arg("GNU_LIBC_VERSION"));
    if version.trim() == "glibc 2.36" {
        let fails: BTreeSet<String> = glibc.into_iter().map(|(name, _)| name).collect();
        let passes: Vec<_> = always.difference(&fails).collect();
        assert_eq!(passes, [&String::new(); 0], "the table says that these fail");
    }
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
