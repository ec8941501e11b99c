#!/bin/sh
# The machine's other devices: virtio and NVMe disks on PCIe, network cards on PCIe and virtio-mmio.
#@ on: devices-generic-kpti
#@ all: devices devices-generic devices-qemu10
. ./lib.sh
modprobe -q virtio_net
read_disk() { # DEVICE
    [ -b "$1" ] || fail "no $1"
    dd if="$1" of=/dev/null bs=64k count=256 iflag=direct 2>/dev/null || fail "$1 cannot be read"
    dd if=/dev/zero of="$1" bs=64k count=64 oflag=direct 2>/dev/null || fail "$1 cannot be written"
}
pci=0
for disk in /sys/block/vd*; do
    case $(readlink -f "$disk/device") in
    */pci*) pci=$((pci + 1)) && read_disk "/dev/${disk##*/}" ;;
    esac
done
at_least "virtio disks on PCIe" $pci 1
within 10 test -b /dev/nvme0n1
read_disk /dev/nvme0n1

cards=0
for card in /sys/class/net/eth*; do
    card=${card##*/}
    ip link set "$card" up
    ip addr add 10.0.2.15/24 dev "$card"
    ping -c 3 -W 5 -I "$card" 10.0.2.2 || fail "no answer through $card ($(readlink -f "/sys/class/net/$card/device"))"
    ip addr flush dev "$card"
    ip link set "$card" down
    cards=$((cards + 1))
done
is "network cards" $cards 2
kernel_is_quiet
