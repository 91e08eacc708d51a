// hazard 22: exec'd children of every sort work, whatever is elided in the parent
// expect: elided
#include "common.h"

#define N (200 * KIB)

static void wait_for(const char *name, pid_t pid) {
    int st = 0;
    MUST(waitpid(pid, &st, 0) == pid);
    say("%s status %x", name, st);
}

/* What an exec'd copy of this program does: receive, copy and send for itself. */
static int again(void) {
    peer p = peer_start(P_UNIX);
    u8 *a = malloc(N), *b = malloc(N);
    for (int r = 0; r < 3; r++) {
        GET(&p, 40 + r, a, N);
        memcpy(b, a, N);
        SENT(&p, "exec'd", b, N, pat_hash(40 + r, 0, N));
    }
    verify("exec'd", b, N, 42, 0);
    peer_stop(&p);
    return finish();
}

int main(int argc, char **argv) {
    if (argc > 1) return again();
    peer p = peer_start(P_TCP);
    u8 *a = malloc(N), *b = malloc(N);
    for (int r = 0; r < 4; r++) {
        pid_t pid;
        say("round %d", r);
        GET(&p, 10 + r, a, N);
        memcpy(b, a, N);
        if ((pid = fork()) == 0) {
            a[5]++;
            execl("/bin/sh", "sh", "-c", "x=0; for i in 1 2 3 4 5; do x=$((x+i)); done; echo sum $x; exit 9", (char *)NULL);
            _exit(127);
        }
        wait_for("sh", pid);
        if ((pid = fork()) == 0) {
            execl(argv[0], argv[0], "again", (char *)NULL);
            _exit(127);
        }
        wait_for("itself", pid);
        if ((pid = fork()) == 0) {
            char *none[] = {NULL}, *args[] = {"sh", "-c", "echo empty environment; cat /dev/null; kill -TERM $$", NULL};
            execve("/bin/sh", args, none);
            _exit(127);
        }
        wait_for("without environment", pid);
        /* data through a filter of our own making, in a pipeline */
        int in[2], out[2];
        MUST(pipe(in) == 0 && pipe(out) == 0);
        if ((pid = fork()) == 0) {
            dup2(in[0], 0), dup2(out[1], 1);
            close(in[0]), close(in[1]), close(out[0]), close(out[1]);
            execl("/bin/sh", "sh", "-c", "cat | tail -c 150000 | cat", (char *)NULL);
            _exit(127);
        }
        close(in[0]), close(out[1]);
        pid_t feeder = fork();
        if (feeder == 0) {
            close(out[0]);
            _exit(give(in[1], b, N) == (ssize_t)N ? 0 : 1);
        }
        close(in[1]);
        u8 *c = malloc(N);
        say("filtered %zd", take(out[0], c, N));
        verify("filtered", c, 150000, 10 + r, N - 150000);
        close(out[0]);
        wait_for("feeder", feeder);
        wait_for("filter", pid);
        SENT(&p, "copy", b, N, pat_hash(10 + r, 0, N));
        verify("source", a, N, 10 + r, 0);
        free(c);
        if ((pid = fork()) == 0) {
            char *bad[] = {"x", NULL};
            execv("/etc/passwd", bad);
            int e = errno;
            execvp("no-such-program-anywhere", bad);
            say("exec failed with %d and %d", e, errno);
            verify("after a failed exec", b, N, 10 + r, 0);
            _exit(failures);
        }
        wait_for("failed exec", pid);
    }
    free(a);
    free(b);
    peer_stop(&p);
    return finish();
}
