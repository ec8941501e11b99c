#!/bin/sh
# How guests end, well or badly, on the bare-metal test guest: what `zone run` reports; that a zone whose
# guest hangs, storms or faults endlessly stops immediately, that root is not slowed, and that everything is
# reclaimed (torture a10, d4, d5, d6, h2).
#@ on: a57
#@ all: max
#@ needs: el2
#@ boot: cpus
#@ timeout: 200
. ./lib.sh
pages() { ringctl info --json | tr -d ' ,' | sed -n 's/^"pages_used"://p'; }
free() { awk '/^HugePages_Free:/ { print $2 }' /proc/meminfo; }
mkdir -p "$Z"
cp /srv/zones/guest-test.bin "$Z" || fail "no guest-test.bin next to the zone files"
dd if=/dev/urandom of="$Z/scratch.img" bs=64k count=16 2>/dev/null
hash=$(image_hash "$Z/scratch.img")
daemon
spare=$(($(nproc) - 1))
cpus=$((spare > 2 ? 2 : spare))

# zone ENDING ON_REBOOT [ON_CRASH]
zone() {
    cat >"$Z/$1.toml" <<END
name = "$1"
cpus = $cpus
memory = "32M"
kernel = "guest-test.bin"
cmdline = "test=none end=$1"
on_reboot = "$2"
on_crash = "${3:-stop}"
[[disk]]
path = "scratch.img"
END
}

everything() { echo "$(nproc) CPUs, $(free) huge pages, $(pages) pages of EL2"; }

zone off stop
timeout 60 ringctl zone run "$Z/off.toml" || fail "zone run after SYSTEM_OFF ends with $?"
before=$(everything)

zone reset stop
timeout 60 ringctl zone run "$Z/reset.toml" && fail "zone run says that a guest ended well which wanted to start again"
is "what is left after reset" "$(everything)" "$before"

zone cpu-off stop
timeout 60 ringctl zone run "$Z/cpu-off.toml" && fail "zone run says that a guest without CPUs ended well"
is "what is left after cpu-off" "$(everything)" "$before"

zone reset restart
ringctl zone start "$Z/reset.toml" || fail "zone start"
says_within 30 end=reset 5 reset
ringctl zone stop reset || fail "zone stop of a zone that resets endlessly"
is "what is left after resets" "$(everything)" "$before"

# A reset while a vCPU that is still leaving has been turned on again: it does not enter the guest after the
# zone has ended.
# Reboots from the sixth on are delayed: six starts of the guest for each of the zone.
zone on-reset restart
for round in 1 2 3 4 5; do
    ringctl zone start "$Z/on-reset.toml" || fail "zone start in round $round"
    says_within 60 end=on-reset 6 on-reset
    ringctl zone stop on-reset || fail "zone stop of a zone whose vCPUs come and go"
done
is "what is left after resets beside CPU_ON" "$(everything)" "$before"

# A guest without memory at its exception vector: it has crashed, and on_crash decides what follows.
zone lost stop stop
timeout 60 ringctl zone run "$Z/lost.toml" >/tmp/out 2>&1 && fail "zone run says that a lost guest ended well"
grep -q crashed /tmp/out || fail "no word of a crash: $(cat /tmp/out)"
is "what is left after a crash" "$(everything)" "$before"
zone lost stop restart
ringctl zone start "$Z/lost.toml" || fail "zone start"
says_within 60 end=lost 3 lost
ringctl zone stop lost || fail "zone stop of a zone that crashes again and again"
is "what is left after crashes" "$(everything)" "$before"
zone lost stop hold
ringctl zone start "$Z/lost.toml" || fail "zone start"
within 60 zone_is lost crashed
ringctl zone pause lost 2>/dev/null && fail "a crashed zone was paused"
is "state" "$(zone_state lost)" crashed
ringctl zone stop lost || fail "zone stop of a zone held after a crash"
is "what is left after a held crash" "$(everything)" "$before"

for ending in hang storm; do
    zone "$ending" stop
    ringctl zone start "$Z/$ending.toml" || fail "zone start"
    says_within 20 "end=$ending" 1 "$ending"
    sleep 2
    # Root's shell goes on: 25 processes.
    start=$(date +%s)
    for _ in $(seq 25); do
        /bin/busybox true
    done
    took=$(($(date +%s) - start))
    [ "$took" -le 5 ] || fail "$ending: 25 processes in root take $took s"
    start=$(date +%s)
    timeout 30 ringctl zone stop "$ending" || fail "$ending: zone stop"
    took=$(($(date +%s) - start))
    [ "$took" -le 5 ] || fail "$ending: zone stop takes $took s"
    is "what is left after $ending" "$(everything)" "$before"
    echo "$ending: stopped"
done
is "hash of the image" "$(image_hash "$Z/scratch.img")" "$hash"
kernel_is_quiet
