#!/bin/sh
# CPUs are taken offline and online again through sysfs, under load, and work afterwards.
#@ on: a57
#@ all: large generic max qemu10 generic-max large-generic
. ./lib.sh
cpus=$(nproc)
at_least "number of CPUs" "$cpus" 2
sh -c 'while :; do :; done' &
load=$!
for round in 1 2; do
    cpu=1
    while [ "$cpu" -lt "$cpus" ]; do
        online "$cpu" 0
        is "state of CPU $cpu" "$(cat "/sys/devices/system/cpu/cpu$cpu/online")" 0
        cpu=$((cpu + 1))
    done
    is "CPUs left in round $round" "$(nproc)" 1
    cpu=1
    while [ "$cpu" -lt "$cpus" ]; do
        online "$cpu" 1
        before=$(irq_count arch_timer "$cpu")
        is "program on CPU $cpu" "$(taskset -c "$cpu" sh -c 'sleep 0.1; echo works')" works
        at_least "timer interrupts on CPU $cpu" $(($(irq_count arch_timer "$cpu") - before)) 1
        cpu=$((cpu + 1))
    done
    is "CPUs in round $round" "$(nproc)" "$cpus"
done
kill "$load"
kernel_is_quiet
