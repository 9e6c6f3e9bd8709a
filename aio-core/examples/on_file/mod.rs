//! What the benches on a file share: the file, a volume on it, random places, and fio as a peer.
#![allow(dead_code, unreachable_pub, reason = "each bench uses a part")]

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustix::fs::Advice;
use uaio_core::{OpenOptions, Reactor, Volume, VolumeOptions};
use uaio_driver::uring::{UringDevice, UringOptions};
use uaio_driver::{BlockDevice, DmaPool, FRAME_SIZE, PoolOptions, SystemClock};
use uaio_page_cache::{Cache, CacheOptions};

pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How many rounds: the first argument, or `default`.
pub fn rounds(default: usize) -> Result<usize> {
    Ok(std::env::args().nth(1).map_or(Ok(default), |rounds| rounds.parse())?)
}

/// A file of random bytes, on the disk; it is removed when this goes.
pub struct TestFile {
    path: PathBuf,
    pub size_bytes: u64,
}

impl TestFile {
    /// In `target/bench`, for the directory for temporary files is often in memory.
    pub fn new(name: &str, size_bytes: u64) -> Result<Self> {
        let dir = Path::new("target").join("bench");
        std::fs::create_dir_all(&dir)?;
        let path = dir.join(format!("{name}-{}", std::process::id()));
        let this = Self { path, size_bytes };
        let mut file = File::create_new(&this.path)?;
        let mut random = fastrand::Rng::with_seed(1);
        let mut chunk = vec![0; 1 << 20];
        for _ in 0..size_bytes >> 20 {
            random.fill(&mut chunk);
            file.write_all(&chunk)?;
        }
        file.sync_all()?;
        Ok(this)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the kernel let go of what it has cached of the file.
    pub fn drop_caches(&self) -> Result<()> {
        let file = File::open(&self.path)?;
        file.sync_all()?;
        Ok(rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?)
    }
}

impl Drop for TestFile {
    fn drop(&mut self) {
        // What is left behind is under `target`.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A cold cache of `frames` frames over the file, served by a reactor without a thread.
pub struct Served {
    pub reactor: Reactor,
    pub volume: Volume,
    device: Arc<UringDevice>,
}

impl Served {
    pub fn new(file: &TestFile, frames: usize) -> Result<Self> {
        Self::with(&UringOptions::existing(file.path()), frames)
    }

    pub fn with(options: &UringOptions, frames: usize) -> Result<Self> {
        let pool = DmaPool::new(PoolOptions::frames(frames + 64))?;
        let device = Arc::new(UringDevice::open(options, pool)?);
        let below: Arc<dyn BlockDevice> = device.clone();
        let cache = Cache::new(below, CacheOptions::frames(frames))?;
        let reactor = Reactor::new(Arc::new(SystemClock::new()))?;
        let volume = reactor.attach(cache, VolumeOptions::default())?;
        device.warnings().iter().for_each(|warning| eprintln!("{warning}"));
        Ok(Self { reactor, volume, device })
    }

    pub fn open(&self, options: OpenOptions) -> uaio_core::Handle {
        self.volume.open(options)
    }

    pub fn close(self) -> Result<()> {
        self.reactor.close().map_err(|errors| errors[0].to_string())?;
        Ok(self.device.close()?)
    }
}

/// Frames for all of a file: they are spread over the shards by hash, not evenly.
pub fn frames_for(file: &TestFile) -> usize {
    file.size_bytes as usize / FRAME_SIZE * 5 / 4
}

/// Every block of a file once, in an order of its own for each seed.
pub fn every_block(file: &TestFile, seed: u64) -> Vec<u64> {
    let mut offsets: Vec<u64> = (0..file.size_bytes).step_by(FRAME_SIZE).collect();
    fastrand::Rng::with_seed(seed).shuffle(&mut offsets);
    offsets
}

/// What fio says about one pass of cold 4 KiB random reads at depth 32, every block once.
pub struct Fio {
    pub iops: f64,
    /// 99 of 100 submissions took no longer, in nanoseconds.
    pub submit_p99_ns: f64,
}

impl Fio {
    pub fn cold_random_reads(file: &TestFile, engine: &str, seed: u64) -> Result<Self> {
        Self::random_reads(file, engine, false, seed)
    }

    /// The same past the kernel's cache: what the disk and the way to it give at most.
    pub fn direct_random_reads(file: &TestFile, engine: &str, seed: u64) -> Result<Self> {
        Self::random_reads(file, engine, true, seed)
    }

    fn random_reads(file: &TestFile, engine: &str, direct: bool, seed: u64) -> Result<Self> {
        file.drop_caches()?;
        let mut fio = Command::new("fio");
        fio.args(["--name=cold", "--rw=randread", "--bs=4k", "--iodepth=32"])
            .arg(format!("--direct={}", u8::from(direct)))
            .args(["--invalidate=1", "--output-format=json", "--slat_percentiles=1"])
            .args(["--percentile_list=99"])
            .arg(format!("--ioengine={engine}"))
            .arg(format!("--filename={}", file.path().display()))
            .arg(format!("--size={}", file.size_bytes))
            .arg(format!("--randseed={seed}"));
        let said = fio.output().map_err(|error| format!("fio: {error}"))?;
        let text = String::from_utf8(said.stdout)?;
        // Notes may come before the document.
        let start = text.find('{').ok_or("fio said nothing")?;
        let json: serde_json::Value = serde_json::from_str(&text[start..])?;
        let read = &json["jobs"][0]["read"];
        let number = |value: &serde_json::Value| value.as_f64().ok_or("fio gave no figure");
        let all = file.size_bytes / FRAME_SIZE as u64;
        if read["total_ios"].as_u64() != Some(all) {
            return Err(format!("fio read {} of {all} blocks", read["total_ios"]).into());
        }
        Ok(Self {
            iops: number(&read["iops"])?,
            submit_p99_ns: number(&read["slat_ns"]["percentile"]["99.000000"])?,
        })
    }
}
