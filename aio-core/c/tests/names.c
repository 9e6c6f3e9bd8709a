/* What uaio.h says of names, files by descriptor and other system calls. Run by c_face.rs; prints what is
 * wrong and exits with 1. The argument is a directory of its own. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "uaio.h"

#define IS(value, wanted)                                                                     \
    do {                                                                                      \
        long long is = (long long)(value), want = (long long)(wanted);                        \
        if (is != want) {                                                                     \
            fprintf(stderr, "line %d: %s is %lld, not %lld\n", __LINE__, #value, is, want);    \
            exit(1);                                                                          \
        }                                                                                     \
    } while (0)

static uaio_context_t c;
static void *const kernel = (void *)0xffff800000000000, *const unmapped = (void *)4096;

/* Submits one and waits for its event. */
static int64_t done(struct uaio_iocb iocb)
{
    struct timespec a_while = {20, 0};
    struct uaio_event event = {0};
    struct uaio_iocb *list[1] = {&iocb};
    int answer = uaio_submit(c, 1, list);
    if (answer < 0)
        return answer;
    IS(uaio_getevents(c, 1, 1, &event, &a_while), 1);
    return event.res;
}

static struct uaio_iocb op(int opcode, int fd, const void *buf, uint64_t nbytes, uint32_t flags)
{
    struct uaio_iocb iocb = {
        .opcode = (uint16_t)opcode, .fd = fd, .buf = (void *)(uintptr_t)buf, .nbytes = nbytes,
        .op_flags = flags,
    };
    return iocb;
}

static int64_t two(int opcode, int dir, const char *old, const char *new, uint32_t flags)
{
    struct uaio_names names = {.old_path = old, .new_path = new, .new_fd = dir};
    return done(op(opcode, dir, &names, 0, flags));
}

static int64_t call(long number, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
    struct uaio_call call = {.number = number, .arguments = {a, b, c, d}};
    return done(op(UAIO_CALL, 0, &call, 0, 0));
}

static uint64_t word(const void *address) { return (uint64_t)(uintptr_t)address; }

static void names(int dir)
{
    umask(022);
    IS(done(op(UAIO_MKDIRAT, dir, "made", 0777, 0)), 0);
    IS(done(op(UAIO_MKDIRAT, dir, "made", 0777, 0)), -EEXIST);
    int64_t fd = done(op(UAIO_OPENAT, dir, "made/file", 0666, O_CREAT | O_RDWR | O_EXCL));
    IS(fd > 2, 1);
    IS(fcntl((int)fd, F_GETFD), FD_CLOEXEC);
    IS(done(op(UAIO_OPENAT, dir, "made/file", 0666, O_CREAT | O_RDWR | O_EXCL)), -EEXIST);
    IS(done(op(UAIO_OPENAT, dir, "made/none", 0, O_RDONLY)), -ENOENT);
    IS(done(op(UAIO_OPENAT, dir, "made/file/below", 0, O_RDONLY)), -ENOTDIR);

    IS(done(op(UAIO_FTRUNCATE, (int)fd, NULL, 70000, 0)), 0);
    struct statx status;
    memset(&status, 1, sizeof status);
    struct uaio_statx ask = {.path = "made/file", .status = &status, .mask = STATX_BASIC_STATS};
    IS(done(op(UAIO_STATX, dir, &ask, 0, 0)), 0);
    IS(status.stx_size, 70000);
    /* The umask of the submitter. */
    IS(status.stx_mode, S_IFREG | 0644);
    ask.path = "";
    IS(done(op(UAIO_FALLOCATE, (int)fd, NULL, 100000, 0)), 0);
    IS(done(op(UAIO_STATX, (int)fd, &ask, 0, AT_EMPTY_PATH)), 0);
    IS(status.stx_size, 100000);
    IS(done(op(UAIO_FALLOCATE, (int)fd, NULL, 200000, FALLOC_FL_KEEP_SIZE)), 0);
    IS(done(op(UAIO_STATX, (int)fd, &ask, 0, AT_EMPTY_PATH)), 0);
    IS(status.stx_size, 100000);
    IS(done(op(UAIO_FALLOCATE, (int)fd, NULL, 0, 0)), -EINVAL);
    IS(done(op(UAIO_FADVISE, (int)fd, NULL, 0, POSIX_FADV_SEQUENTIAL)), 0);
    IS(done(op(UAIO_FADVISE, (int)fd, NULL, 0, 99)), -EINVAL);

    IS(two(UAIO_RENAMEAT, dir, "made/file", "moved", 0), 0);
    IS(two(UAIO_RENAMEAT, dir, "made/file", "moved", 0), -ENOENT);
    IS(two(UAIO_LINKAT, dir, "moved", "linked", 0), 0);
    IS(two(UAIO_RENAMEAT, dir, "moved", "linked", 1 /* RENAME_NOREPLACE */), -EEXIST);
    IS(two(UAIO_LINKAT, dir, "moved", "linked", 0), -EEXIST);
    IS(two(UAIO_SYMLINKAT, dir, "linked", "soft", 0), 0);
    char says[16] = {0};
    IS(readlinkat(dir, "soft", says, sizeof says), 6);
    IS(strcmp(says, "linked"), 0);
    IS(done(op(UAIO_UNLINKAT, dir, "soft", 0, 0)), 0);
    IS(done(op(UAIO_UNLINKAT, dir, "made", 0, 0)), -EISDIR);
    IS(done(op(UAIO_UNLINKAT, dir, "made", 0, AT_REMOVEDIR)), 0);

    /* In the working directory of the submission. */
    int back = open(".", O_RDONLY | O_DIRECTORY);
    IS(fchdir(dir), 0);
    struct uaio_iocb here = op(UAIO_OPENAT, AT_FDCWD, "linked", 0, O_RDONLY), *list[1] = {&here};
    IS(uaio_submit(c, 1, list), 1);
    IS(fchdir(back), 0);
    struct uaio_event event;
    IS(uaio_getevents(c, 1, 1, &event, NULL), 1);
    IS(event.res > 2, 1);
    IS(done(op(UAIO_CLOSE, (int)event.res, NULL, 0, 0)), 0);
    IS(fcntl((int)event.res, F_GETFD), -1);
    IS(done(op(UAIO_CLOSE, (int)event.res, NULL, 0, 0)), -EBADF);
    IS(done(op(UAIO_CLOSE, -1, NULL, 0, 0)), -EBADF);
    close(back);
    IS(done(op(UAIO_CLOSE, (int)fd, NULL, 0, 0)), 0);
}

/* A close that is not submitted, because another of its chain is wrong, closes nothing. */
static void a_close_that_was_refused(void)
{
    int fd = dup(1);
    struct uaio_iocb first = op(UAIO_CLOSE, fd, NULL, 0, 0), second = op(99, 0, NULL, 0, 0);
    struct uaio_iocb *list[2] = {&first, &second};
    first.flags = UAIO_F_LINK;
    IS(uaio_submit(c, 2, list), -EINVAL);
    IS(fcntl(fd, F_GETFD) >= 0, 1);
    /* Nor one that is not begun, because what it is linked to has failed. */
    first = op(UAIO_OPENAT, AT_FDCWD, "/nowhere", 0, 0);
    first.flags = UAIO_F_LINK;
    second = op(UAIO_CLOSE, fd, NULL, 0, 0);
    struct uaio_event events[2];
    IS(uaio_submit(c, 2, list), 2);
    IS(uaio_getevents(c, 2, 2, events, NULL), 2);
    IS(events[0].res, -ENOENT);
    IS(events[1].res, -ECANCELED);
    IS(fcntl(fd, F_GETFD) >= 0, 1);
    close(fd);
}

static void between(int dir)
{
    int from = openat(dir, "from", O_CREAT | O_RDWR, 0600), to = openat(dir, "to", O_CREAT | O_RDWR, 0600);
    IS(pwrite(from, "0123456789", 10, 0), 10);
    struct uaio_to there = {.offset = 2, .fd = to};
    struct uaio_iocb copy = op(UAIO_COPY, from, &there, 5, 0);
    copy.offset = 3;
    IS(done(copy), 5);
    char read[8] = {0};
    IS(pread(to, read, 7, 0), 7);
    IS(memcmp(read, "\0\0" "34567", 7), 0);
    copy.offset = 10;
    IS(done(copy), 0);
    copy.offset = -2;
    IS(done(copy), -EINVAL);
    int pipes[2];
    IS(pipe(pipes), 0);
    there = (struct uaio_to){.offset = -1, .fd = pipes[1]};
    struct uaio_iocb splice = op(UAIO_SPLICE, from, &there, 4, 0);
    splice.offset = 1;
    IS(done(splice), 4);
    IS(readlinkat(dir, "from", read, 8), -1);
    there = (struct uaio_to){.offset = -1, .fd = to};
    splice = op(UAIO_SPLICE, pipes[0], &there, 100, 0);
    splice.offset = -1;
    IS(done(splice), 4);
    IS(pread(to, read, 4, 0), 4);
    IS(memcmp(read, "1234", 4), 0);
    there.fd = -1;
    IS(done(splice), -EBADF);
    there = (struct uaio_to){.fd = to, .reserved = 1};
    IS(done(splice), -EINVAL);
    close(pipes[0]);
    close(pipes[1]);
    close(from);
    close(to);
}

static void calls(int dir)
{
    int fd = openat(dir, "called", O_CREAT | O_RDWR, 0600);
    struct stat status;
    IS(call(SYS_fchmod, (uint64_t)fd, 0640, 0, 0), 0);
    IS(call(SYS_fstat, (uint64_t)fd, word(&status), 0, 0), 0);
    IS(status.st_mode, S_IFREG | 0640);
    IS(two(UAIO_SYMLINKAT, dir, "called", "points", 0), 0);
    char says[16] = {0};
    IS(call(SYS_readlinkat, (uint64_t)dir, word("points"), word(says), sizeof says), 6);
    IS(strcmp(says, "called"), 0);
    int64_t memory = call(SYS_memfd_create, word("x"), 0, 0, 0);
    IS(memory > 2, 1);
    IS(close((int)memory), 0);
    IS(call(SYS_lseek, (uint64_t)fd, (uint64_t)-1, SEEK_SET, 0), -EINVAL);
    struct timespec times[2] = {{.tv_sec = 7}, {.tv_sec = 9}};
    IS(call(SYS_utimensat, (uint64_t)fd, 0, word(times), 0), 0);
    IS(call(SYS_fstat, (uint64_t)fd, word(&status), 0, 0), 0);
    IS(status.st_mtime, 9);
    IS(call(SYS_utimensat, (uint64_t)AT_FDCWD, 0, word(times), 0), -EFAULT);
    /* Those that cannot be made. */
    IS(call(SYS_exit, 0, 0, 0, 0), -EOPNOTSUPP);
    IS(call(SYS_chdir, word("/"), 0, 0, 0), -EOPNOTSUPP);
    IS(call(SYS_openat, 0, 0, 0, 0), -EINVAL);
    IS(call(SYS_ioctl, 0, 0, 0, 0), -ENOSYS);
    IS(call(-1, 0, 0, 0, 0), -ENOSYS);
    IS(call(SYS_sendfile, (uint64_t)fd, (uint64_t)fd, word(says), 1), -EINVAL);
    /* What the memory is not. */
    IS(call(SYS_fstat, (uint64_t)fd, 0, 0, 0), -EFAULT);
    IS(call(SYS_fstat, (uint64_t)fd, word(kernel), 0, 0), -EFAULT);
    IS(call(SYS_fstat, (uint64_t)fd, word(unmapped), 0, 0), -EFAULT);
    IS(call(SYS_fchmodat, (uint64_t)dir, word(unmapped), 0600, 0), -EFAULT);
    IS(call(SYS_readlinkat, (uint64_t)dir, word("points"), word(says), UINT64_MAX), -EINVAL);
    IS(call(SYS_fstat, (uint64_t)-1, word(&status), 0, 0), -EBADF);
    close(fd);
}

static void bad_names(int dir)
{
    int one_name[] = {UAIO_OPENAT, UAIO_UNLINKAT, UAIO_MKDIRAT};
    int structures[] = {UAIO_RENAMEAT, UAIO_LINKAT, UAIO_SYMLINKAT, UAIO_STATX, UAIO_CALL};
    const void *wrong[] = {NULL, kernel, unmapped, (void *)UINTPTR_MAX, (void *)0x7fffffffffff};
    static char longest[PATH_MAX + 1];
    memset(longest, '/', PATH_MAX);
    struct statx status;
    for (size_t w = 0; w < sizeof wrong / sizeof *wrong; w++) {
        for (size_t i = 0; i < sizeof one_name / sizeof *one_name; i++)
            IS(done(op(one_name[i], dir, wrong[w], 0, 0)), -EFAULT);
        for (size_t i = 0; i < sizeof structures / sizeof *structures; i++)
            IS(done(op(structures[i], dir, wrong[w], 0, 0)), -EFAULT);
        IS(two(UAIO_RENAMEAT, dir, wrong[w], "x", 0), -EFAULT);
        IS(two(UAIO_LINKAT, dir, "x", wrong[w], 0), -EFAULT);
        struct uaio_statx ask = {.path = wrong[w], .status = &status};
        IS(done(op(UAIO_STATX, dir, &ask, 0, 0)), -EFAULT);
        ask = (struct uaio_statx){.path = "/", .status = (void *)(uintptr_t)wrong[w]};
        IS(done(op(UAIO_STATX, dir, &ask, 0, 0)), -EFAULT);
        int fd = dup(0);
        IS(done(op(UAIO_COPY, fd, wrong[w], 1, 0)), -EFAULT);
        IS(done(op(UAIO_SPLICE, fd, wrong[w], 1, 0)), -EFAULT);
        close(fd);
    }
    /* 4095 bytes and the zero are a name, one more is not. */
    IS(done(op(UAIO_UNLINKAT, dir, longest, 0, 0)), -ENAMETOOLONG);
    IS(done(op(UAIO_OPENAT, dir, longest + 1, 0, O_RDONLY)) > 2, 1);
    IS(two(UAIO_RENAMEAT, dir, "x", longest, 0), -ENAMETOOLONG);
    /* A name that ends where its page does, behind which there is nothing; and one that does not end. */
    char *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    IS(munmap(pages + 4096, 4096), 0);
    strcpy(pages + 4096 - 5, "none");
    IS(done(op(UAIO_UNLINKAT, dir, pages + 4096 - 5, 0, 0)), -ENOENT);
    IS(done(op(UAIO_OPENAT, dir, pages + 4096 - 5, 0, O_RDONLY)), -ENOENT);
    memset(pages, 'x', 4096);
    IS(done(op(UAIO_UNLINKAT, dir, pages + 4000, 0, 0)), -EFAULT);
    struct uaio_names *half = (struct uaio_names *)(pages + 4096 - 8);
    IS(done(op(UAIO_RENAMEAT, dir, half, 0, 0)), -EFAULT);
    munmap(pages, 4096);
    /* What is read-only is not written. */
    struct uaio_statx ask = {.path = "/", .status = (void *)(uintptr_t)"a constant"};
    IS(done(op(UAIO_STATX, dir, &ask, 0, 0)), -EFAULT);
    ask = (struct uaio_statx){.path = "/", .status = &status, .reserved = 1};
    IS(done(op(UAIO_STATX, dir, &ask, 0, 0)), -EINVAL);
    struct uaio_names names = {.old_path = "a", .new_path = "b", .new_fd = dir, .reserved = 1};
    IS(done(op(UAIO_LINKAT, dir, &names, 0, 0)), -EINVAL);
    IS(done(op(UAIO_MKDIRAT, dir, "a", UINT64_MAX, 0)), -EINVAL);
    IS(done(op(UAIO_MKDIRAT, dir, "a", 0, 1)), -EINVAL);
    IS(done(op(UAIO_FTRUNCATE, dir, NULL, UINT64_MAX, 0)), -EINVAL);
    IS(done(op(UAIO_FTRUNCATE, dir, NULL, 1, 1)), -EINVAL);
    IS(done(op(UAIO_CLOSE, dir, NULL, 1, 1)), -EINVAL);
    IS(done(op(UAIO_OPENAT, 0x7ffffff0, "relative", 0, 0)), -EBADF);
    /* None of this is of a volume. */
    struct uaio_iocb on_volume = op(UAIO_OPENAT, 1, "a", 0, 0);
    on_volume.flags = UAIO_F_VOLUME;
    IS(uaio_open(c, "ram:1M", 0, 1 << 20), 1);
    IS(done(on_volume), -EINVAL);
}

int main(int argc, char **argv)
{
    IS(argc, 2);
    int dir = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    IS(dir >= 0, 1);
    IS(uaio_setup(4, &c), 0);
    names(dir);
    a_close_that_was_refused();
    between(dir);
    calls(dir);
    bad_names(dir);
    IS(uaio_destroy(c), 0);
    puts("ok");
    return 0;
}
