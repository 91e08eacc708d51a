/*
 * The null-copy limit: what a program reaches when its large copies are not made.
 *
 * Preloaded by `zio bench` only. A memcpy, memmove or mempcpy (or its fortified form) of at least
 * NULLCOPY_THRESHOLD bytes (default 8192, the length from which zio renames) moves the first and the
 * last EDGE bytes and skips the middle. The data is wrong by design. The edges are right because
 * programs read them: a protocol's header sits at the front and its terminator at the end, and a
 * server that misparses them takes another path, or dies, and then measures nothing.
 *
 * Until the constructor has run (allocators copy while they boot), a byte loop serves every call.
 * Its pointers are volatile so that no compiler turns the loop back into a call to memcpy.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdlib.h>

#define EXPORT __attribute__((visibility("default")))
#define EDGE ((size_t)4096)

typedef void *(*copy_fn)(void *, const void *, size_t);
typedef void *(*copy_chk_fn)(void *, const void *, size_t, size_t);

static copy_fn real_memmove;
static copy_chk_fn real_memmove_chk;
static size_t threshold = 8192;

__attribute__((constructor)) static void start(void)
{
    const char *set = getenv("NULLCOPY_THRESHOLD");
    if (set) {
        size_t n = (size_t)strtoull(set, NULL, 10);
        /* Below two edges there is no middle to skip. */
        threshold = n < 2 * EDGE ? 2 * EDGE : n;
    }
    real_memmove_chk = (copy_chk_fn)dlsym(RTLD_NEXT, "__memmove_chk");
    real_memmove = (copy_fn)dlsym(RTLD_NEXT, "memmove");
}

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

static void move_small(void *dst, const void *src, size_t n)
{
    if (__builtin_expect(real_memmove != NULL, 1))
        real_memmove(dst, src, n);
    else
        copy_bytes(dst, src, n);
}

static void move(void *dst, const void *src, size_t n)
{
    if (__builtin_expect(n < threshold, 1)) {
        move_small(dst, src, n);
        return;
    }
    /* With overlap, writing the first edge may destroy the last edge's source: keep that aside. */
    unsigned char last[EDGE];
    size_t at = n - EDGE;
    move_small(last, (const char *)src + at, EDGE);
    move_small(dst, src, EDGE);
    move_small((char *)dst + at, last, EDGE);
}

static void move_chk(void *dst, const void *src, size_t n, size_t room)
{
    /* An overflow is the fortified function's own business: it reports and aborts. */
    if (n > room && real_memmove_chk)
        real_memmove_chk(dst, src, n, room);
    else
        move(dst, src, n);
}

EXPORT void *memcpy(void *restrict dst, const void *restrict src, size_t n)
{
    move(dst, src, n);
    return dst;
}

EXPORT void *memmove(void *dst, const void *src, size_t n)
{
    move(dst, src, n);
    return dst;
}

EXPORT void *mempcpy(void *restrict dst, const void *restrict src, size_t n)
{
    move(dst, src, n);
    return (char *)dst + n;
}

EXPORT void *__mempcpy(void *restrict dst, const void *restrict src, size_t n)
{
    move(dst, src, n);
    return (char *)dst + n;
}

EXPORT void *__memcpy_chk(void *restrict dst, const void *restrict src, size_t n, size_t room)
{
    move_chk(dst, src, n, room);
    return dst;
}

EXPORT void *__memmove_chk(void *dst, const void *src, size_t n, size_t room)
{
    move_chk(dst, src, n, room);
    return dst;
}

EXPORT void *__mempcpy_chk(void *restrict dst, const void *restrict src, size_t n, size_t room)
{
    move_chk(dst, src, n, room);
    return (char *)dst + n;
}
