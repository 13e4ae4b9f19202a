//! JSON to an alert, and on to what is captured for it.

use remora_capture::{
    alert::{Alert, mapping, mapping::Traffic},
    filter::Filter,
};

const TRAFFICS: [Traffic; 5] = [
    Traffic::Flow,
    Traffic::Endpoint,
    Traffic::RemoteHost,
    Traffic::Protocol,
    Traffic::All,
];

/// # Panics
/// A target, name or filter that an alert gives is not one.
pub fn check(json: &[u8]) {
    let alert = match Alert::from_json(json) {
        Ok(alert) => alert,
        Err(error) => {
            assert!(error.to_string().len() < 4096, "a message is bounded");
            return;
        }
    };
    match mapping::target(&alert) {
        Ok(target) => assert_eq!(target.validate(), Ok(())),
        Err(error) => assert!(error.to_string().len() < 4096, "a message is bounded"),
    }
    for traffic in TRAFFICS {
        let terms = mapping::terms(&alert, traffic);
        let text = terms.to_string();
        // That no packet can match is an answer as well; what can is told by text that means it.
        if let Ok(filter) = Filter::from_terms(&terms) {
            assert_eq!(Filter::parse(&text).as_ref(), Ok(&filter));
        }
    }
    for name in mapping::names(&alert) {
        assert!(!name.name.chars().any(char::is_control), "{name:?}");
    }
}
