/*
 * An independent count of a program's large copies, to check zio's own counters against.
 *
 * Counts calls and bytes of memcpy, memmove and mempcpy (and the fortified forms) of at least 4096
 * bytes, and of reallocs that moved a block, forwards each to the next library, and writes
 *
 *     {"copy_calls":N,"bytes_requested":N}
 *
 * to the file named by COUNT_OUT when the process exits. Preload it *before* libzio.so
 * (LD_PRELOAD="count.so libzio.so"): it then sees what the program asks for, and zio sees the same.
 *
 * Only the process that loaded the library writes: the constructor takes COUNT_OUT out of the
 * environment, so that an exec'd child does not count, and a forked child fails the process id test.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define COUNTED_FROM ((size_t)4096)

typedef void *(*copy_fn)(void *, const void *, size_t);
typedef void *(*copy_chk_fn)(void *, const void *, size_t, size_t);

/* A realloc that moves is one copy, whoever makes it: what it calls meanwhile is not counted again. */
static __thread int in_realloc;
static void *(*real_realloc)(void *, size_t);
static size_t (*real_usable)(void *);
static copy_fn real_memcpy, real_memmove, real_mempcpy;
static copy_chk_fn real_memcpy_chk, real_memmove_chk, real_mempcpy_chk;
static unsigned long long copy_calls, bytes_requested;
static char out_path[4096];
static pid_t owner;

__attribute__((constructor)) static void start(void)
{
    real_memcpy_chk = (copy_chk_fn)dlsym(RTLD_NEXT, "__memcpy_chk");
    real_memmove_chk = (copy_chk_fn)dlsym(RTLD_NEXT, "__memmove_chk");
    real_mempcpy_chk = (copy_chk_fn)dlsym(RTLD_NEXT, "__mempcpy_chk");
    real_mempcpy = (copy_fn)dlsym(RTLD_NEXT, "mempcpy");
    real_memmove = (copy_fn)dlsym(RTLD_NEXT, "memmove");
    real_memcpy = (copy_fn)dlsym(RTLD_NEXT, "memcpy");
    real_usable = (size_t (*)(void *))dlsym(RTLD_NEXT, "malloc_usable_size");
    real_realloc = (void *(*)(void *, size_t))dlsym(RTLD_NEXT, "realloc");
    const char *path = getenv("COUNT_OUT");
    if (path) {
        snprintf(out_path, sizeof out_path, "%s", path);
        unsetenv("COUNT_OUT");
        owner = getpid();
    }
}

__attribute__((destructor)) static void finish(void)
{
    if (!out_path[0] || getpid() != owner)
        return;
    char line[128];
    int len = snprintf(line, sizeof line, "{\"copy_calls\":%llu,\"bytes_requested\":%llu}\n",
                       __atomic_load_n(&copy_calls, __ATOMIC_RELAXED),
                       __atomic_load_n(&bytes_requested, __ATOMIC_RELAXED));
    int fd = open(out_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0 || write(fd, line, (size_t)len) != len)
        perror("count: COUNT_OUT");
    if (fd >= 0)
        close(fd);
}

static void count(size_t n)
{
    if (n >= COUNTED_FROM && !in_realloc) {
        __atomic_fetch_add(&copy_calls, 1, __ATOMIC_RELAXED);
        __atomic_fetch_add(&bytes_requested, n, __ATOMIC_RELAXED);
    }
}

/* Before the constructor has run. Volatile: no compiler may turn this into a call to memcpy. */
static void copy_bytes(void *dst, const void *src, size_t n)
{
    volatile unsigned char *d = dst;
    const volatile unsigned char *s = src;
    if ((size_t)dst <= (size_t)src) {
        for (size_t i = 0; i < n; i++)
            d[i] = s[i];
    } else {
        while (n--)
            d[n] = s[n];
    }
}

EXPORT void *memcpy(void *restrict dst, const void *restrict src, size_t n)
{
    count(n);
    if (real_memcpy)
        return real_memcpy(dst, src, n);
    copy_bytes(dst, src, n);
    return dst;
}

EXPORT void *memmove(void *dst, const void *src, size_t n)
{
    count(n);
    if (real_memmove)
        return real_memmove(dst, src, n);
    copy_bytes(dst, src, n);
    return dst;
}

EXPORT void *mempcpy(void *restrict dst, const void *restrict src, size_t n)
{
    count(n);
    if (real_mempcpy)
        return real_mempcpy(dst, src, n);
    copy_bytes(dst, src, n);
    return (char *)dst + n;
}

EXPORT void *__mempcpy(void *restrict dst, const void *restrict src, size_t n)
{
    return mempcpy(dst, src, n);
}

EXPORT void *__memcpy_chk(void *restrict dst, const void *restrict src, size_t n, size_t room)
{
    if (!real_memcpy_chk)
        return memcpy(dst, src, n);
    count(n);
    return real_memcpy_chk(dst, src, n, room);
}

EXPORT void *__memmove_chk(void *dst, const void *src, size_t n, size_t room)
{
    if (!real_memmove_chk)
        return memmove(dst, src, n);
    count(n);
    return real_memmove_chk(dst, src, n, room);
}

EXPORT void *__mempcpy_chk(void *restrict dst, const void *restrict src, size_t n, size_t room)
{
    if (!real_mempcpy_chk)
        return mempcpy(dst, src, n);
    count(n);
    return real_mempcpy_chk(dst, src, n, room);
}

EXPORT void *realloc(void *p, size_t n)
{
    if (!real_realloc) /* the loader's own, before the constructor */
        real_realloc = (void *(*)(void *, size_t))dlsym(RTLD_NEXT, "realloc");
    if (!p || !n || !real_usable || in_realloc)
        return real_realloc(p, n);
    size_t had = real_usable(p);
    in_realloc = 1;
    void *q = real_realloc(p, n);
    in_realloc = 0;
    if (q && q != p)
        count(had < n ? had : n);
    return q;
}
