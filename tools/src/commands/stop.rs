//! `aioctl flush` and `aioctl del`: what the server does and answers with a plain yes.

use super::{Context, milliseconds};
use crate::cli::{Deadline, DelArgs, DeviceId};
use crate::client::{ask, unexpected};
use crate::exit::Failure;
use crate::protocol::{Answer, Command};

pub(crate) fn flush(context: &Context, id: DeviceId, deadline: Deadline) -> Result<(), Failure> {
    done(context, id, Command::Flush { deadline_ms: milliseconds(deadline) })
}

pub(crate) fn del(context: &Context, args: DelArgs) -> Result<(), Failure> {
    let DelArgs { id, force, discard_dirty, deadline } = args;
    let deadline_ms = milliseconds(deadline);
    done(context, id, Command::Delete { force, discard_dirty, deadline_ms })
}

fn done(context: &Context, id: DeviceId, command: Command) -> Result<(), Failure> {
    match ask(&context.run, &context.system, id, command)? {
        Answer::Done => Ok(()),
        _ => Err(unexpected()),
    }
}
