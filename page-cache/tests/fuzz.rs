//! Fuzzing of the operation stream: bytes become a schedule of operations, turns, faults, cancels and
//! administration, held against the map of bytes of the model test.
//!
//! Inputs that bring the cache into a state not seen before are kept and varied: steps left out,
//! repeated, moved, taken over from another input. What is a state is told by the counters that the
//! cache keeps anyway, each to a power of two: no instrumented build is needed, so this runs with the
//! stable toolchain.
//!
//! `UAIO_FUZZ_S=n` runs for so many seconds. With `UAIO_FUZZ_CORPUS=folder` the inputs found are kept
//! there, and those found there are run first. An input that fails is written beside them, or to the
//! temporary folder, and `UAIO_FUZZ_INPUT=file` runs just that one.

mod common;

use std::collections::HashSet;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::world::{Plan, World};
use uaio_page_cache::{CacheMode, CacheStats};

/// Inputs without a time given.
const INPUTS: usize = 200;
/// Steps in an input at most.
const STEPS_MAX: usize = 300;

#[test]
fn whatever_is_asked_the_cache_agrees_with_a_map_of_bytes() {
    if let Some(input) = std::env::var_os("UAIO_FUZZ_INPUT") {
        run(&std::fs::read(input).unwrap());
        return;
    }
    let seconds = std::env::var("UAIO_FUZZ_S").ok();
    let seconds = seconds.map(|text| text.parse().expect("UAIO_FUZZ_S is a number of seconds"));
    let folder = std::env::var_os("UAIO_FUZZ_CORPUS").map(PathBuf::from);
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut seen = HashSet::new();
    let mut corpus: Vec<Vec<u8>> = Vec::new();
    let old = folder.iter().flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten());
    let mut old: Vec<_> =
        old.flatten().filter_map(|file| std::fs::read(file.path()).ok()).collect();
    let (start, mut inputs) = (Instant::now(), 0);
    while !old.is_empty()
        || seconds.map_or(inputs < INPUTS, |seconds| start.elapsed() < Duration::from_secs(seconds))
    {
        inputs += 1;
        let kept = old.pop();
        let is_new = kept.is_none();
        let input = kept.unwrap_or_else(|| vary(&corpus, &mut random));
        let stats = catch_unwind(|| run(&input)).unwrap_or_else(|panic| {
            let file = save(folder.as_deref().unwrap_or(&std::env::temp_dir()), "failed", &input);
            eprintln!("failed with UAIO_FUZZ_INPUT={}", file.display());
            std::panic::resume_unwind(panic)
        });
        let before = seen.len();
        seen.extend(states(&stats));
        if seen.len() > before {
            if let Some(folder) = folder.as_ref().filter(|_| is_new) {
                save(folder, "input", &input);
            }
            corpus.push(input);
        }
    }
    println!("{inputs} inputs, {} kept, {} states (seed {seed})", corpus.len(), seen.len());
    assert!(corpus.len() > 3, "nothing new was ever reached");
}

fn save(folder: &Path, kind: &str, input: &[u8]) -> PathBuf {
    let name = input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let file = folder.join(format!("{kind}-{name:016x}"));
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(&file, input).unwrap();
    file
}

/// An input made of those that are kept: a plan in the first byte, two bytes a step.
fn vary(corpus: &[Vec<u8>], random: &mut fastrand::Rng) -> Vec<u8> {
    let fresh = |random: &mut fastrand::Rng, steps: usize| -> Vec<u8> {
        (0..steps * 2).map(|_| random.u8(..)).collect()
    };
    if corpus.is_empty() || random.u8(..8) == 0 {
        let steps = random.usize(1..=STEPS_MAX);
        return [vec![random.u8(..)], fresh(random, steps)].concat();
    }
    let mut input = corpus[random.usize(..corpus.len())].clone();
    for _ in 0..random.usize(1..6) {
        let steps = (input.len() - 1) / 2;
        let at = 1 + 2 * random.usize(..=steps);
        let end = (at + 2 * random.usize(1..=16)).min(1 + 2 * steps);
        match random.u8(..6) {
            0 => drop(input.drain(at..end)),
            1 => {
                let again = input[at..end].repeat(random.usize(1..4));
                drop(input.splice(at..at, again));
            }
            2 => {
                let other = &corpus[random.usize(..corpus.len())];
                let from = 1 + 2 * random.usize(..=(other.len() - 1) / 2);
                drop(input.splice(at..end, other[from..].iter().copied()));
            }
            3 => input[0] = random.u8(..),
            _ => {
                let steps = random.usize(1..8);
                let fresh = fresh(random, steps);
                drop(input.splice(at..end, fresh));
            }
        }
    }
    input.truncate(1 + 2 * STEPS_MAX);
    input
}

/// Runs an input and says what the cache has gone through.
fn run(input: &[u8]) -> CacheStats {
    let [plan, steps @ ..] = input else { return CacheStats::default() };
    let small = plan & 1 == 1;
    let plan = Plan {
        mode: [
            CacheMode::Writeback,
            CacheMode::Writeback,
            CacheMode::Writethrough,
            CacheMode::None,
        ][usize::from(plan >> 1 & 3)],
        frames: if small { 17 } else { 64 },
        shards: if small { 1 } else { 2 },
        block_size: if plan >> 3 & 1 == 1 { 4096 } else { 512 },
        lanes: 3,
        steps: STEPS_MAX,
        faults: plan >> 4 & 1 == 1,
        crash: plan >> 5 & 1 == 1,
        gone: plan >> 6 == 3,
        keeps: plan >> 5 == 7,
        loses: plan >> 6 == 2,
        depth_one: plan >> 6 == 1,
    };
    let steps: Vec<u64> =
        steps.chunks_exact(2).map(|step| u64::from(step[0]) << 8 | u64::from(step[1])).collect();
    let world = World::new(plan, u64::from(input[0]));
    let telling = std::env::var_os("UAIO_FUZZ_INPUT").is_some();
    if telling { world.telling() } else { world }.run(&steps)
}

/// Which counters have come how far.
fn states(stats: &CacheStats) -> Vec<(String, u32)> {
    // By name, so that a counter that is added counts, too.
    let text = format!("{stats:?}");
    let fields = text.split(['{', '}', ',']).filter_map(|field| field.split_once(": "));
    let level = |(name, value): (&str, &str)| {
        let value: u64 = value.trim().parse().ok()?;
        Some((name.trim().to_owned(), u64::BITS - value.leading_zeros()))
    };
    let levels: Vec<_> = fields.filter_map(level).filter(|(_, level)| *level > 0).collect();
    // Pairs, too: waits for frames while writebacks fail are not the two one after the other.
    let pairs = levels.iter().flat_map(|(one, level)| {
        let rest = levels.iter().filter(move |(other, _)| other > one);
        rest.map(move |(other, more)| (format!("{one} {other}"), level * 64 + more))
    });
    pairs.chain(levels.iter().cloned()).collect()
}
