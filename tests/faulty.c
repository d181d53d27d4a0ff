/* Preloaded: makes one system call on a path below a folder fail, or every one from there on. Armed through ctypes, so one
   process can go through all of them. Kinds: an errno, or -1 for a write that is cut in half. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static char folder[4096];
static long at = 0, seen = 0;
static int kind = 0, lasting = 0, hits = 0;

void fault_arm(const char *below, long number, int error, int for_ever) {
    strncpy(folder, below, sizeof folder - 1);
    at = number; kind = error; lasting = for_ever; seen = 0; hits = 0;
}
void fault_disarm(void) { at = 0; folder[0] = 0; }
long fault_seen(void) { return seen; }
int fault_hits(void) { return hits; }

static int below(const char *path) { return folder[0] && path && strncmp(path, folder, strlen(folder)) == 0; }
static int below_fd(int fd) {
    char name[64], path[4096];
    if (!folder[0]) return 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(name, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return below(path);
}
static int fails(int concerned) {
    if (!concerned) return 0;
    seen++;
    if (at && (seen == at || (lasting && seen > at))) { hits++; return 1; }
    return 0;
}
#define REAL(name, type) __typeof__(type) *real = (__typeof__(type) *)dlsym(RTLD_NEXT, name)

#define OPEN(name)                                                                    \
    int name(const char *path, int flags, ...) {                                      \
        va_list list; va_start(list, flags); int mode = va_arg(list, int); va_end(list); \
        if (fails(below(path)) && kind > 0) { errno = kind; return -1; }              \
        REAL(#name, int(const char *, int, ...));                                 \
        return real(path, flags, mode);                                               \
    }
OPEN(open)
OPEN(open64)

ssize_t write(int fd, const void *data, size_t size) {
    REAL("write", ssize_t(int, const void *, size_t));
    if (fails(below_fd(fd))) { if (kind > 0) { errno = kind; return -1; } if (size > 1) size /= 2; }
    return real(fd, data, size);
}
#define PWRITE(name)                                                                  \
    ssize_t name(int fd, const void *data, size_t size, off_t where) {                \
        REAL(#name, ssize_t(int, const void *, size_t, off_t));                   \
        if (fails(below_fd(fd))) { if (kind > 0) { errno = kind; return -1; } if (size > 1) size /= 2; } \
        return real(fd, data, size, where);                                           \
    }
PWRITE(pwrite)
PWRITE(pwrite64)
#define SYNC(name)                                                                    \
    int name(int fd) {                                                                \
        REAL(#name, int(int));                                                    \
        if (fails(below_fd(fd)) && kind > 0) { errno = kind; return -1; }             \
        return real(fd);                                                              \
    }
SYNC(fsync)
SYNC(fdatasync)
#define CUT(name)                                                                     \
    int name(int fd, off_t size) {                                                    \
        REAL(#name, int(int, off_t));                                             \
        if (fails(below_fd(fd)) && kind > 0) { errno = kind; return -1; }             \
        return real(fd, size);                                                        \
    }
CUT(ftruncate)
CUT(ftruncate64)
int unlink(const char *path) {
    REAL("unlink", int(const char *));
    if (fails(below(path)) && kind > 0) { errno = kind; return -1; }
    return real(path);
}
