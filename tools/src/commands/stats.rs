//! `aioctl stats`: what one device has done.

use super::Context;
use crate::cli::DeviceId;
use crate::client::{ask, unexpected};
use crate::exit::Failure;
use crate::protocol::{Answer, CacheStats, Command, DriveStats, OperationStats, Stats, WaitStats};
use crate::table;
use uaio_driver::url::ByteSize;

pub(crate) fn run(context: &Context, id: DeviceId) -> Result<(), Failure> {
    match ask(&context.run, &context.system, id, Command::Stats)? {
        Answer::Stats(stats) => context.print(&*stats, table_of),
        _ => Err(unexpected()),
    }
}

fn table_of(stats: &Stats) -> String {
    let mut text = table::pairs([
        ("path", stats.path.clone()),
        ("uptime (s)", stats.uptime_s.to_string()),
        ("in flight (requests)", stats.in_flight.to_string()),
    ]);
    text.push('\n');
    text.push_str(&table::rows(
        &[
            "OPERATION",
            "COUNT>",
            "DATA MiB>",
            "ERRORS>",
            "p50 µs>",
            "p99 µs>",
            "p99.9 µs>",
            "p99.99 µs>",
        ],
        stats.operations.iter().map(operation),
    ));
    if let Some(cache) = &stats.cache {
        text.push('\n');
        text.push_str(&table::pairs(cache_pairs(cache)));
        if !cache.waits.is_empty() {
            text.push('\n');
            text.push_str(&table::rows(
                &["WAITS FOR", "COUNT>", "TIME ms>", "MEAN µs>"],
                cache.waits.iter().map(waits),
            ));
        }
    }
    if let Some(drive) = &stats.drive {
        text.push('\n');
        text.push_str(&drive_table(drive));
    }
    text
}

fn drive_table(drive: &DriveStats) -> String {
    let state = drive.failure.clone().map_or("serves".into(), |why| format!("given up: {why}"));
    let counts =
        drive.counts.iter().map(|(name, count)| (name.replace('_', " "), count.to_string()));
    let pairs: Vec<_> = std::iter::once(("drive".to_owned(), state)).chain(counts).collect();
    let mut text = table::pairs(pairs.iter().map(|(name, value)| (name.as_str(), value.clone())));
    drive.events.iter().for_each(|event| text.push_str(&format!("event: {event}\n")));
    text
}

fn operation(operation: &OperationStats) -> Vec<String> {
    let percentile = |value: Option<f64>| value.map_or("-".into(), |us| format!("{us:.1}"));
    vec![
        operation.name.clone(),
        operation.count.to_string(),
        ByteSize(operation.bytes).mib(),
        operation.errors.to_string(),
        percentile(operation.p50_us),
        percentile(operation.p99_us),
        percentile(operation.p99_9_us),
        percentile(operation.p99_99_us),
    ]
}

fn waits(waits: &WaitStats) -> Vec<String> {
    let mean = (waits.count > 0).then(|| waits.time_us as f64 / waits.count as f64);
    vec![
        waits.name.clone(),
        waits.count.to_string(),
        format!("{:.1}", waits.time_us as f64 / 1000.0),
        mean.map_or("-".into(), |us| format!("{us:.1}")),
    ]
}

fn cache_pairs(cache: &CacheStats) -> [(&'static str, String); 18] {
    // Rounded down: 100.0 means that there was no miss.
    let all = u128::from(cache.hits) + u128::from(cache.misses);
    let tenths = (u128::from(cache.hits) * 1000).checked_div(all);
    let rate = tenths.map_or("-".into(), |tenths| format!("{}.{}", tenths / 10, tenths % 10));
    let limit = cache.memory_max_bytes.map(|bytes| ByteSize(bytes).mib());
    [
        ("hit rate (%)", rate),
        ("hits", cache.hits.to_string()),
        ("misses", cache.misses.to_string()),
        ("merged misses", cache.merged.to_string()),
        ("read ahead (pages)", cache.readahead.to_string()),
        ("  of these used", cache.readahead_used.to_string()),
        ("  of these wasted", cache.readahead_wasted.to_string()),
        ("evicted (pages)", cache.evicted.to_string()),
        ("size (MiB)", size(cache)),
        ("tables (MiB)", ByteSize(cache.tables_bytes).mib()),
        ("memory in all (MiB)", ByteSize(cache.memory_bytes).mib()),
        ("memory limit (MiB)", limit.unwrap_or_else(|| "-".into())),
        ("cached (MiB)", ByteSize(cache.cached_bytes).mib()),
        ("dirty (MiB)", ByteSize(cache.dirty_bytes).mib()),
        ("under writeback (MiB)", ByteSize(cache.writeback_bytes).mib()),
        ("dirty limit (MiB)", ByteSize(cache.dirty_limit_bytes).mib()),
        ("written back (MiB)", ByteSize(cache.written_back_bytes).mib()),
        ("failed writebacks", cache.failed_writebacks.to_string()),
    ]
}

/// The size, and the one it is shrinking to.
fn size(cache: &CacheStats) -> String {
    let has = ByteSize(cache.size_bytes).mib();
    if cache.size_wanted_bytes == cache.size_bytes {
        return has;
    }
    format!("{has}, going to {}", ByteSize(cache.size_wanted_bytes).mib())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hit_rate_of_100_means_that_there_was_no_miss() {
        let rate = |hits, misses| cache_pairs(&CacheStats { hits, misses, ..cache() })[0].1.clone();
        assert_eq!(rate(4000, 1), "99.9");
        assert_eq!(rate(4000, 0), "100.0");
        assert_eq!(rate(1, 4000), "0.0");
        assert_eq!(rate(0, 0), "-");
        assert_eq!(rate(u64::MAX, u64::MAX), "50.0");
    }

    fn cache() -> CacheStats {
        CacheStats {
            hit_rate: Some(0.987),
            hits: 987,
            misses: 13,
            cached_bytes: 1 << 20,
            dirty_bytes: 4096,
            dirty_limit_bytes: 1 << 20,
            written_back_bytes: 0,
            failed_writebacks: 0,
            size_bytes: 4 << 20,
            size_wanted_bytes: 3 << 20,
            tables_bytes: 1 << 16,
            memory_bytes: 5 << 20,
            memory_max_bytes: None,
            merged: 2,
            readahead: 40,
            readahead_used: 30,
            readahead_wasted: 5,
            evicted: 6,
            writeback_bytes: 0,
            frame_waits: 7,
            dirty_waits: 8,
            waits: vec![
                WaitStats { name: "page".into(), count: 4, time_us: 1234 },
                WaitStats { name: "frame".into(), ..WaitStats::default() },
            ],
        }
    }

    #[test]
    fn the_ladder_of_a_drive_is_shown_rung_by_rung() {
        let mut statistics = uaio_driver::nvme::ErrorStatistics::NONE;
        (statistics.resets, statistics.sent_again) = (1, 7);
        let drive = DriveStats {
            failure: None,
            counts: statistics.fields().map(|(name, count)| (name.into(), count)).collect(),
            events: vec![
                uaio_driver::nvme::Event::Reset(uaio_driver::nvme::Failure::Fatal).to_string(),
                uaio_driver::nvme::Event::Back.to_string(),
            ],
        };
        let text = drive_table(&drive);
        let lines: Vec<_> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        for wanted in [
            vec!["drive", "serves"],
            vec!["resets", "1"],
            vec!["sent", "again", "7"],
            vec!["given", "up", "0"],
            vec!["event:", "it", "serves", "again"],
        ] {
            assert!(lines.contains(&wanted), "{wanted:?} in {text}");
        }
        assert!(text.contains("event: reset: the controller reports a fatal status"), "{text}");
        let gone = DriveStats { failure: Some("gone".into()), ..drive };
        assert!(drive_table(&gone).contains("given up: gone"));
    }

    #[test]
    fn a_number_has_its_unit_and_what_did_not_happen_has_a_dash() {
        let operation = OperationStats {
            name: "read".into(),
            count: 3,
            bytes: 3 << 20,
            errors: 0,
            p50_us: Some(12.34),
            p99_us: Some(99.0),
            p99_9_us: None,
            p99_99_us: None,
        };
        let stats = Stats {
            id: 0,
            path: "/dev/ublkb0".into(),
            uptime_s: 7,
            in_flight: 1,
            operations: vec![operation],
            cache: Some(cache()),
            drive: None,
        };
        assert_eq!(
            table_of(&stats),
            "path                  /dev/ublkb0\n\
             uptime (s)            7\n\
             in flight (requests)  1\n\
             \n\
             OPERATION  COUNT  DATA MiB  ERRORS  p50 µs  p99 µs  p99.9 µs  p99.99 µs\n\
             read           3         3       0    12.3    99.0         -          -\n\
             \n\
             hit rate (%)           98.7\n\
             hits                   987\n\
             misses                 13\n\
             merged misses          2\n\
             read ahead (pages)     40\n\
             \x20 of these used        30\n\
             \x20 of these wasted      5\n\
             evicted (pages)        6\n\
             size (MiB)             4, going to 3\n\
             tables (MiB)           0.1\n\
             memory in all (MiB)    5\n\
             memory limit (MiB)     -\n\
             cached (MiB)           1\n\
             dirty (MiB)            0.1\n\
             under writeback (MiB)  0\n\
             dirty limit (MiB)      1\n\
             written back (MiB)     0\n\
             failed writebacks      0\n\
             \n\
             WAITS FOR  COUNT  TIME ms  MEAN µs\n\
             page           4      1.2    308.5\n\
             frame          0      0.0        -\n"
        );
    }
}
