# `make demo` shows what zio does on this machine, `make test` runs every test. The rest is for working on it.

TARGET := $(or $(CARGO_TARGET_DIR),target)
ZIO := $(TARGET)/release/zio
PREFIX ?= /usr/local
MINUTES ?= 10
OPS ?= 100000000

.PHONY: build demo test test-all lint soak fuzz install

build:
	cargo build --locked --release --workspace

# Three columns: plain, with zio, and the null-copy limit, which is what skipping copies outright would give.
demo:
	@scripts/need cc redis-server redis-benchmark
	@echo 'building ...'
	@cargo build --locked --release --quiet -p zio-apps -p zio-interpose
	@$(ZIO) bench quick

# The last line is "N passed, N failed".
test:
	@scripts/test

# The same suites in their long form: hours.
test-all:
	@ZIO_FULL=1 scripts/test

lint:
	@scripts/test lint

# The verifying Redis client, every scenario in turn in both fault modes, for MINUTES.
soak:
	@scripts/soak $(MINUTES)

# The model tests with OPS operations each and a seed that is printed and never repeated. SEED repeats one.
fuzz:
	@scripts/fuzz $(OPS) $(SEED)

# zio finds libzio.so in ../lib/zio from where it is.
install: build
	install -D -m 755 $(ZIO) $(DESTDIR)$(PREFIX)/bin/zio
	install -D -m 755 $(TARGET)/release/libzio.so $(DESTDIR)$(PREFIX)/lib/zio/libzio.so
