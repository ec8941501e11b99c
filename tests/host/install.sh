#!/bin/bash
# The package of the tools in root, which has no systemd: unpacked by busybox's dpkg-deb. A zone is checked,
# defined and enabled, and starts and ends with the commands of the units; the daemon takes over from itself,
# as the package's script has it do.
#@ needs: el2
#@ tier: all
#@ timeout: 500
. tests/host/lib.sh
tools/deb/build.sh >"$work/out" 2>&1 || { cat "$work/out"; fail "tools/deb/build.sh"; }
mkdir "$work/files"
cp build/deb/ringvisor-tools_*.deb "$work/files/tools.deb"
cat >"$work/script" <<'S'
fail() { echo "FAIL: $*"; exit 1; }
# Not the programs that the harness brought.
rm -f /usr/local/bin/ringd /usr/local/bin/ringctl
hash -r
mkdir -p /tmp/package && busybox dpkg-deb -x /mnt/files/tools.deb /tmp/package || fail "dpkg-deb"
cp -a /tmp/package/usr/sbin/. /usr/sbin/
cp -a /tmp/package/etc/. /etc/
export PATH=/usr/sbin:$PATH
# As tmpfiles does, and then as the units: their own lines.
mkdir -p -m 711 /run/ringd
units=/tmp/package/usr/lib/systemd/system
line() { sed -n "s/^$2=//p" "$units/$1.service" | sed 's/ \$RINGD_OPTIONS//'; }
$(line ringd ExecCondition) || fail "no hypervisor is found"
$(line ringd ExecStart) >/tmp/ringd.log 2>&1 &
tries=0
until [ "$(cat /run/ringd/state 2>/dev/null)" = ready ]; do
    tries=$((tries + 1))
    [ $tries -lt 300 ] || { cat /tmp/ringd.log; fail "ringd does not serve"; }
    sleep 0.1
done
ringctl check /srv/zones/linux.toml || fail "check"
ringctl zone define /srv/zones/linux.toml || fail "define"
ringctl zone enable guest1 || fail "enable"
sed 's/guest1/guest2/; s/memory = .*/memroy = "64M"/' /srv/zones/linux.toml >/srv/zones/wrong.toml
ringctl check /srv/zones/wrong.toml >/tmp/problems
[ $? = 3 ] || fail "status of a check with problems"
grep -q 'wrong.toml:[0-9]*: unknown key memroy' /tmp/problems || { cat /tmp/problems; fail "check"; }
$(line ringvisor-boot ExecStart) || fail "start --boot"
ringctl zone list
ringctl zone list | grep -q '^guest1 .* running ' || fail "the zone does not run"
ringctl upgrade || fail "upgrade"
ringctl zone list | grep -q '^guest1 .* running ' || fail "the zone does not run after an upgrade"
$(line ringvisor-zones ExecStop)
echo "status of the end: $?"
ringctl zone list
ringctl zone list | grep -q '^guest1 .* running ' && fail "the zone still runs"
kill "$(cat /run/ringd/supervisor)"
wait
ringctl zone list
[ $? = 7 ] || fail "status without a daemon"
exit 0
S
"$HARNESS" exec --script "$work/script" --files "$work/files" --timeout 400 >"$work/out" 2>&1 </dev/null ||
    { cat "$work/out"; fail "status $?"; }
grep -E '^(guest1|status)' "$work/out"
exit 0
