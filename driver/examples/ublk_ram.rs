//! Serves memory as `/dev/ublkbN` until its standard input ends.
//!
//! ```text
//! ublk_ram [SIZE_MIB [QUEUES [DEPTH]]]
//! ```
//!
//! Prints the device's path on a line of its own when it can be opened, and what was done when it
//! stops. Needs root and the `ublk_drv` module.

use std::error::Error;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use uaio_driver::ram::RamDevice;
use uaio_driver::ublk::{self, Server, ServerOptions};
use uaio_driver::{BlockDevice, DmaPool, PoolOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u16>());
    let mut next = |default| arguments.next().unwrap_or(Ok(default));
    let (size_mib, queues, depth) = (next(256)?, next(1)?, next(128)?);

    eprintln!("{}", ublk::shield_process());
    let options = ServerOptions { queues, depth, ..ServerOptions::default() };
    // Most that the server may take, whatever the device's own limits.
    let frames = usize::from(queues) * (options.reserve_bytes / 4096) as usize + 1024;
    let pool = DmaPool::new(PoolOptions::frames(frames))?;
    let device = Arc::new(RamDevice::new(u64::from(size_mib) << 20, 512, pool)?);
    let server = Server::start(Arc::clone(&device) as _, options)?;
    println!("{}", server.path().display());
    eprintln!("{:?}: {}", server.info(), server.info().flag_names().join(" "));

    std::io::stdin().read_to_end(&mut Vec::new())?;

    server.stop(Duration::from_secs(30))?;
    for op in server.stats().ops().filter(|op| op.done > 0) {
        let at = |percent| op.latency.percentile(percent).unwrap_or_default();
        let (p50, p99) = (at(50.0), at(99.0));
        let (kind, done, bytes, errors) = (op.kind, op.done, op.bytes, op.errors);
        eprintln!("{kind}: {done} ({bytes} bytes, {errors} errors), p50 {p50:?}, p99 {p99:?}");
    }
    device.close()?;
    Ok(())
}
