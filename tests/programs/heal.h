/* Shared by the programs about healing: messages that came in two parts, and copies of them that heal. */
#ifndef ZIO_TEST_HEAL_H
#define ZIO_TEST_HEAL_H
#include "common.h"

#include <stdatomic.h>

#define PAGE ((size_t)4096)
#define N (64 * KIB)
#define CUT (24 * KIB + 1000)
/* What is copied of a source: pages around the one in which two receives met. */
#define SLICE (5 * PAGE)
/* A call site's copies with touched pages in their source until the library heals, if it does. */
#define TURN 32

/* Many call sites of memcpy, 32 bytes each: where other threads are in the way a site is left alone for longer and
 * longer, so every try gets a site of its own. There are not enough for all: what must heal at once comes first. */
#define SITES 4096
__asm__(".text\n"
        ".balign 32\n"
        "call_sites:\n"
        ".rept 4096\n"
        "sub $8, %rsp\n"
        "call memcpy@PLT\n"
        "add $8, %rsp\n"
        "ret\n"
        ".balign 32\n"
        ".endr\n");
extern const u8 call_sites[];
typedef void *copier(void *, const void *, size_t);

FN copier *fresh_site(void) {
    static unsigned next;
    return (copier *)(uintptr_t)(call_sites + 32 * (next++ % SITES));
}

/* Copies so often from a site of its own that the last copy heals. */
FN void burst(void *d, const void *s, size_t n) {
    copier *copy = fresh_site();
    for (int i = 0; i < TURN; i++) copy(d, s, n);
}

/* Not verify(): what is checked thousands of times says nothing unless it is wrong. */
FN void check_bytes(const char *name, const volatile u8 *got, const volatile u8 *model, size_t n) {
    for (size_t i = 0; i < n; i++) {
        u8 is = got[i], should = model[i];
        if (is == should) continue;
        failures++;
        say("FAIL %s: byte %zu of %zu: expected %02x got %02x, then %02x", name, i, n, should, is, got[i]);
        return;
    }
}

static u8 model[256 * KIB];

FN u8 *page_at(u8 *p) { return (u8 *)((uintptr_t)p & ~(uintptr_t)(PAGE - 1)); }

/* A message in two parts that meet in the middle of a page. */
FN void arrive(peer *p, u8 *a, u8 *truth, size_t n, size_t cut, u64 seed) {
    fill(truth, n, seed, 0);
    peer_send(p, seed, n);
    if (n <= 100 * KIB) wait_unread(p->in, n); /* so that each part comes in one piece */
    MUST(take(p->in, a, cut) == (ssize_t)cut);
    MUST(take(p->in, a + cut, n - cut) == (ssize_t)(n - cut));
}

/* Several sources, a page of each of which is resident, and a destination, all so far apart that touches of one after
 * the other do not look like a reader that goes through everything. In new memory each time: nothing is known of it. */
enum { AREAS = 4, SPACING = 17 << 16 };
static struct area {
    u8 *src, *page, *slice; /* the message, the page in which its parts met, and what is copied: pages around it */
    u8 *truth, *page_truth, *slice_truth;
} areas[AREAS];
static u8 *dst; /* the same page offset as `slice`; its middle page gets what is in `page` */

FN void areas_new(peer *p, u64 seed) {
    u8 *base = map_anon((AREAS + 1) * (size_t)SPACING);
    for (int i = 0; i < AREAS; i++) {
        struct area *a = &areas[i];
        a->src = base + i * (size_t)SPACING, a->truth = model + i * N;
        a->page = a->src + CUT - CUT % PAGE, a->page_truth = a->truth + CUT - CUT % PAGE;
        a->slice = a->page - SLICE / 2 / PAGE * PAGE, a->slice_truth = a->truth + (a->slice - a->src);
        arrive(p, a->src, a->truth, N, CUT, seed + i);
    }
    dst = base + AREAS * (size_t)SPACING;
}

FN void areas_check(const char *name) {
    for (int i = 0; i < AREAS; i++) {
        burst(dst, areas[i].src, N);
        check_bytes(name, areas[i].src, areas[i].truth, N);
        check_bytes(name, dst, areas[i].truth, N);
    }
}

FN void areas_end(const char *name) {
    areas_check(name);
    MUST(munmap(areas[0].src, (AREAS + 1) * (size_t)SPACING) == 0);
}

/* Makes a page resident without changing it. */
FN void touch(u8 *at) { *(volatile u8 *)at = *(volatile u8 *)at; }

FN void nap(long us) { nanosleep(&(struct timespec){us / 1000000, us % 1000000 * 1000}, NULL); }

FN u64 rnd(u64 *state) { return pat_word(7, ++*state); }

/* The sleeper that real programs have: it is never woken until the end. */
static pthread_mutex_t quiet = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t never = PTHREAD_COND_INITIALIZER;
static int over;

FN void *sleeper(void *arg) {
    pthread_mutex_lock(&quiet);
    while (!over) pthread_cond_wait(&never, &quiet);
    pthread_mutex_unlock(&quiet);
    return arg;
}

FN pthread_t sleeper_start(void) {
    pthread_t t;
    over = 0;
    MUST(pthread_create(&t, NULL, sleeper, NULL) == 0);
    return t;
}

FN void sleeper_end(pthread_t t) {
    pthread_mutex_lock(&quiet);
    over = 1;
    pthread_cond_broadcast(&never);
    pthread_mutex_unlock(&quiet);
    pthread_join(t, NULL);
}

FN void await(atomic_int *flag) {
    for (int i = 0; !atomic_load(flag) && i < 10000; i++) nap(200);
    MUST(atomic_load(flag));
}

struct scenario {
    const char *name;
    void (*run)(peer *);
};

/* Runs all scenarios, or those that the arguments name. */
FN int run_all(const struct scenario *all, size_t n, int argc, char **argv) {
    peer p = peer_start(P_UNIX);
    prctl(PR_SET_TIMERSLACK, 1); /* naps of microseconds; threads inherit it */
    for (size_t i = 0; i < n; i++) {
        int wanted = argc < 2;
        for (int a = 1; a < argc; a++) wanted |= strcmp(argv[a], all[i].name) == 0;
        if (!wanted) continue;
        say("%s", all[i].name);
        all[i].run(&p);
    }
    peer_stop(&p);
    return finish();
}
#endif
