use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use remora_capture::audit::{Decision, Entry, Verifier};
use tokio::task::JoinSet;

use super::*;

fn entry(n: usize) -> Entry {
    Entry {
        target: format!("pod/cart-{n}"),
        ..Entry::new("start", Decision::Allowed, "jane")
    }
}

/// The log and its older files, the oldest first.
fn verify(path: &Path) -> Verifier {
    let mut verifier = Verifier::default();
    for n in (1..100).rev() {
        if let Ok(bytes) = fs::read(format!("{}.{n}", path.display())) {
            verifier.file(&bytes[..]).unwrap().unwrap();
        }
    }
    verifier
        .file(&fs::read(path).unwrap()[..])
        .unwrap()
        .unwrap();
    verifier
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_recorded_at_once_is_all_there_in_one_chain() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let audit = Audit::open(&path, Rotation::default()).unwrap();
    let mut recording = JoinSet::new();
    let begin = Instant::now();
    for n in 0..2000 {
        let audit = audit.clone();
        recording.spawn(async move { audit.record(entry(n)).await });
    }
    while let Some(recorded) = recording.join_next().await {
        recorded.unwrap().unwrap();
    }
    println!("2000 entries on the disk in {:?}", begin.elapsed());
    let verifier = verify(&path);
    assert_eq!(verifier.first(), Some(1));
    assert_eq!(verifier.head().unwrap().number, 2000);
    let text = fs::read_to_string(&path).unwrap();
    for n in 0..2000 {
        assert!(text.contains(&format!("\"pod/cart-{n}\"")), "{n}");
    }
}

#[tokio::test]
async fn a_log_goes_on_where_it_ended_and_a_torn_line_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    for n in 1..=3 {
        let audit = open_when_free(&path).await;
        audit.record(entry(n)).await.unwrap();
        drop(audit);
        assert_eq!(verify(&path).head().unwrap().number, n as u64);
        if n == 2 {
            let mut torn = fs::read(&path).unwrap();
            torn.extend_from_slice(b"{\"number\":3,\"previous\":\"00");
            fs::write(&path, torn).unwrap();
        }
    }
}

#[test]
fn a_file_that_is_no_log_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hosts");
    for text in [
        "127.0.0.1 localhost",
        "127.0.0.1 localhost\n",
        "{\"key\": 1}",
    ] {
        fs::write(&path, text).unwrap();
        let error = Audit::open(&path, Rotation::default()).unwrap_err();
        assert!(matches!(error, OpenError::Broken { .. }), "{error:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
}

/// Its thread ends, and with it the lock, a moment after the last handle.
async fn open_when_free(path: &Path) -> Audit {
    loop {
        match Audit::open(path, Rotation::default()) {
            Ok(audit) => return audit,
            Err(OpenError::InUse(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn a_second_controller_and_a_changed_log_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let audit = Audit::open(&path, Rotation::default()).unwrap();
    for n in 0..3 {
        audit.record(entry(n)).await.unwrap();
    }
    let second = Audit::open(&path, Rotation::default()).unwrap_err();
    assert!(matches!(second, OpenError::InUse(_)), "{second:?}");
    drop(audit);
    drop(open_when_free(&path).await);
    let changed = fs::read_to_string(&path)
        .unwrap()
        .replacen("jane", "joan", 1);
    let broken = loop {
        fs::write(&path, &changed).unwrap();
        match Audit::open(&path, Rotation::default()) {
            Err(OpenError::InUse(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
            other => break other.unwrap_err(),
        }
    };
    assert!(matches!(broken, OpenError::Broken { .. }), "{broken:?}");
    assert!(broken.to_string().contains("keep it as it is"), "{broken}");
    assert_eq!(fs::read_to_string(&path).unwrap(), changed);
}

#[tokio::test]
async fn files_are_rotated_bounded_and_the_chain_goes_on_over_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let rotation = Rotation {
        bytes: 1000,
        files: 3,
    };
    let audit = Audit::open(&path, rotation).unwrap();
    for n in 0..60 {
        audit.record(entry(n)).await.unwrap();
    }
    let verifier = verify(&path);
    assert_eq!(verifier.head().unwrap().number, 60);
    assert!(verifier.first().unwrap() > 1, "the oldest went");
    let mut files = 0;
    for file in fs::read_dir(dir.path()).unwrap() {
        let file = file.unwrap();
        assert!(file.metadata().unwrap().len() <= 1000);
        files += u32::from(file.path().extension().unwrap() != "lock");
    }
    assert_eq!(files, 4);
}

/// Ends with the mount.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
            .arg(dir.path())
            .output()
            .is_ok_and(|output| output.status.success());
        mounted.then_some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_with_the_reason_and_goes_on_when_there_is_room() {
    let Some(disk) = SmallDisk::new() else {
        println!("skipped: a small file system can be mounted by root alone");
        return;
    };
    let path = disk.0.path().join("audit.log");
    let ballast = disk.0.path().join("ballast");
    let audit = Audit::open(&path, Rotation::default()).unwrap();
    audit.record(entry(0)).await.unwrap();
    let full = fs::write(&ballast, vec![0; 1 << 20]).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    // What is left of the log's own last page.
    let mut kept = 1;
    let error = loop {
        match audit.record(entry(kept)).await {
            Ok(()) => kept += 1,
            Err(error) => break error,
        }
        assert!(kept < 10_000);
    };
    assert!(error.to_string().contains("No space left"), "{error}");
    assert!(error.to_string().contains("make room"), "{error}");
    for _ in 0..5 {
        audit.record(entry(kept)).await.unwrap_err();
    }
    assert_eq!(verify(&path).head().unwrap().number, kept as u64);
    fs::remove_file(&ballast).unwrap();
    audit.record(entry(kept)).await.unwrap();
    assert_eq!(verify(&path).head().unwrap().number, kept as u64 + 1);
}
