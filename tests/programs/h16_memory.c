// hazard 16: memory of every kind as the destination: stacks, .bss, shared, file-backed, locked, advised
// expect: elided
#include "common.h"
#include <alloca.h>

#define PAGE ((size_t)4096)
#define N (256 * KIB)
static u8 bss[N + 100], bss2[N + 100];
static u8 initialised[N + 100] = {1, 2, 3};

/* Receives into `d`, copies to `e` (any kind of memory too), sends both, checks both. */
static void use(peer *p, const char *name, u8 *d, u8 *e, int r) {
    size_t n = N - 50;
    say("%s", name);
    GET(p, 10 + r, d + r, n);
    memcpy(e + 7, d + r, n);
    SENT(p, "received", d + r, n, pat_hash(10 + r, 0, n));
    SENT(p, "copied", e + 7, n, pat_hash(10 + r, 0, n));
    verify("copied", e + 7, n, 10 + r, 0);
    memmove(e, e + 7, n);
    d[r] ^= 1;
    verify("moved", e, n, 10 + r, 0);
    SENT(p, "moved", e, n, pat_hash(10 + r, 0, n));
}

__attribute__((noinline)) static void stacks(peer *p, u8 *heap, int r) {
    u8 *a = alloca(N), local[N];
    use(p, "heap to alloca", heap, a, r);
    use(p, "alloca to local", a, local, r);
    use(p, "local to heap", local, heap, r);
}

static void *on_thread_stack(void *arg) {
    stacks(arg, malloc(N), 3);
    return NULL;
}

static void shared(peer *p, u8 *heap, int r) {
    u8 *s = mmap(NULL, N, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    MUST(s != MAP_FAILED);
    use(p, "heap to shared", heap, s, r);
    use(p, "shared to heap", s, heap, r);
    GET(p, 30 + r, s, N);
    pid_t pid = fork(); /* a child sees what is received into shared memory, and the other way round */
    if (pid == 0) {
        int bad = 0;
        for (size_t i = 0; i < N; i++) bad += s[i] != pat(30 + r, i);
        memcpy(s, heap, 100000);
        _exit(bad ? 1 : 0);
    }
    int st;
    MUST(waitpid(pid, &st, 0) == pid);
    say("shared with a child: %d", st);
    failures += st != 0;
    same("written by the child", s, heap, 100000);
    munmap(s, N);
}

static void file_backed(peer *p, u8 *heap, int r, int flags, const char *name) {
    int fd = open(name, O_RDWR | O_CREAT, 0600);
    MUST(fd >= 0 && ftruncate(fd, N) == 0);
    u8 *m = mmap(NULL, N, PROT_READ | PROT_WRITE, flags, fd, 0);
    MUST(m != MAP_FAILED);
    use(p, name, m, heap, r);
    use(p, name, heap, m, r);
    say("msync %d", msync(m, N, MS_SYNC));
    u8 *back = malloc(N);
    say("pread %zd", pread(fd, back, N, 0));
    say("file holds %016lx", (unsigned long)hash(back, N));
    free(back);
    munmap(m, N);
    close(fd);
}

/* Mappings that change their nature, or lie in one that is partly something else. */
static void advised(peer *p, u8 *heap, int r) {
    size_t big = 4 * MIB;
    u8 *m = map_anon(big), *a = (u8 *)(((uintptr_t)m + 2 * MIB - 1) & ~(2 * MIB - 1));
    madvise(m, big, MADV_HUGEPAGE);
    memset(m, 1, big);
    use(p, "huge pages", a, heap, r);
    use(p, "huge pages fresh", heap, a + MIB, r);
    madvise(m, big, MADV_DONTNEED);
    use(p, "huge pages discarded", a, heap, r);
    munmap(m, big);
    m = map_anon(N);
    say("mlock %d", mlock(m, N));
    use(p, "locked", m, heap, r);
    use(p, "to locked", heap, m, r);
    say("munlock %d", munlock(m, N));
    use(p, "unlocked", m, heap, r);
    /* locking what is named makes it present, with its bytes */
    GET(p, 40 + r, m, N);
    say("mlock %d", mlock(m + PAGE, N / 2));
    verify("named, then locked", m, N, 40 + r, 0);
    munmap(m, N);
    m = mmap(NULL, N, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_POPULATE, -1, 0);
    use(p, "populated", m, heap, r);
    munmap(m, N);
    m = mmap(NULL, N, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN, -1, 0);
    if (m != MAP_FAILED) {
        use(p, "growing down", m, heap, r);
        munmap(m, N);
    }
    /* mincore answers for pages of ours as before: a mapped address is no error */
    m = map_anon(N);
    unsigned char vec[N / 4096];
    GET(p, 50 + r, m, N);
    say("mincore %d", mincore(m, N, vec));
    verify("after mincore", m, N, 50 + r, 0);
    munmap(m, N);
    u8 *top = sbrk(N + PAGE);
    MUST(top != (void *)-1);
    use(p, "program break", top, heap, r);
}

int main(void) {
    peer p = peer_start(P_TCP);
    for (int r = 0; r < 4; r++) {
        u8 *heap = malloc(N);
        say("round %d", r);
        use(&p, "heap to bss", heap, bss, r);
        use(&p, "bss to bss", bss, bss2, r);
        use(&p, "bss to data", bss2, initialised, r);
        use(&p, "data to heap", initialised, heap, r);
        stacks(&p, heap, r);
        pthread_t t;
        pthread_create(&t, NULL, on_thread_stack, &p);
        pthread_join(t, NULL);
        shared(&p, heap, r);
        file_backed(&p, heap, r, MAP_SHARED, "shared-file");
        file_backed(&p, heap, r, MAP_PRIVATE, "private-file");
        advised(&p, heap, r);
        free(heap);
    }
    peer_stop(&p);
    return finish();
}
