//! The examples of the futures do what they say; the log keeps what it acknowledged when it is killed.

#[expect(dead_code, reason = "an example has a `main` of its own")]
#[path = "../examples/copy_file.rs"]
mod copy_file;
#[expect(dead_code, reason = "an example has a `main` of its own")]
#[path = "../examples/kv_log.rs"]
mod kv_log;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn temporary(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("uaio-example-{name}-{}", std::process::id()));
    // Of a run before this one, if there is any.
    let _ = std::fs::remove_file(&path);
    path
}

/// The example as a program: beside the folder that this test is in.
fn kv_log(file: &Path, command: &[&str]) -> Command {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join("examples/kv_log");
    assert!(
        program.exists(),
        "{} is not built: `cargo test` without --test builds it",
        program.display()
    );
    let mut run = Command::new(program);
    run.arg(file).args(command);
    run
}

fn said(output: &Output) -> &str {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::str::from_utf8(&output.stdout).unwrap()
}

#[test]
fn a_file_is_copied_byte_for_byte_and_half_of_one_is_not_left() {
    let (from, to) = (temporary("from"), temporary("to"));
    let bytes: Vec<u8> = (0..20_000_003u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(&from, &bytes).unwrap();
    let bar = indicatif::ProgressBar::hidden();
    assert_eq!(copy_file::copy(&from, &to, &bar).unwrap(), bytes.len() as u64);
    assert_eq!(bar.position(), bytes.len() as u64);
    assert!(std::fs::read(&to).unwrap() == bytes);
    // What is there stays.
    let refused = copy_file::copy(&from, &to, &bar).unwrap_err().to_string();
    assert!(refused.contains("File exists"), "{refused}");
    assert!(std::fs::read(&to).unwrap() == bytes);
    std::fs::remove_file(&from).unwrap();
    std::fs::remove_file(&to).unwrap();
}

#[test]
fn the_log_keeps_every_put_that_it_acknowledged_when_it_is_killed() {
    let file = temporary("log");
    let mut acknowledged = Vec::new();
    for round in 1..=3 {
        let mut child = kv_log(&file, &["load", "100000"]).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for line in lines.map_while(Result::ok) {
            acknowledged.push(line.parse::<usize>().unwrap());
            if acknowledged.len() >= round * 300 {
                child.kill().unwrap();
                break;
            }
        }
        child.wait().unwrap();
    }
    let list = kv_log(&file, &["list"]).output().unwrap();
    let keys: std::collections::HashSet<&str> = said(&list).lines().collect();
    for number in &acknowledged {
        assert!(keys.contains(&format!("key{number}")[..]), "key{number} was acknowledged");
    }
    for number in acknowledged.iter().step_by(97) {
        let output = kv_log(&file, &["get", &format!("key{number}")]).output().unwrap();
        assert_eq!(said(&output).trim_end().as_bytes(), kv_log::value_of(*number));
    }
    let missing = kv_log(&file, &["get", "nothing"]).output().unwrap();
    assert!(!missing.status.success());
    said(&kv_log(&file, &["put", "nothing", "something"]).output().unwrap());
    let output = kv_log(&file, &["get", "nothing"]).output().unwrap();
    assert_eq!(said(&output), "something\n");
    std::fs::remove_file(&file).unwrap();
}
