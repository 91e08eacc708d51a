// hazard 23: all descriptors are closed in the middle, by every means, and elided data is used after that
// expect: elided
#include "common.h"

#define N (250 * KIB)

/* glibc has it since 2.34; older headers lack the prototype. */
int close_range(unsigned, unsigned, int);

static void close_all(int how) {
    switch (how) {
    case 0: MUST(close_range(3, ~0U, 0) == 0); break;
    case 1: closefrom(3); break;
    case 2: for (int fd = 3; fd < 4096; fd++) close(fd); break;
    case 3: MUST(close_range(3, INT_MAX, 0) == 0); break;
    case 4: /* what stands on a number is replaced without a close */
        for (int fd = 3; fd < 300; fd++) dup2(1, fd);
        for (int fd = 3; fd < 300; fd++) close(fd);
        closefrom(300);
        break;
    case 5: {
        struct rlimit rl;
        getrlimit(RLIMIT_NOFILE, &rl);
        for (rlim_t fd = rl.rlim_cur < 70000 ? rl.rlim_cur : 70000; fd-- > 3;) close(fd);
        break;
    }
    }
}

static void round_of(int how, int r) {
    peer p = peer_start(r % 3);
    u8 *a = malloc(N), *b = malloc(N), *c = malloc(N);
    u64 seed = 10 * how + r;
    GET(&p, seed, a, N);
    memcpy(b, a, N);
    close_all(how);
    int first = open("/dev/null", O_RDONLY), second = dup(first);
    say("next descriptors %d %d", first, second);
    verify("touched after", b, N / 2, seed, 0);
    memcpy(c, a, N);
    MUST(waitpid(p.pid, NULL, 0) == p.pid); /* its control socket is gone, so it ends */
    peer q = peer_start((r + 1) % 3);
    SENT(&q, "kept", c, N, pat_hash(seed, 0, N));
    SENT(&q, "kept", b, N, pat_hash(seed, 0, N));
    for (int i = 0; i < 4; i++) {
        GET(&q, seed + 100 + i, a, N);
        memcpy(b, a, N);
        SENT(&q, "new", b, N, pat_hash(seed + 100 + i, 0, N));
    }
    pid_t pid = fork();
    if (pid == 0) {
        close_all(how);
        verify("in a child that closed all", b, N, seed + 103, 0);
        c[0]++;
        verify("in a child that closed all", c + 1, N - 1, seed, 1);
        _exit(failures);
    }
    int st;
    MUST(waitpid(pid, &st, 0) == pid);
    say("child %d", st);
    failures += st != 0;
    verify("new", b, N, seed + 103, 0);
    verify("kept", c, N, seed, 0);
    close(first), close(second);
    peer_stop(&q);
    free(a), free(b), free(c);
}

int main(void) {
    for (int r = 0; r < 2; r++)
        for (int how = 0; how < 6; how++) {
            say("round %d, way %d", r, how);
            round_of(how, r);
        }
    return finish();
}
