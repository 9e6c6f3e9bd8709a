//! I/O commands, zones and passthrough.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use uaio_driver::nvme::commands::nvm::{CopySource, DatasetRange, ProtectionOptions};
use uaio_driver::nvme::commands::zone::{Zone, ZoneAction};
use uaio_driver::nvme::commands::{Buffer, Command, IoCommand as Raw};
use uaio_driver::nvme::spec::Opcode;
use uaio_driver::nvme::{ControllerOptions, Data};

use crate::cli::nvme::{
    BlocksArgs, DataArgs, IoCommand, Number, PassthruCommand, RawArgs, Target, ZoneArgs,
    ZoneCommand,
};
use crate::exit::{Exit, Failure};

use super::files;
use super::session::{Session, failure, nsid};

#[derive(Serialize)]
struct Zones {
    zones: Vec<Zone>,
}

pub(super) fn zone(session: &impl Session, command: ZoneCommand) -> Result<(), Failure> {
    let manage = |zone: ZoneArgs, action| {
        let lba = zone.zone.map_or(0, |lba| lba.0);
        session.queue(&zone.of.target)?.manage_zone(lba, action, zone.all).map_err(failure)
    };
    match command {
        ZoneCommand::Report { of, from, limit } => {
            let zones = session.queue(&of.target)?.zones(from.0, limit).map_err(failure)?;
            session.show(&Zones { zones })
        }
        ZoneCommand::Open(zone) => manage(zone, ZoneAction::Open),
        ZoneCommand::Close(zone) => manage(zone, ZoneAction::Close),
        ZoneCommand::Finish { zone, yes } => {
            nsid(&zone.of.target)?;
            let which = which(&zone);
            let what = format!("{which} of {} is full: nothing more goes into it.", zone.of.target);
            session.confirm(&zone.of.target, &what, yes.yes)?;
            manage(zone, ZoneAction::Finish)
        }
        ZoneCommand::Reset { zone, yes } => {
            nsid(&zone.of.target)?;
            let what =
                format!("{} of {} is reset: its data is gone.", which(&zone), zone.of.target);
            session.confirm(&zone.of.target, &what, yes.yes)?;
            manage(zone, ZoneAction::Reset)
        }
        ZoneCommand::Append { of, zone, file, yes } => {
            let data = files::read(&file)?;
            nsid(&of.target)?;
            let what = format!("Zone {} of {} is written.", zone.0, of.target);
            session.confirm(&of.target, &what, yes.yes)?;
            let lba = session.queue(&of.target)?.append(zone.0, data).map_err(failure)?;
            session.show(&BTreeMap::from([("lba", lba)]))
        }
    }
}

fn which(zone: &ZoneArgs) -> String {
    match zone.zone {
        Some(Number(lba)) => format!("Zone {lba}"),
        None => "Every zone".into(),
    }
}

/// Asks before blocks are changed.
fn overwritten(
    session: &impl Session,
    target: &Target,
    lba: Number,
    yes: bool,
) -> Result<(), Failure> {
    nsid(target)?;
    let what = format!("Blocks of {target} from {} on are changed.", lba.0);
    session.confirm(target, &what, yes)
}

/// Data and metadata out of their files.
fn data_of(args: &DataArgs) -> Result<(Vec<u8>, Vec<u8>), Failure> {
    let metadata = args.metadata.as_deref().map(files::read).transpose()?;
    Ok((files::read(&args.file)?, metadata.unwrap_or_default()))
}

const PLAIN: fn() -> ProtectionOptions = ProtectionOptions::default;

pub(super) fn io(session: &impl Session, command: IoCommand) -> Result<(), Failure> {
    match command {
        IoCommand::Read { blocks: BlocksArgs { of, lba, blocks }, out, metadata_out } => {
            nsid(&of.target)?;
            let mut queue = session.queue(&of.target)?;
            let (data, metadata) = queue.read_blocks(lba.0, blocks, PLAIN()).map_err(failure)?;
            files::fill(&out, files::create(&out)?, &data)?;
            match metadata_out {
                Some(path) => files::fill(&path, files::create(&path)?, &metadata),
                None => Ok(()),
            }
        }
        IoCommand::Write { data: args, fua, yes } => {
            let (data, metadata) = data_of(&args)?;
            overwritten(session, &args.of.target, args.lba, yes.yes)?;
            let mut queue = session.queue(&args.of.target)?;
            queue.write_blocks(args.lba.0, data, metadata, fua, PLAIN()).map_err(failure)
        }
        IoCommand::Flush(of) => session.queue(&of.target)?.flush().map_err(failure),
        IoCommand::Verify(BlocksArgs { of, lba, blocks }) => {
            session.queue(&of.target)?.verify(lba.0, blocks, PLAIN()).map_err(failure)
        }
        IoCommand::Compare(args) => {
            let (data, metadata) = data_of(&args)?;
            let mut queue = session.queue(&args.of.target)?;
            let same = queue.compare(args.lba.0, data, metadata, PLAIN()).map_err(failure)?;
            same_or_not(&args.of.target, same)
        }
        IoCommand::CompareAndWrite { data: args, new, yes } => {
            let (old, _) = data_of(&args)?;
            let new = files::read(&new)?;
            overwritten(session, &args.of.target, args.lba, yes.yes)?;
            let mut queue = session.queue(&args.of.target)?;
            let same = queue.compare_and_write(args.lba.0, old, new).map_err(failure)?;
            same_or_not(&args.of.target, same)
        }
        IoCommand::Copy { of, to, from, yes } => {
            let sources = from.iter().map(|text| source(text)).collect::<Result<Vec<_>, _>>()?;
            overwritten(session, &of.target, to, yes.yes)?;
            session.queue(&of.target)?.copy(&sources, to.0).map_err(failure)
        }
        IoCommand::Zero { blocks: BlocksArgs { of, lba, blocks }, deallocate, yes } => {
            overwritten(session, &of.target, lba, yes.yes)?;
            let mut queue = session.queue(&of.target)?;
            queue.write_zeroes(lba.0, blocks, deallocate, PLAIN()).map_err(failure)
        }
        IoCommand::Trim { blocks: BlocksArgs { of, lba, blocks }, yes } => {
            overwritten(session, &of.target, lba, yes.yes)?;
            let range = DatasetRange { lba: lba.0, blocks, attributes: 0 };
            session.queue(&of.target)?.dataset_management(&[range], true).map_err(failure)
        }
        IoCommand::WriteUncorrectable { blocks: BlocksArgs { of, lba, blocks }, yes } => {
            overwritten(session, &of.target, lba, yes.yes)?;
            session.queue(&of.target)?.write_uncorrectable(lba.0, blocks).map_err(failure)
        }
    }
}

fn same_or_not(target: &Target, same: bool) -> Result<(), Failure> {
    if same {
        return Ok(());
    }
    Err(Failure::new(Exit::Failure, format!("{target}: the blocks hold something else"), ""))
}

/// `LBA+BLOCKS`.
fn source(text: &str) -> Result<CopySource, Failure> {
    let parsed = text.split_once('+').and_then(|(lba, blocks)| {
        let Number(lba) = lba.parse().ok()?;
        Some(CopySource { lba, blocks: blocks.parse().ok()? })
    });
    parsed.ok_or_else(|| {
        let what = format!("`{text}` is not a range of blocks");
        Failure::new(Exit::Usage, what, "write LBA+BLOCKS, such as 4096+8")
    })
}

#[derive(Serialize)]
struct Passed {
    result: u64,
    data: Option<String>,
}

/// `N=NUMBER`, each; those of a command are 2, 3 and 10 to 15.
fn raw(args: &RawArgs, nsid: u32) -> Result<Command, Failure> {
    let usage = |what: String| Failure::new(Exit::Usage, what, "nothing was sent");
    let opcode = u8::try_from(args.opcode.0).map_err(|_| usage("an opcode has 8 bits".into()))?;
    let mut command = Command::new(Opcode(opcode), nsid);
    for text in &args.dword {
        let parsed = text.split_once('=').and_then(|(number, value)| {
            let Number(value) = value.parse().ok()?;
            Some((number.parse::<usize>().ok()?, u32::try_from(value).ok()?))
        });
        match parsed {
            Some((2, value)) => command.cdw2 = value,
            Some((3, value)) => command.cdw3 = value,
            Some((number @ 10..=15, value)) => command = command.dword(number, value),
            _ => {
                let what =
                    format!("`{text}` is not a dword: write N=NUMBER with N 2, 3 or 10 to 15");
                return Err(usage(what));
            }
        }
    }
    Ok(command.within(Duration::from_secs(args.timeout.into())))
}

pub(super) fn passthru(session: &impl Session, command: PassthruCommand) -> Result<(), Failure> {
    let (args, io) = match command {
        PassthruCommand::Admin(args) => (args, false),
        PassthruCommand::Io(args) => (args, true),
    };
    let target = args.of.target;
    let nsid = if io { nsid(&target)? } else { target.nsid.unwrap_or(0) };
    let command = raw(&args, nsid)?;
    let out = args.file.as_deref().map(files::read).transpose()?;
    let what = format!("Command {:#04x} is sent to {target} as it is.", command.opcode.0);
    session.confirm(&target, &what, args.yes.yes)?;
    // What is too large is refused by the controller's own limit before memory is taken for it.
    let timeout = Duration::from_secs(args.timeout.into());
    let how = ControllerOptions { command_timeout: timeout, ..Default::default() };
    let controller = session.open_with(&target, how)?;
    let most = controller.identify().transfer_max_bytes;
    if args.read > most {
        let what = format!("{} bytes; one command carries at most {most}", args.read);
        return Err(Failure::new(Exit::Usage, what, "nothing was sent"));
    }
    let mut bytes = vec![0; args.read as usize];
    let result = if io {
        let mut queue = controller.command_queue(nsid, 1).map_err(failure)?;
        let data = match (out, args.read) {
            (Some(out), _) => Buffer::Out(out),
            (None, 0) => Buffer::None,
            (None, read) => Buffer::In(read as usize),
        };
        let (result, data, _) =
            queue.execute(Raw { data, ..Raw::new(command) }).map_err(failure)?;
        bytes = data;
        result
    } else {
        let data = match (&out, args.read) {
            (Some(out), _) => Data::Out(out),
            (None, 0) => Data::None,
            (None, _) => Data::In(&mut bytes),
        };
        controller.admin(&command, data).map_err(failure)?.into()
    };
    session.show(&Passed { result, data: (args.read > 0).then(|| files::hex(&bytes)) })
}
