//! What a 4 KiB read costs when two threads read, each with a queue of its own of one controller, against
//! one thread alone: nothing on the data path is shared, so it must cost the same.
//!
//! The controller is the model, whose own work is outside of what is timed. Prints `ROUND - TWO ONE`, in
//! nanoseconds a request, the two in turns.

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use uaio_driver::nvme::model::{Model, ModelOptions};
use uaio_driver::nvme::{ControllerOptions, NvmeController};
use uaio_driver::{
    BlockDevice, DmaPool, IoQueue, Lba, PoolOptions, QueueOptions, Request, SgList, SystemClock,
    Token,
};

const DEPTH: u16 = 128;
const BATCHES: u32 = 3000;
const ROUNDS: usize = 21;

/// A queue and the requests that go round in it.
struct Lane {
    queue: Box<dyn IoQueue>,
    requests: Vec<Request>,
    model: Arc<Model>,
}

impl Lane {
    /// Nanoseconds a request, over `BATCHES` batches; a batch that the scheduler took apart is left out
    /// by taking the median.
    fn run(&mut self) -> f64 {
        let mut out = Vec::with_capacity(DEPTH.into());
        let mut times: Vec<Duration> = Vec::with_capacity(BATCHES as usize);
        for _ in 0..BATCHES {
            let start = Instant::now();
            while let Some(request) = self.requests.pop() {
                self.queue.submit(request).expect("as many as the queue holds");
            }
            self.queue.commit();
            let submitted = start.elapsed();
            while self.queue.in_flight() > out.len() {
                self.model.step();
                let start = Instant::now();
                self.queue.poll(DEPTH.into(), &mut out);
                if out.len() == usize::from(DEPTH) {
                    times.push(submitted + start.elapsed());
                }
                if !out.is_empty() {
                    break;
                }
            }
            for done in out.drain(..) {
                done.result.expect("the model is honest");
                self.requests.push(read(done.token, done.data));
            }
        }
        times.sort_unstable();
        let median = times.get(times.len() / 2).expect("a batch was answered at once");
        median.as_nanos() as f64 / f64::from(DEPTH)
    }
}

fn read(token: Token, data: SgList) -> Request {
    Request::read(token, Lba(u64::from(token.slot) * 8), 8, data)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = DmaPool::new(PoolOptions::frames(2048))?;
    let model = Model::new(ModelOptions::default(), pool.clone());
    let clock = Arc::new(SystemClock::new());
    let options = ControllerOptions::default();
    let controller = NvmeController::start(model.clone(), pool.clone(), options, clock)?;
    let namespace = controller.namespace(1)?;
    let mut lanes = Vec::new();
    for _ in 0..2 {
        let queue = namespace.open_queue(QueueOptions::polled(DEPTH))?;
        let frame =
            |slot| Some(read(Token { slot, generation: 0 }, SgList::new(vec![pool.take()?])));
        let requests = (0..u32::from(DEPTH)).map(frame).collect::<Option<_>>();
        lanes.push(Lane {
            queue,
            requests: requests.ok_or("no frame free")?,
            model: model.clone(),
        });
    }
    model.set_deferred(true);
    for _ in 0..ROUNDS {
        let one = lanes[0].run();
        let barrier = Barrier::new(2);
        let both: Vec<f64> = std::thread::scope(|scope| {
            let start = |lane| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    Lane::run(lane)
                })
            };
            let threads: Vec<_> = lanes.iter_mut().map(start).collect();
            threads.into_iter().map(|thread| thread.join().expect("it reads")).collect()
        });
        println!("ROUND - {} {one}", both.iter().sum::<f64>() / 2.0);
    }
    model.set_deferred(false);
    Ok(())
}
