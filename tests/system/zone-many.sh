#!/bin/sh
# Zones started and stopped many times leave nothing behind: EL2's pages, huge pages, CPUs, the daemon's files
# (torture d1).
#@ needs: el2
#@ boot: cpus
#@ timeout: 600
. ./lib.sh
rounds=${ROUNDS:-10}
value() { ringctl info --json | tr -d ' ,' | sed -n "s/^\"$1\"://p"; }
free() { awk '/^HugePages_Free:/ { print $2 }' /proc/meminfo; }
mkdir -p $Z
dd if=/dev/urandom of=$Z/disk.img bs=1M count=4 2>/dev/null
hash=$(image_hash $Z/disk.img)
zone_file guest1 1 64M disk.img
daemon
once() {
    ringctl zone start $Z/guest1.toml && ringctl zone stop guest1 || fail "round $round"
}
round=0
once
before="$(value pages_used) pages and $(value heap_used) bytes of heap of EL2, $(free) huge pages, $(files) files, $(nproc) CPUs"
round=1
while [ "$round" -le "$rounds" ]; do
    once
    round=$((round + 1))
done
is "what is left after $rounds rounds" \
    "$(value pages_used) pages and $(value heap_used) bytes of heap of EL2, $(free) huge pages, $(files) files, $(nproc) CPUs" "$before"
is "hash of the image" "$(image_hash $Z/disk.img)" "$hash"
kernel_is_quiet
