#!/bin/sh
# A zone described by options alone; `zone run` of a guest that was stopped returns a status other than 0.
#@ needs: el2
#@ tier: all
#@ timeout: 300
. ./lib.sh
echo poweroff >/tmp/autorun
guest_disk $Z/root.img /tmp/autorun
daemon
ringctl zone run --cpus 1 --memory 256M --kernel /srv/zones/Image --initrd /srv/zones/initrd.cpio.gz \
    --disk $Z/root.img --cmdline "console=ttyAMA0 root=/dev/vda rw quiet" >/tmp/console 2>&1 </dev/null ||
    { cat /tmp/console; fail "zone run by options"; }
clean $Z/root.img

# A guest that does not power off by itself: its kernel panics and waits. `zone run` ends when the zone is
# stopped.
zone_file guest1 1 256M
sed -i 's/^cmdline.*/cmdline = "console=ttyAMA0 rdinit=\/nonexistent root=\/dev\/nonexistent"/' $Z/guest1.toml
timeout 200 ringctl zone run $Z/guest1.toml >/tmp/console 2>&1 </dev/null &
run=$!
panicked() { grep -q "Kernel panic" /tmp/console; }
within 150 panicked
is "state" "$(zone_state guest1)" running
ringctl zone stop guest1 || fail "zone stop"
wait $run
status=$?
tail -3 /tmp/console
[ $status -ne 0 ] || fail "status 0 of a guest that was stopped"
[ $status -ne 124 ] || fail "zone run did not end"
exit 0
