#!/bin/bash
# Installs what the build and the tests need and this machine lacks: Debian packages, Rust, its targets and
# components. Does nothing, quickly, when all is there. Packages need root: as another user sudo is tried, and
# where that is not possible the exact command is printed.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$HOME/.cargo/bin:$PATH:/usr/sbin:/sbin"

# program or file -> Debian package that has it
need=(
    qemu-system-aarch64:qemu-system-arm
    qemu-nbd:qemu-utils
    gdb-multiarch:gdb-multiarch
    dtc:device-tree-compiler
    cpio:cpio
    zstd:zstd
    xz:xz-utils
    mke2fs:e2fsprogs
    depmod:kmod
    expect:expect
    setpriv:util-linux
    tar:tar
    curl:curl
    ssh-keygen:openssh-client
    nft:nftables
    dnsmasq:dnsmasq-base
    passt:passt
    ip:iproute2
    cc:gcc
    c++:g++
    /usr/include/stdio.h:libc6-dev
)
packages=()
for entry in "${need[@]}"; do
    what=${entry%%:*}
    if ! { [[ $what == /* && -e $what ]] || command -v "$what" >/dev/null; }; then
        packages+=("${entry#*:}")
    fi
done

if ((${#packages[@]})); then
    install="apt-get install -y --no-install-recommends ${packages[*]}"
    if ! command -v apt-get >/dev/null; then
        echo "setup: please install: ${packages[*]} (this machine has no apt-get)" >&2
        exit 1
    fi
    if ((EUID == 0)); then
        as_root=(env DEBIAN_FRONTEND=noninteractive)
    elif sudo -n true 2>/dev/null || { [[ -t 0 ]] && command -v sudo >/dev/null; }; then
        as_root=(sudo DEBIAN_FRONTEND=noninteractive)
    else
        echo "setup: packages are missing; please run as root:" >&2
        echo "    apt-get update && $install" >&2
        exit 1
    fi
    echo "==> installing Debian packages: ${packages[*]}" >&2
    # Lists may be missing, or so old that the mirror no longer has what they name.
    "${as_root[@]}" $install </dev/null >&2 ||
        { "${as_root[@]}" apt-get update </dev/null >&2 && "${as_root[@]}" $install </dev/null >&2; }
fi

if ! command -v rustup >/dev/null; then
    if ! command -v cargo >/dev/null; then
        echo "setup: Rust is missing; please install rustup (rustup.rs, or \`apt-get install rustup\` from Debian 13 on)" \
            "and run again" >&2
        exit 1
    fi
    echo "setup: no rustup: targets and components are taken as installed" >&2
    exit 0
fi
# The toolchain file names the release, components and targets. A release is named and not a channel, so that
# what is built is the same on every machine, and so that nothing here moves the user's own stable or nightly
# toolchain.
release=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
if [[ $(rustc --version 2>/dev/null) != "rustc $release "* ]]; then
    echo "==> installing Rust $release" >&2
    # A link under this release's name that leads to another one would only be followed.
    linked="${RUSTUP_HOME:-$HOME/.rustup}/toolchains/$release-$(rustup show 2>/dev/null | sed -n 's/^Default host: //p')"
    [[ -L $linked ]] && rm "$linked"
    rustup toolchain install "$release" --profile minimal --no-self-update >&2
fi
library=$(rustc --print sysroot)/lib/rustlib
list() { sed -n "s/^$1 = \[\(.*\)\]/\1/p" rust-toolchain.toml | tr -d '",'; }
missing=no
for target in $(list targets); do
    [[ -d $library/$target ]] || missing=yes
done
compgen -G "$library/*/bin/llvm-objcopy" >/dev/null && [[ -d $library/src ]] || missing=yes
for tool in rustfmt cargo-clippy; do
    [[ -x $library/../../bin/$tool ]] || missing=yes
done
if [[ $missing == yes ]]; then
    echo "==> installing Rust's targets and components" >&2
    rustup target add --toolchain "$release" $(list targets) >&2
    rustup component add --toolchain "$release" $(list components) >&2
fi
if [[ ${1:-} == --miri ]] && ! cargo +nightly miri --version >/dev/null 2>&1; then
    echo "==> installing Miri on the nightly toolchain" >&2
    rustup component add --toolchain nightly miri rust-src >&2 ||
        rustup toolchain install nightly --profile minimal --component miri --component rust-src >&2
fi
if [[ ${1:-} == --fuzz ]] && ! cargo +nightly --version >/dev/null 2>&1; then
    echo "==> installing a nightly toolchain for libFuzzer" >&2
    rustup toolchain install nightly --profile minimal >&2
fi
