//! Captures that go to a store of objects: whenever the agent is killed over it, the next one goes on, each file is
//! there once, and the chain has one receipt of it.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Mutex, PoisonError},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use remora_agent::{
    sink::{evidence::Retention, upload::Uploads},
    upload::{Order, SignedRequest, StoreChecksum, Uploader as _},
};
use remora_capture::evidence::{RECEIPT_ENDING, Receipt};

use super::{
    deletion::{Keeping, files_of, oldest},
    *,
};

/// In the child: the store's address. It uploads the oldest capture.
pub(super) const UPLOADS: &str = "REMORA_TEST_UPLOADS";

/// In the order in which they are reached: the first two after the first file.
pub(super) const POINTS: [&str; 11] = [
    "upload's record written",
    "upload's record renamed",
    "receipt signed",
    "receipt written",
    "receipt synced",
    "receipt renamed",
    "directory synced",
    "head written",
    "head synced",
    "head renamed",
    "never",
];

/// A store that outlives the agents: it takes a name once, and tells the checksum of what it has.
#[derive(Default)]
struct Shelf {
    objects: BTreeMap<String, Vec<u8>>,
    puts: usize,
}

struct ObjectStore {
    address: SocketAddr,
    shelf: Arc<Mutex<Shelf>>,
}

impl ObjectStore {
    /// Until the test's process ends.
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let shelf = Arc::<Mutex<Shelf>>::default();
        let served = Arc::clone(&shelf);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that was killed is no fault of the store's.
                let _broken = answer(&stream, &served);
            }
        });
        Self { address, shelf }
    }
}

fn answer(mut stream: &TcpStream, shelf: &Mutex<Shelf>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        head.push(line.trim().to_owned());
    }
    let length = |line: &String| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.parse().ok())?
    };
    let mut body = vec![0; head.iter().find_map(length).unwrap_or(0)];
    reader.read_exact(&mut body)?;
    let mut words = head.first().map_or("", String::as_str).split(' ');
    let (method, path) = (words.next(), words.next().unwrap_or_default());
    let mut shelf = shelf.lock().unwrap_or_else(PoisonError::into_inner);
    let (status, told) = match (method, shelf.objects.get(path)) {
        (Some("PUT"), Some(_)) => ("412 Precondition Failed", None),
        (Some("PUT"), None) => {
            shelf.puts += 1;
            shelf.objects.insert(path.to_owned(), body);
            ("200 OK", None)
        }
        (_, Some(object)) => ("200 OK", Some((object.len(), Digest::of(object)))),
        (_, None) => ("404 Not Found", None),
    };
    let told = told.map_or("Content-Length: 0\r\n".to_owned(), |(length, digest)| {
        let checksum = STANDARD.encode(digest.as_bytes());
        format!("Content-Length: {length}\r\nx-amz-checksum-sha256: {checksum}\r\n")
    });
    let answer = format!("HTTP/1.1 {status}\r\nConnection: close\r\n{told}\r\n");
    stream.write_all(answer.as_bytes())
}

fn receipt(directory: &Path, id: CaptureId) -> PathBuf {
    directory.join(format!("{id}{RECEIPT_ENDING}"))
}

/// What the child does.
pub(super) fn upload_oldest(directory: &Path, point: &'static str, store: &str) {
    fail_point::arm(point);
    let keeping = Keeping::start(directory, Retention::default());
    let uploads = Uploads::new(Arc::clone(&keeping.store), Vec::new(), None, |transfer| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        thread::spawn(|| runtime.expect("a runtime").block_on(transfer));
    });
    let uploads = uploads.expect("a client");
    let receipt = receipt(directory, oldest(directory));
    keeping.until("the receipt", || {
        for offer in uploads.offers() {
            let signed = SignedRequest {
                url: format!("http://{store}/{}", offer.file),
                headers: Vec::new(),
            };
            let order = Order {
                id: offer.id,
                file: offer.file,
                put: signed.clone(),
                check: signed,
                checksum: StoreChecksum::S3Sha256,
            };
            let _under_way = uploads.put(order);
        }
        receipt.exists()
    });
}

#[test]
fn killed_over_an_upload_each_file_is_there_once_and_one_receipt_is_in_the_chain() {
    for point in POINTS {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path();
        let id = {
            let keeping = Keeping::start(path, Retention::default());
            keeping.captured_for("evidence")
        };
        let store = ObjectStore::start();
        let address = store.address.to_string();
        run_child_with(path, point, &[(UPLOADS, &address)]);
        run_child_with(path, "never", &[(UPLOADS, &address)]);
        let shelf = store.shelf.lock().expect("no panic");
        assert_eq!((shelf.puts, shelf.objects.len()), (3, 3), "{point}");
        for ending in [".pcapng", ".json", MANIFEST_ENDING] {
            let name = format!("{id}{ending}");
            let file = fs::read(path.join(&name)).expect("it stays");
            let object = &shelf.objects[&format!("/{name}")];
            assert_eq!(*object, file, "{point}: {name}");
        }
        let (key, head) = start_again(path);
        let signed = fs::read(receipt(path, id)).expect("a receipt");
        let read = Receipt::from_signed(&signed, &[key]).expect("own");
        assert_eq!((read.chain.sequence, read.files.len()), (2, 3), "{point}");
        let told = read.files.iter().filter_map(|file| file.object.as_ref());
        assert_eq!(told.map(|object| object.at).max(), Some(read.uploaded));
        let report = verify(&inventory(path), &[key], head.as_ref(), Scope::Directory);
        assert_eq!(report.verdict(), Verdict::Proved, "{point}: {report:?}");
        assert_eq!(head.expect("head").sequence, 2, "{point}");
        let left = files_of(path, id);
        assert!(!left.iter().any(|name| name.ends_with(".part")), "{left:?}");
    }
}

/// Only somebody else can have put it there: the agent's own has the manifest's file at least.
#[test]
fn a_record_without_files_is_no_upload_and_gets_no_receipt() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path();
    let id = {
        let keeping = Keeping::start(path, Retention::default());
        keeping.captured_for("evidence")
    };
    let record = format!(
        r#"{{"capture_id":"{id}","sink":"evidence","files":[],"failures":0,"in_a_row":0,"next_try":null,"error":""}}"#
    );
    fs::write(path.join(format!("{id}.upload.json")), record).expect("written");
    let (key, head) = start_again(path);
    assert!(!receipt(path, id).exists());
    assert_eq!(head.expect("head").sequence, 1);
    let store = ObjectStore::start();
    run_child_with(path, "never", &[(UPLOADS, &store.address.to_string())]);
    let signed = fs::read(receipt(path, id)).expect("a receipt");
    let read = Receipt::from_signed(&signed, &[key]).expect("own");
    assert_eq!(read.files.len(), 3);
}
