# Helpers for the scripts of programs. Each runs with errexit, nounset and pipefail, in the empty folder $WORK.
#
# | variable | what |
# |---|---|
# | `LIBRARY` | the library to preload; empty when the program runs without it |
# | `DROP_IN` | the folder that stands in for libaio; empty when it does not |
# | `PRELOAD_LIBRARY` | the library, for scripts that judge by themselves |
# | `KERNEL`, `ROOT`, `ROOT_PARAMETER` | a guest's kernel, its root disk, how it is told of it |
# | `WORK` | a folder of its own on a disk, the working folder |
# | `TREE` | where packages that are not installed were unpacked |
# | `STATS` | where the library's processes say what they served |
# | `TRACE` | a folder for what strace saw; empty when nobody watches, for figures |
# | `FIGURES` | where `figure` writes |

set -o errexit -o nounset -o pipefail

fail() {
    echo "FAIL: $*" >&2
    exit 1
}

# Runs a program with the library, where this side has it, and under the eyes of strace.
run() {
    local with=()
    if [[ -n $LIBRARY ]]; then
        with=("LD_PRELOAD=$LIBRARY" "UAIO_PRELOAD_STATS=$STATS")
    elif [[ -n $DROP_IN ]]; then
        with=("LD_LIBRARY_PATH=$DROP_IN:$LD_LIBRARY_PATH" "UAIO_PRELOAD_STATS=$STATS")
    fi
    if [[ -z $TRACE ]]; then
        env "${with[@]}" "$@"
        return
    fi
    # Stops at these three calls only, so a program runs nearly as fast as without.
    strace -f -qq --seccomp-bpf -e trace=io_submit,io_setup,io_uring_setup -e signal=none \
        -o "$(mktemp "$TRACE/XXXXXX")" "${with[@]/#/-E}" "$@"
}

# Runs fio with these arguments; every job has to end without an error.
fio_passes() {
    run fio --output=fio.log "$@" || fail "fio: $(tail -n 20 fio.log)"
    grep -q 'err= 0' fio.log || fail "fio did nothing: $(tail -n 20 fio.log)"
    ! grep -E 'err= *[1-9]|^verify: |fio: .*error=' fio.log || fail "fio found errors"
}

# Says what the load came to: a number and its unit.
figure() {
    echo "$1 $2" >>"$FIGURES"
}

# Seconds since the epoch, with a fraction.
now() {
    date +%s.%N
}

# The seconds since `now` said $1.
since() {
    awk -v from="$1" -v to="$(now)" 'BEGIN { printf "%.3f", to - from }'
}

# Tries a command ten times a second until it succeeds, for $1 seconds.
wait_for() {
    local tries=$(($1 * 10))
    shift
    until "$@" >/dev/null 2>&1; do
        ((tries-- > 0)) || fail "waited in vain for: $*"
        sleep 0.1
    done
}

# Waits until the process $1 is gone, for $2 seconds.
wait_gone() {
    local tries=$(($2 * 10))
    while kill -0 "$1" 2>/dev/null; do
        ((tries-- > 0)) || fail "process $1 does not end"
        sleep 0.1
    done
}

# Ends what is left running in the background, and undoes what the script has set up.
at_end=()
cleanup() {
    local status=$? command
    trap - EXIT
    for command in "${at_end[@]}"; do
        eval "$command" >/dev/null 2>&1 || true
    done
    exit "$status"
}
trap cleanup EXIT
