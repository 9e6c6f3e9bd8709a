//! Administers uaio: serves drives, files and memory as `/dev/ublkbN`, and looks after what is served.
//!
//! ```text
//!   aioctl add ──► server: one process a device ──► /dev/ublkbN
//!                    │  pool, backend, cache, ublk        ▲
//!                    │  control socket /run/uaio/N.sock   │ holders: /proc, /sys
//!                    ▼                                    │
//!   aioctl list · info · stats · flush · del ─────────────┘
//! ```
//!
//! # How it fails
//!
//! Whatever goes wrong is one line on stderr, what is wrong and what to do, and one code of
//! [`exit::Exit`]. All that can be refused is refused before anything is taken, made or changed; a
//! start that fails later takes back what it made. A server answers for its device until it is
//! stopped: data that the backend refuses is kept and named, and given up only by order. A server
//! that dies takes its device with it; what it left is cleared away by the next `add` or `list`.
//!
//! # Read on
//!
//! [`cli`] is what can be said, [`uaio_driver::url::Backend`] what can be served, [`server`] how it is served and
//! stopped, [`protocol`] what the other commands say to it, [`record`] how they find it, [`holders`]
//! who else uses a device.

#![forbid(unsafe_code)]

mod clearing;
mod cli;
mod client;
mod commands;
mod drives;
mod exit;
mod holders;
mod kernel;
mod log;
mod protocol;
mod record;
mod server;
mod system;
mod table;

use std::process::ExitCode;

use cli::{Cli, Command, NvmeCommand, Parsed};
use commands::{Context, add, cache, info, list, nvme, print, stats, stop};
use exit::{Exit, Failure};
use record::RunDir;
use system::System;

fn main() -> ExitCode {
    let outcome = match cli::parse(std::env::args_os()) {
        Ok(Parsed::Run(cli)) => run(*cli),
        Ok(Parsed::Print(text)) => print(&text),
        Err(failure) => Err(failure),
    };
    match outcome {
        Ok(()) => Exit::Success.into(),
        Err(failure) => {
            log::line(&failure);
            failure.exit.into()
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { json, run_dir, command } = cli;
    let run = RunDir::new(run_dir);
    let context = Context { json, run, system: System::new("/") };
    match command {
        Command::Add(args) => add::run(&context, args),
        Command::List => list::run(&context),
        Command::Info { id } => info::run(&context, id),
        Command::Stats { id } => stats::run(&context, id),
        Command::Flush { id, range, deadline } => stop::flush(&context, id, range, deadline),
        Command::Del(args) => stop::del(&context, args),
        Command::Cache(command) => cache::run(&context, command),
        Command::Nvme(NvmeCommand::List) => nvme::list(&context),
        Command::Nvme(NvmeCommand::Bind { address }) => nvme::bind(&context, address),
        Command::Nvme(NvmeCommand::Unbind { address }) => nvme::unbind(&context, address),
        Command::Nvme(NvmeCommand::Show { address }) => nvme::show(&context, address),
        Command::Nvme(NvmeCommand::Drive(command)) => nvme::drive(&context, command),
        Command::Man => {
            let page = cli::manual().map_err(|error| Failure::os("make the manual", error))?;
            print(&String::from_utf8_lossy(&page))
        }
    }
}
