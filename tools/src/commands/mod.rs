//! The commands, one file each.

pub(crate) mod add;
pub(crate) mod cache;
pub(crate) mod info;
pub(crate) mod list;
pub(crate) mod nvme;
pub(crate) mod stats;
pub(crate) mod stop;

use std::io::Write;

use serde::Serialize;

use crate::cli::Deadline;
use crate::exit::Failure;
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
