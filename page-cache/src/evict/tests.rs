//! What every policy keeps to, and what they miss on generated patterns.

use super::*;

struct Odd;

impl Pages for Odd {
    fn usable(&self, slot: u32) -> bool {
        slot % 2 == 1
    }

    fn key(&self, slot: u32) -> u64 {
        u64::from(slot)
    }
}

struct Nothing;

impl Pages for Nothing {
    fn usable(&self, _slot: u32) -> bool {
        false
    }

    fn key(&self, slot: u32) -> u64 {
        u64::from(slot)
    }
}

fn only_usable_pages_go<P: Policy>() {
    let (mut policy, mut links) = (P::new(20), Links::new(20));
    for slot in 0..20 {
        policy.admit(slot, u64::from(slot));
        policy.link(&mut links, slot);
        (0..slot % 5).for_each(|_| policy.hit(&mut links, slot));
    }
    policy.unlink(&mut links, 3);
    policy.unlink(&mut links, 5);
    policy.link(&mut links, 5);
    let mut gone: Vec<u32> = std::iter::from_fn(|| policy.victim(&mut links, &Odd)).collect();
    gone.sort_unstable();
    assert_eq!(gone, [1, 5, 7, 9, 11, 13, 15, 17, 19]);
    assert_eq!(policy.victim(&mut links, &Nothing), None);
    assert!((0..20).all(|slot| links.is_linked(slot) == (slot % 2 == 0)));
}

#[test]
fn only_usable_pages_go_and_all_of_them_do() {
    only_usable_pages_go::<Lap>();
    only_usable_pages_go::<S3Fifo>();
    only_usable_pages_go::<Lru>();
}

/// Random events against what is linked, which every victim must be, whatever was done before.
fn victims_are_linked<P: Policy>() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut slots = 40;
    let (mut policy, mut links) = (P::new(slots), Links::new(slots));
    let (mut present, mut linked) = (vec![false; 80], vec![false; 80]);
    for _ in 0..20_000 {
        let slot = random.usize(..slots);
        match random.u8(..8) {
            0 | 1 if !present[slot] => {
                policy.admit(slot as u32, random.u64(..200));
                present[slot] = true;
            }
            2 | 3 if present[slot] && !linked[slot] => {
                policy.link(&mut links, slot as u32);
                linked[slot] = true;
            }
            4 if linked[slot] => {
                policy.unlink(&mut links, slot as u32);
                linked[slot] = false;
                present[slot] = random.bool();
            }
            5 if present[slot] => policy.hit(&mut links, slot as u32),
            6 => match policy.victim(&mut links, &Odd) {
                Some(slot) => {
                    assert!(slot % 2 == 1 && linked[slot as usize], "slot {slot}");
                    linked[slot as usize] = false;
                    present[slot as usize] = false;
                }
                None => assert!((0..slots).all(|slot| slot % 2 == 0 || !linked[slot])),
            },
            7 if random.u8(..100) == 0 => {
                let new = random.usize(20..80);
                for slot in new..slots {
                    if std::mem::take(&mut linked[slot]) {
                        policy.unlink(&mut links, slot as u32);
                    }
                    present[slot] = false;
                }
                slots = new;
                policy.resize(slots);
                links.resize(slots);
            }
            _ => {}
        }
    }
}

#[test]
fn victims_are_always_of_those_linked() {
    victims_are_linked::<Lap>();
    victims_are_linked::<S3Fifo>();
    victims_are_linked::<Lru>();
}

/// Page numbers by Zipf's law with exponent `skew` over `count` pages, hottest first.
struct Zipf {
    sums: Vec<f64>,
    random: fastrand::Rng,
}

impl Zipf {
    fn new(count: usize, skew: f64) -> Self {
        let mut sum = 0.0;
        let sums = (1..=count)
            .map(|rank| {
                sum += (rank as f64).powf(-skew);
                sum
            })
            .collect();
        Self { sums, random: fastrand::Rng::with_seed(42) }
    }
}

impl Iterator for Zipf {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let at = self.random.f64() * self.sums.last()?;
        Some(self.sums.partition_point(|sum| *sum < at) as u64)
    }
}

/// A Zipf pattern, into which a scan of pages never seen before or after breaks time and again.
fn scanned(count: usize, scan: u64) -> impl Iterator<Item = u64> {
    let mut zipf = Zipf::new(count, 1.0);
    (0..40u64).flat_map(move |round| {
        let keys: Vec<u64> = zipf.by_ref().take(10_000).collect();
        let from = 1_000_000 + round * scan;
        keys.into_iter().chain(from..from + scan)
    })
}

#[test]
fn lap_is_never_worse_than_lru_on_generated_patterns() {
    for pages in [100, 1000, 5000] {
        let worse = |name: &str, keys: &[u64]| {
            let lap = Simulator::<Lap>::new(pages).miss_ratio(keys.iter().copied());
            let lru = Simulator::<Lru>::new(pages).miss_ratio(keys.iter().copied());
            println!("{name}, {pages} pages: Lap {lap:.4}, LRU {lru:.4}");
            assert!(lap <= lru + 0.01, "{name}, {pages} pages: Lap {lap}, LRU {lru}");
        };
        for skew in [0.6, 0.9, 1.2] {
            let zipf: Vec<u64> = Zipf::new(20_000, skew).take(400_000).collect();
            worse("Zipf", &zipf);
        }
        let looped: Vec<u64> = (0..pages as u64 * 6 / 5).cycle().take(pages * 40).collect();
        worse("loop", &looped);
        let scans: Vec<u64> = scanned(20_000, pages as u64 * 2).collect();
        worse("Zipf with scans", &scans);
    }
}

#[test]
fn lap_is_never_worse_than_lru_with_any_parameter_half_or_twice_as_large() {
    const PAGES: usize = 1000;
    let zipf: Vec<u64> = Zipf::new(20_000, 0.9).take(200_000).collect();
    let looped: Vec<u64> = (0..PAGES as u64 * 6 / 5).cycle().take(PAGES * 40).collect();
    let scans: Vec<u64> = scanned(20_000, PAGES as u64).collect();
    let default = LapParameters::DEFAULT;
    let changed = [
        LapParameters { lap_parts: 8, ..default },
        LapParameters { lap_parts: 2, ..default },
        LapParameters { ghosts_per_frame: 1, ..default },
        LapParameters { ghosts_per_frame: 4, ..default },
        LapParameters { timed_max: 8, ..default },
        LapParameters { timed_max: 32, ..default },
        LapParameters { smoothing: 2, ..default },
        LapParameters { smoothing: 8, ..default },
        LapParameters { small_part: 20, ..default },
        LapParameters { small_part: 5, ..default },
        LapParameters { worth_keeping: 1, ..default },
        LapParameters { worth_keeping: 3, ..default },
    ];
    for keys in [zipf, looped, scans] {
        let lru = Simulator::<Lru>::new(PAGES).miss_ratio(keys.iter().copied());
        for parameters in changed {
            let lap = Simulator::of(Lap::with(PAGES, parameters), PAGES);
            let lap = lap.miss_ratio(keys.iter().copied());
            assert!(lap <= lru + 0.01, "{parameters:?}: {lap}, LRU {lru}");
        }
    }
}

#[test]
fn a_scan_does_not_take_the_working_set_with_it() {
    // A working set of 80 pages in a cache of 100, with a scan of 300 others now and then.
    let mut random = fastrand::Rng::with_seed(7);
    let mut next = 1000;
    let mut keys = Vec::new();
    for round in 0..200 {
        keys.extend((0..400).map(|_| random.u64(..80)));
        if round % 4 == 3 {
            keys.extend(next..next + 300);
            next += 300;
        }
    }
    let lost = |ratio: f64| (ratio * keys.len() as f64).round() as usize - 50 * 300;
    let lap = lost(Simulator::<Lap>::new(100).miss_ratio(keys.iter().copied()));
    let lru = lost(Simulator::<Lru>::new(100).miss_ratio(keys.iter().copied()));
    assert!(lru > 50 * 75, "LRU was expected to lose its set to every scan: {lru}");
    assert!(lap * 4 < lru, "Lap lost {lap} of the set, LRU {lru}");
}
