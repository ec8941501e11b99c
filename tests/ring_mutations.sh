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
host=$(rustc -vV | sed -n 's/^host: //p')
# With --target, the flag does not reach what runs at build time: that is shared with all other builds.
RUSTFLAGS="--cfg loom" cargo --config tests/loom.toml test --target "$host" -p ringvisor --test loom_ring --no-run \
    --message-format=json >"$log" || exit 1
test=$(sed -n 's/.*"executable":"\([^"]*loom_ring[^"]*\)".*/\1/p' "$log")

if timeout 600 "$test" >"$log" 2>&1; then
    echo "unchanged: passes"
else
    cat "$log"
    echo "unchanged: FAILS"
    echo "test result: FAILED. 0 passed; 1 failed; 0 ignored"
    exit 1
fi

# Each mutation, and the test that notices it soonest. If that one does not, all are run.
table="
    pending_set attaching_while_a_vcpu_notifies
    pending_clear attaching_while_a_vcpu_notifies
    slot_fill an_entry_carries_what_came_before
    slot_read an_entry_carries_what_came_before
    arm attaching_while_a_vcpu_notifies
    disarm attaching_while_a_vcpu_notifies
    disarm_by_store attaching_while_a_vcpu_notifies
    no_second_look attaching_while_a_vcpu_notifies
    head_advance the_head_carries_the_bits
    head_read the_head_carries_the_bits
    output_written output_is_whole_or_dropped
    output_read output_is_whole_or_dropped
    output_claim_fence output_is_whole_or_dropped
    output_check_fence output_is_whole_or_dropped
    input_written input_arrives_in_order
    input_len input_arrives_in_order
    line_rose a_line_ends_at_the_last_latched_level_and_loses_no_edge
    line_stale a_line_ends_at_the_last_latched_level_and_loses_no_edge
    line_pulse a_line_ends_at_the_last_latched_level_and_loses_no_edge
"
mutations=${*:-$(echo "$table" | awk '{ print $1 }')}
for mutation in $mutations; do
    echo "$mutation $(echo "$table" | awk -v name="$mutation" '$1 == name { print $2 }')"
done >"$results/list"
# One on each CPU at a time.
# shellcheck disable=SC2016 # expanded by the inner shell
xargs -P "$(nproc)" -L 1 sh -c '
    for only in "--exact ${3:-}" ""; do
        RING_MUTATION=$2 timeout 600 "$0" --test-threads=1 $only >"$1/$2" 2>&1
        status=$?
        [ $status -eq 0 ] || break
    done
    echo $status >"$1/$2.status"' "$test" "$results" <"$results/list"
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
