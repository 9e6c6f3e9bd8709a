//! Every command, from its line to its answer, on a controller in this process.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};
use uaio_driver::nvme::model::{FIRMWARE_MAGIC, Model, ModelClock, ModelNamespace, ModelOptions};
use uaio_driver::nvme::{ControllerOptions, NvmeController};
use uaio_driver::{DmaPool, PoolOptions};

use super::session::Session;
use crate::cli::nvme::Target;
use crate::cli::{Cli, Command, NvmeCommand};
use crate::exit::{Exit, Failure};

/// A drive that is a model, and a user who consents only by --yes.
struct Bench {
    controller: Arc<NvmeController>,
    model: Arc<Model>,
    printed: RefCell<Vec<String>>,
    /// What had to be typed.
    asked: RefCell<Vec<String>>,
    timeouts: RefCell<Vec<Duration>>,
    place: tempfile::TempDir,
}

impl Session for Bench {
    fn open_with(
        &self,
        _: &Target,
        options: ControllerOptions,
    ) -> Result<Arc<NvmeController>, Failure> {
        self.timeouts.borrow_mut().push(options.command_timeout);
        Ok(Arc::clone(&self.controller))
    }

    fn confirm(&self, target: &Target, what: &str, yes: bool) -> Result<(), Failure> {
        assert_eq!(Arc::strong_count(&self.controller), 1, "the drive is let go while it is asked");
        self.asked.borrow_mut().push(target.to_string());
        match yes {
            true => Ok(()),
            false => Err(Failure::new(Exit::Usage, what, "nothing was changed")),
        }
    }

    fn print(&self, json: &str) -> Result<(), Failure> {
        // The table of every answer can be made.
        assert!(!super::output::table(json).contains('{'), "{json}");
        self.printed.borrow_mut().push(json.to_owned());
        Ok(())
    }
}

impl Bench {
    fn new(options: ModelOptions) -> Self {
        let pool = DmaPool::new(PoolOptions::frames(1024)).expect("a pool");
        let model = Model::new(ModelOptions { oncs: 0x1ff, ..options }, pool.clone());
        let options = ControllerOptions::default();
        let clock = ModelClock::new();
        let controller =
            NvmeController::start(model.clone(), pool, options, clock).expect("a controller");
        let place = tempfile::tempdir().expect("a directory");
        Self {
            controller,
            model,
            printed: RefCell::default(),
            asked: RefCell::default(),
            timeouts: RefCell::default(),
            place,
        }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.place.path().join(name);
        std::fs::write(&path, bytes).expect("a file");
        path.display().to_string()
    }

    fn run(&self, line: &str) -> Result<Value, Failure> {
        let line = line.replace("DRIVE", "0000:00:04.0");
        let args = ["aioctl", "nvme"].into_iter().chain(line.split_whitespace());
        let cli = Cli::try_parse_from(args).unwrap_or_else(|error| panic!("{line}: {error}"));
        let Command::Nvme(NvmeCommand::Drive(command)) = cli.command else { panic!("{line}") };
        super::run(self, command)?;
        let printed = self.printed.borrow_mut().pop();
        Ok(printed.map_or(Value::Null, |json| serde_json::from_str(&json).expect("JSON")))
    }

    #[track_caller]
    fn good(&self, line: &str) -> Value {
        self.run(line).unwrap_or_else(|failure| panic!("{line}: {failure}"))
    }

    #[track_caller]
    fn refused(&self, line: &str, exit: Exit, said: &str) {
        let failure = self.run(line).expect_err(line);
        let text = failure.to_string();
        assert!(failure.exit == exit && text.contains(said), "{line}: {:?} {text}", failure.exit);
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

fn plain() -> Bench {
    Bench::new(ModelOptions::default())
}

#[test]
fn identify_speaks_the_specifications_names() {
    let bench = plain();
    let id = bench.good("id ctrl DRIVE");
    assert_eq!(
        (&id["vid"], &id["sn"], &id["tnvmcap"]),
        (&json!(0x1b36), &json!("MODEL-0001"), &json!(64 << 20))
    );
    assert_eq!(id["psd"].as_array().map(Vec::len), Some(3), "as many as there are");
    let ns = bench.good("id ns DRIVE/1");
    assert_eq!(
        (&ns["nsid"], &ns["nsze"], &ns["names"]["csi"]),
        (&json!(1), &json!(1 << 15), &json!(0))
    );
    assert_eq!(ns["lbaf"].as_array().map(Vec::len), Some(5));
    bench.refused("id ns DRIVE", Exit::Usage, "names no namespace; write it behind the address");
    bench.refused("id ctrl DRIVE/1", Exit::Usage, "is for the whole drive");
    bench.refused("id ns DRIVE/9", Exit::Failure, "Invalid Namespace or Format (SCT 0h, SC 0Bh)");
}

#[test]
fn namespaces_are_made_listed_and_deleted() {
    let bench = plain();
    assert_eq!(
        bench.good("ns create DRIVE --size 4M --format 1 --attach"),
        json!({"namespace": 2})
    );
    let list = bench.good("ns list DRIVE");
    let second = &list["namespaces"][1];
    assert_eq!(
        (&second["id"], &second["size_bytes"], &second["block_size_bytes"]),
        (&json!(2), &json!(4 << 20), &json!(4096))
    );
    assert_eq!(bench.good("log changed-namespaces DRIVE")["changed"], json!([2]));
    bench.refused("ns detach DRIVE/2", Exit::Usage, "is taken from whoever uses it");
    bench.good("ns detach DRIVE/2 --yes");
    assert_eq!(bench.good("ns list DRIVE")["namespaces"].as_array().map(Vec::len), Some(1));
    assert_eq!(bench.good("ns list DRIVE --all")["namespaces"][1]["attached"], json!(false));
    bench.refused("ns detach DRIVE/2 --yes", Exit::Failure, "Namespace Not Attached");
    bench.refused("ns delete DRIVE/2", Exit::Usage, "is deleted, with all its data");
    assert_eq!(bench.good("ns list DRIVE --all")["namespaces"].as_array().map(Vec::len), Some(2));
    bench.good("ns delete DRIVE/2 --yes");
    bench.refused("ns delete DRIVE/2 --yes", Exit::Failure, "Invalid Namespace or Format");
    bench.refused("ns create DRIVE --size 1000", Exit::Usage, "is not a multiple");
    bench.refused("ns create DRIVE --size 1M --format 60", Exit::Usage, "no LBA format 60");
    bench.refused("ns create DRIVE --size 1T", Exit::Failure, "Namespace Insufficient Capacity");
    bench.refused("ns attach DRIVE", Exit::Usage, "names no namespace");
}

#[test]
fn every_log_page_is_told() {
    let bench = plain();
    let smart = bench.good("log smart DRIVE");
    assert_eq!((&smart["temperature_kelvin"], &smart["power_on_hours"]), (&json!(310), &json!(77)));
    bench.refused("log smart DRIVE/7", Exit::Failure, "Invalid Namespace or Format");
    let errors = bench.good("log error DRIVE");
    let entries = errors["entries"].as_array().expect("a list");
    assert!(
        entries.iter().any(|entry| entry["nsid"] == 7
            && entry["status"] == "Invalid Namespace or Format (SCT 0h, SC 0Bh)"),
        "{errors}"
    );
    assert!(
        bench.good("log supported DRIVE")["log_pages"]
            .as_array()
            .is_some_and(|pages| pages.contains(&json!(2)))
    );
    assert_eq!(bench.good("log firmware DRIVE")["revisions"][0], json!("1.0"));
    let effects = bench.good("log effects DRIVE");
    let format = effects["entries"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|entry| entry["command"] == "Format NVM");
    assert_eq!(format.expect("it is listed")["changes_data"], json!(true));
    assert_eq!(bench.good("log endurance DRIVE")["available_spare_percent"], json!(99));
    bench.refused("log endurance DRIVE --group 7", Exit::Failure, "Invalid Field in Command");
    assert_eq!(
        bench.good("log persistent-event DRIVE")["events"].as_array().map(Vec::len),
        Some(2)
    );
    assert_eq!(bench.good("log sanitize DRIVE")["status"], json!(0));
    assert_eq!(bench.good("log zones DRIVE/1")["changed"], json!([]));
    assert_eq!(bench.good("log reservation DRIVE")["count"], json!(0));
    assert_eq!(bench.good("log fdp DRIVE")["statistics"]["media_written_bytes"], json!(1100));
    let out = bench.place.path().join("telemetry");
    let line = format!("log telemetry DRIVE --out {}", out.display());
    assert_eq!(bench.good(&line)["header"]["host_generation"], json!(1));
    assert_eq!(std::fs::read(&out).expect("a file").len(), 41 * 512);
    bench.refused(&line, Exit::Failure, "File exists");
}

#[test]
fn features_are_told_and_changed_by_name() {
    let bench = plain();
    assert_eq!(bench.good("feature get DRIVE write-cache"), json!({"enabled": 1}));
    assert_eq!(bench.good("feature set DRIVE write-cache enabled=0"), json!({"enabled": 0}));
    assert_eq!(bench.good("feature get DRIVE write-cache --select default"), json!({"enabled": 1}));
    bench.good("feature set DRIVE temperature-threshold kelvin=0x154 sensor=2");
    assert_eq!(
        bench.good("feature get DRIVE temperature-threshold sensor=2")["kelvin"],
        json!(0x154)
    );
    bench.good("feature set DRIVE timestamp ms=1700000000000");
    assert_eq!(bench.good("feature get DRIVE timestamp")["ms"], json!(1_700_000_000_000_u64));
    assert_eq!(bench.good("feature get DRIVE apst")["enabled"], json!(false));
    assert_eq!(bench.good("feature get DRIVE host-behavior")["telemetry_area_4"], json!(false));
    assert_eq!(bench.good("feature get DRIVE host-id")["host_id"], json!("0".repeat(32)));
    assert!(bench.good("feature list")["entries"].as_array().is_some_and(|list| list.len() > 30));
    for (line, said) in [
        ("feature get DRIVE colour", "there is no feature colour"),
        ("feature set DRIVE write-cache enabled", "is not of the form FIELD=NUMBER"),
        ("feature set DRIVE write-cache enabled=2", "enabled is at most 1, not 2"),
        ("feature set DRIVE write-cache on=1", "no field on; there are: enabled"),
        ("feature set DRIVE number-of-queues submission_minus_1=1", "can only be read"),
        ("feature set DRIVE write-cache enabled=0x100000000", "at most 32 bits"),
        ("feature set DRIVE/1 write-cache enabled=1", "is for the whole drive"),
        ("feature set DRIVE write-protection state=1", "names no namespace"),
        ("feature get DRIVE write-cache enabled=1", "selects nothing of write-cache"),
        ("feature set DRIVE timestamp s=1", "ms=NUMBER"),
    ] {
        bench.refused(line, Exit::Usage, said);
    }
    assert_eq!(
        bench.good("feature get DRIVE write-cache"),
        json!({"enabled": 0}),
        "nothing changed"
    );
}

#[test]
fn what_takes_data_away_is_asked_for_twice() {
    let bench = plain();
    let block = bench.file("block", &[7; 512]);
    bench.good(&format!("io write DRIVE/1 5 {block} --fua --yes"));
    for line in [
        "format DRIVE/1",
        "sanitize DRIVE block-erase",
        "io zero DRIVE/1 5",
        "io trim DRIVE/1 5",
        "io write-uncorrectable DRIVE/1 5",
        "io copy DRIVE/1 5 0+1",
        "firmware commit DRIVE --action store",
        "passthru io DRIVE/1 --opcode 4 --dword 10=5",
        "passthru admin DRIVE --opcode 0x80 --dword 10=0",
    ] {
        bench.refused(line, Exit::Usage, "nothing was changed");
    }
    bench.good(&format!("io compare DRIVE/1 5 {block}"));
    bench.good("format DRIVE/1 --format 1 --erase user-data --yes");
    assert_eq!(bench.good("ns list DRIVE")["namespaces"][0]["block_size_bytes"], json!(4096));
    bench.refused("format DRIVE/1 --format 40 --yes", Exit::Failure, "Invalid Format");
    bench.good("sanitize DRIVE overwrite --passes 2 --pattern 0xff --invert --yes");
    assert_eq!(bench.good("log sanitize DRIVE")["cdw10"], json!(3 | 2 << 4 | 1 << 8));
    bench.refused("sanitize DRIVE/1 block-erase --yes", Exit::Usage, "is for the whole drive");
    bench.refused("sanitize DRIVE overwrite --pattern 0x1ffffffff --yes", Exit::Usage, "32 bits");
    bench.good("self-test DRIVE short");
    assert_eq!(bench.good("log self-test DRIVE")["current_operation"], json!(1));
    assert_eq!(bench.good("log self-test DRIVE")["results"][0]["status"], json!(0x10));
}

#[test]
fn firmware_and_security_come_from_files() {
    let bench = plain();
    let mut image = FIRMWARE_MAGIC.to_vec();
    image.extend(b"9.9     ");
    let file = bench.file("image", &image);
    bench.good(&format!("firmware download DRIVE {file} --yes"));
    let line = "firmware commit DRIVE --slot 2 --action store-activate --yes";
    assert_eq!(bench.good(line), json!({"activation_needs": "controller-reset"}));
    bench.refused(line, Exit::Failure, "Invalid Firmware Image");
    bench.refused("firmware download DRIVE /nonexistent", Exit::NotFound, "No such file");
    let empty = bench.file("empty", &[]);
    bench.refused(
        &format!("firmware download DRIVE {empty} --yes"),
        Exit::Usage,
        "an image of 0 bytes",
    );
    let sent = bench.file("sent", b"key!");
    bench.good(&format!("security send DRIVE --protocol 0xea {sent} --yes"));
    let back = bench.good("security receive DRIVE --protocol 0xea --length 8");
    assert_eq!(back, json!({"data": "6b65792100000000"}));
    bench.refused("security receive DRIVE --protocol 0x100", Exit::Usage, "8 bits");
    bench.refused("security receive DRIVE --protocol 1 --length 0", Exit::Usage, "carries 1 to");
}

#[test]
fn blocks_are_read_written_compared_and_copied() {
    let bench = plain();
    let (seven, eight) = (bench.file("seven", &[7; 512]), bench.file("eight", &[8; 512]));
    bench.good(&format!("io write DRIVE/1 0 {seven} --yes"));
    bench.good("io flush DRIVE/1");
    bench.good("io verify DRIVE/1 0 8");
    bench.good(&format!("io compare DRIVE/1 0 {seven}"));
    bench.refused(&format!("io compare DRIVE/1 0 {eight}"), Exit::Failure, "hold something else");
    bench.good(&format!("io compare-and-write DRIVE/1 0 {seven} {eight} --yes"));
    let again = format!("io compare-and-write DRIVE/1 0 {seven} {eight} --yes");
    bench.refused(&again, Exit::Failure, "hold something else");
    bench.good("io copy DRIVE/1 100 0+1 --yes");
    let out = bench.place.path().join("out");
    bench.good(&format!("io read DRIVE/1 100 --out {}", out.display()));
    assert_eq!(std::fs::read(&out).expect("a file"), [8; 512]);
    bench.good("io write-uncorrectable DRIVE/1 100 --yes");
    bench.refused(
        "io verify DRIVE/1 100",
        Exit::Failure,
        "Unrecovered Read Error (SCT 2h, SC 81h)",
    );
    bench.good("io zero DRIVE/1 100 --yes");
    bench.good("io trim DRIVE/1 0 --yes");
    let end = 1 << 15;
    bench.refused(
        &format!("io verify DRIVE/1 {end}"),
        Exit::Usage,
        "1 blocks from 32768 on are not",
    );
    bench.refused("io verify DRIVE/1 0 0", Exit::Usage, "0 blocks");
    bench.refused("io verify DRIVE/3 0", Exit::Usage, "no namespace 3 is attached; there are: 1");
    bench.refused("io copy DRIVE/1 9 0-1 --yes", Exit::Usage, "`0-1` is not a range of blocks");
    bench.refused("io verify DRIVE 0", Exit::Usage, "names no namespace");
    let odd = bench.file("odd", &[1; 100]);
    bench.refused(&format!("io write DRIVE/1 0 {odd} --yes"), Exit::Usage, "not whole blocks");
}

#[test]
fn zones_reservations_and_directives_have_commands() {
    let zoned = ModelNamespace::new(1 << 20, 512).zoned(256, 256);
    let namespaces = vec![zoned, ModelNamespace::new(1 << 20, 512)];
    let bench = Bench::new(ModelOptions { namespaces, ..Default::default() });
    let block = bench.file("block", &[1; 1024]);
    assert_eq!(bench.good(&format!("zone append DRIVE/1 256 {block} --yes")), json!({"lba": 256}));
    let zones = bench.good("zone report DRIVE/1 --limit 2");
    assert_eq!(zones["zones"][1]["write_pointer_lba"], json!(258));
    assert_eq!(zones["zones"][1]["state"], json!("implicitly-opened"));
    bench.good("zone close DRIVE/1 256");
    bench.good("zone open DRIVE/1 256");
    bench.refused("zone finish DRIVE/1 256", Exit::Usage, "nothing more goes into it");
    bench.good("zone finish DRIVE/1 256 --yes");
    bench.refused("zone open DRIVE/1 256", Exit::Failure, "Invalid Zone State Transition");
    bench.refused("zone reset DRIVE/1 256", Exit::Usage, "its data is gone");
    bench.good("zone reset DRIVE/1 --all --yes");
    bench.refused("zone report DRIVE/2", Exit::Usage, "the namespace is not zoned");
    bench.good("reservation register DRIVE/2 --new 0xa");
    bench.good("reservation acquire DRIVE/2 --current 0xa write-exclusive");
    let report = bench.good("reservation report DRIVE/2");
    assert_eq!(report["registrants_extended"][0]["key"], json!(10));
    bench.model.other_host(2, 0xb, 1);
    bench.refused("io zero DRIVE/2 0 --yes", Exit::Failure, "Reservation Conflict");
    bench.good("reservation acquire DRIVE/2 --current 0xa --preempt 0xb write-exclusive --yes");
    bench.good("reservation release DRIVE/2 --current 0xa write-exclusive");
    bench.good("reservation register DRIVE/2 --current 0xa");
    bench.good("directive enable-streams DRIVE/2");
    assert_eq!(bench.good("directive allocate-streams DRIVE/2 3"), json!({"streams": 3}));
    assert_eq!(bench.good("directive list DRIVE/2")["streams"]["allocated"], json!(3));
    bench.good("directive release-streams DRIVE/2");
    bench.good("directive disable-streams DRIVE/2");
    assert_eq!(bench.good("directive fdp DRIVE")["enabled"], json!(false));
    bench.refused("directive fdp DRIVE --set 0", Exit::Failure, "Command Sequence Error");
    bench.refused("directive fdp DRIVE --set on", Exit::Usage, "neither a configuration nor `off`");
    bench.refused("directive handles DRIVE/2", Exit::Failure, "FDP Disabled");
}

#[test]
fn passthrough_sends_dwords_and_shows_what_comes_back() {
    let bench = plain();
    let smart = bench.good("passthru admin DRIVE --opcode 2 --dword 10=0x30002 --read 16 --yes");
    assert_eq!(smart["data"].as_str().map(|data| &data[..6]), Some("003601"), "310 K");
    let seven = bench.file("seven", &[7; 512]);
    bench.good(&format!("passthru io DRIVE/1 --opcode 1 --dword 10=3 --file {seven} --yes"));
    let read = bench.good("passthru io DRIVE/1 --opcode 2 --dword 10=3 --read 512 --yes");
    assert_eq!(read["data"], json!("07".repeat(512)));
    for (line, exit, said) in [
        ("passthru admin DRIVE --opcode 0 --yes", Exit::Usage, "is the driver's own to send"),
        ("passthru admin DRIVE --opcode 256 --yes", Exit::Usage, "an opcode has 8 bits"),
        ("passthru admin DRIVE --opcode 6 --dword 9=1 --yes", Exit::Usage, "`9=1` is not a dword"),
        ("passthru admin DRIVE --opcode 6 --read 9999999 --yes", Exit::Usage, "carries at most"),
        ("passthru io DRIVE --opcode 2 --yes", Exit::Usage, "names no namespace"),
        ("passthru io DRIVE/1 --opcode 0x99 --yes", Exit::Failure, "Invalid Command Opcode"),
    ] {
        bench.refused(line, exit, said);
    }
}

#[test]
fn a_format_says_all_that_it_takes_and_keeps_the_format_that_is_there() {
    let namespaces = vec![ModelNamespace::new(1 << 20, 4096); 2];
    let bench = Bench::new(ModelOptions { namespaces: namespaces.clone(), ..Default::default() });
    bench.good("format DRIVE/1 --erase crypto --yes");
    assert_eq!(bench.asked.take(), ["0000:00:04.0/1"]);
    let id = bench.good("id ns DRIVE/1");
    assert_eq!(id["flbas"], json!(1), "blocks of 4096 bytes as before");
    let said = "options of a format were given, and no format";
    bench.refused("format DRIVE/1 --protection 1 --yes", Exit::Usage, said);
    // FNA bit 0: every format; bit 1: an erase.
    for (fna, line, asked) in [
        (1, "format DRIVE/1", "0000:00:04.0"),
        (2, "format DRIVE/1", "0000:00:04.0/1"),
        (2, "format DRIVE/1 --erase user-data", "0000:00:04.0"),
    ] {
        let options = ModelOptions { namespaces: namespaces.clone(), fna, ..Default::default() };
        let bench = Bench::new(options);
        let said = if asked.contains('/') { "Namespace" } else { "All namespaces" };
        bench.refused(line, Exit::Usage, said);
        assert_eq!(bench.asked.take(), [asked], "{line} with FNA {fna}");
    }
}

#[test]
fn a_command_that_was_ended_does_not_say_that_nothing_was_changed() {
    let bench = plain();
    bench.good("id ctrl DRIVE");
    bench.model.hold(true);
    let model = Arc::clone(&bench.model);
    let file = bench.file("block", &[7; 512]);
    // The write is with the controller when that fails.
    bench.model.at_next_look(move || model.fail_fatally());
    bench.refused(
        &format!("io write DRIVE/1 0 {file} --yes"),
        Exit::Failure,
        "it may have been done, in part or in whole",
    );
}

#[test]
fn the_time_limit_of_a_passed_command_is_that_of_the_controller() {
    let bench = plain();
    bench.good("passthru io DRIVE/1 --opcode 0 --timeout 7 --yes");
    assert_eq!(bench.timeouts.take().last(), Some(&Duration::from_secs(7)));
}
