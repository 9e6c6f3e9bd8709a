//! Miss ratios of the eviction policies, side by side: a table and a plot.
//!
//! `miss_ratio SVG [TRACE]`: writes a plot of the miss ratio over the size of the cache to `SVG`. With a
//! trace, on its page references; without, on generated patterns. Policy only: no readahead,
//! reads and writes alike, each page of 4096 bytes that a request touches in order. *Optimal* is
//! Belady's, which knows the future.
//!
//! Below each table, how much hangs on each parameter of Lap: what the miss ratio is above that of the default when
//! one of them is half as large, and twice as large.
//!
//! A trace is comma-separated, plain or gzipped, with a first line that names the columns `size` (in
//! bytes) and `lbn` (in blocks of 512 bytes).

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use plotters::prelude::*;
use uaio_page_cache::evict::{Lap, LapParameters, Lru, S3Fifo, Simulator};

/// Sizes of the cache, in parts of the distinct pages, for the plot; those of the table are marked.
const SIZES: [(f64, bool); 10] = [
    (0.005, false),
    (0.01, true),
    (0.02, false),
    (0.035, false),
    (0.05, true),
    (0.075, false),
    (0.1, true),
    (0.15, false),
    (0.2, true),
    (0.4, false),
];

/// A policy's miss ratio on keys with so many frames.
type Measure = fn(&[u64], usize) -> f64;

const POLICIES: [(&str, Measure, RGBColor); 4] = [
    ("LRU", |keys, pages| Simulator::<Lru>::new(pages).miss_ratio(keys.iter().copied()), BLUE),
    (
        "S3-FIFO",
        |keys, pages| Simulator::<S3Fifo>::new(pages).miss_ratio(keys.iter().copied()),
        RGBColor(230, 120, 0),
    ),
    ("Lap", |keys, pages| Simulator::<Lap>::new(pages).miss_ratio(keys.iter().copied()), RED),
    ("optimal", optimal, RGBColor(120, 120, 120)),
];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(svg) = arguments.first() else {
        return Err("usage: miss_ratio SVG [TRACE]".into());
    };
    let patterns = match arguments.get(1) {
        Some(trace) => {
            vec![("trace".to_string(), References::Fixed(page_references(Path::new(trace))?))]
        }
        None => generated(),
    };
    let root = SVGBackend::new(svg, (480 * patterns.len().max(2) as u32, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let areas = root.split_evenly((1, patterns.len()));
    for ((name, references), area) in patterns.iter().zip(&areas) {
        let distinct = references.distinct();
        println!("{name}: {distinct} pages");
        println!();
        let heads: Vec<&str> = POLICIES.iter().map(|(name, ..)| *name).collect();
        println!("| pages held | {} |", heads.join(" | "));
        println!("|---|{}", "---|".repeat(POLICIES.len()));
        let mut ratios = vec![Vec::new(); POLICIES.len()];
        for (part, in_table) in SIZES {
            let pages = ((distinct as f64 * part) as usize).max(1);
            let keys = references.keys(pages);
            let mut cells = Vec::new();
            for ((_, measure, _), ratios) in POLICIES.iter().zip(&mut ratios) {
                let ratio = measure(&keys, pages);
                ratios.push((part * 100.0, ratio));
                cells.push(format!("{ratio:.4}").trim_start_matches('0').to_string());
            }
            if in_table {
                println!("| {pages} ({} %) | {} |", part * 100.0, cells.join(" | "));
            }
        }
        println!();
        sensitivity(references, distinct);
        plot(area, name, &ratios)?;
    }
    root.present()?;
    eprintln!("plot: {svg}");
    Ok(())
}

/// A parameter of Lap that is set to something else.
type Change = fn(&mut LapParameters);

/// Each parameter, half as large and twice.
const CHANGES: [(&str, Change); 12] = [
    ("an eighth of a lap away, not a quarter", |it| it.lap_parts *= 2),
    ("half a lap", |it| it.lap_parts /= 2),
    ("1 ghost a frame, not 2", |it| it.ghosts_per_frame /= 2),
    ("4 ghosts a frame", |it| it.ghosts_per_frame *= 2),
    ("8 pages timed, not 16", |it| it.timed_max /= 2),
    ("32 pages timed", |it| it.timed_max *= 2),
    ("a lap counts for half, not a quarter", |it| it.smoothing /= 2),
    ("a lap counts for an eighth", |it| it.smoothing *= 2),
    ("a small queue of a twentieth, not a tenth", |it| it.small_part *= 2),
    ("a small queue of a fifth", |it| it.small_part /= 2),
    ("kept for 1 use while there, not 2", |it| it.worth_keeping = 1),
    ("kept for 3 uses", |it| it.worth_keeping = 3),
];

/// Prints what becomes of Lap's miss ratio when one of its parameters is another.
fn sensitivity(references: &References, distinct: usize) {
    let sizes = SIZES.iter().filter(|(_, in_table)| *in_table);
    let pages: Vec<usize> =
        sizes.map(|(part, _)| ((distinct as f64 * part) as usize).max(1)).collect();
    let keys: Vec<_> = pages.iter().map(|pages| references.keys(*pages)).collect();
    let measure = |parameters: LapParameters| -> Vec<f64> {
        let of = |(pages, keys): (&usize, &Cow<'_, [u64]>)| {
            let lap = Lap::with(*pages, parameters);
            Simulator::of(lap, *pages).miss_ratio(keys.iter().copied())
        };
        pages.iter().zip(&keys).map(of).collect()
    };
    let default = measure(LapParameters::DEFAULT);
    let heads: Vec<String> = pages.iter().map(usize::to_string).collect();
    println!("| Lap with one thing else, at pages held | {} |", heads.join(" | "));
    println!("|---|{}", "---|".repeat(pages.len()));
    for (name, change) in CHANGES {
        let mut parameters = LapParameters::DEFAULT;
        change(&mut parameters);
        let apart = measure(parameters);
        let apart = apart.iter().zip(&default).map(|(it, default)| format!("{:+.4}", it - default));
        println!("| {name} | {} |", apart.collect::<Vec<_>>().join(" | "));
    }
    println!();
}

/// Which pages are used, in order.
enum References {
    /// The same for every size of the cache.
    Fixed(Vec<u64>),
    /// A loop over so many tenths of the pages that the cache holds, of so many pages at most.
    Loop { tenths: u64, pages: usize },
    /// These, of so many pages; after each five times as many of them as the cache holds, as many pages as it
    /// holds that are never used again.
    Scanned { keys: Vec<u64>, pages: usize },
}

impl References {
    fn distinct(&self) -> usize {
        match self {
            Self::Fixed(keys) => keys.iter().collect::<HashSet<_>>().len(),
            Self::Loop { pages, .. } | Self::Scanned { pages, .. } => *pages,
        }
    }

    fn keys(&self, pages: usize) -> Cow<'_, [u64]> {
        match self {
            Self::Fixed(keys) => keys.into(),
            Self::Scanned { keys, .. } => {
                let mut scan = 1_000_000..;
                let mut next = || scan.by_ref().take(pages).collect::<Vec<u64>>();
                keys.chunks(5 * pages).flat_map(|keys| [keys.to_vec(), next()].concat()).collect()
            }
            Self::Loop { tenths, .. } => {
                let round = (pages as u64 * tenths).div_ceil(10);
                (0..round).cycle().take(pages * 30).collect()
            }
        }
    }
}

/// The page references of a trace.
fn page_references(path: &Path) -> Result<Vec<u64>, Box<dyn Error>> {
    let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let zipped = path.extension().is_some_and(|extension| extension == "gz");
    let reader: Box<dyn Read> =
        if zipped { Box::new(flate2::read::GzDecoder::new(file)) } else { Box::new(file) };
    let mut lines = BufReader::new(reader).lines();
    let head = lines.next().ok_or("the trace is empty")??;
    let column = |name: &str| {
        let at = head.split(',').position(|column| column.trim() == name);
        at.ok_or_else(|| format!("the trace has no column {name}: {head}"))
    };
    let (size, lbn) = (column("size")?, column("lbn")?);
    let mut keys = Vec::new();
    for (number, line) in lines.enumerate() {
        let line = line?;
        let fields: Vec<&str> = line.split(',').collect();
        let field = |at: usize| fields.get(at).and_then(|field| field.trim().parse::<u64>().ok());
        let (Some(size), Some(lbn)) = (field(size), field(lbn)) else {
            return Err(format!("line {} is not a request: {line}", number + 2).into());
        };
        let Some(end) = lbn.checked_mul(512).and_then(|start| start.checked_add(size)) else {
            return Err(format!("line {} lies past any device: {line}", number + 2).into());
        };
        keys.extend(lbn / 8..end.div_ceil(4096));
    }
    Ok(keys)
}

/// Zipf, loops, and Zipf with scans.
fn generated() -> Vec<(String, References)> {
    const PAGES: usize = 50_000;
    let mut random = fastrand::Rng::with_seed(1);
    let mut sum = 0.0;
    let sums: Vec<f64> = (1..=PAGES)
        .map(|rank| {
            sum += 1.0 / rank as f64;
            sum
        })
        .collect();
    let mut zipf = || {
        let at = random.f64() * sum;
        sums.partition_point(|sum| *sum < at) as u64
    };
    let plain: Vec<u64> = (0..1_000_000).map(|_| zipf()).collect();
    let mut mixed = Vec::new();
    for round in 0..100 {
        mixed.extend((0..10_000).map(|_| zipf()));
        let scan = 1_000_000 + round * 2000;
        mixed.extend(scan..scan + 2000);
    }
    let long_scans = References::Scanned { keys: plain.clone(), pages: PAGES };
    vec![
        ("Zipf".into(), References::Fixed(plain)),
        ("a loop 1.2 times the cache".into(), References::Loop { tenths: 12, pages: PAGES }),
        ("a loop 1.8 times the cache".into(), References::Loop { tenths: 18, pages: PAGES }),
        ("Zipf with scans".into(), References::Fixed(mixed)),
        ("Zipf with scans as long as the cache".into(), long_scans),
    ]
}

/// Belady's: of the pages held, that goes which is needed last.
fn optimal(keys: &[u64], pages: usize) -> f64 {
    let mut next = vec![usize::MAX; keys.len()];
    let mut seen = HashMap::new();
    for (at, key) in keys.iter().enumerate().rev() {
        if let Some(later) = seen.insert(*key, at) {
            next[at] = later;
        }
    }
    // Pages by when they are needed next; those that never are come last, apart by their number.
    let mut held: BTreeSet<(usize, u64)> = BTreeSet::new();
    let mut misses = 0;
    for (at, key) in keys.iter().enumerate() {
        if !held.remove(&(at, *key)) {
            misses += 1;
        }
        held.insert((next[at], *key));
        if held.len() > pages {
            held.pop_last();
        }
    }
    misses as f64 / keys.len() as f64
}

fn plot(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    name: &str,
    ratios: &[Vec<(f64, f64)>],
) -> Result<(), Box<dyn Error>> {
    let least = ratios.iter().flatten().map(|(_, ratio)| *ratio).fold(1.0, f64::min);
    let (first, last) = (SIZES[0].0 * 100.0, SIZES[SIZES.len() - 1].0 * 100.0);
    let mut chart = ChartBuilder::on(area)
        .caption(name, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(48)
        .build_cartesian_2d((first..last).log_scale(), (least * 0.95)..1.0)?;
    chart
        .configure_mesh()
        .x_desc("size of the cache, % of the distinct pages")
        .y_desc("miss ratio")
        .draw()?;
    for ((label, _, colour), points) in POLICIES.iter().zip(ratios) {
        let colour = *colour;
        let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2));
        chart
            .draw_series(line)?
            .label(*label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    let mut labels = chart.configure_series_labels();
    let labels = labels.position(SeriesLabelPosition::LowerLeft);
    labels.background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
    Ok(())
}
