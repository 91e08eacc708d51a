// hazard 11: masks, actions and stacks of signals by syscall(), past libc's functions for them
// expect: elided
#include "common.h"
#include <sys/epoll.h>
#include <sys/syscall.h>

#define N (160 * KIB)
static u8 *data;
static peer p;
static volatile int ran, inside;

struct action {
    void (*handler)(int);
    unsigned long flags;
    void (*restorer)(void);
    u64 mask;
};
static void (*restorer)(void);
static u64 bit(int sig) { return 1ull << (sig - 1); }

static int touch(void) {
    int bad = 0;
    for (size_t i = 0; i < N; i += 3000) bad += ((volatile u8 *)data)[i] != pat(90, i);
    return bad;
}
static u64 blocked(void) {
    u64 now = 0;
    MUST(syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &now, 8) == 0);
    return now;
}
static void handler(int sig) {
    (void)sig;
    ran++;
    u64 now = blocked();
    inside = ((now & bit(SIGSEGV)) != 0) * 1000 + ((now & bit(SIGBUS)) != 0) * 100 + touch();
}
static void state(const char *after, int sig) {
    struct action a;
    int ran_before = ran;
    MUST(syscall(SYS_rt_sigaction, sig, NULL, &a, 8) == 0);
    say("%s: %s flags %lx mask %lx blocked %lx ran %d inside %d", after,
        a.handler == SIG_DFL ? "default" : a.handler == SIG_IGN ? "ignore" : a.handler == handler ? "handler" : "other",
        a.flags & ~0x04000000ul, (unsigned long)a.mask, (unsigned long)blocked(), ran, inside);
    GET(&p, 90, data, N);
    int bad = touch();
    if (bad || ran != ran_before) say("FAIL touched: bad %d, handled %d", bad, ran - ran_before), failures++;
}
static void set(int sig, void (*h)(int), unsigned long flags, u64 mask) {
    struct action a = {h, flags | 0x04000000, restorer, mask}, old = {0};
    SAY_ERR("rt_sigaction %ld errno %d", syscall(SYS_rt_sigaction, sig, &a, &old, 8));
    say("old: own %d flags %lx mask %lx", old.handler == handler, old.flags & ~0x04000000ul, (unsigned long)old.mask);
}

static void one(int sig) {
    u64 mine = bit(sig), old = 0, all = ~0ull, none = 0;
    set(sig, handler, 0, bit(SIGUSR2) | bit(SIGSEGV));
    raise(sig), state("raise", sig);
    SAY_ERR("block %ld errno %d", syscall(SYS_rt_sigprocmask, SIG_BLOCK, &mine, &old, 8));
    say("old %lx", (unsigned long)old);
    raise(sig), state("blocked, raise", sig);
    SAY_ERR("rt_sigsuspend %ld errno %d", syscall(SYS_rt_sigsuspend, &none, 8));
    state("rt_sigsuspend", sig);
    struct timespec t = {5, 0};
    struct {
        const u64 *set;
        size_t len;
    } pair = {&none, 8};
    struct epoll_event e;
    int ep = epoll_create1(0);
    raise(sig);
    SAY_ERR("ppoll %ld errno %d", syscall(SYS_ppoll, NULL, 0, &t, &none, 8));
    raise(sig);
    t = (struct timespec){5, 0};
    SAY_ERR("pselect6 %ld errno %d", syscall(SYS_pselect6, 0, NULL, NULL, NULL, &t, &pair));
    raise(sig);
    SAY_ERR("epoll_pwait %ld errno %d", syscall(SYS_epoll_pwait, ep, &e, 1, 5000, &none, 8));
    state("waits", sig);
    SAY_ERR("all %ld errno %d", syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &old, 8));
    state("all blocked", sig);
    SAY_ERR("none %ld errno %d", syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, &old, 8));
    say("old %lx", (unsigned long)old);
    /* What some libraries ask to find out whether memory can be read. */
    SAY_ERR("bad how %ld errno %d", syscall(SYS_rt_sigprocmask, ~0, &mine, NULL, 8));
    SAY_ERR("bad set %ld errno %d", syscall(SYS_rt_sigprocmask, ~0, (void *)16, NULL, 8));
    SAY_ERR("bad set %ld errno %d", syscall(SYS_rt_sigprocmask, SIG_BLOCK, (void *)16, NULL, 8));
    SAY_ERR("bad length %ld errno %d", syscall(SYS_rt_sigprocmask, SIG_BLOCK, &mine, NULL, 4));
    SAY_ERR("bad action %ld errno %d", syscall(SYS_rt_sigaction, sig, (void *)16, NULL, 8));
    SAY_ERR("bad old %ld errno %d", syscall(SYS_rt_sigaction, sig, NULL, (void *)16, 8));
    SAY_ERR("bad length %ld errno %d", syscall(SYS_rt_sigaction, sig, NULL, NULL, 16));
    SAY_ERR("bad signal %ld errno %d", syscall(SYS_rt_sigaction, 65, NULL, NULL, 8));
    SAY_ERR("libc's %ld errno %d", syscall(SYS_rt_sigaction, 33, NULL, NULL, 8));
    stack_t now, mine_now = {.ss_sp = malloc(64 * KIB), .ss_size = 64 * KIB}, off = {.ss_flags = SS_DISABLE};
    SAY_ERR("sigaltstack %ld errno %d", syscall(SYS_sigaltstack, &mine_now, NULL));
    SAY_ERR("sigaltstack %ld errno %d", syscall(SYS_sigaltstack, NULL, &now));
    say("same %d flags %x", now.ss_sp == mine_now.ss_sp && now.ss_size == mine_now.ss_size, now.ss_flags);
    set(sig, handler, SA_ONSTACK | SA_RESETHAND, 0);
    raise(sig), state("on its stack", sig);
    SAY_ERR("sigaltstack %ld errno %d", syscall(SYS_sigaltstack, &off, NULL));
    set(sig, SIG_IGN, 0, 0);
    raise(sig), state("ignored", sig);
    set(sig, SIG_DFL, 0, 0);
    free(mine_now.ss_sp);
    close(ep);
}

int main(void) {
    struct action a;
    signal(SIGUSR1, handler); /* libc's restorer */
    MUST(syscall(SYS_rt_sigaction, SIGUSR1, NULL, &a, 8) == 0);
    restorer = a.restorer;
    p = peer_start(P_TCP);
    data = malloc(N);
    GET(&p, 90, data, N);
    one(SIGUSR1);
    one(SIGSEGV);
    one(SIGBUS);
    GET(&p, 90, data, N);
    SENT(&p, "data", data, N, pat_hash(90, 0, N));
    peer_stop(&p);
    return finish();
}
