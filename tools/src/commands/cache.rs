//! `aioctl cache …`: what is in a device's cache, what was lost, and how large it may be.

use serde::Serialize;

use super::{Context, confirm, milliseconds};
use crate::cli::{ByteRange, CacheCommand, DeviceId, LimitArgs, MemoryMax};
use crate::client::{ask, unexpected};
use crate::exit::Failure;
use crate::protocol::{self, Amount, Answer, Command, Dropped, Limits, Lost, LostRange, Residency};
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
        CacheCommand::Lost { id, range } => context.print(&lost(context, id, range)?, lost_table),
        CacheCommand::AcceptLoss { id, range, yes } => accept_loss(context, id, range, yes),
        CacheCommand::Resize { id, size, deadline } => {
            let deadline_ms = milliseconds(deadline);
            done(ask_for(context, id, Command::Resize { size_bytes: size.0, deadline_ms })?)
        }
        CacheCommand::Limit(args) => done(ask_for(context, args.id, Command::Limit(limits(args)))?),
    }
}

/// What became of what was lost. Printed as it is by `aioctl cache accept-loss --json`.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Accepted {
    accepted_bytes: u64,
    /// Blocks that only part of the range covers, or that were lost meanwhile.
    still_lost_bytes: u64,
}

fn lost(context: &Context, id: DeviceId, range: ByteRange) -> Result<Lost, Failure> {
    let (offset_bytes, len_bytes) = range.bytes();
    match ask_for(context, id, Command::Lost { offset_bytes, len_bytes })? {
        Answer::Lost(lost) => Ok(lost),
        _ => Err(unexpected()),
    }
}

fn accept_loss(
    context: &Context,
    id: DeviceId,
    range: ByteRange,
    yes: bool,
) -> Result<(), Failure> {
    let Lost { lost_bytes, ranges } = lost(context, id, range)?;
    if !ranges.is_empty() {
        let what = format!("flushes of {id} will not fail any more for {lost_bytes} lost bytes");
        confirm(id, &what, yes)?;
    }
    let mut accepted = Accepted::default();
    // Range by range, as they were asked about: what is lost meanwhile elsewhere is not accepted with them.
    for LostRange { offset_bytes, len_bytes } in ranges {
        match ask_for(context, id, Command::AcceptLoss { offset_bytes, len_bytes })? {
            Answer::Lost(Lost { lost_bytes, .. }) => {
                accepted.accepted_bytes += len_bytes.saturating_sub(lost_bytes);
                accepted.still_lost_bytes += lost_bytes;
            }
            _ => return Err(unexpected()),
        }
    }
    context.print(&accepted, |accepted| {
        table::pairs([
            ("accepted (bytes)", accepted.accepted_bytes.to_string()),
            ("still lost (bytes)", accepted.still_lost_bytes.to_string()),
        ])
    })
}

fn limits(args: LimitArgs) -> Limits {
    let amount = |percent: Option<u8>, size: Option<ByteSize>| {
        percent.map(Amount::Percent).or(size.map(|size| Amount::Bytes(size.0)))
    };
    Limits {
        hard: amount(args.dirty_percent, args.dirty),
        background: amount(args.background_percent, args.background),
        age_ms: args.age_ms,
        memory_max: args.memory_max.map(|MemoryMax(size)| match size {
            None => protocol::MemoryMax::None,
            Some(size) => protocol::MemoryMax::Bytes(size.0),
        }),
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

fn lost_table(lost: &Lost) -> String {
    let row = |range: &LostRange| vec![range.offset_bytes.to_string(), range.len_bytes.to_string()];
    table::rows(&["OFFSET bytes>", "LENGTH bytes>"], lost.ranges.iter().map(row))
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
    fn what_is_lost_is_a_range_a_line() {
        let range = |offset_bytes, len_bytes| LostRange { offset_bytes, len_bytes };
        let lost = Lost { lost_bytes: 8704, ranges: vec![range(512, 8192), range(1 << 30, 512)] };
        assert_eq!(
            lost_table(&lost),
            "OFFSET bytes  LENGTH bytes\n         512          8192\n  1073741824           512\n"
        );
    }

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
