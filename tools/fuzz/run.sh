#!/bin/bash
# libFuzzer on the targets of tools/sim/src/fuzz.rs, with AddressSanitizer, some seconds each. New inputs stay
# in tools/fuzz/target/corpus; what fails is left in tools/fuzz/target and named. cargo-fuzz works here too,
# and is not needed.
# Usage: tools/fuzz/run.sh seconds [target...]
set -euo pipefail
cd "$(dirname "$0")"
../setup.sh --fuzz
seconds=${1:-60}
shift || true
targets=("$@")
((${#targets[@]})) || mapfile -t targets < <(sed -n 's/^name = "\(.*\)"/\1/p' Cargo.toml | grep -vx fuzz)

host=$(rustc -vV | sed -n 's/^host: //p')
# As cargo-fuzz does it: coverage counters that libFuzzer reads, and comparisons that it learns from.
export RUSTFLAGS="--cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
export CARGO_TARGET_DIR=$PWD/target
# The simulator keeps what a driver forgot in a reset, as a driver does.
export ASAN_OPTIONS=detect_leaks=0 CARGO_PROFILE_RELEASE_PANIC=unwind
cargo +nightly build -q --release --target "$host" --bins

good=0 bad=0
for target in "${targets[@]}"; do
    mkdir -p "target/corpus/$target"
    log=target/$target.log
    if "target/$host/release/$target" -max_total_time="$seconds" -max_len=4096 -timeout=20 -artifact_prefix="target/$target-" \
        "target/corpus/$target" "corpus/$target" >"$log" 2>&1; then
        good=$((good + 1))
        echo "$target: $(sed -n 's/^Done \([0-9]* runs\).*/\1/p' "$log")"
    else
        bad=$((bad + 1))
        echo "$target: FAILED"
        tail -n 30 "$log"
    fi
done
verdict=ok
((bad == 0)) || verdict=FAILED
echo "test result: $verdict. $good passed; $bad failed; 0 ignored"
((bad == 0))
