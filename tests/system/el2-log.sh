#!/bin/sh
# `ringctl log` shows EL2's log: whole lines in their order, the newest when more was logged than there is
# room for, and after a restart of the machine those from before it. Root has all its CPUs then.
#@ needs: el2
#@ on: a57
#@ boot: own
#@ timeout: 400
. ./lib.sh
state=/var/lib/ringvisor
daemon
ringctl log >/tmp/log || fail "ringctl log"
starts() { grep -c ' INFO\] ringvisor [0-9.]* at 0x' /tmp/log; }
if [ -e $state/second ]; then
    grep -q ' INFO\] start 2 after a reset: the log goes on' /tmp/log || { cat /tmp/log; fail "not the second start"; }
    is "starts of EL2 in the log" "$(starts)" 1
    grep -q ' INFO\] root resets the machine' /tmp/log || { cat /tmp/log; fail "the end of the first start is not there"; }
    grep -q 'attach refused: Misaligned (0x1f4001)' /tmp/log || fail "the last refusal is not there"
    is "number of CPUs" "$(nproc)" "$(ls -d /proc/device-tree/cpus/cpu@* | wc -l)"
    kernel_is_quiet
    exit 0
fi
is "starts of EL2 in the log" "$(starts)" 1
grep -q 'daemon attached, shared page 0x[0-9a-f]*, epoch 1' /tmp/log || { cat /tmp/log; fail "no attach"; }

# 500 lines of more than 66 bytes, more than 32 KiB.
device=$(grep -l 0x7276 /sys/bus/pci/devices/*/device) || fail "no control device"
bar=$(awk 'NR == 1 { print $1 }' "$(dirname "$device")/resource")
# The control page's register (src/abi/doorbell.rs).
attach=$(printf '0x%x' $((bar + 0x80008)))
number=1
while [ $number -le 500 ]; do
    devmem "$attach" 64 $((number * 4096 + 1))
    number=$((number + 1))
done
ringctl log >/tmp/log || fail "ringctl log"
size=$(wc -c </tmp/log)
[ "$size" -ge 30000 ] && [ "$size" -le 32704 ] || fail "$size bytes of log"
grep -vE '^\[EL2 +[0-9]+\.[0-9]{6} cpu[0-9]+ (ERROR|WARN|INFO)\] [ -~]+$' /tmp/log && fail "a line is torn"
sed -n 's/.*attach refused: Misaligned (\(0x[0-9a-f]*\))$/\1/p' /tmp/log >/tmp/refused
last=$((500 * 4096 + 1))
for value in $(tac /tmp/refused); do
    is "a refused address" $((value)) $last
    last=$((last - 4096))
done
at_least "refusals in the log" "$(wc -l </tmp/refused)" 300

touch $state/second $state/expect-reboot
sync
reboot -f
sleep 60
fail "the machine did not restart"
