// hazard 7: free, then reuse by small objects, stat and readdir buffers, stdio, calloc; usable sizes
// expect: elided
#include "common.h"
#include <dirent.h>
#include <malloc.h>

#define N (200 * KIB)
static u8 src[N];

/* Leaves freed memory behind that was full of names. */
static void leave_names(peer *p, int r, int how_many) {
    u8 *b[16];
    for (int i = 0; i < how_many; i++) MUST((b[i] = malloc(N + 48 * i)) != NULL);
    GET(p, 10 + r, b[0] + 3, N - 3);
    for (int i = 1; i < how_many; i++) memcpy(b[i] + 7 * i, b[i - 1] + 7 * (i - 1) + 3 * (i == 1), N - 200);
    SENT(p, "named", b[how_many - 1] + 7 * (how_many - 1), N - 200, pat_hash(10 + r, 0, N - 200));
    for (int i = 0; i < how_many; i++) free(b[(i * 3) % how_many]), b[(i * 3) % how_many] = NULL;
}

static void small_objects(int r) {
    enum { COUNT = 4000 };
    static u8 *o[COUNT];
    u64 sum = FNV_START;
    for (int i = 0; i < COUNT; i++) {
        size_t n = 1 + (i * 37 + r) % 700;
        o[i] = malloc(n);
        MUST(o[i]);
        memset(o[i], i, n);
        o[i][n - 1] = (u8)~i;
    }
    for (int i = 0; i < COUNT; i++) {
        size_t n = 1 + (i * 37 + r) % 700;
        for (size_t k = 0; k + 1 < n; k++) CHECK(o[i][k] == (u8)i);
        CHECK(o[i][n - 1] == (u8)~i);
        sum = fnv(sum, o[i][n - 1]);
        if (i & 1) free(o[i]);
    }
    for (int i = 0; i < COUNT; i += 2) free(o[i]);
    say("small objects %016lx", (unsigned long)sum);
}

static void zeroed(void) {
    for (int i = 0; i < 6; i++) {
        size_t n = (size_t)5000 << i;
        u8 *z = calloc(n, 1), *y = calloc(3, n);
        MUST(z && y);
        CHECK(hash(z, n) == hash(memset(calloc(n, 1), 0, n), n));
        for (size_t k = 0; k < n; k++)
            if (z[k] || y[3 * k + 2]) { CHECK(!"calloc is zero"); break; }
        z[n - 1] = 1, y[0] = 2;
        free(z);
        free(y);
    }
    say("calloc checked");
}

/* The kernel writes straight into memory that was freed with names on it. */
static void kernel_buffers(void) {
    struct stat *st = malloc(sizeof *st * 600);
    MUST(st);
    memset(st, 0, sizeof *st); /* only the first is touched before the kernel writes the others */
    for (int i = 0; i < 600; i++) CHECK(stat("/", &st[i]) == 0 && S_ISDIR(st[i].st_mode));
    say("stat %d", st[599].st_ino == st[0].st_ino);
    free(st);
    mkdir("many", 0777);
    chdir("many");
    for (int i = 0; i < 300; i++) {
        char name[40];
        snprintf(name, sizeof name, "entry-with-a-long-name-%03d", i);
        close(open(name, O_CREAT | O_WRONLY, 0600));
    }
    for (int r = 0; r < 3; r++) {
        DIR *d = opendir("."); /* its 32 KiB buffer comes from malloc */
        MUST(d);
        int count = 0;
        u64 sum = 0;
        for (struct dirent *e; (e = readdir(d));) count++, sum += e->d_name[0] == 'e' ? atoi(e->d_name + 23) : 0;
        closedir(d);
        say("readdir %d %lu", count, (unsigned long)sum);
    }
    for (int i = 0; i < 300; i++) {
        char name[40];
        snprintf(name, sizeof name, "entry-with-a-long-name-%03d", i);
        unlink(name);
    }
    chdir("..");
    rmdir("many");
    char *cwd = malloc(70000), *link = malloc(70000), *host = malloc(70000);
    CHECK(getcwd(cwd, 70000) == cwd && cwd[0] == '/');
    CHECK(readlink("/proc/self/exe", link, 70000) > 0 && link[0] == '/');
    CHECK(gethostname(host, 70000) == 0 && host[0]);
    struct rusage *ru = malloc(sizeof *ru * 100);
    CHECK(getrusage(RUSAGE_SELF, ru + 99) == 0 && ru[99].ru_maxrss > 0);
    struct timespec *ts = malloc(sizeof *ts * 5000);
    CHECK(clock_gettime(CLOCK_MONOTONIC, ts + 4999) == 0 && ts[4999].tv_sec > 0);
    free(cwd), free(link), free(host), free(ru), free(ts);
}

static void stdio_buffers(int r) {
    FILE *f = fopen("stdio", "w+");
    MUST(f);
    char *iobuf = malloc(N);
    setvbuf(f, iobuf, _IOFBF, N);
    fill(src, N, 70 + r, 0);
    say("fwrite %zu", fwrite(src, 1000, 200, f));
    rewind(f);
    u8 *in = malloc(N);
    say("fread %zu", fread(in, 1000, 200, f));
    verify("fread", in, 200000, 70 + r, 0);
    fclose(f);
    free(iobuf);
    free(in);
}

static void usable(peer *p) {
    for (int r = 0; r < 4; r++) {
        u8 *b = malloc(N + 5);
        MUST(b);
        size_t u = malloc_usable_size(b);
        CHECK(u >= N + 5);
        GET(p, 30 + r, b, N);
        memset(b + N, 0xAB, u - N); /* allowed to be written to the end */
        u8 *c = malloc(u);
        memcpy(c, b, u);
        SENT(p, "usable", c, N, pat_hash(30 + r, 0, N));
        CHECK(c[u - 1] == 0xAB && c[N] == 0xAB);
        free(b);
        free(c);
        void *al = NULL;
        MUST(posix_memalign(&al, 65536, N) == 0);
        b = al;
        c = aligned_alloc(4096, 50 * 4096);
        CHECK(((uintptr_t)b & 65535) == 0 && ((uintptr_t)c & 4095) == 0);
        GET(p, 40 + r, b, N);
        memcpy(c, b, N);
        SENT(p, "aligned", c, N, pat_hash(40 + r, 0, N));
        verify("aligned", c, N, 40 + r, 0);
        free(b);
        free(c);
    }
}

int main(void) {
    peer p = peer_start(P_TCP);
    for (int r = 0; r < 5; r++) {
        say("round %d", r);
        leave_names(&p, r, 16);
        small_objects(r);
        leave_names(&p, r + 20, 8);
        zeroed();
        leave_names(&p, r + 40, 8);
        kernel_buffers();
        leave_names(&p, r + 60, 8);
        stdio_buffers(r);
    }
    usable(&p);
    peer_stop(&p);
    return finish();
}
