// hazard 14: stdio on elided buffers: libc writes from, and reads into, the program's memory by itself
// expect: elided
#include "common.h"

#define N (300 * KIB)
static u8 model[4 * MIB];

static char *text_of(peer *p, u64 seed, size_t n, char *raw) {
    GET(p, seed, (u8 *)raw, n);
    return raw;
}

static void writing(peer *p, int r) {
    static const int modes[] = {_IOFBF, _IOLBF, _IONBF, _IOFBF};
    char name[20];
    snprintf(name, sizeof name, "written-%d", r);
    FILE *f = fopen(name, "w+");
    MUST(f);
    char *iobuf = malloc(100000);
    setvbuf(f, r == 3 ? iobuf : NULL, modes[r % 4], r == 3 ? 100000 : 4096);
    u8 *a = malloc(N + 50), *b = malloc(N + 50);
    GET(p, 10 + r, a + 1, N);
    memcpy(b + 30, a + 1, N);
    say("fwrite %zu", fwrite(b + 30, 1, N, f));
    say("fwrite %zu", fwrite(b + 31, 7, 5000, f));
    say("fputc %d", fputc('x', f));
    say("fwrite %zu", fwrite(a + 1, 100000, 3, f));
    MUST(fflush(f) == 0);
    say("write %zd", write(fileno(f), b + 500, 100001)); /* behind the flushed data */
    say("fwrite %zu", fwrite("after", 1, 5, f));
    say("fprintf %d", fprintf(f, "%d and %s", 12, "so on\n"));
    GET(p, 20 + r, b, N);
    say("fwrite %zu", fwrite(b + 3, N - 3, 1, f));
    fflush(f);
    say("ftell %ld", ftell(f));
    memset(b, 0, N); /* what is written already must not change */
    free(a);
    free(b);
    MUST(fclose(f) == 0);
    free(iobuf);
}

static void reading(peer *p, int r) {
    FILE *f = fopen("big", "w+");
    MUST(f);
    fill(model, 4 * MIB, 30 + r, 0);
    MUST(write(fileno(f), model, 4 * MIB) == 4 * MIB);
    rewind(f);
    u8 *a = malloc(MIB + 9), *b = malloc(MIB + 9);
    GET(p, 31 + r, a, MIB); /* the destination is full of names */
    memcpy(b, a, MIB);
    say("fread %zu", fread(a + 9, MIB, 1, f));
    verify("item", a + 9, MIB, 30 + r, 0);
    say("fgetc %d", fgetc(f));
    say("fread %zu", fread(a, 1, MIB - 1, f));
    verify("item", a, MIB - 1, 30 + r, MIB + 1);
    memcpy(b, a, MIB - 1);
    SENT(p, "read, copied, sent", b, MIB - 1, pat_hash(30 + r, MIB + 1, MIB - 1));
    MUST(fseek(f, 3 * MIB + 5, SEEK_SET) == 0);
    say("fread at the end %zu eof %d", fread(a, 1, MIB + 9, f), !!feof(f));
    verify("end", a, MIB - 5, 30 + r, 3 * MIB + 5);
    MUST(fseek(f, -100000, SEEK_END) == 0);
    GET(p, 33 + r, b, MIB);
    say("fread %zu", fread(b + 77, 4, 25000, f));
    verify("tail", b + 77, 100000, 30 + r, 4 * MIB - 100000);
    verify("behind", b + 100077, MIB - 100077, 33 + r, 100077);
    fclose(f);
    remove("big");
    free(a);
    free(b);
}

static void strings(peer *p, int r) {
    char *raw = malloc(N + 1), *t = malloc(N + 1), *line = malloc(N);
    text_of(p, 50 + r, N, raw);
    for (size_t i = 0; i < N; i++) raw[i] = i % 1001 == 1000 ? '\n' : 'a' + (u8)raw[i] % 26;
    raw[N] = 0;
    int sv[2];
    unix_pair(sv);
    for (size_t at = 0; at < N; at += 60000) { /* text that arrives by a receive, so that it is named */
        size_t n = N - at < 60000 ? N - at : 60000;
        for (size_t i = 0; i < n; i++) model[i] = raw[at + i];
        PASS(sv, model, t + at, n);
    }
    t[N] = 0;
    FILE *f = fopen("text", "w+");
    MUST(f);
    say("fputs %d", fputs(t, f) >= 0);
    char *u = malloc(N + 1);
    memcpy(u, t, N + 1);
    say("fprintf %d", fprintf(f, "<%s>\n", u));
    say("fprintf %d", fprintf(f, "%.100000s|%-20.5s|\n", u + 3, t + 70000));
    say("puts %d", fputs(strchr(u + 50000, '\n'), f) >= 0);
    rewind(f);
    u64 h = FNV_START;
    int lines = 0;
    GET(p, 60 + r, (u8 *)line, N);
    while (fgets(line, N, f)) {
        for (char *c = line; *c; c++) h = fnv(h, *c);
        lines++;
    }
    say("fgets %d lines %016lx", lines, (unsigned long)h);
    rewind(f);
    size_t cap = 0;
    char *got = NULL;
    ssize_t k = getdelim(&got, &cap, '>', f);
    say("getdelim %zd %016lx", k, (unsigned long)hash(got, k > 0 ? k : 0));
    free(got);
    fclose(f);
    FILE *m = fmemopen(t, N, "r"); /* a stream over named memory */
    MUST(m);
    say("fmemopen %zu", fread(line, 1, N, m));
    same("fmemopen", line, raw, N);
    fclose(m);
    m = open_memstream(&got, &cap);
    fwrite(u, 1, N, m);
    fclose(m);
    say("memstream %zu", cap);
    same("memstream", got, raw, N);
    free(got);
    close(sv[0]), close(sv[1]);
    free(raw), free(t), free(u), free(line);
}

/* A stream over a socket, both ways. */
static void sockets(peer *p, int r) {
    FILE *in = fdopen(dup(p->in), "r"), *out = fdopen(dup(p->out), "w");
    MUST(in && out);
    u8 *a = malloc(N), *b = malloc(N);
    peer_send(p, 70 + r, 2 * N);
    say("fread %zu", fread(a, 1, N, in));
    say("fread %zu", fread(b, N, 1, in));
    peer_want(p, 2 * N);
    say("fwrite %zu", fwrite(a, 1, N, out));
    say("fwrite %zu", fwrite(b, 1, N, out));
    fflush(out);
    judge("stream", 2 * N, peer_hash(p), pat_hash(70 + r, 0, 2 * N));
    verify("stream", b, N, 70 + r, N);
    fclose(in);
    fclose(out);
    free(a);
    free(b);
}

int main(void) {
    peer p = peer_start(P_TCP);
    for (int r = 0; r < 4; r++) {
        say("round %d", r);
        writing(&p, r);
        reading(&p, r);
        strings(&p, r);
        sockets(&p, r);
    }
    /* a stream that is still full at exit is flushed by exit */
    FILE *f = fopen("flushed-by-exit", "w");
    u8 *a = malloc(N);
    GET(&p, 99, a, N);
    fwrite(a, 1, N, f);
    fputs("and the rest", f);
    peer_stop(&p);
    return finish();
}
