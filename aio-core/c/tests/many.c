/* Ten thousand requests and more: reads, writes, lists, cancels, names, notices, contexts destroyed with requests
 * in flight. Each read is compared with what was written. Run by c_face.rs, also under valgrind, which sees
 * every byte that is used without having been set, used after it was freed, or never freed.
 *
 * Arguments: a directory of its own, and the seed. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "uaio.h"

enum { DEPTH = 32, BLOCK = 512, BLOCKS = 256, ROUNDS = 300, ENDS = 12 };

static unsigned long long seed, state;

#define IS(value, wanted)                                                                      \
    do {                                                                                       \
        long long is = (long long)(value), want = (long long)(wanted);                         \
        if (is != want) {                                                                      \
            fprintf(stderr, "line %d, seed %llu: %s is %lld, not %lld\n", __LINE__, seed,       \
                    #value, is, want);                                                         \
            exit(1);                                                                           \
        }                                                                                      \
    } while (0)

static unsigned random_below(unsigned end)
{
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (unsigned)(state >> 33) % end;
}

static long submitted;

/* One request and its own memory, malloc'd each time, so that a use after the event is seen. */
struct request {
    struct uaio_iocb iocb;
    struct iovec parts[2];
    int block;
    unsigned char *bytes;
};

static struct request *request(int opcode, int fd, unsigned flags)
{
    struct request *one = calloc(1, sizeof *one);
    one->block = -1;
    one->iocb.opcode = (uint16_t)opcode;
    one->iocb.data = (uint64_t)(uintptr_t)one;
    one->iocb.fd = fd;
    one->iocb.flags = flags;
    return one;
}

static struct request *transfer(int opcode, int fd, unsigned flags, int block)
{
    struct request *one = request(opcode, fd, flags);
    one->block = block;
    /* Set, because valgrind does not see what the kernel writes for io_uring. */
    one->bytes = calloc(1, BLOCK);
    one->iocb.buf = one->bytes;
    one->iocb.nbytes = BLOCK;
    one->iocb.offset = (int64_t)block * BLOCK;
    if (opcode == UAIO_PREADV || opcode == UAIO_PWRITEV) {
        one->parts[0] = (struct iovec){one->bytes, 100};
        one->parts[1] = (struct iovec){one->bytes + 100, BLOCK - 100};
        one->iocb.buf = one->parts;
        one->iocb.nbytes = 2;
    }
    return one;
}

static void done_with(struct request *one)
{
    free(one->bytes);
    free(one);
}

static void submit(uaio_context_t c, struct request **list, int count)
{
    struct uaio_iocb *iocbs[DEPTH];
    for (int i = 0; i < count; i++)
        iocbs[i] = &list[i]->iocb;
    IS(uaio_submit(c, count, iocbs), count);
    submitted += count;
}

/* Takes all of these out, and says how many moved what they were asked to. */
static int take(uaio_context_t c, int count, int64_t wanted, const unsigned char *tags)
{
    struct uaio_event events[DEPTH];
    struct timespec long_enough = {60, 0};
    int good = 0;
    for (int got = 0; got < count;) {
        int answer = uaio_getevents(c, 1, DEPTH, events, &long_enough);
        IS(answer > 0, 1);
        for (int i = 0; i < answer; i++) {
            struct request *one = (struct request *)(uintptr_t)events[i].data;
            IS(events[i].obj == &one->iocb, 1);
            if (events[i].res != -ECANCELED) {
                IS(events[i].res, one->bytes ? wanted : 0);
                good++;
            }
            int reads = one->iocb.opcode == UAIO_PREAD || one->iocb.opcode == UAIO_PREADV;
            if (reads && events[i].res == BLOCK)
                for (int at = 0; at < BLOCK; at++)
                    IS(one->bytes[at], tags[one->block]);
            done_with(one);
        }
        got += answer;
    }
    return good;
}

/* Writes and reads of blocks, on a volume or a file, in batches and lists; some links. */
static void blocks(uaio_context_t c, int fd, unsigned flags)
{
    unsigned char tags[BLOCKS] = {0};
    for (int round = 0; round < ROUNDS; round++) {
        int writes = round % 2 == 0, count = 1 + (int)random_below(DEPTH);
        int first = (int)random_below(BLOCKS - DEPTH);
        struct request *list[DEPTH];
        for (int i = 0; i < count; i++) {
            int vectored = random_below(4) == 0, block = first + i;
            int opcode = writes ? (vectored ? UAIO_PWRITEV : UAIO_PWRITE)
                                : (vectored ? UAIO_PREADV : UAIO_PREAD);
            list[i] = transfer(opcode, fd, flags, block);
            if (writes) {
                tags[block] = (unsigned char)random_below(256);
                memset(list[i]->bytes, tags[block], BLOCK);
            }
        }
        if (random_below(3) == 0) {
            struct uaio_iocb *iocbs[DEPTH];
            for (int i = 0; i < count; i++)
                iocbs[i] = &list[i]->iocb;
            IS(uaio_listio(c, random_below(2) ? UAIO_LIST_WAIT : UAIO_LIST_NOWAIT, iocbs, count, NULL), count);
            submitted += count;
        } else {
            for (int i = 0; i + 1 < count; i++)
                list[i]->iocb.flags |= random_below(8) == 0 ? UAIO_F_LINK : 0;
            submit(c, list, count);
        }
        IS(take(c, count, BLOCK, tags), count);
        if (random_below(10) == 0) {
            struct request *sync = request(random_below(2) ? UAIO_FSYNC : UAIO_FDSYNC, fd, flags);
            submit(c, &sync, 1);
            IS(take(c, 1, 0, tags), 1);
        }
    }
}

/* Reads of a pipe that wait, some cancelled, the others ended by a byte each. */
static void cancels(uaio_context_t c)
{
    int pipes[2];
    IS(pipe(pipes), 0);
    for (int round = 0; round < 40; round++) {
        struct request *list[DEPTH];
        int count = 1 + (int)random_below(DEPTH), left = 0;
        for (int i = 0; i < count; i++) {
            list[i] = transfer(UAIO_PREAD, pipes[0], 0, 0);
            list[i]->iocb.nbytes = 1;
        }
        submit(c, list, count);
        for (int i = 0; i < count; i++) {
            if (random_below(2)) {
                int answer = uaio_cancel(c, &list[i]->iocb);
                IS(answer >= 0 && answer <= 2, 1);
            }
        }
        /* Enough for all that wait; what is too much is read away. */
        char bytes[DEPTH] = {0};
        IS(write(pipes[1], bytes, (size_t)count), count);
        left = count - take(c, count, 1, NULL);
        if (left > 0)
            IS(read(pipes[0], bytes, (size_t)left), left);
    }
    close(pipes[0]);
    close(pipes[1]);
}

static int64_t done(uaio_context_t c, struct uaio_iocb iocb)
{
    struct uaio_event event;
    struct uaio_iocb *list = &iocb;
    IS(uaio_submit(c, 1, &list), 1);
    submitted++;
    IS(uaio_getevents(c, 1, 1, &event, NULL), 1);
    return event.res;
}

static struct uaio_iocb on_name(int opcode, int dir, const void *buf, uint64_t nbytes, uint32_t flags)
{
    return (struct uaio_iocb){
        .opcode = (uint16_t)opcode, .fd = dir, .buf = (void *)(uintptr_t)buf, .nbytes = nbytes,
        .op_flags = flags,
    };
}

static void names(uaio_context_t c, int dir)
{
    for (int round = 0; round < 60; round++) {
        char *name = malloc(16), *other = malloc(16);
        snprintf(name, 16, "n%d", round);
        snprintf(other, 16, "o%d", round);
        int64_t fd = done(c, on_name(UAIO_OPENAT, dir, name, 0600, O_CREAT | O_RDWR));
        IS(fd > 2, 1);
        IS(done(c, on_name(UAIO_FTRUNCATE, (int)fd, NULL, 5, 0)), 0);
        struct uaio_names names = {.old_path = name, .new_path = other, .new_fd = dir};
        IS(done(c, on_name(UAIO_RENAMEAT, dir, &names, 0, 0)), 0);
        struct statx *status = calloc(1, sizeof *status);
        struct uaio_statx ask = {.path = other, .status = status, .mask = STATX_SIZE};
        IS(done(c, on_name(UAIO_STATX, dir, &ask, 0, 0)), 0);
        IS(status->stx_size, 5);
        struct uaio_call call = {.number = SYS_fchmod, .arguments = {(uint64_t)fd, 0640}};
        IS(done(c, on_name(UAIO_CALL, 0, &call, 0, 0)), 0);
        IS(done(c, on_name(UAIO_UNLINKAT, dir, name, 0, 0)), -ENOENT);
        IS(done(c, on_name(UAIO_UNLINKAT, dir, other, 0, 0)), 0);
        IS(done(c, on_name(UAIO_CLOSE, (int)fd, NULL, 0, 0)), 0);
        free(status);
        free(name);
        free(other);
    }
}

/* Contexts that are destroyed with requests in flight of every kind. */
static void ends(int dir)
{
    for (int round = 0; round < ENDS; round++) {
        uaio_context_t c;
        IS(uaio_setup(DEPTH, &c), 0);
        int volume = uaio_open(c, "ram:1M", 0, 1 << 18);
        IS(volume, 1);
        int pipes[2], efd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        IS(pipe(pipes), 0);
        int count = 1 + (int)random_below(DEPTH);
        struct request *list[DEPTH];
        for (int i = 0; i < count; i++) {
            switch (random_below(5)) {
            case 0:
                list[i] = transfer(UAIO_PREAD, volume, UAIO_F_VOLUME, (int)random_below(BLOCKS));
                break;
            case 1:
                list[i] = transfer(UAIO_PWRITE, volume, UAIO_F_VOLUME, (int)random_below(BLOCKS));
                memset(list[i]->bytes, 1, BLOCK);
                break;
            case 2:
                list[i] = request(UAIO_OPENAT, dir, 0);
                list[i]->iocb.buf = "opened";
                list[i]->iocb.nbytes = 0600;
                list[i]->iocb.op_flags = O_CREAT | O_RDWR;
                break;
            default:
                list[i] = transfer(UAIO_PREAD, pipes[0], UAIO_F_RESFD, 0);
                list[i]->iocb.resfd = efd;
            }
        }
        submit(c, list, count);
        if (random_below(2)) {
            struct uaio_event events[4];
            int taken = uaio_getevents(c, 0, 4, events, NULL);
            IS(taken >= 0, 1);
            for (int i = 0; i < taken; i++) {
                struct request *one = (struct request *)(uintptr_t)events[i].data;
                if (one->iocb.opcode == UAIO_OPENAT && events[i].res >= 0)
                    close((int)events[i].res);
            }
        }
        IS(uaio_destroy(c), 0);
        /* From here on all memory is ours again. */
        for (int i = 0; i < count; i++)
            done_with(list[i]);
        close(pipes[0]);
        close(pipes[1]);
        close(efd);
    }
}

int main(int argc, char **argv)
{
    IS(argc, 3);
    seed = state = strtoull(argv[2], NULL, 10);
    int dir = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    IS(dir >= 0, 1);
    int file = openat(dir, "file", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    IS(file >= 0, 1);
    IS(ftruncate(file, BLOCKS * BLOCK), 0);
    uaio_context_t c;
    IS(uaio_setup(DEPTH, &c), 0);
    int volume = uaio_open(c, "ram:1M", 0, 1 << 18);
    IS(volume, 1);
    blocks(c, volume, UAIO_F_VOLUME);
    blocks(c, file, 0);
    cancels(c);
    names(c, dir);
    ends(dir);
    IS(uaio_destroy(c), 0);
    close(file);
    close(dir);
    printf("%s\n", submitted >= 10000 ? "ok" : "too few");
    return 0;
}
