#!/bin/bash
# Small programs find themselves, the device tree and the initial RAM disk at the same places in a zone as
# under QEMU 10's `-kernel`: Image files, flat binaries, ELF files, and what is compressed.
#@ needs: el2
#@ timeout: 600
#@ tier: all
. tests/host/lib.sh
qemu=$("$(dirname "$HARNESS")/image" --project "$PROJECT" qemu10) || fail "no QEMU 10"
objcopy=$(echo "$(rustc --print sysroot)"/lib/rustlib/*/bin/llvm-objcopy)
elf=${CARGO_TARGET_DIR:-target}/aarch64-unknown-none-softfloat/release/guest-test
image=build/guest-test.bin
files=$work/files
mkdir "$files"

# poke FILE OFFSET BYTES: overwrites bytes
poke() { printf "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none; }
# word NUMBER: 32 bits, little-endian
word() { printf "$(printf '\\x%02x' $(($1 & 255)) $(($1 >> 8 & 255)) $(($1 >> 16 & 255)) $(($1 >> 24 & 255)))"; }
# zboot KIND: as drivers/firmware/efi/libstub/zboot-header.S, of what is read
zboot() {
    cat >"$work/payload"
    printf 'MZ\0\0zimg'
    word 256
    word "$(stat -c %s "$work/payload")"
    printf '\0\0\0\0\0\0\0\0%s' "$1"
    head -c $((32 - ${#1})) /dev/zero
    # Without this QEMU does not take it for one.
    printf '\xcd\x23\x82\x81'
    head -c 196 /dev/zero
    cat "$work/payload"
}

cp "$image" "$files/image"
gzip -c "$image" >"$files/gzip"
gzip -c "$image" | zboot gzip >"$files/zboot-gzip"
zstd -qc "$image" | zboot zstd22 >"$files/zboot-zstd"
lz4 -lqc "$image" | zboot lz4 >"$files/zboot-lz4"
xz -c --check=crc32 --lzma2=dict=128MiB "$image" | zboot xzkern >"$files/zboot-xz"
# NuttX's header has this text offset.
cp "$image" "$files/image-at"
poke "$files/image-at" 8 '\0\0\x48\0'
cp "$image" "$files/image-old"
poke "$files/image-old" 16 '\0\0\0\0'
cp "$image" "$files/flat"
poke "$files/flat" 56 '\0\0\0\0'
cp "$files/flat" "$files/flat-load"
for address in 0x40000000 0x40080000 0x40100000 0x40280000; do
    "$objcopy" -S --change-section-lma="*+$address" "$elf" "$files/elf-$address" || fail "llvm-objcopy"
done
head -c 1500000 /dev/urandom >"$work/initrd"
cp "$work/initrd" "$files/"

# reference NAME OPTION...: the line of the program under QEMU
reference() {
    echo "$1: $(timeout 60 "$qemu" -M virt,gic-version=3 -cpu cortex-a57 -m "$memory" -nographic -nic none "${@:2}" \
        </dev/null 2>/dev/null | tr -d '\r' | grep -m1 "^guest-test: at")"
}
for memory in 256M 48M; do
    for kernel in image gzip zboot-gzip image-at image-old flat elf-0x40100000 elf-0x40280000; do
        reference "$kernel $memory" -kernel "$files/$kernel" -append test=none
    done
    reference "flat-load $memory" -device "loader,file=$files/flat-load,addr=0x40300000,cpu-num=0"
    reference "initrd $memory" -kernel "$files/image" -append test=none -initrd "$work/initrd"
done >"$work/expected"
# QEMU 10.0 has no zstd, lz4 and xz: they are the same program. It starts these ELF files without a tree.
for memory in 256M 48M; do
    for kernel in zstd lz4 xz; do sed -n "s/^image $memory/zboot-$kernel $memory/p" "$work/expected"; done
    behind=$([[ $memory = 256M ]] && echo 0x48000000 || echo 0x41800000)
    echo "elf-0x40000000 $memory: guest-test: at 0x40000000, device tree at $behind, initial RAM disk at None"
    echo "elf-0x40080000 $memory: guest-test: at 0x40080000, device tree at 0x40000000, initial RAM disk at None"
done >"$work/ours"
cat "$work/ours" >>"$work/expected"

cat >"$work/script" <<'S'
ringd --daemonize || exit 1
cd /mnt/files || exit 1
# places NAME OPTION...: the line of the program in a zone
places() {
    name=$1
    shift
    ringctl zone run --name k --cpus 1 --memory "$memory" --cmdline test=none "$@" >/tmp/out 2>&1 </dev/null
    echo "place $name $memory: $(tr -d '\r' </tmp/out | grep '^guest-test: at' || tail -n 3 /tmp/out)"
}
for memory in 256M 48M; do
    for kernel in image* gzip zboot-* flat elf-*; do
        places "$kernel" --kernel "$kernel"
    done
    places flat-load --kernel flat-load --load 0x40300000
    places initrd --kernel image --initrd initrd
done
S
"$HARNESS" exec --script "$work/script" --files "$files" --timeout 500 >"$work/out" 2>&1 </dev/null
is "status" $? 0
tr -d '\r' <"$work/out" | sed -n 's/^place //p' | sort >"$work/actual"
sort "$work/expected" >"$work/sorted"
diff "$work/sorted" "$work/actual" || { tail -n 20 "$work/out"; fail "other places than QEMU's"; }
is "programs" "$(grep -c 'guest-test: at 0x4' "$work/actual")" 30
exit 0
