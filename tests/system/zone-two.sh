#!/bin/sh
# Two zones at once, each with disks of its own and I/O on them: neither sees the other's data.
#@ needs: el2
#@ timeout: 300
#@ tier: all
. ./lib.sh
cat >/tmp/autorun <<'S'
echo "data: $(md5sum </dev/vdb | cut -d ' ' -f 1)"
fio --name=v --filename=/dev/vdb --size=16M --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=16 \
    --verify=crc32c --verify_fatal=1 --minimal >/tmp/fio.out 2>&1 && echo "fio: verified" || cat /tmp/fio.out
echo "data-after: $(md5sum </dev/vdb | cut -d ' ' -f 1)"
sync
poweroff
sleep 100
S
daemon
for zone in one two; do
    guest_disk $Z/$zone-root.img /tmp/autorun
    dd if=/dev/urandom of=$Z/$zone.img bs=1M count=16 2>/dev/null
    md5sum <$Z/$zone.img | cut -d ' ' -f 1 >/tmp/$zone.hash
    zone_file $zone 1 256M $zone-root.img $zone.img
    ringctl zone start $Z/$zone.toml || fail "zone $zone does not start"
done
is "first zone" "$(zone_state one)" running
is "second zone" "$(zone_state two)" running
for zone in one two; do
    ringctl zone wait $zone || fail "zone $zone"
    ringctl zone console $zone --dump | tr -d '\r' >/tmp/text
    cat /tmp/text
    grep -qF "data: $(cat /tmp/$zone.hash)" /tmp/text || fail "zone $zone read other data"
    grep -q "fio: verified" /tmp/text || fail "fio in zone $zone"
    is "data of zone $zone" "$(md5sum <$Z/$zone.img | cut -d ' ' -f 1)" "$(sed -n 's/^data-after: //p' /tmp/text)"
    clean $Z/$zone-root.img
done
kernel_is_quiet
