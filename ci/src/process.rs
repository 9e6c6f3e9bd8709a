//! Running other programs: quietly, with an error that says which program failed and what it said last.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// How many of a failed program's last lines its error repeats.
const TAIL_LINES: usize = 40;

/// Runs `command` with its output captured, and returns its standard output.
///
/// # Errors
///
/// When the program cannot be started or fails; the error carries the end of what it printed.
pub fn output(command: &mut Command) -> Result<String> {
    let name = display(command);
    let done =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {name}"))?;
    let stdout = String::from_utf8_lossy(&done.stdout).into_owned();
    if !done.status.success() {
        let stderr = String::from_utf8_lossy(&done.stderr);
        let said = format!("{stdout}{stderr}");
        bail!("{name}: {}\n{}", done.status, tail(&said, TAIL_LINES));
    }
    Ok(stdout)
}

/// Runs `command` with its output captured and thrown away unless it fails.
///
/// # Errors
///
/// As [`output`].
pub fn quiet(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// The last `lines` lines of `text`.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The program and its first arguments, for messages.
pub fn display(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().take(4).map(OsStr::to_string_lossy).map(String::from));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_keeps_the_last_lines_in_order() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a\n", 5), "a");
        assert_eq!(tail("", 5), "");
    }

    #[test]
    fn a_failure_names_the_program_and_repeats_what_it_said() {
        let error = quiet(Command::new("sh").args(["-c", "echo said >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("sh -c"), "{text}");
        assert!(text.ends_with("said"), "{text}");
    }
}
