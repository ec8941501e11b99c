#!/bin/sh
# Rings and lines under loom: unchanged, every test must pass; with one ordering weakened or one step left
# out, some test must fail (torture f1, f2). Prints one line per mutation and a summary; exits 0 if all went
# as expected. Usage: tests/ring_mutations.sh [mutation...]
set -u
cd "$(dirname "$0")/.." || exit 1
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
log=$results/log

export RUST_BACKTRACE=0
RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/loom" \
    cargo test --profile loom -p ringvisor --test loom_ring --no-run --message-format=json >"$log" || exit 1
test=$(sed -n 's/.*"executable":"\([^"]*loom_ring[^"]*\)".*/\1/p' "$log")

if timeout 600 "$test" >"$log" 2>&1; then
    echo "unchanged: passes"
else
    cat "$log"
    echo "unchanged: FAILS"
    echo "test result: FAILED. 0 passed; 1 failed; 0 ignored"
    exit 1
fi

default="pending_set pending_clear slot_fill slot_read arm disarm disarm_by_store no_second_look head_advance
    head_read output_written output_read output_claim_fence output_check_fence input_written input_len line_rose
    line_stale line_pulse"
mutations=${*:-$default}
# One on each CPU at a time.
# shellcheck disable=SC2086 # one line for each
printf '%s\n' $mutations | xargs -P "$(nproc)" -I '{}' \
    sh -c 'RING_MUTATION={} timeout 600 "$0" --test-threads=1 >"$1/{}" 2>&1; echo $? >"$1/{}.status"' "$test" "$results"
good=1 bad=0
for mutation in $mutations; do
    log=$results/$mutation
    # Without a status it was killed: that is no answer.
    status=$(cat "$log.status" 2>/dev/null || echo 124)
    if [ $status -eq 0 ]; then
        echo "$mutation: NOT NOTICED"
        bad=$((bad + 1))
    elif [ $status -eq 124 ]; then
        echo "$mutation: TIMED OUT"
        bad=$((bad + 1))
    elif by=$(sed -n "s/^thread '\([a-z_]*\)'.*/\1/p" "$log" | head -n 1) && [ -n "$by" ]; then
        good=$((good + 1))
        echo "$mutation: noticed by $by"
    else
        cat "$log"
        echo "$mutation: DOES NOT RUN"
        bad=$((bad + 1))
    fi
done
verdict=ok
[ $bad -eq 0 ] || verdict=FAILED
echo "test result: $verdict. $good passed; $bad failed; 0 ignored"
[ $bad -eq 0 ]
