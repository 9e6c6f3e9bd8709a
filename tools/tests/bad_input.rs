//! Bad input to the built program: one clear line, the right exit code, and nothing changed.
//!
//! Nothing here needs root or a device. What does is a scenario for the guest.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;

use common::Place;

/// Refused before anything is looked at: the command line itself is wrong.
#[test]
fn a_wrong_command_line_is_refused_in_one_line() {
    let place = Place::new();
    for (line, said) in [
        ("add ram:1G --cash 1G", "unexpected argument '--cash' found; see `aioctl --help`"),
        ("add", "required arguments were not provided: <BACKEND>..."),
        ("add tape:1", "`tape:1` is not a backend"),
        ("add ram:1Q", "`1Q` is not a size"),
        ("add nvme:0000:00:04", "is not a PCI address"),
        ("add nvme:0000:00:04.0/0", "`0` is not a namespace"),
        ("add ram:1G --mode fast", "invalid value 'fast'"),
        ("add ram:1G --depth 0", "0 is not in 1..=1024"),
        ("add ram:1G --deadline 0", "0 is not in 1..=86400"),
        ("add ram:1G ram:2G", "several backends can only be namespaces of one drive"),
        ("add nvme:00:04.0/1 nvme:00:04.0/1", "a namespace is named twice"),
        ("add nvme:00:04.0/1 nvme:00:05.0/1", "several backends can only be"),
        ("add nvme:00:04.0 --block-size 4K", "a drive has a block size of its own"),
        ("add ram:1G --block-size 3000", "a block size of 3000 is not possible"),
        ("add ram:10000", "10000 bytes is not a multiple of the block size, 4096"),
        ("add ram:1G --cache 1M", "a cache of 1M is smaller than the minimum; take --cache 4M"),
        ("del", "required arguments were not provided: <ID>"),
        ("del sda", "`sda` is not a device: write 0, ublkb0 or /dev/ublkb0"),
        ("nvme bind", "required arguments were not provided: <ADDRESS>"),
        ("nvme", "no command was given"),
        ("nvme log", "no command was given"),
        ("nvme log smart", "required arguments were not provided: <ADDRESS[/NAMESPACE]>"),
        ("nvme log smart 00:04.0/0", "`0` is not a namespace: write a number from 1 on"),
        ("nvme format 00:04.0/1 --format 64", "64 is not in 0..64"),
        ("nvme sanitize 00:04.0 shred", "invalid value 'shred'"),
        ("nvme zone reset 00:04.0/1", "required arguments were not provided: <LBA>"),
        ("nvme io verify 00:04.0/1 ten", "`ten` is not a number: write 16 or 0x10"),
        ("nvme passthru admin 00:04.0", "required arguments were not provided: --opcode"),
        ("", "no command was given"),
        ("frobnicate", "unrecognized subcommand 'frobnicate'"),
    ] {
        let outcome = place.aioctl(line.split_whitespace());
        outcome.is_refusal(2, said);
        assert_eq!(place.contents(), [], "`aioctl {line}` changed something");
    }
}

#[test]
fn what_is_not_there_is_not_found() {
    let place = Place::new();
    for (line, said) in [
        ("info 7", "/dev/ublkb7 is not served; see `aioctl list`"),
        ("stats ublkb7", "/dev/ublkb7 is not served"),
        ("flush /dev/ublkb7", "/dev/ublkb7 is not served"),
        ("del 7 --force --discard-dirty", "/dev/ublkb7 is not served"),
        ("add nvme:ffff:ff:1f.7", "there is no PCI device at ffff:ff:1f.7; see `aioctl nvme list`"),
        ("nvme bind ffff:ff:1f.7", "there is no PCI device at ffff:ff:1f.7"),
        ("nvme unbind ffff:ff:1f.7", "there is no PCI device at ffff:ff:1f.7"),
        ("nvme id ctrl ffff:ff:1f.7", "there is no PCI device at ffff:ff:1f.7"),
        ("nvme log smart ffff:ff:1f.7", "there is no PCI device at ffff:ff:1f.7"),
        ("nvme ns delete ffff:ff:1f.7/1 --yes", "there is no PCI device at ffff:ff:1f.7"),
        ("nvme format ffff:ff:1f.7/1", "there is no PCI device at ffff:ff:1f.7"),
        ("nvme io flush ffff:ff:1f.7/1", "there is no PCI device at ffff:ff:1f.7"),
        ("nvme passthru io ffff:ff:1f.7/1 --opcode 0 --yes", "there is no PCI device at"),
        ("nvme show ffff:ff:1f.7", "there is no PCI device at ffff:ff:1f.7"),
    ] {
        place.aioctl(line.split_whitespace()).is_refusal(3, said);
        assert_eq!(place.contents(), [], "`aioctl {line}` changed something");
    }
}

#[test]
fn a_file_that_cannot_be_served_is_refused_and_left_alone() {
    let place = Place::new();
    let image = place.path("disk.img");
    std::fs::write(&image, vec![7; 8192]).expect("a file");
    std::fs::write(place.path("odd.img"), vec![7; 8191]).expect("a file");
    let before = place.contents();
    let add =
        |name: &str| place.aioctl(["add".into(), format!("file:{}", place.path(name).display())]);
    add("none.img").is_refusal(3, "none.img: no such file; give a size to create it");
    add("").is_refusal(2, "is neither a file nor a block device");
    add("odd.img").is_refusal(2, "8191 bytes is not a multiple of the block size, 512");
    add("disk.img,size=4K").is_refusal(2, "has 8192 bytes, not 4096; leave size= out");
    add("new.img,size=1000").is_refusal(2, "1000 bytes is not a multiple of the block size, 512");
    let writer = std::fs::OpenOptions::new().write(true).open(&image).expect("a writer");
    let me = format!("disk.img is open in process {} (", std::process::id());
    add("disk.img").is_refusal(4, &me);
    drop(writer);
    assert_eq!(place.contents(), before);
}

#[test]
fn memory_that_the_machine_does_not_have_is_refused_before_it_is_taken() {
    let place = Place::new();
    for line in ["add ram:1024T", "add ram:1024T --mode none --detach", "add ram:1M --cache 1024T"]
    {
        let said = " MiB of memory are needed, and this machine has ";
        place.aioctl(line.split_whitespace()).is_refusal(6, said);
        assert_eq!(place.contents(), [], "`aioctl {line}` changed something");
    }
}

#[test]
fn without_ublk_nothing_is_created() {
    if Path::new("/dev/ublk-control").exists() {
        eprintln!("skipped: this kernel has ublk");
        return;
    }
    let place = Place::new();
    for options in [&[][..], &["--detach"], &["--mode", "none"]] {
        let backend = format!("file:{},size=1M", place.path("new.img").display());
        let outcome = place.aioctl(["add", &backend].iter().chain(options));
        outcome.is_refusal(6, "this kernel has no ublk driver loaded; run `modprobe ublk_drv`");
        assert_eq!(place.contents(), [], "something was left");
    }
}

#[test]
fn a_stale_socket_is_recognised_and_cleared_away_by_list() {
    let place = Place::new();
    std::fs::create_dir(place.run_dir()).expect("a directory");
    drop(UnixListener::bind(place.run_dir().join("5.sock")).expect("a socket"));
    let record = "{\"version\":1,\"id\":5,\"pid\":4294967295,\"start_time_ticks\":1,\
                  \"backend\":\"ram:1G\",\"size_bytes\":1073741824,\"block_size_bytes\":4096,\
                  \"mode\":\"writeback\",\"cache_bytes\":0}";
    std::fs::write(place.run_dir().join("5.json"), record).expect("a record");
    place.aioctl(["info", "5"]).is_refusal(3, "the server of /dev/ublkb5 has died; `aioctl list`");
    place.aioctl(["del", "5"]).is_refusal(3, "the server of /dev/ublkb5 has died");
    let listed = place.aioctl(["list", "--json"]);
    assert_eq!((listed.code, listed.stdout.as_str()), (0, "{\n  \"devices\": []\n}\n"));
    assert_eq!(listed.stderr, "aioctl: cleared away /dev/ublkb5, whose server had died\n");
    assert!(!place.run_dir().join("5.sock").exists());
    assert!(!place.run_dir().join("5.json").exists());
    place.aioctl(["info", "5"]).is_refusal(3, "/dev/ublkb5 is not served");
}

/// There may be a server behind it: it must not be passed over in silence.
#[test]
fn a_damaged_record_is_reported_by_list_and_left_alone() {
    let place = Place::new();
    std::fs::create_dir(place.run_dir()).expect("a directory");
    std::fs::write(place.run_dir().join("4.json"), "{\"version\":1").expect("a file");
    let before = place.contents();
    let listed = place.aioctl(["list", "--json"]);
    assert_eq!((listed.code, listed.stdout.as_str()), (0, "{\n  \"devices\": []\n}\n"));
    let said = "4.json; is /dev/ublkb4 served? see `aioctl info 4`\n";
    assert!(listed.stderr.ends_with(said), "{listed:?}");
    assert_eq!(place.contents(), before);
}

/// A server that is none: whatever it does, the client ends with one line.
#[test]
fn a_server_that_misbehaves_costs_one_line() {
    let answers: [(&[u8], i32, &str); 6] = [
        (b"", 1, "closed the connection without an answer"),
        (b"hello\n", 1, "the server's answer is not understood"),
        (b"{\"version\":1,\"result\":{\"ok\":\"done\"}}\n", 1, "answered something else"),
        (b"{\"version\":1,\"result\":{\"ok\":\"done\"}}", 1, "the line has no end"),
        (
            b"{\"version\":1,\"result\":{\"error\":{\"exit\":\"in-use\",\"what\":\"a\\nb\",\
              \"hint\":\"c\"}}}\n",
            4,
            "a b; c",
        ),
        (&[b' '; 2 << 20], 1, "the line is too long"),
    ];
    for (answer, code, said) in answers {
        let place = Place::new();
        std::fs::create_dir(place.run_dir()).expect("a directory");
        let listener = UnixListener::bind(place.run_dir().join("0.sock")).expect("a socket");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut request = [0; 4096];
            let count = stream.read(&mut request).expect("a request");
            // The client may hang up in the middle of too long an answer.
            let _ = stream.write_all(answer);
            String::from_utf8_lossy(&request[..count]).into_owned()
        });
        place.aioctl(["info", "0"]).is_refusal(code, said);
        let request = server.join().expect("a thread");
        assert_eq!(request, "{\"version\":1,\"command\":\"info\"}\n");
    }
}

/// Answers so many questions at the socket of device 0, one line each, and tells what was asked.
fn serving(place: &Place, answers: Vec<&'static str>) -> std::thread::JoinHandle<Vec<String>> {
    std::fs::create_dir_all(place.run_dir()).expect("a directory");
    let socket = place.run_dir().join("0.sock");
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(socket).expect("a socket");
    std::thread::spawn(move || {
        let answer = |answer: &str| {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut request = [0; 4096];
            let count = stream.read(&mut request).expect("a request");
            let line = format!("{{\"version\":1,\"result\":{{\"ok\":{answer}}}}}\n");
            stream.write_all(line.as_bytes()).expect("a client that listens");
            String::from_utf8_lossy(&request[..count]).trim_end().to_owned()
        };
        answers.into_iter().map(answer).collect()
    })
}

#[test]
fn a_loss_is_accepted_only_with_consent_and_only_where_it_was_shown() {
    let lost = "{\"lost\":{\"lost_bytes\":1024,\"ranges\":[{\"offset_bytes\":0,\"len_bytes\":512},\
                {\"offset_bytes\":8192,\"len_bytes\":512}]}}";
    let none = "{\"lost\":{\"lost_bytes\":0,\"ranges\":[]}}";
    let one =
        "{\"lost\":{\"lost_bytes\":512,\"ranges\":[{\"offset_bytes\":8192,\"len_bytes\":512}]}}";
    let place = Place::new();
    let server = serving(&place, vec![lost]);
    let said = "flushes of /dev/ublkb0 will not fail any more for 1024 lost bytes: this needs --yes \
                where nobody can be asked; nothing was changed";
    place.aioctl(["cache", "accept-loss", "0"]).is_refusal(2, said);
    assert_eq!(server.join().expect("a thread").len(), 1, "nothing but the list was asked for");
    let server = serving(&place, vec![lost, none, one]);
    let done = place.aioctl(["cache", "accept-loss", "0", "--length", "1M", "--yes", "--json"]);
    assert_eq!(done.code, 0, "{done:?}");
    let said = "{\n  \"accepted_bytes\": 512,\n  \"still_lost_bytes\": 512\n}\n";
    assert_eq!(done.stdout, said);
    let asked = server.join().expect("a thread");
    let of = |verb: &str, offset: u32, len: u32| {
        format!(
            "{{\"version\":1,\"command\":{{\"{verb}\":{{\"offset_bytes\":{offset},\
             \"len_bytes\":{len}}}}}}}"
        )
    };
    let accept = "accept-loss";
    assert_eq!(asked, [of("lost", 0, 1 << 20), of(accept, 0, 512), of(accept, 8192, 512)]);
    // Where nothing was lost nobody is asked.
    let server = serving(&place, vec![none]);
    let done = place.aioctl(["cache", "accept-loss", "0"]);
    assert_eq!(done.stdout, "accepted (bytes)    0\nstill lost (bytes)  0\n", "{done:?}");
    assert_eq!(server.join().expect("a thread").len(), 1);
    let server = serving(&place, vec![lost]);
    let table = place.aioctl(["cache", "lost", "0"]).stdout;
    assert_eq!(
        table,
        "OFFSET bytes  LENGTH bytes\n           0           512\n        8192           512\n"
    );
    server.join().expect("a thread");
}

#[test]
fn a_run_directory_that_is_none_is_refused() {
    let place = Place::new();
    std::fs::write(place.run_dir(), "a file").expect("a file");
    place.aioctl(["list"]).is_refusal(1, "run: Not a directory");
    let outcome = place.aioctl(["info", "0"]);
    assert_eq!((outcome.code, outcome.stderr.matches('\n').count()), (1, 1), "{outcome:?}");
}

/// The server's side of `--detach`, without the parent that would have refused it before.
#[test]
fn a_detached_server_that_cannot_have_its_directory_says_so_to_its_parent() {
    let place = Place::new();
    std::fs::write(place.run_dir(), "a file").expect("a file");
    place.aioctl(["add", "ram:1M", "--detach"]).is_refusal(2, "run is not a directory");
    let outcome = place.aioctl(["add", "ram:1M", "--detach", "--detached-server"]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.stdout.starts_with("{\"failed\":{\"exit\":\"usage\",\"what\":"), "{outcome:?}");
    assert_eq!(outcome.stdout.matches('\n').count(), 1, "{outcome:?}");
}

/// Only root may change /tmp; whoever names it as the run directory must not do so by accident.
#[test]
fn a_run_directory_that_others_may_write_is_refused_and_left_as_it_is() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    std::fs::create_dir(place.run_dir()).expect("a directory");
    let mode = std::fs::Permissions::from_mode(0o1777);
    std::fs::set_permissions(place.run_dir(), mode.clone()).expect("chmod");
    for options in [&[][..], &["--detach"], &["--detach", "--detached-server"]] {
        let outcome = place.aioctl(["add", "ram:1M"].iter().chain(options));
        assert_eq!(outcome.code, 5, "{outcome:?}");
        assert!(outcome.stderr.contains("run can be written by others"), "{outcome:?}");
        let is = std::fs::metadata(place.run_dir()).expect("a directory").permissions();
        assert_eq!(is.mode() & 0o7777, 0o1777);
        assert_eq!(place.contents().len(), 1, "something was left: {options:?}");
    }
}

#[test]
fn help_and_version_go_to_stdout_and_are_no_errors() {
    let place = Place::new();
    for args in [&["--help"][..], &["--version"], &["add", "--help"], &["nvme", "bind", "-h"]] {
        let outcome = place.aioctl(args);
        assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{args:?}");
        assert!(outcome.stdout.contains("aioctl"), "{args:?}");
    }
    let help = place.aioctl(["--help"]).stdout;
    assert!(
        help.contains("Exit codes:") && help.contains("  8  stopping would lose data"),
        "{help}"
    );
}

#[test]
fn an_empty_list_is_a_header_for_people_and_an_array_for_programs() {
    let place = Place::new();
    let table = place.aioctl(["list"]).stdout;
    assert_eq!(table, "PATH  BACKEND  SIZE MiB  BLOCK bytes  MODE  CACHE MiB  PID  STATE\n");
    assert_eq!(place.aioctl(["list", "--json"]).stdout, "{\n  \"devices\": []\n}\n");
    assert_eq!(place.contents(), [], "looking made something");
}

#[test]
fn a_reader_that_has_gone_is_no_error_and_a_full_disk_is() {
    let place = Place::new();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let outcome = place.aioctl_into(["--help"], writer);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""));
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("a device");
    let outcome = place.aioctl_into(["list"], full);
    assert_eq!(outcome.stderr, "aioctl: write to stdout: No space left on device\n");
    assert_eq!(outcome.code, 1);
}
