//! The kernels that guests boot: Debian's cloud kernels, unpacked and never installed.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use super::Lab;
use super::apt::Apt;
use crate::process;

/// The suites that hold the kernels.
const SUITES: &[&str] = &["bookworm-security", "trixie-backports"];

/// The flavour: small, with everything a virtual machine has.
const FLAVOUR: &str = "-cloud-amd64";

/// The kernel series the guest scenarios run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Series {
    /// A long-term kernel whose ublk has none of the zero-copy features.
    V6_12,
    /// A recent kernel with every ublk feature.
    V7_2,
}

impl Series {
    /// Both, oldest first.
    pub const ALL: [Self; 2] = [Self::V6_12, Self::V7_2];

    /// The series as (major, minor).
    fn version(self) -> (u32, u32) {
        match self {
            Self::V6_12 => (6, 12),
            Self::V7_2 => (7, 2),
        }
    }

    /// What a package that has the kernel image in it is called before its version.
    fn package(self) -> &'static str {
        match self {
            Self::V6_12 => "linux-image-",
            Self::V7_2 => "linux-binary-",
        }
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.version();
        write!(f, "{major}.{minor}")
    }
}

impl FromStr for Series {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match Self::ALL.iter().find(|series| series.to_string() == text) {
            Some(series) => Ok(*series),
            None => bail!("no kernel {text}: there are 6.12 and 7.2"),
        }
    }
}

/// An unpacked kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// What `uname -r` says in it.
    pub release: String,
    /// The image QEMU loads.
    pub image: PathBuf,
    /// The folder `lib/modules/RELEASE`, with depmod's files.
    pub modules: PathBuf,
}

impl Kernel {
    /// Returns the newest kernel of `series`, fetching it when the lab has none.
    ///
    /// # Errors
    ///
    /// When it cannot be fetched or unpacked.
    pub fn get(lab: &Lab, series: Series) -> Result<Self> {
        let made_from = format!("{} {FLAVOUR} {SUITES:?}", series.package());
        let dir = lab.entry(&format!("kernel-{series}"), &made_from, |dir| unpack(series, dir))?;
        let release = fs::read_to_string(dir.join("release"))?;
        Ok(Self {
            image: dir.join("vmlinuz"),
            modules: dir.join("lib/modules").join(&release),
            release,
        })
    }
}

/// Fetches and unpacks the newest kernel of `series` into `dir`.
fn unpack(series: Series, dir: &Path) -> Result<()> {
    let apt = Apt::open(dir.join("apt"), SUITES)?;
    let names = apt.names(series.package())?;
    let release = newest(&names, series.package(), series.version())
        .with_context(|| format!("the Debian mirror has no kernel {series} or newer"))?;
    eprintln!("fetching kernel {release}");
    let packages: Vec<String> = match series {
        Series::V6_12 => vec![format!("linux-image-{release}")],
        Series::V7_2 => {
            ["binary", "modules", "base"].map(|part| format!("linux-{part}-{release}")).into()
        }
    };
    let tree = dir.join("tree");
    apt.unpack(&packages, &tree)?;
    // Newer packages have their files below /usr, and the image among the modules.
    let modules = ["usr/lib/modules", "lib/modules"]
        .map(|path| tree.join(path).join(&release))
        .into_iter()
        .find(|path| path.is_dir())
        .with_context(|| format!("kernel {release} came without modules"))?;
    let image = [modules.join("vmlinuz"), tree.join("boot").join(format!("vmlinuz-{release}"))]
        .into_iter()
        .find(|path| path.is_file())
        .with_context(|| format!("kernel {release} came without an image"))?;
    fs::rename(image, dir.join("vmlinuz"))?;
    fs::create_dir_all(dir.join("lib/modules"))?;
    fs::rename(modules, dir.join("lib/modules").join(&release))?;
    // On the host, because it takes a guest without KVM many times as long.
    process::quiet(Command::new("/sbin/depmod").arg("-b").arg(dir).arg(&release))?;
    fs::remove_dir_all(tree)?;
    fs::remove_dir_all(dir.join("apt"))?;
    fs::write(dir.join("release"), release)?;
    Ok(())
}

/// The newest release of the wanted series among package names; when the mirror has moved on, the one of the next series.
fn newest(names: &[String], prefix: &str, wanted: (u32, u32)) -> Option<String> {
    let mut releases: Vec<((u32, u32), u32, &str)> = names
        .iter()
        .filter_map(|name| name.strip_prefix(prefix))
        .filter_map(|release| {
            let version = release.strip_suffix(FLAVOUR)?.split('+').next()?;
            let mut numbers = version.split('.').map(|part| part.parse::<u32>().ok());
            let series = (numbers.next()??, numbers.next()??);
            Some((series, numbers.next()??, release))
        })
        .filter(|(series, _, _)| *series >= wanted)
        .collect();
    let series = releases.iter().map(|(series, _, _)| *series).min()?;
    releases.retain(|release| release.0 == series);
    releases.into_iter().max().map(|(_, _, release)| release.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn the_newest_of_the_series_is_chosen_by_number_and_flavour() {
        let names = names(&[
            "linux-image-6.12.9+deb12-cloud-amd64",
            "linux-image-6.12.101+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64-dbg",
            "linux-image-6.12.117+deb12-amd64",
            "linux-image-6.12-cloud-amd64",
            "linux-image-6.16.3+deb13-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
        ]);
        assert_eq!(
            newest(&names, "linux-image-", (6, 12)).as_deref(),
            Some("6.12.101+deb12-cloud-amd64")
        );
    }

    #[test]
    fn the_next_series_stands_in_when_the_mirror_has_moved_on() {
        let names = names(&[
            "linux-binary-7.1.3+deb13-cloud-amd64",
            "linux-binary-7.3.4+deb13-cloud-amd64",
            "linux-binary-7.4.1+deb13-cloud-amd64",
            "linux-binary-unsigned-7.2.1+deb13-cloud-amd64",
        ]);
        assert_eq!(
            newest(&names, "linux-binary-", (7, 2)).as_deref(),
            Some("7.3.4+deb13-cloud-amd64")
        );
        assert_eq!(newest(&names, "linux-binary-", (8, 0)), None);
    }

    #[test]
    fn a_series_reads_back_what_it_writes() {
        for series in Series::ALL {
            assert_eq!(series.to_string().parse::<Series>().unwrap(), series);
        }
        assert!("6.1".parse::<Series>().is_err());
    }
}
