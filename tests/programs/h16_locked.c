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

int main(void) {
    peer p = peer_start(P_TCP);
    u8 *kept = malloc(N), *copy = malloc(N);
    for (int round = 0; round < 3; round++) {
        static const int flags[] = {MCL_CURRENT, MCL_FUTURE, MCL_CURRENT | MCL_FUTURE};
        rounds(&p, 10 + 100 * round, 4);
        GET(&p, 50 + 100 * round, kept, N);
        memcpy(copy, kept, N);
        say("mlockall is possible or refused: %d", mlockall(flags[round]) == 0 || errno == ENOMEM || errno == EPERM);
        SENT(&p, "kept", copy, N, pat_hash(50 + 100 * round, 0, N));
        rounds(&p, 60 + 100 * round, 4);
        verify("kept", kept, N, 50 + 100 * round, 0);
        munlockall();
    }
    peer_stop(&p);
    return finish();
}
