//! What a 4 KiB read costs of our own instructions, at depth 128, on a controller that answers at once.
//!
//! The controller is the model, which does its work in `Model::step`, outside of what is counted:
//!
//! ```text
//! cargo build --release --example nvme_cpu
//! valgrind --tool=callgrind --collect-atstart=no --toggle-collect='*counted*' \
//!     target/release/examples/nvme_cpu 1000
//! ```
//!
//! callgrind's "Collected" divided by 128 × rounds is instructions a request: everything inside
//! [`counted_submit`], [`counted_commit`] and [`counted_poll`], also what they call of other crates. The
//! bench `nvme-cpu` leaves out the loops of these three themselves and the model's doorbell, once a
//! batch. The first argument is the number of rounds.

use std::hint::black_box;
use std::sync::Arc;

use uaio_driver::nvme::model::{Model, ModelOptions};
use uaio_driver::nvme::{ControllerOptions, NvmeController};
use uaio_driver::{
    BlockDevice, Completion, DmaPool, IoQueue, Lba, PoolOptions, QueueOptions, Request, SgList,
    SystemClock, Token,
};

const DEPTH: u16 = 128;

#[inline(never)]
fn counted_submit(queue: &mut dyn IoQueue, requests: &mut Vec<Request>) {
    while let Some(request) = requests.pop() {
        if queue.submit(request).is_err() {
            std::process::abort();
        }
    }
}

#[inline(never)]
fn counted_commit(queue: &mut dyn IoQueue) {
    queue.commit();
}

#[inline(never)]
fn counted_poll(queue: &mut dyn IoQueue, out: &mut Vec<Completion>) -> usize {
    queue.poll(DEPTH.into(), out)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rounds: u64 = std::env::args().nth(1).map_or(Ok(1000), |rounds| rounds.parse())?;
    let pool = DmaPool::new(PoolOptions::frames(1024))?;
    let model = Model::new(ModelOptions::default(), pool.clone());
    let options = ControllerOptions::default();
    let clock = Arc::new(SystemClock::new());
    let controller = NvmeController::start(model.clone(), pool.clone(), options, clock)?;
    let namespace = controller.namespace(1)?;
    let mut queue = namespace.open_queue(QueueOptions::polled(DEPTH))?;
    model.set_deferred(true);

    let read = |token: u32, data| {
        let token = Token { slot: token, generation: 0 };
        Request::read(token, Lba(u64::from(token.slot) * 8), 8, data)
    };
    let mut requests = Vec::with_capacity(DEPTH.into());
    for token in 0..u32::from(DEPTH) {
        let data = SgList::new(vec![pool.take().ok_or("no frame free")?]);
        requests.push(read(token, data));
    }
    let mut out = Vec::with_capacity(DEPTH.into());
    let mut done = 0;
    for _ in 0..rounds {
        counted_submit(&mut *queue, &mut requests);
        counted_commit(&mut *queue);
        model.step();
        done += counted_poll(&mut *queue, &mut out);
        for completion in out.drain(..) {
            completion.result?;
            requests.push(read(completion.token.slot, completion.data));
        }
    }
    assert_eq!(done as u64, rounds * u64::from(DEPTH), "the controller did not answer at once");
    println!("{} requests", black_box(done));
    drop(queue);
    model.set_deferred(false);
    Ok(())
}
