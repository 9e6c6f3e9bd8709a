//! Bring-up: what a controller is told, and every way it can fail to come up.

use std::time::Duration;

use super::*;
use crate::clock::Clock;
use crate::conformance;
use crate::nvme::model::ModelNamespace;
use crate::nvme::spec::identify::oncs;

fn error(options: ModelOptions) -> String {
    match Rig::try_new(options) {
        Ok(_) => panic!("it came up"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn conforms_in_every_configuration() {
    let both = || vec![ModelNamespace::new(16 << 20, 512), ModelNamespace::new(8 << 20, 4096)];
    let configurations = [
        ModelOptions::default(),
        ModelOptions { namespaces: both(), shuffle: Some(fastrand::u64(..)), ..Default::default() },
        // One page a command, rings of four entries, one queue, no interrupts, a stride.
        ModelOptions {
            namespaces: both(),
            mdts: 1,
            mqes: 3,
            queues: 1,
            vectors: 0,
            dstrd: 2,
            oncs: 0,
            volatile_cache: false,
            ..Default::default()
        },
        // Doorbells in memory.
        ModelOptions { shadow_doorbells: true, dstrd: 1, ..Default::default() },
        // A ring size that is no power of two; discards of four ranges; an old controller.
        ModelOptions {
            mdts: 0,
            mqes: 40,
            queues: 3,
            vectors: 2,
            oncs: oncs::DSM,
            dmrl: 4,
            reports_limits: false,
            shuffle: Some(fastrand::u64(..)),
            ..Default::default()
        },
        ModelOptions { mqes: u16::MAX, queues: 200, ..Default::default() },
    ];
    for options in configurations {
        println!("{options:?}");
        let rig = Rig::new(options);
        for info in rig.controller.namespaces().iter() {
            let namespace = rig.controller.namespace(info.nsid).unwrap();
            conformance::run(&*namespace);
        }
        assert_eq!(rig.controller.failure(), None);
        assert_eq!(rig.model.io_queues(), 0, "queues are deleted");
    }
}

#[test]
fn identify_says_what_the_controller_says() {
    let namespaces = vec![ModelNamespace::new(16 << 20, 512), ModelNamespace::new(1 << 20, 4096)];
    let rig =
        Rig::new(ModelOptions { namespaces, mdts: 5, mqes: 63, queues: 3, ..Default::default() });
    let info = rig.controller.identify();
    assert_eq!(info.model, "In-process NVMe controller");
    assert_eq!((info.serial.as_str(), info.firmware.as_str()), ("MODEL-0001", "1.0"));
    assert_eq!((info.vendor, info.version), (0x1b36, (2, 0, 0)));
    assert_eq!((info.transfer_max_bytes, info.queues_max, info.depth_max), (128 << 10, 3, 63));
    assert!(info.volatile_cache && info.discards && info.writes_zeroes);
    let sizes: Vec<_> =
        info.namespaces.iter().map(|ns| (ns.nsid, ns.block_size, ns.blocks)).collect();
    assert_eq!(sizes, [(1, 512, 32768), (2, 4096, 256)]);
    let second = rig.controller.namespace(2).unwrap();
    assert_eq!(second.name(), "nvme:model/2");
    assert_eq!(second.geometry().size_bytes(), 1 << 20);
    assert_eq!(second.geometry().write_zeroes_max_blocks, 65536);
    assert_eq!(second.geometry().discard_max_blocks, u32::MAX);
}

#[test]
fn a_namespace_that_cannot_be_served_is_refused_with_the_reason() {
    let good = ModelNamespace::new(1 << 20, 512);
    let namespaces = vec![
        good,
        ModelNamespace { metadata: 8, ..good },
        ModelNamespace { lbads: 13, ..good },
        ModelNamespace { read_only: true, ..good },
    ];
    let rig = Rig::new(ModelOptions { namespaces, ..Default::default() });
    let why = |nsid| rig.controller.namespace(nsid).unwrap_err().to_string();
    assert_eq!(why(7), "model: no namespace 7; there are: 1, 2, 3, 4");
    assert!(why(2).contains("formatted with 8 bytes of metadata a block"), "{}", why(2));
    assert!(why(3).contains("formatted with blocks of 8192 bytes"), "{}", why(3));
    let first = rig.namespace();
    assert_eq!(why(1), "model: namespace 1 is open already");
    drop(first);
    rig.controller.namespace(1).unwrap();
    let read_only = rig.controller.namespace(4).unwrap();
    assert!(read_only.capabilities().read_only);
    let mut queue = open(&read_only, 1);
    let refused = queue.submit(rig.write(0, 1, false)).unwrap_err();
    assert_eq!(refused.reason, crate::Refusal::ReadOnly);
    assert_eq!(one(&mut *queue, rig.read(0)).0, Ok(()));
}

#[test]
fn a_controller_that_never_gets_ready_is_given_up_after_cap_to() {
    let pool = DmaPool::new(PoolOptions::frames(64)).unwrap();
    let options = ModelOptions { never_ready: true, to: 6, ..Default::default() };
    let model = Model::new(options, pool.clone());
    let clock = ModelClock::new();
    let error = start(&model, &pool, &clock).unwrap_err();
    assert_eq!(
        error.to_string(),
        "model: CSTS.RDY = 1 after CC.EN = 1 did not happen within 3000 ms"
    );
    assert!(clock.now() < Duration::from_millis(3100));
    assert!(!model.is_enabled(), "it is disabled again");
    assert_eq!(pool.free_frames(), 64, "and its memory is back");
}

#[test]
fn a_controller_left_enabled_is_reset_first() {
    let rig = Rig::new(ModelOptions::default());
    // A process that died: the controller runs on.
    std::mem::forget(rig.controller);
    let controller = start(&rig.model, &rig.pool, &rig.clock).unwrap();
    conformance::run(&*controller.namespace(1).unwrap());
}

#[test]
fn a_controller_left_enabled_that_cannot_be_reset_is_refused() {
    let rig = Rig::new(ModelOptions { never_disables: true, ..Default::default() });
    std::mem::forget(rig.controller);
    let error = start(&rig.model, &rig.pool, &rig.clock).unwrap_err().to_string();
    assert_eq!(error, "model: CSTS.RDY = 0 after CC.EN = 0 did not happen within 2000 ms");
}

#[test]
fn a_controller_that_is_not_there_is_refused() {
    let pool = DmaPool::new(PoolOptions::frames(64)).unwrap();
    let model = Model::new(ModelOptions::default(), pool.clone());
    model.remove();
    let error = start(&model, &pool, &ModelClock::new()).unwrap_err().to_string();
    assert_eq!(error, "model: the controller is gone from the bus");
}

#[test]
fn a_fatal_status_at_bring_up_is_an_error() {
    let pool = DmaPool::new(PoolOptions::frames(64)).unwrap();
    let model = Model::new(ModelOptions::default(), pool.clone());
    model.fail_fatally();
    let error = start(&model, &pool, &ModelClock::new()).unwrap_err().to_string();
    assert_eq!(error, "model: the controller reports a fatal status (CSTS.CFS)");
    assert_eq!(pool.free_frames(), 64);
}

#[test]
fn impossible_capabilities_are_refused() {
    let stride = ModelOptions { dstrd: 12, ..Default::default() };
    assert!(error(stride).contains("the doorbells of an I/O queue are outside of BAR 0"));
    let entries = ModelOptions { mqes: 0, ..Default::default() };
    assert!(error(entries).contains("CAP.MQES is 0"));
}

#[test]
fn a_pool_without_room_is_an_error_that_says_how_much_is_needed() {
    let pool = DmaPool::new(PoolOptions::frames(2)).unwrap();
    let model = Model::new(ModelOptions::default(), pool.clone());
    let error = start(&model, &pool, &ModelClock::new()).unwrap_err().to_string();
    assert!(error.starts_with("cannot get 20480 bytes of DMA memory"), "{error}");
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let free = rig.pool.free_frames();
    let hog: Vec<_> = (0..free - 10).map(|_| rig.pool.take().unwrap()).collect();
    let error = namespace.open_queue(QueueOptions::polled(100)).err().unwrap().to_string();
    assert!(error.contains("a queue of depth 100 needs 103 frames"), "{error}");
    assert_eq!(rig.pool.free_frames(), 10, "nothing is kept");
    drop(hog);
    drop(namespace.open_queue(QueueOptions::polled(100)).unwrap());
    assert_eq!(NvmeController::frames_for_queue(100), 103);
}
