#!/bin/bash
# Checks which panics the linked EL2 binary can reach after boot: every direct call of a panicking function of
# `core` and `alloc` in functions that the exception vectors reach, by a call graph made from the disassembly.
# Each must be in tests/panics.txt, with the reason why no guest, daemon or root can reach it; and entries
# there must still exist. Calls through pointers are not followed: those of this binary are log and
# formatting, and the heap's out-of-memory hook.
# Usage: tests/panics.sh [binary]
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
binary=${1:-$target/aarch64-unknown-none-softfloat/release/ringvisor}
objdump=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin/llvm-objdump
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$objdump" -d --no-show-raw-insn --no-leading-addr -C "$binary" >"$work/code"
# Entry points: what the vectors call, and where a CPU starts, idles and enters a guest.
awk -v roots="secondary_main lower_sync lower_irq lower_serror ringvisor::el2::traps:: ringvisor::el2::run::" '
    BEGIN {
        panics = "^(core::(panicking|option::(expect|unwrap)_failed|result::unwrap_failed|" \
            "slice::index::slice_index_fail|str::slice_error)|alloc::(alloc::handle|raw_vec::(capacity|handle)))"
    }
    function clean(name) { sub(/::h[0-9a-f]+$/, "", name); return name }
    /^<.*>:$/ { from = clean(substr($0, 2, length($0) - 3)); next }
    /[ \t](bl?|b\.[a-z]+|cbn?z|tbn?z)[ \t].*<.*>$/ {
        to = $0
        sub(/^[^<]*</, "", to)
        sub(/>$/, "", to)
        sub(/\+0x[0-9a-f]+$/, "", to)
        to = clean(to)
        if (to != from && !((from, to) in seen)) { seen[from, to] = 1; calls[from] = calls[from] "\n" to }
    }
    END {
        count = split(roots, root, " ")
        for (name in calls)
            for (i = 1; i <= count; i++)
                if (index(name, root[i]) == 1) { known[name] = 1; todo[++last] = name }
        for (at = 1; at <= last; at++) {
            parts = split(calls[todo[at]], callee, "\n")
            for (i = 1; i <= parts; i++) {
                to = callee[i]
                if (to == "") continue
                if (to ~ panics) print todo[at] " -> " to
                else if (!(to in known)) { known[to] = 1; todo[++last] = to }
            }
        }
        print last > "'"$work"'/functions"
    }' "$work/code" | LC_ALL=C sort -u >"$work/found"
functions=$(cat "$work/functions")
if ((functions < 50)); then
    echo "only $functions functions are reached from the vectors: the call graph is not what it should be"
    exit 1
fi
sed -n 's/^\([^#].* -> [^ ]*\).*/\1/p' tests/panics.txt | LC_ALL=C sort -u >"$work/allowed"
LC_ALL=C comm -23 "$work/found" "$work/allowed" >"$work/new"
LC_ALL=C comm -13 "$work/found" "$work/allowed" >"$work/gone"
if [[ -s $work/new ]]; then
    echo "reached from the exception vectors, and not explained in tests/panics.txt:"
    cat "$work/new"
    echo "test result: FAILED. 0 passed; 1 failed; 0 ignored"
    exit 1
fi
if [[ -s $work/gone ]]; then
    echo "note: explained in tests/panics.txt, and not in this image:"
    cat "$work/gone"
fi
echo "$functions functions are reached from the vectors, $(wc -l <"$work/found") calls of panics in them are explained"
