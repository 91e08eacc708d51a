// hazard 11: what sigaction, sigprocmask and sigaltstack report; handlers on the program's own stack
// expect: elided
#include "common.h"

#define N (192 * KIB)
static u8 *data, *copy;
static u64 seed;
static volatile int depth, deepest, ran, on_stack, blocked_inside, wrong;
static u8 *stack_low;
static size_t stack_len;

static void touch(void) {
    for (size_t i = 0; i < N; i += 1000) wrong += ((volatile u8 *)data)[i] != pat(seed, i);
}
static void on_own_stack(int sig) {
    u8 here;
    sigset_t now;
    ran++;
    on_stack = &here >= stack_low && &here < stack_low + stack_len;
    sigprocmask(SIG_BLOCK, NULL, &now);
    blocked_inside = sigismember(&now, sig) * 100 + sigismember(&now, SIGUSR2) * 10 + sigismember(&now, SIGSEGV);
    touch();
}
static void nesting(int sig) {
    depth++;
    if (depth > deepest) deepest = depth;
    if (depth < 4) raise(sig);
    touch();
    depth--;
}
static void with_info(int sig, siginfo_t *si, void *uc) {
    (void)uc;
    ran += si->si_signo == sig;
}

static void say_action(const char *name, int sig) {
    struct sigaction sa;
    MUST(sigaction(sig, NULL, &sa) == 0);
    const char *h = sa.sa_handler == SIG_DFL ? "default" : sa.sa_handler == SIG_IGN ? "ignore"
        : sa.sa_handler == on_own_stack ? "on_own_stack" : sa.sa_handler == nesting ? "nesting"
        : sa.sa_sigaction == with_info ? "with_info" : "something else";
    int members = 0;
    for (int s = 1; s < 65; s++) members += sigismember(&sa.sa_mask, s) == 1 ? s : 0;
    say("%s: handler %s flags %x mask %d", name, h, (unsigned)sa.sa_flags & ~0x04000000u, members);
}

static void queries(int sig) {
    struct sigaction sa = {.sa_handler = on_own_stack, .sa_flags = SA_ONSTACK | SA_RESTART}, old;
    say_action("at start", sig);
    sigemptyset(&sa.sa_mask);
    sigaddset(&sa.sa_mask, SIGUSR2);
    sigaddset(&sa.sa_mask, SIGSEGV);
    sigaddset(&sa.sa_mask, SIGBUS);
    MUST(sigaction(sig, &sa, &old) == 0);
    say("old %d", old.sa_handler == SIG_DFL);
    say_action("set", sig);
    sa = (struct sigaction){.sa_sigaction = with_info, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESETHAND};
    sigfillset(&sa.sa_mask);
    MUST(sigaction(sig, &sa, &old) == 0);
    say("old %d flags %x", old.sa_handler == on_own_stack, (unsigned)old.sa_flags & ~0x04000000u);
    say_action("set again", sig);
    ran = 0;
    raise(sig);
    say("ran %d", ran);
    say_action("reset by SA_RESETHAND", sig);
    say("signal gives %d", signal(sig, SIG_IGN) == SIG_DFL);
    raise(sig);
    say_action("signal", sig);
    say("signal gives %d", signal(sig, nesting) == SIG_IGN);
    say_action("signal", sig);
    say("signal gives %d", signal(sig, SIG_DFL) == nesting);
    SAY_ERR("bad signal %ld errno %d", sigaction(65, &sa, NULL));
    SAY_ERR("SIGKILL %ld errno %d", sigaction(SIGKILL, &sa, NULL));
    say("null act %d", sigaction(sig, NULL, NULL));
}

static void masks(void) {
    sigset_t s, old, now;
    sigemptyset(&s);
    sigaddset(&s, SIGSEGV), sigaddset(&s, SIGBUS), sigaddset(&s, SIGUSR1);
    MUST(sigprocmask(SIG_BLOCK, &s, &old) == 0);
    sigprocmask(SIG_BLOCK, NULL, &now);
    say("blocked %d %d %d", sigismember(&now, SIGSEGV), sigismember(&now, SIGBUS), sigismember(&now, SIGUSR1));
    touch();
    sigdelset(&s, SIGSEGV);
    pthread_sigmask(SIG_UNBLOCK, &s, &now);
    say("old said %d %d", sigismember(&now, SIGSEGV), sigismember(&now, SIGBUS));
    pthread_sigmask(SIG_SETMASK, NULL, &now);
    say("now %d %d", sigismember(&now, SIGSEGV), sigismember(&now, SIGBUS));
    sigfillset(&s);
    sigprocmask(SIG_SETMASK, &s, NULL);
    touch();
    verify("all blocked", data, N, seed, 0);
    sigprocmask(SIG_SETMASK, &old, &now);
    say("all were blocked %d", sigismember(&now, SIGSEGV) + sigismember(&now, SIGTERM) + sigismember(&now, SIGALRM));
    SAY_ERR("bad how %ld errno %d", sigprocmask(77, &s, NULL));
}

static void *blocked_thread(void *arg) {
    (void)arg;
    sigset_t all, now;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    touch();
    memcpy(copy + 3, data, N);
    int bad = 0;
    for (size_t i = 0; i < N; i++) bad += copy[3 + i] != pat(seed, i);
    pthread_sigmask(SIG_BLOCK, NULL, &now);
    struct timespec soon = {0, 1000000};
    ppoll(NULL, 0, &soon, &all); /* with a mask of its own */
    touch();
    say("thread with all blocked: bad %d, mask %d", bad, sigismember(&now, SIGSEGV));
    return NULL;
}

static void own_stack(size_t size) {
    stack_t st, old;
    say("sigaltstack query %d", sigaltstack(NULL, &old));
    say("before: flags %d size %zu", old.ss_flags, old.ss_flags & SS_DISABLE ? 0 : old.ss_size);
    u8 *m = map_anon(16384 + size);
    mprotect(m, 8192, PROT_NONE); /* whoever needs more stack than asked for is found out */
    stack_low = m + 8192, stack_len = size;
    st = (stack_t){.ss_sp = stack_low, .ss_size = size};
    MUST(sigaltstack(&st, &old) == 0);
    MUST(sigaltstack(NULL, &old) == 0);
    say("set: same %d size same %zu flags %d", old.ss_sp == stack_low, (size_t)(old.ss_size == size), old.ss_flags);
    touch();
    struct sigaction sa = {.sa_handler = on_own_stack, .sa_flags = SA_ONSTACK};
    sigemptyset(&sa.sa_mask);
    sigaddset(&sa.sa_mask, SIGUSR2);
    sigaction(SIGUSR1, &sa, NULL);
    ran = 0;
    raise(SIGUSR1);
    say("ran %d on its stack %d mask %d", ran, on_stack, blocked_inside);
    sa.sa_flags = 0;
    sigaction(SIGUSR1, &sa, NULL);
    raise(SIGUSR1);
    say("ran %d on its stack %d", ran, on_stack);
    st = (stack_t){.ss_sp = stack_low, .ss_size = 100};
    SAY_ERR("too small %ld errno %d", sigaltstack(&st, NULL));
    st = (stack_t){.ss_flags = SS_DISABLE};
    MUST(sigaltstack(&st, &old) == 0);
    say("disabled: was %d", old.ss_sp == stack_low);
    munmap(m, 16384 + size);
}

int main(void) {
    peer p = peer_start(P_TCP);
    for (int r = 0; r < 4; r++) {
        pthread_t t;
        say("round %d", r);
        data = malloc(N), copy = malloc(N + 8), seed = 20 + r;
#define FRESH() GET(&p, seed, data, N)
        FRESH();
        static const int sigs[] = {SIGUSR1, SIGSEGV, SIGBUS, SIGALRM};
        queries(sigs[r]);
        SENT(&p, "data", data, N, pat_hash(seed, 0, N));
        masks();
        FRESH();
        pthread_create(&t, NULL, blocked_thread, NULL);
        pthread_join(t, NULL);
        FRESH();
        own_stack(MINSIGSTKSZ + (r & 1 ? 0 : 1024));
        FRESH();
        struct sigaction sa = {.sa_handler = nesting, .sa_flags = SA_NODEFER};
        int s = r & 1 ? SIGSEGV : SIGUSR1;
        sigaction(s, &sa, NULL);
        raise(s);
        say("nested %d", deepest);
        signal(s, SIG_DFL);
        deepest = 0;
        say("wrong bytes %d", wrong);
        failures += wrong, wrong = 0;
        free(data);
        free(copy);
    }
    peer_stop(&p);
    return finish();
}
