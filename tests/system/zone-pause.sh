#!/bin/sh
# Pause and resume with two vCPUs and I/O in flight: the guest's clock stops, nothing is lost, also when one
# directly follows the other, and when the daemon is killed in between.
#@ needs: el2
#@ boot: cpus
#@ timeout: 300
. ./lib.sh
cat >/tmp/autorun <<'A'
verify() {
    until [ -e /tmp/stop ]; do
        fio --name=v --filename=/dev/vdb --size=4M --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=16 \
            --verify=crc32c --verify_fatal=1 --minimal >/tmp/fio.out 2>&1 || { cat /tmp/fio.out; return 1; }
    done
    echo "fio: verified"
}
tick() {
    read -r last _ </proc/uptime
    last=${last%.*}
    until [ -e /tmp/stop ]; do
        read -r now _ </proc/uptime
        now=${now%.*}
        [ $((now - last)) -le 4 ] || echo "jump: from $last to $now"
        last=$now
        echo "tick $now"
        sleep 0.5
    done
}
verify &
tick &
read -r line
touch /tmp/stop
wait
echo 3 >/proc/sys/vm/drop_caches
echo "hash: $(md5sum </dev/vdb | cut -d " " -f 1)"
dmesg | grep -E 'BUG:|WARNING:|Call trace:|rcu_.*stall|soft lockup|Oops|I/O error' && echo "kernel complained"
sync
poweroff
sleep 100
A
guest_disk $Z/root.img /tmp/autorun
truncate -s 4M $Z/data.img
zone_file guest1 2 256M root.img data.img
daemon
ringctl zone start $Z/guest1.toml || fail "zone start"
ticks() { ringctl zone console guest1 --dump | grep -c '^tick'; }
says_within 150 '^tick' 3
ringctl zone pause guest1 || fail "zone pause"
before=$(ticks)
sleep 6
is "ticks of a paused guest" "$(ticks)" "$before"
ringctl zone resume guest1 || fail "zone resume"
says_within 60 '^tick' $((before + 2))
for round in $(seq 10); do
    ringctl zone pause guest1 || fail "zone pause in round $round"
    is "state in round $round" "$(zone_state guest1)" paused
    ringctl zone resume guest1 || fail "zone resume in round $round"
done
before=$(ticks)
says_within 60 '^tick' $((before + 1))
ringctl zone pause guest1 || fail "zone pause"
pkill -KILL -x ringd
sleep 0.3
ringd --daemonize || fail "the next daemon does not start"
within 10 zone_is guest1 paused
before=$(ticks)
ringctl zone resume guest1 || fail "zone resume by the next daemon"
says_within 60 '^tick' $((before + 2))
tell_guest end
ringctl zone wait guest1 || fail "zone wait"
ringctl zone console guest1 --dump | tr -d '\r' >/tmp/text
tail -5 /tmp/text
grep -q "fio: verified" /tmp/text || fail "fio"
grep "^jump" /tmp/text && fail "the guest's clock went on while it was paused"
grep -q "kernel complained" /tmp/text && fail "the guest's kernel complained"
is "hash of the image" "$(image_hash $Z/data.img)" "$(sed -n 's/^hash: //p' /tmp/text)"
clean $Z/root.img
kernel_is_quiet
