//! Two-way fuzzing of the NVMe driver: requests of every kind from above, answers of every kind from
//! below, from one seed, on a clock that only the test moves.
//!
//! What must hold whatever the controller does: nothing panics; every request taken is answered exactly
//! once, within a bound of the clock, and with its frames, unless the device cannot be kept from them;
//! when all is dropped, all memory is back. And as long as the controller did not lie about having done
//! something, a read gives what was last acknowledged, or may have been.
//!
//! Beside it two threads on one controller that a third fails under them.
//!
//! `UAIO_SEED=n` replays a seed, `UAIO_SEEDS=n` runs more, `UAIO_FUZZ_S=n` runs for so many seconds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use uaio_driver::nvme::model::{Aborts, Lie, Model, ModelClock, ModelNamespace, ModelOptions};
use uaio_driver::nvme::spec::Status;
use uaio_driver::nvme::{ControllerOptions, NvmeController, NvmeNamespace};
use uaio_driver::{
    Armed, BlockDevice, Cancel, Clock, Completion, DmaPool, IoErrorKind, IoQueue, Lba, Op,
    PoolOptions, QueueOptions, Refusal, Request, SgList, Token,
};

const FRAMES: usize = 700;
const BLOCKS: u64 = 512;
/// Blocks of a lane: requests stay inside of one, and one at a time is in flight in it.
const LANE: u64 = 16;
/// Requests in flight of one of the two threads.
const DEPTH: u64 = 12;
/// How long a request may take on the test's clock, all rungs of the ladder climbed as often as they may
/// be.
const PATIENCE: Duration = Duration::from_secs(600);

#[test]
fn whatever_is_asked_and_answered_every_request_ends_once_and_no_memory_is_lost() {
    if let Ok(seed) = std::env::var("UAIO_SEED") {
        return run(seed.parse().expect("UAIO_SEED is a number"));
    }
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seconds = number("UAIO_FUZZ_S").map(Duration::from_secs);
    let seeds = number("UAIO_SEEDS").unwrap_or(150);
    let (start, first) = (Instant::now(), fastrand::u64(..1 << 48));
    let mut count = 0;
    while seconds.map_or(count < seeds, |seconds| start.elapsed() < seconds) {
        let seed = first + count;
        let failed = std::panic::catch_unwind(|| run(seed)).is_err();
        assert!(!failed, "failed with UAIO_SEED={seed}");
        count += 1;
    }
    println!("{count} seeds from {first}");
}

fn run(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let pool = DmaPool::new(PoolOptions::frames(FRAMES)).unwrap();
    let options = model_options(&mut random);
    // Gone or not stopping, only the IOMMU keeps it from memory.
    let never_stops = !options.can_be_cut_off;
    let model = Model::new(options.clone(), pool.clone());
    if random.u8(..8) == 0 {
        model.mumble(random.u64(..));
    }
    if random.u8(..8) == 0 {
        model.lie_admin((0..random.usize(1..8)).map(|_| admin_lie(&mut random)));
    }
    let clock = ModelClock::new();
    let how = ControllerOptions {
        queues_max: random.u16(1..5),
        resets_max: random.u32(..4),
        retries_max: random.u8(..4),
        subsystem_reset: random.bool(),
        ..ControllerOptions::default()
    };
    let opened = NvmeController::start(model.clone(), pool.clone(), how, clock.clone());
    if let Ok(controller) = opened {
        if let Ok(namespace) = controller.namespace(1) {
            let world = World::new(random, &pool, model.clone(), clock, namespace);
            world.run();
        }
        drop(controller);
    }
    drop(model);
    assert!(never_stops || pool.free_frames() == FRAMES, "frames were lost");
}

fn model_options(random: &mut fastrand::Rng) -> ModelOptions {
    let seldom = |random: &mut fastrand::Rng| random.u8(..12) == 0;
    ModelOptions {
        namespaces: vec![ModelNamespace::new(BLOCKS * 512, 512)],
        mdts: random.u8(..6),
        mqes: random.choice([1, 7, 63, 1023]).expect("some"),
        queues: random.u16(1..5),
        to: random.u8(..5),
        volatile_cache: random.bool(),
        shuffle: random.bool().then(|| random.u64(..)),
        aborts: random
            .choice([
                Aborts::Work,
                Aborts::Refused,
                Aborts::Pretended,
                Aborts::Ignored,
                Aborts::Late,
            ])
            .expect("some"),
        acl: random.u8(..5),
        aerl: random.u8(..8),
        scatter_gather: random.bool(),
        retry_delays: [0, random.u16(..20), random.u16(..)],
        never_ready: random.u8(..50) == 0,
        never_disables: seldom(random),
        never_shuts_down: seldom(random),
        can_be_cut_off: !seldom(random),
        subsystem_reset: random.bool(),
        never_comes_back: seldom(random),
        shared_namespaces: random.u8(..4) == 0,
        ..ModelOptions::default()
    }
}

fn admin_lie(random: &mut fastrand::Rng) -> Lie {
    match random.u8(..8) {
        0 => Lie::Stuck,
        1 => Lie::Status(Status(random.u16(..0x8000))),
        2 => Lie::RepeatedCommand,
        3 => Lie::UnknownCommand,
        4 => Lie::Garbage(random.u64(..)),
        5 => Lie::BadHead,
        _ => Lie::Honest,
    }
}

/// A request in flight.
struct Asked {
    op: Op,
    lba: u64,
    blocks: u64,
    byte: u8,
    frames: usize,
    since: Duration,
    cancelled: bool,
}

struct Seat {
    queue: Box<dyn IoQueue>,
    asked: BTreeMap<u64, Asked>,
}

struct World<'a> {
    random: fastrand::Rng,
    pool: &'a DmaPool,
    model: Arc<Model>,
    clock: Arc<ModelClock>,
    namespace: Arc<NvmeNamespace>,
    seats: Vec<Seat>,
    /// What each block may hold: one byte, filled.
    blocks: Vec<Vec<u8>>,
    busy: Vec<bool>,
    /// The controller may have said that it did what it did not.
    tainted: bool,
    next: u64,
}

impl<'a> World<'a> {
    fn new(
        random: fastrand::Rng,
        pool: &'a DmaPool,
        model: Arc<Model>,
        clock: Arc<ModelClock>,
        namespace: Arc<NvmeNamespace>,
    ) -> Self {
        let geometry = namespace.geometry();
        Self {
            random,
            pool,
            model,
            clock,
            seats: Vec::new(),
            blocks: vec![vec![0]; BLOCKS as usize],
            busy: vec![false; (BLOCKS / LANE) as usize],
            // A drive that mumbles may claim other blocks than it has.
            tainted: geometry.block_size != 512 || geometry.blocks != BLOCKS,
            next: 1,
            namespace,
        }
    }

    fn run(mut self) {
        for _ in 0..self.random.usize(50..600) {
            match self.random.u8(..32) {
                0 => self.open(),
                1 if self.seats.len() > 1 && self.random.u8(..8) == 0 => self.close(),
                2..16 => self.submit(),
                16..20 => self.on_a_seat(|seat, _| seat.queue.commit()),
                20..26 => self.poll(),
                26 => self.cancel(),
                27 => self.on_a_seat(|seat, _| {
                    let in_flight = seat.queue.in_flight();
                    assert!(in_flight > 0 || seat.queue.arm() != Armed::MustPoll);
                }),
                28 => self.clock.advance(Duration::from_millis(self.random.u64(..3000))),
                29 => self.misbehave(),
                30 => {
                    let controller = self.namespace.controller();
                    controller.turn();
                    controller.take_events();
                }
                _ if self.random.bool() => self.model.do_late_aborts(),
                _ => self.model.hold(self.random.bool()),
            }
            self.check_counts();
        }
        self.model.hold(false);
        if self.random.bool() {
            self.drain();
        }
        while !self.seats.is_empty() {
            self.close();
        }
        let before = self.clock.now();
        let _ = self.namespace.close();
        assert!(self.clock.now() - before < PATIENCE, "closing took {:?}", self.clock.now());
    }

    fn misbehave(&mut self) {
        let Self { random, model, .. } = self;
        match random.u8(..24) {
            0..8 => {
                let lies: Vec<Lie> = (0..random.usize(1..4))
                    .map(|_| match random.u8(..10) {
                        0..3 => Lie::Stuck,
                        3..5 => Lie::Status(Status(random.u16(1..0x8000))),
                        5 => Lie::BadPhase,
                        6 => Lie::UnknownCommand,
                        7 => Lie::RepeatedCommand,
                        8 => Lie::BadHead,
                        _ => Lie::WrongQueue,
                    })
                    .collect();
                // A status whose code is 0 says that it was done.
                let done = |lie: &Lie| matches!(lie, Lie::Status(status) if status.code().0 == 0);
                self.tainted |= lies.iter().any(done);
                model.lie(lies);
            }
            8 => {
                model.lie([Lie::NextToo]);
                self.tainted = true;
            }
            9 | 10 => {
                // Near what could be right, or anywhere.
                let word = random.u64(..);
                let near = word & 0x0003_001f_0003_001f;
                model.lie([Lie::Garbage(if random.bool() { near } else { word })]);
                self.tainted = true;
            }
            11 => {
                model.scribble(random.u64(..), random.u64(..));
                self.tainted = true;
            }
            12 | 13 => model.fail_fatally(),
            14 => model.lie_admin((0..random.usize(1..4)).map(|_| admin_lie(random))),
            15..19 => model.tell(random.u32(..)),
            19 => model.tell_changed((0..random.usize(..9)).map(|_| random.u32(..9))),
            20 if random.u8(..6) == 0 => model.remove(),
            21 if random.u8(..6) == 0 => model.ask_back(),
            22 if random.u8(..6) == 0 => model.become_another(),
            23 if random.u8(..6) == 0 => model.mumble(random.u64(..)),
            _ => model.spoil(1, random.u64(..BLOCKS)),
        }
    }

    fn open(&mut self) {
        let before = self.clock.now();
        let depth = self.random.u16(1..20).min(self.namespace.capabilities().depth_max);
        if let Ok(queue) = self.namespace.open_queue(QueueOptions::polled(depth)) {
            self.seats.push(Seat { queue, asked: BTreeMap::new() });
        }
        assert!(self.clock.now() - before < PATIENCE, "opening took {:?}", self.clock.now());
    }

    fn close(&mut self) {
        let before = self.clock.now();
        let index = self.random.usize(..self.seats.len());
        let Seat { queue, asked } = self.seats.swap_remove(index);
        drop(queue);
        assert!(self.clock.now() - before < PATIENCE, "dropping took {:?}", self.clock.now());
        // Unanswered, it may have been done or not.
        asked.into_values().for_each(|asked| self.ended(&asked, false));
    }

    fn on_a_seat(&mut self, act: impl FnOnce(&mut Seat, &mut fastrand::Rng)) {
        if !self.seats.is_empty() {
            let index = self.random.usize(..self.seats.len());
            act(&mut self.seats[index], &mut self.random);
        }
    }

    fn submit(&mut self) {
        if self.seats.is_empty() {
            return self.open();
        }
        let lane = self.random.u64(..BLOCKS / LANE);
        if self.busy[lane as usize] {
            return;
        }
        let start = self.random.u64(..LANE);
        let (lba, blocks) = (lane * LANE + start, self.random.u64(1..=LANE - start));
        let op = match self.random.u8(..16) {
            0..5 => Op::Read,
            5..11 => Op::Write { fua: self.random.bool() },
            11 => Op::Flush,
            12..14 => Op::Discard,
            _ => Op::WriteZeroes { may_unmap: self.random.bool() },
        };
        let (lba, blocks) = if op == Op::Flush { (0, 0) } else { (lba, blocks) };
        let byte = self.random.u8(1..);
        let count = if op.has_data() { SgList::frames_for(0, blocks as usize * 512) } else { 0 };
        let frames: Vec<_> = (0..count).filter_map(|_| self.pool.take()).collect();
        if frames.len() < count {
            return;
        }
        let data = SgList::new(frames);
        if op.has_data() {
            data.copy_from_slice(0, &vec![byte; blocks as usize * 512]);
        }
        let seat = self.random.usize(..self.seats.len());
        let token = self.next;
        // Now and then one that is not right.
        let lba_asked = if self.random.u8(..30) == 0 { self.random.u64(..) } else { lba };
        let request = Request {
            token: Token::from_u64(token),
            op,
            lba: Lba(lba_asked),
            blocks: blocks as u32,
            data,
        };
        match self.seats[seat].queue.submit(request) {
            Ok(()) => {
                assert!(
                    lba_asked == lba || op == Op::Flush || self.tainted,
                    "{lba_asked} was taken"
                );
                self.next += 1;
                if op != Op::Flush {
                    self.busy[lane as usize] = true;
                }
                let (since, cancelled) = (self.clock.now(), false);
                let asked = Asked { op, lba, blocks, byte, frames: count, since, cancelled };
                self.seats[seat].asked.insert(token, asked);
            }
            Err(refused) => assert_eq!(refused.request.data.frames.len(), count),
        }
    }

    fn cancel(&mut self) {
        self.on_a_seat(|seat, random| {
            let tokens: Vec<_> = seat.asked.keys().copied().collect();
            let token = random.choice(tokens).unwrap_or(u64::MAX);
            let came = seat.queue.cancel(Token::from_u64(token));
            match seat.asked.get_mut(&token) {
                Some(asked) => {
                    assert_ne!(came, Cancel::NotFound, "{token} is in flight");
                    asked.cancelled |= came == Cancel::Asked;
                }
                None => assert_eq!(came, Cancel::NotFound),
            }
        });
    }

    fn poll(&mut self) {
        if self.seats.is_empty() {
            return;
        }
        let index = self.random.usize(..self.seats.len());
        let (budget, times) = (self.random.usize(..20), self.random.usize(1..400));
        for _ in 0..times {
            let mut out = Vec::with_capacity(budget);
            let moved = self.seats[index].queue.poll(budget, &mut out);
            assert_eq!((moved, moved <= budget), (out.len(), true));
            out.into_iter().for_each(|done| self.answered(index, done));
        }
    }

    fn answered(&mut self, index: usize, done: Completion) {
        let token = done.token.to_u64();
        let Some(asked) = self.seats[index].asked.remove(&token) else {
            panic!("{token} was answered twice, or never asked")
        };
        let lost = done.data.frames.is_empty();
        assert!(lost || done.data.frames.len() == asked.frames, "its frames did not come back");
        assert!(self.clock.now() - asked.since < PATIENCE, "{token} took too long");
        let ok = done.result.is_ok();
        // A reset of the subsystem may lose what the volatile cache held, and is told of: blocks hold
        // what they held at some time before.
        self.tainted |= self.namespace.controller().error_statistics().subsystem_resets > 0;
        if let Err(error) = done.result
            && error.kind == IoErrorKind::Cancelled
        {
            // A controller may also say by itself that a queue was deleted under a command.
            assert!(asked.cancelled || error.status != 7, "{token} was not to be cancelled");
        }
        if ok && asked.op == Op::Read && !self.tainted && !lost {
            let mut bytes = vec![0; asked.blocks as usize * 512];
            done.data.copy_to_slice(0, &mut bytes);
            for (lba, block) in (asked.lba..).zip(bytes.chunks_exact(512)) {
                let may = &mut self.blocks[lba as usize];
                assert!(block.iter().all(|byte| *byte == block[0]), "block {lba} is torn");
                assert!(may.contains(&block[0]), "block {lba} reads {} of {may:?}", block[0]);
                *may = vec![block[0]];
            }
        }
        self.ended(&asked, ok);
    }

    /// What the blocks of a request may hold from now on.
    fn ended(&mut self, asked: &Asked, ok: bool) {
        if asked.op == Op::Flush {
            return;
        }
        self.busy[(asked.lba / LANE) as usize] = false;
        let byte = match asked.op {
            Op::Write { .. } => asked.byte,
            Op::Discard | Op::WriteZeroes { .. } => 0,
            Op::Read | Op::Flush => return,
        };
        for may in &mut self.blocks[asked.lba as usize..][..asked.blocks as usize] {
            if ok {
                may.clear();
            }
            if !may.contains(&byte) {
                may.push(byte);
            }
        }
    }

    /// Polls all queues until everything is answered.
    fn drain(&mut self) {
        let before = self.clock.now();
        while self.seats.iter().any(|seat| seat.queue.in_flight() > 0) {
            for index in 0..self.seats.len() {
                let mut out = Vec::new();
                self.seats[index].queue.commit();
                self.seats[index].queue.poll(64, &mut out);
                out.into_iter().for_each(|done| self.answered(index, done));
            }
            self.model.do_late_aborts();
            self.clock.advance(Duration::from_millis(1));
            assert!(self.clock.now() - before < PATIENCE, "a request waits for ever");
        }
        self.check_counts();
    }

    fn check_counts(&self) {
        for seat in &self.seats {
            assert_eq!(seat.queue.in_flight(), seat.asked.len());
        }
    }
}

/// Two threads with a queue each, and a third that fails the controller under them: what one finds
/// changes the fate while the other sends, resends or waits. Real threads, so a seed says what is asked
/// and not what comes between; what must hold holds for every order.
#[test]
fn what_two_threads_ask_while_the_controller_fails_is_answered_once_each() {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let one = number("UAIO_SEED");
    let seeds = if one.is_some() { 1 } else { number("UAIO_SEEDS").unwrap_or(40) };
    let first = one.unwrap_or_else(|| fastrand::u64(..1 << 48));
    for seed in first..first + seeds {
        let failed = std::panic::catch_unwind(|| run_threads(seed)).is_err();
        assert!(!failed, "failed with UAIO_SEED={seed}");
    }
}

fn run_threads(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let pool = DmaPool::new(PoolOptions::frames(FRAMES)).unwrap();
    let aborts = random.choice([Aborts::Work, Aborts::Refused, Aborts::Pretended]).expect("some");
    let options = ModelOptions {
        namespaces: vec![ModelNamespace::new(BLOCKS * 512, 512)],
        aborts,
        never_comes_back: random.u8(..10) == 0,
        ..ModelOptions::default()
    };
    let model = Model::new(options, pool.clone());
    let clock = ModelClock::new();
    let how = ControllerOptions { resets_max: 40, ..ControllerOptions::default() };
    let controller =
        NvmeController::start(model.clone(), pool.clone(), how, clock.clone()).unwrap();
    let namespace = controller.namespace(1).unwrap();
    let stop = AtomicBool::new(false);
    let (stop, model_of, clock_of) = (&stop, &model, &clock);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2u64)
            .map(|lane| {
                let (random, pool) = (random.fork(), &pool);
                // Before anything fails: a controller that never comes back opens no queue.
                let queue = namespace.open_queue(QueueOptions::polled(DEPTH as u16)).unwrap();
                scope.spawn(move || work(lane, random, queue, pool))
            })
            .collect();
        let mut random = random.fork();
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                match random.u8(..8) {
                    0 => model_of.fail_fatally(),
                    1 => model_of.lie([Lie::Stuck; 2]),
                    2 => model_of.lie([Lie::Status(Status::ABORT_REQUESTED)]),
                    3 => model_of.hold(true),
                    _ => model_of.hold(false),
                }
                // All of it passes while the workers go on: time is theirs, too.
                clock_of.advance(Duration::from_millis(random.u64(..700)));
                std::thread::yield_now();
            }
            model_of.hold(false);
        });
        // First all are waited for: a worker that panicked must not leave the third thread running.
        let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        stop.store(true, Ordering::Relaxed);
        ended.into_iter().for_each(|ended| ended.unwrap());
    });
    drop((namespace, controller));
    drop(model);
    assert_eq!(pool.free_frames(), FRAMES, "frames were lost");
}

/// Requests of every kind on the blocks of one half; each is answered once and with its frames.
fn work(lane: u64, mut random: fastrand::Rng, mut queue: Box<dyn IoQueue>, pool: &DmaPool) {
    let mut asked: BTreeMap<u64, usize> = BTreeMap::new();
    let (mut next, mut out, mut failed) = (0, Vec::new(), false);
    for _ in 0..600 {
        for _ in 0..random.u64(..DEPTH) {
            let lba = Lba(lane * BLOCKS / 2 + random.u64(..BLOCKS / 2 - 16));
            let blocks = random.u32(1..=16);
            let count = SgList::frames_for(0, blocks as usize * 512);
            let op = match random.u8(..8) {
                0..3 => Op::Read,
                3..5 => Op::Write { fua: random.bool() },
                5 => Op::Flush,
                6 => Op::Discard,
                _ => Op::WriteZeroes { may_unmap: true },
            };
            let count = if op.has_data() { count } else { 0 };
            let frames: Vec<_> = (0..count).filter_map(|_| pool.take()).collect();
            if frames.len() < count {
                break;
            }
            let (lba, blocks) = if op == Op::Flush { (Lba(0), 0) } else { (lba, blocks) };
            let data = if count > 0 { SgList::new(frames) } else { SgList::empty() };
            let request = Request { token: Token::from_u64(next), op, lba, blocks, data };
            match queue.submit(request) {
                Ok(()) => drop(asked.insert(next, count)),
                Err(refused) => {
                    failed |= refused.reason == Refusal::Failed;
                    assert_eq!(refused.request.data.frames.len(), count);
                    break;
                }
            }
            next += 1;
            assert!(queue.in_flight() <= queue.depth());
        }
        queue.commit();
        for _ in 0..random.u32(1..600) {
            queue.poll(random.usize(1..20), &mut out);
        }
        answered(&mut asked, &mut out);
        if failed {
            break;
        }
    }
    let start = Instant::now();
    while queue.in_flight() > 0 {
        queue.poll(64, &mut out);
        answered(&mut asked, &mut out);
        assert!(start.elapsed() < Duration::from_secs(60), "{asked:?} wait for ever");
    }
    assert!(asked.is_empty(), "never answered: {asked:?}");
}

fn answered(asked: &mut BTreeMap<u64, usize>, out: &mut Vec<Completion>) {
    for done in out.drain(..) {
        let frames = asked.remove(&done.token.to_u64()).expect("answered twice, or never asked");
        assert_eq!(done.data.frames.len(), frames);
    }
}
