//! What is carried into a guest: scripts, binaries and settings, as one small image.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::lab::image;
use crate::process;

/// The second stage of the guest's init.
const STAGE_2: &str = include_str!("../guest/stage2.sh");

/// Room left in the image for what the guest writes.
const SPARE: u64 = 256 << 20;

/// A payload being gathered.
#[derive(Debug)]
pub struct Payload {
    tree: PathBuf,
    env: Vec<(String, String)>,
}

impl Payload {
    /// An empty payload, gathered in the folder `dir`.
    ///
    /// # Errors
    ///
    /// Those of the file system.
    pub fn new(dir: &Path) -> Result<Self> {
        let tree = dir.join("payload");
        fs::create_dir_all(tree.join("bin"))?;
        fs::write(tree.join("stage2.sh"), STAGE_2)?;
        Ok(Self { tree, env: Vec::new() })
    }

    /// Sets a variable for the guest's main script.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.env.push((name.to_string(), value.into()));
    }

    /// Puts a file of this content at `/uaio/NAME`.
    ///
    /// # Errors
    ///
    /// Those of the file system.
    pub fn write(&self, name: &str, content: &str) -> Result<()> {
        fs::write(self.tree.join(name), content).with_context(|| format!("cannot write {name}"))
    }

    /// Copies the file or folder `from` to `/uaio/INTO/`, keeping its name and mode.
    ///
    /// # Errors
    ///
    /// When there is no such file, or it cannot be copied.
    pub fn copy(&self, from: &Path, into: &str) -> Result<()> {
        if !from.exists() {
            bail!("no file {}", from.display());
        }
        let to = self.tree.join(into);
        fs::create_dir_all(&to)?;
        process::quiet(Command::new("cp").args(["-rL", "--preserve=mode"]).arg(from).arg(to))
    }

    /// Copies the program `from` to `/uaio/INTO/NAME`, without its debug information. `bin` is on the guest's PATH.
    ///
    /// # Errors
    ///
    /// When there is no such program, or it cannot be copied.
    pub fn program(&self, from: &Path, into: &str, name: &str) -> Result<()> {
        fs::create_dir_all(self.tree.join(into))?;
        let to = self.tree.join(into).join(name);
        fs::copy(from, &to).with_context(|| format!("no program {}", from.display()))?;
        process::quiet(Command::new("strip").arg("--strip-debug").arg(to))
    }

    /// Makes the image in `dir` and returns its path.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn finish(self, dir: &Path) -> Result<PathBuf> {
        let env: String =
            self.env.iter().map(|(name, value)| format!("{name}={}\n", quoted(value))).collect();
        self.write("env", &env)?;
        let image = dir.join("payload.img");
        image::plain(&self.tree, &image, SPARE)?;
        fs::remove_dir_all(&self.tree)?;
        Ok(image)
    }
}

/// `text` as one word of a shell.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_word_is_one_word_whatever_is_in_it() {
        let odd = "it's $HOME; \"x\" `y`\n*";
        let said =
            process::output(Command::new("sh").arg("-c").arg(format!("printf %s {}", quoted(odd))));
        assert_eq!(said.unwrap(), odd);
    }
}
