//! Serving: one process, from the checks to the last flush.
//!
//! A process serves one device; only several namespaces of one drive are served by one, because
//! VFIO gives a drive to one process. Each device has its own cache, queues and socket, and is
//! stopped on its own.
//!
//! ```text
//!   control thread: checks, starts, waits for orders, stops          never serves a queue
//!   ublk queue threads: one a queue                                  in driver::ublk
//!   flusher: turns the cache's flusher                               [`flusher`]
//!   control-N: answer questions from the socket                      [`control`]
//!   signals: hands Ctrl-C, SIGTERM and SIGHUP to the control thread
//! ```
//!
//! # A server never waits for its own device
//!
//! Every thread is shielded (`driver::ublk::shield_thread`), memory is locked before the device
//! exists, no path on the device is opened, and the log was opened before there was a device.

mod barrier;
pub(crate) mod checks;
mod control;
pub(crate) mod detach;
mod flusher;
mod memory;
mod serving;
mod shutdown;
mod sizing;
mod stack;

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use uaio_driver::ublk::{self, Server, ServerOptions, ServerState, ShieldReport};

use crate::clearing;
use crate::cli::{AddArgs, DeviceId};
use crate::commands::Context;
use crate::exit::Failure;
use crate::kernel;
use crate::log;
use crate::protocol::Info;
use crate::record::Record;
use control::Answers;
use detach::Started;
use serving::{Event, Serving, Shared, Unanswered};
use shutdown::{Order, Stage};
use stack::{Plan, Stack};

/// How long the answer to the stop that ended us may take to get out.
const LAST_ANSWER: Duration = Duration::from_secs(2);

/// How often to look whether the device still is served.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Serves until told to stop. `started` is told when the devices can be opened.
///
/// # Errors
///
/// Why there is no device, with nothing left behind; or that `started` failed.
pub(crate) fn serve(
    context: &Context,
    args: &AddArgs,
    started: impl FnOnce(&[Started]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    // What we create is for its owner alone; what we inherited ends with us.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    close_fds::set_fds_cloexec(3, &[]);
    let plan = check(context, args)?;
    for note in clearing::clear(context) {
        log::line(note);
    }
    context.run.create()?;
    let (orders, events) = channel();
    watch_signals(orders.clone())?;

    let stacks = plan.open()?;
    let shield = ublk::shield_process();
    if !shield.is_complete() {
        log::line(format_args!("when memory is short this server may get stuck: {shield}"));
    }
    let unanswered = Arc::new(Unanswered::default());
    let mut devices: Vec<Serving> = Vec::new();
    let mut rest = stacks.into_iter();
    let begun = rest
        .by_ref()
        .try_for_each(|stack| {
            let wires = Wires { orders: orders.clone(), unanswered: Arc::clone(&unanswered) };
            let first = devices.first().map(|device| device.shared.id);
            let device = start(context, args, (devices.len(), first), stack, wires, &shield)?;
            devices.push(device);
            Ok(())
        })
        .and_then(|()| {
            let all: Vec<Started> = devices.iter().map(|device| device.shared.started()).collect();
            started(&all)
        });
    if let Err(failure) = begun {
        rest.for_each(Stack::undo);
        devices.into_iter().for_each(|device| abandon(context, args, device));
        return Err(failure);
    }
    devices.iter_mut().for_each(|device| device.stack.keep());
    wait_for_the_end(context, args, &mut devices, &events);
    // The client whose order ended us still waits for its answer.
    unanswered.wait(LAST_ANSWER);
    Ok(())
}

/// Everything that can be refused before anything is taken, made or changed.
///
/// # Errors
///
/// What is wrong.
pub(crate) fn check<'a>(context: &Context, args: &'a AddArgs) -> Result<Plan<'a>, Failure> {
    let plan = Plan::new(args)?;
    context.run.check()?;
    for backend in &args.backends {
        checks::backend(context, backend)?;
    }
    memory::check(&context.system, args, plan.pool())?;
    kernel::check()?;
    Ok(plan)
}

/// A clock that never goes back.
fn monotonic() -> std::time::Duration {
    static START: std::sync::LazyLock<std::time::Instant> =
        std::sync::LazyLock::new(std::time::Instant::now);
    START.elapsed()
}

/// Shields the calling thread. What may not be had is the same for all threads, and reported once,
/// at the start.
fn shield_thread() {
    let _ = ublk::shield_thread();
}

/// How the threads of one device reach the control thread.
struct Wires {
    orders: Sender<Event>,
    unanswered: Arc<Unanswered>,
}

/// Serves one stack: the block device, its record, its control socket. `first` is the process's first
/// device, which the log has its name from; `None` for that one itself.
fn start(
    context: &Context,
    args: &AddArgs,
    (index, first): (usize, Option<DeviceId>),
    mut stack: Stack,
    wires: Wires,
    shield: &ShieldReport,
) -> Result<Serving, Failure> {
    let options = ServerOptions {
        queues: stack.queues,
        depth: stack.depth,
        deadline: args.deadline.duration(),
        ..ServerOptions::default()
    };
    let server = match Server::start(Arc::clone(&stack.top), options) {
        Ok(server) => server,
        Err(error) => {
            let failure = kernel::failure(format!("serve {}", stack.backend), error);
            stack.undo();
            return Err(failure);
        }
    };
    let id = DeviceId(server.id());
    let log = args.detached_server.then(|| context.run.log(first.unwrap_or(id)));
    let shared = Arc::new(Shared {
        id,
        index,
        info: Info {
            log: log.map(|path| path.display().to_string()),
            ..info(args, &server, &stack, shield)
        },
        server,
        started: Instant::now(),
        stage: Mutex::new(Stage::Serving),
        barrier: Mutex::new(stack.barrier.take()),
        cache: stack.cache.clone(),
        bottom: Arc::clone(&stack.bottom),
        drive: stack.drive.as_ref().map_or_else(Weak::new, Arc::downgrade),
        orders: wires.orders,
        unanswered: wires.unanswered,
    });
    let serving = Serving {
        shared: Arc::clone(&shared),
        stack,
        system: context.system.clone(),
        discard: false,
    };
    match context.run.write(&record(context, &shared.info)).and_then(|()| {
        control::listen(&context.run.socket(id), Arc::clone(&shared) as Arc<dyn Answers>)
    }) {
        Ok(()) => Ok(serving),
        Err(failure) => {
            abandon(context, args, serving);
            Err(failure)
        }
    }
}

/// Takes a device back that nobody was told of.
fn abandon(context: &Context, args: &AddArgs, mut device: Serving) {
    let deadline = Instant::now() + args.deadline.duration();
    let order = Order { force: true, discard_dirty: true };
    let shared = Arc::clone(&device.shared);
    if let Err(failure) = attempt(&mut device, order, deadline) {
        log::line(failure);
    }
    context.run.remove(shared.id);
    device.stack.undo();
}

fn info(args: &AddArgs, server: &Server, stack: &Stack, shield: &ShieldReport) -> Info {
    let geometry = stack.top.geometry();
    let capabilities = stack.top.capabilities();
    let pool = stack.top.pool();
    let served = server.info();
    let mut degraded = stack.warnings();
    if !shield.is_complete() {
        degraded.push(shield.to_string());
    }
    if served.queues < stack.queues {
        degraded.push(format!("the kernel made {} queues of {}", served.queues, stack.queues));
    }
    if stack.barrier.is_none() {
        degraded.push("`aioctl flush` has no queue of its own".into());
    }
    Info {
        id: served.id,
        path: served.path.display().to_string(),
        backend: stack.backend.to_string(),
        state: Stage::Serving.name().into(),
        health: String::new(),
        size_bytes: geometry.size_bytes(),
        block_size_bytes: geometry.block_size,
        io_max_bytes: served.io_max_bytes,
        read_only: capabilities.read_only,
        mode: args.mode,
        cache_bytes: if stack.cache.is_some() { args.cache.0 } else { 0 },
        volatile_cache: capabilities.volatile_cache,
        queues: served.queues,
        depth: served.depth,
        flags: served.flag_names(),
        degraded,
        dma_bytes: pool.len_bytes() as u64,
        hugepages: pool.is_huge(),
        pid: std::process::id(),
        log: None,
        uptime_s: 0,
    }
}

fn record(context: &Context, info: &Info) -> Record {
    Record {
        backend: info.backend.clone(),
        size_bytes: info.size_bytes,
        block_size_bytes: info.block_size_bytes,
        mode: info.mode,
        cache_bytes: info.cache_bytes,
        log: info.log.clone(),
        ..Record::of_this_process(&context.system, DeviceId(info.id))
    }
}

/// Hands the signals that ask to stop to the control thread.
fn watch_signals(orders: Sender<Event>) -> Result<(), Failure> {
    // SIGHUP too: the terminal has gone, and its default would lose what is dirty.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(|error| Failure::os("watch for signals", error))?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            shield_thread();
            for signal in signals.forever() {
                if orders.send(Event::Signal(signal)).is_err() {
                    break;
                }
            }
        })
        .map_err(|error| Failure::os("start a thread", error))?;
    Ok(())
}

/// Carries out orders until no device is left.
fn wait_for_the_end(
    context: &Context,
    args: &AddArgs,
    devices: &mut [Serving],
    events: &Receiver<Event>,
) {
    while devices.iter().any(|device| device.stage() != Stage::Closed) {
        match events.recv_timeout(LOOK_EVERY) {
            Ok(Event::Signal(signal)) => {
                for device in devices.iter_mut().filter(|device| device.stage() != Stage::Closed) {
                    let deadline = Instant::now() + args.deadline.duration();
                    if let Err(failure) = end(context, device, Order::default(), deadline) {
                        let id = device.shared.id;
                        device.shared.log_unsaved(&failure);
                        log::line(format_args!("{} does not stop {id}: {failure}", name(signal)));
                    }
                }
            }
            Ok(Event::Delete { index, order, deadline, reply }) => {
                let device = &mut devices[index];
                let result = end(context, device, order, deadline)
                    .inspect_err(|failure| device.shared.log_unsaved(failure));
                // The client may have given up waiting.
                let _ = reply.send(result);
            }
            Err(RecvTimeoutError::Timeout) => look_after(context, args, devices),
            // Every sender has gone, the signals' too: nobody can ask any more.
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
}

/// A block device that ended without being asked (another program deleted it, a queue failed) is
/// nothing to serve any more: what can be saved is saved, tried again each time.
fn look_after(context: &Context, args: &AddArgs, devices: &mut [Serving]) {
    for device in devices.iter_mut().filter(|device| device.stage() != Stage::Closed) {
        let ended = match device.shared.server.state() {
            ServerState::Failed(reason) => reason,
            ServerState::Stopped => "it was stopped".into(),
            ServerState::Starting | ServerState::Live | ServerState::Stopping(_) => continue,
        };
        let first = device.stage() == Stage::Serving;
        if first {
            log::line(format_args!("{} has ended: {ended}", device.shared.id));
            *device.shared.stage() = Stage::Stopping;
        }
        let deadline = Instant::now() + args.deadline.duration();
        // Said once; it is tried for as long as nobody says what else to do.
        if let (Err(failure), true) = (end(context, device, Order::default(), deadline), first) {
            device.shared.log_unsaved(&failure);
            log::line(failure);
        }
    }
}

fn end(
    context: &Context,
    device: &mut Serving,
    order: Order,
    deadline: Instant,
) -> Result<(), Failure> {
    attempt(device, order, deadline)?;
    context.run.remove(device.shared.id);
    Ok(())
}

/// One attempt to stop, from the stage it is at; others see the stage as it changes.
fn attempt(device: &mut Serving, order: Order, deadline: Instant) -> Result<(), Failure> {
    let shared = Arc::clone(&device.shared);
    let mut stage = device.stage();
    shutdown::attempt(device, &mut stage, order, deadline, |stage| *shared.stage() = stage)
}

fn name(signal: i32) -> &'static str {
    match signal {
        SIGINT => "Ctrl-C",
        SIGTERM => "SIGTERM",
        _ => "SIGHUP",
    }
}
