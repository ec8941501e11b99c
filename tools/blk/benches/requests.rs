//! `cargo bench`: nanoseconds for each request of 4 KiB through ring and device with the `null:` image, which
//! moves nothing; for EL2's registers and ring; and for all of it. No system calls, no exits.
//! docs/performance.md has a table, `instructions.rs` counts.

mod support;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use support::{Disk, Registers, Shape};

fn requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("request");
    for (name, write) in [("read", false), ("write", true)] {
        for (depth, neighbours) in [(1, false), (32, false), (32, true)] {
            let mut disk = Disk::new(Shape {
                path: "null:64M",
                write,
                depth,
                neighbours,
            });
            let order = if neighbours { " neighbours" } else { "" };
            group.throughput(Throughput::Elements(depth.into()));
            group.bench_function(format!("{name} 4K x {depth}{order}"), |bencher| {
                bencher.iter(|| disk.round());
            });
            assert!(disk.interrupts() > 0);
        }
    }
    group.finish();
    let mut registers = Registers::new();
    criterion.bench_function("registers and ring at EL2", |bencher| {
        bencher.iter(|| registers.request(|| {}));
    });
    let mut disk = Disk::new(Shape::read(1));
    criterion.bench_function("transport, ring and device: read 4K x 1", |bencher| {
        bencher.iter(|| registers.request(|| disk.round()));
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(std::time::Duration::from_millis(500))
        .measurement_time(std::time::Duration::from_secs(2));
    targets = requests
}
criterion_main!(benches);
