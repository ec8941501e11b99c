#!/bin/sh
# The bare-metal test guest in a zone: transport, queues, disks, two vCPUs racing, GIC, timers, PSCI, UART,
# system registers, accesses that abort. Its own lines say what failed. From root's side: what it wrote, and
# what it must not have.
#@ on: a57
#@ all: max a76 qemu10 qemu10-max qemu10-max-no-fa64
#@ needs: el2
#@ timeout: 240
. ./lib.sh
mkdir -p "$Z"
cp /srv/zones/guest-test.bin "$Z" || fail "no guest-test.bin next to the zone files"
daemon
spare=$(($(nproc) - 1))
[ "$spare" -ge 1 ] || fail "no CPU to spare"

# zone NAME CPUS CMDLINE
zone() {
    cat >"$Z/$1.toml" <<END
name = "$1"
cpus = $2
memory = "64M"
kernel = "guest-test.bin"
cmdline = "$3"

[[disk]]
path = "scratch.img"
serial = "scratch0"

[[disk]]
path = "readonly.img"
readonly = true
engine = "threads"
END
}

# passes NAME: runs the zone and checks the guest's result
passes() {
    ringctl zone run "$Z/$1.toml" >"$Z/$1.log" 2>&1 || { cat "$Z/$1.log"; fail "zone run of $1 ends with $?"; }
    grep -q '^guest-test: PASS' "$Z/$1.log" || { grep -vE '^ok ' "$Z/$1.log"; fail "the guest of $1 says no"; }
    echo "$1: $(grep -c '^ok ' "$Z/$1.log") tests of the guest passed"
}

dd if=/dev/urandom of="$Z/scratch.img" bs=64k count=16 2>/dev/null
dd if=/dev/urandom of="$Z/readonly.img" bs=64k count=16 2>/dev/null
sum() { dd if="$1" bs=512 skip="$2" count="$3" 2>/dev/null | md5sum; }
before_head=$(sum "$Z/scratch.img" 0 64)
before_body=$(sum "$Z/scratch.img" 64 128)
before_tail=$(sum "$Z/scratch.img" 192 1856)
before_readonly=$(sum "$Z/readonly.img" 0 2048)

zone all $((spare > 2 ? 2 : spare)) ""
passes all
is "sectors 0 to 63" "$(sum "$Z/scratch.img" 0 64)" "$before_head"
is "sectors from 192 on" "$(sum "$Z/scratch.img" 192 1856)" "$before_tail"
is "the read-only image" "$(sum "$Z/readonly.img" 0 2048)" "$before_readonly"
[ "$(sum "$Z/scratch.img" 64 128)" != "$before_body" ] || fail "nothing was written to sectors 64 to 191"

# le BYTES NUMBER: the number's bytes, the last one the highest
le() {
    for shift_by in 0 8 16 24 32 40 48 56; do
        [ "$shift_by" -lt $(($1 * 8)) ] || break
        byte=$((($2 >> shift_by) & 255))
        printf "\\$((byte >> 6))$((byte >> 3 & 7))$((byte & 7))"
    done
}
# An ELF file of it, linked for a high address and loaded at another, with a .bss.
size=$(stat -c %s "$Z/guest-test.bin")
needs=$(od -An -tu8 -j16 -N8 "$Z/guest-test.bin" | tr -d ' ')
high=$((0xffff << 48)) low=$((0x40180000))
{
    printf '\177ELF\002\001\001'
    le 8 0; le 1 0; le 2 2; le 2 183; le 4 1; le 8 $high; le 8 64; le 8 0; le 4 0
    le 2 64; le 2 56; le 2 1; le 2 0; le 2 0; le 2 0
    le 4 1; le 4 5; le 8 4096; le 8 $high; le 8 $low; le 8 "$size"; le 8 "$needs"; le 8 4096
    head -c $((4096 - 120)) /dev/zero
    cat "$Z/guest-test.bin"
} >"$Z/guest-test.elf"

# On one vCPU, with the same disks, and on a CPU whose registers hold the last guest's values.
zone one 1 "test=inherited,transport,blk,queue,timer"
sed -i 's/guest-test.bin/guest-test.elf/' "$Z/one.toml"
passes one
grep '^guest-test: at' "$Z/one.log" | tr -d '\r' >"$Z/at"
is "its place" "$(cat "$Z/at")" "guest-test: at 0x40180000, device tree at 0x40000000, initial RAM disk at None"

# A reset loads it again, and clears what it left in its .bss.
zone again 1 "test=none end=reset"
sed -i 's/guest-test.bin/guest-test.elf/' "$Z/again.toml"
ringctl zone start "$Z/again.toml" || fail "zone start"
says_within 60 '^guest-test: at 0x40180000' 3 again
ringctl zone stop again || fail "zone stop"

# TLB maintenance of a zone's first vCPU traps 131072 times, or until it turns on another. The group "tlb"
# does it 1000 times, and then 150000 times or, beside a second vCPU, 1000 times more; little else in it traps
# as a system register. trapped VCPUS: exits of vCPU 0 for system registers, in $trapped
trapped() {
    zone alone "$1" "test=tlb end=hang"
    ringctl zone start "$Z/alone.toml" || fail "zone start"
    says_within 90 '^guest-test: end=hang' 1 alone
    ringctl zone console alone --dump >"$Z/alone.log"
    grep -q '^guest-test: PASS' "$Z/alone.log" || { cat "$Z/alone.log"; fail "TLB maintenance with $1 vCPUs"; }
    cpu=$(ringctl zone list | awk '$1 == "alone" { split($4, cpus, "[,-]"); print cpus[1] }')
    trapped=$(ringctl stats | awk -v name="cpu$cpu.exits.sysreg" '$1 == name { print $2 }')
    echo "$1 vCPUs: $trapped exits for system registers"
    ringctl zone stop alone || fail "zone stop"
}
trapped 1
at_least "exits of a vCPU alone" "$trapped" 131072
[ "$trapped" -lt 132000 ] || fail "$trapped exits: TLB maintenance traps without end"
if [ "$spare" -ge 2 ]; then
    trapped 2
    at_least "exits of a vCPU that turns on another" "$trapped" 1000
    [ "$trapped" -lt 1500 ] || fail "$trapped exits: TLB maintenance still traps with two vCPUs on"
fi

# Input: what is typed on the zone's console reaches the guest by interrupts.
zone typed 1 "test=uart-rx"
ringctl zone start "$Z/typed.toml" || fail "zone start"
(
    sleep 2
    echo ping
    sleep 3
) | timeout 30 ringctl zone console typed >"$Z/typed.log" 2>&1
timeout 30 ringctl zone wait typed
grep -q '^guest-test: PASS' "$Z/typed.log" || { cat "$Z/typed.log"; fail "what was typed did not arrive"; }

# The power key: the guest sees it pressed and released, and powers off.
zone key 1 "test=power-key"
ringctl zone start "$Z/key.toml" || fail "zone start"
says_within 30 '^guest-test: press the power key' 1 key
ringctl zone shutdown key --timeout 30 || fail "zone shutdown ends with $?"
ringctl zone console key --dump >"$Z/key.log"
grep -q '^guest-test: PASS' "$Z/key.log" || { cat "$Z/key.log"; fail "the power key"; }
# One that does not react still runs, unless it is forced to end; and it is started again.
zone deaf 1 "test=none end=hang"
ringctl zone start "$Z/deaf.toml" || fail "zone start"
ringctl zone shutdown deaf --timeout 1
is "status of a shutdown without effect" $? 4
zone_is deaf running || fail "the zone that did not react is $(zone_state deaf)"
ringctl zone reboot deaf --timeout 1 --force || fail "zone reboot ends with $?"
zone_is deaf running || fail "the zone that was started again is $(zone_state deaf)"
ringctl zone shutdown deaf --timeout 1 --force
is "status of a forced shutdown" $? 1
zone_is deaf stopped || fail "the zone that was forced to end is $(zone_state deaf)"

# A disk whose capacity changes in both words while the guest reads it.
test_guest capacity 64M "test=capacity" huge.img
truncate -s 2T "$Z/huge.img" || fail "no sparse file of 2 TiB"
ringctl zone start "$Z/capacity.toml" || fail "zone start"
while zone_is capacity running; do
    ringctl disk resize capacity 0 2199023255040 --shrink 2>/dev/null
    ringctl disk resize capacity 0 2T 2>/dev/null
done
ringctl zone console capacity --dump | tee "$Z/capacity.log" | grep -q '^guest-test: PASS' ||
    { cat "$Z/capacity.log"; fail "half of a capacity was seen"; }
grep -q '^ok .*no half of a new capacity' "$Z/capacity.log" || fail "the guest did not look at the capacity"
kernel_is_quiet
