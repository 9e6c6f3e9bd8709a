//! What the tests of the preloaded library share: the library, linked as `cargo ci preload` links it, and programs in C.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::SystemTime;

/// A folder of this test's own.
pub(crate) fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("preload").join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Links the archive that was built with this test.
pub(crate) fn library(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let archives = std::fs::read_dir(test.parent().unwrap()).unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        let file = path.file_name()?.to_str()?;
        let ours = file.starts_with("libuaio_preload-") && file.ends_with(".a");
        let built = |path: &Path| path.metadata().and_then(|of| of.modified());
        ours.then(|| (built(&path).unwrap_or(SystemTime::UNIX_EPOCH), path))
    });
    // Of several it is the last: cargo has just built it, or found that it needs not.
    let (_, archive) = archives.max().expect("cargo builds the archive with the tests");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("link.sh");
    let library = folder(name).join("libuaio_preload.so");
    done(Command::new("sh").arg(script).args([&archive, &library]).arg("libuaio_preload.so"));
    library
}

/// Compiles a program of this folder, with every warning an error; once for all tests of a process.
pub(crate) fn compile(source: &str) -> PathBuf {
    static COMPILED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let program = folder(source).join(source.trim_end_matches(".c"));
    let mut compiled = COMPILED.lock().unwrap();
    if compiled.insert(program.clone()) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut cc = Command::new("cc");
        cc.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-pthread"]);
        done(cc.arg(root.join("tests").join(source)).arg("-o").arg(&program));
    }
    program
}

/// Runs a command to its end, and is what it said.
pub(crate) fn done(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("it can be run");
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}: {out}{err}", output.status);
    out.into_owned()
}
