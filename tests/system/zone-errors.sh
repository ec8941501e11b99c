#!/bin/sh
# Wrong requests: each is refused with a message that names the mistake, and changes nothing.
#@ needs: el2
#@ tier: all
#@ timeout: 300
. ./lib.sh
pages() { ringctl info --json | tr -d ' ,' | sed -n 's/^"pages_used"://p'; }
free() { awk '/^HugePages_Free:/ { print $2 }' /proc/meminfo; }
mkdir -p $Z
cd $Z || exit 1
dd if=/dev/zero of=odd.img bs=1000 count=3 2>/dev/null
truncate -s 1M disk.img
: >empty
truncate -s 65M large
daemon
pages_before=$(pages)
free_before=$(free)
cpus=$(nproc)

# refused WORD...: the zone file on standard input is refused with a message that has each word
refused() {
    cat >bad.toml
    timeout 90 ringctl zone start bad.toml >out 2>&1 && fail "accepted: $(cat bad.toml)"
    [ -s out ] || fail "no message for: $(cat bad.toml)"
    for word in "$@"; do
        grep -qF -- "$word" out || fail "no '$word' in: $(cat out)"
    done
    echo "ok: $(cat out)"
    is "CPUs" "$(nproc)" "$cpus"
    is "huge pages" "$(free)" "$free_before"
    is "EL2's pages" "$(pages)" "$pages_before"
}
good() { printf 'name = "bad"\ncpus = 1\nmemory = "64M"\nkernel = "/srv/zones/Image"\n'; }

echo 'this is no TOML' | refused bad.toml || exit 1
good | sed /cpus/d | refused bad.toml cpus || exit 1
good | sed /kernel/d | refused bad.toml kernel || exit 1
good | sed 's/64M/63.5Q/' | refused bad.toml memory 63.5Q || exit 1
good | sed 's/64M/3M/' | refused bad.toml memory || exit 1
good | sed 's/64M/64G/' | refused memory 'huge pages' || exit 1
{ good; echo 'colour = "red"'; } | refused bad.toml colour red || exit 1
{ good; echo 'on_reboot = "explode"'; } | refused bad.toml on_reboot explode || exit 1
good | sed 's/cpus = 1/cpus = 0/' | refused bad.toml cpus || exit 1
good | sed 's/cpus = 1/cpus = [0]/' | refused cpus 0 || exit 1
good | sed 's/cpus = 1/cpus = [77]/' | refused cpus 77 || exit 1
good | sed 's/cpus = 1/cpus = 500/' | refused cpus 500 || exit 1
good | sed 's#/srv/zones/Image#nosuch#' | refused kernel nosuch || exit 1
good | sed 's#/srv/zones/Image#empty#' | refused kernel empty || exit 1
good | sed 's#/srv/zones/Image#large#' | refused kernel large || exit 1
{ good; echo 'initrd = "nosuch"'; } | refused initrd nosuch || exit 1
{ good; printf '[[disk]]\npath = "nosuch.img"\n'; } | refused nosuch.img || exit 1
{ good; printf '[[disk]]\npath = "odd.img"\n'; } | refused odd.img 512 || exit 1
{ good; printf '[[disk]]\npath = "disk.img"\nengine = "steam"\n'; } | refused engine steam || exit 1
timeout 20 ringctl zone start nosuch.toml >out 2>&1 && fail "a missing file was accepted"
grep -q nosuch.toml out || fail "unclear: $(cat out)"

# A CPU that is another zone's.
zone_file busy "[$((cpus - 1))]" 64M disk.img
ringctl zone start busy.toml || fail "zone start"
good | sed "s/cpus = 1/cpus = [$((cpus - 1))]/" >bad.toml
timeout 20 ringctl zone start bad.toml >out 2>&1 && fail "a busy CPU was given twice"
grep -q $((cpus - 1)) out || fail "unclear: $(cat out)"
ringctl zone stop busy || fail "zone stop"

# No huge pages, and root has no memory for them; as many as possible are added.
memory=$(awk '/^MemTotal:/ { print int($2 / 1024 / 2) * 2 }' /proc/meminfo)
good | sed "s/64M/${memory}M/" | refused huge "$memory" || exit 1
total=$(cat /proc/sys/vm/nr_hugepages)
echo 8 >/proc/sys/vm/nr_hugepages
good | sed 's/"bad"/"good"/' >good.toml
ringctl zone start good.toml || fail "no huge pages were added"
ringctl zone stop good
is "huge pages after a zone that added some" "$(cat /proc/sys/vm/nr_hugepages)" 8
echo "$total" >/proc/sys/vm/nr_hugepages

# A second daemon.
timeout 20 ringd >out 2>&1 && fail "a second daemon runs"
[ -s out ] || fail "the second daemon says nothing"
cat out
ringctl zone list >/dev/null || fail "the first daemon is gone"
exit 0
