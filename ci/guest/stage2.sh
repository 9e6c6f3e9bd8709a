#!/bin/bash
# Sets the guest up, runs /uaio/main.sh on the console, reports its exit status on the second serial port, and ends.
export PATH=/uaio/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root TERM=${TERM:-linux} LANG=C.UTF-8
mount -t devpts devpts /dev/pts 2>/dev/null || { mkdir -p /dev/pts && mount -t devpts devpts /dev/pts; }
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mkdir -p /dev/shm /run/lock
mount -t tmpfs tmpfs /dev/shm
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
[ -e /dev/stdin ] || { ln -s /proc/self/fd/0 /dev/stdin; ln -s /proc/self/fd/1 /dev/stdout; ln -s /proc/self/fd/2 /dev/stderr; }
hostname guest
ip link set lo up
ulimit -l unlimited
ulimit -n 65536
echo 30 >/proc/sys/kernel/hung_task_timeout_secs
echo 4 >/proc/sys/kernel/printk
stty -F /dev/ttyS1 raw -echo
echo START >/dev/ttyS1

# The test drives' PCI addresses and kernel names, in the order of the drive options: DRIVE0=0000:00:04.0 NVME0=nvme1 …
set -a
. /uaio/env
for controller in /sys/class/nvme/nvme*; do
	serial=$(tr -d ' ' <"$controller/serial")
	name=${controller##*/}
	address=$(basename "$(readlink -f "$controller/device")")
	case $serial in
	uaio-root*) ROOT_DRIVE=$address ROOT_NVME=$name ;;
	uaio[0-9]*) declare "DRIVE${serial#uaio}=$address" "NVME${serial#uaio}=$name" ;;
	esac
done
set +a

cd /uaio
setsid --ctty --wait bash /uaio/main.sh </dev/ttyS0 >/dev/ttyS0 2>&1
status=$?
echo "EXIT $status" >/dev/ttyS1
# stty waits until what was written has left the port.
stty -F /dev/ttyS1 raw -echo
stty -F /dev/ttyS0 sane
sync /uaio
# Time for the host to see the end of the console apart from what the kernel says when it goes.
sleep 0.2
# QEMU runs with -no-reboot: a reset ends it at once.
echo b >/proc/sysrq-trigger
sleep 10
