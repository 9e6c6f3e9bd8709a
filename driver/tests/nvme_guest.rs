//! The NVMe driver on a drive that is not ours: QEMU's, behind a real IOMMU group.
//!
//! Run in a guest with the drive bound to vfio-pci and its address in `UAIO_TEST_NVME`:
//! `UAIO_TEST_NVME=0000:00:04.0 nvme_guest --ignored --test-threads=1`. **Destroys the drive's
//! contents.**

use std::sync::Arc;
use std::time::Duration;

use uaio_driver::nvme::{ControllerOptions, NvmeController};
use uaio_driver::vfio::{self, PciAddress};
use uaio_driver::{
    BlockDevice, DeviceError, DmaPool, Iova, Lba, Op, PoolOptions, QueueOptions, Request, SgList,
    SystemClock, Token, conformance,
};

fn address() -> PciAddress {
    let address = std::env::var("UAIO_TEST_NVME").expect("UAIO_TEST_NVME is the drive's address");
    address.parse().expect("UAIO_TEST_NVME is a PCI address")
}

fn pool() -> DmaPool {
    DmaPool::new(PoolOptions::frames(4096)).unwrap()
}

fn open(pool: &DmaPool) -> Result<Arc<NvmeController>, DeviceError> {
    let clock = Arc::new(SystemClock::new());
    NvmeController::open(address(), pool.clone(), ControllerOptions::default(), clock)
}

#[test]
#[ignore = "needs an NVMe drive bound to vfio-pci"]
fn every_namespace_conforms() {
    let pool = pool();
    let controller = open(&pool).unwrap();
    println!("{:#?}", controller.identify());
    for info in controller.namespaces().iter() {
        let namespace = controller.namespace(info.nsid).unwrap();
        println!("{:?} {:?}", namespace.geometry(), namespace.capabilities());
        conformance::run(&*namespace);
    }
    assert_eq!(controller.failure(), None);
    controller.close().unwrap();
    drop(controller);
    assert_eq!(pool.free_frames(), pool.frames());
}

#[test]
#[ignore = "needs an NVMe drive bound to vfio-pci"]
fn identify_says_what_sysfs_and_qemu_say() {
    let functions = vfio::list().unwrap();
    let function = functions.iter().find(|function| function.address == address()).unwrap();
    assert_eq!(function.driver.as_deref(), Some("vfio-pci"));
    assert!(function.iommu_group.is_some());
    let controller = open(&pool()).unwrap();
    let info = controller.identify();
    assert_eq!(info.model, "QEMU NVMe Ctrl");
    assert_eq!(info.vendor, function.vendor);
    assert!(!info.serial.is_empty() && !info.firmware.is_empty());
    assert!(info.discards && info.writes_zeroes && info.volatile_cache);
    assert!(!info.namespaces.is_empty());
    controller.close().unwrap();
}

#[test]
#[ignore = "needs an NVMe drive bound to vfio-pci"]
fn a_second_owner_of_the_drive_is_refused_and_the_first_one_works_on() {
    let first = open(&pool()).unwrap();
    let error = open(&pool()).unwrap_err().to_string();
    assert!(error.contains("held by another process"), "{error}");
    let namespace = first.namespace(1).unwrap();
    let mut queue = namespace.open_queue(QueueOptions::polled(1)).unwrap();
    queue.submit(Request::flush(Token::from_u64(1))).unwrap();
    queue.commit();
    let mut out = Vec::new();
    while queue.poll(1, &mut out) == 0 {}
    assert_eq!(out[0].result, Ok(()));
}

#[test]
#[ignore = "needs an NVMe drive bound to vfio-pci"]
fn the_drive_can_be_taken_again_at_once_also_after_no_orderly_shutdown() {
    for round in 0..3 {
        let controller = open(&pool()).unwrap();
        let namespace = controller.namespace(1).unwrap();
        let queue = namespace.open_queue(QueueOptions::polled(8)).unwrap();
        if round == 0 {
            drop(queue);
            namespace.close().unwrap();
        } else {
            // Dropped in the worst order: the queue is the last to hold the controller.
            drop(namespace);
            drop(controller);
            drop(queue);
        }
    }
}

#[test]
#[ignore = "needs an NVMe drive bound to vfio-pci"]
fn a_pool_outside_of_the_aperture_is_refused_with_where_to_put_it() {
    let high = PoolOptions { iova: Iova(1 << 56), ..PoolOptions::frames(64) };
    let error = open(&DmaPool::new(high).unwrap()).unwrap_err().to_string();
    println!("{error}");
    assert!(error.contains("outside of what the IOMMU takes"), "{error}");
    assert!(error.contains("choose one from 0x"), "{error}");
    // At the very end of the widest range of a 39-bit IOMMU, which every IOMMU has.
    let last = PoolOptions { iova: Iova((1 << 39) - (64 << 12)), ..PoolOptions::frames(64) };
    open(&DmaPool::new(last).unwrap()).unwrap().close().unwrap();
}

#[test]
#[ignore = "needs an NVMe drive bound to vfio-pci"]
fn what_is_flushed_is_there_after_the_controller_is_taken_anew() {
    let pool = pool();
    let fill = [0xa5; 4096];
    let blocks = |device: &dyn BlockDevice| 4096 / device.geometry().block_size;
    for write in [true, false] {
        let controller = open(&pool).unwrap();
        let namespace = controller.namespace(1).unwrap();
        let mut queue = namespace.open_queue(QueueOptions::polled(4)).unwrap();
        let data = SgList::new(vec![pool.take().unwrap()]);
        let op = if write { Op::Write { fua: true } } else { Op::Read };
        data.copy_from_slice(0, &if write { fill } else { [0; 4096] });
        let token = Token::from_u64(3);
        let request = Request { token, op, lba: Lba(80), blocks: blocks(&*namespace), data };
        queue.submit(request).unwrap();
        queue.commit();
        let mut out = Vec::new();
        while queue.poll(1, &mut out) == 0 {}
        assert_eq!(out[0].result, Ok(()));
        let mut bytes = [0; 4096];
        out[0].data.copy_to_slice(0, &mut bytes);
        assert_eq!(bytes, fill);
    }
}

#[test]
#[ignore = "needs an NVMe drive bound to vfio-pci"]
fn bind_and_unbind_move_the_drive_between_the_drivers() {
    let found = || vfio::list().unwrap().into_iter().find(|it| it.address == address()).unwrap();
    vfio::bind(address()).unwrap();
    vfio::unbind(address()).unwrap();
    vfio::unbind(address()).unwrap();
    assert_eq!(found().driver.as_deref(), Some("nvme"));
    let error = open(&pool()).unwrap_err().to_string();
    assert!(error.contains("bound to the driver nvme; bind it to vfio-pci first"), "{error}");
    // The kernel finds the namespaces a little later.
    let mut tries = 0;
    while found().block_devices.is_empty() {
        tries += 1;
        assert!(tries < 200, "no block device: {:?}", found());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(found().model.as_deref(), Some("QEMU NVMe Ctrl"));
    vfio::bind(address()).unwrap();
    assert_eq!(found().driver.as_deref(), Some("vfio-pci"));
    assert!(found().block_devices.is_empty());
    open(&pool()).unwrap().close().unwrap();
}

#[test]
#[ignore = "needs an NVMe drive bound to vfio-pci"]
fn with_doorbells_in_memory_a_namespace_conforms() {
    let pool = pool();
    let options = ControllerOptions { shadow_doorbells: true, ..ControllerOptions::default() };
    let clock = Arc::new(SystemClock::new());
    let controller = NvmeController::open(address(), pool.clone(), options, clock).unwrap();
    let namespace = controller.namespace(1).unwrap();
    // More than one ring of each, so that every place of the rings was told of both ways.
    for depth in [1, 7, 64] {
        let mut queue = namespace.open_queue(QueueOptions::polled(depth)).unwrap();
        let mut out = Vec::new();
        for round in 0..200u64 {
            for slot in 0..round % u64::from(depth) + 1 {
                let data = SgList::new(vec![pool.take().unwrap()]);
                queue.submit(Request::read(Token::from_u64(slot), Lba(8 * slot), 1, data)).unwrap();
            }
            queue.commit();
            while queue.in_flight() > 0 {
                queue.poll(64, &mut out);
            }
            assert!(out.drain(..).all(|done| done.result.is_ok()), "depth {depth}, {round}");
        }
    }
    conformance::run(&*namespace);
    assert_eq!(controller.error_statistics().late, 0);
}

/// What is written by a scatter/gather list is read by PRP entries, and the other way round.
#[test]
#[ignore = "needs an NVMe drive bound to vfio-pci"]
fn lists_of_either_kind_mean_the_same_bytes() {
    let pool = pool();
    for (write, read) in [(true, false), (false, true)] {
        let fill: Vec<u8> = (0..60 * 1024u32).map(|at| (at / 5) as u8 ^ u8::from(write)).collect();
        for (writes, scatter_gather) in [(true, write), (false, read)] {
            let options = ControllerOptions { scatter_gather, ..ControllerOptions::default() };
            let clock = Arc::new(SystemClock::new());
            let controller = NvmeController::open(address(), pool.clone(), options, clock).unwrap();
            assert!(controller.identify().scatter_gather, "QEMU's drive takes lists");
            let namespace = controller.namespace(1).unwrap();
            let mut queue = namespace.open_queue(QueueOptions::polled(4)).unwrap();
            let mut frames: Vec<_> = (0..48).map(|_| pool.take().unwrap()).collect();
            frames.sort_by_key(|frame| frame.index());
            // One run, which is a descriptor in the command, then two, which are a list.
            for (lba, skip) in [(0, 0), (1000, 20)] {
                let picked = frames[..8].iter().chain(&frames[8 + skip..16 + skip]);
                let data = SgList { frames: picked.map(|it| it.share()).collect(), offset: 2048 };
                data.copy_from_slice(0, &if writes { fill.clone() } else { vec![0; fill.len()] });
                let blocks = fill.len() as u32 / namespace.geometry().block_size;
                let (token, op) = (Token::from_u64(1), Op::Write { fua: false });
                let op = if writes { op } else { Op::Read };
                queue.submit(Request { token, op, lba: Lba(lba), blocks, data }).unwrap();
                queue.commit();
                let mut out = Vec::new();
                while queue.poll(1, &mut out) == 0 {}
                assert_eq!(out[0].result, Ok(()));
                let mut bytes = vec![0; fill.len()];
                out[0].data.copy_to_slice(0, &mut bytes);
                assert!(bytes == fill, "written with lists: {write}, at {lba}, {skip}");
            }
        }
    }
}

#[test]
#[ignore = "needs an NVMe drive bound to vfio-pci"]
fn discards_of_many_ranges_are_each_answered_once() {
    let pool = pool();
    let controller = open(&pool).unwrap();
    let namespace = controller.namespace(1).unwrap();
    let mut queue = namespace.open_queue(QueueOptions::polled(512)).unwrap();
    for index in 0..300u64 {
        let token = Token::from_u64(index);
        queue.submit(Request::on_blocks(token, Op::Discard, Lba(index * 64), 8)).unwrap();
    }
    queue.commit();
    let mut out = Vec::new();
    while queue.in_flight() > 0 {
        queue.poll(64, &mut out);
    }
    let mut tokens: Vec<_> = out.iter().map(|done| done.token.to_u64()).collect();
    tokens.sort_unstable();
    assert_eq!(tokens, (0..300).collect::<Vec<_>>());
    assert!(out.iter().all(|done| done.result == Ok(())));
}

#[test]
#[ignore = "needs an NVMe drive bound to vfio-pci"]
fn an_interrupt_wakes_a_sleeper_without_polling() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let pool = pool();
    let controller = open(&pool).unwrap();
    let namespace = controller.namespace(1).unwrap();
    let mut queue = namespace.open_queue(QueueOptions::polled(1)).unwrap();
    let mut slept = 0;
    let mut out = Vec::new();
    for _ in 0..200 {
        let data = SgList::new(vec![pool.take().unwrap()]);
        queue.submit(Request::read(Token::from_u64(1), Lba(0), 1, data)).unwrap();
        queue.commit();
        if queue.arm() == uaio_driver::Armed::Yes {
            let fd = queue.event_fd().unwrap();
            let timeout = Timespec { tv_sec: 10, tv_nsec: 0 };
            let ready = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap();
            assert_eq!(ready, 1, "a completion that was never told of");
            slept += 1;
        }
        while queue.poll(1, &mut out) == 0 {
            std::thread::sleep(Duration::from_micros(10));
        }
        out.clear();
    }
    println!("slept {slept} times of 200");
    // How often depends on who is faster; that it ever did shows that the interrupt arrives.
    assert!(slept > 0, "it never slept");
}
