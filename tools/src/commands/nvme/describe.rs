//! What a drive says: Identify, log pages, features, namespaces.

use std::collections::BTreeMap;

use serde::Serialize;
use uaio_driver::nvme::commands::NSID_ALL;
use uaio_driver::nvme::commands::identify::NamespaceDescriptors;
use uaio_driver::nvme::commands::namespaces::NewNamespace;
use uaio_driver::nvme::spec::command::csi;
use uaio_driver::nvme::spec::feature::{FEATURES, Feature, Select};
use uaio_driver::nvme::spec::log::{
    EffectsLog, ErrorEntry, FdpConfiguration, FdpStatistics, effect,
};
use uaio_driver::nvme::spec::{IdentifyNamespace, Opcode};

use crate::cli::nvme::{
    FeatureCommand, IdCommand, LogCommand, NsCommand, Number, SelectKind, Target,
};
use crate::exit::{Exit, Failure};

use super::files;
use super::session::{Session, failure, nsid, whole};

#[derive(Serialize)]
struct IdentifiedNamespace {
    nsid: u32,
    #[serde(flatten)]
    id: IdentifyNamespace,
    names: NamespaceDescriptors,
}

pub(super) fn id(session: &impl Session, command: IdCommand) -> Result<(), Failure> {
    match command {
        IdCommand::Ctrl(of) => {
            whole(&of.target)?;
            let id = session.open(&of.target)?.identify_controller().map_err(failure)?;
            let states = usize::from(id.npss) + 1;
            // As many power states as there are.
            let mut value = serde_json::to_value(Json(&id)).map_err(json_failure)?;
            if let Some(list) = value.get_mut("psd").and_then(serde_json::Value::as_array_mut) {
                list.truncate(states);
            }
            session.show(&value)
        }
        IdCommand::Ns(of) => {
            let nsid = nsid(&of.target)?;
            let controller = session.open(&of.target)?;
            let id = controller.identify_namespace(nsid).map_err(failure)?;
            // Optional before 1.3.
            let names = controller.namespace_descriptors(nsid).unwrap_or_default();
            let formats = id.formats().len();
            let identified = IdentifiedNamespace { nsid, id, names };
            let mut value = serde_json::to_value(Json(&identified)).map_err(json_failure)?;
            if let Some(list) = value.get_mut("lbaf").and_then(serde_json::Value::as_array_mut) {
                list.truncate(formats);
            }
            session.show(&value)
        }
    }
}

/// A value whose 128-bit numbers may not fit what `serde_json::Value` holds: they go through text.
struct Json<'a, T>(&'a T);

impl<T: Serialize> Serialize for Json<'_, T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = serde_json::to_string(self.0).map_err(serde::ser::Error::custom)?;
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(serde::ser::Error::custom)?;
        value.serialize(serializer)
    }
}

fn json_failure(error: serde_json::Error) -> Failure {
    Failure::os("make JSON", std::io::Error::other(error))
}

#[derive(Serialize)]
struct Namespaces {
    namespaces: Vec<ListedNamespace>,
}

#[derive(Serialize)]
struct ListedNamespace {
    id: u32,
    attached: bool,
    size_bytes: u64,
    block_size_bytes: u64,
    metadata_bytes: u16,
    blocks: u64,
    read_only: bool,
    command_set: Option<u8>,
}

#[derive(Serialize)]
struct Created {
    namespace: u32,
}

pub(super) fn ns(session: &impl Session, command: NsCommand) -> Result<(), Failure> {
    match command {
        NsCommand::List { of, all } => {
            whole(&of.target)?;
            let controller = session.open(&of.target)?;
            let attached = controller.namespace_ids(false).map_err(failure)?;
            let ids = if all {
                controller.namespace_ids(true).map_err(failure)?
            } else {
                attached.clone()
            };
            let mut namespaces = Vec::new();
            for id in ids {
                let data = match attached.contains(&id) {
                    true => controller.identify_namespace(id).map_err(failure)?,
                    false => controller.identify_allocated_namespace(id).map_err(failure)?,
                };
                let format = data.format();
                let block = 1u64.checked_shl(format.lbads.into()).unwrap_or(0);
                namespaces.push(ListedNamespace {
                    id,
                    attached: attached.contains(&id),
                    size_bytes: data.nsze.saturating_mul(block),
                    block_size_bytes: block,
                    metadata_bytes: format.ms,
                    blocks: data.nsze,
                    read_only: data.nsattr & 1 != 0,
                    command_set: controller.namespace_descriptors(id).ok().and_then(|it| it.csi),
                });
            }
            session.show(&Namespaces { namespaces })
        }
        NsCommand::Create { of, size, format, metadata, shared, attach } => {
            whole(&of.target)?;
            let controller = session.open(&of.target)?;
            let common = controller.identify_namespace(NSID_ALL).map_err(failure)?;
            let Some(lba_format) = common.formats().get(usize::from(format)) else {
                let what = format!("{}: there is no LBA format {format}", of.target);
                return Err(Failure::new(Exit::Usage, what, "see `aioctl nvme id ns`"));
            };
            let block = 1u64.checked_shl(lba_format.lbads.into()).filter(|&block| block > 0);
            let blocks =
                block.filter(|&block| size.0.is_multiple_of(block)).map(|block| size.0 / block);
            let Some(blocks) = blocks else {
                let what = format!("{size} is not a multiple of the format's block size");
                return Err(Failure::new(Exit::Usage, what, "nothing was changed"));
            };
            let new = NewNamespace {
                metadata_with_data: metadata.metadata_with_data,
                protection: metadata.protection,
                protection_first: metadata.protection_first,
                shared,
                ..NewNamespace::new(blocks, format)
            };
            let namespace = controller.create_namespace(new).map_err(failure)?;
            if attach {
                controller.attach_namespace(namespace, true, &[]).map_err(failure)?;
            }
            session.show(&Created { namespace })
        }
        NsCommand::Delete { of, yes } => {
            let nsid = nsid(&of.target)?;
            let what = format!("Namespace {} is deleted, with all its data.", of.target);
            session.confirm(&of.target, &what, yes.yes)?;
            session.open(&of.target)?.delete_namespace(nsid).map_err(failure)
        }
        NsCommand::Attach { of, controllers } => {
            let nsid = nsid(&of.target)?;
            session.open(&of.target)?.attach_namespace(nsid, true, &controllers).map_err(failure)
        }
        NsCommand::Detach { of, controllers, yes } => {
            let nsid = nsid(&of.target)?;
            let what = format!("Namespace {} is taken from whoever uses it.", of.target);
            session.confirm(&of.target, &what, yes.yes)?;
            session.open(&of.target)?.attach_namespace(nsid, false, &controllers).map_err(failure)
        }
    }
}

#[derive(Serialize)]
struct List<T> {
    entries: Vec<T>,
}

#[derive(Serialize)]
struct Effect {
    set: &'static str,
    opcode: u8,
    command: String,
    changes_data: bool,
    changes_namespace_capabilities: bool,
    changes_namespace_inventory: bool,
    changes_controller_capabilities: bool,
}

fn effects(log: &EffectsLog) -> List<Effect> {
    let of = |set, entries: &[u32; 256], name: fn(Opcode) -> String| -> Vec<Effect> {
        let supported =
            (0..=u8::MAX).zip(entries).filter(|(_, bits)| **bits & effect::SUPPORTED != 0);
        supported
            .map(|(opcode, &bits)| Effect {
                set,
                opcode,
                command: name(Opcode(opcode)),
                changes_data: bits & effect::CONTENT != 0,
                changes_namespace_capabilities: bits & effect::NAMESPACE_CAPABILITY != 0,
                changes_namespace_inventory: bits & effect::NAMESPACE_INVENTORY != 0,
                changes_controller_capabilities: bits & effect::CONTROLLER_CAPABILITY != 0,
            })
            .collect()
    };
    let mut entries = of("admin", &log.admin, Opcode::admin_name);
    entries.extend(of("io", &log.io, Opcode::io_name));
    List { entries }
}

#[derive(Serialize)]
struct LoggedError {
    #[serde(flatten)]
    entry: ErrorEntry,
    status: String,
}

#[derive(Serialize)]
struct Fdp {
    statistics: FdpStatistics,
    configurations: Vec<FdpConfiguration>,
}

#[derive(Serialize)]
struct Changed<T> {
    changed: Vec<T>,
    more_than_listed: bool,
}

impl<T> Changed<T> {
    fn new(list: Option<Vec<T>>) -> Self {
        Self { more_than_listed: list.is_none(), changed: list.unwrap_or_default() }
    }
}

pub(super) fn log(session: &impl Session, command: LogCommand) -> Result<(), Failure> {
    let open = |target: &Target| session.open(target);
    match command {
        LogCommand::Supported(of) => {
            let logs = open(&of.target)?.supported_logs().map_err(failure)?;
            let ids: Vec<u8> = logs.iter().map(|log| log.0).collect();
            session.show(&BTreeMap::from([("log_pages", ids)]))
        }
        LogCommand::Smart(of) => {
            let nsid = of.target.nsid.unwrap_or(NSID_ALL);
            session.show(&open(&of.target)?.smart_log(nsid).map_err(failure)?)
        }
        LogCommand::Error(of) => {
            let entries = open(&of.target)?.error_log().map_err(failure)?;
            let told =
                |entry: ErrorEntry| LoggedError { status: entry.status().to_string(), entry };
            session.show(&List { entries: entries.into_iter().map(told).collect() })
        }
        LogCommand::Firmware(of) => {
            session.show(&open(&of.target)?.firmware_log().map_err(failure)?)
        }
        LogCommand::ChangedNamespaces(of) => session
            .show(&Changed::new(open(&of.target)?.changed_namespaces(false).map_err(failure)?)),
        LogCommand::Effects(of) => {
            session.show(&effects(&open(&of.target)?.effects_log(csi::NVM).map_err(failure)?))
        }
        LogCommand::SelfTest(of) => {
            let log = open(&of.target)?.self_test_log().map_err(failure)?;
            let results: Vec<_> =
                log.results.iter().filter(|result| result.status & 0xf != 0xf).cloned().collect();
            let mut value = serde_json::to_value(Json(&log)).map_err(json_failure)?;
            value["results"] = serde_json::to_value(results).map_err(json_failure)?;
            session.show(&value)
        }
        LogCommand::Telemetry { of, out, area, controller_initiated } => {
            let file = files::create(&out)?;
            let controller = open(&of.target)?;
            let log = controller.telemetry(controller_initiated, true, area).map_err(failure)?;
            files::fill(&out, file, &log.bytes)?;
            session.show(&log)
        }
        LogCommand::Endurance { of, group } => {
            session.show(&open(&of.target)?.endurance_group_log(group).map_err(failure)?)
        }
        LogCommand::PersistentEvent(of) => {
            session.show(&open(&of.target)?.persistent_events().map_err(failure)?)
        }
        LogCommand::Sanitize(of) => {
            session.show(&open(&of.target)?.sanitize_log().map_err(failure)?)
        }
        LogCommand::Zones(of) => {
            let nsid = nsid(&of.target)?;
            session.show(&Changed::new(open(&of.target)?.changed_zones(nsid).map_err(failure)?))
        }
        LogCommand::Reservation(of) => {
            session.show(&open(&of.target)?.reservation_log().map_err(failure)?)
        }
        LogCommand::Fdp { of, group } => {
            let controller = open(&of.target)?;
            let configurations = controller.fdp_configurations(group).map_err(failure)?;
            let statistics = controller.fdp_statistics(group).map_err(failure)?;
            session.show(&Fdp { statistics, configurations })
        }
    }
}

#[derive(Serialize)]
struct ListedField {
    feature: &'static str,
    id: u8,
    field: &'static str,
    max: u32,
    selects: bool,
    settable: bool,
    of_namespace: bool,
}

fn named(name: &str) -> Result<&'static Feature, Failure> {
    Feature::named(name).ok_or_else(|| {
        let what = format!("there is no feature {name}");
        Failure::new(Exit::Usage, what, "see `aioctl nvme feature list`")
    })
}

/// `name=number`, each.
fn assignments(fields: &[String]) -> Result<Vec<(&str, u64)>, Failure> {
    let parsed = fields.iter().map(|text| {
        let (name, value) = text.split_once('=')?;
        let Number(value) = value.parse().ok()?;
        Some((name, value))
    });
    parsed.collect::<Option<_>>().ok_or_else(|| {
        let what = format!("`{}` is not of the form FIELD=NUMBER", fields.join(" "));
        Failure::new(Exit::Usage, what, "see `aioctl nvme feature list`")
    })
}

fn small<'a>(fields: &[(&'a str, u64)]) -> Result<Vec<(&'a str, u32)>, Failure> {
    let fits =
        fields.iter().map(|&(name, value)| u32::try_from(value).ok().map(|value| (name, value)));
    fits.collect::<Option<_>>().ok_or_else(|| {
        Failure::new(Exit::Usage, "a value has at most 32 bits", "nothing was changed")
    })
}

pub(super) fn feature(session: &impl Session, command: FeatureCommand) -> Result<(), Failure> {
    match command {
        FeatureCommand::List => {
            let fields = FEATURES.iter().flat_map(|feature| {
                feature.fields.iter().map(|field| ListedField {
                    feature: feature.name,
                    id: feature.id,
                    field: field.name,
                    max: field.max(),
                    selects: feature.selectors.contains(&field.name),
                    settable: feature.settable,
                    of_namespace: feature.of_namespace,
                })
            });
            session.show(&List { entries: fields.collect() })
        }
        FeatureCommand::Get { of, name, select, fields } => {
            let select = match select {
                SelectKind::Current => Select::Current,
                SelectKind::Default => Select::Default,
                SelectKind::Saved => Select::Saved,
            };
            match name.as_str() {
                "apst" => {
                    let table =
                        session.open(&of.target)?.power_transitions(select).map_err(failure)?;
                    return session.show(&table);
                }
                "timestamp" => {
                    return session.show(&session.open(&of.target)?.timestamp().map_err(failure)?);
                }
                "host-behavior" => {
                    return session
                        .show(&session.open(&of.target)?.host_behavior().map_err(failure)?);
                }
                "host-id" => {
                    let id = session.open(&of.target)?.host_id().map_err(failure)?;
                    return session.show(&BTreeMap::from([("host_id", files::hex(&id))]));
                }
                _ => {}
            }
            let feature = named(&name)?;
            let fields = small(&assignments(&fields)?)?;
            let mut selector = 0;
            for (name, value) in fields {
                let field = feature.field(name).filter(|field| {
                    feature.selectors.contains(&field.name) && value <= field.max()
                });
                let Some(field) = field else {
                    let what = format!("{}={value} selects nothing of {}", name, feature.name);
                    return Err(Failure::new(Exit::Usage, what, "see `aioctl nvme feature list`"));
                };
                selector = field.set(selector, value);
            }
            let nsid = feature_nsid(feature, &of.target)?;
            let controller = session.open(&of.target)?;
            let dword = controller
                .get_feature(feature.id, select, nsid, selector, &mut [])
                .map_err(failure)?;
            session.show(&feature.decode(dword).collect::<BTreeMap<_, _>>())
        }
        FeatureCommand::Set { of, name, fields, save } => {
            let fields = assignments(&fields)?;
            if name == "timestamp" {
                let [("ms", ms)] = fields[..] else {
                    let what = "a timestamp is set with ms=NUMBER";
                    return Err(Failure::new(Exit::Usage, what, "nothing was changed"));
                };
                return session.open(&of.target)?.set_timestamp(ms).map_err(failure);
            }
            let feature = named(&name)?;
            let fields = small(&fields)?;
            let nsid = feature_nsid(feature, &of.target)?;
            let controller = session.open(&of.target)?;
            let dword = controller.change_feature(feature, save, nsid, &fields).map_err(failure)?;
            session.show(&feature.decode(dword).collect::<BTreeMap<_, _>>())
        }
    }
}

fn feature_nsid(feature: &Feature, target: &Target) -> Result<u32, Failure> {
    if feature.of_namespace {
        return nsid(target);
    }
    whole(target)?;
    Ok(0)
}
