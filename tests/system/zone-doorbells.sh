#!/bin/sh
# Root floods the used-buffer doorbell: for zones and slots that do not exist, which is dropped and counted
# (torture c2), and for a disk in use, whose guest gets interrupts without used buffers (torture c3). EL2
# handles each in one bounded call, so root's shell and the guest's I/O go on, and nothing that the guest
# wrote is lost.
#@ needs: el2
#@ tier: all
#@ timeout: 400
. ./lib.sh
device=$(grep -l 0x7276 /sys/bus/pci/devices/*/device) || fail "no control device"
bar=$(awk 'NR == 1 { print $1 }' "$(dirname "$device")/resource")
used_buffer=$(printf '0x%x' $((bar + 0x1000 + 0x14)))
cat >/tmp/autorun <<'S'
echo "quiet"
until dd if=/dev/vdc bs=512 count=1 iflag=direct 2>/dev/null | grep -q begin; do sleep 1; done
echo "io: begins"
runs=0
until dd if=/dev/vdc bs=512 count=1 iflag=direct 2>/dev/null | grep -q end; do
    runs=$((runs + 1))
    fio --name=v --filename=/dev/vdb --size=2M --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=16 --randseed=$runs \
        --verify=crc32c --verify_fatal=1 >/tmp/fio.out 2>&1 || { echo "fio: failed"; cat /tmp/fio.out; break; }
    echo "fio: run $runs verified"
done
dmesg | grep -E 'I/O error|nobody cared|hung_task|blocked for more' && echo "guest saw errors"
echo "hash: $(md5sum </dev/vdb | cut -d ' ' -f 1)"
sync
poweroff
sleep 100
S
guest_disk $Z/root.img /tmp/autorun
truncate -s 2M $Z/data.img
truncate -s 4K $Z/orders.img
zone_file guest1 1 256M root.img data.img orders.img
daemon
ringctl zone start $Z/guest1.toml || fail "zone start"
says_within 150 '^quiet'
get() { awk -v name="$1" '$1 == name { value = $2 } END { print value + 0 }' /tmp/stats; }
# counts: doorbells of root's CPUs in $all, those that reached a disk of the guest in $taken
counts() {
    ringctl stats >/tmp/stats || fail "stats"
    all=$(awk '$1 ~ /^cpu[0-9]+\.doorbells$/ { sum += $2 } END { print sum + 0 }' /tmp/stats)
    taken=$(awk '$1 ~ /^disk\.guest1\.[0-9]+\.doorbells$/ { sum += $2 } END { print sum + 0 }' /tmp/stats)
}

# Zones and slots that do not exist. The guest is paused meanwhile, and with it all other doorbells.
ringctl zone pause guest1 || fail "zone pause"
sleep 1
counts
before=$all reached=$taken
for _ in $(seq 50); do
    # ZONE << 16 | SLOT: root, a zone that is not there, and a slot that the guest, the only zone, does not
    # have.
    for value in 0x00000000 0x00000001 0x00070000 0x00070002 0x0001001f; do
        devmem "$used_buffer" 32 "$value" || fail "devmem"
    done
done
counts
dropped=$((all - before - (taken - reached)))
is "doorbells that were counted and dropped" $dropped 250
ringctl zone resume guest1 || fail "zone resume"

# A disk in use.
printf 'begin\n' | dd of=$Z/orders.img conv=notrunc 2>/dev/null
says_within 60 '^fio: run 1 '
runs() { ringctl zone console guest1 --dump | grep -c '^fio: run'; }
more_runs() { [ "$(runs)" -gt "$1" ]; }
interrupts=$(get disk.guest1.1.interrupts)
before=$all
: >/tmp/flood
for flood in 1 2; do
    while [ -e /tmp/flood ]; do devmem "$used_buffer" 32 0x00010001; done &
done
runs_before=$(runs)
worst=0
for _ in $(seq 10); do
    start=$(date +%s%3N)
    ringctl zone list >/dev/null || fail "zone list under the flood"
    took=$(($(date +%s%3N) - start))
    [ $took -le $worst ] || worst=$took
    sleep 1
done
within 100 more_runs "$runs_before"
rm /tmp/flood
wait
counts
flood=$((all - before))
echo "$flood doorbells, $(($(get disk.guest1.1.interrupts) - interrupts)) interrupts; ringctl answered within $worst ms"
at_least "doorbells of the flood" $flood 500
[ $worst -le 5000 ] || fail "ringctl needed $worst ms under the flood"
printf 'end\n' | dd of=$Z/orders.img conv=notrunc 2>/dev/null
ringctl zone wait guest1 || fail "zone wait"
ringctl zone console guest1 --dump | tr -d '\r' >/tmp/text
tail -n 5 /tmp/text
grep -qE "fio: failed|guest saw errors" /tmp/text && fail "the guest saw errors"
is "hash of the image" "$(image_hash $Z/data.img)" "$(sed -n 's/^hash: //p' /tmp/text)"
clean $Z/root.img
kernel_is_quiet
