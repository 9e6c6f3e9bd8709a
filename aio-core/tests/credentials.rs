//! As whom operations of the host are done: as whoever made their context, or had it refreshed last.
//!
//! Ids are the whole process's, so each test runs in a process of its own that becomes somebody else
//! by the C library's `seteuid`, which changes every thread. Only a privileged user can: for others the
//! tests say that they were skipped.
#![expect(
    unsafe_code,
    reason = "changes the ids, the umask and the working directory of the process"
)]

mod common;

use std::ffi::CString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::stack;
use uaio_core::host::{Argument, Call, Directory, HostOp, Open};
use uaio_core::{Context, ContextOptions, Event, Host, HostOptions, Iocb, VolumeOptions};

const NOBODY: libc::uid_t = 65_534;

/// Runs `test` in a process that may become somebody else.
fn as_root(name: &str, test: impl FnOnce(&Path)) {
    const CHILD: &str = "UAIO_CREDENTIALS_IN";
    if let Some(directory) = std::env::var_os(CHILD) {
        return test(&PathBuf::from(directory));
    }
    // SAFETY: asks who this is.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("skipped: {name}: only a privileged user can become another");
        return;
    }
    let directory = std::env::temp_dir().join(format!("uaio-{name:.20}-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o755)).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    let child = child.args(["--exact", name, "--nocapture"]).env(CHILD, &directory);
    let status = child.status();
    std::fs::remove_dir_all(directory).unwrap();
    assert!(status.unwrap().success());
}

/// The whole process becomes somebody as far as rights go, or root again.
fn become_user(user: libc::uid_t) {
    // SAFETY: of this process, whose only test this is.
    assert_eq!(unsafe { libc::seteuid(user) }, 0);
}

/// A file that only root reads and writes, of 8 bytes.
fn secret(directory: &Path) -> CString {
    let path = directory.join("secret");
    std::fs::write(&path, b"8 bytes.").unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    CString::new(path.into_os_string().into_encoded_bytes()).unwrap()
}

fn open(host: &Host, path: &CString, flags: i32, mode: u32) -> Iocb {
    let (directory, path) = (Directory::Current, path.clone());
    Iocb::host(host, HostOp::Open(Box::new(Open { directory, path, flags, mode, opened: None })))
}

/// What io_uring has no operation for.
fn truncate(host: &Host, path: &CString, len: u64) -> Iocb {
    let arguments = vec![Argument::Path(path.clone()), Argument::Value(len)];
    let call = Call::new(libc::SYS_truncate, arguments).unwrap();
    Iocb::host(host, HostOp::Call(Box::new(call)))
}

fn event(context: &Context) -> Event {
    let mut events = Vec::new();
    let wait = Some(Duration::from_secs(20));
    assert_eq!(context.get_events(1, 1, &mut events, wait), Ok(1));
    events.remove(0)
}

/// The errno of a command, or 0.
fn run(context: &Context, iocb: Iocb) -> i32 {
    context.submit(iocb).unwrap();
    event(context).result.map_or_else(|error| error.errno(), |_| 0)
}

#[test]
fn operations_are_done_as_who_made_the_context_until_it_is_refreshed() {
    as_root("operations_are_done_as_who_made_the_context_until_it_is_refreshed", |directory| {
        let secret = secret(directory);
        let stack = stack(16, VolumeOptions::default());
        let host = stack.reactor.attach_host(HostOptions::default()).unwrap();
        let make = || stack.reactor.context(ContextOptions::events(4)).unwrap();
        let read = |context| run(context, open(&host, &secret, libc::O_RDONLY, 0));
        let cut = |context, len| run(context, truncate(&host, &secret, len));
        let roots = make();
        become_user(NOBODY);
        let nobodys = make();
        // By io_uring, as whoever made the context.
        assert_eq!((read(&roots), read(&nobodys)), (0, libc::EACCES));
        // By a thread of the process, which is nobody: as nobody, or not at all.
        assert_eq!((cut(&roots, 4), cut(&nobodys, 4)), (libc::EPERM, libc::EACCES));
        // What is linked has the credentials of its submission, though it begins later.
        let (reader, writer) = std::io::pipe().unwrap();
        let fd = uaio_core::host::Descriptor::new(reader);
        let at = uaio_core::host::Position::Current;
        let wait = HostOp::Read { fd, memory: vec![0].into(), at, flags: 0 };
        let chain = Iocb::host(&host, wait).then(open(&host, &secret, libc::O_RDONLY, 0));
        roots.submit(chain).unwrap();
        roots.refresh_credentials().unwrap();
        rustix::io::write(&writer, &[1]).unwrap();
        assert_eq!(event(&roots).result, Ok(1));
        assert!(event(&roots).result.is_ok());
        // From here on both are nobody's.
        assert_eq!((read(&roots), cut(&roots, 4)), (libc::EACCES, libc::EACCES));
        become_user(0);
        assert_eq!((read(&nobodys), cut(&nobodys, 4)), (libc::EACCES, libc::EPERM));
        assert_eq!(std::fs::read(directory.join("secret")).unwrap(), b"8 bytes.");
        nobodys.refresh_credentials().unwrap();
        assert_eq!((read(&nobodys), cut(&nobodys, 4)), (0, 0));
        assert_eq!(std::fs::read(directory.join("secret")).unwrap(), b"8 by");
        // A name of the host that was made for it goes before what the context has.
        become_user(NOBODY);
        let as_nobody = host.as_caller().unwrap();
        become_user(0);
        let read = run(&nobodys, open(&as_nobody, &secret, libc::O_RDONLY, 0));
        assert_eq!(read, libc::EACCES);
    });
}

/// Refused by one context and taken by another: nothing of the first submission is left in it.
#[test]
fn an_iocb_that_was_refused_is_done_as_who_submits_it_in_the_end() {
    as_root("an_iocb_that_was_refused_is_done_as_who_submits_it_in_the_end", |directory| {
        let secret = secret(directory);
        let stack = stack(16, VolumeOptions::default());
        let host = stack.reactor.attach_host(HostOptions::default()).unwrap();
        let make = |slots| stack.reactor.context(ContextOptions::events(slots)).unwrap();
        let (small, roots) = (make(1), make(4));
        become_user(NOBODY);
        let nobodys = make(4);
        become_user(0);
        std::fs::create_dir(directory.join("first")).unwrap();
        std::fs::create_dir(directory.join("second")).unwrap();
        std::env::set_current_dir(directory.join("first")).unwrap();
        // SAFETY: the process's, whose only test this is.
        unsafe { libc::umask(0o077) };
        let name = |name: &str| CString::new(name).unwrap();
        let make_directory =
            HostOp::Mkdir { directory: Directory::Current, path: name("directory"), mode: 0o777 };
        let arguments = vec![
            Argument::Directory(Directory::Current),
            Argument::Path(name("fifo")),
            Argument::Value(u64::from(libc::S_IFIFO | 0o777)),
            Argument::Value(0),
        ];
        let make_node = HostOp::Call(Box::new(Call::new(libc::SYS_mknodat, arguments).unwrap()));
        let iocbs = [
            open(&host, &name("file"), libc::O_CREAT | libc::O_WRONLY, 0o777),
            Iocb::host(&host, make_directory),
            Iocb::host(&host, make_node),
            open(&host, &secret, libc::O_RDONLY, 0),
        ];
        // What is linked is looked at before there turns out to be no room for it.
        let refused = iocbs.map(|iocb| {
            let chain = Iocb::host(&host, HostOp::Nop).then(iocb);
            small.submit(chain).unwrap_err().iocb
        });
        std::env::set_current_dir(directory.join("second")).unwrap();
        // SAFETY: as above.
        unsafe { libc::umask(0o022) };
        let contexts = [&roots, &roots, &roots, &nobodys];
        let errnos = refused.into_iter().zip(contexts).map(|(chain, context)| {
            assert_eq!(run(context, chain), 0);
            event(context).result.map_or_else(|error| error.errno(), |_| 0)
        });
        assert_eq!(errnos.collect::<Vec<_>>(), [0, 0, 0, libc::EACCES]);
        for name in ["file", "directory", "fifo"] {
            assert!(!directory.join("first").join(name).exists(), "{name}");
            let status = std::fs::metadata(directory.join("second").join(name)).unwrap();
            assert_eq!(status.permissions().mode() & 0o777, 0o755, "{name}");
        }
    });
}
