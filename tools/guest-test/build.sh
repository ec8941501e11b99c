#!/bin/sh
# Builds the test guest: build/guest-test.bin, a flat arm64 Image, from target/.../guest-test, the ELF with
# symbols. The target directory is the workspace's: what runs at build time is then shared with the
# hypervisor's build.
set -eu
cd "$(dirname "$0")"

# Overrides the hypervisor's flags, which name its own linker script. PIE: a loader may put the image at any 2
# MiB.
separator=$(printf '\037')
flags="-Crelocation-model=pie -Clink-arg=-pie -Clink-arg=--no-dynamic-linker -Clink-arg=-znotext"
flags="$flags -Clink-arg=-Timage.ld -Cforce-frame-pointers=yes"
CARGO_ENCODED_RUSTFLAGS=$(printf '%s' "$flags" | tr ' ' "$separator")
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/../../target}
export CARGO_ENCODED_RUSTFLAGS CARGO_TARGET_DIR
cargo build --release --quiet

objcopy="$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin/llvm-objcopy"
mkdir -p ../../build
"$objcopy" -O binary "$CARGO_TARGET_DIR"/aarch64-unknown-none-softfloat/release/guest-test ../../build/guest-test.bin
