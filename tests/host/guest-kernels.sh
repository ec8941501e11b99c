#!/bin/bash
# A zone boots Debian's kernel packed as an EFI-zboot program with zstd and as a gzip file; `earlycon` works.
# (Debian's own vmlinuz for arm64 is not packed: it is the Image that all other tests boot.)
#@ needs: el2
#@ timeout: 400
#@ tier: all
. tests/host/lib.sh
cache=${RINGVISOR_CACHE:-.cache}
image=$(ls -t "$cache"/kernel-cloud-*/Image | head -1)
[[ -n $image ]] || fail "no cloud kernel below $cache"
files=$work/files
mkdir "$files"
# word NUMBER: 32 bits, little-endian
word() { printf "$(printf '\\x%02x' $(($1 & 255)) $(($1 >> 8 & 255)) $(($1 >> 16 & 255)) $(($1 >> 24 & 255)))"; }
# drivers/firmware/efi/libstub/zboot-header.S: magic, offset and size of the payload, name of the compression
zstd -q -3 -c "$image" >"$work/payload"
{
    printf 'MZ\0\0zimg'
    word 256
    word "$(stat -c %s "$work/payload")"
    printf '\0\0\0\0\0\0\0\0zstd'
    head -c 228 /dev/zero
    cat "$work/payload"
} >"$files/vmlinuz"
gzip -1 -c "$image" >"$files/Image.gz"
cat >"$work/script" <<'S2'
ringd --daemonize || exit 1
for kernel in vmlinuz Image.gz; do
    ringctl zone start --name k --cpus 1 --memory 256M --kernel /mnt/files/$kernel \
        --initrd /srv/zones/initrd.cpio.gz --cmdline "console=ttyAMA0 earlycon" || exit 1
    tries=0
    until ringctl zone console k --dump | grep -q "shell in the initramfs"; do
        tries=$((tries + 1))
        [ $tries -lt 300 ] || { ringctl zone console k --dump; exit 1; }
        sleep 0.5
    done
    ringctl zone console k --dump | grep -E "Linux version|bootconsole" | sed "s/^/$kernel: /"
    ringctl zone stop k || exit 1
done
S2
"$HARNESS" exec --script "$work/script" --files "$files" --timeout 350 >"$work/out" 2>&1 </dev/null
status=$?
cat "$work/out"
is "status" $status 0
for kernel in vmlinuz Image.gz; do
    grep -qE "^$kernel: .*Linux version" "$work/out" || fail "$kernel did not boot"
    grep -qE "^$kernel: .*bootconsole \[pl11\] enabled" "$work/out" || fail "$kernel: no earlycon"
done
exit 0
