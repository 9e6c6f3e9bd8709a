//! What changes a drive: format, sanitize, self-test, firmware, security, directives, reservations.

use std::collections::BTreeMap;

use serde::Serialize;
use uaio_driver::nvme::commands::NSID_ALL;
use uaio_driver::nvme::commands::directive::{self, DataPlacement, Directive, StreamParameters};
use uaio_driver::nvme::commands::firmware::{Activation, CommitAction};
use uaio_driver::nvme::commands::format::{Format, Sanitize, SecureErase, SelfTest};
use uaio_driver::nvme::commands::reservation::{Acquire, Register, ReservationType};
use uaio_driver::nvme::commands::security::SecurityProtocol;

use crate::cli::nvme::{
    CommitKind, DirectiveCommand, EraseKind, FirmwareCommand, FormatArgs, Number, OfEither,
    ProtocolArgs, ReservationCommand, ReservationKind, SanitizeArgs, SanitizeKind, SecurityCommand,
    SelfTestKind, Target,
};
use crate::exit::{Exit, Failure};

use super::files;
use super::session::{Session, failure, nsid, whole};

pub(super) fn format(session: &impl Session, args: FormatArgs) -> Result<(), Failure> {
    let FormatArgs { of, format, metadata, erase, yes } = args;
    let nsid = nsid(&of.target)?;
    let erase = match erase {
        EraseKind::None => SecureErase::None,
        EraseKind::UserData => SecureErase::UserData,
        EraseKind::Crypto => SecureErase::Cryptographic,
    };
    // What is lost, and what the format is now, the drive says; it is let go while the user is asked.
    let (all, now) = {
        let controller = session.open(&of.target)?;
        let all = controller.formats_all(erase).map_err(failure)?;
        (all, controller.identify_namespace(nsid).map_err(failure)?)
    };
    let format = match format {
        Some(format) => Format {
            metadata_with_data: metadata.metadata_with_data,
            protection: metadata.protection,
            protection_first: metadata.protection_first,
            erase,
            ..Format::new(format)
        },
        None if metadata.is_default() => Format { erase, ..Format::of(&now) },
        None => {
            let what = "options of a format were given, and no format";
            return Err(Failure::new(Exit::Usage, what, "give --format too"));
        }
    };
    let (asked, what) = match all {
        true => {
            let whole = Target { nsid: None, ..of.target };
            let what = format!("All namespaces of {whole} are formatted: all their data is gone.");
            (whole, what)
        }
        false => {
            let what = format!("Namespace {} is formatted: all its data is gone.", of.target);
            (of.target, what)
        }
    };
    session.confirm(&asked, &what, yes.yes)?;
    session.open(&of.target)?.format(nsid, format).map_err(failure)
}

pub(super) fn sanitize(session: &impl Session, args: SanitizeArgs) -> Result<(), Failure> {
    whole(&args.of.target)?;
    let pattern = u32::try_from(args.pattern.0).map_err(|_| too_large("--pattern", 32))?;
    let sanitize = match args.action {
        SanitizeKind::ExitFailure => Sanitize::ExitFailure,
        SanitizeKind::BlockErase => Sanitize::BlockErase,
        SanitizeKind::Overwrite => {
            Sanitize::Overwrite { passes: args.passes, pattern, invert: args.invert }
        }
        SanitizeKind::CryptoErase => Sanitize::CryptoErase,
    };
    let target = &args.of.target;
    let what = format!("Drive {target} is sanitized: all data of all its namespaces is gone.");
    session.confirm(target, &what, args.yes.yes)?;
    session
        .open(target)?
        .sanitize(sanitize, args.allow_unrestricted, args.no_deallocate)
        .map_err(failure)
}

pub(super) fn self_test(
    session: &impl Session,
    of: OfEither,
    test: SelfTestKind,
) -> Result<(), Failure> {
    let test = match test {
        SelfTestKind::Short => SelfTest::Short,
        SelfTestKind::Extended => SelfTest::Extended,
        SelfTestKind::Abort => SelfTest::Abort,
    };
    let nsid = of.target.nsid.unwrap_or(NSID_ALL);
    session.open(&of.target)?.self_test(nsid, test).map_err(failure)
}

pub(super) fn firmware(session: &impl Session, command: FirmwareCommand) -> Result<(), Failure> {
    match command {
        FirmwareCommand::Download { of, file, yes } => {
            whole(&of.target)?;
            let image = files::read(&file)?;
            let what =
                format!("An image is put into {}, in place of one not yet committed.", of.target);
            session.confirm(&of.target, &what, yes.yes)?;
            session.open(&of.target)?.download_firmware(&image).map_err(failure)
        }
        FirmwareCommand::Commit { of, slot, action, yes } => {
            whole(&of.target)?;
            let action = match action {
                CommitKind::Store => CommitAction::Store,
                CommitKind::StoreActivate => CommitAction::StoreAndActivateAtReset,
                CommitKind::Activate => CommitAction::ActivateAtReset,
                CommitKind::ActivateNow => CommitAction::ActivateNow,
            };
            let what = format!("The firmware of {} is changed.", of.target);
            session.confirm(&of.target, &what, yes.yes)?;
            let activation =
                session.open(&of.target)?.commit_firmware(slot, action).map_err(failure)?;
            let needs = match activation {
                Activation::Done => "nothing",
                Activation::NeedsControllerReset => "controller-reset",
                Activation::NeedsSubsystemReset => "subsystem-reset",
                Activation::NeedsConventionalReset => "conventional-reset",
            };
            session.show(&BTreeMap::from([("activation_needs", needs)]))
        }
    }
}

fn too_large(what: &str, bits: u32) -> Failure {
    Failure::new(Exit::Usage, format!("{what} has at most {bits} bits"), "nothing was changed")
}

fn protocol(args: &ProtocolArgs) -> Result<SecurityProtocol, Failure> {
    Ok(SecurityProtocol {
        protocol: args.protocol.0.try_into().map_err(|_| too_large("--protocol", 8))?,
        specific: args.specific.0.try_into().map_err(|_| too_large("--specific", 16))?,
        nvme_specific: 0,
    })
}

pub(super) fn security(session: &impl Session, command: SecurityCommand) -> Result<(), Failure> {
    match command {
        SecurityCommand::Send { protocol: args, file, yes } => {
            let protocol = protocol(&args)?;
            let data = files::read(&file)?;
            let target = &args.of.target;
            let what = format!("A security protocol of {target} may lock it or change its keys.");
            session.confirm(target, &what, yes.yes)?;
            let nsid = target.nsid.unwrap_or(0);
            session.open(target)?.security_send(nsid, protocol, &data).map_err(failure)
        }
        SecurityCommand::Receive { protocol: args, length } => {
            let protocol = protocol(&args)?;
            let controller = session.open(&args.of.target)?;
            let most = controller.identify().transfer_max_bytes;
            if length == 0 || length > most {
                let what = format!("{length} bytes; one command carries 1 to {most}");
                return Err(Failure::new(Exit::Usage, what, "nothing was changed"));
            }
            let mut data = vec![0; length as usize];
            let nsid = args.of.target.nsid.unwrap_or(0);
            controller.security_receive(nsid, protocol, &mut data).map_err(failure)?;
            session.show(&BTreeMap::from([("data", files::hex(&data))]))
        }
    }
}

#[derive(Serialize)]
struct Directives {
    streams: Option<StreamParameters>,
    directives: Vec<Directive>,
}

pub(super) fn directive(session: &impl Session, command: DirectiveCommand) -> Result<(), Failure> {
    match command {
        DirectiveCommand::List(of) => {
            let nsid = nsid(&of.target)?;
            let controller = session.open(&of.target)?;
            let directives = controller.directives(nsid).map_err(failure)?;
            let has = |it: &Directive| it.directive_type == directive::STREAMS && it.enabled;
            let streams = match directives.iter().any(has) {
                true => Some(controller.stream_parameters(nsid).map_err(failure)?),
                false => None,
            };
            session.show(&Directives { streams, directives })
        }
        DirectiveCommand::EnableStreams(of) => {
            let nsid = nsid(&of.target)?;
            let controller = session.open(&of.target)?;
            controller.enable_directive(nsid, directive::STREAMS, true).map_err(failure)
        }
        DirectiveCommand::DisableStreams(of) => {
            let nsid = nsid(&of.target)?;
            let controller = session.open(&of.target)?;
            controller.enable_directive(nsid, directive::STREAMS, false).map_err(failure)
        }
        DirectiveCommand::AllocateStreams { of, count } => {
            let nsid = nsid(&of.target)?;
            let streams =
                session.open(&of.target)?.allocate_streams(nsid, count).map_err(failure)?;
            session.show(&BTreeMap::from([("streams", streams)]))
        }
        DirectiveCommand::ReleaseStreams(of) => {
            let nsid = nsid(&of.target)?;
            session.open(&of.target)?.release_streams(nsid).map_err(failure)
        }
        DirectiveCommand::Fdp { of, group, set } => {
            whole(&of.target)?;
            let wanted = match set.as_deref() {
                None => None,
                Some("off") => Some(DataPlacement { enabled: false, configuration: 0 }),
                Some(text) => match text.parse() {
                    Ok(configuration) => Some(DataPlacement { enabled: true, configuration }),
                    Err(_) => {
                        let what = format!("`{text}` is neither a configuration nor `off`");
                        return Err(Failure::new(Exit::Usage, what, "see `aioctl nvme log fdp`"));
                    }
                },
            };
            let controller = session.open(&of.target)?;
            if let Some(placement) = wanted {
                controller.set_data_placement(group, placement).map_err(failure)?;
            }
            session.show(&controller.data_placement(group).map_err(failure)?)
        }
        DirectiveCommand::Handles(of) => {
            session.show(&session.queue(&of.target)?.reclaim_unit_handles().map_err(failure)?)
        }
        DirectiveCommand::UpdateHandles { of, placements } => {
            session.queue(&of.target)?.update_reclaim_units(&placements).map_err(failure)
        }
    }
}

fn kind(kind: ReservationKind) -> ReservationType {
    match kind {
        ReservationKind::WriteExclusive => ReservationType::WriteExclusive,
        ReservationKind::ExclusiveAccess => ReservationType::ExclusiveAccess,
        ReservationKind::WriteExclusiveRegistrants => ReservationType::WriteExclusiveRegistrants,
        ReservationKind::ExclusiveAccessRegistrants => ReservationType::ExclusiveAccessRegistrants,
        ReservationKind::WriteExclusiveAll => ReservationType::WriteExclusiveAll,
        ReservationKind::ExclusiveAccessAll => ReservationType::ExclusiveAccessAll,
    }
}

pub(super) fn reservation(
    session: &impl Session,
    command: ReservationCommand,
) -> Result<(), Failure> {
    match command {
        ReservationCommand::Report(of) => {
            session.show(&session.queue(&of.target)?.reservation_report().map_err(failure)?)
        }
        ReservationCommand::Register { of, new, current, persist } => {
            let register = match (current, new) {
                (None, Some(Number(new))) => Register::Register { new },
                (Some(Number(current)), Some(Number(new))) => Register::Replace { current, new },
                (Some(Number(current)), None) => Register::Unregister { current },
                (None, None) => {
                    let what = "a key to register or to take back is needed";
                    return Err(Failure::new(Exit::Usage, what, "give --new or --current"));
                }
            };
            let persist = persist.then_some(true);
            session.queue(&of.target)?.register(register, false, persist).map_err(failure)
        }
        ReservationCommand::Acquire { of, current, kind: wanted, preempt, yes } => {
            nsid(&of.target)?;
            let acquire = match preempt {
                Some(Number(key)) => {
                    let what = format!(
                        "The host with key {key:#x} loses its registration with {}, and may no \
                         longer write.",
                        of.target
                    );
                    session.confirm(&of.target, &what, yes.yes)?;
                    Acquire::Preempt { key }
                }
                None => Acquire::Acquire,
            };
            session.queue(&of.target)?.acquire(acquire, kind(wanted), current.0).map_err(failure)
        }
        ReservationCommand::Release { of, current, kind: held } => {
            session.queue(&of.target)?.release(held.map(kind), current.0).map_err(failure)
        }
    }
}
