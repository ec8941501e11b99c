#!/bin/sh
# Each CPU gets its timer's interrupts (PPI), interrupts of other CPUs (SGI), and a device's when they are
# routed to it (SPI, affinity).
#@ on: a57
#@ all: every
. ./lib.sh
cpus=$(nproc)
cpu=0
while [ "$cpu" -lt "$cpus" ]; do
    before=$(irq_count arch_timer "$cpu")
    taskset -c "$cpu" sh -c 'sleep 0.2; i=0; while [ $i -lt 3000 ]; do i=$((i + 1)); done'
    after=$(irq_count arch_timer "$cpu")
    at_least "timer interrupts on CPU $cpu" $((after - before)) 3
    cpu=$((cpu + 1))
done

# The root disk's interrupt: virtio-mmio, one SPI.
disk=$(basename "$(findfs LABEL=ringvisor-root)")
device=$(basename "$(readlink -f "/sys/block/$disk/device")")
irq=$(awk -v d="$device" '$NF == d || $0 ~ d { sub(":", "", $1); print $1; exit }' /proc/interrupts)
[ -n "$irq" ] || fail "no interrupt for $device"
cpu=0
while [ "$cpu" -lt "$cpus" ]; do
    echo "$cpu" >"/proc/irq/$irq/smp_affinity_list" || fail "interrupt $irq cannot be routed to CPU $cpu"
    before=$(irq_count "^ *$irq:" "$cpu")
    dd if="/dev/$disk" of=/dev/null bs=4k count=50 iflag=direct 2>/dev/null || fail "disk cannot be read"
    after=$(irq_count "^ *$irq:" "$cpu")
    at_least "disk interrupts on CPU $cpu" $((after - before)) 20
    cpu=$((cpu + 1))
done

if [ "$cpus" -gt 1 ]; then
    before=$(irq_count 'IPI0|Rescheduling')
    pids=
    for _ in 1 2 3 4; do
        sh -c 'i=0; while [ $i -lt 10 ]; do sleep 0.001; i=$((i + 1)); done' &
        pids="$pids $!"
    done
    wait $pids
    after=$(irq_count 'IPI0|Rescheduling|IPI1|Function call')
    at_least "interrupts between CPUs" $((after - before)) 1
fi
kernel_is_quiet
