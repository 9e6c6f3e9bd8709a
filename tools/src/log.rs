//! The server's log: lines on stderr.
//!
//! Written by the control threads only, never by one that serves a queue: a reader of our stderr
//! that waits for our device must not make the device wait for it. The descriptor was opened before
//! the device existed, so the log cannot lie on it.

use std::fmt;
use std::io::Write;

/// Writes one line. A log that cannot be written is no reason to stop serving, so the error goes
/// nowhere: there is nowhere left to tell it.
pub(crate) fn line(text: impl fmt::Display) {
    let text = text.to_string().replace(|c: char| c.is_control(), " ");
    let _ = writeln!(std::io::stderr().lock(), "aioctl: {text}");
}
