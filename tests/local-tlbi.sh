#!/bin/bash
# EL2 executes trapped TLB maintenance for its own CPU only: in the linked image, `tlbi_el1` has TLBIs, and
# none that is broadcast (inner or outer shareable). Usage: tests/local-tlbi.sh [image]
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
image=${1:-$target/aarch64-unknown-none-softfloat/release/ringvisor}
objdump=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin/llvm-objdump
# The disassembler prints TLBI by its name, and one that it does not know as `sys #op1, cCRn, cCRm, #op2`.
found=$("$objdump" -d --mattr=+tlb-rmi --no-show-raw-insn --no-leading-addr -C "$image" |
    awk '/^<.*>:$/ { inside = /el2::arch::tlbi_el1/ } inside && /[ \t](tlbi|sys)[ \t]/ { print $1, $2, $3, $4, $5 }')
echo "$found"
count=$(grep -c '^tlbi ' <<<"$found") || count=0
[ "$count" -ge 5 ] || { echo "$count TLBIs in tlbi_el1, expected at least 5"; exit 1; }
if grep -iE '^tlbi +[a-z0-9]*(is|os)(nxs)?[, ]*|^sys ' <<<"$found"; then
    echo "these are broadcast, or unknown"
    exit 1
fi
