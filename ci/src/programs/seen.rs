//! What was seen of a program's processes: by strace, and by the library itself.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::Interface;
use super::stage::Side;

/// What says in the library's words that it does not serve.
const FELL_THROUGH: &str = "; using the AIO of the C library and the kernel";

/// What was seen of the processes of one side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Calls of io_setup(2) and io_submit(2) that reached the kernel.
    pub kernel_aio: usize,
    /// Calls of io_uring_setup(2).
    pub rings: usize,
    /// Requests of libaio that the library served.
    pub libaio: u64,
    /// Those of POSIX AIO.
    pub posix: u64,
    /// Whether the library said that it serves nothing.
    pub fell_through: bool,
}

impl Seen {
    /// Reads what strace and the library wrote into the folder of a run.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or a line of the library's is none.
    pub fn collect(dir: &Path) -> Result<Self> {
        let mut seen = Self::default();
        for trace in fs::read_dir(dir.join("trace")).into_iter().flatten() {
            seen.calls(&fs::read_to_string(trace?.path())?);
        }
        if let Ok(stats) = fs::read_to_string(dir.join("stats")) {
            seen.stats(&stats)?;
        }
        let log = fs::read(dir.join("log"))?;
        seen.fell_through = String::from_utf8_lossy(&log).contains(FELL_THROUGH);
        Ok(seen)
    }

    /// Counts the calls in what strace wrote.
    ///
    /// A call with a context that nobody has made is passed on to the kernel, and comes back as EINVAL.
    fn calls(&mut self, trace: &str) {
        for line in trace.lines() {
            let Some((call, returned)) = line.rsplit_once(" = ") else { continue };
            let call = call.split_once(' ').map_or("", |(_, call)| call.trim_start());
            let is = |name: &str| {
                call.strip_prefix("<... ")
                    .unwrap_or(call)
                    .strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with('(') || rest.starts_with(" resumed>"))
            };
            let refused = returned.starts_with("-1 EINVAL");
            self.kernel_aio += usize::from(!refused && (is("io_submit") || is("io_setup")));
            self.rings += usize::from(!refused && is("io_uring_setup"));
        }
    }

    /// Adds the lines that the library's processes left.
    fn stats(&mut self, lines: &str) -> Result<()> {
        for line in lines.lines() {
            let said: serde_json::Value = serde_json::from_str(line)
                .with_context(|| format!("the library's line: {line}"))?;
            let count = |name: &str| {
                said[name]
                    .as_u64()
                    .with_context(|| format!("the library's line has no {name}: {line}"))
            };
            self.libaio += count(Interface::Libaio.counter())?;
            self.posix += count(Interface::Posix.counter())?;
        }
        Ok(())
    }

    /// Whether the program went the way that `side` is for; if not, why.
    ///
    /// Without the library the kernel must have seen Linux AIO, or the test could not tell anything.
    ///
    /// # Errors
    ///
    /// What it did instead.
    pub fn judge(&self, interface: Interface, side: Side) -> std::result::Result<(), String> {
        let served = match interface {
            Interface::Libaio => self.libaio,
            Interface::Posix => self.posix,
        };
        match (side, interface) {
            (Side::Without, Interface::Libaio) if self.kernel_aio == 0 => {
                Err("strace saw no Linux AIO where there must be".into())
            }
            (Side::Without, _) if self.libaio + self.posix > 0 => {
                Err("the library served where it is not".into())
            }
            (Side::Without, _) => Ok(()),
            _ if self.fell_through => Err("the library said that it cannot serve".into()),
            _ if served == 0 => {
                Err(format!("the library's counter of {} did not move", interface.counter()))
            }
            _ if self.kernel_aio > 0 => {
                Err(format!("{} calls of Linux AIO reached the kernel", self.kernel_aio))
            }
            _ if self.rings == 0 => Err("strace saw no io_uring where there must be".into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_lines_are_counted() {
        let mut seen = Seen::default();
        seen.calls(
            "12 io_setup(32, [0x7f]) = 0\n12 io_submit(0x7f, 1, [{x}]) = 1\n12 io_uring_setup(8, {}) = 3\n\
             13 io_submit(0x7f, 1, <unfinished ...>\n13 <... io_submit resumed>) = 1\n13 io_submit(0x99, 1, [{x}]) = -1 EINVAL (Invalid argument)\n\
             13 +++ exited with 0 +++\n",
        );
        seen.stats("{\"pid\":1,\"libaio\":3,\"posix\":0}\n{\"pid\":2,\"libaio\":4,\"posix\":1}\n")
            .unwrap();
        let wanted = Seen { kernel_aio: 3, rings: 1, libaio: 7, posix: 1, fell_through: false };
        assert_eq!(seen, wanted);
        assert!(seen.stats("{\"pid\":1,\"libaio\":3}").is_err());
    }

    #[test]
    fn each_side_has_to_go_its_way() {
        let kernel = Seen { kernel_aio: 5, ..Seen::default() };
        let ours = Seen { libaio: 5, rings: 1, ..Seen::default() };
        let (libaio, posix) = (Interface::Libaio, Interface::Posix);
        assert_eq!(kernel.judge(libaio, Side::Without), Ok(()));
        assert_eq!(Seen::default().judge(posix, Side::Without), Ok(()));
        assert_eq!(ours.judge(libaio, Side::Preload), Ok(()));
        assert_eq!(ours.judge(libaio, Side::DropIn), Ok(()));
        for (seen, interface, side) in [
            (Seen::default(), libaio, Side::Without),
            (ours, posix, Side::Without),
            (kernel, libaio, Side::Preload),
            (ours, posix, Side::Preload),
            (Seen { kernel_aio: 1, ..ours }, libaio, Side::Preload),
            (Seen { rings: 0, ..ours }, libaio, Side::DropIn),
            (Seen { fell_through: true, ..ours }, libaio, Side::Preload),
        ] {
            assert!(seen.judge(interface, side).is_err(), "{seen:?} {interface:?} {side:?}");
        }
    }
}
