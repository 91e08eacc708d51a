// hazard 11: fault signals that are sent: blocked, pending, waited for; nested faults and jumps between handlers
// expect: elided
#include "common.h"
#include <sys/epoll.h>
#include <ucontext.h>

int __ppoll_chk(struct pollfd *, nfds_t, const struct timespec *, const sigset_t *, size_t);

#define N (160 * KIB)
#define PAGE ((size_t)4096)
static u8 *data;
static u64 seed;
static volatile int ran, code, value, level;
static sigjmp_buf jumps[4];

static int touch(void) {
    int bad = 0;
    for (size_t i = 0; i < N; i += 3000) bad += ((volatile u8 *)data)[i] != pat(seed, i);
    return bad;
}
static void note(int sig, siginfo_t *si, void *uc) {
    (void)sig, (void)uc;
    ran++, code = si->si_code, value = si->si_value.sival_int;
}
static void install(int sig, void (*f)(int, siginfo_t *, void *), int flags) {
    struct sigaction sa = {.sa_sigaction = f, .sa_flags = SA_SIGINFO | flags};
    MUST(sigaction(sig, &sa, NULL) == 0);
}
static int is_blocked(int sig) {
    sigset_t now;
    MUST(sigprocmask(SIG_SETMASK, NULL, &now) == 0);
    return sigismember(&now, sig);
}
static int is_pending(int sig) {
    sigset_t now;
    MUST(sigpending(&now) == 0);
    return sigismember(&now, sig);
}

/* Every call that waits under a mask of its own. */
enum { PPOLL, PPOLL_CHK, PSELECT, EPOLL_PWAIT, EPOLL_PWAIT2, WAITS };
static int wait_under(int how, const sigset_t *mask) {
    static const struct timespec long_ = {5, 0};
    struct epoll_event e;
    struct timespec t = long_;
    int r, ep = epoll_create1(0);
    switch (how) {
    case PPOLL: r = ppoll(NULL, 0, &t, mask); break;
    case PPOLL_CHK: r = __ppoll_chk(NULL, 0, &t, mask, 0); break;
    case PSELECT: r = pselect(0, NULL, NULL, NULL, &t, mask); break;
    case EPOLL_PWAIT: r = epoll_pwait(ep, &e, 1, 5000, mask); break;
    default: r = epoll_pwait2(ep, &e, 1, &t, mask);
    }
    int saved = errno;
    close(ep);
    errno = saved;
    return r;
}

static volatile int blocked_inside, bad_inside;
static void on_alarm(int sig) {
    (void)sig;
    blocked_inside = is_blocked(SIGSEGV) + is_blocked(SIGBUS);
    bad_inside = touch();
}
/* A handler that comes in with the mask inherits it, and touches elided memory. */
static void handled_inside(peer *p) {
    struct sigaction sa = {.sa_handler = on_alarm};
    sigset_t all;
    sigfillset(&all), sigdelset(&all, SIGALRM);
    sigaction(SIGALRM, &sa, NULL);
    for (int how = 0; how < WAITS; how++) {
        struct itimerval soon = {.it_value = {0, 20000}};
        GET(p, seed, data, N);
        setitimer(ITIMER_REAL, &soon, NULL);
        blocked_inside = bad_inside = -1;
        SAY_ERR("waited: %ld errno %d", wait_under(how, &all));
        say("inside: blocked %d bad %d, after: %d", blocked_inside, bad_inside, is_blocked(SIGSEGV));
    }
    signal(SIGALRM, SIG_DFL);
}

static void waits(int sig) {
    sigset_t set, old, none;
    siginfo_t si;
    int got = 0;
    ran = 0;
    install(sig, note, 0);
    sigemptyset(&set), sigaddset(&set, sig), sigemptyset(&none);
    sigprocmask(SIG_BLOCK, &set, &old);
    sigqueue(getpid(), sig, (union sigval){.sival_int = 41});
    raise(sig); /* the second one is lost */
    say("pending %d ran %d bad %d", is_pending(sig), ran, touch());
    SAY_ERR("sigtimedwait %ld errno %d", sigtimedwait(&set, &si, &(struct timespec){0, 1000}));
    say("code %d value %d pending %d", si.si_code, si.si_value.sival_int, is_pending(sig));
    SAY_ERR("again %ld errno %d", sigtimedwait(&set, &si, &(struct timespec){0, 1000}));
    raise(sig);
    SAY_ERR("sigwait %ld errno %d", sigwait(&set, &got));
    say("got %d pending %d ran %d", got == sig, is_pending(sig), ran);
    raise(sig);
    SAY_ERR("sigwaitinfo %ld errno %d", sigwaitinfo(&set, &si));
    say("code %d", si.si_code);
    /* sent by a child while we wait */
    pid_t pid = fork();
    if (pid == 0) {
        say("child: pending %d blocked %d", is_pending(sig), is_blocked(sig));
        usleep(20000);
        sigqueue(getppid(), sig, (union sigval){.sival_int = 43});
        _exit(0);
    }
    SAY_ERR("sigwaitinfo %ld errno %d", sigwaitinfo(&set, &si));
    say("from the child %d value %d", si.si_pid == pid, si.si_value.sival_int);
    MUST(waitpid(pid, NULL, 0) == pid);
    raise(sig);
    SAY_ERR("sigsuspend %ld errno %d", sigsuspend(&none));
    say("ran %d code %d blocked %d", ran, code, is_blocked(sig));
    for (int how = 0; how < WAITS; how++) {
        raise(sig); /* held back, until the call's mask lets it in */
        SAY_ERR("waited: %ld errno %d", wait_under(how, &none));
        say("ran %d pending %d blocked %d", ran, is_pending(sig), is_blocked(sig));
    }
    raise(sig);
    signal(sig, SIG_IGN);
    say("ignored: pending %d", is_pending(sig));
    install(sig, note, 0);
    raise(sig);
    if (sigsetjmp(jumps[0], 1) == 0) {
        sigprocmask(SIG_SETMASK, &old, NULL); /* comes in here */
        say("ran %d blocked %d", ran, is_blocked(sig));
        siglongjmp(jumps[0], 1);
    }
    say("back: blocked %d", is_blocked(sig));
    sigprocmask(SIG_SETMASK, &old, NULL);
    if (sigsetjmp(jumps[0], 1) == 0) {
        sigprocmask(SIG_BLOCK, &set, NULL);
        raise(sig);
        siglongjmp(jumps[0], 1); /* unblocks */
    }
    say("after the jump: ran %d blocked %d pending %d bad %d", ran, is_blocked(sig), is_pending(sig), touch());
    signal(sig, SIG_DFL);
}

/* Each level faults in its handler; the way back is by return or by jump. */
static void nests(int sig, siginfo_t *si, void *uc) {
    (void)si, (void)uc;
    u8 local[3000];
    int mine = level;
    volatile int bad = 0;
    fill(local, sizeof local, mine, 0);
    say("level %d: blocked %d, bad %d", mine, is_blocked(sig), touch());
    if (level < 3) {
        level++;
        if (sigsetjmp(jumps[level], mine & 1) == 0) *(volatile int *)(uintptr_t)(16 * level) = 1;
        level = mine;
    }
    GET((peer *)jumps[0], seed, data, N); /* elided again: the touch faults once more */
    for (size_t i = 0; i < sizeof local; i++) bad += local[i] != pat(mine, i);
    say("level %d again: bad %d and %d", mine, bad, touch());
    siglongjmp(jumps[level], 1);
}

static void async_on_stack(int sig) {
    (void)sig;
    u8 here;
    stack_t now;
    sigaltstack(NULL, &now);
    stack_t none = {.ss_flags = SS_DISABLE};
    SAY_ERR("inside: change %ld errno %d", sigaltstack(&none, NULL));
    say("on it %d: flags %d bad %d", &here >= (u8 *)now.ss_sp && &here < (u8 *)now.ss_sp + now.ss_size, now.ss_flags,
        touch());
    if (level++ < 2) raise(SIGUSR1);
    level--;
}

static void stacks(peer *p, int r) {
    u8 *own = map_anon(64 * KIB);
    stack_t st = {.ss_sp = own, .ss_size = 64 * KIB}, off = {.ss_flags = SS_DISABLE}, old;
    if (r & 1) MUST(sigaltstack(&st, NULL) == 0);
    install(SIGSEGV, nests, (r & 1 ? SA_ONSTACK : 0) | SA_NODEFER);
    *(peer *)jumps[0] = *p;
    for (int i = 0; i < 12; i++) { /* leaving handlers by a jump costs nothing for good */
        level = 1;
        if (sigsetjmp(jumps[1], 1) == 0) *(volatile int *)8 = 1;
    }
    say("nested faults over, blocked %d", is_blocked(SIGSEGV));
    if (r & 1) {
        struct sigaction sa = {.sa_handler = async_on_stack, .sa_flags = SA_ONSTACK | SA_NODEFER};
        sigaction(SIGUSR1, &sa, NULL);
        level = 0;
        GET(p, seed, data, N);
        raise(SIGUSR1);
        MUST(sigaltstack(NULL, &old) == 0);
        say("outside: flags %d same %d", old.ss_flags, old.ss_sp == own);
        MUST(sigaltstack(&off, &old) == 0);
        MUST(sigaltstack(NULL, &old) == 0);
        say("off: flags %d size %zu", old.ss_flags, old.ss_size);
    }
    signal(SIGSEGV, SIG_DFL);
    munmap(own, 64 * KIB);
}

static void blocked_edits(int sig, siginfo_t *si, void *uc) {
    (void)sig, (void)si;
    ucontext_t *u = uc;
    say("interrupted mask: %d", sigismember(&u->uc_sigmask, SIGBUS));
    sigaddset(&u->uc_sigmask, SIGSEGV); /* what returns to the thread */
    sigdelset(&u->uc_sigmask, SIGBUS);
}
static void mask_in_context(void) {
    sigset_t set, old;
    sigemptyset(&set), sigaddset(&set, SIGBUS);
    sigprocmask(SIG_BLOCK, &set, &old);
    install(SIGUSR2, blocked_edits, 0);
    raise(SIGUSR2);
    say("after: segv %d bus %d, bad %d", is_blocked(SIGSEGV), is_blocked(SIGBUS), touch());
    sigprocmask(SIG_SETMASK, &old, NULL);
}

static ucontext_t main_context, other_context;
static void other(void) {
    say("in the other context: blocked %d, bad %d", is_blocked(SIGSEGV), touch());
    swapcontext(&other_context, &main_context);
    say("there again: blocked %d", is_blocked(SIGSEGV));
    setcontext(&main_context);
}
static void contexts(peer *p) {
    static u8 stack[64 * 1024];
    volatile int back = 0;
    getcontext(&other_context);
    other_context.uc_stack.ss_sp = stack, other_context.uc_stack.ss_size = sizeof stack;
    sigfillset(&other_context.uc_sigmask);
    makecontext(&other_context, other, 0);
    GET(p, seed, data, N);
    swapcontext(&main_context, &other_context);
    say("in the main context: blocked %d", is_blocked(SIGSEGV));
    swapcontext(&main_context, &other_context);
    say("the other one is over: blocked %d, bad %d", is_blocked(SIGSEGV), touch());
    sigset_t set, old;
    sigemptyset(&set), sigaddset(&set, SIGBUS);
    sigprocmask(SIG_BLOCK, &set, &old);
    getcontext(&main_context);
    say("context: blocked %d", is_blocked(SIGBUS));
    sigprocmask(SIG_SETMASK, &old, NULL);
    if (!back++) setcontext(&main_context);
    say("at last: blocked %d", is_blocked(SIGBUS));
}

static void dies_in_sa_mask(int sig) {
    (void)sig;
    *(volatile int *)8 = 1; /* its mask blocks SIGSEGV */
}
static void dies_masked(void *arg) {
    (void)arg;
    struct sigaction sa = {.sa_handler = dies_in_sa_mask};
    install(SIGSEGV, note, 0);
    sigemptyset(&sa.sa_mask), sigaddset(&sa.sa_mask, SIGSEGV);
    sigaction(SIGUSR1, &sa, NULL);
    raise(SIGUSR1);
}
static void dies_without_mask(void *arg) {
    (void)arg; /* a jump that leaves the mask alone leaves the signal blocked */
    install(SIGSEGV, nests, 0);
    level = 3;
    if (sigsetjmp(jumps[3], 0) == 0) *(volatile int *)8 = 1;
    say("jumped out: blocked %d", is_blocked(SIGSEGV));
    *(volatile int *)8 = 1;
}
static void dies_with_core(void *arg) {
    (void)arg;
    struct rlimit core = {1, 1}; /* a dump of nothing, where the limit allows one */
    setrlimit(RLIMIT_CORE, &core);
    *(volatile int *)8 = 1;
}

int main(int argc, char **argv) {
    if (argc > 1) { /* exec'd: masks and ignored signals are inherited */
        struct sigaction sa;
        sigaction(SIGSEGV, NULL, &sa);
        say("exec'd: blocked %d %d ignored %d", is_blocked(SIGSEGV), is_blocked(SIGBUS), sa.sa_handler == SIG_IGN);
        return 0;
    }
    peer p = peer_start(P_TCP);
    for (int r = 0; r < 4; r++) {
        say("round %d", r);
        data = malloc(N), seed = 30 + r;
#define FRESH() GET(&p, seed, data, N)
        FRESH();
        waits(r & 1 ? SIGBUS : SIGSEGV);
        handled_inside(&p);
        FRESH();
        stacks(&p, r);
        FRESH();
        mask_in_context();
        FRESH();
        contexts(&p);
        FRESH();
        in_child("masked", dies_masked, NULL);
        *(peer *)jumps[0] = p;
        in_child("no mask saved", dies_without_mask, NULL);
        in_child("core", dies_with_core, NULL);
        pid_t pid = fork();
        if (pid == 0) {
            sigset_t set;
            sigemptyset(&set), sigaddset(&set, SIGBUS);
            signal(SIGSEGV, SIG_IGN);
            sigprocmask(SIG_SETMASK, &set, NULL);
            char *args[] = {argv[0], "again", NULL};
            execv("/nonexistent", args);
            say("bad %d", touch());
            execv("/proc/self/exe", args);
            _exit(127);
        }
        int st;
        MUST(waitpid(pid, &st, 0) == pid);
        say("exec'd child %x", st);
        SENT(&p, "data", data, N, pat_hash(seed, 0, N));
        free(data);
    }
    peer_stop(&p);
    return finish();
}
