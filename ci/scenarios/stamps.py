"""Writes numbered blocks and checks them later; see `stamps` in common.sh."""

import mmap
import os
import struct
import sys

BLOCK = 4096
BLOCKS = 16384
FLUSH_EVERY = 16
HEAD = struct.Struct("<8sQQ")
MAGIC = b"uaiostmp"


def place(number):
    """The block that write `number` goes to: all over the device, and each again and again."""
    return number * 2654435761 % BLOCKS


def write(device, log, flushing):
    descriptor = os.open(device, os.O_RDWR | os.O_DIRECT)
    page = mmap.mmap(-1, BLOCK)
    waiting = []
    with open(log, "w", buffering=1) as acknowledged:
        number = 1
        try:
            while True:
                block = place(number)
                stamp = HEAD.pack(MAGIC, block, number)
                page[:] = (stamp * (BLOCK // len(stamp) + 1))[:BLOCK]
                if os.pwrite(descriptor, page, block * BLOCK) != BLOCK:
                    raise OSError("short write")
                waiting.append(f"{block} {number}\n")
                if not flushing or number % FLUSH_EVERY == 0:
                    if flushing:
                        os.fdatasync(descriptor)
                    acknowledged.writelines(waiting)
                    waiting.clear()
                number += 1
        except OSError as error:
            print(f"write {number} ended: {error}")


def check(device, log):
    wanted = {}
    with open(log) as acknowledged:
        for line in acknowledged:
            words = line.split()
            if len(words) == 2 and line.endswith("\n"):
                wanted[int(words[0])] = int(words[1])
    descriptor = os.open(device, os.O_RDONLY | os.O_DIRECT)
    page = mmap.mmap(-1, BLOCK)
    wrong = 0
    for block, number in wanted.items():
        os.preadv(descriptor, [page], block * BLOCK)
        magic, found_block, found = HEAD.unpack(page[: HEAD.size])
        stamp = HEAD.pack(magic, found_block, found)
        whole = page[:] == (stamp * (BLOCK // len(stamp) + 1))[:BLOCK]
        if magic != MAGIC or found_block != block or found < number or not whole:
            print(f"block {block}: wanted {number}, found {magic} {found_block} {found}")
            wrong += 1
    print(f"{len(wanted)} blocks checked, {wrong} wrong")
    return 1 if wrong or not wanted else 0


if __name__ == "__main__":
    verb, device, log = sys.argv[1:]
    if verb == "check":
        sys.exit(check(device, log))
    write(device, log, verb == "flush")
