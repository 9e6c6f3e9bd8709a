//! The licences of everything we link with, checked against those that go with ours.

use anyhow::{Context, Result};
use serde_json::Value;

/// SPDX names of the licences a dependency may have: permissive, and nothing to do beyond keeping the notice.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "Unlicense",
    "Zlib",
];

/// The packages in cargo's `metadata` whose licence is not allowed, one line each.
///
/// # Errors
///
/// When `metadata` is not cargo's.
pub fn not_allowed(metadata: &str) -> Result<Vec<String>> {
    let metadata: Value = serde_json::from_str(metadata).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    let mut faults = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or("?");
        let version = package["version"].as_str().unwrap_or("?");
        match package["license"].as_str() {
            None => faults.push(format!("{name} {version} names no licence")),
            Some(licence) if !allows(licence) => {
                faults.push(format!("{name} {version}: {licence} is not on the list"));
            }
            Some(_) => {}
        }
    }
    Ok(faults)
}

/// Whether an SPDX expression can be met with allowed licences alone.
fn allows(expression: &str) -> bool {
    // A slash is how OR was written before SPDX.
    let text = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut rest = words.as_slice();
    any(&mut rest).is_some_and(|allowed| allowed && rest.is_empty())
}

/// `all OR all …`; none when it is malformed.
fn any(words: &mut &[&str]) -> Option<bool> {
    let mut allowed = all(words)?;
    while let Some((&"OR", rest)) = words.split_first() {
        *words = rest;
        allowed |= all(words)?;
    }
    Some(allowed)
}

/// `one AND one …`.
fn all(words: &mut &[&str]) -> Option<bool> {
    let mut allowed = one(words)?;
    while let Some((&"AND", rest)) = words.split_first() {
        *words = rest;
        allowed &= one(words)?;
    }
    Some(allowed)
}

/// A licence, with or without an exception, or an expression in brackets.
fn one(words: &mut &[&str]) -> Option<bool> {
    let (first, rest) = words.split_first()?;
    *words = rest;
    if *first == "(" {
        let allowed = any(words)?;
        let (close, rest) = words.split_first()?;
        *words = rest;
        return (*close == ")").then_some(allowed);
    }
    if matches!(*first, ")" | "OR" | "AND" | "WITH") {
        return None;
    }
    if let Some((&"WITH", rest)) = words.split_first() {
        let (exception, rest) = rest.split_first()?;
        *words = rest;
        return Some(ALLOWED.contains(&format!("{first} WITH {exception}").as_str()));
    }
    // A plus says "or later"; the version it names is one of those.
    Some(ALLOWED.contains(&first.trim_end_matches('+')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_allowed_when_it_can_be_met() {
        for yes in [
            "MIT",
            "MIT OR Apache-2.0",
            "MIT/Apache-2.0",
            "GPL-3.0 OR MIT",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
            "(MIT OR GPL-2.0) AND Unicode-3.0",
            "MPL-2.0+",
            "LGPL-2.1 AND GPL-2.0 OR MIT",
        ] {
            assert!(allows(yes), "{yes}");
        }
        for no in [
            "GPL-2.0",
            "MIT AND GPL-2.0",
            "GPL-2.0 WITH Classpath-exception-2.0",
            "(MIT OR GPL-2.0) AND GPL-3.0",
            "",
            "MIT OR",
            "(MIT",
            "MIT)",
            "MIT MIT",
        ] {
            assert!(!allows(no), "{no}");
        }
    }

    #[test]
    fn a_package_without_a_licence_is_a_fault() {
        let metadata = r#"{"packages":[
            {"name":"good","version":"1.0.0","license":"MIT"},
            {"name":"none","version":"2.0.0","license":null},
            {"name":"bad","version":"3.0.0","license":"GPL-3.0-only"}]}"#;
        assert_eq!(
            not_allowed(metadata).unwrap(),
            ["none 2.0.0 names no licence", "bad 3.0.0: GPL-3.0-only is not on the list"]
        );
    }
}
