# Helpers for scenarios, sourced by bash in the guest. What each does is said above it.

# report LINE: writes a line for the host, apart from the console.
report() {
	echo "$*" >/dev/ttyS1
}

# say TEXT: one line for people.
say() {
	echo "== $*"
}

# fail TEXT: ends the scenario. Works in subshells too, as their failure is one of the scenario.
fail() {
	trap - ERR
	echo "FAILED: $*"
	report "FAIL $*"
	exit 1
}

# keep NAME VALUE: sets the variable NAME in the phases to come.
keep() {
	report "KEEP $1 $2"
}

# power_cut: ends this phase as a power cut would.
power_cut() {
	report POWERCUT
	sleep 60
	fail "the power was not cut"
}

# wait_for SECONDS COMMAND…: tries COMMAND until it succeeds.
wait_for() {
	local end=$((SECONDS + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		((SECONDS < end)) || fail "waited in vain for: $*"
		sleep 0.2
	done
}

# equal GOT WANTED WHAT: compares two texts.
equal() {
	[[ $1 == "$2" ]] || fail "$3: got '$1', wanted '$2'"
}

# kernel_device INDEX [NSID]: prints the kernel's block device of a drive; the kernel numbers namespaces in any order.
kernel_device() {
	local name=NVME$1 namespace
	for namespace in /sys/class/nvme/"${!name}"/"${!name}"n*; do
		if [[ $(<"$namespace/nsid") == "${2:-1}" ]]; then
			echo "/dev/${namespace##*/}"
			return
		fi
	done
	return 1
}

# find_drives: sets NVME0, NVME1, … anew, whose drives may have moved between drivers; fails while drive 0 has no driver
# of the kernel.
find_drives() {
	local controller serial
	unset NVME0
	for controller in /sys/class/nvme/nvme*; do
		[[ -e $controller/serial ]] || continue
		serial=$(tr -d ' ' <"$controller/serial")
		if [[ $serial == uaio[0-9]* ]]; then
			declare -g "NVME${serial#uaio}=${controller##*/}"
		fi
	done
	[[ ${NVME0:-} && -b $(kernel_device 0) ]]
}

# bind_drive INDEX: gives a drive to vfio-pci.
bind_drive() {
	local address=DRIVE$1
	modprobe vfio-pci
	timeout 60 aioctl nvme bind "${!address}"
}

# serve BACKEND [OPTION…]: serves BACKEND detached and sets DEV to its block device and ID to its number.
serve() {
	modprobe ublk_drv
	DEV=$(timeout 90 aioctl add "$@" --detach) || fail "aioctl add $*"
	[[ $DEV =~ ^/dev/ublkb([0-9]+)$ ]] || fail "aioctl add $* printed '$DEV'"
	ID=${BASH_REMATCH[1]}
	[[ -b $DEV ]] || fail "aioctl add $* came back before $DEV was there"
}

# unserve [ID]: stops a device and waits until the kernel has let go of it.
unserve() {
	local id=${1:-$ID}
	timeout 90 aioctl del "$id" || fail "aioctl del $id"
	[[ ! -e /dev/ublkb$id ]] || fail "/dev/ublkb$id outlived aioctl del"
}

# server_pid [ID]: prints the process that serves a device.
server_pid() {
	aioctl info "${1:-$ID}" --json | jq -e '.pid'
}

# gone PID: there is no such process.
gone() {
	! kill -0 "$1" 2>/dev/null
}

# expect_error PATTERN COMMAND…: COMMAND fails by itself within 60 s with one line on standard error that matches
# the extended regular expression PATTERN, and prints nothing else.
expect_error() {
	local pattern=$1 status=0 out
	shift
	out=$(timeout 60 "$@" 2>/tmp/stderr) || status=$?
	((status != 0)) || fail "succeeded: $*"
	((status < 124)) || fail "status $status (killed or timed out): $*"
	[[ -z $out ]] || fail "printed '$out': $*"
	equal "$(wc -l </tmp/stderr)" 1 "lines of error of $* ($(head -c 300 /tmp/stderr))"
	grep -Eq "^aioctl: " /tmp/stderr || fail "error without its name: $(cat /tmp/stderr)"
	grep -Eqi -- "$pattern" /tmp/stderr || fail "error of $*: '$(cat /tmp/stderr)' does not match '$pattern'"
	say "$(cat /tmp/stderr)"
}

# qmp COMMAND [ARGUMENTS]: has QEMU do a command of its monitor (ARGUMENTS are JSON) and prints what it returned.
qmp() {
	local line id=$RANDOM$RANDOM
	local arguments=${2:-\{\}}
	stty -F /dev/ttyS2 raw -echo
	exec 7<>/dev/ttyS2
	# QEMU's greeting may have been echoed before: 255 has it forget half a command.
	sleep 0.2
	printf '\377{"execute":"qmp_capabilities"}\n{"execute":"%s","arguments":%s,"id":"%s"}\n' "$1" "$arguments" "$id" >&7
	while read -r -t 20 line <&7; do
		[[ $line == *"\"id\": \"$id\""* ]] || continue
		exec 7>&-
		[[ $line == *'"return":'* ]] || fail "QEMU's $1: $line"
		jq -Mc '.return' <<<"$line"
		return
	done
	fail "QEMU does not answer to $1"
}

# count NAME: prints how often the drive of the served device had to do NAME about a failure.
count() {
	aioctl stats "$ID" --json | jq -e ".drive.counts.$1"
}

# verify_load TARGET SECONDS [FIO OPTION…]: writes and reads TARGET with crc32c in every block.
verify_load() {
	local target=$1 seconds=$2
	shift 2
	timeout $((seconds * 6 + 60)) fio --name=verify --filename="$target" --ioengine=io_uring --direct=1 --iodepth=16 \
		--rw=randwrite --bsrange=4k-64k --size=96M --verify=crc32c --verify_fatal=1 --do_verify=1 \
		--time_based --runtime="$seconds" --verify_backlog=256 --randseed=7 --eta=never --output-format=terse \
		--output=/tmp/fio.out "$@" || fail "fio on $target: $(tail -3 /tmp/fio.out)"
}

# fio_iops DEVICE DEPTH [FIO OPTION…]: prints how many 4 KiB random reads a second DEVICE does, every block once.
fio_iops() {
	local device=$1 depth=$2
	shift 2
	fio --name=read --filename="$device" --ioengine=io_uring --direct=1 --rw=randread --bs=4k --iodepth="$depth" \
		--time_based --runtime=2 --ramp_time=300ms --output-format=json "$@" | jq -e '.jobs[0].read.iops'
}

# best NUMBER…: prints the largest.
best() {
	printf '%s\n' "$@" | sort -g | tail -1
}

# tree_sums FOLDER: prints the checksum of every file below.
tree_sums() {
	(cd "$1" && find . -type f -print0 | sort -z | xargs -0 md5sum)
}

# make_fs TYPE DEVICE and check_fs TYPE DEVICE.
make_fs() {
	case $1 in
	ext4) mkfs.ext4 -q -F "$2" ;;
	xfs) mkfs.xfs -q -f "$2" ;;
	btrfs) mkfs.btrfs -q -f "$2" ;;
	esac
}
check_fs() {
	case $1 in
	ext4) e2fsck -f -n "$2" ;;
	xfs) xfs_repair -n "$2" ;;
	btrfs) btrfs check --readonly "$2" ;;
	esac
}

# filesystem_round TYPE BACKEND [SERVE OPTION…]: a file system of TYPE on BACKEND takes a verified load and a tree of
# files, is clean after unmounting, and has every file unchanged after the server was stopped and started again.
filesystem_round() {
	local type=$1 backend=$2
	shift 2
	modprobe "$type" 2>/dev/null || true
	serve "$backend" "$@"
	make_fs "$type" "$DEV"
	mkdir -p /mnt/round
	mount "$DEV" /mnt/round
	verify_load /mnt/round/verify 5
	cp -a /usr/lib/python3* /usr/sbin /mnt/round/
	tree_sums /mnt/round >/tmp/sums.before
	sync
	umount /mnt/round
	check_fs "$type" "$DEV" || fail "$type is not clean"
	unserve
	serve "$backend" "$@"
	mount "$DEV" /mnt/round
	tree_sums /mnt/round >/tmp/sums.after
	cmp /tmp/sums.before /tmp/sums.after || fail "files changed while the server was stopped"
	if [[ $type == btrfs ]]; then
		btrfs scrub start -B /mnt/round | tee /tmp/scrub
		grep -q "no errors found" /tmp/scrub || fail "btrfs scrub found errors"
	fi
	umount /mnt/round
	unserve
}

# nobody_stuck: nobody is left in an uninterruptible sleep.
nobody_stuck() {
	local stuck
	sleep 1
	stuck=$(ps -eo stat=,pid=,comm= | awk '$1 ~ /^D/ && $3 !~ /^(kworker|jbd2|kswapd)/')
	[[ -z $stuck ]] || fail "stuck: $stuck"
}

# stamps write DEVICE LOG: writes numbered blocks to DEVICE with O_DIRECT until an error, LOG taking each block that was
# acknowledged. stamps flush: the same, LOG taking a block only when an fdatasync after it has succeeded.
# stamps check DEVICE LOG: every block in LOG is on DEVICE as it was written, or as it was written later.
stamps() {
	python3 /uaio/stamps.py "$@"
}

# run_test_binaries [ARGUMENT…]: runs every test binary that came along.
run_test_binaries() {
	local binary
	for binary in /uaio/tests/*; do
		say "${binary##*/} $*"
		"$binary" "$@" || fail "${binary##*/} $*"
	done
}

# run_scenario: runs the scenario's test() and reports.
run_scenario() {
	set -Eeuo pipefail
	# In a subshell it is for whoever started that to say whether its failure is one.
	trap '((BASH_SUBSHELL > 0)) || fail "line $LINENO of ${FUNCNAME[0]:-the script}: $BASH_COMMAND"' ERR
	test
	trap - ERR
	report PASS
}
