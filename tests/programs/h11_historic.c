// hazard 11: the signal calls of System V and BSD, which libc makes from its own sigaction and sigprocmask
// cflags: -Wno-deprecated-declarations
// expect: elided
#include "common.h"

#define N (160 * KIB)
static u8 *data;
static peer p;
static volatile int ran, inside;

/* Their declarations depend on the standard asked for. */
int bsd_pause(int) __asm__("sigpause");
int xpg_pause(int) __asm__("__xpg_sigpause");
int __sigpause(int, int);
void (*bsd_signal(int, void (*)(int)))(int);
void (*sysv_signal(int, void (*)(int)))(int);
void (*__sysv_signal(int, void (*)(int)))(int);
struct vec {
    void (*handler)(int);
    int mask, flags;
};
int old_sigvec(int, const struct vec *, struct vec *);
__asm__(".symver old_sigvec,sigvec@GLIBC_2.2.5");

static int touch(void) {
    int bad = 0;
    for (size_t i = 0; i < N; i += 3000) bad += ((volatile u8 *)data)[i] != pat(60, i);
    return bad;
}
static int is_blocked(int sig) {
    sigset_t now;
    MUST(sigprocmask(SIG_SETMASK, NULL, &now) == 0);
    return sigismember(&now, sig);
}
static void handler(int sig) {
    ran++;
    inside = is_blocked(sig) * 10 + touch();
}
static const char *named(void (*h)(int)) {
    return h == SIG_ERR ? "error" : h == SIG_DFL ? "default" : h == SIG_IGN ? "ignore" : h == SIG_HOLD ? "hold"
        : h == handler ? "handler" : "another";
}
static int pending(int sig) {
    sigset_t now;
    MUST(sigpending(&now) == 0);
    return sigismember(&now, sig);
}
/* Everything that the program can see, then a touch of elided memory, which nobody may see. */
static void state(const char *after, int sig) {
    struct sigaction sa;
    int mask = 0, ran_before = ran;
    MUST(sigaction(sig, NULL, &sa) == 0);
    for (int s = 1; s < 65; s++) mask += sigismember(&sa.sa_mask, s) == 1 ? s : 0;
    say("%s: %s flags %x mask %d, blocked %d pending %d ran %d inside %d", after, named(sa.sa_handler),
        (unsigned)sa.sa_flags & ~0x04000000u, mask, is_blocked(sig), pending(sig), ran, inside);
    GET(&p, 60, data, N);
    int bad = touch();
    if (bad || ran != ran_before) say("FAIL touched: bad %d, handled %d", bad, ran - ran_before), failures++;
}

static void system_v(int sig) {
#define SET(h) say("sigset gives %s", named(sigset(sig, h))), state("sigset " #h, sig)
    SET(handler);
    raise(sig), state("raise", sig);
    SET(SIG_HOLD);
    raise(sig), state("raise", sig);
    SET(SIG_HOLD);
    SET(handler); /* comes in */
    SET(SIG_IGN);
    raise(sig), state("raise", sig);
    SET(SIG_ERR);
    SET(handler);
    SAY_ERR("sighold %ld errno %d", sighold(sig));
    raise(sig), state("sighold, raise", sig);
    SAY_ERR("sigrelse %ld errno %d", sigrelse(sig));
    state("sigrelse", sig);
    SAY_ERR("sigignore %ld errno %d", sigignore(sig));
    raise(sig), state("sigignore, raise", sig);
    SET(handler);
    sighold(sig), raise(sig);
    SAY_ERR("xpg sigpause %ld errno %d", xpg_pause(sig));
    state("xpg sigpause", sig);
    raise(sig);
    SAY_ERR("__sigpause %ld errno %d", __sigpause(sig, 1));
    state("__sigpause", sig);
    SET(SIG_DFL);
    static const int bad[] = {0, -1, 65, 32, 33, SIGKILL};
    for (size_t i = 0; i < ARRAY(bad); i++) {
        int s = bad[i];
        SAY_ERR("sighold %ld errno %d", sighold(s));
        SAY_ERR("sigrelse %ld errno %d", sigrelse(s));
        SAY_ERR("sigignore %ld errno %d", sigignore(s));
        SAY_ERR("sigset %ld errno %d", (long)sigset(s, SIG_DFL));
        SAY_ERR("sigset %ld errno %d", (long)sigset(s, SIG_HOLD));
        SAY_ERR("signal %ld errno %d", (long)signal(s, SIG_DFL));
        SAY_ERR("siginterrupt %ld errno %d", siginterrupt(s, 1));
        if (s != SIGKILL) SAY_ERR("xpg sigpause %ld errno %d", xpg_pause(s));
        state("bad", sig);
    }
}

static void bsd(int sig) {
    int bit = 1 << (sig - 1);
    say("signal gives %s", named(signal(sig, handler)));
    say("sigblock %x", sigblock(bit));
    raise(sig), state("sigblock, raise", sig);
    say("siggetmask %x", siggetmask());
    say("sigsetmask %x", sigsetmask(0));
    state("sigsetmask", sig);
    say("sigsetmask %x", sigsetmask(-1));
    raise(sig), state("all blocked, raise", sig);
    SAY_ERR("sigpause %ld errno %d", bsd_pause(~bit));
    state("sigpause", sig);
    raise(sig);
    SAY_ERR("__sigpause %ld errno %d", __sigpause(~bit, 0));
    say("sigsetmask %x", sigsetmask(0));
    SAY_ERR("siginterrupt %ld errno %d", siginterrupt(sig, 1));
    state("siginterrupt", sig);
    say("ssignal gives %s", named(ssignal(sig, handler)));
    state("ssignal", sig);
    SAY_ERR("siginterrupt %ld errno %d", siginterrupt(sig, 0));
    state("siginterrupt", sig);
    say("bsd_signal gives %s", named(bsd_signal(sig, handler)));
    state("bsd_signal", sig);
    say("sysv_signal gives %s", named(sysv_signal(sig, handler)));
    state("sysv_signal", sig);
    raise(sig), state("raise", sig);
    say("__sysv_signal gives %s", named(__sysv_signal(sig, SIG_IGN)));
    raise(sig), state("raise", sig);
    for (int flags = 0; flags < 8; flags++) {
        struct vec v = {handler, 0x0f0f, flags}, old;
        SAY_ERR("sigvec %ld errno %d", old_sigvec(sig, &v, &old));
        say("old: %s mask %x flags %x", named(old.handler), old.mask, old.flags);
        state("sigvec", sig);
        raise(sig), state("raise", sig);
    }
    SAY_ERR("sigvec %ld errno %d", old_sigvec(65, NULL, NULL));
    say("signal gives %s", named(signal(sig, SIG_DFL)));
}

/* sigstack: zio's own stack must stay the kernel's. */
static void stack(int sig) {
    u8 *m = map_anon(64 * KIB);
    struct sigstack s = {m + 64 * KIB, 0}, old;
    stack_t now, off = {.ss_flags = SS_DISABLE};
    MUST(sigaltstack(NULL, &now) == 0);
    SAY_ERR("sigstack %ld errno %d", sigstack(&s, &old));
    say("old %d %d", old.ss_sp == now.ss_sp, old.ss_onstack);
    signal(sig, handler);
    raise(sig), state("on sigstack", sig);
    MUST(sigaltstack(NULL, &now) == 0);
    say("stack %d size %d", now.ss_sp == s.ss_sp, now.ss_size == (size_t)s.ss_sp);
    s.ss_sp = (void *)100;
    SAY_ERR("sigstack %ld errno %d", sigstack(&s, NULL) == 0);
    sigaltstack(&off, NULL);
    signal(sig, SIG_DFL);
    munmap(m, 64 * KIB);
}

int main(void) {
    p = peer_start(P_TCP);
    data = malloc(N);
    GET(&p, 60, data, N);
    static const int sigs[] = {SIGUSR1, SIGSEGV, SIGBUS};
    for (size_t i = 0; i < ARRAY(sigs); i++) {
        say("signal %d", sigs[i]);
        ran = 0;
        system_v(sigs[i]);
        bsd(sigs[i]);
        stack(sigs[i]);
    }
    GET(&p, 60, data, N);
    SENT(&p, "data", data, N, pat_hash(60, 0, N));
    peer_stop(&p);
    return finish();
}
