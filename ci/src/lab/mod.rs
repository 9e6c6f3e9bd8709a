//! The lab: everything a guest is made of, under `target/lab/`, each thing made once.
//!
//! | entry | what | made by |
//! |---|---|---|
//! | `kernel-…/` | a kernel image and its modules | [`kernels`] |
//! | `root-…/` | the guest's root file system as a disk image | [`image`] |
//! | `accel-…/` | whether KVM boots a guest here | [`crate::guest`] |
//! | `run/PID-…/` | images and logs of one boot | [`Lab::run_dir`] |
//!
//! An entry's name ends in a hash of what it is made from. It is made in a folder of another name and renamed at the
//! end, so that whatever was interrupted is made again and whatever exists is whole. `UAIO_LAB` names another folder, for
//! sharing a lab between work trees.

pub mod apt;
pub mod image;
pub mod kernels;

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process;

use anyhow::{Context, Result};

/// The folder that holds the lab.
#[derive(Debug, Clone)]
pub struct Lab {
    root: PathBuf,
}

impl Lab {
    /// Opens the lab of this work tree, making the folder when there is none, and clears away what dead runs left.
    ///
    /// # Errors
    ///
    /// When the folder cannot be made.
    pub fn open() -> Result<Self> {
        let root = match std::env::var_os("UAIO_LAB") {
            Some(path) => PathBuf::from(path),
            None => target_dir().join("lab"),
        };
        fs::create_dir_all(root.join("run"))
            .with_context(|| format!("cannot make {}", root.display()))?;
        let lab = Self { root: root.canonicalize()? };
        lab.clear_dead_runs();
        Ok(lab)
    }

    /// Returns the entry `name` made from `made_from`, calling `make` with an empty folder when there is none yet.
    ///
    /// Blocks while another process makes something in the same lab.
    ///
    /// # Errors
    ///
    /// Those of `make`, and of the file system.
    pub fn entry(
        &self,
        name: &str,
        made_from: &str,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let path = self.root.join(format!("{name}-{:08x}", hash(made_from)));
        if path.is_dir() {
            return Ok(path);
        }
        let lock = File::create(self.root.join("lock"))?;
        if lock.try_lock().is_err() {
            eprintln!("waiting for another cargo ci that is making the lab");
            lock.lock()?;
        }
        if path.is_dir() {
            return Ok(path);
        }
        // We hold the lock, so nobody is at work on these.
        for left in fs::read_dir(&self.root)?.flatten() {
            if left.path().extension().is_some_and(|ext| ext == "half") {
                fs::remove_dir_all(left.path())?;
            }
        }
        let half = self.root.join(format!("{name}.half"));
        fs::create_dir_all(&half)?;
        make(&half).with_context(|| format!("making {name}"))?;
        fs::rename(&half, &path)?;
        Ok(path)
    }

    /// Makes an empty folder for the files of one boot.
    ///
    /// # Errors
    ///
    /// Those of the file system.
    pub fn run_dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.root.join("run").join(format!("{}-{name}", process::id()));
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// Where the logs of past runs stay.
    ///
    /// # Errors
    ///
    /// Those of the file system.
    pub fn log_dir(&self) -> Result<PathBuf> {
        let dir = self.root.join("logs");
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// Removes the run folders of processes that are gone; their drive images are large.
    fn clear_dead_runs(&self) {
        let Ok(runs) = fs::read_dir(self.root.join("run")) else {
            return;
        };
        for run in runs.flatten() {
            let name = run.file_name();
            let pid = name.to_string_lossy();
            let pid = pid.split('-').next().unwrap_or_default();
            if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
                // Best effort: another cargo ci may be clearing the same folder.
                let _ = fs::remove_dir_all(run.path());
            }
        }
    }
}

/// The folder of the workspace.
pub fn workspace_dir() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// Cargo's target folder.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(path) => PathBuf::from(path),
        None => workspace_dir().join("target"),
    }
}

/// A short stable name for `text`.
fn hash(text: &str) -> u32 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    // The low half is as good as any.
    (hasher.finish() & u64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> Lab {
        let root = std::env::temp_dir().join(format!("uaio-lab-test-{}-{name}", process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("run")).unwrap();
        Lab { root }
    }

    #[test]
    fn an_entry_is_made_once_and_again_when_what_it_is_made_from_changes() {
        let lab = scratch("once");
        let mut made = 0;
        for from in ["a", "a", "b", "a"] {
            lab.entry("thing", from, |_| {
                made += 1;
                Ok(())
            })
            .unwrap();
        }
        assert_eq!(made, 2);
        fs::remove_dir_all(&lab.root).unwrap();
    }

    #[test]
    fn a_half_made_entry_is_made_again_from_an_empty_folder() {
        let lab = scratch("half");
        let failed = lab.entry("thing", "a", |dir| {
            fs::write(dir.join("rest"), "x")?;
            anyhow::bail!("interrupted")
        });
        assert!(failed.is_err());
        let path = lab
            .entry("thing", "a", |dir| {
                assert!(!dir.join("rest").exists());
                Ok(())
            })
            .unwrap();
        assert!(path.is_dir());
        fs::remove_dir_all(&lab.root).unwrap();
    }

    #[test]
    fn only_the_runs_of_dead_processes_are_cleared() {
        let lab = scratch("runs");
        let ours = lab.run_dir("mine").unwrap();
        let dead = lab.root.join("run/4194999-dead");
        fs::create_dir_all(&dead).unwrap();
        lab.clear_dead_runs();
        assert!(ours.exists());
        assert!(!dead.exists());
        fs::remove_dir_all(&lab.root).unwrap();
    }
}
