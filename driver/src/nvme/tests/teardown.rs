//! Closing and dropping, in every order and over a controller that does not play along.

use std::time::Duration;

use super::*;
use crate::block::Health;
use crate::clock::Clock;
use crate::error::{IoError, IoErrorKind};
use crate::nvme::model::{Aborts, Lie, ModelNamespace};
use crate::nvme::spec::Opcode;

#[test]
fn close_shuts_down_in_order_then_disables_and_gives_the_memory_back() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let queue = open(&namespace, 4);
    let error = namespace.close().unwrap_err().to_string();
    assert_eq!(error, "nvme:model/1: 1 of its queues are still open");
    drop(queue);
    namespace.close().unwrap();
    assert!(rig.model.is_shut_down() && !rig.model.is_enabled());
    assert_eq!(namespace.health(), Health::Failed(IoError::new(IoErrorKind::Gone)));
    namespace.close().unwrap();
    assert!(namespace.open_queue(QueueOptions::polled(1)).is_err());
    drop(namespace);
    drop(rig.controller);
    assert_eq!(rig.pool.free_frames(), 2048);
}

#[test]
fn dropping_the_last_reference_shuts_down_too() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    drop(rig.controller);
    assert!(!rig.model.is_shut_down());
    drop(namespace);
    assert!(rig.model.is_shut_down() && !rig.model.is_enabled());
    assert_eq!(rig.pool.free_frames(), 2048);
}

#[test]
fn closing_one_of_two_namespaces_flushes_it_and_leaves_the_other() {
    let namespaces = vec![ModelNamespace::new(1 << 20, 512); 2];
    let rig = Rig::new(ModelOptions { namespaces, ..Default::default() });
    let (first, second) = (rig.namespace(), rig.controller.namespace(2).unwrap());
    let mut queue = open(&second, 4);
    rig.model.take_seen();
    first.close().unwrap();
    assert_eq!(rig.model.take_seen().commands, [(Opcode::FLUSH.0, 1)].into());
    assert!(first.open_queue(QueueOptions::polled(1)).is_err(), "it is closed");
    assert_eq!(one(&mut *queue, rig.read(1)).0, Ok(()), "the other one goes on");
    assert!(rig.controller.close().is_err(), "a queue is open");
    drop(queue);
    second.close().unwrap();
    assert!(rig.model.is_shut_down());
}

#[test]
fn a_controller_that_never_shuts_down_is_disabled_all_the_same() {
    let rig = Rig::new(ModelOptions { never_shuts_down: true, ..Default::default() });
    let namespace = rig.namespace();
    let before = rig.clock.now();
    let error = namespace.close().unwrap_err().to_string();
    assert_eq!(error, "model: the shutdown (CSTS.SHST) did not happen within 2000 ms");
    assert!(rig.clock.now() - before < Duration::from_secs(5));
    assert!(!rig.model.is_enabled());
    namespace.close().unwrap();
    drop((namespace, rig.controller));
    assert_eq!(rig.pool.free_frames(), 2048);
}

#[test]
fn memory_of_a_controller_that_nothing_stops_is_leaked_at_close() {
    let options = ModelOptions {
        never_disables: true,
        can_be_cut_off: false,
        shadow_doorbells: true,
        ..Default::default()
    };
    let rig = Rig::new(options);
    rig.controller.close().unwrap();
    drop(rig.controller);
    assert_eq!(rig.pool.free_frames(), 2048 - NvmeController::frames_for_controller());
}

#[test]
fn dropping_a_queue_waits_for_what_was_committed() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let free = rig.pool.free_frames();
    let mut queue = open(&namespace, 8);
    send(&mut *queue, [rig.write(0, 5, false), rig.write(8, 5, false), discard(64, 1)]);
    // Never committed, so never sent: a write, and discards that were still being gathered.
    queue.submit(rig.write(0, 6, false)).unwrap();
    queue.submit(discard(0, 8)).unwrap();
    queue.submit(discard(8, 8)).unwrap();
    drop(queue);
    assert_eq!(rig.pool.free_frames(), free);
    let seen = rig.model.take_seen();
    assert_eq!(seen.commands, [(Opcode::WRITE.0, 2), (Opcode::DATASET_MANAGEMENT.0, 1)].into());
    assert_eq!(rig.model.io_queues(), 0);
    let (_, data) = one(&mut *open(&namespace, 1), rig.read(0));
    let mut bytes = [0; 4096];
    data.copy_to_slice(0, &mut bytes);
    assert_eq!(bytes, [5; 4096]);
}

#[test]
fn dropping_a_queue_with_a_stuck_command_is_bounded_and_keeps_the_controller() {
    let rig = Rig::new(ModelOptions { aborts: Aborts::Refused, ..Default::default() });
    let namespace = rig.namespace();
    let free = rig.pool.free_frames();
    let mut queue = open(&namespace, 8);
    rig.model.lie([Lie::Stuck]);
    send(&mut *queue, [rig.read(1), rig.read(2)]);
    queue.submit(rig.read(3)).unwrap();
    let before = rig.clock.now();
    drop(queue);
    assert!(rig.clock.now() - before < Duration::from_secs(50));
    assert_eq!(rig.controller.error_statistics().resets, 1);
    assert_eq!(rig.pool.free_frames(), free);
    assert_eq!(one(&mut *open(&namespace, 8), rig.read(1)).0, Ok(()));
    namespace.close().unwrap();
}

#[test]
fn an_admin_command_that_is_not_answered_has_the_controller_reset() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    rig.model.lie_admin([Lie::Stuck]);
    let error = rig.controller.identify_controller().unwrap_err().to_string();
    let said = "model: Identify was ended before it was answered: queue 0 did not answer a command \
                within 30000 ms";
    assert_eq!(error, said);
    assert_eq!(one(&mut *open(&namespace, 1), rig.read(1)).0, Ok(()), "it is back");
    // A queue that it does not make is made after the reset.
    rig.model.lie_admin([Lie::Stuck]);
    let mut queue = open(&namespace, 1);
    assert_eq!(rig.controller.error_statistics().resets, 2);
    assert_eq!(one(&mut *queue, rig.read(1)).0, Ok(()));
    rig.model.lie_admin([Lie::Honest, Lie::Stuck]);
    assert_eq!(one(&mut *open(&namespace, 1), rig.read(1)).0, Ok(()));
    assert_eq!(rig.controller.error_statistics().resets, 3);
}
