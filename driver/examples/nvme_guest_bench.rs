//! Random reads of 4 KiB from an NVMe drive through our driver: how many a second.
//!
//! `nvme_guest_bench ADDRESS[/NAMESPACE] [DEPTH] [SECONDS] [shadow]`, with the drive bound to vfio-pci;
//! `shadow` puts the doorbells into memory, where the drive offers it. Reads only. Prints `depth D: N IOPS`, and polls all the time: one core is busy.

use std::sync::Arc;
use std::time::{Duration, Instant};

use uaio_driver::nvme::{ControllerOptions, NvmeController};
use uaio_driver::{
    BlockDevice, DmaPool, Lba, PoolOptions, QueueOptions, Request, SgList, SystemClock, Token,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let target = arguments
        .next()
        .ok_or("usage: nvme_guest_bench ADDRESS[/NS] [DEPTH] [SECONDS] [shadow]")?;
    let depth: u16 = arguments.next().map_or(Ok(32), |depth| depth.parse())?;
    let seconds: u64 = arguments.next().map_or(Ok(3), |seconds| seconds.parse())?;
    let shadow_doorbells = match arguments.next().as_deref() {
        None => false,
        Some("shadow") => true,
        Some(other) => return Err(format!("not `shadow`: {other}").into()),
    };
    let (address, nsid) = target.split_once('/').unwrap_or((&target, "1"));

    let pool = DmaPool::new(PoolOptions::frames(4096))?;
    let clock = Arc::new(SystemClock::new());
    let options = ControllerOptions { shadow_doorbells, ..ControllerOptions::default() };
    let controller = NvmeController::open(address.parse()?, pool.clone(), options, clock)?;
    let namespace = controller.namespace(nsid.parse()?)?;
    let mut queue = namespace.open_queue(QueueOptions::polled(depth))?;

    let geometry = namespace.geometry();
    let blocks = 4096 / geometry.block_size;
    let places = geometry.blocks / u64::from(blocks);
    let mut random = fastrand::Rng::with_seed(1);
    let mut lba = || Lba(random.u64(..places) * u64::from(blocks));
    for index in 0..depth {
        let data = SgList::new(vec![pool.take().ok_or("no frame free")?]);
        queue
            .submit(Request::read(Token::from_u64(index.into()), lba(), blocks, data))
            .map_err(|refused| refused.reason)?;
    }
    queue.commit();
    let mut out = Vec::with_capacity(depth.into());
    let (start, limit) = (Instant::now(), Duration::from_secs(seconds));
    let mut done = 0u64;
    let mut polls = 0u64;
    loop {
        // The clock is read every so often, so that it does not become what is measured.
        polls += 1;
        if polls.is_multiple_of(64) && start.elapsed() >= limit {
            break;
        }
        if queue.poll(depth.into(), &mut out) == 0 {
            std::hint::spin_loop();
            continue;
        }
        for completion in out.drain(..) {
            completion.result?;
            done += 1;
            let request = Request::read(completion.token, lba(), blocks, completion.data);
            queue.submit(request).map_err(|refused| refused.reason)?;
        }
        queue.commit();
    }
    let elapsed = start.elapsed();
    println!("depth {depth}: {:.0} IOPS", done as f64 / elapsed.as_secs_f64());
    drop(queue);
    namespace.close()?;
    Ok(())
}
