# Helpers for scenarios; see CONTRIBUTING for how to write one. Sourced by bash in the guest.

# kernel_device INDEX [NSID] prints the kernel's block device of a drive; the kernel numbers namespaces in any order.
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
