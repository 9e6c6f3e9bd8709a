//! Many requests in one call: `lio_listio`.

use super::control::{Aiocb, Control};
use super::landing::Group;
use super::notice::Notice;
use super::submit::{self, Action, Request};
use super::suspend;
use crate::serve::{Counters, Operation, Service};

/// Whether the call waits.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mode {
    /// Until all are over.
    Wait,
    /// Not at all; this is told when all are over.
    NoWait(Notice),
}

/// Submits what the list asks for. EIO if one failed, or was refused, which its own status then says.
pub(super) fn submit(service: &Service, mode: Mode, list: &[*mut Aiocb]) -> Result<(), i32> {
    let group = Group::new(match mode {
        Mode::Wait => Notice::None,
        Mode::NoWait(notice) => notice,
    });
    let mut refused = false;
    let mut operations: Vec<Operation> = Vec::with_capacity(list.len());
    for control in list.iter().filter_map(|block| Control::new(*block)) {
        let action = match control.fields().lio_opcode {
            libc::LIO_READ => Ok(Action::Read),
            libc::LIO_WRITE => Ok(Action::Write),
            libc::LIO_NOP => continue,
            _ => Err(libc::EINVAL),
        };
        let request = action.and_then(|action| submit::request(control, action, Some(&group)));
        control.begin(service.generation());
        match request {
            Ok(Request::Queued(operation)) => {
                group.add();
                operations.push(operation);
            }
            Ok(Request::Here(here, landing)) => {
                group.add();
                Counters::count(&service.counters.posix);
                landing.land_here(here.act());
            }
            Err(errno) => {
                control.land(Err(errno));
                refused = true;
            }
        }
    }
    service.submit(operations.into_iter());
    if refused {
        // Those whose status says so already.
        suspend::tell();
    }
    // All are on their way: now the last of them may be the last.
    if let Some(notice) = group.finish_one() {
        notice.tell();
    }
    if let Mode::Wait = mode {
        group.wait()?;
        refused |= group.has_failed();
    }
    if refused { Err(libc::EIO) } else { Ok(()) }
}
