// hazard 8: mremap, munmap of half a buffer, MAP_FIXED over it, madvise and mprotect on named memory
// expect: elided
#include "common.h"

#define PAGE ((size_t)4096)
#define N (64 * PAGE)
static u8 model[4 * N];
static sigjmp_buf jump;
static volatile int want_segv;

static void on_segv(int sig) {
    (void)sig;
    if (!want_segv) _exit(5);
    siglongjmp(jump, 1);
}
/* Does reading (or writing) this byte raise SIGSEGV? */
FN int faults(volatile u8 *at, int write) {
    want_segv = 1;
    int hit = sigsetjmp(jump, 1);
    if (!hit) {
        u8 v = *at;
        if (write) *at = v;
    }
    want_segv = 0;
    return hit;
}

static void moving(peer *p, int r) {
    u8 *b = map_anon(N), *block = NULL;
    GET(p, 10 + r, b + r, N - r);
    /* growth in place or by a move; a neighbour makes a move likely */
    if (r & 1) block = mmap(b + N, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    u8 *c = mremap(b, N, 2 * N, MREMAP_MAYMOVE);
    MUST(c != MAP_FAILED);
    if (block && block != MAP_FAILED) munmap(block, PAGE);
    SENT(p, "grown", c + r, N - r, pat_hash(10 + r, 0, N - r));
    for (size_t i = N; i < 2 * N; i += 511) CHECK(c[i] == 0);
    /* a move to an address of our choice */
    u8 *there = map_anon(2 * N);
    u8 *d = mremap(c, 2 * N, 2 * N, MREMAP_MAYMOVE | MREMAP_FIXED, there);
    say("fixed move %d", d == there);
    SENT(p, "moved", d + r, N - r, pat_hash(10 + r, 0, N - r));
    CHECK(faults(c, 0));
    /* shrinking */
    u8 *e = mremap(d, 2 * N, N / 2, 0);
    say("shrunk in place %d", e == d);
    SENT(p, "shrunk", e + r, N / 2 - r, pat_hash(10 + r, 0, N / 2 - r));
    CHECK(faults(e + N / 2, 0));
    verify("shrunk", e + r, N / 2 - r, 10 + r, 0);
    SAY_ERR("cannot grow in place %ld errno %d", mremap(e, N / 2, (size_t)1 << 46, 0) == MAP_FAILED);
    /* the old place stays and reads as zeros */
    GET(p, 30 + r, e, N / 2);
    u8 *f = mremap(e, N / 2, N / 2, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
    MUST(f != MAP_FAILED);
    for (size_t i = 0; i < N / 2; i += 501) CHECK(e[i] == 0);
    SENT(p, "dontunmap", f, N / 2, pat_hash(30 + r, 0, N / 2));
    verify("dontunmap", f, N / 2, 30 + r, 0);
    munmap(e, N / 2);
    munmap(f, N / 2);
}

static void unmapping(peer *p, int r) {
    u8 *b = map_anon(2 * N);
    GET(p, 50 + r, b, 2 * N);
    MUST(munmap(b + N / 2, N) == 0); /* a hole in the middle */
    SENT(p, "left", b, N / 2, pat_hash(50 + r, 0, N / 2));
    SENT(p, "right", b + N + N / 2, N / 2, pat_hash(50 + r, N + N / 2, N / 2));
    CHECK(faults(b + N / 2, 0) && faults(b + N + N / 2 - 1, 1));
    say("send across a hole fails: %d", send(p->ctl, b + N / 2, PAGE, MSG_DONTWAIT) < 0);
    /* the hole is mapped anew: zeros, then data */
    u8 *h = mmap(b + N / 2, N, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    MUST(h == b + N / 2);
    for (size_t i = 0; i < N; i += 77) CHECK(h[i] == 0);
    fill(model, 2 * N, 50 + r, 0);
    for (size_t i = 0; i < N; i++) model[N / 2 + i] = 0;
    SENT(p, "hole filled", b, 2 * N, hash(model, 2 * N));
    GET(p, 60 + r, h + 5, N - 10);
    fill(model + N / 2 + 5, N - 10, 60 + r, 0);
    SENT(p, "hole received", b, 2 * N, hash(model, 2 * N));
    /* MAP_FIXED over the middle of names, anonymous and of a file */
    MUST(mmap(b + PAGE * 3, PAGE * 2, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
    for (size_t i = 0; i < 2 * PAGE; i++) model[3 * PAGE + i] = 0;
    int fd = open("mapped", O_RDWR | O_CREAT, 0600);
    MUST(fd >= 0 && give(fd, model + N, 3 * PAGE) == (ssize_t)(3 * PAGE));
    MUST(mmap(b + PAGE * 9, PAGE * 3, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0) != MAP_FAILED);
    close(fd);
    for (size_t i = 0; i < 3 * PAGE; i++) model[9 * PAGE + i] = model[N + i];
    SENT(p, "mapped over", b, 2 * N, hash(model, 2 * N));
    same("mapped over", b, model, 2 * N);
    munmap(b, 2 * N);
}

static void advice(peer *p, int r) {
    u8 *b = map_anon(N), *c = malloc(N + PAGE) + 7;
    GET(p, 70 + r, b, N);
    memcpy(c, b, N);
    MUST(madvise(b + 4 * PAGE, 8 * PAGE, MADV_DONTNEED) == 0);
    fill(model, N, 70 + r, 0);
    for (size_t i = 0; i < 8 * PAGE; i++) model[4 * PAGE + i] = 0;
    SENT(p, "discarded", b, N, hash(model, N));
    same("discarded", b, model, N);
    SENT(p, "its copy", c, N, pat_hash(70 + r, 0, N));
    GET(p, 80 + r, b, N);
    MUST(madvise(b, N, MADV_WILLNEED) == 0 || errno == EBADF);
    madvise(b, N, (r & 1) ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    MUST(madvise(b, N, MADV_DONTDUMP) == 0 && madvise(b, N, MADV_SEQUENTIAL) == 0);
    madvise(b, N, MADV_COLD);
    madvise(b, N, MADV_PAGEOUT);
    SENT(p, "advised", b, N, pat_hash(80 + r, 0, N));
    /* after MADV_FREE a page holds its bytes or zeros; a write makes it keep what it then holds */
    MUST(madvise(b, N, MADV_FREE) == 0);
    for (size_t i = 0; i < N; i++) CHECK(b[i] == 0 || b[i] == pat(80 + r, i));
    GET(p, 90 + r, b, N);
    SENT(p, "after free", b, N, pat_hash(90 + r, 0, N));
    SAY_ERR("bad advice %ld errno %d", madvise(b, N, 12345));
    SAY_ERR("odd address %ld errno %d", madvise(b + 1, N, MADV_DONTNEED));
    verify("after free", b, N, 90 + r, 0);
    munmap(b, N);
}

static void protection(peer *p, int r) {
    u8 *b = map_anon(N), *c = malloc(N);
    GET(p, 110 + r, b, N);
    MUST(mprotect(b, N, PROT_NONE) == 0);
    CHECK(faults(b + N / 2, 0) && faults(b, 1));
    SAY_ERR("send of PROT_NONE %ld errno %d", send(p->ctl, b, N, MSG_DONTWAIT));
    MUST(mprotect(b, N, PROT_READ) == 0);
    SENT(p, "read-only", b, N, pat_hash(110 + r, 0, N));
    CHECK(!faults(b + 9, 0) && faults(b + 9, 1) && faults(b + N / 2 + 1, 1));
    memcpy(c, b, N);
    SENT(p, "copy of read-only", c, N, pat_hash(110 + r, 0, N));
    MUST(mprotect(b + N / 2, N / 2, PROT_READ | PROT_WRITE) == 0);
    CHECK(!faults(b + N / 2, 1) && faults(b + N / 2 - 1, 1));
    MUST(mprotect(b, N, PROT_READ | PROT_WRITE) == 0);
    verify("back", b, N, 110 + r, 0);
    free(c);
    munmap(b, N);
}

int main(void) {
    struct sigaction sa = {.sa_handler = on_segv};
    sigaction(SIGSEGV, &sa, NULL);
    peer p = peer_start(P_TCP);
    for (int r = 0; r < 4; r++) {
        say("round %d", r);
        moving(&p, r);
        unmapping(&p, r);
        advice(&p, r);
        protection(&p, r);
    }
    peer_stop(&p);
    return finish();
}
