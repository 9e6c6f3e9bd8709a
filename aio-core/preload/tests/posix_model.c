/* Random programs of requests on a file, an appended file and pipes, with cancels, waits and lists, against a model that
 * knows what each may come to. Run by posix.rs.
 *
 *   posix_model FOLDER SEED COUNT     COUNT programs from SEED on: `ok`, or what is wrong and the seed
 */
#define _GNU_SOURCE
#include <aio.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static unsigned long seed;
#define REQUIRE(condition)                                                                             \
    do {                                                                                               \
        if (!(condition)) {                                                                            \
            dprintf(2, "seed %lu, line %d: not %s (errno %d)\n", seed, __LINE__, #condition, errno);   \
            _exit(1);                                                                                  \
        }                                                                                              \
    } while (0)

static uint64_t state;
static unsigned int random_below(unsigned int below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (unsigned int)((state >> 11) % below);
}

enum { SLOTS = 48, SECTORS = 32, SECTOR = 128, STEPS = 200, STREAM = 1 << 16 };
enum kind { FREE, READ_FILE, WRITE_FILE, APPEND, SYNC, READ_PIPE, WRITE_PIPE };

/* A request. `number` is its place among the calls: what is in order is so by it. */
struct slot {
    struct aiocb cb;
    enum kind kind;
    int number, sector, sectors, len;
    bool was_cancelled;
    unsigned char bytes[SECTORS * SECTOR];
};
static struct slot slots[SLOTS];
static unsigned char content[SECTORS]; /* what each sector is filled with */
static int readers[SECTORS], writers[SECTORS];
static unsigned char appended[STREAM], written[STREAM], taken[STREAM];
static int file, append_file, ends[2], numbers;
static size_t appended_len, written_len, taken_len;
static unsigned char next_append, next_written;

static bool is_over(struct slot *slot) { return aio_error(&slot->cb) != EINPROGRESS; }

/* The result of one that is over is what the model says. In-order kinds are taken by `settle` in their order. */
static void take(struct slot *slot) {
    int error = aio_error(&slot->cb);
    ssize_t result = aio_return(&slot->cb);
    REQUIRE(error == 0 || error == ECANCELED);
    REQUIRE((result == -1) == (error != 0));
    REQUIRE(!slot->was_cancelled || error == ECANCELED);
    REQUIRE(aio_error(&slot->cb) == -1 && errno == EINVAL);
    switch (slot->kind) {
    case READ_FILE:
    case WRITE_FILE:
        for (int i = slot->sector; i < slot->sector + slot->sectors; i++) {
            if (slot->kind == READ_FILE) {
                readers[i]--;
                for (int j = 0; j < SECTOR && error == 0; j++)
                    REQUIRE(slot->bytes[(i - slot->sector) * SECTOR + j] == content[i]);
            } else {
                writers[i]--;
                if (error == 0)
                    content[i] = slot->bytes[0];
            }
        }
        REQUIRE(error != 0 || result == slot->sectors * SECTOR);
        break;
    case APPEND:
        REQUIRE(error != 0 || result == slot->len);
        for (int i = 0; i < slot->len && error == 0; i++)
            appended[appended_len++] = slot->bytes[i];
        break;
    case SYNC:
        REQUIRE(error != 0 || result == 0);
        break;
    case READ_PIPE:
        REQUIRE(error != 0 || (result > 0 && result <= slot->len));
        for (ssize_t i = 0; i < result; i++)
            taken[taken_len++] = slot->bytes[i];
        break;
    case WRITE_PIPE:
        REQUIRE(error != 0 || result == slot->len);
        for (int i = 0; i < slot->len && error == 0; i++)
            written[written_len++] = slot->bytes[i];
        break;
    case FREE:
        REQUIRE(false);
    }
    slot->kind = FREE;
}

/* Takes all that are over; of a kind that is in order, not before an earlier one is, and an earlier one is over first. */
static void settle(void) {
    for (;;) {
        struct slot *oldest[WRITE_PIPE + 1] = {NULL};
        bool moved = false;
        for (int i = 0; i < SLOTS; i++) {
            struct slot *slot = &slots[i];
            if (slot->kind == FREE)
                continue;
            if (slot->kind == READ_FILE || slot->kind == WRITE_FILE) {
                if (is_over(slot)) {
                    take(slot);
                    moved = true;
                }
            } else if (oldest[slot->kind] == NULL || oldest[slot->kind]->number > slot->number) {
                oldest[slot->kind] = slot;
            }
        }
        for (int kind = APPEND; kind <= WRITE_PIPE; kind++) {
            if (oldest[kind] != NULL && is_over(oldest[kind])) {
                if (kind == SYNC && aio_error(&oldest[kind]->cb) == 0)
                    for (int i = 0; i < SLOTS; i++)
                        REQUIRE((slots[i].kind != READ_FILE && slots[i].kind != WRITE_FILE)
                                || slots[i].number > oldest[kind]->number || is_over(&slots[i]));
                take(oldest[kind]);
                moved = true;
            }
        }
        if (!moved)
            return;
    }
}

/* Fills a free slot with a request that the model can follow; none if there is no place for it. */
static struct slot *prepare(void) {
    struct slot *slot = NULL;
    for (int i = 0; i < SLOTS && slot == NULL; i++)
        if (slots[i].kind == FREE)
            slot = &slots[i];
    if (slot == NULL)
        return NULL;
    memset(&slot->cb, 0, sizeof slot->cb);
    slot->cb.aio_sigevent.sigev_notify = SIGEV_NONE;
    slot->cb.aio_buf = slot->bytes;
    slot->was_cancelled = false;
    slot->number = numbers++;
    slot->len = 1 + (int)random_below(40);
    enum kind kind = READ_FILE + random_below(6);
    slot->cb.aio_fildes = kind <= SYNC ? file : ends[kind - READ_PIPE];
    slot->cb.aio_nbytes = (size_t)slot->len;
    slot->cb.aio_lio_opcode = kind == READ_FILE || kind == READ_PIPE ? LIO_READ : LIO_WRITE;
    if (kind == READ_FILE || kind == WRITE_FILE) {
        slot->sector = (int)random_below(SECTORS);
        slot->sectors = 1 + (int)random_below(4);
        if (slot->sector + slot->sectors > SECTORS)
            slot->sectors = SECTORS - slot->sector;
        for (int i = slot->sector; i < slot->sector + slot->sectors; i++)
            if (writers[i] > 0 || (kind == WRITE_FILE && readers[i] > 0))
                return NULL;
        for (int i = slot->sector; i < slot->sector + slot->sectors; i++)
            kind == READ_FILE ? readers[i]++ : writers[i]++;
        slot->cb.aio_offset = slot->sector * SECTOR;
        slot->cb.aio_nbytes = (size_t)(slot->sectors * SECTOR);
        memset(slot->bytes, (int)random_below(256), sizeof slot->bytes);
    } else if (kind == APPEND) {
        slot->cb.aio_fildes = append_file;
        slot->cb.aio_offset = random_below(1000);
        for (int i = 0; i < slot->len; i++)
            slot->bytes[i] = next_append++;
    } else if (kind == WRITE_PIPE) {
        for (int i = 0; i < slot->len; i++)
            slot->bytes[i] = next_written++;
    }
    slot->kind = kind;
    return slot;
}

static void submit(struct slot *slot) {
    int answer = slot->kind == SYNC ? aio_fsync(random_below(2) ? O_SYNC : O_DSYNC, &slot->cb)
                 : slot->cb.aio_lio_opcode == LIO_READ ? aio_read(&slot->cb)
                                                        : aio_write(&slot->cb);
    REQUIRE(answer == 0);
}

static void submit_list(void) {
    struct aiocb *list[8] = {NULL};
    struct slot *of[8] = {NULL}, *sync = NULL;
    bool waits = random_below(2);
    for (int i = 0; i < 8; i++) {
        struct slot *slot = random_below(4) ? prepare() : NULL;
        if (slot != NULL && slot->kind == SYNC && sync != NULL)
            slot->kind = FREE;
        else if (slot != NULL && slot->kind == SYNC)
            sync = slot;
        else if (slot != NULL && waits && slot->kind >= READ_PIPE)
            submit(slot);
        else if (slot != NULL)
            list[i] = &slot->cb, of[i] = slot;
    }
    REQUIRE(lio_listio(waits ? LIO_WAIT : LIO_NOWAIT, list, 8, NULL) == 0);
    for (int i = 0; i < 8 && waits; i++)
        REQUIRE(of[i] == NULL || aio_error(&of[i]->cb) == 0);
    /* There is no sync in a list: it comes after it. */
    if (sync != NULL) {
        sync->number = numbers++;
        submit(sync);
    }
}

static void cancel(void) {
    if (random_below(6) == 0) {
        int answer = aio_cancel(ends[0], NULL);
        REQUIRE(answer == AIO_CANCELED || answer == AIO_ALLDONE);
        for (int i = 0; i < SLOTS; i++)
            REQUIRE(slots[i].kind != READ_PIPE || is_over(&slots[i]));
        return;
    }
    struct slot *slot = &slots[random_below(SLOTS)];
    if (slot->kind == FREE)
        return;
    int answer = aio_cancel(slot->cb.aio_fildes, &slot->cb);
    REQUIRE(answer == AIO_CANCELED || answer == AIO_NOTCANCELED || answer == AIO_ALLDONE);
    REQUIRE(answer != AIO_CANCELED || aio_error(&slot->cb) == ECANCELED);
    REQUIRE(answer != AIO_ALLDONE || is_over(slot));
    REQUIRE(answer != AIO_NOTCANCELED || slot->kind < READ_PIPE);
    slot->was_cancelled = answer == AIO_CANCELED;
}

static void wait_for_some(void) {
    const struct aiocb *list[6];
    int live = 0;
    struct timespec time = {0, 100000};
    for (int i = 0; i < 6; i++) {
        struct slot *slot = &slots[random_below(SLOTS)];
        list[i] = slot->kind == FREE ? NULL : &slot->cb;
        live += list[i] != NULL;
    }
    int answer = aio_suspend(list, 6, &time);
    REQUIRE(answer == 0 || errno == EAGAIN);
    bool over = false;
    for (int i = 0; i < 6; i++)
        over |= list[i] != NULL && aio_error(list[i]) != EINPROGRESS;
    REQUIRE(answer != 0 || over);
    REQUIRE(live > 0 || answer != 0);
}

static void program(const char *folder) {
    char name[4096];
    unsigned char bytes[SECTOR];
    struct stat status;
    state = seed * 0x9e3779b97f4a7c15u + 1;
    for (int i = 0; i < 4; i++)
        random_below(2);
    snprintf(name, sizeof name, "%s/model", folder);
    file = open(name, O_CREAT | O_TRUNC | O_RDWR, 0600);
    REQUIRE(file >= 0 && ftruncate(file, SECTORS * SECTOR) == 0);
    snprintf(name, sizeof name, "%s/model.append", folder);
    append_file = open(name, O_CREAT | O_TRUNC | O_RDWR | O_APPEND, 0600);
    REQUIRE(append_file >= 0 && pipe(ends) == 0);
    memset(content, 0, sizeof content);
    appended_len = written_len = taken_len = 0;
    for (int step = 0; step < STEPS; step++) {
        unsigned int what = random_below(10);
        struct slot *slot;
        if (what < 5 && (slot = prepare()) != NULL)
            submit(slot);
        else if (what == 5)
            submit_list();
        else if (what == 6)
            cancel();
        else if (what == 7)
            wait_for_some();
        else
            settle();
    }
    /* The reads of the pipe that nothing is written for any more are ended; the writes fit into it. */
    bool left = true;
    for (int turn = 0; left; turn++) {
        left = false;
        settle();
        for (int i = 0; i < SLOTS; i++)
            left |= slots[i].kind != FREE && slots[i].kind != READ_PIPE;
        REQUIRE(turn < 5000);
        usleep(left ? 100 : 0);
    }
    REQUIRE(aio_cancel(ends[0], NULL) >= 0);
    settle();
    for (int i = 0; i < SLOTS; i++)
        REQUIRE(slots[i].kind == FREE);
    for (int i = 0; i < SECTORS; i++) {
        REQUIRE(pread(file, bytes, SECTOR, i * SECTOR) == SECTOR);
        for (int j = 0; j < SECTOR; j++)
            REQUIRE(bytes[j] == content[i]);
    }
    static unsigned char seen[STREAM];
    REQUIRE(fstat(append_file, &status) == 0 && (size_t)status.st_size == appended_len);
    REQUIRE(pread(append_file, seen, STREAM, 0) == (ssize_t)appended_len && memcmp(seen, appended, appended_len) == 0);
    close(ends[1]);
    ssize_t len;
    while ((len = read(ends[0], taken + taken_len, STREAM - taken_len)) > 0)
        taken_len += (size_t)len;
    REQUIRE(taken_len == written_len && memcmp(taken, written, written_len) == 0);
    close(ends[0]);
    close(file);
    close(append_file);
}

int main(int argc, char **argv) {
    if (argc != 4)
        return 2;
    unsigned long first = strtoul(argv[2], NULL, 10), count = strtoul(argv[3], NULL, 10);
    for (seed = first; seed < first + count; seed++)
        program(argv[1]);
    printf("ok\n");
    return 0;
}
