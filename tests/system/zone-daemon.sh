#!/bin/sh
# The daemon is killed in the middle of a guest's I/O and started again, several times: the guest sees no error and reads
# what it wrote (torture c5).
#@ needs: el2
#@ timeout: 300
. ./lib.sh
cat >/tmp/autorun <<'S'
echo "io: begins"
fio --name=v --filename=/dev/vdb --size=32M --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=16 --loops=3 \
    --verify=crc32c --verify_fatal=1 --minimal >/tmp/fio.out 2>&1 && echo "fio: verified" || cat /tmp/fio.out
dmesg | grep -E 'I/O error|Buffer I/O' && echo "guest saw errors"
sync
poweroff
sleep 100
S
guest_disk $Z/root.img /tmp/autorun
truncate -s 32M $Z/data.img
zone_file guest1 1 256M root.img data.img
daemon
ringctl zone start $Z/guest1.toml || fail "zone start"
says() { ringctl zone console guest1 --dump | tr -d '\r' | grep -q "$1"; }
within 200 says '^io: begins'
for _ in 1 2 3 4 5; do
    sleep 0.7
    pkill -KILL ringd
    sleep 0.3
    ringd --daemonize || fail "the next daemon does not start"
    is "state" "$(zone_state guest1)" running
done
ringctl zone wait guest1 || fail "zone wait"
ringctl zone console guest1 --dump | tr -d '\r' | tail -20 >/tmp/text
cat /tmp/text
grep -q "fio: verified" /tmp/text || fail "fio"
grep -q "guest saw errors" /tmp/text && fail "the guest saw errors"
e2fsck -fn $Z/root.img >/dev/null || fail "the guest's file system is not clean"
