//! A disk that firmware boots from without any file beside it: Debian's GRUB for EDK2 in an EFI system
//! partition, `extlinux.conf` for U-Boot, and the guest's root file system with its kernel and initial RAM
//! disk.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};

use crate::apt::{self, Apt, Request};
use crate::cache::{Cache, Key};
use crate::cmd;
use crate::ext4;
use crate::kernel::Flavour;
use crate::machine::{GUEST_DISK_BYTES, guest, guest_login, guest_tree};
use crate::userland::Userland;

const PACKAGES: &[&str] = &["grub-efi-arm64-bin"];
/// GRUB with its modules in one file; it reads `/EFI/debian/grub.cfg` of the partition that it comes from.
const GRUB: &str = "usr/lib/grub/arm64-efi/monolithic/grubaa64.efi";

const GRUB_CONFIG: &str = "\
set timeout=1
menuentry 'Debian' {
    search --no-floppy --file --set=root /boot/Image
    linux /boot/Image root=/dev/vda1 rw console=ttyAMA0 booted-by=grub
    initrd /boot/initrd
}
";
const EXTLINUX_CONFIG: &str = "\
default debian
label debian
    kernel /boot/Image
    initrd /boot/initrd
    append root=/dev/vda1 rw console=ttyAMA0 booted-by=extlinux
";

const SECTOR: u64 = 512;
/// Start of the EFI system partition.
const SYSTEM_START: u64 = 1 << 20;
const SYSTEM_BYTES: u64 = 32 << 20;
const ROOT_START: u64 = SYSTEM_START + SYSTEM_BYTES;
/// The first entry of a master boot record's partition table, and the signature behind the four.
const TABLE: u64 = 446;
const SIGNATURE: [u8; 2] = [0x55, 0xaa];
/// Types of partitions.
const EFI_SYSTEM: u8 = 0xef;
const LINUX: u8 = 0x83;

/// Returns the disk.
///
/// # Errors
/// A package cannot be had, or the cache cannot be written.
pub fn disk(cache: &Cache) -> Result<PathBuf> {
    let lock = cache.lock()?;
    let apt = Apt::open(cache, "arm64")?;
    let userland = Userland::obtain(cache, &lock, &apt)?;
    let files = guest(cache, &lock, &apt, &userland, Flavour::Cloud)?;
    let request = Request {
        packages: PACKAGES,
        backports: false,
    };
    let debs = apt.packages("bootable", request, |name| PACKAGES.contains(&name))?;
    let key = Key::new(1)
        .with(&debs)
        .with(&files.disk)
        .with(&files.kernel)
        .with(&files.initramfs)
        .with((GRUB_CONFIG, EXTLINUX_CONFIG));
    cache.publish(&lock, "bootable-disk", &key, |path| {
        cmd::step("making a disk that boots by itself");
        let [unpacked, system, root] = ["grub", "system", "root"].map(|part| path.with_extension(part));
        fs::create_dir_all(&unpacked)?;
        apt::unpack(&debs, &unpacked, &["./usr/share/doc"])?;
        let grub =
            fs::read(unpacked.join(GRUB)).with_context(|| format!("Debian's package has no {GRUB}"))?;
        make_system(&system, &grub)?;

        let tree = guest_tree(&userland, &guest_login(cache, &lock)?, path)?;
        let boot = tree.join("boot");
        fs::create_dir_all(boot.join("extlinux"))?;
        fs::copy(&files.kernel, boot.join("Image"))?;
        fs::copy(&files.initramfs, boot.join("initrd"))?;
        fs::write(boot.join("extlinux/extlinux.conf"), EXTLINUX_CONFIG)?;
        ext4::make(&tree, &root, GUEST_DISK_BYTES, "guest-root")?;

        let mut image = File::create(path)?;
        image.set_len(ROOT_START + GUEST_DISK_BYTES)?;
        image.seek(SeekFrom::Start(TABLE))?;
        // U-Boot boots from the first partition that is active or EFI's: from this one by extlinux.conf.
        image.write_all(&entry(LINUX, true, ROOT_START, GUEST_DISK_BYTES))?;
        image.write_all(&entry(EFI_SYSTEM, false, SYSTEM_START, SYSTEM_BYTES))?;
        image.seek(SeekFrom::Start(SECTOR - SIGNATURE.len() as u64))?;
        image.write_all(&SIGNATURE)?;
        copy_to(&mut image, SYSTEM_START, &system)?;
        copy_to(&mut image, ROOT_START, &root)?;
        for directory in [&unpacked, &tree] {
            fs::remove_dir_all(directory)?;
        }
        for file in [&system, &root] {
            fs::remove_file(file)?;
        }
        Ok(())
    })
}

/// Makes the image of an EFI system partition with GRUB where firmware looks for what it may boot.
fn make_system(path: &Path, grub: &[u8]) -> Result<()> {
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    file.set_len(SYSTEM_BYTES)?;
    format_volume(&mut file, FormatVolumeOptions::new())?;
    let volume = FileSystem::new(file, FsOptions::new())?;
    let efi = volume.root_dir().create_dir("EFI")?;
    for (directory, name, bytes) in [
        ("BOOT", "BOOTAA64.EFI", grub),
        ("debian", "grub.cfg", GRUB_CONFIG.as_bytes()),
    ] {
        let mut file = efi.create_dir(directory)?.create_file(name)?;
        file.write_all(bytes)?;
        file.flush()?;
    }
    drop(efi);
    Ok(volume.unmount()?)
}

/// Returns an entry of a master boot record's partition table, without addresses by cylinder.
fn entry(kind: u8, active: bool, start: u64, bytes: u64) -> [u8; 16] {
    let mut entry = [0; 16];
    let sectors = |bytes: u64| u32::try_from(bytes / SECTOR).unwrap_or(u32::MAX).to_le_bytes();
    entry[0] = if active { 0x80 } else { 0 };
    entry[4] = kind;
    entry[8..12].copy_from_slice(&sectors(start));
    entry[12..].copy_from_slice(&sectors(bytes));
    entry
}

/// Copies a file to `offset`, leaving out what is zero.
fn copy_to(image: &mut File, offset: u64, from: &Path) -> Result<()> {
    let mut from = File::open(from)?;
    let mut piece = vec![0; 1 << 20];
    let mut at = offset;
    loop {
        let len = from.read(&mut piece)?;
        let Some(read) = piece.get(..len).filter(|read| !read.is_empty()) else {
            return Ok(());
        };
        if read.iter().any(|byte| *byte != 0) {
            image.seek(SeekFrom::Start(at))?;
            image.write_all(read)?;
        }
        at += len as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;

    use fatfs::{FileSystem, FsOptions};

    use super::{EFI_SYSTEM, GRUB_CONFIG, LINUX, SYSTEM_BYTES, SYSTEM_START, entry, make_system};

    #[test]
    fn grub_and_its_configuration_are_where_they_are_looked_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("system");
        let grub = vec![0x5a; 3 << 20];
        make_system(&path, &grub).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), SYSTEM_BYTES);
        let volume = FileSystem::new(File::open(&path).unwrap(), FsOptions::new()).unwrap();
        for (name, expected) in [
            ("EFI/BOOT/BOOTAA64.EFI", &*grub),
            ("EFI/debian/grub.cfg", GRUB_CONFIG.as_bytes()),
        ] {
            let mut found = Vec::new();
            let mut file = volume.root_dir().open_file(name).unwrap();
            file.read_to_end(&mut found).unwrap();
            assert!(found == expected, "{name} has {} bytes", found.len());
        }
    }

    #[test]
    fn entries_of_the_partition_table() {
        let system = [0, 0, 0, 0, 0xef, 0, 0, 0, 0, 8, 0, 0, 0, 0, 1, 0];
        assert_eq!(entry(EFI_SYSTEM, false, SYSTEM_START, SYSTEM_BYTES), system);
        let root = [0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 1, 0, 2, 0, 0, 0];
        assert_eq!(entry(LINUX, true, SYSTEM_START + SYSTEM_BYTES, 1024), root);
    }
}
