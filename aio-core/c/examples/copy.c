/* Copies a file into a volume, 16 blocks at a time. Also opening it, asking for its size and closing it
 * are commands, so a program that has something else to do waits for none of it.
 *
 *   cc copy.c -I../include -L../../../target/debug -luaio -o copy && ./copy FILE
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "uaio.h"

enum { DEPTH = 16, BLOCK = 65536 };

/* One block on its way: read from the file, then written to the volume. */
struct block {
    struct uaio_iocb iocb;
    char data[BLOCK];
};

static void fail(const char *what, int64_t answer)
{
    fprintf(stderr, "copy: %s: %s\n", what, strerror((int)-answer));
    exit(1);
}

static void submit(uaio_context_t context, struct block *block)
{
    struct uaio_iocb *iocb = &block->iocb;
    int answer = uaio_submit(context, 1, &iocb);
    if (answer != 1)
        fail("submit", answer);
}

/* One command that there is nothing else to do beside. */
static int64_t wait_for(uaio_context_t context, struct uaio_iocb iocb)
{
    struct uaio_iocb *list = &iocb;
    struct uaio_event event;
    int answer = uaio_submit(context, 1, &list);
    if (answer == 1)
        answer = uaio_getevents(context, 1, 1, &event, NULL);
    return answer == 1 ? event.res : answer;
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: copy FILE\n");
        return 2;
    }
    uaio_context_t context;
    int answer = uaio_setup(DEPTH, &context);
    if (answer < 0)
        fail("setup", answer);

    struct uaio_iocb open = {
        .opcode = UAIO_OPENAT, .fd = AT_FDCWD, .buf = argv[1], .op_flags = O_RDONLY,
    };
    int64_t fd = wait_for(context, open);
    if (fd < 0)
        fail(argv[1], fd);
    struct statx status = {0};
    struct uaio_statx ask = {.path = "", .status = &status, .mask = STATX_SIZE};
    struct uaio_iocb stat = {
        .opcode = UAIO_STATX, .fd = (int)fd, .buf = &ask, .op_flags = AT_EMPTY_PATH,
    };
    int64_t asked = wait_for(context, stat);
    if (asked < 0)
        fail(argv[1], asked);
    int64_t size = (int64_t)status.stx_size;

    int volume = uaio_open(context, "ram:64M", 0, 4 << 20);
    if (volume < 0)
        fail("open", volume);
    if (size > uaio_size(context, volume))
        fail(argv[1], -EFBIG);

    static struct block blocks[DEPTH];
    int64_t next = 0, copied = 0;
    int busy = 0;
    for (int i = 0; i < DEPTH && next < size; i++, next += BLOCK, busy++) {
        struct uaio_iocb iocb = {
            .data = (uint64_t)(uintptr_t)&blocks[i], .opcode = UAIO_PREAD, .fd = (int)fd,
            .buf = blocks[i].data, .nbytes = BLOCK, .offset = next,
        };
        blocks[i].iocb = iocb;
        submit(context, &blocks[i]);
    }
    while (busy > 0) {
        struct uaio_event event;
        answer = uaio_getevents(context, 1, 1, &event, NULL);
        if (answer != 1)
            fail("getevents", answer);
        if (event.res < 0)
            fail(event.obj->opcode == UAIO_PREAD ? "read" : "write", event.res);
        struct block *block = (struct block *)(uintptr_t)event.data;
        if (block->iocb.opcode == UAIO_PREAD && event.res > 0) {
            block->iocb.opcode = UAIO_PWRITE;
            block->iocb.flags = UAIO_F_VOLUME;
            block->iocb.fd = volume;
            block->iocb.nbytes = (uint64_t)event.res;
            submit(context, block);
            continue;
        }
        if (block->iocb.opcode == UAIO_PWRITE)
            copied += event.res;
        if (next < size) {
            block->iocb.opcode = UAIO_PREAD;
            block->iocb.flags = 0;
            block->iocb.fd = (int)fd;
            block->iocb.nbytes = BLOCK;
            block->iocb.offset = next;
            next += BLOCK;
            submit(context, block);
        } else {
            busy--;
        }
    }
    struct uaio_iocb close = {.opcode = UAIO_CLOSE, .fd = (int)fd};
    int64_t closed = wait_for(context, close);
    if (closed < 0)
        fail(argv[1], closed);
    answer = uaio_destroy(context);
    if (answer < 0)
        fail("destroy", answer);
    printf("%lld bytes copied\n", (long long)copied);
    return 0;
}
