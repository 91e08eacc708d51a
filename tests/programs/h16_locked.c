// hazard 16: mlockall in the middle: everything is present from then on, with its bytes
// expect: elided anymode
#include "common.h"

#define N (256 * KIB)

static void rounds(peer *p, u64 seed, int count) {
    for (int r = 0; r < count; r++) {
        u8 *a = malloc(N), *b = map_anon(N);
        GET(p, seed + r, a, N);
        memcpy(b + 9, a, N - 9);
        SENT(p, "copied", b + 9, N - 9, pat_hash(seed + r, 0, N - 9));
        if (r & 1) verify("copied", b + 9, N - 9, seed + r, 0);
        free(a);
        munmap(b, N);
    }
}

/* One kind of locking, in a process of its own. */
static void locked(void *arg) {
    int flags = *(int *)arg;
    peer p = peer_start(P_TCP);
    u8 *kept = malloc(N), *copy = malloc(N);
    rounds(&p, 10 + 100 * flags, 4);
    GET(&p, 50 + 100 * flags, kept, N);
    memcpy(copy, kept, N);
    say("mlockall is possible or refused: %d", mlockall(flags) == 0 || errno == ENOMEM || errno == EPERM);
    SENT(&p, "kept", copy, N, pat_hash(50 + 100 * flags, 0, N));
    rounds(&p, 60 + 100 * flags, 4);
    verify("kept", kept, N, 50 + 100 * flags, 0);
    munlockall();
    rounds(&p, 80 + 100 * flags, 4);
    peer_stop(&p);
}

static long resident_pages(pid_t pid) {
    char name[40];
    long size, pages = 0;
    snprintf(name, sizeof name, "/proc/%d/statm", (int)pid);
    FILE *f = fopen(name, "r");
    if (!f || fscanf(f, "%ld %ld", &size, &pages) != 2) pages = 0;
    if (f) fclose(f);
    return pages;
}

/* A reservation that is not kept out of the locking would be populated whole: watch, and end it in time. */
static void watched(int flags) {
    pid_t pid = fork();
    MUST(pid >= 0);
    if (pid == 0) {
        locked(&flags);
        _exit(failures ? 1 : 0);
    }
    int st;
    while (waitpid(pid, &st, WNOHANG) == 0) {
        if (resident_pages(pid) > 256 * 1024) {
            say("FAIL mlockall made more than 1 GiB resident");
            failures++;
            kill(pid, SIGKILL);
            MUST(waitpid(pid, &st, 0) == pid);
            break;
        }
        usleep(2000);
    }
    say("flags %d: status %x", flags, st);
    failures += st != 0;
}

int main(void) {
    peer p = peer_start(P_UNIX);
    rounds(&p, 1, 4); /* live names that the children inherit */
    watched(MCL_FUTURE);
    watched(MCL_CURRENT);
    watched(MCL_CURRENT | MCL_FUTURE);
    rounds(&p, 5, 4);
    peer_stop(&p);
    return finish();
}
