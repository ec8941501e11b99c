#!/bin/sh
# The guest's console both ways: what is typed reaches a shell, its answer comes back, and scroll-back shows
# both later.
#@ needs: el2
#@ tier: all
#@ timeout: 300
. ./lib.sh
guest_disk $Z/root.img
zone_file guest1 1 256M root.img
daemon
ringctl zone start $Z/guest1.toml || fail "zone start"
says() { ringctl zone console guest1 --dump | tr -d '\r' | grep -q "$1"; }
within 200 says 'root@guest'
mkfifo /tmp/typed
ringctl zone console guest1 </tmp/typed >/tmp/followed 2>&1 &
follower=$!
exec 3>/tmp/typed
printf 'echo $((6 * 7))-answered\r' >&3
within 60 says '^42-answered'
grep -q '42-answered' /tmp/followed || fail "a follower of the console does not see the answer"
# A burst longer than any FIFO arrives completely.
line=$(head -c 600 /dev/zero | tr '\0' x)
printf 'echo %s | wc -c\r' "$line" >&3
within 60 says '^601'
exec 3>&-
kill $follower
printf 'poweroff\r' | timeout 60 ringctl zone console guest1 >/dev/null 2>&1
timeout 60 ringctl zone wait guest1 || fail "zone wait"
clean $Z/root.img
