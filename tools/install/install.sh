#!/bin/bash
# Installs what `make` has built: `make install` calls it, and tools/deb/build.sh for each package.
#
#   tools/install/install.sh [tools] [hypervisor]     without arguments: both
#
#   DESTDIR     put before each path; empty for this machine
#   PREFIX      /usr/local; with /usr the units go where packages have them
#   SYSCONFDIR  /etc
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
destination=${DESTDIR:-}
prefix=${PREFIX:-/usr/local}
sysconfdir=${SYSCONFDIR:-/etc}
[[ $prefix == /* && $sysconfdir == /* ]] ||
    { echo "install: PREFIX and SYSCONFDIR must begin with /: they are '$prefix' and '$sysconfdir'" >&2; exit 2; }
[[ -z $destination || $destination == /* ]] ||
    { echo "install: DESTDIR must begin with /: it is '$destination'" >&2; exit 2; }

# FILE PATH [MODE]: installs a file at a path below DESTDIR.
put() {
    [[ -f $1 ]] || { echo "install: there is no $1: run make first" >&2; exit 1; }
    install -D -m "${3:-644}" "$1" "$destination$2"
}

tools() {
    local programs=$target/aarch64-unknown-linux-musl/daemon work unit file
    work=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" RETURN
    local sysroot host
    sysroot=$(rustc --print sysroot)
    host=$(rustc -vV | sed -n 's/^host: //p')
    for file in ringd ringctl; do
        [[ -f $programs/$file ]] || { echo "install: there is no $programs/$file: run make first" >&2; exit 1; }
        "$sysroot/lib/rustlib/$host/bin/llvm-objcopy" --strip-all "$programs/$file" "$work/$file"
        put "$work/$file" "$prefix/sbin/$file" 755
    done
    local units=$prefix/lib/systemd/system
    # systemd does not look below other prefixes.
    [[ $prefix == /usr || $prefix == /usr/local ]] || units=$sysconfdir/systemd/system
    for file in tools/install/*.service; do
        unit=$(basename "$file")
        sed "s|@SBIN@|$prefix/sbin|" "$file" >"$work/$unit"
        put "$work/$unit" "$units/$unit"
    done
    put tools/install/sysusers.conf "$prefix/lib/sysusers.d/ringvisor.conf"
    put tools/install/tmpfiles.conf "$prefix/lib/tmpfiles.d/ringvisor.conf"
    put tools/install/grub.cfg "$sysconfdir/default/grub.d/ringvisor.cfg"
    put tools/install/ringd.default "$sysconfdir/default/ringd"
    install -d -m 755 "$destination$sysconfdir/ringvisor/zones"
    "$target/debug/manual" "$work/generated"
    while IFS= read -r -d '' file; do
        if [[ $file == *.8 ]]; then
            gzip -9n "$work/generated/$file"
            file+=.gz
        fi
        put "$work/generated/$file" "$prefix/$file"
    done < <(cd "$work/generated" && find share -type f -print0)
}

hypervisor() {
    local board file
    put build/ringvisor.bin "$prefix/lib/ringvisor/ringvisor.bin"
    # platform/default leads to one of the others.
    for board in platform/*/; do
        board=$(basename "$board")
        [[ -L platform/$board ]] && continue
        put "platform/$board/board.toml" "$prefix/share/ringvisor/boards/$board/board.toml"
        for file in "platform/$board/zones/"*.toml; do
            put "$file" "$prefix/share/doc/ringvisor/examples/$board/$(basename "$file")"
        done
    done
}

parts=("$@")
((${#parts[@]})) || parts=(tools hypervisor)
for part in "${parts[@]}"; do
    case $part in
    tools | hypervisor) "$part" ;;
    *) echo "install: there is no part '$part': expected tools or hypervisor" >&2; exit 2 ;;
    esac
done
