//! What a part that has ended left: its files, as its signed manifest names them.

use remora_crd::CaptureFile;
use remora_proto::v1;

use crate::fleet::{RemoteAgent, whole::Told};

/// Pods that get an Event each.
pub(super) const EVENTS_MAX: usize = 100;

/// `None`: it is not sealed yet, or the agent is silent.
pub(super) async fn of(agent: &RemoteAgent, told: &Told) -> Option<Vec<CaptureFile>> {
    let manifest = agent.manifest(&told.state.id).await?;
    let file = |file: &remora_capture::evidence::FileRecord| {
        let digest = file.digest.as_ref();
        CaptureFile {
            node: told.node.clone(),
            name: file.name.clone(),
            bytes: digest.map_or(0, |digest| i64::try_from(digest.bytes).unwrap_or(i64::MAX)),
            sha256: digest
                .map(|digest| digest.sha256.to_string())
                .unwrap_or_default(),
        }
    };
    Some(manifest.files.iter().map(file).collect())
}

/// What an Event says of a part.
pub(super) fn note(part: &v1::ClusterPart, capture: &str, files: &[CaptureFile]) -> String {
    let counts = part.state.as_ref().and_then(|state| state.counts);
    let counts = counts
        .map(remora_capture::session::Counts::from)
        .unwrap_or_default();
    let mut note = format!(
        "Capture {capture}: {} packets matched, {} in files, {} missing",
        counts.matched,
        counts.written,
        counts.missing()
    );
    let own = files
        .iter()
        .filter(|file| file.node == part.node && file.name.starts_with(&part.capture));
    for file in own.take(4) {
        note += &format!("; {} sha256:{}", file.name, file.sha256);
    }
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_the_counts_and_the_digest_of_its_own_files() {
        let part = v1::ClusterPart {
            node: "w1".into(),
            capture: "A1".into(),
            state: Some(v1::CaptureState {
                counts: Some(v1::Counts {
                    matched: 9,
                    written: 7,
                    lost: 2,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let file = |node: &str, name: &str| CaptureFile {
            node: node.into(),
            name: name.into(),
            bytes: 1,
            sha256: format!("{node}{name}"),
        };
        let files = [
            file("w1", "A1.pcapng"),
            file("w1", "B.pcapng"),
            file("w2", "A1.pcapng"),
        ];
        assert_eq!(
            note(&part, "C", &files),
            "Capture C: 9 packets matched, 7 in files, 2 missing; A1.pcapng sha256:w1A1.pcapng"
        );
    }
}
