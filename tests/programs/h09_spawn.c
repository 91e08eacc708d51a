// hazard 9: vfork, posix_spawn, system, popen and daemon, with strings inside received buffers
// expect: elided
#include "common.h"
#include <spawn.h>

extern char **environ;
#define N (100 * KIB)
static u8 text[N];
static int sv[2];

/* Receives a buffer in which these strings lie at `at` and at `at + 20000`: nothing of it is touched yet. */
static char *received(const char *first, const char *second, size_t at, int r) {
    char *b = malloc(N + 16);
    MUST(b);
    fill(text, N, r, 0);
    for (size_t i = 0; i <= strlen(first); i++) text[at + i] = first[i];
    for (size_t i = 0; i <= strlen(second); i++) text[at + 20000 + i] = second[i];
    PASS(sv, text, b + r, N);
    char *copy = malloc(N + 16);
    memcpy(copy, b + r, N);
    free(b);
    return copy;
}

static void wait_for(const char *name, pid_t pid) {
    int st = 0;
    MUST(waitpid(pid, &st, 0) == pid);
    say("%s status %x", name, st);
}

static void spawned(int r) {
    char *b = received("/bin/echo", "spawned by received strings", 8190, r);
    char *env = received("VALUE=from a received buffer", "$VALUE", 40961, r + 1);
    pid_t pid;
    char *argv[] = {b + 8190, b + 28190, NULL};
    int rc = posix_spawn(&pid, b + 8190, NULL, NULL, argv, environ);
    wait_for("posix_spawn", pid);
    say("posix_spawn %d", rc);
    char *argv2[] = {"sh", "-c", "echo \"sh says $VALUE\"; exit 3", NULL}, *envp[] = {env + 40961, "PATH=/usr/bin:/bin", NULL};
    rc = posix_spawnp(&pid, "sh", NULL, NULL, argv2, envp);
    wait_for("posix_spawnp", pid);
    say("posix_spawnp %d", rc);
    free(b);
    free(env);
    b = received("/nonexistent/program", "argument", 12345, r + 2);
    char *argv3[] = {b + 12345, b + 32345, NULL};
    rc = posix_spawn(&pid, b + 12345, NULL, NULL, argv3, environ);
    say("posix_spawn of nothing: %d", rc);
    same("the buffer", b, text, N);
    free(b);
}

static void vforked(int r) {
    char *b = received("/bin/echo", "a vforked child speaks", 4000, r);
    char *other = received("unrelated", "data", 4000, r + 1);
    pid_t pid = vfork();
    if (pid == 0) {
        execl(b + 4000, "echo", b + 24000, (char *)NULL);
        _exit(127);
    }
    wait_for("vfork", pid);
    pid = vfork();
    if (pid == 0) _exit(other[4000] == 'u' ? 21 : 22); /* a touch in the shared address space */
    wait_for("vfork that reads", pid);
    pid = vfork();
    if (pid == 0) {
        signal(SIGINT, SIG_IGN);
        execl("/nonexistent", "x", (char *)NULL);
        _exit(errno == ENOENT ? 23 : 24);
    }
    wait_for("vfork without exec", pid);
    same("the buffer", other, text, N);
    free(b);
    free(other);
}

static void shells(int r) {
    char *b = received("echo system reads a received command; exit 5", "tr a-z A-Z", 16383, r);
    int st = system(b + 16383);
    say("system %x", st);
    FILE *f = popen("for i in 1 2 3; do echo line $i; done; exit 2", "r");
    MUST(f);
    char line[100];
    while (fgets(line, sizeof line, f)) say("popen gave %.6s", line);
    say("pclose %x", pclose(f));
    f = popen(b + 36383, "w");
    MUST(f);
    fputs("shouted\n", f);
    say("pclose %x", pclose(f));
    same("the buffer", b, text, N);
    /* fork and exec by hand, with descriptors as stdin */
    int p[2];
    MUST(pipe(p) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(p[0], 0);
        close(p[0]), close(p[1]);
        execlp("cksum", "cksum", (char *)NULL);
        _exit(127);
    }
    close(p[0]);
    MUST(give(p[1], b, N) == (ssize_t)N);
    close(p[1]);
    wait_for("cksum", pid);
    free(b);
}

static void daemonised(int r) {
    char *b = received("daemon", "data", 100, r), *c = malloc(N);
    int p[2];
    memcpy(c, b, N);
    MUST(pipe(p) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        close(p[0]);
        alarm(20);
        if (daemon(1, 1)) _exit(1);
        int ok = 1;
        for (size_t i = 0; i < N; i++) ok &= (u8)b[i] == text[i];
        int fd = open("by-the-daemon", O_CREAT | O_WRONLY | O_TRUNC, 0600);
        if (write(fd, c, N) != (ssize_t)N) ok = 0;
        close(fd);
        say("the daemon found its data: %d", ok);
        _exit(0);
    }
    close(p[1]);
    char end;
    MUST(read(p[0], &end, 1) == 0); /* until the daemon is gone */
    wait_for("daemon's parent", pid);
    same("the buffer", c, text, N);
    close(p[0]);
    free(b);
    free(c);
}

int main(void) {
    unix_pair(sv);
    for (int r = 0; r < 5; r++) {
        say("round %d", r);
        spawned(r);
        vforked(r);
        shells(r);
        daemonised(r);
    }
    return finish();
}
