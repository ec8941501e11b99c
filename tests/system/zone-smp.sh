#!/bin/sh
# A guest with as many vCPUs as root can donate, each of which runs programs and takes its own timer's
# interrupts; then one on CPUs that the zone file names.
#@ all: large
#@ needs: el2
#@ boot: cpus
#@ tier: all
#@ timeout: 400
. ./lib.sh
cat >/tmp/autorun <<'A'
echo "cpus: $(nproc)"
for cpu in $(seq 0 $(($(nproc) - 1))); do
    before=$(awk -v c=$((cpu + 2)) '/arch_timer/ { print $c }' /proc/interrupts)
    taskset -c $cpu sh -c 'sleep 0.2; md5sum /usr/bin/busybox >/dev/null && echo "ran on $0"' $cpu
    [ "$(awk -v c=$((cpu + 2)) '/arch_timer/ { print $c }' /proc/interrupts)" -gt "$before" ] && echo "ticks on $cpu"
done
dmesg | grep -E 'BUG:|WARNING:|Call trace:|rcu_.*stall|Oops' && echo "kernel complained"
sync
poweroff
sleep 100
A
daemon
all=$(nproc)
for cpus in $((all - 1)) "[2, $((all - 3))]"; do
    guest_disk $Z/root.img /tmp/autorun
    zone_file guest1 "$cpus" 256M root.img
    ringctl zone start $Z/guest1.toml || fail "zone start with cpus = $cpus"
    case $cpus in
    *,*)
        count=2
        is "CPU 2" "$(cat /sys/devices/system/cpu/cpu2/online)" 0
        is "CPU $((all - 3))" "$(cat /sys/devices/system/cpu/cpu$((all - 3))/online)" 0
        is "CPUs root keeps" "$(nproc)" $((all - 2))
        ;;
    *)
        count=$cpus
        is "CPUs root keeps" "$(nproc)" 1
        # None is left for another zone.
        timeout 60 ringctl zone start --name more --cpus 1 --memory 64M --kernel /srv/zones/Image >/tmp/out 2>&1 &&
            fail "a zone got a CPU that was not there"
        grep -q cpus /tmp/out || fail "unclear: $(cat /tmp/out)"
        ;;
    esac
    ringctl zone wait guest1 || fail "zone wait"
    ringctl zone console guest1 --dump | tr -d '\r' >/tmp/text
    grep -q "^cpus: $count" /tmp/text || { cat /tmp/text; fail "the guest has not $count CPUs"; }
    for cpu in $(seq 0 $((count - 1))); do
        grep -q "^ran on $cpu" /tmp/text && grep -q "^ticks on $cpu" /tmp/text ||
            { cat /tmp/text; fail "CPU $cpu of the guest does not work"; }
    done
    grep -q "kernel complained" /tmp/text && fail "the guest's kernel complained"
    clean $Z/root.img
    is "CPUs root has back" "$(nproc)" "$all"
done
kernel_is_quiet
