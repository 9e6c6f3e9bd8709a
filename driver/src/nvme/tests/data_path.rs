//! The data path: what goes to the controller, and what its answers mean.

use super::*;
use crate::block::{Armed, Capabilities};
use crate::error::{IoError, IoErrorKind};
use crate::nvme::model::Lie;
use crate::nvme::spec::{Opcode, Status};
use crate::request::Refusal;

fn bytes(data: &SgList) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    data.copy_to_slice(0, &mut bytes);
    bytes
}

#[test]
fn a_batch_rings_each_doorbell_once() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 64);
    rig.model.take_seen();
    queue.commit();
    queue.poll(64, &mut Vec::new());
    assert_eq!(rig.model.take_seen().sq_doorbells, 0, "nothing to commit rings nothing");
    send(&mut *queue, (0..40).map(|token| rig.read(token)));
    let mut out = Vec::with_capacity(64);
    assert_eq!(queue.poll(64, &mut out), 40);
    let seen = rig.model.take_seen();
    // That completions were taken it is told only when it could run out of room for them.
    assert_eq!((seen.sq_doorbells, seen.cq_doorbells), (1, 0));
    assert_eq!(seen.commands[&Opcode::READ.0], 40);
    for _ in 0..3 {
        send(&mut *queue, (0..64).map(|token| rig.read(token)));
        out.clear();
        assert_eq!(queue.poll(64, &mut out), 64);
    }
    let seen = rig.model.take_seen();
    assert_eq!((seen.sq_doorbells, seen.cq_doorbells), (3, 1));
}

/// The controller looks at the shadow doorbell by itself while it is at work, and the register is for one
/// that does not.
#[test]
fn with_shadow_doorbells_only_an_idle_controller_has_its_register_written() {
    let rig = Rig::new(ModelOptions { shadow_doorbells: true, ..Default::default() });
    let namespace = rig.namespace();
    // The identifier of a queue was in use before: what its doorbells were must not matter.
    for _ in 0..2 {
        let mut queue = open(&namespace, 8);
        rig.model.take_seen();
        assert_eq!(one(&mut *queue, rig.write(0, 7, false)).0, Ok(()));
        assert_eq!(rig.model.take_seen().sq_doorbells, 1, "it was idle");
        rig.model.set_deferred(true);
        // It is told of the first one, and has not said that it is idle again.
        (0..5).for_each(|token| send(&mut *queue, [rig.read(token)]));
        rig.model.step();
        rig.model.set_deferred(false);
        assert_eq!(drain(&mut *queue).len(), 5, "it found them all");
        assert_eq!(rig.model.take_seen().sq_doorbells, 1, "by the first of five");
        let (result, data) = one(&mut *queue, rig.read(0));
        assert_eq!((result, bytes(&data)), (Ok(()), vec![7; 4096]));
    }
}

#[test]
fn what_was_flushed_or_forced_survives_a_power_cut_and_the_rest_need_not() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    assert!(namespace.capabilities().volatile_cache);
    let mut queue = open(&namespace, 8);
    assert_eq!(one(&mut *queue, rig.write(0, 1, false)).0, Ok(()));
    assert_eq!(one(&mut *queue, flush()).0, Ok(()));
    assert_eq!(one(&mut *queue, rig.write(0, 2, false)).0, Ok(()));
    assert_eq!(one(&mut *queue, rig.write(8, 3, true)).0, Ok(()));
    assert_eq!(rig.model.take_seen().fua, 1);
    rig.model.power_cut();
    std::mem::forget(queue);
    drop(namespace);
    std::mem::forget(rig.controller);
    let controller = start(&rig.model, &rig.pool, &rig.clock).unwrap();
    let namespace = controller.namespace(1).unwrap();
    let mut queue = open(&namespace, 8);
    let read = |lba| {
        Request::read(Token::from_u64(0), Lba(lba), 8, SgList::new(vec![rig.pool.take().unwrap()]))
    };
    assert_eq!(bytes(&one(&mut *queue, read(0)).1), [1; 4096], "flushed, then written again");
    assert_eq!(bytes(&one(&mut *queue, read(8)).1), [3; 4096], "forced");
}

#[test]
fn without_a_volatile_cache_the_device_says_so_and_flush_still_completes() {
    let rig = Rig::new(ModelOptions { volatile_cache: false, ..Default::default() });
    let namespace = rig.namespace();
    assert!(!namespace.capabilities().volatile_cache);
    assert_eq!(one(&mut *open(&namespace, 1), flush()).0, Ok(()));
}

#[test]
fn a_failed_command_fails_only_its_request() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 8);
    rig.model.spoil(1, 18);
    send(&mut *queue, (0..4).map(|token| rig.read(token)));
    for completion in drain(&mut *queue) {
        let want = match completion.token.to_u64() {
            2 => Err(IoError { kind: IoErrorKind::Media, status: 0x281, do_not_retry: false }),
            _ => Ok(()),
        };
        assert_eq!(completion.result, want, "{:?}", completion.token);
        assert_eq!(completion.data.frames.len(), 1);
    }
    assert_eq!(one(&mut *queue, rig.write(16, 9, false)).0, Ok(()), "rewriting heals it");
    assert_eq!(one(&mut *queue, rig.read(2)).0, Ok(()));
    assert_eq!(namespace.health(), crate::Health::Good);
}

#[test]
fn every_status_comes_with_its_code_and_its_dnr() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 8);
    let cases = [
        (0x4002, IoErrorKind::Invalid, true),
        (0x0083, IoErrorKind::Device, false),
        (0x4006, IoErrorKind::Device, true),
        (0x4007, IoErrorKind::Device, true),
        (0x4020, IoErrorKind::ReadOnly, true),
        (0x4081, IoErrorKind::NoSpace, true),
        (0x4281, IoErrorKind::Media, true),
        (0x47ff, IoErrorKind::Device, true),
    ];
    for (status, kind, do_not_retry) in cases {
        rig.model.lie([Lie::Status(Status(status))]);
        let result = one(&mut *queue, rig.read(1)).0;
        assert_eq!(result, Err(IoError { kind, status, do_not_retry }), "{status:#x}");
    }
    // More (bit 13) and a retry delay (bits 12:11) alone are not an error.
    rig.model.lie([Lie::Status(Status(0x3800))]);
    assert_eq!(one(&mut *queue, rig.read(1)).0, Ok(()));
}

/// The same bytes by either way, and lists only where they are shorter and taken.
#[test]
fn frames_that_follow_one_another_are_described_by_a_list_where_it_is_shorter() {
    for (offered, wanted) in [(true, true), (true, false), (false, true)] {
        let options = ModelOptions { scatter_gather: offered, ..Default::default() };
        let how = ControllerOptions { scatter_gather: wanted, ..Default::default() };
        let rig = Rig::driven(options, how).unwrap();
        let namespace = rig.namespace();
        let mut queue = open(&namespace, 4);
        rig.model.take_seen();
        let mut frames = rig.frames(64).frames;
        frames.sort_by_key(|frame| frame.index());
        let scattered = frames.split_off(32).into_iter().rev().collect();
        let sources = [SgList { frames, offset: 512 }, SgList { frames: scattered, offset: 0 }];
        for (mut data, lists) in sources.into_iter().zip([2, 0]) {
            let blocks = 31 * 8;
            let bytes: Vec<u8> = (0..31 * 4096u32).map(|at| (at / 7) as u8).collect();
            data.copy_from_slice(0, &bytes);
            if data.offset == 0 {
                data.frames.truncate(31);
            }
            let write = Request::write(Token::from_u64(1), Lba(24), blocks, data, false);
            let (result, data) = one(&mut *queue, write);
            assert_eq!(result, Ok(()));
            data.copy_from_slice(0, &[0; 31 * 4096]);
            let (result, data) =
                one(&mut *queue, Request::read(Token::from_u64(1), Lba(24), blocks, data));
            let mut read = vec![0; bytes.len()];
            data.copy_to_slice(0, &mut read);
            assert!(result.is_ok() && read == bytes);
            let want = if offered && wanted { lists } else { 0 };
            assert_eq!(rig.model.take_seen().scatter_gather, want);
        }
    }
}

#[test]
fn discards_between_two_commits_are_one_command() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 512);
    rig.model.take_seen();
    send(&mut *queue, (0..300).map(|index| discard(index * 100, 7)).chain([rig.read(5)]));
    assert_eq!(queue.in_flight(), 301);
    // Answers of one command keep to the budget too.
    let mut out = Vec::with_capacity(512);
    assert_eq!(queue.poll(10, &mut out), 10);
    assert_eq!(queue.in_flight(), 291);
    out.extend(drain(&mut *queue));
    assert!(out.iter().all(|completion| completion.result == Ok(())));
    let seen = rig.model.take_seen();
    assert_eq!(seen.commands[&Opcode::DATASET_MANAGEMENT.0], 2, "256 ranges and 44");
    let want: Vec<_> = (0..300).map(|index| (index * 100, 7)).collect();
    assert_eq!(seen.ranges, want);
    send(&mut *queue, [discard(0, 1)]);
    queue.commit();
    drain(&mut *queue);
    assert_eq!(rig.model.take_seen().ranges, [(0, 1)]);
}

#[test]
fn a_failed_discard_fails_all_that_share_its_command() {
    let rig = Rig::new(ModelOptions { dmrl: 3, ..Default::default() });
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 16);
    rig.model.lie([Lie::Honest, Lie::Status(Status(0x4006))]);
    send(&mut *queue, (0..7).map(|index| discard(index, 1)));
    let out = drain(&mut *queue);
    let failed: Vec<_> =
        out.iter().filter(|done| done.result.is_err()).map(|done| done.token.to_u64()).collect();
    assert_eq!(failed, [3, 4, 5], "three ranges a command; the second one failed");
    assert_eq!(rig.model.take_seen().ranges, [(0, 1), (1, 1), (2, 1), (6, 1)]);
}

#[test]
fn write_zeroes_deallocates_only_when_it_may() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    assert_eq!(one(&mut *queue, rig.write(0, 7, false)).0, Ok(()));
    for (may_unmap, deac) in [(false, 0), (true, 1)] {
        let op = Op::WriteZeroes { may_unmap };
        let request = Request::on_blocks(Token::from_u64(1), op, Lba(0), 4);
        assert_eq!(one(&mut *queue, request).0, Ok(()));
        assert_eq!(rig.model.take_seen().deac, deac);
    }
    let (_, data) = one(&mut *queue, rig.read(0));
    assert_eq!(bytes(&data)[..2048], [0; 2048]);
    assert_eq!(bytes(&data)[2048..], [7; 2048]);
}

#[test]
fn what_the_controller_does_not_do_is_refused() {
    let rig = Rig::new(ModelOptions { oncs: 0, ..Default::default() });
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    let zeroes = Op::WriteZeroes { may_unmap: false };
    let zeroes = Request::on_blocks(Token::from_u64(1), zeroes, Lba(0), 4);
    for request in [discard(0, 1), zeroes] {
        assert_eq!(queue.submit(request).unwrap_err().reason, Refusal::Unsupported);
    }
}

#[test]
fn frames_of_another_pool_are_refused() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    let other = DmaPool::new(PoolOptions::frames(1)).unwrap();
    let data = SgList::new(vec![other.take().unwrap()]);
    let refused = queue.submit(Request::read(Token::from_u64(1), Lba(0), 1, data)).unwrap_err();
    assert_eq!(refused.reason, Refusal::BadFrames);
}

#[test]
fn rings_wrap_for_every_depth() {
    let rig = Rig::new(ModelOptions { shuffle: Some(3), ..Default::default() });
    let namespace = rig.namespace();
    for depth in [1, 2, 3, 4, 7, 8, 31, 33] {
        let mut queue = open(&namespace, depth);
        let mut random = fastrand::Rng::with_seed(depth.into());
        let mut out = Vec::new();
        for _ in 0..200 {
            let room = queue.depth() - queue.in_flight();
            let count = random.usize(..=room);
            send(&mut *queue, (0..count as u64).map(|token| rig.read(token)));
            queue.poll(random.usize(..=queue.depth()), &mut out);
            assert!(out.drain(..).all(|done| done.result == Ok(())));
        }
        drain(&mut *queue);
    }
    assert_eq!(rig.controller.failure(), None);
}

#[test]
fn an_armed_queue_is_told_once_its_completion_is_there() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    rig.model.hold(true);
    send(&mut *queue, [rig.read(1)]);
    assert_eq!(queue.arm(), Armed::Yes);
    let readable = |queue: &dyn IoQueue| {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let fd = queue.event_fd().unwrap();
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&now)).unwrap() == 1
    };
    assert!(!readable(&*queue));
    rig.model.hold(false);
    assert!(readable(&*queue));
    assert_eq!(queue.arm(), Armed::Ready);
    assert_eq!(drain(&mut *queue).len(), 1);
    // What fired before it was armed does not wake it for nothing.
    rig.model.hold(true);
    send(&mut *queue, [rig.read(1)]);
    assert_eq!(queue.arm(), Armed::Yes);
    assert!(!readable(&*queue));
    rig.model.hold(false);
}

#[test]
fn without_a_vector_a_queue_with_something_in_flight_must_be_polled() {
    let rig = Rig::new(ModelOptions { vectors: 2, ..Default::default() });
    let namespace = rig.namespace();
    let _with = open(&namespace, 1);
    let mut without = open(&namespace, 1);
    assert!(without.event_fd().is_none());
    assert_eq!(without.arm(), Armed::Yes);
    rig.model.hold(true);
    send(&mut *without, [rig.read(1)]);
    assert_eq!(without.arm(), Armed::MustPoll);
    rig.model.hold(false);
}

#[test]
fn namespaces_share_the_queues_of_their_controller() {
    let namespaces = vec![crate::nvme::model::ModelNamespace::new(1 << 20, 512); 2];
    let rig = Rig::new(ModelOptions { namespaces, queues: 2, ..Default::default() });
    let (first, second) = (rig.namespace(), rig.controller.namespace(2).unwrap());
    let Capabilities { queues_max, .. } = first.capabilities();
    assert_eq!(queues_max, 2);
    let mut queues = [open(&first, 4), open(&second, 4)];
    let error = second.open_queue(QueueOptions::polled(1)).err().unwrap();
    assert!(matches!(error, DeviceError::NoMoreQueues { max: 2 }), "{error}");
    assert_eq!(one(&mut *queues[0], rig.write(0, 1, false)).0, Ok(()));
    assert_eq!(one(&mut *queues[1], rig.write(0, 2, false)).0, Ok(()));
    assert_eq!(bytes(&one(&mut *queues[0], rig.read(0)).1), [1; 4096]);
    assert_eq!(bytes(&one(&mut *queues[1], rig.read(0)).1), [2; 4096]);
}
