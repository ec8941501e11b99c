//! Root's kernel and initramfs on QEMU's command line: boot modules for the hypervisor, or booted by QEMU
//! itself.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use image::cmd;

use crate::board::{Board, Modules};

/// What is started, and with which command lines.
#[derive(Debug)]
pub struct Boot {
    /// The hypervisor binary; without it QEMU boots root's kernel.
    pub hypervisor: Option<PathBuf>,
    /// The hypervisor's command line.
    pub hypervisor_bootargs: String,
    /// Root's kernel, an arm64 Image file.
    pub kernel: PathBuf,
    /// Root's initramfs.
    pub initramfs: PathBuf,
    /// Command line of root's kernel.
    pub bootargs: String,
}

/// Returns QEMU's arguments that boot `boot`. `machine` are the program and the arguments that make the
/// machine, for a board whose device tree is dumped; the completed tree becomes the file `tree`.
///
/// # Errors
/// The machine's device tree cannot be had or changed.
pub fn arguments(board: &Board, boot: &Boot, machine: (&str, &[String]), tree: &Path) -> Result<Vec<String>> {
    let path = |p: &Path| p.display().to_string();
    let kernel = |file: &Path, bootargs: &str| {
        [
            "-kernel".into(),
            path(file),
            "-append".into(),
            bootargs.to_owned(),
        ]
        .to_vec()
    };
    let Some(hypervisor) = &boot.hypervisor else {
        let mut arguments = kernel(&boot.kernel, &boot.bootargs);
        arguments.extend(["-initrd".into(), path(&boot.initramfs)]);
        return Ok(arguments);
    };
    let mut arguments = kernel(hypervisor, &boot.hypervisor_bootargs);
    let load = &board.load;
    let device = |text: String| ["-device".to_owned(), text];
    match board.qemu.modules {
        Modules::GuestLoader => {
            arguments.extend(device(format!(
                "guest-loader,addr={:#x},kernel={},bootargs={}",
                load.kernel,
                value(&path(&boot.kernel)),
                value(&boot.bootargs)
            )));
            arguments.extend(device(format!(
                "guest-loader,addr={:#x},initrd={}",
                load.initramfs,
                value(&path(&boot.initramfs))
            )));
        }
        Modules::DeviceTree => {
            let (program, machine) = machine;
            dump(program, machine, &arguments, tree)?;
            add_module(
                tree,
                &boot.kernel,
                load.kernel,
                "multiboot,kernel",
                Some(&boot.bootargs),
            )?;
            add_module(tree, &boot.initramfs, load.initramfs, "multiboot,ramdisk", None)?;
            arguments.extend(["-dtb".into(), path(tree)]);
            for (file, address) in [(&boot.kernel, load.kernel), (&boot.initramfs, load.initramfs)] {
                arguments.extend(device(format!(
                    "loader,addr={address:#x},force-raw=on,file={}",
                    value(&path(file))
                )));
            }
        }
    }
    Ok(arguments)
}

/// Makes QEMU write the machine's own device tree to `tree`.
fn dump(program: &str, machine: &[String], kernel: &[String], tree: &Path) -> Result<()> {
    let mut qemu = cmd::command(program);
    // Properties of the machine can be spread over several options.
    qemu.args(machine)
        .args([
            "-machine",
            &format!("dumpdtb={}", value(&tree.display().to_string())),
        ])
        .args(["-display", "none", "-monitor", "none", "-serial", "none"])
        .args(kernel);
    cmd::output(&mut qemu)
        .map(drop)
        .context("cannot dump the machine's device tree")
}

/// Adds a boot module to `/chosen` as `guest-loader` does: `reg` has two cells for each number.
fn add_module(tree: &Path, file: &Path, address: u64, kind: &str, bootargs: Option<&str>) -> Result<()> {
    let size = fs::metadata(file)
        .with_context(|| format!("cannot read {}", file.display()))?
        .len();
    let node = format!("/chosen/module@{address:x}");
    let put = |arguments: &[&str], property: &[&str]| {
        let mut fdtput = cmd::command("fdtput");
        fdtput
            .args(arguments)
            .arg(tree)
            .args([node.as_str()])
            .args(property);
        cmd::output(&mut fdtput).map(drop)
    };
    put(&["-c"], &[])?;
    put(&["-t", "s"], &["compatible", "multiboot,module", kind])?;
    let cells = [
        address >> 32,
        address & 0xffff_ffff,
        size >> 32,
        size & 0xffff_ffff,
    ]
    .map(|cell| format!("{cell:x}"));
    let mut reg = vec!["reg"];
    reg.extend(cells.iter().map(String::as_str));
    put(&["-t", "x"], &reg)?;
    match bootargs {
        Some(bootargs) => put(&["-t", "s"], &["bootargs", bootargs]),
        None => Ok(()),
    }
}

/// Returns `text` as a value inside one of QEMU's comma-separated options.
pub fn value(text: &str) -> String {
    text.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use image::cmd;

    use super::{add_module, value};

    #[test]
    fn commas_in_values_are_doubled() {
        assert_eq!(value("a,b c"), "a,,b c");
    }

    #[test]
    fn a_module_is_added_to_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        let (source, tree, file) = (
            dir.path().join("dts"),
            dir.path().join("dtb"),
            dir.path().join("file"),
        );
        fs::write(&source, "/dts-v1/; / { chosen { }; };").unwrap();
        fs::write(&file, [0; 5]).unwrap();
        let mut dtc = cmd::command("dtc");
        cmd::output(dtc.args(["-I", "dts", "-O", "dtb", "-o"]).arg(&tree).arg(&source)).unwrap();
        add_module(&tree, &file, 0x8_0400_0000, "multiboot,kernel", Some("a=b c")).unwrap();
        let get = |kind: &str, property: &str| {
            let mut fdtget = cmd::command("fdtget");
            fdtget
                .args(["-t", kind])
                .arg(&tree)
                .args(["/chosen/module@804000000", property]);
            cmd::text(&mut fdtget).unwrap().trim().to_owned()
        };
        assert_eq!(get("s", "compatible"), "multiboot,module multiboot,kernel");
        assert_eq!(get("x", "reg"), "8 4000000 0 5");
        assert_eq!(get("s", "bootargs"), "a=b c");
    }
}
