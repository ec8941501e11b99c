#!/bin/sh
# Root comes up with all CPUs and memory of the machine, and its kernel logs no warning.
#@ on: every
. ./lib.sh
cpus=$(ls -d /proc/device-tree/cpus/cpu@* | wc -l)
is "number of CPUs" "$(nproc)" "$cpus"
grep -q . /proc/device-tree/psci/method || fail "no PSCI"
at_least "memory in MiB" "$(awk '/^MemTotal:/ { print int($2 / 1024) }' /proc/meminfo)" 850
at_least "huge pages" "$(awk '/^HugePages_Total:/ { print $2 }' /proc/meminfo)" 200
kernel_is_quiet
