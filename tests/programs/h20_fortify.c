// hazard 20: a fortified build: __memcpy_chk and its kin with sizes known only at run time
// cflags: -O2 -D_FORTIFY_SOURCE=2 -Wno-error
// expect: elided
#include "common.h"

#define N (100 * KIB)
static u8 src[2 * N];

/* The checked entry points themselves, so that no compiler's cleverness removes the check. */
void *__memcpy_chk(void *, const void *, size_t, size_t);
void *__memmove_chk(void *, const void *, size_t, size_t);
void *__mempcpy_chk(void *, const void *, size_t, size_t);
void *__memset_chk(void *, int, size_t, size_t);
ssize_t __read_chk(int, void *, size_t, size_t);
ssize_t __pread_chk(int, void *, size_t, off_t, size_t);
ssize_t __pread64_chk(int, void *, size_t, off64_t, size_t);
ssize_t __recv_chk(int, void *, size_t, size_t, int);
ssize_t __recvfrom_chk(int, void *, size_t, size_t, int, struct sockaddr *, socklen_t *);
#define HIDE(n) ({ size_t v_ = (n); __asm__ volatile("" : "+r"(v_)); v_; })

static void exact(peer *p, int r) {
    int sv[2];
    unix_pair(sv);
    u8 *a = malloc(N + r), *b = malloc(N + 64);
    fill(src, N, r, 0);
    MUST(give(sv[0], src, N) == (ssize_t)N);
    say("__read_chk %zd", __read_chk(sv[1], a + r, HIDE(N), HIDE(N)));
    say("__memcpy_chk %d", __memcpy_chk(b, a + r, HIDE(N), HIDE(N + 64)) == b);
    SENT(p, "memcpy", b, N, pat_hash(r, 0, N));
    say("__memmove_chk %d", __memmove_chk(b + 64, b, HIDE(N), HIDE(N)) == b + 64);
    SENT(p, "memmove", b + 64, N, pat_hash(r, 0, N));
    say("__mempcpy_chk %d", __mempcpy_chk(a, b + 64, HIDE(N), HIDE(N)) == a + N);
    SENT(p, "mempcpy", a, N, pat_hash(r, 0, N));
    fill(src, N, 50 + r, 0);
    MUST(give(sv[0], src, N) == (ssize_t)N);
    say("__recv_chk %zd", __recv_chk(sv[1], a, HIDE(N), HIDE(N + 100), 0));
    SENT(p, "recv", a, N, pat_hash(50 + r, 0, N));
    MUST(give(sv[0], src, N) == (ssize_t)N);
    say("__recvfrom_chk %zd", __recvfrom_chk(sv[1], b + 9, HIDE(N), HIDE(N), 0, NULL, NULL));
    SENT(p, "recvfrom", b + 9, N, pat_hash(50 + r, 0, N));
    int fd = open("file", O_RDWR | O_CREAT | O_TRUNC, 0600);
    MUST(write(fd, b + 9, N) == (ssize_t)N);
    say("__pread_chk %zd", __pread_chk(fd, a, HIDE(N - 5), 5, HIDE(N)));
    SENT(p, "pread", a, N - 5, pat_hash(50 + r, 5, N - 5));
    say("__pread64_chk %zd", __pread64_chk(fd, b, HIDE(N - 6), 6, HIDE(N)));
    verify("pread64", b, N - 6, 50 + r, 6);
    say("__memset_chk %d", __memset_chk(a, 7, HIDE(N), HIDE(N)) == a);
    CHECK(a[0] == 7 && a[N - 1] == 7);
    close(fd), close(sv[0]), close(sv[1]);
    free(a);
    free(b);
}

/* As the compiler makes them: lengths unknown, objects known. */
static u8 known[N];
static void compiled(peer *p, int r, size_t n) {
    static u8 other[N + 8];
    int sv[2];
    unix_pair(sv);
    fill(src, N, 80 + r, 0);
    MUST(give(sv[0], src, n) == (ssize_t)n);
    u8 *heap = malloc(N);
    MUST(recv(sv[1], heap, n, MSG_WAITALL) == (ssize_t)n);
    memcpy(known, heap, n);
    memmove(other + 8, known, n);
    heap = mempcpy(heap, other + 8, n) - n;
    SENT(p, "compiled", heap, n, pat_hash(80 + r, 0, n));
    verify("compiled", known, n, 80 + r, 0);
    free(heap);
    close(sv[0]), close(sv[1]);
}

static void overflow(void *arg) {
    int which = *(int *)arg;
    static u8 *a, *b;
    int sv[2];
    unix_pair(sv);
    a = malloc(N), b = malloc(N);
    fill(src, N, 9, 0);
    PASS(sv, src, a, N);
    MUST(give(sv[0], src, 50000) == 50000);
    int null = open("/dev/null", O_WRONLY);
    dup2(null, 2); /* libc says why it aborts */
    switch (which) {
    case 0: __memcpy_chk(b, a, HIDE(N), HIDE(N - 1)); break;
    case 1: __memmove_chk(b, a, HIDE(N), HIDE(20000)); break;
    case 2: __mempcpy_chk(b, a, HIDE(N), HIDE(0)); break;
    case 3: __read_chk(sv[1], b, HIDE(N), HIDE(N - 1)); break;
    case 4: __recv_chk(sv[1], b, HIDE(N), HIDE(N - 1), 0); break;
    case 5: __recvfrom_chk(sv[1], b, HIDE(N), HIDE(40000), 0, NULL, NULL); break;
    case 6: __pread_chk(null, b, HIDE(N), 0, HIDE(N - 1)); break;
    case 7: __memset_chk(b, 1, HIDE(N), HIDE(N - 1)); break;
    }
    say("FAIL overflow %d came back", which);
}

int main(void) {
    peer p = peer_start(P_TCP);
    for (int r = 0; r < 5; r++) {
        say("round %d", r);
        exact(&p, r);
        compiled(&p, r, N - 100 * r);
    }
    for (int i = 0; i < 8; i++) in_child("overflow", overflow, &i);
    peer_stop(&p);
    return finish();
}
