#!/bin/sh
# Root stores invalid values to the control device (torture c1, c2, c11, g8), and to frames that write memory:
# EL2 and the daemon keep working.
#@ needs: el2
. ./lib.sh
device=$(grep -l 0x7276 /sys/bus/pci/devices/*/device) || fail "no control device"
bar=$(awk 'NR == 1 { print $1 }' "$(dirname "$device")/resource")
# The serving page, and the control page (src/abi/doorbell.rs).
at() { printf '0x%x' $((bar + 0x1000 + $1)); }
control() { printf '0x%x' $((bar + 0x80000 + $1)); }
# No daemon is attached: page 0, EL2's own memory, addresses without RAM, and RAM that is not the daemon's
# page.
for page in 0 1 0x40200000 0x40400000 0x8000000 0xfffffffffff00000 0x44000000; do
    devmem "$(at 8)" 64 $page
    devmem "$(control 8)" 64 $page
done
for offset in 0 0x10 0x14 0x18 0x1c 0x20 0xff8; do
    for width in 8 16 32 64; do
        for address in "$(at $offset)" "$(control $offset)"; do
            devmem "$address" $width 0xffffffff
            devmem "$address" $width >/dev/null
        done
    done
done
# A doorbell once more 64 KiB further on, a page of the BAR without a meaning, and its end.
for offset in 0xf000 0x10000 0x10014 0x7e000 0x80010 0xeeff8; do
    devmem "$(at $offset)" 32 1
    devmem "$(at $offset)" 64 0x40200000
done
# EL2's own memory: loads and stores raise a bus error in the program, and have no other effect.
for address in 0x40200000 0x40300000 0x405ffff8; do
    devmem $address 32 >/tmp/out 2>&1 && fail "root reads EL2's memory at $address: $(cat /tmp/out)"
    devmem $address 32 0 >/tmp/out 2>&1 && fail "root writes EL2's memory at $address"
done
# Frames that write memory for root, here EL2's: the ITS (tables by GITS_BASER, commands by GITS_CBASER, on by
# GITS_CTLR) and fw_cfg's DMA register. And a frame that the device tree does not name, a UART.
attack() { # ADDRESS WIDTH VALUE
    devmem $1 "$2" "$3" >/tmp/out 2>&1 && fail "root stores to $1"
    devmem $1 "$2" >/tmp/out 2>&1 && fail "root reads $1: $(cat /tmp/out)"
    return 0
}
attack 0x8080100 64 0x8107000040300700
attack 0x8080080 64 0x8000000040300700
attack 0x8080000 32 1
attack 0x8090040 32 0
attack 0x9020010 64 0
attack 0x9040000 32 0
daemon
ringctl info >/dev/null || fail "ringctl info"
devmem "$(control 8)" 64 0
devmem "$(control 8)" 64 0x40200000
# Attaching and detaching are the control page's.
attached=$(ringctl info | grep -i attach)
devmem "$(at 8)" 64 0x40200000
devmem "$(at 0x10)" 32 1
is "attaches" "$(ringctl info | grep -i attach)" "$attached"
for value in 0 0xffffffff 0x00100000 0x00010000 0x000f001f; do
    for offset in 0 0x14 0x18; do
        devmem "$(at $offset)" 32 $value
    done
done
ringctl info >/dev/null || fail "ringctl info after invalid stores"
truncate -s 1M /tmp/disk.img
ringctl zone start --name z --cpus 1 --memory 64M --kernel /srv/zones/Image --disk /tmp/disk.img || fail "zone start"
# Completions for zones and slots that do not exist, and with reserved bits.
for value in 0x00000000 0x00020000 0x000f0000 0x00ff0000 0x00010001 0x0001001f 0x000100ff 0x01010000 0x00010100 0xffffffff; do
    devmem "$(at 0x14)" 32 $value
done
zone_is z running || fail "a stray completion ended the zone: $(zone_state z)"
ringctl zone stop z || fail "zone stop"
devmem "$(control 0x10)" 32 1
is "CPUs" "$(nproc)" "$(ls -d /proc/device-tree/cpus/cpu@* | wc -l)"
kernel_is_quiet
