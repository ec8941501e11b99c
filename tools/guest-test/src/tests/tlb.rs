//! TLB maintenance by EL1 (Arm ARM C5.5): each `TLBI` invalidates what it should, before the second CPU is on
//! and after.

use core::arch::asm;
use core::ptr::NonNull;

use crate::context::Context;
use crate::cpus::{self, Command};
use crate::exceptions::EC_DATA;
use crate::report::{Failure, Suite, TestResult};
use crate::{attempt, check, check_eq, hal, time};

/// Address of the page that the tests remap: outside RAM, in a GiB that nothing else uses.
const PAGE: u64 = 300 << 30;
/// Descriptor of a table, and of a page of memory: valid, accessed, inner shareable, MAIR index 1, not
/// global.
const TABLE: u64 = 3;
const MEMORY: u64 = 3 | 1 << 10 | 3 << 8 | 1 << 2 | 1 << 11;
/// Fault status: no level 3 descriptor.
const TRANSLATION_3: u64 = 7;
/// Number of times that [`many`] invalidates the page; `tests/system/zone-guest-test.sh` compares EL2's
/// counters with it.
const ROUNDS: u64 = 1000;

/// Runs the group. The second CPU has not been turned on yet, or is off again.
pub fn run(suite: &mut Suite, context: &mut Context<'_>) {
    let pages = match Pages::new() {
        Ok(pages) => pages,
        Err(failure) => return suite.test("tables", || Err(failure)),
    };
    suite.test("every instruction", || every(&pages));
    suite.test("many", || many(&pages));
    match context.machine.cpus.get(1).copied() {
        Some(second) => {
            suite.test("what another CPU caches", || broadcast(&pages, second));
            suite.test("many, beside another CPU", || many(&pages));
            suite.test("the other CPU goes off", || {
                cpus::send(Command::Off);
                check!(
                    time::wait(2000, || cpus::is_off(second)),
                    "the second CPU does not go off"
                );
                Ok(())
            });
        }
        None => {
            suite.skip("what another CPU caches", "one CPU");
            suite.test("more than trap", || {
                for _ in 0..150_000 {
                    // SAFETY: translations are fetched anew.
                    unsafe { asm!("tlbi vae1is, {}", in(reg) PAGE >> 12, options(nostack)) };
                }
                many(&pages)
            });
        }
    }
}

/// [`PAGE`] and the pages it can map: two pages that begin with 0 and 1.
struct Pages {
    /// The level 1 descriptor of its GiB, and what that was.
    table: *mut u64,
    before: u64,
    /// Its level 3 descriptor.
    descriptor: *mut u64,
    shown: [u64; 2],
    /// The allocated pages.
    pages: [NonNull<u8>; 4],
}

impl Pages {
    fn new() -> Result<Self, Failure> {
        let page = || hal::allocate(1).ok_or_else(|| Failure::new(format_args!("no memory")));
        let pages = [page()?, page()?, page()?, page()?];
        let [level2, level3, first, second] = pages.map(|page| page.as_ptr().cast::<u64>());
        let shown = [first, second];
        let root: u64;
        // SAFETY: reads a register.
        unsafe { asm!("mrs {}, ttbr0_el1", out(reg) root, options(nomem, nostack, preserves_flags)) };
        let table = ((root & 0xffff_ffff_fffe) as *mut u64).wrapping_add((PAGE >> 30) as usize);
        // SAFETY: the pages are ours, the table that TTBR0_EL1 names is the guest's own.
        let before = unsafe {
            shown[1].write_volatile(1);
            level2.write_volatile(level3 as u64 | TABLE);
            table.read_volatile()
        };
        replace(table, level2 as u64 | TABLE);
        Ok(Self {
            table,
            before,
            descriptor: level3,
            shown: shown.map(|page| page as u64),
            pages,
        })
    }

    /// Maps page `index`, or unmaps. The caller invalidates the TLBs.
    fn set(&self, index: Option<usize>) {
        let value = index
            .and_then(|index| self.shown.get(index))
            .map_or(0, |page| page | MEMORY);
        // SAFETY: the descriptor of a page that only these tests use.
        unsafe {
            self.descriptor.write_volatile(value);
            asm!("dsb ish", "isb", options(nostack));
        }
    }

    /// Replaces page 0, which has been read, by no page and then by page 1, with `invalidate` in between.
    fn replace(&self, name: &str, invalidate: impl FnOnce()) -> TestResult {
        self.set(Some(0));
        check_eq!(load()?, 0, "{name}: the first page");
        self.set(None);
        invalidate();
        // SAFETY: barriers.
        unsafe { asm!("dsb ish", "isb", options(nostack)) };
        let Some(fault) = attempt!(PAGE, 0, "ldr {x}, [{a}]").fault else {
            return Err(Failure::new(format_args!("{name}: an unmapped page can be read")));
        };
        check_eq!(fault.class(), EC_DATA, "{name}: exception class");
        check_eq!(fault.status(), TRANSLATION_3, "{name}: fault status");
        self.set(Some(1));
        check_eq!(load()?, 1, "{name}: the second page");
        self.set(None);
        drop_page();
        Ok(())
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        replace(self.table, self.before);
        for page in self.pages {
            hal::free(page, 1);
        }
    }
}

/// Replaces a level 1 descriptor whose GiB is not in use meanwhile.
fn replace(table: *mut u64, value: u64) {
    // SAFETY: an entry of the guest's own table.
    unsafe {
        table.write_volatile(0);
        asm!("dsb ish", "tlbi vmalle1is", "dsb ish", "isb", options(nostack));
        table.write_volatile(value);
        asm!("dsb ish", "isb", options(nostack));
    }
}

fn load() -> Result<u64, Failure> {
    attempt!(PAGE, u64::MAX, "ldr {x}, [{a}]").done()
}

/// Invalidates [`PAGE`] on all CPUs.
fn drop_page() {
    // SAFETY: translations are fetched anew.
    unsafe { asm!("dsb ishst", "tlbi vae1is, {}", "dsb ish", "isb", in(reg) PAGE >> 12, options(nostack)) };
}

/// Replaces the page by each of these instructions, which have an argument.
macro_rules! each {
    ($pages:expr, $argument:expr, $($instruction:literal),* $(,)?) => {
        $($pages.replace($instruction, || {
            let argument: u64 = $argument;
            // SAFETY: translations are fetched anew.
            unsafe {
                asm!(".arch_extension tlb-rmi", concat!($instruction, ", {}"), in(reg) argument, options(nostack));
            }
        })?;)*
    };
}

fn every(pages: &Pages) -> TestResult {
    let isar0: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, id_aa64isar0_el1", out(reg) isar0, options(nomem, nostack, preserves_flags)) };
    let (outer, range) = ((isar0 >> 56) & 0xf >= 1, (isar0 >> 56) & 0xf >= 2);
    let isar1: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, id_aa64isar1_el1", out(reg) isar1, options(nomem, nostack, preserves_flags)) };
    let nxs = (isar1 >> 56) & 0xf >= 1;
    // The ASID is 0.
    let page = PAGE >> 12;
    each!(
        pages,
        page,
        "tlbi vae1",
        "tlbi vae1is",
        "tlbi vale1",
        "tlbi vale1is",
        "tlbi vaae1",
        "tlbi vaae1is",
        "tlbi vaale1",
        "tlbi vaale1is",
    );
    each!(pages, 0, "tlbi aside1", "tlbi aside1is",);
    // SAFETY: translations are fetched anew.
    pages.replace("vmalle1", || unsafe { asm!("tlbi vmalle1", options(nostack)) })?;
    // SAFETY: as above.
    pages.replace("vmalle1is", || unsafe {
        asm!("tlbi vmalle1is", options(nostack))
    })?;
    if outer {
        each!(
            pages,
            page,
            "tlbi vae1os",
            "tlbi vale1os",
            "tlbi vaae1os",
            "tlbi vaale1os",
        );
        each!(pages, 0, "tlbi aside1os",);
        // SAFETY: as above.
        pages.replace("vmalle1os", || unsafe {
            asm!(".arch_extension tlb-rmi", "tlbi vmalle1os", options(nostack))
        })?;
    }
    if nxs {
        // VAE1NXS, VAE1ISNXS, VAAE1ISNXS, VALE1OSNXS, which the assembler does not know without FEAT_XS.
        each!(
            pages,
            page,
            "sys #0, c9, c7, #1",
            "sys #0, c9, c3, #1",
            "sys #0, c9, c3, #3",
            "sys #0, c9, c1, #5"
        );
        each!(pages, 0, "sys #0, c9, c3, #2"); // ASIDE1ISNXS
    }
    if range {
        // From the page before, 2 * (NUM + 1) = 4 pages of 4 KiB: TG 1, SCALE 0, NUM 1.
        let pages_around = (page - 1) | 1 << 39 | 1 << 46;
        each!(
            pages,
            pages_around,
            "tlbi rvae1",
            "tlbi rvae1is",
            "tlbi rvae1os",
            "tlbi rvale1",
            "tlbi rvale1is",
            "tlbi rvale1os",
        );
        each!(
            pages,
            pages_around,
            "tlbi rvaae1",
            "tlbi rvaae1is",
            "tlbi rvaae1os",
            "tlbi rvaale1",
            "tlbi rvaale1is",
            "tlbi rvaale1os",
        );
    }
    Ok(())
}

fn many(pages: &Pages) -> TestResult {
    for round in 0..ROUNDS {
        let shown = (round & 1) as usize;
        pages.set(Some(shown));
        check_eq!(load()?, shown as u64, "page in round {round}");
        pages.set(None);
        drop_page();
    }
    Ok(())
}

/// The other CPU caches the page, this one invalidates it.
fn broadcast(pages: &Pages, second: u64) -> TestResult {
    check!(cpus::ensure_on(second), "the second CPU does not come up");
    for round in 0..100_u64 {
        let shown = (round & 1) as usize;
        pages.set(Some(shown));
        let loaded = cpus::load(PAGE);
        check!(
            time::wait(2000, || loaded.value().is_some()),
            "the second CPU does not load, round {round}"
        );
        check_eq!(
            loaded.value(),
            Some(shown as u64),
            "page of the second CPU, round {round}"
        );
        pages.set(None);
        drop_page();
    }
    Ok(())
}
