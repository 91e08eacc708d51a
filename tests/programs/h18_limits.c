// hazard 18: a small RLIMIT_AS, and no descriptor left
// cflags: -Wno-use-after-free
// expect: elided
#include "common.h"

#define N (200 * KIB)

static size_t address_space(void) {
    unsigned long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    MUST(f && fscanf(f, "%lu", &pages) == 1);
    fclose(f);
    return pages * 4096;
}

static void rounds(peer *p, u64 seed) {
    for (int r = 0; r < 4; r++) {
        u8 *a = malloc(N), *b = malloc(N + 100);
        MUST(a && b);
        GET(p, seed + r, a, N);
        memcpy(b + 100, a, N);
        SENT(p, "copy", b + 100, N, pat_hash(seed + r, 0, N));
        verify("copy", b + 100, N, seed + r, 0);
        free(a);
        free(b);
    }
}

/* Lowered while the program runs: what was possible stays so, what is not fails with ENOMEM. */
static void lowered(void *arg) {
    peer *p = arg;
    u8 *keep = malloc(N);
    GET(p, 5, keep, N);
    struct rlimit rl = {address_space() + 24 * MIB, RLIM_INFINITY};
    MUST(setrlimit(RLIMIT_AS, &rl) == 0);
    errno = 0;
    void *big = malloc(64 * MIB);
    say("malloc of 64 MiB: %d errno %d", big != NULL, errno);
    big = mmap(NULL, 64 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    say("mmap of 64 MiB: %d errno %d", big != MAP_FAILED, errno);
    u8 *small = malloc(4 * MIB);
    say("malloc of 4 MiB: %d", small != NULL);
    free(small);
    u8 *more = realloc(keep, 64 * MIB);
    say("realloc to 64 MiB: %d", more != NULL);
    rounds(p, 10);
    verify("kept", keep, N, 5, 0);
}

/* The whole program under a limit that leaves no room for anything large. */
static void small_from_start(const char *self) {
    pid_t pid = fork();
    if (pid == 0) {
        struct rlimit rl = {48 * MIB, 48 * MIB};
        setrlimit(RLIMIT_AS, &rl);
        execl(self, self, "small", (char *)NULL);
        _exit(127);
    }
    int st;
    MUST(waitpid(pid, &st, 0) == pid);
    say("small: status %x", st);
    failures += st != 0;
}

static void no_descriptors(void *arg) {
    peer *p = arg;
    u8 *keep = malloc(N), *also = malloc(N);
    GET(p, 30, keep, N);
    memcpy(also, keep, N);
    struct rlimit rl = {32, 32};
    MUST(setrlimit(RLIMIT_NOFILE, &rl) == 0);
    int first = -1, last = -1, fd, count = 0;
    while ((fd = open("/dev/null", O_RDONLY)) >= 0) {
        if (first < 0) first = fd;
        last = fd;
        count++;
    }
    say("open: first %d last %d errno %d", first - p->in, last, errno);
    rounds(p, 40);
    verify("copy", also, N / 2, 30, 0);
    pid_t pid = fork(); /* the child has no descriptor to spare either */
    if (pid == 0) {
        verify("child", keep, N, 30, 0);
        also[N - 1]++;
        verify("child's copy", also + N / 2, N / 2 - 1, 30, N / 2);
        SAY_ERR("child's open %ld errno %d", open("/dev/null", O_RDONLY));
        _exit(failures);
    }
    int st;
    MUST(waitpid(pid, &st, 0) == pid);
    say("child %d", st);
    failures += st != 0;
    SAY_ERR("socket %ld errno %d", socket(AF_UNIX, SOCK_STREAM, 0));
    SENT(p, "kept", keep, N, pat_hash(30, 0, N));
    verify("kept", keep, N, 30, 0);
    close(last);
    say("freed one: %d", open("/dev/null", O_RDONLY) == last);
    rounds(p, 50);
}

int main(int argc, char **argv) {
    if (argc > 1) { /* the exec'd one */
        peer p = peer_start(P_UNIX);
        say("malloc of 64 MiB: %d", malloc(64 * MIB) != NULL);
        rounds(&p, 70);
        peer_stop(&p);
        return finish();
    }
    peer p = peer_start(P_TCP);
    rounds(&p, 1);
    small_from_start(argv[0]);
    in_child("lowered", lowered, &p);
    in_child("no descriptors", no_descriptors, &p);
    lowered(&p);
    struct rlimit rl = {RLIM_INFINITY, RLIM_INFINITY};
    MUST(setrlimit(RLIMIT_AS, &rl) == 0);
    no_descriptors(&p);
    peer_stop(&p);
    return finish();
}
