//! A disk that moves from a file to a server and back while a guest writes, over the death of the server.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use ringblk::memory::Slots;
use ringblk::mirror::{Mirror, Progress, Step};
use ringblk::{Disk, DiskConfig};
use vm_memory::MmapRegion;

use crate::guest::Guest;
use crate::{Server, alone, image, open_soon, verify, writes_under_kills};

fn progress() -> Progress {
    let mapping = Arc::new(MmapRegion::new(4096).unwrap());
    Progress::new(
        Arc::new(Slots::<AtomicU64>::in_mapping(&mapping, 0, 1).unwrap()),
        0,
    )
}

/// Moves `guest`'s disk while it writes; gives what was written last.
fn move_to(
    guest: &mut Guest,
    source: Arc<Disk>,
    target: Arc<Disk>,
    again: impl FnMut(),
) -> HashMap<u64, u64> {
    let mirror = Mirror::new(source, target.clone(), progress()).unwrap();
    guest.use_disk(Disk::mirrored(mirror.clone()));
    let worker = std::thread::spawn(move || {
        while mirror.copy().unwrap() == Step::More {}
        mirror.sync().unwrap();
        let mut at = 0;
        while mirror.verify(&mut at).unwrap() == Step::More {}
        mirror.sync().unwrap();
    });
    let written = writes_under_kills(guest, 2, again);
    worker.join().unwrap();
    guest.remove();
    guest.use_disk(target);
    written
}

#[test]
fn to_a_server_that_is_killed_and_back_to_a_file() {
    let _alone = alone();
    for io_uring in [true, false] {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let socket = directory.path().join("sock");
        let served = image(directory.path());
        let files = ["first.img", "last.img"].map(|name| {
            let path = directory.path().join(name);
            std::fs::copy(&served, &path).unwrap();
            path
        });
        let open = |path: &std::path::Path| {
            Disk::open(&DiskConfig {
                path: path.to_owned(),
                ..DiskConfig::default()
            })
            .unwrap()
        };
        let mut server = Some(Server::ringd(&socket, &served));
        let mut again = || {
            server.take().unwrap().kill();
            server = Some(Server::ringd(&socket, &served));
        };
        let mut guest = Guest::new(io_uring);
        let remote = open_soon(&socket);
        let written = move_to(&mut guest, open(&files[0]), remote.clone(), &mut again);
        verify(&mut guest, &written);
        guest.remove();
        let written = move_to(&mut guest, remote, open(&files[1]), &mut again);
        verify(&mut guest, &written);
        guest.remove();
        assert!(std::fs::read(&files[1]).unwrap() == std::fs::read(&served).unwrap());
    }
}
