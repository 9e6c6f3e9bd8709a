//! Packages from Debian suites that the machine itself does not use.
//!
//! The mirrors are taken from the machine's own apt configuration, so that a private mirror, a proxy or a login set there
//! holds here too; its lists and its package database are not touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// The keys that sign Debian's archive.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where the machine gets Debian from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirrors {
    /// The main archive.
    pub main: String,
    /// The archive of security updates.
    pub security: String,
}

impl Mirrors {
    /// Reads the machine's apt configuration.
    ///
    /// # Errors
    ///
    /// When it names no Debian mirror.
    pub fn of_this_machine() -> Result<Self> {
        let mut sources = Vec::new();
        let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
        if let Ok(dir) = fs::read_dir("/etc/apt/sources.list.d") {
            files.extend(dir.flatten().map(|entry| entry.path()));
        }
        for file in files {
            let Ok(text) = fs::read_to_string(&file) else {
                continue;
            };
            match file.extension().and_then(|ext| ext.to_str()) {
                Some("list") => sources.extend(one_line_sources(&text)),
                Some("sources") => sources.extend(deb822_sources(&text)),
                _ => {}
            }
        }
        Self::choose(&sources).context("apt's configuration names no Debian mirror")
    }

    /// Picks the main and the security archive out of (URI, suite) pairs.
    fn choose(sources: &[(String, String)]) -> Option<Self> {
        let is_debian = |uri: &str| uri.trim_end_matches('/').ends_with("debian");
        let main = sources
            .iter()
            .find(|(uri, suite)| is_debian(uri) && !suite.contains("security"))
            .map(|(uri, _)| uri.clone())?;
        let security = sources.iter().find(|(_, suite)| suite.ends_with("-security")).map_or_else(
            // Mirrors of the main archive keep the other beside it.
            || format!("{}-security", main.trim_end_matches('/')),
            |(uri, _)| uri.clone(),
        );
        Some(Self { main, security })
    }

    /// The line of a sources.list for `suite`.
    pub fn line(&self, suite: &str) -> String {
        let uri = if suite.ends_with("-security") { &self.security } else { &self.main };
        format!("deb [arch=amd64 signed-by={KEYRING}] {uri} {suite} main")
    }
}

/// A private set of package lists.
#[derive(Debug)]
pub struct Apt {
    root: PathBuf,
}

impl Apt {
    /// Fetches the package lists of `suites` into the folder `root`.
    ///
    /// # Errors
    ///
    /// When the mirrors are not known or do not answer.
    pub fn open(root: PathBuf, suites: &[&str]) -> Result<Self> {
        let mirrors = Mirrors::of_this_machine()?;
        fs::create_dir_all(root.join("lists/partial"))?;
        fs::create_dir_all(root.join("cache/archives/partial"))?;
        let lines: Vec<String> = suites.iter().map(|suite| mirrors.line(suite)).collect();
        fs::write(root.join("sources.list"), lines.join("\n") + "\n")?;
        let apt = Self { root };
        process::quiet(apt.command("apt-get").args(["-q", "update"]))?;
        Ok(apt)
    }

    /// The names of all packages that start with `prefix`.
    ///
    /// # Errors
    ///
    /// When apt fails.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = process::output(self.command("apt-cache").args(["pkgnames", prefix]))?;
        Ok(names.lines().map(String::from).collect())
    }

    /// What installing `packages` on this machine would bring in, each as `NAME=VERSION`.
    ///
    /// # Errors
    ///
    /// When there is no such package, or it does not go with what is installed.
    pub fn not_installed(&self, packages: &[&str]) -> Result<Vec<String>> {
        let mut simulate = self.command("apt-get");
        simulate.args(["-o", "Dir::State::status=/var/lib/dpkg/status"]);
        simulate.args(["-q", "--simulate", "--no-install-recommends", "install"]);
        Ok(to_be_installed(&process::output(simulate.args(packages))?))
    }

    /// Downloads `packages` and unpacks them into `into`, without installing anything.
    ///
    /// # Errors
    ///
    /// When a package cannot be fetched or unpacked.
    pub fn unpack(&self, packages: &[String], into: &Path) -> Result<()> {
        let debs = into.join("debs");
        fs::create_dir_all(&debs)?;
        process::quiet(
            self.command("apt-get").args(["-q", "download"]).args(packages).current_dir(&debs),
        )?;
        let mut unpacked = 0;
        for deb in fs::read_dir(&debs)? {
            process::quiet(Command::new("dpkg").arg("-x").arg(deb?.path()).arg(into))?;
            unpacked += 1;
        }
        if unpacked != packages.len() {
            bail!(
                "asked for {} packages and got {unpacked}: {}",
                packages.len(),
                packages.join(" ")
            );
        }
        fs::remove_dir_all(&debs)?;
        Ok(())
    }

    /// An apt command that sees only our lists.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let set = |key: &str, path: &Path| format!("{key}={}", path.display());
        command.args([
            "-o",
            &set("Dir::Etc::sourcelist", &self.root.join("sources.list")),
            "-o",
            "Dir::Etc::sourceparts=/dev/null",
            "-o",
            &set("Dir::State::lists", &self.root.join("lists")),
            "-o",
            &set("Dir::Cache", &self.root.join("cache")),
            "-o",
            "Dir::State::status=/dev/null",
            "-o",
            "APT::Architecture=amd64",
            // The sandbox user may not be allowed into a home folder that holds the work tree.
            "-o",
            "APT::Sandbox::User=root",
        ]);
        command
    }
}

/// `NAME=VERSION` of each line `Inst NAME [OLD] (VERSION …)`.
fn to_be_installed(simulated: &str) -> Vec<String> {
    let package = |line: &str| {
        let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
        let version = rest.split_once('(')?.1.split([' ', ')']).next()?;
        Some(format!("{name}={version}"))
    };
    simulated.lines().filter_map(package).collect()
}

/// (URI, suite) pairs of a one-line `sources.list`.
fn one_line_sources(text: &str) -> Vec<(String, String)> {
    let mut sources = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(rest) = line.strip_prefix("deb ") else {
            continue;
        };
        let rest = rest.trim_start();
        let rest = match rest.strip_prefix('[') {
            Some(options) => options.split_once(']').map_or("", |(_, after)| after),
            None => rest,
        };
        let mut words = rest.split_whitespace();
        if let (Some(uri), Some(suite)) = (words.next(), words.next()) {
            sources.push((uri.to_string(), suite.to_string()));
        }
    }
    sources
}

/// (URI, suite) pairs of a deb822 `.sources` file.
fn deb822_sources(text: &str) -> Vec<(String, String)> {
    let text: String =
        text.lines().filter(|line| !line.starts_with('#')).flat_map(|line| [line, "\n"]).collect();
    text.split("\n\n").flat_map(deb822_stanza).collect()
}

/// (URI, suite) pairs of one stanza: the product of its URIs and suites, unless it is switched off.
fn deb822_stanza(stanza: &str) -> Vec<(String, String)> {
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in stanza.lines() {
        if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_lowercase(), value.to_string()));
        }
    }
    let words = |name: &str| -> Vec<&str> {
        fields
            .iter()
            .filter(|(field, _)| field == name)
            .flat_map(|(_, value)| value.split_whitespace())
            .collect()
    };
    if words("enabled") == ["no"] || !words("types").contains(&"deb") {
        return Vec::new();
    }
    let suites = words("suites");
    words("uris")
        .iter()
        .flat_map(|uri| suites.iter().map(|suite| (uri.to_string(), suite.to_string())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(uri, suite)| (uri.to_string(), suite.to_string())).collect()
    }

    #[test]
    fn packages_that_are_new_and_those_that_are_renewed_are_both_to_be_installed() {
        let said = "Reading package lists...\nInst libx (1:2-3 Debian:12/stable [amd64])\n\
                    Inst y [1] (2 Debian:12/stable [amd64]) []\nConf libx (1:2-3 Debian:12/stable [amd64])\n";
        assert_eq!(to_be_installed(said), ["libx=1:2-3", "y=2"]);
    }

    #[test]
    fn one_line_lists_give_uri_and_suite_with_and_without_options() {
        let text = "# deb http://no.example/debian old main\n\
                    deb http://a.example/debian stable main contrib\n\
                    deb [signed-by=/k.gpg arch=amd64] http://b.example/s stable-security main # why\n\
                    deb-src http://a.example/debian stable main\n";
        assert_eq!(
            one_line_sources(text),
            pairs(&[
                ("http://a.example/debian", "stable"),
                ("http://b.example/s", "stable-security")
            ])
        );
    }

    #[test]
    fn deb822_stanzas_multiply_uris_by_suites_and_heed_comments_and_switches() {
        let text = "Types: deb\n# http://no.example\nURIs: http://a.example/debian\n\
                    Suites: one\n two\nComponents: main\n\n\
                    Types: deb\nEnabled: no\nURIs: http://b.example/debian\nSuites: one\n\n\
                    Types: deb-src\nURIs: http://c.example/debian\nSuites: one\n";
        assert_eq!(
            deb822_sources(text),
            pairs(&[("http://a.example/debian", "one"), ("http://a.example/debian", "two")])
        );
    }

    #[test]
    fn the_security_archive_is_the_one_configured_or_the_sibling_of_main() {
        let other = ("http://x.example/apt", "stable");
        let main = ("http://a.example/debian/", "stable");
        let both = pairs(&[other, main, ("http://s.example/sec", "stable-security")]);
        assert_eq!(
            Mirrors::choose(&both),
            Some(Mirrors {
                main: "http://a.example/debian/".into(),
                security: "http://s.example/sec".into()
            })
        );
        assert_eq!(
            Mirrors::choose(&pairs(&[main])).unwrap().security,
            "http://a.example/debian-security"
        );
        assert_eq!(Mirrors::choose(&pairs(&[other])), None);
    }
}
