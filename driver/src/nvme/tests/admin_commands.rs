//! Every admin command against the model: what it does, and what a drive would refuse.

use super::*;
use crate::nvme::commands::directive::{DataPlacement, Directive, STREAMS};
use crate::nvme::commands::feature::{HostBehavior, PowerTransition, PowerTransitions};
use crate::nvme::commands::firmware::{Activation, CommitAction};
use crate::nvme::commands::format::{Format, Sanitize, SecureErase, SelfTest};
use crate::nvme::commands::namespaces::NewNamespace;
use crate::nvme::commands::security::SecurityProtocol;
use crate::nvme::commands::{Command, CommandError, Data, NSID_ALL};
use crate::nvme::model::FIRMWARE_MAGIC;
use crate::nvme::spec::command::csi;
use crate::nvme::spec::feature::{self, Feature, Select};
use crate::nvme::spec::log::{LogId, effect};
use crate::nvme::spec::{Opcode, Status};

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, CommandError>, wanted: Status) {
    let error = result.expect_err("it was done");
    assert_eq!(error.status().map(Status::code), Some(wanted), "{error}");
}

#[track_caller]
fn invalid<T: std::fmt::Debug>(result: Result<T, CommandError>, said: &str) {
    match result {
        Err(CommandError::Invalid(text) | CommandError::Unsupported(text)) => {
            assert!(text.contains(said), "{text}")
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn identify_says_what_the_controller_is() {
    let rig = Rig::new(ModelOptions::default());
    let id = rig.controller.identify_controller().unwrap();
    assert_eq!((id.vid, id.sn.to_string().as_str()), (0x1b36, "MODEL-0001"));
    assert_eq!((id.tnvmcap, id.unvmcap), (64 << 20, 48 << 20));
    assert_eq!((id.psd[0].mp, id.psd[2].flags), (800, 0b11));
    let id = rig.controller.identify_namespace(1).unwrap();
    assert_eq!((id.nsze, id.format().lbads, id.formats().len()), (1 << 15, 9, 5));
    let names = rig.controller.namespace_descriptors(1).unwrap();
    assert_eq!(names.csi, Some(csi::NVM));
    assert_eq!(names.nguid.unwrap().0, id.nguid.0);
    assert_eq!(rig.controller.namespace_ids(false).unwrap(), [1]);
    assert_eq!(rig.controller.controller_ids(None).unwrap(), [0]);
    refused(rig.controller.identify_namespace(9), Status::INVALID_NAMESPACE);
    refused(rig.controller.identify_bytes(0x7f, 0, 0), Status::INVALID_FIELD);
}

#[test]
fn namespaces_are_made_attached_used_detached_and_deleted() {
    let rig = Rig::new(ModelOptions::default());
    let controller = &rig.controller;
    let nsid = controller.create_namespace(NewNamespace::new(1024, 1)).unwrap();
    assert_eq!(nsid, 2);
    assert_eq!(controller.namespace_ids(false).unwrap(), [1], "not attached yet");
    assert_eq!(controller.namespace_ids(true).unwrap(), [1, 2]);
    controller.attach_namespace(nsid, true, &[]).unwrap();
    refused(controller.attach_namespace(nsid, true, &[]), Status::NAMESPACE_ALREADY_ATTACHED);
    refused(controller.attach_namespace(nsid, true, &[5]), Status::CONTROLLER_LIST_INVALID);
    let changes = controller.rescan().unwrap();
    assert_eq!((changes.added, changes.removed), (vec![2], vec![]));
    assert_eq!(controller.changed_namespaces(false).unwrap(), Some(vec![2]));
    assert_eq!(controller.changed_namespaces(false).unwrap(), Some(vec![]), "read is cleared");
    let namespace = controller.namespace(nsid).unwrap();
    assert_eq!((namespace.geometry().block_size, namespace.geometry().blocks), (4096, 1024));
    let mut queue = open(&namespace, 4);
    let data = rig.frames(1);
    data.copy_from_slice(0, &[9; 4096]);
    let write = Request::write(Token::from_u64(1), Lba(1023), 1, data, false);
    assert_eq!(one(&mut *queue, write).0, Ok(()));
    // What is open is not taken away.
    invalid(controller.attach_namespace(nsid, false, &[]), "namespace 2 is open");
    invalid(controller.delete_namespace(nsid), "namespace 2 is open");
    invalid(controller.delete_namespace(NSID_ALL), "namespace 2 is open");
    invalid(controller.format(nsid, Format::new(0)), "namespace 2 is open");
    drop(queue);
    drop(namespace);
    controller.attach_namespace(nsid, false, &[]).unwrap();
    refused(controller.attach_namespace(nsid, false, &[]), Status::NAMESPACE_NOT_ATTACHED);
    assert_eq!(controller.rescan().unwrap().removed, [2]);
    controller.delete_namespace(nsid).unwrap();
    refused(controller.delete_namespace(nsid), Status::INVALID_NAMESPACE);
    assert_eq!(controller.namespace_ids(true).unwrap(), [1]);
}

#[test]
fn a_namespace_that_cannot_be_is_refused() {
    let rig = Rig::new(ModelOptions::default());
    let create = |new| rig.controller.create_namespace(new);
    invalid(create(NewNamespace::new(0, 0)), "capacity of 0 of 0 blocks");
    invalid(create(NewNamespace { capacity_blocks: 9, ..NewNamespace::new(8, 0) }), "of 8 blocks");
    invalid(create(NewNamespace::new(8, 64)), "no LBA format 64");
    refused(create(NewNamespace::new(8, 9)), Status::INVALID_FORMAT);
    refused(create(NewNamespace::new(1 << 40, 0)), Status::NAMESPACE_INSUFFICIENT_CAPACITY);
    refused(
        create(NewNamespace { protection: 1, ..NewNamespace::new(8, 0) }),
        Status::INVALID_FIELD,
    );
    assert_eq!(rig.controller.namespace_ids(true).unwrap(), [1], "nothing was made");
}

#[test]
fn a_namespace_that_was_resized_has_its_new_size_once_no_queue_is_open() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let queue = open(&namespace, 4);
    rig.model.resize(1, 1 << 16);
    assert_eq!(rig.controller.rescan().unwrap().changed, [1]);
    invalid(namespace.refresh(), "1 queues are open");
    assert_eq!(namespace.geometry().blocks, 1 << 15, "constant while a queue is open");
    drop(queue);
    assert!(namespace.refresh().unwrap());
    assert!(!namespace.refresh().unwrap(), "it is known already");
    assert_eq!(namespace.geometry().blocks, 1 << 16);
    let mut queue = open(&namespace, 4);
    let last = Request::read(Token::from_u64(1), Lba((1 << 16) - 8), 8, rig.frames(1));
    assert_eq!(one(&mut *queue, last).0, Ok(()));
}

#[test]
fn a_format_changes_the_blocks_and_takes_the_data() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    assert_eq!(one(&mut *queue, rig.write(0, 7, true)).0, Ok(()));
    drop(queue);
    drop(namespace);
    let format = Format { erase: SecureErase::UserData, ..Format::new(1) };
    rig.controller.format(1, format).unwrap();
    assert_eq!(rig.controller.rescan().unwrap().changed, [1]);
    let namespace = rig.namespace();
    assert_eq!((namespace.geometry().block_size, namespace.geometry().blocks), (4096, 4096));
    let mut queue = open(&namespace, 4);
    let read = Request::read(Token::from_u64(1), Lba(0), 1, rig.frames(1));
    let mut bytes = [1; 4096];
    one(&mut *queue, read).1.copy_to_slice(0, &mut bytes);
    assert_eq!(bytes, [0; 4096]);
    drop(queue);
    drop(namespace);
    refused(rig.controller.format(1, Format::new(40)), Status::INVALID_FORMAT);
    refused(rig.controller.format(7, Format::new(0)), Status::INVALID_NAMESPACE);
    let protected = Format { protection: 1, ..Format::new(0) };
    refused(rig.controller.format(1, protected), Status::INVALID_FIELD);
    invalid(rig.controller.format(1, Format::new(64)), "no LBA format 64");
}

#[test]
fn a_sanitize_takes_all_data_and_is_followed_in_its_log() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    assert_eq!(one(&mut *queue, rig.write(0, 7, true)).0, Ok(()));
    let overwrite = Sanitize::Overwrite { passes: 16, pattern: 0xdead_beef, invert: true };
    invalid(rig.controller.sanitize(overwrite, false, false), "namespace 1 is open");
    drop(queue);
    drop(namespace);
    let none = Sanitize::Overwrite { passes: 0, pattern: 0, invert: false };
    invalid(rig.controller.sanitize(none, false, false), "1 to 16 passes");
    rig.controller.sanitize(overwrite, true, true).unwrap();
    refused(rig.controller.sanitize(overwrite, false, false), Status::SANITIZE_IN_PROGRESS);
    let log = rig.controller.sanitize_log().unwrap();
    assert_eq!((log.status & 0b111, log.progress_of_65536), (2, 0x8000));
    // Overwrite (3), AUSE, 16 passes as 0, OIPBP, NDAS.
    assert_eq!(log.cdw10, 3 | 1 << 3 | 1 << 8 | 1 << 9);
    assert_eq!(rig.controller.sanitize_log().unwrap().status & 0b111, 1, "done");
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    let mut bytes = [1; 4096];
    one(&mut *queue, rig.read(0)).1.copy_to_slice(0, &mut bytes);
    assert_eq!(bytes, [0; 4096]);
}

#[test]
fn a_self_test_runs_and_its_results_are_kept() {
    let rig = Rig::new(ModelOptions::default());
    rig.controller.self_test(NSID_ALL, SelfTest::Short).unwrap();
    refused(rig.controller.self_test(1, SelfTest::Extended), Status::SELF_TEST_IN_PROGRESS);
    let log = rig.controller.self_test_log().unwrap();
    assert_eq!((log.current_operation, log.completion_percent), (1, 50));
    assert_eq!(log.results[0].status, 0xf, "none yet");
    let log = rig.controller.self_test_log().unwrap();
    assert_eq!((log.current_operation, log.results[0].status), (0, 0x10), "short, passed");
    rig.controller.self_test(1, SelfTest::Extended).unwrap();
    rig.controller.self_test(1, SelfTest::Abort).unwrap();
    assert_eq!(rig.controller.self_test_log().unwrap().results[0].status, 0x21, "aborted");
}

#[test]
fn firmware_is_downloaded_in_pieces_committed_and_activated() {
    let rig = Rig::new(ModelOptions { mdts: 1, ..Default::default() });
    let controller = &rig.controller;
    let mut image = FIRMWARE_MAGIC.to_vec();
    image.extend(b"2.0     ");
    image.resize(20_000, 0x5a);
    invalid(controller.download_firmware(&[]), "an image of 0 bytes");
    invalid(controller.download_firmware(&image[..19_999]), "an image of 19999 bytes");
    controller.download_firmware(&image).unwrap();
    invalid(controller.commit_firmware(8, CommitAction::Store), "no firmware slot 8");
    refused(controller.commit_firmware(7, CommitAction::Store), Status::INVALID_FIRMWARE_SLOT);
    let to_read_only = controller.commit_firmware(1, CommitAction::Store);
    refused(to_read_only, Status::INVALID_FIRMWARE_SLOT);
    assert_eq!(controller.commit_firmware(2, CommitAction::Store).unwrap(), Activation::Done);
    let log = controller.firmware_log().unwrap();
    assert_eq!((log.active_firmware, log.revisions[1].to_string().as_str()), (1, "2.0"));
    assert_eq!(controller.identify_controller().unwrap().fr.to_string(), "1.0");
    controller.commit_firmware(2, CommitAction::ActivateNow).unwrap();
    assert_eq!(controller.identify_controller().unwrap().fr.to_string(), "2.0");
    controller.download_firmware(&image).unwrap();
    let activation = controller.commit_firmware(3, CommitAction::StoreAndActivateAtReset).unwrap();
    assert_eq!(activation, Activation::NeedsControllerReset);
    assert_eq!(controller.firmware_log().unwrap().active_firmware, 2 | 3 << 4);
    controller.download_firmware(&[7; 4096]).unwrap();
    let rubbish = controller.commit_firmware(2, CommitAction::Store);
    refused(rubbish, Status::INVALID_FIRMWARE_IMAGE);
}

#[test]
fn features_are_read_changed_and_saved_by_name() {
    let rig = Rig::new(ModelOptions::default());
    let controller = &rig.controller;
    let get = |name: &str, select, selector| {
        let feature = Feature::named(name).unwrap();
        controller.get_feature(feature.id, select, 0, selector, &mut []).unwrap()
    };
    let change = |name: &str, save, changes: &[(&str, u32)]| {
        controller.change_feature(Feature::named(name).unwrap(), save, 0, changes)
    };
    assert_eq!(get("write-cache", Select::Current, 0), 1);
    change("write-cache", false, &[("enabled", 0)]).unwrap();
    assert_eq!(get("write-cache", Select::Current, 0), 0);
    assert_eq!(get("write-cache", Select::Default, 0), 1);
    let arbitration = [("burst_log2", 4), ("high_weight_minus_1", 9)];
    assert_eq!(change("arbitration", true, &arbitration).unwrap(), 0x0900_0004);
    assert_eq!(change("arbitration", false, &[("burst_log2", 7)]).unwrap(), 0x0900_0007);
    assert_eq!(get("arbitration", Select::Saved, 0), 0x0900_0004, "what was not saved is not");
    assert_eq!(get("arbitration", Select::Capabilities, 0), 0b101);
    // Several values behind one identifier: the selector goes along.
    let warm = [("kelvin", 350), ("sensor", 0)];
    change("temperature-threshold", false, &warm).unwrap();
    let cold = [("kelvin", 280), ("sensor", 3), ("under", 1)];
    change("temperature-threshold", false, &cold).unwrap();
    assert_eq!(get("temperature-threshold", Select::Current, 0) & 0xffff, 350);
    let under_3 = 3 << 16 | 1 << 20;
    assert_eq!(get("temperature-threshold", Select::Current, under_3) & 0xffff, 280);
    assert_eq!(change("power-state", false, &[("state", 1)]).unwrap(), 1);
    assert_eq!(change("interrupt-coalescing", false, &[("time_100us", 5)]).unwrap(), 5 << 8);
    // Refused here, with nothing sent; refused there.
    invalid(change("arbitration", false, &[("burst_log2", 8)]), "burst_log2 is at most 7, not 8");
    invalid(
        change("arbitration", false, &[("colour", 8)]),
        "no field colour; there are: burst_log2",
    );
    invalid(change("number-of-queues", false, &[]), "can only be read");
    refused(change("power-state", false, &[("state", 3)]), Status::INVALID_FIELD);
    let of_namespace = controller.set_feature(1, false, 1, 0, &[]);
    refused(of_namespace, Status::FEATURE_NOT_NAMESPACE_SPECIFIC);
    let unknown = controller.get_feature(0xee, Select::Current, 0, 0, &mut []);
    refused(unknown, Status::INVALID_FIELD);
    let protection = Feature::named("write-protection").unwrap();
    refused(
        controller.change_feature(protection, false, 5, &[("state", 1)]),
        Status::INVALID_NAMESPACE,
    );
    controller.change_feature(protection, false, 1, &[("state", 1)]).unwrap();
    assert_eq!(controller.rescan().unwrap().changed, [1], "it is read-only now");
}

#[test]
fn features_with_a_data_structure_come_back_as_they_were_set() {
    let rig = Rig::new(ModelOptions::default());
    let controller = &rig.controller;
    let mut table = PowerTransitions { enabled: true, ..Default::default() };
    table.from_state[0] = PowerTransition { idle_ms: 2000, to_state: 2 };
    table.from_state[31] = PowerTransition { idle_ms: 0xff_ffff, to_state: 31 };
    controller.set_power_transitions(&table, false).unwrap();
    assert_eq!(controller.power_transitions(Select::Current).unwrap(), table);
    let none = PowerTransitions::default();
    assert_eq!(controller.power_transitions(Select::Default).unwrap(), none);
    table.from_state[0].idle_ms = 1 << 24;
    invalid(controller.set_power_transitions(&table, false), "after 16777216 ms");
    assert!(!controller.timestamp().unwrap().set_by_host);
    controller.set_timestamp(0x0123_4567_89ab).unwrap();
    let now = controller.timestamp().unwrap();
    assert_eq!((now.ms, now.set_by_host), (0x0123_4567_89ab, true));
    invalid(controller.set_timestamp(1 << 48), "does not fit 48 bits");
    let behavior = HostBehavior { extended_lba_formats: true, ..Default::default() };
    controller.set_host_behavior(behavior).unwrap();
    assert_eq!(controller.host_behavior().unwrap(), behavior);
    controller.set_host_id(&[7; 16]).unwrap();
    assert_eq!(controller.host_id().unwrap(), [7; 16]);
    invalid(controller.set_host_id(&[7; 9]), "8 or 16 bytes, not 9");
}

#[test]
fn log_pages_are_decoded() {
    let rig = Rig::new(ModelOptions { mdts: 1, ..Default::default() });
    let controller = &rig.controller;
    let smart = controller.smart_log(NSID_ALL).unwrap();
    assert_eq!((smart.temperature_kelvin, smart.power_on_hours), (310, 77));
    assert_eq!(smart.temperature_sensors_kelvin[0], 311);
    refused(controller.smart_log(44), Status::INVALID_NAMESPACE);
    assert!(controller.supported_logs().unwrap().contains(&LogId::SMART));
    let effects = controller.effects_log(csi::NVM).unwrap();
    let write = effects.io[usize::from(Opcode::WRITE.0)];
    assert_eq!(write, effect::SUPPORTED | effect::CONTENT);
    // The error log remembers what was refused.
    let errors = controller.error_log().unwrap();
    let newest = errors.iter().find(|entry| entry.nsid == 44).unwrap();
    assert_eq!((newest.nsid, newest.status().code()), (44, Status::INVALID_NAMESPACE));
    assert!(errors.len() <= 16 && errors.is_sorted_by(|a, b| a.error_count > b.error_count));
    let telemetry = controller.telemetry(false, true, 3).unwrap();
    assert_eq!((telemetry.header.host_generation, telemetry.bytes.len()), (1, 41 * 512));
    for (block, bytes) in telemetry.bytes.chunks_exact(512).enumerate().skip(1) {
        assert_eq!(bytes, [block as u8; 512], "block {block}");
    }
    assert_eq!(controller.telemetry(false, false, 1).unwrap().bytes.len(), 2 * 512);
    assert_eq!(controller.telemetry(false, false, 1).unwrap().header.host_generation, 1);
    invalid(controller.telemetry(true, false, 4), "no telemetry data area 4");
    assert_eq!(controller.endurance_group_log(1).unwrap().available_spare_percent, 99);
    refused(controller.endurance_group_log(2), Status::INVALID_FIELD);
    for _ in 0..2 {
        // Twice: the context is given back each time.
        let log = controller.persistent_events().unwrap();
        let kinds: Vec<u8> = log.events.iter().map(|event| event.event_type).collect();
        assert_eq!((log.header.events, kinds), (2, vec![4, 7]));
    }
    let configurations = controller.fdp_configurations(1).unwrap();
    assert_eq!((configurations.len(), configurations[0].reclaim_unit_handles), (1, 2));
    assert_eq!(controller.fdp_statistics(1).unwrap().media_written_bytes, 1100);
    assert_eq!(controller.reservation_log().unwrap().count, 0);
    assert_eq!(controller.changed_zones(1).unwrap(), Some(vec![]));
    let page = crate::nvme::commands::log::LogPage::new(LogId(0xdd));
    refused(controller.log_page(page, 0, &mut [0; 16]), Status::INVALID_LOG_PAGE);
    invalid(controller.log_page(page, 2, &mut [0; 16]), "multiples of 4");
    invalid(controller.log_page(page, 0, &mut []), "multiples of 4");
}

#[test]
fn security_and_directives_go_both_ways() {
    let rig = Rig::new(ModelOptions::default());
    let controller = &rig.controller;
    let protocol = |protocol| SecurityProtocol { protocol, specific: 0x0102, nvme_specific: 3 };
    let mut list = [0xff; 16];
    controller.security_receive(0, protocol(0), &mut list).unwrap();
    assert_eq!(list[..10], [0, 0, 0, 0, 0, 0, 0, 2, 0x00, 0xea]);
    controller.security_send(0, protocol(0xea), b"hello world!").unwrap();
    let mut back = [0; 16];
    controller.security_receive(0, protocol(0xea), &mut back).unwrap();
    assert_eq!(&back, b"hello world!\0\0\0\0");
    refused(controller.security_send(0, protocol(0x55), b"abcd"), Status::INVALID_FIELD);
    let directives = controller.directives(1).unwrap();
    let off = Directive { directive_type: STREAMS, enabled: false };
    assert_eq!(directives[1], off);
    refused(controller.allocate_streams(1, 4), Status::INVALID_FIELD);
    controller.enable_directive(1, STREAMS, true).unwrap();
    assert_eq!(controller.directives(1).unwrap()[1], Directive { enabled: true, ..off });
    assert_eq!(controller.allocate_streams(1, 40).unwrap(), 16, "no more than there are");
    let parameters = controller.stream_parameters(1).unwrap();
    assert_eq!((parameters.max_streams, parameters.allocated), (16, 16));
    controller.release_streams(1).unwrap();
    assert_eq!(controller.stream_parameters(1).unwrap().available, 16);
    refused(controller.directives(5), Status::INVALID_NAMESPACE);
    // Flexible data placement belongs to an endurance group without namespaces.
    let placement = DataPlacement { enabled: true, configuration: 0 };
    refused(controller.set_data_placement(1, placement), Status::COMMAND_SEQUENCE_ERROR);
    controller.delete_namespace(NSID_ALL).unwrap();
    controller.set_data_placement(1, placement).unwrap();
    assert_eq!(controller.data_placement(1).unwrap(), placement);
}

#[test]
fn passthrough_sends_what_it_is_given_but_not_what_is_the_drivers() {
    let rig = Rig::new(ModelOptions::default());
    let mut bytes = vec![0; 512];
    let smart = Command::new(Opcode(0x02), NSID_ALL).dword(10, 127 << 16 | 2);
    assert_eq!(rig.controller.admin(&smart, Data::In(&mut bytes)).unwrap(), 0);
    assert_eq!(bytes[1..3], 310u16.to_le_bytes());
    let own = [0x00, 0x01, 0x04, 0x05, 0x08, 0x0c, 0x7c].map(|code| Command::new(Opcode(code), 0));
    let set = |feature| Command::new(Opcode::SET_FEATURES, 0).dword(10, feature);
    for command in own.into_iter().chain([set(7), set(0x0d), set(1 << 31 | 7)]) {
        invalid(rig.controller.admin(&command, Data::None), "is the driver's own to send");
    }
    refused(
        rig.controller.admin(&Command::new(Opcode(0xc5), 0), Data::None),
        Status::INVALID_OPCODE,
    );
    let mut large = vec![0; 2 << 20];
    let result = rig.controller.admin(&smart, Data::In(&mut large));
    invalid(result, "2097152 bytes are more than one command carries, 524288");
    assert_eq!(rig.controller.failure(), None);
}

#[test]
fn an_admin_command_that_is_never_answered_ends_in_time_and_gives_no_memory_back_early() {
    let rig = Rig::new(ModelOptions {
        never_disables: true,
        can_be_cut_off: false,
        ..Default::default()
    });
    let free = rig.pool.free_frames();
    // A doorbell that the controller does not see: it answers nothing any more.
    rig.model.fail_fatally();
    let error = rig.controller.smart_log(NSID_ALL).unwrap_err();
    assert!(matches!(error, CommandError::Ended { may_have_been_done: false, .. }), "{error}");
    assert!(rig.pool.free_frames() < free, "the memory is leaked: nobody else may get it");
}

#[test]
fn a_feature_that_a_command_refuses_is_named_by_its_status() {
    let rig = Rig::new(ModelOptions { volatile_cache: false, ..Default::default() });
    let error = rig.controller.set_feature(feature::WRITE_CACHE, false, 0, 1, &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "model: Set Features failed: Invalid Field in Command (SCT 0h, SC 02h)"
    );
}
