#!/bin/sh
# What one owner of a CPU leaves to the next: a zone, the next zone, root, and a zone again on the same CPU,
# on CPUs with and without what QEMU has properties for. The guest's own lines say what it found.
#@ tier: all
#@ on: a57 a76 max qemu10 qemu10-max qemu10-max-no-fa64
#@ all: max-no-sme max-no-sve max-no-vectors max-no-pauth max-no-pmu max-no-lpa2 max-mte
#@ needs: el2
#@ timeout: 400
. ./lib.sh
daemon
last=$(($(nproc) - 1))
[ "$last" -ge 1 ] || fail "no CPU to spare"
test_guest heir 64M "test=inherited"

# heir WHO: runs the guest on the CPU after WHO had it
heir() {
    ringctl zone run "$Z/heir.toml" >"$Z/heir.log" 2>&1 || { cat "$Z/heir.log"; fail "zone run after $1 ends with $?"; }
    grep -q '^guest-test: PASS' "$Z/heir.log" || { grep -vE '^ok ' "$Z/heir.log"; fail "a zone after $1"; }
    at_least "tests after $1" "$(grep -c '^ok .* inherited: ' "$Z/heir.log")" 13
}
heir "root"
heir "a zone"
# The daemon gives the CPU back to root when the zone has ended.
within 20 sh -c "[ \"\$(cat /sys/devices/system/cpu/cpu$last/online)\" = 1 ]"
online "$last" 0
online "$last" 1
# It computes there: floating point, and a hash by SIMD instructions where the CPU has them.
is "a sum on the CPU" "$(taskset -c "$last" awk 'BEGIN { for (i = 1; i <= 1000; i++) s += 1 / i; printf "%.6f", s }')" 7.485471
heir "root again"
dmesg | grep "SANITY CHECK" && fail "root sees CPUs that differ"
kernel_is_quiet
