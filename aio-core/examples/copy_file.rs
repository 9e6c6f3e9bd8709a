//! Copies a file of the host with 64 pieces on their way at once, and shows how far it is.
//!
//! `copy_file FROM TO`. TO must not be there; what is there is stable when the program says so, and
//! removed when it cannot be finished.

use std::error::Error;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use futures_util::stream::{StreamExt, TryStreamExt, iter};
use indicatif::{ProgressBar, ProgressStyle};
use uaio_core::host::Descriptor;
use uaio_core::{
    AsyncContext, Buffers, CallError, ContextOptions, Host, HostOptions, Iocb, Reactor, ops,
};
use uaio_driver::SystemClock;

/// Bytes of one piece.
const PIECE: usize = 256 << 10;
/// Pieces on their way.
const DEPTH: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(from), Some(to), None) = (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err("usage: copy_file FROM TO".into());
    };
    let style =
        ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}")?;
    let bar = ProgressBar::new(0).with_style(style);
    let copied = copy(Path::new(&from), Path::new(&to), &bar)?;
    bar.finish_and_clear();
    println!("{copied} bytes copied");
    Ok(())
}

/// Copies, and says how many bytes there were.
pub(crate) fn copy(from: &Path, to: &Path, bar: &ProgressBar) -> Result<u64, Box<dyn Error>> {
    let source = File::open(from).map_err(|error| format!("{}: {error}", from.display()))?;
    let len = source.metadata()?.len();
    let target = File::create_new(to).map_err(|error| format!("{}: {error}", to.display()))?;
    bar.set_length(len);
    let reactor = Reactor::new(Arc::new(SystemClock::new()))?;
    let host = reactor.attach_host(HostOptions::default())?;
    let aio = AsyncContext::new(reactor.context(ContextOptions::events(DEPTH))?);
    let copied = std::thread::scope(|threads| {
        threads.spawn(|| reactor.run());
        let file =
            Copying { aio, host, source: Descriptor::new(source), target: Descriptor::new(target) };
        let copied = smol::block_on(file.all(len, bar));
        reactor.stop();
        copied
    });
    if copied.is_err() {
        // Half a file is worse than none.
        std::fs::remove_file(to)?;
    }
    Ok(copied?)
}

struct Copying {
    aio: AsyncContext,
    host: Host,
    source: Descriptor,
    target: Descriptor,
}

impl Copying {
    async fn all(&self, len: u64, bar: &ProgressBar) -> Result<u64, CallError> {
        // At most DEPTH futures at once, whichever order they end in.
        let copied = iter((0..len).step_by(PIECE))
            .map(|offset| async move {
                let bytes = self.piece(offset).await?;
                bar.inc(bytes);
                Ok::<u64, CallError>(bytes)
            })
            .buffer_unordered(DEPTH)
            .try_fold(0, |sum, bytes| async move { Ok(sum + bytes) })
            .await?;
        self.run(ops::fsync(&self.target)).await.0?;
        Ok(copied)
    }

    /// Reads a piece and writes what was read: less at the end, nothing if the file has become shorter.
    async fn piece(&self, offset: u64) -> Result<u64, CallError> {
        let (read, reply) = self.run(ops::pread(&self.source, vec![0; PIECE], offset)).await;
        let len = read?;
        let mut bytes = reply.map_or_else(Vec::new, |op| op.into_bytes());
        bytes.truncate(len);
        let (written, _) = self.run(ops::pwrite(&self.target, bytes, offset)).await;
        // A short write is gone on with, so less than all is an error that comes with the next byte.
        match written? {
            all if all == len => Ok(len as u64),
            _ => Err(uaio_driver::IoError::host(rustix::io::Errno::NOSPC.raw_os_error()).into()),
        }
    }

    async fn run(
        &self,
        op: uaio_core::host::HostOp,
    ) -> (Result<usize, CallError>, Option<uaio_core::host::HostOp>) {
        let finished = self.aio.run(Iocb::host(&self.host, op)).await;
        match finished.buffers {
            Buffers::Host(reply) => (finished.result, Some(reply.into_op())),
            _ => (finished.result, None),
        }
    }
}
