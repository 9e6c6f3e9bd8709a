//! `aioctl flush` and `aioctl del`: what the server does and answers with a plain yes.

use super::{Context, milliseconds};
use crate::cli::{ByteRange, Deadline, DelArgs, DeviceId};
use crate::client::{ask, unexpected};
use crate::exit::Failure;
use crate::protocol::{Answer, Command, FlushRange};

pub(crate) fn flush(
    context: &Context,
    id: DeviceId,
    range: ByteRange,
    deadline: Deadline,
) -> Result<(), Failure> {
    let (offset_bytes, len_bytes) = range.bytes();
    let whole = offset_bytes == 0 && len_bytes == u64::MAX;
    let range = (!whole).then_some(FlushRange { offset_bytes, len_bytes });
    done(context, id, Command::Flush { range, deadline_ms: milliseconds(deadline) })
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
