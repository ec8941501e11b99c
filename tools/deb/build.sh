#!/bin/bash
# Makes the Debian packages of what `make` has built, in build/deb: on any architecture, with dpkg-deb alone.
#
#   SOURCE_DATE_EPOCH       the time of all files; that of the last commit if not given
#   DEBFULLNAME, DEBEMAIL   whose packages they are
set -euo pipefail
cd "$(dirname "$0")/../.."
out=build/deb
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
[[ $version ]] || { echo "deb: Cargo.toml has no version of the workspace" >&2; exit 1; }
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
maintainer="${DEBFULLNAME:-ringvisor} <${DEBEMAIL:-ringvisor@example.org}>"
umask 022

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"

# PACKAGE PART: what a part of tools/install/install.sh installs, as a package.
package() {
    local name=$1 part=$2 root=$work/$1 file
    local doc=$root/usr/share/doc/$name
    mkdir -p "$root/DEBIAN" "$doc"
    # dpkg's own directories have the usual rights whatever the umask was.
    chmod 755 "$root" "$root/DEBIAN"
    DESTDIR=$root PREFIX=/usr SYSCONFDIR=/etc tools/install/install.sh "$part"
    install -m 644 tools/deb/copyright "$doc/copyright"
    gzip -9n >"$doc/changelog.gz" <<T
ringvisor ($version) unstable; urgency=medium

  * What has changed is in the project's CHANGELOG.md.

 -- $maintainer  $(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")
T
    if [[ -f tools/deb/$name/lintian-overrides ]]; then
        install -D -m 644 "tools/deb/$name/lintian-overrides" "$root/usr/share/lintian/overrides/$name"
    fi
    # Every file of /etc is the administrator's.
    (cd "$root" && find etc -type f -printf '/%p\n' 2>/dev/null | LC_ALL=C sort) >"$root/DEBIAN/conffiles" || true
    [[ -s $root/DEBIAN/conffiles ]] || rm "$root/DEBIAN/conffiles"
    for file in preinst postinst prerm postrm; do
        if [[ -f tools/deb/$name/$file ]]; then
            sed "s|@UNITS@|$(basename -a tools/install/*.service | tr '\n' ' ' | sed 's/ $//')|" \
                "tools/deb/$name/$file" >"$root/DEBIAN/$file"
            chmod 755 "$root/DEBIAN/$file"
        fi
    done
    (cd "$root" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | LC_ALL=C sort -z | xargs -0 md5sum) \
        >"$root/DEBIAN/md5sums"
    # In KiB, as dpkg-gencontrol counts: files rounded up, 1 for everything else.
    local size
    size=$(find "$root" -path "$root/DEBIAN" -prune -o -printf '%y %s\n' |
        awk '{ total += $1 == "f" ? int(($2 + 1023) / 1024) : 1 } END { print total }')
    sed -e "s|@VERSION@|$version|g" -e "s|@MAINTAINER@|$maintainer|" -e "s|@SIZE@|$size|" \
        "tools/deb/$name/control" >"$root/DEBIAN/control"
    find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
    dpkg-deb --root-owner-group -Zxz --build "$root" "$out/${name}_${version}_arm64.deb" >&2
}

package ringvisor-tools tools
package ringvisor hypervisor
