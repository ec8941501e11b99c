#!/bin/sh
# `ringctl zone shutdown` and `zone reboot` with a stock Debian guest: its kernel's gpio_keys reports the
# power key, and acpid obeys it. A guest that does not obey goes on, status 4, until it is forced to end.
#@ needs: el2
#@ on: devices-generic-kpti
#@ all: generic
#@ timeout: 400
. ./lib.sh
cat >/tmp/autorun <<'S'
key=$(sed -n 's/^N: Name="\(gpio-keys\)"/\1/p' /proc/bus/input/devices)
echo "key: input device ${key:-none}"
mkdir -p /etc/acpi/PWRF
printf '#!/bin/sh\necho "key: pressed" >/dev/ttyAMA0\n[ -e /deaf ] || poweroff\n' >/etc/acpi/PWRF/00000080
chmod +x /etc/acpi/PWRF/00000080
busybox acpid -f -l /dev/null &
echo "key: ready"
while read -r line; do
    [ "$line" = deaf ] && touch /deaf && echo "key: deaf"
done
S
guest_disk $Z/root.img /tmp/autorun
zone_file guest1 1 256M root.img
daemon
ringctl zone start $Z/guest1.toml || fail "zone start"
says_within 200 '^key: ready'
guest_says '^key: input device gpio-keys' || fail "no input device: $(ringctl zone console guest1 --dump | grep '^key')"

# Key, wait, start.
ringctl zone reboot guest1 --timeout 100 2>/tmp/text || { cat /tmp/text; fail "zone reboot ends with $?"; }
cat /tmp/text
grep -q 'zone guest1 powered off; starting it again' /tmp/text || fail "another message"
zone_is guest1 running || fail "the zone that was started again is $(zone_state guest1)"
says_within 200 '^key: ready'

# One that does not react still runs, until it is forced to end.
tell_guest deaf
says_within 60 '^key: deaf'
ringctl zone shutdown guest1 --timeout 5 2>/tmp/text
is "status of a shutdown without effect" $? 4
cat /tmp/text
grep -q 'zone guest1 still runs, 5 s after its power key was pressed' /tmp/text || fail "another message"
says_within 60 '^key: pressed'
zone_is guest1 running || fail "the guest that did not react is $(zone_state guest1)"
ringctl zone shutdown guest1 --timeout 1 --force 2>/tmp/text
is "status of a forced shutdown" $? 1
grep -q 'zone guest1 did not end within 1 s: stopping it' /tmp/text || { cat /tmp/text; fail "another message"; }
zone_is guest1 stopped || fail "the zone that was forced to end is $(zone_state guest1)"

# And one that reacts ends cleanly.
ringctl zone start $Z/guest1.toml || fail "zone start"
debugfs -R "stat /deaf" $Z/root.img 2>/dev/null | grep -q Inode && {
    # The disk remembers.
    ringctl zone stop guest1
    guest_disk $Z/root.img /tmp/autorun
    ringctl zone start $Z/guest1.toml || fail "zone start"
}
says_within 200 '^key: ready'
ringctl zone shutdown guest1 --timeout 100 2>/tmp/text || { cat /tmp/text; fail "zone shutdown ends with $?"; }
grep -q 'zone guest1 powered off' /tmp/text || { cat /tmp/text; fail "another message"; }
kernel_is_quiet
