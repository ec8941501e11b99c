#!/bin/sh
# Changes of disks while their guest runs: resize, attach, detach, limits, the write cache switched, discards;
# a queue for each vCPU. A new daemon has the disks that the last one attached.
#@ needs: el2
#@ boot: disks
#@ tier: all
#@ timeout: 300
. ./lib.sh
cat >/tmp/autorun <<'S'
sectors() { cat /sys/block/$1/size; }
# Waits until a disk has this number of sectors.
awaits() {
    n=0
    until [ "$(sectors $1)" = "$2" ]; do
        n=$((n + 1))
        [ $n -lt 1200 ] || { echo "$1 has $(sectors $1) sectors, not $2"; poweroff; sleep 100; }
        sleep 0.05
    done
}
hash() { md5sum <"$1" | cut -d ' ' -f 1; }
echo "queues: $(ls /sys/block/vda/mq | wc -l) $(ls /sys/block/vdb/mq | wc -l)"
cache=/sys/block/vdb/queue/write_cache
echo "cache: $(cat $cache)"
echo "write through" >$cache && echo "cache: $(cat $cache)"
dd if=/dev/urandom of=/dev/vdb bs=64k count=16 oflag=direct 2>/dev/null && echo "through: $(hash /dev/vdb)"
echo "write back" >$cache && echo "cache: $(cat $cache)"
dd if=/dev/urandom of=/dev/vdb bs=1M count=8 oflag=direct 2>/dev/null && sync /dev/vdb && echo "filled"
awaits vdb 65536
echo "resized: $(sectors vdb)"
dd if=/dev/urandom of=/dev/vdb bs=1M seek=31 count=1 oflag=direct 2>/dev/null && sync /dev/vdb && echo "tail: $(hash /dev/vdb)"
blkdiscard /dev/vdb && echo "discarded: $(hash /dev/vdb)"
dd if=/dev/vdb of=/dev/null bs=512 count=600 iflag=direct 2>/dev/null && echo "limited reads have ended"
echo "spare: $(sectors vdc)"
awaits vdc 16384
echo "attached: $(hash /dev/vdc) $(cat /sys/block/vdc/serial)"
awaits vdc 24576
dd if=/dev/urandom of=/dev/vdc bs=64k count=64 oflag=direct 2>/dev/null && sync /dev/vdc && echo "written: $(hash /dev/vdc)"
awaits vdc 0
echo "detached: $(dd if=/dev/vdc bs=512 count=1 iflag=direct 2>/dev/null | wc -c) bytes"
awaits vdc 16
echo "again: $(hash /dev/vdc)"
dmesg | grep -E 'I/O error|Buffer I/O' && echo "guest saw errors"
# That image is read-only, which the drive cannot report: writes fail.
dd if=/dev/zero of=/dev/vdc bs=4k count=1 oflag=direct 2>/dev/null && echo "written" || echo "refused"
poweroff
sleep 100
S
guest_disk $Z/root.img /tmp/autorun
dd if=/dev/zero of=$Z/b.img bs=1M count=16 2>/dev/null
dd if=/dev/urandom of=$Z/c.img bs=1M count=8 2>/dev/null
dd if=/dev/urandom of=$Z/d.img bs=1k count=8 2>/dev/null
hash_d=$(image_hash $Z/d.img)
zone_file guest1 2 256M root.img b.img
sed -i 's/^cpus/spare_disks = 1\ncpus/' $Z/guest1.toml
daemon
ringctl zone start $Z/guest1.toml || fail "zone start"
text() { ringctl zone console guest1 --dump | tr -d '\r'; }
says() { text | grep -q "^$1"; }
said() { text | sed -n "s/^$1: //p" | tail -n "${2:-1}"; }
stat_of() { ringctl disk stats | awk -v slot="$1" -v column="$2" '
    NR == 1 { for (i = 1; i <= NF; i++) if ($i == column) at = i; next } $2 == slot { sum += $at } END { print sum + 0 }'; }

within 200 says filled
is "queues of a disk" "$(said queues)" "2 2"
is "write cache" "$(said cache 3 | tr '\n' ,)" "write back,write through,write back,"
before=$(du -k $Z/b.img | cut -f 1)
flushes=$(stat_of 1 FLUSHES)
at_least "flushes of the whole disk" "$flushes" 1

ringctl disk resize guest1 vdb 32M || fail "disk resize"
within 60 says tail
is "sectors after the resize" "$(said resized)" 65536
is "size of the file" "$(stat -c %s $Z/b.img)" $((32 << 20))
ringctl disk resize guest1 vdb 16M 2>/tmp/err && fail "a disk was made smaller without --shrink"
grep -q "16M is less than its 32M" /tmp/err || fail "refusal to shrink: $(cat /tmp/err)"
ringctl disk set-limit guest1 vdb --iops 20 --iops-burst 2 || fail "disk set-limit"
within 60 says discarded
is "the discarded disk" "$(said discarded)" "$(head -c 32M /dev/zero | md5sum | cut -d ' ' -f 1)"
after=$(du -k $Z/b.img | cut -f 1)
[ "$after" -lt $((before / 8)) ] || fail "$before KiB of blocks before the discard, $after after it"

# Reads in intervals: never more than the limit allows, and close to it in at least one. In the others the
# host may have been busy.
rate=0 spans=0
until [ "$rate" -ge 8 ]; do
    spans=$((spans + 1))
    [ $spans -le 10 ] || fail "$rate reads a second with a limit of 20, in the last of 10 spans"
    t0=$(date +%s%N)
    n0=$(stat_of 1 READS)
    sleep 4
    n1=$(stat_of 1 READS)
    t1=$(date +%s%N)
    rate=$(((n1 - n0) * 1000000000 / (t1 - t0)))
    echo "limit of 20: $rate reads a second"
    [ "$rate" -le 24 ] || fail "$rate reads a second with a limit of 20"
done
at_least "times held back" "$(stat_of 1 THROTTLED)" 1
ringctl disk set-limit guest1 vdb --iops none || fail "set-limit none"
within 30 says "spare"
is "the drive without a medium" "$(said spare)" 0

ringctl disk attach guest1 $Z/c.img,serial=late0 || fail "disk attach"
within 60 says attached
is "the attached disk" "$(said attached)" "$(image_hash $Z/c.img) late0"
ringctl disk attach guest1 $Z/d.img 2>/tmp/err && fail "a second disk went into one drive"
grep -q "spare_disks" /tmp/err || fail "refusal to attach: $(cat /tmp/err)"
pkill -KILL -x ringd
sleep 0.3
ringd --daemonize || fail "the next daemon does not start"
ringctl disk list
ringctl disk list | grep -q "c.img$" || fail "the attached disk is lost"
truncate -s 12M $Z/c.img
ringctl disk resize guest1 vdc || fail "disk resize to the file's size"
within 60 says written
is "what was written to it" "$(said written)" "$(image_hash $Z/c.img)"
ringctl disk detach guest1 vdc || fail "disk detach"
within 60 says detached
is "what is read of the drive" "$(said detached)" "0 bytes"
ringctl disk attach guest1 $Z/d.img,readonly=true || fail "another disk into the drive"
ringctl zone wait guest1 || fail "zone wait"
text | tail -25
is "the second disk in the drive" "$(said again)" "$(image_hash $Z/d.img)"
says refused || fail "a read-only image was written"
is "hash of the read-only image" "$(image_hash $Z/d.img)" "$hash_d"
says "guest saw errors" && fail "the guest saw errors"
clean $Z/root.img
kernel_is_quiet
