#!/bin/bash
# `ringctl zone shutdown` and `zone reboot` with a stock Debian kernel: its gpio_keys reports the power key,
# and busybox's acpid obeys it. A guest that does not obey goes on, status 4. (The other
# tests' guests have Debian's cloud kernel, which has no driver for the key.)
#@ needs: el2
#@ timeout: 400
#@ tier: all
. tests/host/lib.sh
cache=${RINGVISOR_CACHE:-.cache}
kernel=$(ls -td "$cache"/kernel-generic-* | head -1)
[[ -d $kernel/guest ]] || fail "no generic kernel below $cache"
files=$work/files
mkdir "$files"
cp "$kernel/Image" "$files"
(cd "$kernel/guest" && find . | cpio -o -H newc --quiet | gzip -1) >"$files/modules.gz" || fail "no archive of modules"
cat >"$work/script" <<'S'
says() {
    tries=0
    until ringctl zone console k --dump | tr -d '\r' | grep -q "^$1"; do
        tries=$((tries + 1))
        [ $tries -lt 300 ] || { ringctl zone console k --dump; echo "FAIL: no $1"; exit 1; }
        sleep 0.5
    done
}
# Has a guest that has started obey the key, unless there is a file /deaf.
obey() {
    says "guest: shell in the initramfs"
    cat <<'T' | timeout 20 ringctl zone console k >/dev/null 2>&1
mkdir -p /etc/acpi/PWRF
printf '#!/bin/busybox sh\necho "key: pressed" >/dev/console\n[ -e /deaf ] || /bin/busybox poweroff -f\n' >/etc/acpi/PWRF/00000080
chmod +x /etc/acpi/PWRF/00000080
acpid -l /dev/null
echo key: $(sed -n 's/^N: Name="\(.*\)"/\1/p' /proc/bus/input/devices)
T
    says "key: gpio-keys"
}
is() { [ "$2" = "$3" ] || { cat /tmp/text; echo "FAIL: $1 is '$2', expected '$3'"; exit 1; }; }
has() { grep -q "$1" /tmp/text || { cat /tmp/text; echo "FAIL: no '$1'"; exit 1; }; }
cat /srv/zones/initrd.cpio.gz /mnt/files/modules.gz >/tmp/initrd
ringd --daemonize || exit 1
ringctl zone start --name k --cpus 1 --memory 256M --kernel /mnt/files/Image --initrd /tmp/initrd \
    --cmdline "console=ttyAMA0 quiet" || exit 1
obey
# Key, wait, start.
ringctl zone reboot k --timeout 60 2>/tmp/text
is "status of a reboot" $? 0
has "zone k powered off; starting it again"
obey
printf 'touch /deaf; echo key: "deaf"\n' | timeout 5 ringctl zone console k >/dev/null 2>&1
says "key: deaf"
ringctl zone shutdown k --timeout 5 2>/tmp/text
is "status of a shutdown without effect" $? 4
has "zone k still runs, 5 s after its power key was pressed"
says "key: pressed"
printf 'rm /deaf; echo key: "hears"\n' | timeout 5 ringctl zone console k >/dev/null 2>&1
says "key: hears"
ringctl zone shutdown k --timeout 60 2>/tmp/text
is "status of a shutdown" $? 0
has "zone k powered off"
echo "power key: obeyed"
S
"$HARNESS" exec --script "$work/script" --files "$files" --timeout 350 >"$work/out" 2>&1 </dev/null
status=$?
cat "$work/out"
is "status" $status 0
has "$work/out" "power key: obeyed"
exit 0
