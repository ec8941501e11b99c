# ringvisor: what a user or CI calls. Variables are documented by `make help`.
#
# Everything that is made is below target/ (cargo), build/ (flat images) and .cache/ (Debian packages and what is made
# of them). The machine's own packages are touched by tools/setup.sh alone.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := all

export QUICK ONLY SCRIPT FILES BOARD QEMU QEMU_ARGS CPU SMP MEM ROOT_KERNEL BOOTARGS EL2_ARGS HYPERVISOR TIMEOUT ZONE
export FILTER SHARD
# A target directory of another project or a wrapper would put the results somewhere else.
export CARGO_TARGET_DIR := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)

EL2_TARGET := aarch64-unknown-none-softfloat
MUSL_TARGET := aarch64-unknown-linux-musl
EL2_ELF := $(CARGO_TARGET_DIR)/$(EL2_TARGET)/release/ringvisor
HARNESS := "$(CARGO_TARGET_DIR)/debug/harness"
export PATH := $(HOME)/.cargo/bin:$(PATH)

# Needs neither gcc nor a C library for the target: rust-lld links, musl comes with Rust's target.
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER := rust-lld

OBJCOPY = "$$(rustc --print sysroot)"/lib/rustlib/"$$(rustc -vV | sed -n 's/^host: //p')"/bin/llvm-objcopy

.PHONY: all setup hypervisor ringd guest-test harness run exec gdb symbolize test test-all check clippy-host clippy-el2 clippy-daemon doc bench sim fuzz help clean distclean

## make: builds the hypervisor, the daemon, the test guest and the tools.
all: hypervisor ringd guest-test harness

setup:
	@tools/setup.sh

# A recipe of cargo's begins with +: cargo then shares the jobs of `make -j`.
hypervisor: setup
	+@cargo build --release --target $(EL2_TARGET) -p ringvisor --bin ringvisor
	@mkdir -p build
	+@$(OBJCOPY) -O binary "$(EL2_ELF)" "build/ringvisor.bin.$$$$" && mv "build/ringvisor.bin.$$$$" build/ringvisor.bin

ringd: setup
	+@cargo build --profile daemon --target $(MUSL_TARGET) -p ringd -p hostile-worker --bins

guest-test: setup
	+@if [ -f tools/guest-test/Cargo.toml ]; then tools/guest-test/build.sh >&2; fi

# Of the whole workspace: with the same features as in the tests, packages are built once.
harness: setup
	+@cargo build --workspace --bin harness --bin image

## make run: boots the machine with a guest and leaves you on root's console.
run: all
	@$(HARNESS) run

## make exec SCRIPT=file: runs a script in root, ends with its status.
exec: all
	@$(HARNESS) exec

## make gdb: the machine stopped at its first instruction, under gdb-multiarch.
gdb: all
	@$(HARNESS) gdb

## make symbolize <log: the hypervisor's backtraces in a log as functions and lines.
symbolize: harness
	@$(HARNESS) symbolize

## make test: all tests, with a smaller set of machines. Building is a stage, too.
test: harness
	@$(HARNESS) suite

## make test-all [SHARD=i/n]: all tests on all machines, or the i-th of n parts of that.
test-all: harness
	@$(HARNESS) suite --all

## make check: formatting, documents and lints, in two minutes.
check: setup
	+@cargo fmt --all --check
	@tests/comments.sh
	@tests/words.sh
	@if [ -f tests/doc-paths.sh ]; then tests/doc-paths.sh; fi
	@$(MAKE) -s -j 2 clippy-host clippy-el2
	@echo "formatting, documents and lints are as they should be"

# The profiles are those of the builds: procedural macros are then built once, and no directory is locked by both.
clippy-host: setup
	+@cargo clippy -q --workspace --all-targets -- -D warnings

clippy-el2: setup
	+@cargo clippy -q --release --target $(EL2_TARGET) -p ringvisor --lib --bins -- -D warnings

clippy-daemon: setup
	+@cargo clippy -q --profile daemon --target $(MUSL_TARGET) -p ringd --bins -- -D warnings

## make doc: the packages' documentation, with a page that lists them: target/doc/index.html.
doc: setup
	+@cargo doc -q --workspace --no-deps --document-private-items
	@tools/doc-index.sh "$(CARGO_TARGET_DIR)/doc"

## make bench: ours, KVM with QEMU and QEMU alone, measured in one run; table, JSON and plot in build/bench.
bench: all
	+@cargo build --release -p qemu-count
	@$(HARNESS) bench

## make sim [SEED=n] [RUNS=n]: the deterministic simulation; one seed alone prints every event.
sim: setup
	+@cargo build -q -p sim
	@"$(CARGO_TARGET_DIR)/debug/sim" $(if $(SEED),--seed $(SEED)) $(if $(RUNS),--runs $(RUNS))

## make fuzz [TARGET=name] [SECONDS=n]: libFuzzer on one or all targets, n seconds each.
fuzz: setup
	@tools/fuzz/run.sh "$(or $(SECONDS),60)" $(TARGET)

help:
	@cat tools/help.txt

clean:
	rm -rf build "$(CARGO_TARGET_DIR)" tools/fuzz/target .cache/run

distclean: clean
	rm -rf .cache
