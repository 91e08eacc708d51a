// hazard 24: healing: touched pages between elided ones are moved to cores, while other threads store and load
// expect: elided healed
#include "heal.h"

/* One thread: a message in two parts with touched pages, copied again and again. */
static void alone(peer *p) {
    enum { BIG = 256 * 1024, MEET = 130 * 1024 + 77 };
    u8 *to = malloc(BIG + 99);
    u64 state = 1;
    for (int r = 0; r < 4; r++) {
        u8 *src = malloc(BIG + 64) + 8 * r;
        arrive(p, src, model, BIG, MEET, 100 + r);
        for (size_t at = 0; at < 3 * PAGE; at += PAGE) model[at] = src[at] = (u8)(r + at);
        model[MEET] = src[MEET] = 'T';
        for (int i = 0; i < 200; i++) {
            memcpy(to + 24, src, BIG);
            size_t at = rnd(&state) % (BIG - 64);
            check_bytes("copy", to + 24 + at, model + at, 64);
            check_bytes("copy's junction", to + 24 + MEET - 8, model + MEET - 8, 16);
            check_bytes("copy's start", to + 24, model, 16);
            if (i % 50 != 49) continue;
            /* the healed pages are the program's to write */
            model[MEET + i] = src[MEET + i] = (u8)i;
            model[5000 + i] = src[5000 + i] = (u8)~i;
        }
        burst(to, src, BIG);
        model[MEET - 1] = src[MEET - 1] = '!'; /* after the copy: not in it */
        check_bytes("stored later", to + MEET, model + MEET, 64);
        model[MEET - 2] = to[MEET - 2] = '?';
        check_bytes("source", src, model, MEET - 2);
        same("source's end", src + MEET - 1, model + MEET - 1, BIG - MEET + 1);
        burst(to, src, BIG);
        model[MEET - 2] = src[MEET - 2];
        SENT(p, "healed and sent", src, BIG, hash(model, BIG));
        same("copy", to, model, BIG);
        free(src - 8 * r);
    }
    free(to);
}

/* Threads that store ever larger values into words of the pages: none may be lost, none seen to go back. */
enum { WORDS = 16, STORERS = 2, WORDS_AT = 1024 };
static atomic_int stop_storing, bad_loads;
static atomic_uint stored[AREAS][WORDS]; /* what is certainly in each word */

static u64 *words(int area) { return (u64 *)(areas[area].page + WORDS_AT); }

/* A value that shows when it was seen half. */
static u64 whole(unsigned v) { return (u64)~v << 32 | v; }

static void *store_often(void *arg) {
    int id = (int)(intptr_t)arg, area = id;
    u64 state = 1000 + id;
    for (unsigned v = 1; !atomic_load(&stop_storing); v++) {
        nap(1 + rnd(&state) % 60);
        int w = (int)(rnd(&state) % (WORDS / STORERS)) * STORERS + id;
        area = (area + 1 + (int)(rnd(&state) % (AREAS - 1))) % AREAS; /* another one than before */
        /* Each word has one thread that stores to it. Not always: the first touch should be a store, too. */
        if (v % 3 == 0 && __atomic_load_n(words(area) + w, __ATOMIC_RELAXED) != whole(stored[area][w])) bad_loads++;
        __atomic_store_n(words(area) + w, whole(v), __ATOMIC_RELAXED);
        atomic_store_explicit(&stored[area][w], v, memory_order_release);
    }
    return NULL;
}

/* Copies, and compares what is seen through the copy with what was there before it. */
static int look(int area, unsigned *seen) {
    unsigned least[WORDS];
    for (int w = 0; w < WORDS; w++) {
        unsigned v = atomic_load_explicit(&stored[area][w], memory_order_acquire);
        least[w] = v > seen[w] ? v : seen[w];
    }
    fresh_site()(dst, areas[area].slice, SLICE);
    for (int w = 0; w < WORDS; w++) {
        u64 is = __atomic_load_n((u64 *)(dst + SLICE / 2 / PAGE * PAGE + WORDS_AT) + w, __ATOMIC_RELAXED);
        unsigned v = (unsigned)is;
        if (is != whole(v)) continue; /* a copy may cut a value in two while it changes */
        if (v < least[w]) {
            failures++;
            say("FAIL store lost: word %d: seen %u after %u", w, v, least[w]);
            return 0;
        }
        seen[w] = v;
    }
    return 1;
}

static void storers(peer *p) {
    int good = 1;
    for (int r = 0; r < 16; r++) {
        pthread_t t[STORERS];
        unsigned seen[AREAS][WORDS] = {0};
        areas_new(p, 400 + AREAS * r);
        atomic_store(&stop_storing, 0);
        for (int k = 0; k < AREAS; k++)
            for (int w = 0; w < WORDS; w++) words(k)[w] = whole(0), atomic_store(&stored[k][w], 0);
        for (intptr_t i = 0; i < STORERS; i++) MUST(pthread_create(&t[i], NULL, store_often, (void *)i) == 0);
        for (int i = 0; i < 400 && good; i++) {
            burst(dst, areas[i % AREAS].slice, SLICE);
            good = look(i % AREAS, seen[i % AREAS]);
        }
        atomic_store(&stop_storing, 1);
        for (int i = 0; i < STORERS; i++) pthread_join(t[i], NULL);
        for (int k = 0; k < AREAS; k++)
            for (int w = 0; w < WORDS; w++) {
                u64 v = whole(stored[k][w]);
                CHECK(words(k)[w] == v);
                for (int i = 0; i < 8; i++) areas[k].page_truth[WORDS_AT + 8 * w + i] = (u8)(v >> 8 * i);
            }
        areas_end("storers");
    }
    say("storers: none lost %d, bad loads %d", good, bad_loads);
    failures += bad_loads;
}

/* The pages are not there when the copy comes that heals: they were discarded, and read as zeros. The store is the
 * first to bring in one of them. */
enum { GONE = AREAS * PAGE };
static atomic_uint asked, answered;

static void *store_when_asked(void *arg) {
    u64 state = 5;
    for (unsigned done = 0; !atomic_load(&stop_storing);) {
        unsigned now = atomic_load(&asked);
        if (now == done) {
            nap(2);
            continue;
        }
        nap(20 + rnd(&state) % 60);
        __atomic_store_n(words(now % AREAS), whole(now), __ATOMIC_RELAXED);
        atomic_store(&answered, done = now);
    }
    return arg;
}

static void missing(peer *p) {
    int lost = 0;
    for (int r = 0; r < 12; r++) {
        pthread_t t;
        areas_new(p, 700 + AREAS * r);
        for (size_t k = 0; k < GONE; k += PAGE)
            for (int i = 0; i < AREAS; i++) touch(areas[i].page + k);
        atomic_store(&asked, 0);
        atomic_store(&answered, 0);
        atomic_store(&stop_storing, 0);
        MUST(pthread_create(&t, NULL, store_when_asked, NULL) == 0);
        for (unsigned i = 1; i <= 28; i++) {
            struct area *a = &areas[i % AREAS];
            copier *copy = fresh_site();
            /* One page of each area at a time: see `areas`. By its next turn an area has all again. */
            for (unsigned k = 1; k < AREAS; k++) touch(areas[(i + AREAS - k) % AREAS].page + k * PAGE);
            for (int k = 1; k < TURN; k++) copy(dst, a->src, N);
            MUST(madvise(a->page, GONE, MADV_DONTNEED) == 0);
            atomic_store(&asked, i);
            nap(i % 2 ? 10 : 20); /* now that thread sleeps, too */
            copy(dst, a->src, N);
            while (atomic_load(&answered) != i) nap(10);
            for (size_t k = 0; k < GONE / 8; k++) {
                u64 should = k == WORDS_AT / 8 ? whole(i) : 0;
                if (k < PAGE / 8) lost += ((volatile u64 *)a->page)[k] != should;
                for (int b = 0; b < 8; b++) a->page_truth[8 * k + b] = (u8)(should >> 8 * b);
            }
        }
        atomic_store(&stop_storing, 1);
        pthread_join(t, NULL);
        areas_end("missing");
    }
    say("missing: lost %d", lost);
    failures += lost;
}

/* After healing: a forked child and its parent do not see each other's stores, and the child heals for itself. */
static void child_stores(void) {
    for (int i = 0; i < 40; i++) {
        struct area *a = &areas[i % AREAS];
        a->page_truth[i] = a->page[i] = (u8)i;
        burst(dst, a->slice, SLICE);
        check_bytes("child's copy", dst, a->slice_truth, SLICE);
    }
    areas_check("child");
}

static void forked(peer *p) {
    for (int r = 0; r < 3; r++) {
        int go[2];
        char c;
        pthread_t t;
        MUST(pipe(go) == 0);
        areas_new(p, 900 + AREAS * r);
        if (r) t = sleeper_start(), nap(1000);
        for (int k = 0; k < AREAS; k++) burst(dst, areas[k].slice, SLICE);
        pid_t pid = fork();
        MUST(pid >= 0);
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            failures = 0;
            if (r == 1) child_stores();
            MUST(read(go[0], &c, 1) == 1); /* the parent has stored */
            if (r != 1) child_stores();
            areas_check("child after its parent");
            _exit(failures ? 1 : 0);
        }
        for (int i = 0; i < 100; i++) {
            struct area *a = &areas[i % AREAS];
            a->page_truth[1000 + i] = a->page[1000 + i] = (u8)(i ^ r);
            burst(dst, a->slice, SLICE);
        }
        MUST(write(go[1], "x", 1) == 1);
        int status = 0;
        MUST(waitpid(pid, &status, 0) == pid);
        say("child %d", status);
        CHECK(status == 0);
        if (r) sleeper_end(t);
        close(go[0]), close(go[1]);
        areas_end("parent");
    }
}

/* After healing: what changes a mapping. */
static void changes(peer *p) {
    for (int r = 0; r < 6; r++) {
        areas_new(p, 1000 + AREAS * r);
        for (int k = 0; k < AREAS; k++) {
            struct area *a = &areas[k];
            u8 *page = a->page, *t = a->page_truth;
            size_t rest = a->src + N - page;
            burst(dst, a->src, N);
            switch (r) {
            case 0:
                MUST(mprotect(page, PAGE, PROT_READ) == 0);
                burst(dst, a->src, N);
                check_bytes("read-only", a->src, a->truth, N);
                MUST(mprotect(page, PAGE, PROT_READ | PROT_WRITE) == 0);
                break;
            case 1:
                MUST(munmap(page, rest) == 0);
                check_bytes("lower half", a->src, a->truth, N - rest);
                MUST(mmap(page, rest, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == page);
                for (size_t i = 0; i < rest; i++) t[i] = 0;
                break;
            case 2:
                MUST(madvise(page, PAGE, MADV_DONTNEED) == 0);
                for (size_t i = 0; i < PAGE; i++) t[i] = 0;
                break;
            case 3: {
                u8 *to = mremap(a->src, N, 2 * N, MREMAP_MAYMOVE);
                MUST(to != MAP_FAILED);
                check_bytes("moved", to, a->truth, N);
                MUST(mremap(to, 2 * N, N, MREMAP_MAYMOVE | MREMAP_FIXED, a->src) == a->src);
                break;
            }
            case 4: MUST(mprotect(a->src, N, PROT_NONE) == 0 && mprotect(a->src, N, PROT_READ | PROT_WRITE) == 0); break;
            default:
                memset(page - 100, 0, 5000);
                for (size_t i = 0; i < 5000; i++) t[i - 100] = 0;
            }
            check_bytes("changed", a->src, a->truth, N);
            t[5] = page[5] = 'c';
        }
        areas_end("changed");
    }
}

/* After healing: the block is freed, or becomes another size. */
static void blocks(peer *p) {
    for (int r = 0; r < 8; r++) {
        u8 *src = malloc(N + 33), *to = malloc(N);
        arrive(p, src, model, N, CUT, 1100 + r);
        touch(page_at(src + CUT));
        burst(to, src, N);
        size_t n = r % 2 ? 3 * N : CUT + 3000, kept = n < N ? n : N;
        src = realloc(src, n);
        same("realloc", src, model, kept);
        burst(to, src, kept);
        free(src);
        src = calloc(1, N + 33);
        for (size_t i = 0; i < N + 33; i++) CHECK(src[i] == 0);
        same("block's copy", to, model, kept);
        free(src);
        free(to);
    }
}

int main(int argc, char **argv) {
    static const struct scenario all[] = {{"alone", alone},   {"changes", changes}, {"blocks", blocks},
                                          {"forked", forked}, {"missing", missing}, {"storers", storers}};
    return run_all(all, ARRAY(all), argc, argv);
}
