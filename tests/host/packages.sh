#!/bin/bash
# The Debian packages: what is in them, that dpkg can install, upgrade and purge them, that two builds are
# the same, and what lintian and systemd-analyze say, where they are installed.
#@ timeout: 300
. tests/host/lib.sh
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
SOURCE_DATE_EPOCH=1764540000 tools/deb/build.sh >"$work/out" 2>&1 || { cat "$work/out"; fail "tools/deb/build.sh"; }
tools=build/deb/ringvisor-tools_${version}_arm64.deb
hypervisor=build/deb/ringvisor_${version}_arm64.deb
sums=$(sha256sum "$tools" "$hypervisor")
# Also with another umask.
(umask 077 && SOURCE_DATE_EPOCH=1764540000 tools/deb/build.sh) >"$work/out" 2>&1 || { cat "$work/out"; fail "a second build"; }
is "a second build" "$(sha256sum "$tools" "$hypervisor")" "$sums"

for deb in "$tools" "$hypervisor"; do
    is "architecture of $deb" "$(dpkg-deb -f "$deb" Architecture)" arm64
    is "version of $deb" "$(dpkg-deb -f "$deb" Version)" "$version"
    dpkg-deb -c "$deb" >>"$work/list"
    dpkg-deb -R "$deb" "$work/$(dpkg-deb -f "$deb" Package)"
done
is "files that are not root's" "$(grep -v ' root/root ' "$work/list")" ""
# /etc/default/ringd would match .../ringd elsewhere: whole names.
awk '{ print substr($6, 2) }' "$work/list" >"$work/names"
for name in /usr/sbin/ringd /usr/sbin/ringctl /usr/lib/systemd/system/ringd.service \
    /usr/lib/sysusers.d/ringvisor.conf /usr/lib/tmpfiles.d/ringvisor.conf \
    /etc/default/grub.d/ringvisor.cfg /etc/default/ringd /etc/ringvisor/zones/ \
    /usr/share/bash-completion/completions/ringctl /usr/share/zsh/vendor-completions/_ringctl \
    /usr/share/fish/vendor_completions.d/ringctl.fish /usr/share/man/man8/ringd.8.gz \
    /usr/share/man/man8/ringctl-zone-start.8.gz /usr/lib/ringvisor/ringvisor.bin \
    /usr/share/ringvisor/boards/qemu-virt/board.toml /usr/share/ringvisor/boards/xlnx-versal-virt/board.toml \
    /usr/share/doc/ringvisor/examples/qemu-virt/linux.toml; do
    grep -qxF "$name" "$work/names" || fail "no package has $name"
done
root=$work/ringvisor-tools
is "conffiles" "$(cat "$root/DEBIAN/conffiles")" "/etc/default/grub.d/ringvisor.cfg
/etc/default/ringd"
(cd "$root" && md5sum --quiet -c DEBIAN/md5sums) || fail "md5sums"
for program in ringd ringctl; do
    # ELF, 64 bits, little-endian, AArch64.
    is "$program" "$(od -An -tx1 -N 20 "$root/usr/sbin/$program" | tr -d ' \n' | sed 's/^\(.\{12\}\).*\(....\)$/\1 \2/')" \
        "7f454c460201 b700"
done
cmp build/ringvisor.bin "$work/ringvisor/usr/lib/ringvisor/ringvisor.bin" || fail "the hypervisor's image is another"
! grep -r '@' "$root/usr/lib/systemd/system" || fail "a unit has a place that was not filled in"
for script in postinst prerm postrm; do
    sh -n "$root/DEBIAN/$script" || fail "$script"
done
! dpkg-deb -R "$tools" "$work/again" 2>&1 | grep . || fail "dpkg-deb warns"

# The kernel's parameters, as update-grub reads them.
parameters=$(GRUB_CMDLINE_LINUX=quiet && . "$root/etc/default/grub.d/ringvisor.cfg" && echo "$GRUB_CMDLINE_LINUX")
pages=$(awk '/^MemTotal:/ { printf "%d", $2 / 2 / 2048 }' /proc/meminfo)
is "kernel parameters" "$parameters" "quiet hugepagesz=2M hugepages=$pages"

# dpkg itself, in a directory, without the scripts: they need the other machine's programs.
database=$work/machine
mkdir -p "$database/var/lib/dpkg/info" "$database/var/lib/dpkg/updates"
touch "$database/var/lib/dpkg/status"
for script in "$root" "$work/ringvisor"; do
    rm -f "$script"/DEBIAN/p{ostinst,rerm,ostrm}
    dpkg-deb --root-owner-group -b "$script" "$script.deb" >/dev/null || fail "dpkg-deb -b"
done
if ((EUID == 0)); then
    install=(dpkg --root="$database" --force-architecture --force-depends --force-script-chrootless --no-triggers)
    "${install[@]}" -i "$work/ringvisor-tools.deb" "$work/ringvisor.deb" >"$work/out" 2>&1 ||
        { cat "$work/out"; fail "dpkg -i"; }
    echo 'RINGD_OPTIONS="--poll 0"' >"$database/etc/default/ringd"
    "${install[@]}" --force-confold -i "$work/ringvisor-tools.deb" >"$work/out" 2>&1 || { cat "$work/out"; fail "a second dpkg -i"; }
    grep -q 'poll 0' "$database/etc/default/ringd" || fail "an upgrade has replaced an administrator's file"
    "${install[@]}" --purge ringvisor-tools ringvisor >"$work/out" 2>&1 || { cat "$work/out"; fail "dpkg --purge"; }
    is "what is left of a purged package" "$(find "$database" -path "*/var/lib/dpkg" -prune -o -type f -print)" ""
fi

if command -v lintian >/dev/null; then
    lintian --allow-root --fail-on error,warning "$tools" "$hypervisor" >"$work/out" 2>&1 || { cat "$work/out"; fail "lintian"; }
fi
if command -v systemd-analyze >/dev/null; then
    # The programs are another machine's and lie elsewhere: any that can be executed stands for them.
    mkdir "$work/units"
    for unit in "$root"/usr/lib/systemd/system/*.service; do
        sed 's|/usr/sbin/ring[a-z]*|/bin/true|; /^Documentation=man:/d' "$unit" >"$work/units/$(basename "$unit")"
    done
    SYSTEMD_UNIT_PATH=$work/units: systemd-analyze verify "$work/units"/*.service >"$work/out" 2>&1
    status=$?
    ! grep -E 'ring(d|visor)' "$work/out" || fail "systemd-analyze verify ends with $status"
    # Control: a mistake is found.
    sed 's/^KillMode=.*/KillMode=some/' "$work/units/ringd.service" >"$work/units/ringd-wrong.service"
    SYSTEMD_UNIT_PATH=$work/units: systemd-analyze verify "$work/units/ringd-wrong.service" >"$work/out" 2>&1
    has "$work/out" "kill mode specification"
fi

# `make install` for everybody else: another prefix, and paths that make no sense.
DESTDIR=$work/local PREFIX=/opt/ringvisor tools/install/install.sh || fail "install.sh"
grep -q '^ExecStart=/opt/ringvisor/sbin/ringd ' "$work/local/etc/systemd/system/ringd.service" || fail "a unit below /opt"
PREFIX=opt tools/install/install.sh >"$work/out" 2>&1
is "status of a relative prefix" $? 2
has "$work/out" "PREFIX and SYSCONFDIR must begin with /: they are 'opt'"
exit 0
