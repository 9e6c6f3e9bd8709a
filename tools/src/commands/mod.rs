//! The commands, one file each.

pub(crate) mod add;
pub(crate) mod cache;
pub(crate) mod info;
pub(crate) mod list;
pub(crate) mod nvme;
pub(crate) mod stats;
pub(crate) mod stop;

use std::io::{BufRead, IsTerminal, Write};

use serde::Serialize;

use crate::cli::Deadline;
use crate::exit::{Exit, Failure};
use crate::record::RunDir;
use crate::system::System;

/// What every command needs to know.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    /// Whether to print JSON.
    pub(crate) json: bool,
    /// Where the servers are found.
    pub(crate) run: RunDir,
    /// Where the kernel tells about itself.
    pub(crate) system: System,
}

impl Context {
    /// Prints `value` as JSON, or the table made of it.
    pub(crate) fn print<T: Serialize>(
        &self,
        value: &T,
        table: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        let text = if self.json {
            let mut text = serde_json::to_string_pretty(value)
                .map_err(|error| Failure::os("make JSON", std::io::Error::other(error)))?;
            text.push('\n');
            text
        } else {
            table(value)
        };
        print(&text)
    }
}

/// As the protocol has it.
pub(crate) fn milliseconds(deadline: Deadline) -> u64 {
    u64::from(deadline.seconds) * 1000
}

/// Goes on only when the user wants what cannot be undone, and types what it is done to, or said so with
/// `yes`.
pub(crate) fn confirm(
    target: impl std::fmt::Display,
    what: &str,
    yes: bool,
) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let stdin = std::io::stdin();
    let refused =
        |said: String| Failure::new(Exit::Usage, format!("{what}: {said}"), "nothing was changed");
    if !stdin.is_terminal() {
        return Err(refused("this needs --yes where nobody can be asked".into()));
    }
    eprint!("{what}\nType {target} to go on: ");
    let _ = std::io::stderr().flush();
    let mut line = String::new();
    // One line of a terminal, which the kernel bounds.
    stdin.lock().read_line(&mut line).map_err(|error| Failure::os("read the answer", error))?;
    match line.trim() == target.to_string() {
        true => Ok(()),
        false => Err(refused(format!("`{}` is not {target}", line.trim()))),
    }
}

/// Writes to stdout. `println!` would panic where the reader has gone; one that has gone, such as
/// `head`, has had what it wanted.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::os("write to stdout", error))
        }
        _ => Ok(()),
    }
}
