//! Miss ratios of the eviction policies, side by side: a table and a plot.
//!
//! `miss_ratio SVG [TRACE]`: writes a plot of the miss ratio over the size of the cache to `SVG`. With a
//! trace, on its page references; without, on three generated patterns. Policy only: no readahead,
//! reads and writes alike, each page of 4096 bytes that a request touches in order. *Optimal* is
//! Belady's, which knows the future.
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
use uaio_page_cache::evict::{Lap, Lru, S3Fifo, Simulator};

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
        plot(area, name, &ratios)?;
    }
    root.present()?;
    eprintln!("plot: {svg}");
    Ok(())
}

/// Which pages are used, in order.
enum References {
    /// The same for every size of the cache.
    Fixed(Vec<u64>),
    /// A loop over 1.2 times the pages that the cache holds, of so many pages at most.
    Loop(usize),
}

impl References {
    fn distinct(&self) -> usize {
        match self {
            Self::Fixed(keys) => keys.iter().collect::<HashSet<_>>().len(),
            Self::Loop(pages) => *pages,
        }
    }

    fn keys(&self, pages: usize) -> Cow<'_, [u64]> {
        match self {
            Self::Fixed(keys) => keys.into(),
            Self::Loop(_) => {
                let round = (pages as u64 * 6).div_ceil(5);
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

/// Zipf, a loop, and Zipf with scans.
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
    vec![
        ("Zipf".into(), References::Fixed(plain)),
        ("a loop 1.2 times the cache".into(), References::Loop(PAGES)),
        ("Zipf with scans".into(), References::Fixed(mixed)),
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
