// hazard 23: files: pread, pwrite and the vector forms with named buffers, O_APPEND, O_DIRECT, odd readers
// expect: elided
#include "common.h"
#include <sys/sendfile.h>

#define N (300 * KIB)
static u8 model[2 * MIB];

static void plain_file(peer *p, int r) {
    char name[30];
    snprintf(name, sizeof name, "plain-%d", r);
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    u8 *a = malloc(N + 20), *b = malloc(N + 20), *c = malloc(N + 20);
    GET(p, 10 + r, a + 1, N);
    memcpy(b + 8, a + 1, N);
    say("write %zd", write(fd, b + 8, N));
    say("pwrite %zd", pwrite(fd, b + 9, 100000, 1000001));
    struct iovec v[3] = {{b + 8, 50000}, {a + 3, 70001}, {b + 108, 33333}};
    say("pwritev %zd", pwritev(fd, v, 3, 500003));
    say("writev %zd at %ld", writev(fd, v, 3), (long)lseek(fd, 0, SEEK_CUR));
    say("pwritev2 %zd", pwritev2(fd, v, 2, 1200000, RWF_DSYNC));
    memset(b, 0xDD, N);
    /* and back, into buffers that hold names */
    say("pread %zd", pread(fd, a, N, 0));
    verify("pread", a, N, 10 + r, 0);
    GET(p, 20 + r, c, N);
    struct iovec w[3] = {{c + 1, 40000}, {b + 2, 100000}, {c + 50000, 13334}};
    say("preadv %zd", preadv(fd, w, 3, 500003));
    verify("first", c + 1, 40000, 10 + r, 0);
    verify("second", b + 2, 10000, 10 + r, 40000);
    verify("second", b + 2 + 10000, 70001, 10 + r, 2);
    verify("untouched", c + 41000, 9000, 20 + r, 41000);
    say("preadv2 %zd", preadv2(fd, w, 2, 1200000, 0));
    SENT(p, "read and sent", c + 1, 40000, pat_hash(10 + r, 0, 40000));
    say("lseek %ld", (long)lseek(fd, -50000, SEEK_END));
    GET(p, 30 + r, a, N);
    ssize_t k = read(fd, a + 7, N);
    say("short read at the end %zd", k);
    verify("behind it", a + 7 + k, N - 7 - k, 30 + r, 7 + k);
    k = read(fd, a, N), say("read at the end %zd", k);
    k = pread(fd, a, N, 1 << 30), say("pread beyond %zd", k);
    verify("intact", a + 50007, N - 50007, 30 + r, 50007);
    MUST(ftruncate(fd, 900000) == 0);
    off_t from = 100;
    peer_want(p, N - 200);
    for (size_t done = 0; done < N - 200;) {
        k = sendfile(p->out, fd, &from, N - 200 - done);
        MUST(k > 0);
        done += k;
    }
    judge("sendfile", N - 200, peer_hash(p), pat_hash(10 + r, 100, N - 200));
    close(fd);
    free(a), free(b), free(c);
}

/* Two descriptors append turn and turn about; every write is one piece at the end. */
static void append(peer *p, int r) {
    int f = open("appended", O_WRONLY | O_CREAT | O_APPEND, 0600), g = open("appended", O_RDWR | O_APPEND);
    MUST(f >= 0 && g >= 0);
    u8 *a = malloc(N), *b = malloc(N);
    for (int i = 0; i < 3; i++) {
        GET(p, 50 + 10 * r + i, a, N);
        memcpy(b, a, N);
        b[N / 2] = 0;
        say("append %zd", write(f, b + i, N - 10));
        say("append %zd", write(g, a, 65537));
        struct iovec v[2] = {{a + 1, 20000}, {b + 1, 20000}};
        say("append %zd", writev(f, v, 2));
        say("pwrite appends too %zd", pwrite(g, a, 17000, 0));
    }
    struct stat st;
    MUST(fstat(f, &st) == 0);
    say("size %ld", (long)st.st_size);
    close(f), close(g);
    free(a), free(b);
}

static void direct(peer *p, int r) {
    int fd = open("direct", O_RDWR | O_CREAT | O_TRUNC | O_DIRECT, 0600);
    if (fd < 0) {
        say("O_DIRECT: errno %d", errno);
        return;
    }
    size_t n = 256 * KIB;
    u8 *al = aligned_alloc(4096, n), *odd = malloc(n + 4096), *back = aligned_alloc(4096, n);
    GET(p, 80 + r, odd + 1, n);
    memcpy(al, odd + 1, n); /* named by core bytes that are not aligned */
    ssize_t k = write(fd, al, n);
    say("direct write %zd errno %d", k, err_of(k));
    memcpy(back, al, n);
    k = pread(fd, back, n, 0);
    say("direct read %zd errno %d", k, err_of(k));
    verify("direct", back, n, 80 + r, 0);
    SENT(p, "direct", back, n, pat_hash(80 + r, 0, n));
    u8 *skew = (u8 *)(((uintptr_t)odd + 4095) & ~4095ul) + 13;
    k = write(fd, skew, 65536);
    say("unaligned direct write fails %d", k < 0);
    k = pread(fd, skew, 65536, 0);
    say("unaligned direct read fails %d", k < 0);
    verify("source", odd + 1, n, 80 + r, 0);
    close(fd);
    unlink("direct");
    free(al), free(odd), free(back);
}

/* Readers that are neither sockets nor regular files. */
static void odd_files(peer *p, int r) {
    u8 *a = malloc(N), *b = malloc(N);
    int zero = open("/dev/zero", O_RDONLY), proc = open("/proc/self/cmdline", O_RDONLY), full = open("/dev/full", O_RDWR);
    int dir = open(".", O_RDONLY | O_DIRECTORY), wr = open("write-only", O_WRONLY | O_CREAT, 0600);
    GET(p, 110 + r, a, N);
    say("/dev/zero %zd", read(zero, a + 5, N - 10));
    for (size_t i = 5; i < N - 5; i++) model[i] = 0;
    for (size_t i = 0; i < 5; i++) model[i] = pat(110 + r, i), model[N - 5 + i] = pat(110 + r, N - 5 + i);
    same("/dev/zero", a, model, N);
    GET(p, 120 + r, b, N);
    say("/proc %d", read(proc, b, N) > 5);
    verify("behind /proc", b + 5000, N - 5000, 120 + r, 5000);
    ssize_t k = write(full, b, N);
    say("/dev/full %zd errno %d", k, err_of(k));
    k = read(dir, b, N), say("directory %zd errno %d", k, err_of(k));
    k = read(wr, b, N), say("write-only %zd errno %d", k, err_of(k));
    k = write(zero, b, N), say("read-only %zd errno %d", k, err_of(k));
    verify("intact", b + 5000, N - 5000, 120 + r, 5000);
    struct rlimit old, rl;
    getrlimit(RLIMIT_FSIZE, &old);
    rl = old, rl.rlim_cur = 100001;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &rl);
    k = write(wr, b + 5000, 200000), say("up to RLIMIT_FSIZE %zd", k);
    k = write(wr, b + 5000, 200000), say("beyond it %zd errno %d", k, err_of(k));
    setrlimit(RLIMIT_FSIZE, &old);
    close(zero), close(proc), close(full), close(dir), close(wr);
    free(a), free(b);
}

int main(void) {
    peer p = peer_start(P_TCP);
    for (int r = 0; r < 4; r++) {
        say("round %d", r);
        plain_file(&p, r);
        append(&p, r);
        direct(&p, r);
        odd_files(&p, r);
    }
    peer_stop(&p);
    return finish();
}
