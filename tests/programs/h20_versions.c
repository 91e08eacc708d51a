// hazard 20: both symbol versions of memcpy, mempcpy, bcopy and other names for copying
// cflags: -fno-builtin -Wno-deprecated-declarations
// expect: elided
#include "common.h"
#include <strings.h>
#include <wchar.h>

#define N (100 * KIB)
static u8 src[N];

void *old_memcpy(void *, const void *, size_t);
__asm__(".symver old_memcpy, memcpy@GLIBC_2.2.5");
extern void *new_memcpy(void *, const void *, size_t);
__asm__(".symver new_memcpy, memcpy@GLIBC_2.14");

static void *as_bcopy(void *d, const void *s, size_t n) {
    bcopy(s, d, n);
    return d;
}
static void *as_mempcpy(void *d, const void *s, size_t n) { return (u8 *)mempcpy(d, s, n) - n; }
static void *as_wmemcpy(void *d, const void *s, size_t n) {
    MUST(n % 4 == 0);
    return wmemcpy(d, s, n / 4);
}
static void *as_wmempcpy(void *d, const void *s, size_t n) { return (u8 *)wmempcpy(d, s, n / 4) - n; }
static void *as_wmemmove(void *d, const void *s, size_t n) { return wmemmove(d, s, n / 4); }
static void *as_memccpy(void *d, const void *s, size_t n) {
    memccpy(d, s, 256 + 999, 0);
    u8 *end = d;
    for (size_t at = 0; at < n; at = end - (u8 *)d) { /* stops behind each 0x41 */
        end = memccpy((u8 *)d + at, (const u8 *)s + at, 0x41, n - at);
        if (!end) break;
    }
    return d;
}
static void *as_swab_twice(void *d, const void *s, size_t n) {
    u8 *t = malloc(n);
    swab(s, t, n);
    swab(t, d, n);
    free(t);
    return d;
}

typedef void *(*copier)(void *, const void *, size_t);
static const struct { const char *name; copier f; } copiers[] = {
    {"memcpy@GLIBC_2.2.5", old_memcpy}, {"memcpy@GLIBC_2.14", new_memcpy}, {"memcpy", memcpy},
    {"memmove", memmove}, {"mempcpy", as_mempcpy}, {"bcopy", as_bcopy}, {"wmemcpy", as_wmemcpy},
    {"wmempcpy", as_wmempcpy}, {"wmemmove", as_wmemmove}, {"memccpy", as_memccpy}, {"swab", as_swab_twice},
};

int main(void) {
    peer p = peer_start(P_TCP);
    int sv[2];
    unix_pair(sv);
    for (int r = 0; r < 4; r++)
        for (size_t i = 0; i < ARRAY(copiers); i++) {
            u8 *a = malloc(N + 8), *b = malloc(N + 8);
            fill(src, N, 10 * i + r, 0);
            PASS(sv, src, a + 4 * r, N - 4);
            void *back = copiers[i].f(b + 4, a + 4 * r, N - 4);
            say("%s returns its destination: %d", copiers[i].name, back == b + 4);
            SENT(&p, copiers[i].name, b + 4, N - 4, pat_hash(10 * i + r, 0, N - 4));
            verify(copiers[i].name, b + 4, N - 4, 10 * i + r, 0);
            /* overlapping with the ones that promise it; the old memcpy is memmove in this libc */
            if (i == 0 || i == 3 || i == 5) {
                PASS(sv, src, a, N);
                copiers[i].f(a + 4096, a, N - 4096);
                SENT(&p, "up", a + 4096, N - 4096, pat_hash(10 * i + r, 0, N - 4096));
                copiers[i].f(a, a + 4101, N - 4101);
                verify("down", a, N - 4101, 10 * i + r, 5);
            }
            /* results of comparing, searching and measuring elided bytes */
            PASS(sv, src, a, N);
            memcpy(b, a, N);
            say("memcmp %d bcmp %d", memcmp(a, b, N), bcmp(a, b, N) != 0);
            b[N - 1]++;
            say("memcmp %d", memcmp(a, b, N) != 0);
            PASS(sv, src, a, N);
            u8 *hit = memchr(a, src[N - 1] , N), *last = memrchr(a, src[0], N);
            say("memchr %ld memrchr %ld", (long)(hit ? hit - a : -1), (long)(last ? last - a : -1));
            PASS(sv, src, b, N);
            hit = memmem(b, N, src + N - 16, 16);
            say("memmem %ld", (long)(hit ? hit - b : -1));
            b[N - 1] = 0;
            say("strnlen %zu strlen %zu", strnlen((char *)b, N), strlen((char *)b));
            char *dup = strndup((char *)b + 1, N);
            say("strndup %zu", strlen(dup));
            free(dup);
            free(a);
            free(b);
        }
    say("zero bytes %d", memcpy(src, src + 1, 0) == src);
    peer_stop(&p);
    return finish();
}
