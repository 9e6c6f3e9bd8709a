//! Devices as people and programs name them: `nvme:0000:00:04.0/1`, `file:PATH`, `ram:1G`.

mod size;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use crate::block::BlockDevice;
use crate::clock::Clock;
use crate::dma::DmaPool;
use crate::error::DeviceError;
use crate::nvme::{ControllerOptions, NvmeController};
use crate::ram::RamDevice;
use crate::uring::{UringDevice, UringOptions};
use crate::vfio::PciAddress;

pub use size::ByteSize;

/// The block size of memory, in bytes, if nothing else is asked for.
const RAM_BLOCK_SIZE: u32 = 512;

/// Where the blocks are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// `nvme:0000:00:04.0[/NAMESPACE]`: a namespace of a drive that is bound to vfio-pci.
    Nvme {
        /// The drive.
        address: PciAddress,
        /// The namespace; without one, the first that is active.
        namespace: Option<u32>,
    },
    /// `file:PATH[,size=SIZE]`: a file, or a block device of the kernel, by io_uring.
    File {
        /// The file.
        path: PathBuf,
        /// Create it with this size if it is not there.
        size: Option<ByteSize>,
    },
    /// `ram:SIZE`: memory, gone with the server.
    Ram {
        /// How much.
        size: ByteSize,
    },
}

impl Backend {
    /// Opens the device, with the block size that is its own; a file that is not there is created if
    /// a size is given. Its memory comes from `pool`, its deadlines from `clock`. Blocks.
    ///
    /// # Errors
    ///
    /// What the device or the kernel said.
    pub fn open(
        &self,
        pool: &DmaPool,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<dyn BlockDevice>, DeviceError> {
        match self {
            Self::Ram { size } => {
                Ok(Arc::new(RamDevice::new(size.0, RAM_BLOCK_SIZE, pool.clone())?))
            }
            Self::File { path, size } => {
                let options = match size {
                    Some(size) if !path.exists() => UringOptions::create(path, size.0),
                    _ => UringOptions::existing(path),
                };
                Ok(Arc::new(UringDevice::open(&options, pool.clone())?))
            }
            Self::Nvme { address, namespace } => {
                let options = ControllerOptions::default();
                let controller = NvmeController::open(*address, pool.clone(), options, clock)?;
                let first = || controller.namespaces().first().map(|namespace| namespace.nsid);
                let nsid = namespace.or_else(first).ok_or_else(|| {
                    DeviceError::Invalid(format!("{self} has no active namespace"))
                })?;
                Ok(controller.namespace(nsid)?)
            }
        }
    }
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("nvme", rest)) => nvme(rest),
            Some(("file", rest)) => file(rest),
            Some(("ram", rest)) => ram(rest),
            _ => Err(format!(
                "`{text}` is not a backend: write nvme:0000:00:04.0[/NAMESPACE], \
                 file:PATH[,size=1G] or ram:1G"
            )),
        }
    }
}

fn nvme(rest: &str) -> Result<Backend, String> {
    let (address, namespace) = match rest.split_once('/') {
        None => (rest, None),
        Some((address, id)) => {
            let valid = id.parse::<u32>().ok().filter(|&id| id != 0 && id != u32::MAX);
            let id = valid
                .ok_or_else(|| format!("`{id}` is not a namespace: write a number from 1 on"))?;
            (address, Some(id))
        }
    };
    let address = address.parse().map_err(|error: DeviceError| error.to_string())?;
    Ok(Backend::Nvme { address, namespace })
}

fn file(rest: &str) -> Result<Backend, String> {
    let (path, size) = match option(rest) {
        Some((path, "size", size)) => {
            let size: ByteSize = size.parse()?;
            if size.0 == 0 {
                return Err("a file of size 0 has no blocks: write size=1G or so".into());
            }
            (path, Some(size))
        }
        _ => (rest, None),
    };
    match option(path) {
        Some((_, "size", _)) => return Err("size is given twice".into()),
        Some((_, key, _)) => {
            return Err(format!("`{key}` is not an option of file: the only one is size"));
        }
        None => {}
    }
    if path.is_empty() {
        return Err("file: needs a path: write file:PATH[,size=1G]".into());
    }
    if path.contains('\0') {
        return Err("a path cannot contain a NUL".into());
    }
    Ok(Backend::File { path: path.into(), size })
}

/// Splits `PATH,key=value`. Only what stands at the end and has no slash is an option, so commas in a
/// path do no harm, but in a name that looks like an option itself: a file must not be created for
/// a slip of the pen.
fn option(rest: &str) -> Option<(&str, &str, &str)> {
    let (path, last) = rest.rsplit_once(',')?;
    let (key, value) = last.split_once('=').filter(|_| !last.contains('/'))?;
    Some((path, key, value))
}

fn ram(rest: &str) -> Result<Backend, String> {
    let size: ByteSize = rest.parse()?;
    if size.0 == 0 {
        return Err("ram: of size 0 has no blocks: write ram:1G or so".into());
    }
    Ok(Backend::Ram { size })
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nvme { address, namespace: None } => write!(f, "nvme:{address}"),
            Self::Nvme { address, namespace: Some(id) } => write!(f, "nvme:{address}/{id}"),
            Self::File { path, .. } => write!(f, "file:{}", path.display()),
            Self::Ram { size } => write!(f, "ram:{size}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Backend {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn refused(text: &str) -> String {
        text.parse::<Backend>().expect_err(text)
    }

    #[test]
    fn each_form_is_read_and_written_back() {
        for text in [
            "nvme:0000:00:04.0",
            "nvme:0000:00:04.0/2",
            "file:/srv/a,b.img",
            "file:/srv/a,b=c/d.img",
            "ram:1G",
        ] {
            assert_eq!(parsed(text).to_string(), text);
        }
        assert_eq!(parsed("nvme:00:04.0").to_string(), "nvme:0000:00:04.0");
        let Backend::File { path, size } = parsed("file:/srv/a,b.img,size=1G") else {
            panic!("not a file");
        };
        assert_eq!((path, size), (PathBuf::from("/srv/a,b.img"), Some(ByteSize(1 << 30))));
    }

    #[test]
    fn each_mistake_has_its_own_line() {
        assert!(refused("").starts_with("`` is not a backend: write nvme:"));
        assert!(refused("rbd:pool/image").contains("is not a backend"));
        assert!(refused("nvme:0000:00:04.8").contains("is not a PCI address"));
        assert!(refused("nvme:0000:00:04.0/0").contains("`0` is not a namespace"));
        assert!(refused("nvme:0000:00:04.0/4294967295").contains("is not a namespace"));
        assert!(refused("file:").contains("needs a path"));
        assert!(refused("file:,size=1G").contains("needs a path"));
        assert!(refused("file:/a,sise=1G").contains("`sise` is not an option of file"));
        assert!(refused("file:/a,sise=1G,size=1G").contains("`sise` is not an option of file"));
        assert!(refused("file:/a,size=64M,size=32M").contains("size is given twice"));
        assert!(refused("file:/a,size=0").contains("no blocks"));
        assert!(refused("file:/a,size=1X").contains("`1X` is not a size"));
        assert!(refused("ram:").contains("`` is not a size"));
        assert!(refused("ram:0").contains("no blocks"));
    }
}
