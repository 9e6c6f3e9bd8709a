//! Finding the server of a device and talking to it.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;

use crate::cli::DeviceId;
use crate::exit::{Exit, Failure};
use crate::protocol::{self, Answer, Command};
use crate::record::RunDir;
use crate::system::System;

/// Asks the server of `id`.
///
/// # Errors
///
/// That there is no such device, that its server is dead, what it answered.
pub(crate) fn ask(
    run: &RunDir,
    system: &System,
    id: DeviceId,
    command: Command,
) -> Result<Answer, Failure> {
    let log = run.read(id).map_or_else(|| "its log".into(), |record| record.log_name());
    let stream = UnixStream::connect(run.socket(id)).map_err(|error| match error.kind() {
        ErrorKind::NotFound => not_served(run, system, id),
        ErrorKind::ConnectionRefused => dead(id),
        _ => Failure::os(format!("connect to the server of {id}"), error),
    })?;
    protocol::ask(&stream, command, &log)
}

fn not_served(run: &RunDir, system: &System, id: DeviceId) -> Failure {
    match run.read(id) {
        Some(record) if record.is_alive(system) => Failure::new(
            Exit::Failure,
            format!("the server of {id}, process {}, has no control socket", record.pid),
            "stop it with SIGTERM",
        ),
        Some(_) => dead(id),
        None => Failure::new(Exit::NotFound, format!("{id} is not served"), "see `aioctl list`"),
    }
}

fn dead(id: DeviceId) -> Failure {
    Failure::new(
        Exit::NotFound,
        format!("the server of {id} has died"),
        "`aioctl list` clears it away, then add it again",
    )
}

/// For an answer that does not fit the question.
pub(crate) fn unexpected() -> Failure {
    Failure::new(
        Exit::Failure,
        "the server answered something else than it was asked",
        "use the aioctl that the server was started with",
    )
}
