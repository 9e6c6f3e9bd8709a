//! The I/O commands that a block device does not have, against the model.

use super::*;
use crate::nvme::commands::nvm::{CopySource, DatasetRange, ProtectionOptions};
use crate::nvme::commands::reservation::{Acquire, Register, ReservationType};
use crate::nvme::commands::zone::{ZoneAction, ZoneState};
use crate::nvme::commands::{Buffer, Command, CommandError, CommandQueue, IoCommand};
use crate::nvme::model::{Lie, ModelNamespace};
use crate::nvme::protection::{self, BlockFormat};
use crate::nvme::spec::identify::oncs;
use crate::nvme::spec::{Opcode, Status};

const ALL: u16 = 0x1ff;

fn rig_of(namespace: ModelNamespace) -> (Rig, CommandQueue) {
    let options = ModelOptions { namespaces: vec![namespace], oncs: ALL, ..Default::default() };
    let rig = Rig::new(options);
    let queue = rig.controller.command_queue(1, 8).unwrap();
    (rig, queue)
}

fn plain() -> (Rig, CommandQueue) {
    rig_of(ModelNamespace::new(1 << 20, 512))
}

const NONE: ProtectionOptions = ProtectionOptions {
    by_controller: false,
    check_guard: false,
    check_application: false,
    check_reference: false,
    application: 0,
    application_mask: 0,
    reference: 0,
};

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

fn write(queue: &mut CommandQueue, lba: u64, byte: u8, blocks: usize) {
    queue.write_blocks(lba, vec![byte; blocks * 512], Vec::new(), false, NONE).unwrap();
}

#[test]
fn compare_finds_what_differs_and_fused_it_decides_about_the_write() {
    let (_rig, mut queue) = plain();
    write(&mut queue, 4, 7, 2);
    assert!(queue.compare(4, vec![7; 1024], Vec::new(), NONE).unwrap());
    assert!(!queue.compare(4, vec![8; 512], Vec::new(), NONE).unwrap());
    assert!(!queue.compare_and_write(4, vec![8; 512], vec![9; 512]).unwrap());
    assert_eq!(queue.read_blocks(4, 1, NONE).unwrap().0, [7; 512], "not written");
    assert!(queue.compare_and_write(4, vec![7; 512], vec![9; 512]).unwrap());
    assert_eq!(queue.read_blocks(4, 1, NONE).unwrap().0, [9; 512]);
    assert_eq!(queue.read_blocks(5, 1, NONE).unwrap().0, [7; 512]);
    invalid(queue.compare_and_write(4, vec![7; 512], vec![9; 1024]), "512 bytes for 1024");
    invalid(queue.compare_and_write(4, vec![7; 9 * 512], vec![9; 9 * 512]), "at most 8 blocks");
    invalid(queue.compare(4, vec![7; 511], Vec::new(), NONE), "511 bytes of data");
    assert_eq!(queue.in_flight(), 0);
}

#[test]
fn two_pairs_are_never_mixed_however_the_answers_come() {
    let options = ModelOptions { oncs: ALL, shuffle: None, ..Default::default() };
    let rig = Rig::new(options);
    let mut queue = rig.controller.command_queue(1, 3).unwrap();
    for round in 0..100u8 {
        let old = vec![round; 512];
        assert!(queue.compare_and_write(0, old, vec![round + 1; 512]).unwrap(), "{round}");
    }
    // No room for both halves: none is sent.
    let flush = || IoCommand::new(Command::new(Opcode::FLUSH, 0));
    queue.submit(flush()).unwrap();
    queue.submit(flush()).unwrap();
    rig.model.take_seen();
    invalid(queue.compare_and_write(0, vec![100; 512], vec![0; 512]), "the queue is full");
    assert!(rig.model.take_seen().commands.is_empty());
    queue.commit();
    while queue.in_flight() > 0 {
        if let Some(answer) = queue.poll() {
            answer.result.unwrap();
        }
    }
    assert_eq!(queue.read_blocks(0, 1, NONE).unwrap().0, [100; 512]);
}

#[test]
fn verify_reads_without_a_transfer_and_uncorrectable_blocks_fail_it() {
    let (_rig, mut queue) = plain();
    queue.verify(0, 64, NONE).unwrap();
    queue.write_uncorrectable(10, 2).unwrap();
    refused(queue.verify(0, 64, NONE), Status::UNRECOVERED_READ_ERROR);
    refused(queue.read_blocks(11, 1, NONE), Status::UNRECOVERED_READ_ERROR);
    queue.verify(12, 8, NONE).unwrap();
    write(&mut queue, 10, 1, 2);
    queue.verify(0, 64, NONE).unwrap();
    for (lba, blocks) in [(2048, 1), (2047, 2), (u64::MAX, 1), (0, 2049)] {
        invalid(queue.verify(lba, blocks, NONE), "are not among 2048");
    }
    invalid(queue.verify(0, 0, NONE), "0 blocks; one command takes 1 to 65536");
}

#[test]
fn copy_gathers_ranges_into_one_run() {
    let (_rig, mut queue) = plain();
    for lba in 0..8 {
        write(&mut queue, lba, lba as u8 + 1, 1);
    }
    let source = |lba, blocks| CopySource { lba, blocks };
    queue.copy(&[source(6, 2), source(0, 1), source(3, 2)], 100).unwrap();
    let (data, _) = queue.read_blocks(100, 6, NONE).unwrap();
    let firsts: Vec<u8> = data.chunks(512).map(|block| block[0]).collect();
    assert_eq!(firsts, [7, 8, 1, 4, 5, 0]);
    invalid(queue.copy(&[], 100), "0 ranges");
    invalid(queue.copy(&[source(0, 65)], 100), "up to 64 blocks");
    invalid(queue.copy(&[source(0, 1); 9], 100), "1 to 8 ranges");
    invalid(queue.copy(&[source(2047, 2)], 100), "2 blocks from 2047");
    invalid(queue.copy(&[source(0, 2)], 2047), "2 blocks from 2047");
}

#[test]
fn zeroes_and_ranges_do_what_they_say() {
    let (rig, mut queue) = plain();
    write(&mut queue, 0, 9, 32);
    queue.write_zeroes(0, 4, true, NONE).unwrap();
    assert_eq!(rig.model.take_seen().deac, 1);
    let hint = DatasetRange { lba: 8, blocks: 4, attributes: 0x11 };
    queue.dataset_management(&[hint], false).unwrap();
    assert_eq!(queue.read_blocks(8, 1, NONE).unwrap().0, [9; 512], "a hint takes nothing");
    queue.dataset_management(&[hint, DatasetRange { lba: 20, ..hint }], true).unwrap();
    let (data, _) = queue.read_blocks(0, 32, NONE).unwrap();
    for (lba, block) in data.chunks(512).enumerate() {
        let gone = matches!(lba, 0..4 | 8..12 | 20..24);
        assert_eq!(block[0], if gone { 0 } else { 9 }, "block {lba}");
    }
    invalid(queue.dataset_management(&[], true), "0 ranges; take 1 to 256");
    let beyond = DatasetRange { lba: 2048, blocks: 1, attributes: 0 };
    invalid(queue.dataset_management(&[beyond], true), "not among 2048");
}

#[test]
fn what_the_controller_does_not_do_is_not_sent() {
    let rig = Rig::new(ModelOptions { oncs: oncs::DSM, ..Default::default() });
    let mut queue = rig.controller.command_queue(1, 2).unwrap();
    rig.model.take_seen();
    invalid(queue.verify(0, 1, NONE), "does not verify (ONCS)");
    invalid(queue.compare(0, vec![0; 512], vec![], NONE), "does not compare");
    invalid(queue.copy(&[CopySource { lba: 0, blocks: 1 }], 9), "does not copy");
    invalid(queue.write_uncorrectable(0, 1), "does not write uncorrectable");
    invalid(queue.write_zeroes(0, 1, false, NONE), "does not write zeroes");
    invalid(queue.reservation_report(), "does not do reservations");
    invalid(queue.zones(0, 1), "is not zoned");
    assert!(rig.model.take_seen().commands.is_empty());
    invalid(rig.controller.command_queue(2, 2), "no namespace 2 is attached; there are: 1");
    invalid(rig.controller.command_queue(1, 0), "a queue depth of 0");
}

/// In every layout: protection information by the host and by the controller, checked by both.
#[test]
fn metadata_goes_both_ways_in_every_layout() {
    for interleaved in [false, true] {
        for (metadata, protection, first) in
            [(8, 1, false), (8, 2, true), (64, 1, false), (64, 3, true)]
        {
            let namespace = ModelNamespace {
                metadata,
                interleaved,
                protection,
                protection_first: first,
                ..ModelNamespace::new(1 << 20, 4096)
            };
            let (_rig, mut queue) = rig_of(namespace);
            let format = queue.format();
            let want = BlockFormat {
                data_bytes: 4096,
                metadata_bytes: metadata.into(),
                interleaved,
                protection,
                first,
            };
            assert_eq!(format, want);
            let mut data = vec![0x5a; 3 * format.stride()];
            let mut separate = vec![1; if interleaved { 0 } else { 3 * usize::from(metadata) }];
            protection::protect(&format, &mut data, &mut separate, 0xbeef, 20);
            let checked = ProtectionOptions {
                check_guard: true,
                check_application: true,
                check_reference: protection != 3,
                application: 0xbeef,
                application_mask: 0xffff,
                reference: 20,
                ..NONE
            };
            queue.write_blocks(20, data.clone(), separate.clone(), true, checked).unwrap();
            assert_eq!(
                queue.read_blocks(20, 3, checked).unwrap(),
                (data.clone(), separate.clone())
            );
            queue.verify(20, 3, checked).unwrap();
            // The controller finds what is wrong with data on its way in.
            let mut spoilt = data.clone();
            spoilt[100] ^= 1;
            let write = queue.write_blocks(40, spoilt.clone(), separate.clone(), false, {
                ProtectionOptions { reference: if protection == 1 { 40 } else { 20 }, ..checked }
            });
            refused(write, Status::GUARD_CHECK_ERROR);
            let other = ProtectionOptions { application: 1, ..checked };
            refused(queue.verify(20, 3, other), Status::APPLICATION_TAG_CHECK_ERROR);
            if protection == 2 {
                let other = ProtectionOptions { reference: 21, ..checked };
                refused(queue.verify(20, 3, other), Status::REFERENCE_TAG_CHECK_ERROR);
            }
            if protection == 1 {
                let other = ProtectionOptions { reference: 21, ..checked };
                refused(queue.verify(20, 3, other), Status::INVALID_PROTECTION_INFORMATION);
            }
            // What is stored wrong, the host finds on its way out.
            let unchecked = queue.write_blocks(20, spoilt, separate.clone(), false, NONE);
            unchecked.unwrap();
            let (data, separate) = queue.read_blocks(20, 3, NONE).unwrap();
            let found = protection::check(&format, &data, &separate, 20, None, 20).unwrap_err();
            assert!(matches!(found, protection::ProtectionError::Guard { lba: 20, .. }), "{found}");
            refused(queue.verify(20, 3, checked), Status::GUARD_CHECK_ERROR);
        }
    }
}

#[test]
fn the_controller_makes_protection_information_and_takes_it_off() {
    for interleaved in [false, true] {
        let namespace = ModelNamespace {
            metadata: 8,
            interleaved,
            protection: 1,
            ..ModelNamespace::new(1 << 20, 512)
        };
        let (_rig, mut queue) = rig_of(namespace);
        let by_controller = ProtectionOptions {
            by_controller: true,
            check_guard: true,
            check_reference: true,
            application: 7,
            reference: 9,
            ..NONE
        };
        queue.write_blocks(9, vec![3; 1024], Vec::new(), false, by_controller).unwrap();
        let (data, metadata) = queue.read_blocks(9, 2, by_controller).unwrap();
        assert_eq!((data, metadata.len()), (vec![3; 1024], 0));
        let (data, metadata) = queue.read_blocks(9, 2, NONE).unwrap();
        protection::check(&queue.format(), &data, &metadata, 9, Some(7), 9).unwrap();
        invalid(queue.write_blocks(9, vec![3; 1024], Vec::new(), false, NONE), "not whole blocks");
    }
}

#[test]
fn zones_are_written_in_order_managed_and_reported() {
    let namespace =
        ModelNamespace { zones_open_max: 2, ..ModelNamespace::new(1 << 20, 512).zoned(256, 200) };
    let (rig, mut queue) = rig_of(namespace);
    let served = rig.controller.namespace(1).unwrap_err().to_string();
    assert!(served.contains("namespace 1 is not of the NVM command set"), "{served}");
    assert_eq!(queue.zoned().unwrap().lbafe[0].zsze, 256);
    let zones = queue.zones(0, usize::MAX).unwrap();
    assert_eq!(zones.len(), 8);
    assert!(zones.iter().all(|zone| zone.state == ZoneState::Empty && zone.capacity_blocks == 200));
    assert_eq!(queue.zones(0, 3).unwrap().len(), 3);
    assert_eq!(queue.zones(300, 99).unwrap()[0].start_lba, 256);
    // Appends say where they went; writes must be there.
    assert_eq!(queue.append(256, vec![1; 1024]).unwrap(), 256);
    assert_eq!(queue.append(256, vec![2; 512]).unwrap(), 258);
    assert_eq!(queue.read_blocks(258, 1, NONE).unwrap().0, [2; 512]);
    let behind = queue.write_blocks(260, vec![3; 512], Vec::new(), false, NONE);
    refused(behind, Status::ZONE_INVALID_WRITE);
    write(&mut queue, 259, 3, 1);
    let zone = queue.zones(256, 1).unwrap()[0];
    assert_eq!((zone.state, zone.write_pointer_lba), (ZoneState::ImplicitlyOpened, Some(260)));
    queue.manage_zone(0, ZoneAction::Open, false).unwrap();
    refused(queue.manage_zone(512, ZoneAction::Open, false), Status::TOO_MANY_OPEN_ZONES);
    refused(queue.append(512, vec![1; 512]), Status::TOO_MANY_OPEN_ZONES);
    queue.manage_zone(256, ZoneAction::Close, false).unwrap();
    queue.append(512, vec![1; 512]).unwrap();
    queue.manage_zone(512, ZoneAction::Finish, false).unwrap();
    refused(queue.append(512, vec![1; 512]), Status::ZONE_IS_FULL);
    let zone = queue.zones(512, 1).unwrap()[0];
    assert_eq!((zone.state, zone.write_pointer_lba), (ZoneState::Full, None));
    refused(
        queue.manage_zone(512, ZoneAction::Close, false),
        Status::INVALID_ZONE_STATE_TRANSITION,
    );
    refused(queue.manage_zone(1, ZoneAction::Reset, false), Status::INVALID_FIELD);
    refused(queue.append(257, vec![1; 512]), Status::INVALID_FIELD);
    refused(queue.append(0, vec![1; 201 * 512]), Status::ZONED_BOUNDARY_ERROR);
    queue.manage_zone(0, ZoneAction::Reset, true).unwrap();
    let zones = queue.zones(0, usize::MAX).unwrap();
    assert!(zones.iter().all(|zone| zone.state == ZoneState::Empty), "{zones:?}");
    assert_eq!(queue.read_blocks(256, 1, NONE).unwrap().0, [0; 512]);
}

#[test]
fn a_report_of_more_zones_than_fit_one_transfer_is_complete() {
    let (_rig, mut queue) = rig_of(ModelNamespace::new(4 << 20, 512).zoned(4, 3));
    let zones = queue.zones(0, usize::MAX).unwrap();
    let starts: Vec<u64> = zones.iter().map(|zone| zone.start_lba).collect();
    assert_eq!(starts, (0..2048).map(|zone| zone * 4).collect::<Vec<_>>());
}

#[test]
fn reservations_keep_others_out_and_are_taken_over() {
    let (rig, mut queue) = plain();
    let kind = ReservationType::WriteExclusive;
    refused(queue.acquire(Acquire::Acquire, kind, 1), Status::RESERVATION_CONFLICT);
    queue.register(Register::Register { new: 0xa }, false, Some(true)).unwrap();
    queue.acquire(Acquire::Acquire, kind, 0xa).unwrap();
    let report = queue.reservation_report().unwrap();
    assert_eq!((report.status.reservation_type, report.status.through_power_loss), (1, 1));
    let [own] = &report.registrants_extended[..] else { panic!("{report:?}") };
    assert_eq!((own.key, own.status, own.cntlid), (0xa, 1, 0));
    write(&mut queue, 0, 1, 1);
    // Another host has it now: this one may read and not write.
    rig.model.other_host(1, 0xb, kind.bits());
    let write_one =
        |queue: &mut CommandQueue| queue.write_blocks(0, vec![2; 512], Vec::new(), false, NONE);
    refused(write_one(&mut queue), Status::RESERVATION_CONFLICT);
    assert_eq!(queue.read_blocks(0, 1, NONE).unwrap().0, [1; 512]);
    refused(queue.acquire(Acquire::Acquire, kind, 0xa), Status::RESERVATION_CONFLICT);
    queue.acquire(Acquire::Preempt { key: 0xb }, kind, 0xa).unwrap();
    write_one(&mut queue).unwrap();
    let report = queue.reservation_report().unwrap();
    assert_eq!(report.registrants_extended.len(), 1, "the other one is out");
    queue.register(Register::Replace { current: 0xa, new: 0xc }, false, None).unwrap();
    refused(queue.release(Some(kind), 0xa), Status::RESERVATION_CONFLICT);
    refused(queue.release(Some(ReservationType::ExclusiveAccess), 0xc), Status::INVALID_FIELD);
    queue.release(Some(kind), 0xc).unwrap();
    queue.register(Register::Unregister { current: 0xc }, false, None).unwrap();
    assert_eq!(queue.reservation_report().unwrap().status.registrants, 0);
}

#[test]
fn reclaim_unit_handles_are_told_and_moved_on() {
    let (rig, mut queue) = plain();
    refused(queue.reclaim_unit_handles(), Status::FDP_DISABLED);
    let set = Command::new(Opcode::SET_FEATURES, 0).dword(10, 0x1d).dword(11, 1).dword(12, 1);
    drop(queue);
    rig.controller.delete_namespace(1).unwrap();
    rig.controller.admin(&set, crate::nvme::Data::None).unwrap();
    let new = crate::nvme::commands::namespaces::NewNamespace::new(64, 0);
    let nsid = rig.controller.create_namespace(new).unwrap();
    rig.controller.attach_namespace(nsid, true, &[]).unwrap();
    let mut queue = rig.controller.command_queue(nsid, 2).unwrap();
    let left = |queue: &mut CommandQueue| -> Vec<u64> {
        let handles = queue.reclaim_unit_handles().unwrap().handles;
        handles.iter().map(|handle| handle.blocks_left).collect()
    };
    assert_eq!(left(&mut queue), [990, 980]);
    queue.update_reclaim_units(&[1]).unwrap();
    assert_eq!(left(&mut queue), [990, 1000]);
    refused(queue.update_reclaim_units(&[5]), Status::INVALID_FIELD);
    invalid(queue.update_reclaim_units(&[]), "0 placement identifiers");
}

#[test]
fn passthrough_keeps_each_answer_with_its_command() {
    let options = ModelOptions { oncs: ALL, shuffle: Some(5), ..Default::default() };
    let rig = Rig::new(options);
    let mut queue = rig.controller.command_queue(1, 8).unwrap();
    for lba in 0..8 {
        write(&mut queue, lba, lba as u8 + 1, 1);
    }
    let mut tokens = std::collections::BTreeMap::new();
    for lba in 0..8u64 {
        let command = Command::new(Opcode::READ, 0).qword(10, lba);
        let io = IoCommand { data: Buffer::In(512), ..IoCommand::new(command) };
        tokens.insert(queue.submit(io).unwrap(), lba as u8 + 1);
    }
    let one_more = IoCommand::new(Command::new(Opcode::FLUSH, 0));
    invalid(queue.submit(one_more), "the queue is full");
    queue.commit();
    while let Some(answer) = queue.poll() {
        answer.result.unwrap();
        assert_eq!(answer.data, vec![tokens.remove(&answer.token).unwrap(); 512]);
    }
    assert!(tokens.is_empty());
    refused(queue.execute(IoCommand::new(Command::new(Opcode(0xee), 0))), Status::INVALID_OPCODE);
    // Status with DNR and More as it came.
    rig.model.lie([Lie::Status(Status(0x6004))]);
    let error = queue.flush().unwrap_err();
    assert_eq!(error.status(), Some(Status(0x6004)));
    assert_eq!(
        error.to_string(),
        "model/1: Flush failed: Data Transfer Error (SCT 0h, SC 04h, More, DNR)"
    );
}

#[test]
fn a_command_queue_is_drained_and_its_memory_goes_back() {
    let (rig, mut queue) = plain();
    let free = rig.pool.free_frames();
    let read = Command::new(Opcode::READ, 0).dword(12, 99);
    for _ in 0..4 {
        let io = IoCommand { data: Buffer::In(51_200), ..IoCommand::new(read) };
        queue.submit(io).unwrap();
    }
    assert!(rig.pool.free_frames() < free);
    drop(queue);
    assert!(rig.pool.free_frames() > free, "its rings too");
    assert_eq!((rig.model.io_queues(), rig.controller.failure()), (0, None));
}

/// A Zone Append that is late and is done after all says where, though its Abort is answered last.
#[test]
fn a_late_command_that_is_done_after_all_keeps_its_answer() {
    use crate::nvme::model::Aborts;
    use std::time::Duration;
    let options = ModelOptions {
        namespaces: vec![ModelNamespace::new(1 << 20, 512).zoned(256, 256)],
        aborts: Aborts::Late,
        ..Default::default()
    };
    let rig = Rig::new(options);
    let mut queue = rig.controller.command_queue(1, 4).unwrap();
    let append = |lba: u64| IoCommand {
        data: Buffer::Out(vec![7; 512]),
        ..IoCommand::new(Command::new(Opcode::ZONE_APPEND, 0).qword(10, lba))
    };
    queue.submit(append(256)).unwrap();
    queue.commit();
    assert_eq!(queue.poll().unwrap().result.unwrap(), 256);
    rig.model.hold(true);
    let late = queue.submit(append(256)).unwrap();
    queue.commit();
    while rig.controller.error_statistics().aborts == 0 {
        assert!(queue.poll().is_none());
        rig.clock.advance(Duration::from_millis(1));
    }
    let other = queue.submit(append(512)).unwrap();
    queue.commit();
    rig.model.hold(false);
    let mut answers = Vec::new();
    for _ in 0..100 {
        answers.extend(queue.poll());
    }
    assert_eq!(answers.len(), 1, "the other waits for its Abort");
    rig.model.do_late_aborts();
    answers.extend((0..100).find_map(|_| queue.poll()));
    let found: Vec<_> = answers.into_iter().map(|it| (it.token, it.result.unwrap())).collect();
    assert_eq!(found, [(other, 512), (late, 257)]);
}
