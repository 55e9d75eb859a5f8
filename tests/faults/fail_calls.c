/* Preloaded into a process: counts its calls on files under one folder, and lets one of them fail, or all from there.

   Nothing happens before `faults_arm`. Calls by a path count if it lies under the folder, calls by a descriptor if
   /proc/self/fd says so of its file. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, FAIL, FAIL_FROM, SHORT, PAUSE };
enum { READS = 1, WRITES = 2, OTHERS = 4, LOOKS = 8 };

static char folder[4096];
static size_t folder_length;
static long counted, chosen;
static int mode, error_number, kinds, ask_fd, answer_fd, armed;
static __thread int inside; /* this library's own calls do not count */

void faults_arm(const char *path, int which_kinds, int what, long number, int error, int ask, int answer) {
    snprintf(folder, sizeof folder, "%s", path);
    folder_length = strlen(folder);
    counted = 0, chosen = number, mode = what, error_number = error, kinds = which_kinds, ask_fd = ask;
    answer_fd = answer, armed = 1;
}

long faults_disarm(void) {
    armed = 0;
    return counted;
}

static int is_under(const char *path) {
    return !strncmp(path, folder, folder_length) && (path[folder_length] == '/' || !path[folder_length]);
}

static int counts_path(int at, const char *path) {
    char here[4096];
    if (path[0] == '/')
        return is_under(path);
    if (at == AT_FDCWD)
        return getcwd(here, sizeof here) && is_under(here);
    return 0;
}

static int counts_descriptor(int descriptor) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return is_under(path);
}

/* Count a call; return 0 to make it, -1 to fail with errno set, 1 to do half of it. */
static int count(int kind) {
    if (!(kinds & kind))
        return 0;
    long number = __atomic_fetch_add(&counted, 1, __ATOMIC_SEQ_CST);
    if (mode == FAIL_FROM ? number < chosen : number != chosen)
        return 0;
    if (mode == FAIL || mode == FAIL_FROM) {
        errno = error_number;
        return -1;
    }
    if (mode == PAUSE) {
        char byte = 0;
        ssize_t (*write_)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
        ssize_t (*read_)(int, void *, size_t) = dlsym(RTLD_NEXT, "read");
        if (write_(ask_fd, &byte, 1) == 1)
            while (read_(answer_fd, &byte, 1) < 0 && errno == EINTR) {
            }
    }
    return mode == SHORT;
}

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) \
        real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

/* Decide about a call, where `whether` tells if it counts; it may look at files itself. */
#define DECIDE(kind, whether) \
    int decision = 0; \
    if (armed && !inside) { \
        int saved = errno; \
        inside = 1; \
        int is_counted = (whether); \
        errno = saved; \
        if (is_counted) \
            decision = count(kind); \
        inside = 0; \
    }

#define HALF(n) (decision > 0 && (n) > 1 ? (n) / 2 : (n))

#define TRANSFER(name, constness, kind) \
    ssize_t name(int fd, constness void *buffer, size_t n) { \
        REAL(ssize_t, name, int, constness void *, size_t); \
        DECIDE(kind, counts_descriptor(fd)) \
        return decision < 0 ? -1 : real(fd, buffer, HALF(n)); \
    }
TRANSFER(read, , READS)
TRANSFER(write, const, WRITES)

#define TRANSFER_AT(name, constness, kind) \
    ssize_t name(int fd, constness void *buffer, size_t n, off64_t offset) { \
        REAL(ssize_t, name, int, constness void *, size_t, off64_t); \
        DECIDE(kind, counts_descriptor(fd)) \
        return decision < 0 ? -1 : real(fd, buffer, HALF(n), offset); \
    }
TRANSFER_AT(pread, , READS)
TRANSFER_AT(pread64, , READS)
TRANSFER_AT(pwrite, const, WRITES)
TRANSFER_AT(pwrite64, const, WRITES)

/* Half of a vector is half of its first part. */
#define VECTOR(name, kind) \
    ssize_t name(int fd, const struct iovec *parts, int n) { \
        REAL(ssize_t, name, int, const struct iovec *, int); \
        DECIDE(kind, counts_descriptor(fd)) \
        if (decision < 0) \
            return -1; \
        struct iovec half = {n ? parts->iov_base : 0, n ? HALF(parts->iov_len) : 0}; \
        return decision && n ? real(fd, &half, 1) : real(fd, parts, n); \
    }
VECTOR(readv, READS)
VECTOR(writev, WRITES)

#define VECTOR_AT(name, kind) \
    ssize_t name(int fd, const struct iovec *parts, int n, off64_t offset) { \
        REAL(ssize_t, name, int, const struct iovec *, int, off64_t); \
        DECIDE(kind, counts_descriptor(fd)) \
        if (decision < 0) \
            return -1; \
        struct iovec half = {n ? parts->iov_base : 0, n ? HALF(parts->iov_len) : 0}; \
        return decision && n ? real(fd, &half, 1, offset) : real(fd, parts, n, offset); \
    }
VECTOR_AT(preadv, READS)
VECTOR_AT(preadv64, READS)
VECTOR_AT(pwritev, WRITES)
VECTOR_AT(pwritev64, WRITES)

/* An open that may create a file belongs to the writes: a full disk refuses it. */
#define KIND_OF_OPEN(flags) ((flags) & O_CREAT ? WRITES : READS)
#define MODE_OF_OPEN(flags) \
    mode_t permissions = 0; \
    if ((flags) & O_CREAT) { \
        va_list more; \
        va_start(more, flags); \
        permissions = va_arg(more, mode_t); \
        va_end(more); \
    }
#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, name, const char *, int, ...); \
        MODE_OF_OPEN(flags) \
        DECIDE(KIND_OF_OPEN(flags), counts_path(AT_FDCWD, path)) \
        return decision < 0 ? -1 : real(path, flags, permissions); \
    }
OPEN(open)
OPEN(open64)
#define OPEN_AT(name) \
    int name(int at, const char *path, int flags, ...) { \
        REAL(int, name, int, const char *, int, ...); \
        MODE_OF_OPEN(flags) \
        DECIDE(KIND_OF_OPEN(flags), counts_path(at, path)) \
        return decision < 0 ? -1 : real(at, path, flags, permissions); \
    }
OPEN_AT(openat)
OPEN_AT(openat64)

/* A close that fails has closed all the same, as on Linux. */
int close(int fd) {
    REAL(int, close, int);
    DECIDE(OTHERS, counts_descriptor(fd))
    int failed = errno, result = real(fd);
    if (decision < 0) {
        errno = failed;
        return -1;
    }
    return result;
}

#define BY_DESCRIPTOR(name, kind, parameters, ...) \
    int name parameters { \
        REAL(int, name, BY_DESCRIPTOR_TYPES_##name); \
        DECIDE(kind, counts_descriptor(fd)) \
        return decision < 0 ? -1 : real(__VA_ARGS__); \
    }
#define BY_DESCRIPTOR_TYPES_fsync int
#define BY_DESCRIPTOR_TYPES_fdatasync int
#define BY_DESCRIPTOR_TYPES_flock int, int
#define BY_DESCRIPTOR_TYPES_ftruncate int, off64_t
#define BY_DESCRIPTOR_TYPES_ftruncate64 int, off64_t
#define BY_DESCRIPTOR_TYPES_fallocate int, int, off64_t, off64_t
#define BY_DESCRIPTOR_TYPES_fallocate64 int, int, off64_t, off64_t
BY_DESCRIPTOR(fsync, WRITES, (int fd), fd)
BY_DESCRIPTOR(fdatasync, WRITES, (int fd), fd)
BY_DESCRIPTOR(flock, OTHERS, (int fd, int operation), fd, operation)
BY_DESCRIPTOR(ftruncate, WRITES, (int fd, off64_t length), fd, length)
BY_DESCRIPTOR(ftruncate64, WRITES, (int fd, off64_t length), fd, length)
BY_DESCRIPTOR(fallocate, WRITES, (int fd, int how, off64_t start, off64_t length), fd, how, start, length)
BY_DESCRIPTOR(fallocate64, WRITES, (int fd, int how, off64_t start, off64_t length), fd, how, start, length)

#define BY_PATH(name, kind, parameters, types, at, path, ...) \
    int name parameters { \
        REAL(int, name, types); \
        DECIDE(kind, counts_path(at, path)) \
        return decision < 0 ? -1 : real(__VA_ARGS__); \
    }
#define LIST(...) __VA_ARGS__
BY_PATH(rename, WRITES, (const char *from, const char *to), LIST(const char *, const char *), AT_FDCWD, to, from, to)
BY_PATH(renameat, WRITES, (int at, const char *from, int to_at, const char *to),
        LIST(int, const char *, int, const char *), to_at, to, at, from, to_at, to)
BY_PATH(link, WRITES, (const char *from, const char *to), LIST(const char *, const char *), AT_FDCWD, to, from, to)
BY_PATH(linkat, WRITES, (int at, const char *from, int to_at, const char *to, int flags),
        LIST(int, const char *, int, const char *, int), to_at, to, at, from, to_at, to, flags)
BY_PATH(symlink, WRITES, (const char *to, const char *path), LIST(const char *, const char *), AT_FDCWD, path, to, path)
BY_PATH(chmod, WRITES, (const char *path, mode_t how), LIST(const char *, mode_t), AT_FDCWD, path, path, how)
BY_PATH(truncate64, WRITES, (const char *path, off64_t length), LIST(const char *, off64_t), AT_FDCWD, path, path, length)
BY_PATH(utimensat, WRITES, (int at, const char *path, const struct timespec times[2], int flags),
        LIST(int, const char *, const struct timespec *, int), at, path, at, path, times, flags)
BY_PATH(unlink, OTHERS, (const char *path), LIST(const char *), AT_FDCWD, path, path)
BY_PATH(mkdir, WRITES, (const char *path, mode_t how), LIST(const char *, mode_t), AT_FDCWD, path, path, how)
BY_PATH(unlinkat, OTHERS, (int at, const char *path, int flags), LIST(int, const char *, int), at, path, at, path, flags)
BY_PATH(rmdir, OTHERS, (const char *path), LIST(const char *), AT_FDCWD, path, path)

#define MAP(name) \
    void *name(void *address, size_t length, int protection, int flags, int fd, off64_t offset) { \
        REAL(void *, name, void *, size_t, int, int, int, off64_t); \
        DECIDE(READS, fd >= 0 && counts_descriptor(fd)) \
        return decision < 0 ? MAP_FAILED : real(address, length, protection, flags, fd, offset); \
    }
MAP(mmap)
MAP(mmap64)

/* What asks about files without reading them. */
BY_PATH(access, LOOKS, (const char *path, int how), LIST(const char *, int), AT_FDCWD, path, path, how)
BY_PATH(faccessat, LOOKS, (int at, const char *path, int how, int flags), LIST(int, const char *, int, int), at, path,
        at, path, how, flags)
#define STATUS(suffix, type) \
    BY_PATH(stat##suffix, LOOKS, (const char *path, struct type *is), LIST(const char *, struct type *), AT_FDCWD, \
            path, path, is) \
    BY_PATH(lstat##suffix, LOOKS, (const char *path, struct type *is), LIST(const char *, struct type *), AT_FDCWD, \
            path, path, is) \
    BY_PATH(fstatat##suffix, LOOKS, (int at, const char *path, struct type *is, int flags), \
            LIST(int, const char *, struct type *, int), at, path, at, path, is, flags) \
    BY_DESCRIPTOR(fstat##suffix, LOOKS, (int fd, struct type *is), fd, is)
#define BY_DESCRIPTOR_TYPES_fstat int, struct stat *
#define BY_DESCRIPTOR_TYPES_fstat64 int, struct stat64 *
STATUS(, stat)
STATUS(64, stat64)

#define LINK_TARGET(name, parameters, types, at, ...) \
    ssize_t name parameters { \
        REAL(ssize_t, name, types); \
        DECIDE(LOOKS, counts_path(at, path)) \
        return decision < 0 ? -1 : real(__VA_ARGS__); \
    }
LINK_TARGET(readlink, (const char *path, char *to, size_t n), LIST(const char *, char *, size_t), AT_FDCWD, path, to, n)
LINK_TARGET(readlinkat, (int at, const char *path, char *to, size_t n), LIST(int, const char *, char *, size_t), at, at,
            path, to, n)

DIR *opendir(const char *path) {
    REAL(DIR *, opendir, const char *);
    DECIDE(LOOKS, counts_path(AT_FDCWD, path))
    return decision < 0 ? 0 : real(path);
}

struct dirent64 *readdir64(DIR *entries) {
    REAL(struct dirent64 *, readdir64, DIR *);
    DECIDE(LOOKS, counts_descriptor(dirfd(entries)))
    return decision < 0 ? 0 : real(entries);
}
