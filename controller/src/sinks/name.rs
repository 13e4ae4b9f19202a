//! Names of objects, and what is told beside them. Pure.

use object_store::path::Path;
use remora_capture::session::CaptureId;
use remora_proto::v1::UploadOffer;

/// Longest value of an object's metadata, in bytes; S3 takes 2 KiB of all together.
const VALUE_MAX: usize = 256;

/// `<prefix>/<id>/<file>`, made of the id and the agent's name of the file alone; `None` if those are not what
/// an agent's are.
pub(super) fn object(prefix: &str, offer: &UploadOffer) -> Option<Path> {
    let id: CaptureId = offer.id.parse().ok()?;
    let id = id.to_string();
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let rest = offer.file.strip_prefix(&id)?;
    let is_own = rest.starts_with(['.', '_']) && rest.bytes().all(is_plain);
    if !is_own || rest.contains("..") || rest.len() > 100 {
        return None;
    }
    let parts = prefix.split('/').filter(|part| !part.is_empty());
    Some(parts.chain([id.as_str(), offer.file.as_str()]).collect())
}

/// What an object's metadata say, in ASCII; what is not known is left out.
pub(super) fn metadata(offer: &UploadOffer) -> Vec<(&'static str, String)> {
    [
        ("capture", &offer.id),
        ("node", &offer.node),
        ("namespace", &offer.namespace),
        ("pod", &offer.pod),
        ("rule", &offer.rule),
    ]
    .into_iter()
    .map(|(name, value)| (name, ascii(value)))
    .filter(|(_, value)| !value.is_empty())
    .collect()
}

/// Printable ASCII, each run of blanks one, none at the ends: as a signature takes it.
fn ascii(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_graphic() || c == ' ';
    let text: String = text
        .chars()
        .take(VALUE_MAX)
        .map(|c| if is_plain(c) { c } else { '?' })
        .collect();
    text.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

pub(super) fn content_type(file: &str) -> &'static str {
    if file.ends_with(".json") {
        "application/json"
    } else if file.ends_with(".zst") {
        "application/zstd"
    } else {
        "application/vnd.tcpdump.pcap"
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) const ID: &str = "01J9ZQ3C7M8N4R5T6V7W8X9YZA";

    pub(crate) fn offer(file: &str) -> UploadOffer {
        UploadOffer {
            id: ID.to_owned(),
            sink: "evidence".to_owned(),
            file: file.to_owned(),
            bytes: 5,
            sha256: vec![7; 32].into(),
            node: "worker-1".to_owned(),
            namespace: "shop".to_owned(),
            pod: "cart".to_owned(),
            rule: " C2\u{202e}\nconnection  é ".to_owned(),
        }
    }

    #[test]
    fn an_objects_name_is_the_captures_id_and_its_file() {
        let path = object("a/b", &offer(&format!("{ID}.pcapng"))).unwrap();
        assert_eq!(path.as_ref(), format!("a/b/{ID}/{ID}.pcapng"));
        let path = object("", &offer(&format!("{ID}_000001_20261124112233.pcapng"))).unwrap();
        assert!(path.as_ref().starts_with(&format!("{ID}/{ID}_000001")));
        for file in [
            "x.pcapng".to_owned(),
            format!("{ID}/../x"),
            format!("{ID}..x"),
            format!("{ID}.a b"),
            format!("{ID}.é"),
            ID.to_owned(),
            format!("{ID}.{}", "a".repeat(200)),
        ] {
            assert_eq!(object("a", &offer(&file)), None, "{file}");
        }
        let mut other = offer(&format!("{ID}.pcapng"));
        other.id = "../etc".to_owned();
        assert_eq!(object("a", &other), None);
    }

    #[test]
    fn metadata_are_ascii_on_one_line() {
        let all = metadata(&offer("x"));
        assert_eq!(all.len(), 5);
        assert!(all.contains(&("rule", "C2??connection ?".to_owned())));
        let mut other = offer("x");
        other.pod.clear();
        assert_eq!(metadata(&other).len(), 4);
    }
}
