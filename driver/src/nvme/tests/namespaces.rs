//! Namespaces that change under a controller that is in use: at a reset, by an event, by a command.

use std::time::Duration;

use super::ladder::{results, wait};
use super::*;
use crate::block::Health;
use crate::clock::Clock;
use crate::error::{IoError, IoErrorKind};
use crate::nvme::commands::format::Format;
use crate::nvme::commands::nvm::ProtectionOptions;
use crate::nvme::commands::{Buffer, Command, CommandError, IoCommand};
use crate::nvme::model::{Lie, ModelNamespace};
use crate::nvme::spec::{Opcode, Status};
use crate::nvme::{Event, Failure};

fn two() -> ModelOptions {
    ModelOptions { namespaces: vec![ModelNamespace::new(1 << 20, 512); 2], ..Default::default() }
}

fn fail_and_wait(rig: &Rig, queue: &mut dyn IoQueue) -> Vec<(u64, IoResult)> {
    rig.model.fail_fatally();
    results(&wait(rig, queue).0)
}

#[test]
fn a_reset_compares_a_namespace_with_what_it_was_when_it_was_opened() {
    let rig = Rig::new(ModelOptions::default());
    rig.controller.format(1, Format::new(1)).unwrap();
    rig.controller.rescan().unwrap();
    let namespace = rig.namespace();
    assert_eq!(namespace.geometry().block_size, 4096);
    let mut queue = open(&namespace, 4);
    send(&mut *queue, [Request::read(Token::from_u64(1), Lba(0), 1, rig.frames(1))]);
    assert_eq!(fail_and_wait(&rig, &mut *queue), [(1, Ok(()))]);
    assert_eq!(rig.controller.failure(), None, "a healthy drive is not given up");
    // Resized and refreshed, it is what it was then.
    drop(queue);
    rig.model.resize(1, 100);
    assert!(namespace.refresh().unwrap());
    let mut queue = open(&namespace, 4);
    send(&mut *queue, [flush()]);
    assert_eq!(fail_and_wait(&rig, &mut *queue), [(999, Ok(()))]);
}

/// Nothing is written to blocks that are not those it was meant for; the other namespace goes on.
#[test]
fn a_namespace_that_is_another_after_a_reset_fails_alone() {
    let change = |model: &Model, what| match what {
        "replaced" => model.replace(2),
        "reformatted" => model.reformat(2, 4096),
        _ => model.attach(2, false),
    };
    for what in ["replaced", "reformatted", "detached"] {
        // It was attached after the controller was started.
        let rig = Rig::new(two());
        rig.model.attach(2, false);
        rig.controller.rescan().unwrap();
        rig.model.attach(2, true);
        rig.controller.rescan().unwrap();
        let (one, two) = (rig.namespace(), rig.controller.namespace(2).unwrap());
        let (mut first, mut second) = (open(&one, 4), open(&two, 4));
        rig.model.hold(true);
        send(&mut *first, [rig.write(8, 1, false)]);
        send(&mut *second, [rig.write(16, 2, false)]);
        change(&rig.model, what);
        rig.model.fail_fatally();
        rig.model.hold(false);
        assert_eq!(results(&wait(&rig, &mut *first).0), [(8, Ok(()))], "{what}");
        let gone = IoError { do_not_retry: true, ..IoError::new(IoErrorKind::Gone) };
        assert_eq!(results(&wait(&rig, &mut *second).0), [(16, Err(gone))], "{what}");
        assert_eq!(rig.model.take_seen().commands[&Opcode::WRITE.0], 1, "{what}");
        assert_eq!((one.health(), two.health()), (Health::Good, Health::Failed(gone)), "{what}");
        assert!(two.open_queue(QueueOptions::polled(1)).is_err(), "{what}");
        assert!(rig.controller.take_events().contains(&Event::NamespaceChanged(2)), "{what}");
        drop((first, second));
    }
}

/// A volatile cache need not survive a reset of the subsystem: who was told that his writes are done
/// is told by his next flush that they may not be.
#[test]
fn the_first_flush_after_a_subsystem_reset_fails_on_every_queue_that_was_open() {
    let how = ControllerOptions { subsystem_reset: true, ..Default::default() };
    for volatile_cache in [true, false] {
        let options = ModelOptions {
            never_disables: true,
            subsystem_reset: true,
            volatile_cache,
            ..Default::default()
        };
        let rig = Rig::driven(options, how).unwrap();
        let namespace = rig.namespace();
        let (mut queue, mut other) = (open(&namespace, 4), open(&namespace, 4));
        assert_eq!(one(&mut *queue, rig.write(8, 3, false)).0, Ok(()));
        rig.model.hold(true);
        send(&mut *queue, [flush()]);
        rig.model.fail_fatally();
        rig.model.hold(false);
        let lost = match volatile_cache {
            true => Err(IoError::new(IoErrorKind::Device)),
            false => Ok(()),
        };
        assert_eq!(results(&wait(&rig, &mut *queue).0), [(999, lost)]);
        assert_eq!(rig.controller.error_statistics().subsystem_resets, 1);
        assert_eq!(one(&mut *queue, flush()).0, Ok(()), "said once");
        assert_eq!(one(&mut *other, rig.read(1)).0, Ok(()));
        assert_eq!(one(&mut *other, flush()).0, lost, "to each who was there");
        assert_eq!(one(&mut *other, flush()).0, Ok(()));
        assert_eq!(one(&mut *open(&namespace, 4), flush()).0, Ok(()), "not to who comes later");
    }
}

#[test]
fn firmware_that_takes_less_after_a_reset_is_another_controller() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    rig.model.set_mdts(2);
    send(&mut *queue, [rig.read(1)]);
    assert!(fail_and_wait(&rig, &mut *queue)[0].1.is_ok(), "it was done before");
    send(&mut *queue, [rig.read(2)]);
    wait(&rig, &mut *queue);
    assert_eq!(rig.controller.failure(), Some(Failure::Changed));
}

/// Without a queue in use, `turn` is enough.
#[test]
fn an_idle_controller_is_looked_at_once_a_second() {
    let rig = Rig::new(ModelOptions::default());
    rig.model.fail_fatally();
    for _ in 0..2000 {
        rig.controller.turn();
        rig.clock.advance(Duration::from_millis(1));
    }
    assert_eq!(rig.controller.error_statistics().resets_done, 1);
    rig.model.ask_back();
    for _ in 0..2000 {
        rig.controller.turn();
        rig.clock.advance(Duration::from_millis(1));
    }
    assert_eq!(rig.controller.failure(), Some(Failure::AskedBack));
    assert!(!rig.model.is_enabled());
}

#[test]
fn what_is_in_use_by_commands_is_not_formatted() {
    let rig = Rig::new(ModelOptions::default());
    let queue = rig.controller.command_queue(1, 2).unwrap();
    let said = rig.controller.format(1, Format::new(0)).unwrap_err().to_string();
    assert!(said.contains("namespace 1 is open"), "{said}");
    drop(queue);
    rig.controller.format(1, Format::new(0)).unwrap();
}

#[test]
fn a_command_that_was_ended_says_whether_it_may_have_been_done() {
    let rig = Rig::new(ModelOptions::default());
    let mut queue = rig.controller.command_queue(1, 4).unwrap();
    let command = |opcode| Command::new(opcode, 0).qword(10, 8);
    let read = IoCommand { data: Buffer::In(512), ..IoCommand::new(command(Opcode::READ)) };
    let write =
        IoCommand { data: Buffer::Out(vec![1; 512]), ..IoCommand::new(command(Opcode::WRITE)) };
    rig.model.hold(true);
    let read = queue.submit(read).unwrap();
    queue.submit(write).unwrap();
    queue.submit(IoCommand::new(command(Opcode::WRITE_ZEROES))).unwrap();
    queue.commit();
    rig.model.fail_fatally();
    rig.model.hold(false);
    let mut ended = Vec::new();
    while queue.in_flight() > 0 {
        rig.clock.advance(Duration::from_millis(1));
        let before = rig.clock.now();
        let answer = queue.poll();
        assert_eq!(rig.clock.now(), before, "a poll does not wait");
        let Some(answer) = answer else { continue };
        match answer.result {
            Err(CommandError::Ended { may_have_been_done, .. }) => {
                ended.push((answer.token == read, may_have_been_done));
            }
            other => panic!("{other:?}"),
        }
    }
    ended.sort();
    assert_eq!(ended, [(false, true), (false, true), (true, false)]);
}

#[test]
fn an_admin_command_that_was_ended_may_have_been_done() {
    let rig = Rig::new(ModelOptions::default());
    rig.controller.turn();
    rig.model.lie_admin([Lie::Stuck]);
    let format = Command::new(Opcode::FORMAT_NVM, 1).within(Duration::from_secs(1));
    let error = rig.controller.admin(&format, crate::nvme::Data::None).unwrap_err();
    assert!(matches!(error, CommandError::Ended { may_have_been_done: true, .. }), "{error:?}");
}

#[test]
fn logs_that_hold_something_once_are_left_to_whoever_reads_them() {
    let rig = Rig::new(two());
    let controller = &rig.controller;
    controller.turn();
    controller.turn();
    rig.model.tell_reservation(2);
    rig.model.tell_reservation(3);
    rig.model.tell_about(0x00bf_ef02, 2);
    rig.model.tell_changed([1]);
    for _ in 0..20 {
        controller.turn();
    }
    let events = controller.take_events();
    assert_eq!(events, [Event::Reservation, Event::ZonesChanged(2), Event::NamespaceChanged(1)]);
    let (first, second) =
        (controller.reservation_log().unwrap(), controller.reservation_log().unwrap());
    assert_eq!((first.notification, second.notification), (2, 3), "neither is lost");
    // The driver has read the list; whoever asks gets it all the same.
    assert_eq!(controller.changed_namespaces(true).unwrap(), Some(vec![1]));
    assert_eq!(controller.changed_namespaces(false).unwrap(), Some(vec![1]));
    assert_eq!(controller.changed_namespaces(false).unwrap(), Some(vec![]));
    // Once the log was read it is told of again.
    rig.model.tell_reservation(1);
    controller.turn();
    assert_eq!(controller.take_events(), [Event::Reservation]);
}

#[test]
fn a_request_for_events_that_is_refused_is_not_sent_again_and_again() {
    let rig = Rig::new(ModelOptions::default());
    rig.model.lie_admin((0..1000).map(|_| Lie::Status(Status(0x105))));
    for _ in 0..100 {
        rig.controller.turn();
    }
    assert!(rig.model.take_seen().event_requests <= 4);
}

#[test]
fn formats_that_no_command_could_carry_are_refused() {
    for lbads in [0, 8, 17, 31, 62, 63, 64, 255] {
        let namespaces = vec![ModelNamespace { lbads, ..ModelNamespace::new(1 << 20, 512) }];
        let rig = Rig::new(ModelOptions { namespaces, ..Default::default() });
        let error = rig.controller.command_queue(1, 2).err().map(|error| error.to_string());
        assert!(error.is_some_and(|said| said.contains("blocks of")), "2^{lbads}");
    }
    for (lbads, good) in [(9, true), (12, true)] {
        let namespaces = vec![ModelNamespace { lbads, ..ModelNamespace::new(1 << 20, 512) }];
        let rig = Rig::new(ModelOptions { namespaces, ..Default::default() });
        assert_eq!(rig.controller.command_queue(1, 2).is_ok(), good);
    }
    let guarded = |guard| {
        let namespace = ModelNamespace {
            protection: 1,
            metadata: 8,
            guard,
            ..ModelNamespace::new(1 << 20, 512)
        };
        Rig::new(ModelOptions { namespaces: vec![namespace], ..Default::default() })
    };
    assert!(guarded(0).controller.command_queue(1, 2).is_ok());
    for guard in [1, 2] {
        let said = guarded(guard).controller.command_queue(1, 2).unwrap_err().to_string();
        assert!(said.contains("guards"), "{said}");
    }
    let protection = ProtectionOptions { by_controller: true, ..Default::default() };
    let rig = Rig::new(ModelOptions::default());
    let mut queue = rig.controller.command_queue(1, 2).unwrap();
    assert!(queue.read_blocks(0, u32::MAX, protection).is_err());
}

#[test]
fn a_controller_that_lists_namespaces_for_ever_comes_up_all_the_same() {
    let pool = DmaPool::new(PoolOptions::frames(2048)).unwrap();
    let model = Model::new(ModelOptions::default(), pool.clone());
    model.list_for_ever();
    let clock = crate::nvme::model::ModelClock::new();
    let controller = start(&model, &pool, &clock).unwrap();
    assert_eq!(controller.namespaces().len(), 1);
    assert!(clock.now() < Duration::from_secs(10));
}

#[test]
fn a_report_of_zones_is_no_larger_than_a_transfer() {
    let namespaces = vec![ModelNamespace::new(1 << 20, 512).zoned(2, 2)];
    let rig = Rig::new(ModelOptions { namespaces, mdts: 1, ..Default::default() });
    let mut queue = rig.controller.command_queue(1, 2).unwrap();
    assert_eq!(queue.zones(0, usize::MAX).unwrap().len(), 1024);
}
