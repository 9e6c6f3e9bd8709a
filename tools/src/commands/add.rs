//! `aioctl add`: serve something, here or in a process of its own.

use std::path::absolute;

use serde::Serialize;

use super::{Context, print};
use crate::cli::AddArgs;
use crate::exit::{Exit, Failure};
use crate::record::RunDir;
use crate::server;
use crate::server::detach::{self, Detached, Started};
use uaio_driver::url::Backend;

#[derive(Serialize)]
struct Added<'a> {
    devices: &'a [Started],
}

pub(crate) fn run(context: &Context, mut args: AddArgs) -> Result<(), Failure> {
    args.check()?;
    let mut context = context.clone();
    context.run = RunDir::new(
        absolute(context.run.path()).map_err(|error| Failure::os("find --run-dir", error))?,
    );
    for backend in &mut args.backends {
        make_absolute(backend)?;
    }
    if args.detached_server {
        return serve_detached(&context, &args);
    }
    if args.detach {
        // The server checks again; asking here first leaves no trace of what is refused.
        server::check(&context, &args)?;
        return tell(&context, &detach::spawn(&context.run, args.deadline.duration())?);
    }
    server::serve(&context, &args, |started| tell(&context, started))
}

fn serve_detached(context: &Context, args: &AddArgs) -> Result<(), Failure> {
    let detached = Detached::settle(&context.run)?;
    let result = server::serve(context, args, |started| detached.started(started));
    if let Err(failure) = &result {
        detached.failed(failure);
    }
    result
}

fn tell(context: &Context, started: &[Started]) -> Result<(), Failure> {
    if context.json {
        return context.print(&Added { devices: started }, |_| String::new());
    }
    print(&started.iter().map(|device| format!("{}\n", device.path)).collect::<String>())
}

/// Paths are told to other processes, and the server leaves the directory it was started in.
fn make_absolute(backend: &mut Backend) -> Result<(), Failure> {
    if let Backend::File { path, .. } = backend {
        *path = absolute(&path).map_err(|error| Failure::os(path.display(), error))?;
    }
    Ok(())
}

impl AddArgs {
    /// What clap cannot know: which options and backends go together.
    fn check(&self) -> Result<(), Failure> {
        let [first, others @ ..] = &self.backends[..] else { return Ok(()) };
        let same_drive = |other: &Backend| match (first, other) {
            (
                Backend::Nvme { address, namespace: Some(_) },
                Backend::Nvme { address: other, namespace: Some(_) },
            ) => address == other,
            _ => false,
        };
        if !others.iter().all(same_drive) {
            return Err(Failure::new(
                Exit::Usage,
                "several backends can only be namespaces of one drive",
                "run one `aioctl add` for each",
            ));
        }
        let repeated = |(at, backend): (usize, &Backend)| self.backends[..at].contains(backend);
        if self.backends.iter().enumerate().any(repeated) {
            return Err(Failure::new(Exit::Usage, "a namespace is named twice", "name it once"));
        }
        if self.block_size.is_some() && matches!(first, Backend::Nvme { .. }) {
            return Err(Failure::new(
                Exit::Usage,
                "a drive has a block size of its own",
                "leave --block-size out",
            ));
        }
        Ok(())
    }
}
