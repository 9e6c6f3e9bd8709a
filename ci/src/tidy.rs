//! House rules that a program can check.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::process;

/// Files that forbid `unsafe` to everything below them.
const WITHOUT_UNSAFE: &[&str] =
    &["ci/src/lib.rs", "ci/src/main.rs", "driver/src/nvme/mod.rs", "tools/src/main.rs"];

/// Files that are kept as others, or programs, wrote them.
const NOT_OURS: &[&str] = &["LICENSE-APACHE", "LICENSE-MIT", "Cargo.lock", "tools/aioctl.8"];

/// A line of a file and what is wrong with it.
fn fault(path: &Path, line: usize, what: &str) -> String {
    format!("{}:{line}: {what}", path.display())
}

/// Everything in the tree at `root` that breaks a house rule, one line each.
///
/// # Errors
///
/// When the tree cannot be read.
pub fn violations(root: &Path) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for path in files(root)? {
        // What is no text is for people to judge.
        let Ok(text) = fs::read_to_string(root.join(&path)) else {
            continue;
        };
        faults.extend(of_text(&path, &text));
        if path.extension().is_some_and(|ext| ext == "rs") {
            faults.extend(of_rust(root, &path, &text));
        }
    }
    for file in WITHOUT_UNSAFE {
        let text = fs::read_to_string(root.join(file)).unwrap_or_default();
        if !text.contains("#![forbid(unsafe_code)]") {
            faults.push(format!("{file}: does not forbid unsafe code"));
        }
    }
    Ok(faults)
}

/// The files that are, or are about to be, under version control.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut git = Command::new("git");
    git.current_dir(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let list = process::output(&mut git)?;
    Ok(list
        .split('\0')
        .filter(|path| !path.is_empty() && root.join(path).is_file())
        .map(PathBuf::from)
        .collect())
}

/// Rules for every text.
fn of_text(path: &Path, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if path.ends_with("Cargo.lock") && line.starts_with("source = ") {
            let public = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";
            if line != public {
                faults.push(fault(path, number, "a crate from a private registry"));
            }
        }
        if NOT_OURS.iter().any(|name| path.ends_with(name)) {
            continue;
        }
        if line.ends_with([' ', '\t']) {
            faults.push(fault(path, number, "blanks at the end"));
        }
        if machine_path(line) {
            faults.push(fault(path, number, "a path of somebody's machine"));
        }
    }
    faults
}

/// Whether `line` holds an absolute path below a folder that only one machine has.
fn machine_path(line: &str) -> bool {
    ["work", "home"].iter().any(|folder| {
        let path = format!("/{folder}/");
        line.match_indices(&path).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            let inside = |c: char| c.is_alphanumeric() || "._-}~*".contains(c);
            !before.is_some_and(inside)
        })
    })
}

/// Rules for Rust.
fn of_rust(root: &Path, path: &Path, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let fenced = fenced(root, path, text);
    for (number, line) in (1..).zip(text.lines()) {
        let code = line.split("//").next().unwrap_or_default();
        if !code.contains('"') && code.contains("allow(unsafe_code") {
            faults.push(fault(path, number, "unsafe code allowed rather than expected"));
        }
        let opens = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe trait"];
        if !fenced && !code.contains('"') && opens.iter().any(|word| code.contains(word)) {
            let what =
                "unsafe outside a module that opens with #![expect(unsafe_code, reason = …)]";
            faults.push(fault(path, number, what));
        }
    }
    faults
}

/// Whether the file, or a module it is in, says that it has unsafe code and why.
fn fenced(root: &Path, path: &Path, text: &str) -> bool {
    let says = |text: &str| {
        text.contains("#![expect(unsafe_code, reason =") || {
            // The same over more lines.
            text.split("#![expect(").skip(1).any(|rest| {
                let attribute = rest.split(")]").next().unwrap_or_default();
                attribute.contains("unsafe_code") && attribute.contains("reason =")
            })
        }
    };
    if says(text) {
        return true;
    }
    let mut folder = path.parent();
    while let Some(at) = folder.filter(|at| at.components().count() > 2) {
        let modules = [at.join("mod.rs"), at.with_extension("rs")];
        let above =
            |file: &PathBuf| fs::read_to_string(root.join(file)).is_ok_and(|text| says(&text));
        if modules.iter().any(above) {
            return true;
        }
        folder = at.parent();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::workspace_dir;

    #[test]
    fn the_tree_keeps_the_house_rules() {
        let faults = violations(&workspace_dir()).unwrap();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }

    #[test]
    fn a_path_of_a_machine_is_found_and_a_part_of_one_is_not() {
        for folder in ["work", "home"] {
            assert!(machine_path(&format!("see /{folder}/x")));
            assert!(machine_path(&format!("\"/{folder}/x\"")));
            assert!(!machine_path(&format!("net/{folder}/x")));
            assert!(!machine_path(&format!("/{folder}s/x")));
        }
    }

    #[test]
    fn unsafe_needs_a_fence_with_a_reason() {
        let root = Path::new("/nonexistent");
        let path = Path::new("driver/src/dma.rs");
        let fence = "#![expect(unsafe_code, reason = \"because\")]\n";
        let code = ["un", "safe { x() }"].concat();
        assert_eq!(of_rust(root, path, &code).len(), 1);
        assert!(of_rust(root, path, &format!("{fence}{code}")).is_empty());
        assert!(of_rust(root, path, &format!("// {code}")).is_empty());
        let spread = "#![expect(\n    unsafe_code,\n    reason = \"because\"\n)]\n";
        assert!(of_rust(root, path, &format!("{spread}{code}")).is_empty());
        assert_eq!(of_rust(root, path, &format!("#![expect(unsafe_code)]\n{code}")).len(), 1);
    }

    #[test]
    fn a_private_registry_is_found_in_the_lock_file() {
        let public = "source = \"registry+https://github.com/rust-lang/crates.io-index\"\n";
        let private = "source = \"registry+https://crates.example/index\"\n";
        let lock = Path::new("Cargo.lock");
        assert!(of_text(lock, public).is_empty());
        assert_eq!(of_text(lock, private).len(), 1);
    }
}
