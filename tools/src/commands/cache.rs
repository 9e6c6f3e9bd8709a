//! `aioctl cache …`: what is in a device's cache, and how large it may be.

use super::{Context, milliseconds};
use crate::cli::{CacheCommand, DeviceId, LimitArgs};
use crate::client::{ask, unexpected};
use crate::exit::Failure;
use crate::protocol::{Amount, Answer, Command, Dropped, Limits, Residency};
use crate::table;
use uaio_driver::url::ByteSize;

pub(crate) fn run(context: &Context, command: CacheCommand) -> Result<(), Failure> {
    match command {
        CacheCommand::Residency { id, range } => {
            let (offset_bytes, len_bytes) = range.bytes();
            match ask_for(context, id, Command::Residency { offset_bytes, len_bytes })? {
                Answer::Residency(found) => context.print(&found, residency),
                _ => Err(unexpected()),
            }
        }
        CacheCommand::Drop { id, range } => {
            let (offset_bytes, len_bytes) = range.bytes();
            match ask_for(context, id, Command::DropClean { offset_bytes, len_bytes })? {
                Answer::Dropped(done) => context.print(&done, dropped),
                _ => Err(unexpected()),
            }
        }
        CacheCommand::Resize { id, size, deadline } => {
            let deadline_ms = milliseconds(deadline);
            done(ask_for(context, id, Command::Resize { size_bytes: size.0, deadline_ms })?)
        }
        CacheCommand::Limit(args) => done(ask_for(context, args.id, Command::Limit(limits(args)))?),
    }
}

fn limits(args: LimitArgs) -> Limits {
    let amount = |percent: Option<u8>, size: Option<ByteSize>| {
        percent.map(Amount::Percent).or(size.map(|size| Amount::Bytes(size.0)))
    };
    Limits {
        hard: amount(args.dirty_percent, args.dirty),
        background: amount(args.background_percent, args.background),
        age_ms: args.age_ms,
    }
}

fn ask_for(context: &Context, id: DeviceId, command: Command) -> Result<Answer, Failure> {
    ask(&context.run, &context.system, id, command)
}

fn done(answer: Answer) -> Result<(), Failure> {
    match answer {
        Answer::Done => Ok(()),
        _ => Err(unexpected()),
    }
}

fn residency(found: &Residency) -> String {
    let mib = |bytes| ByteSize(bytes).mib();
    table::pairs([
        ("range (MiB)", mib(found.range_bytes)),
        ("cached (MiB)", mib(found.cached_bytes)),
        ("dirty (MiB)", mib(found.dirty_bytes)),
        ("under writeback (MiB)", mib(found.writeback_bytes)),
        ("recently evicted (MiB)", found.recently_evicted_bytes.map_or("-".into(), mib)),
    ])
}

fn dropped(done: &Dropped) -> String {
    table::pairs([
        ("dropped (MiB)", ByteSize(done.dropped_bytes).mib()),
        ("kept (MiB)", ByteSize(done.kept_bytes).mib()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_residency_has_its_units_and_a_dash_for_what_is_not_known() {
        let found = Residency {
            range_bytes: 1 << 30,
            cached_bytes: 3 << 20,
            dirty_bytes: 4096,
            writeback_bytes: 0,
            recently_evicted_bytes: None,
        };
        assert_eq!(
            residency(&found),
            "range (MiB)             1024\n\
             cached (MiB)            3\n\
             dirty (MiB)             0.1\n\
             under writeback (MiB)   0\n\
             recently evicted (MiB)  -\n"
        );
    }
}
