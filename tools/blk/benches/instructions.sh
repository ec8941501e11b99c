#!/bin/sh
# Instructions for each request, counted by valgrind: the difference of a long and a short run. From the repository's root.
set -eu
cargo build -q --profile bench -p ringblk --example requests
binary=target/release/examples/requests
count() {
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$binary" "$@" 2>&1 | sed -n 's/.*Collected : //p'
}
measure() {
    kind=$1 depth=$2 more=${3:-}
    few=$(count "$kind" "$depth" 100 $more)
    many=$(count "$kind" "$depth" 1100 $more)
    echo "$kind x $depth $more: $(((many - few) / 1000 / depth)) instructions"
}
for kind in read write; do
    measure $kind 1
    measure $kind 32
    measure $kind 32 neighbours
done
measure registers 1
