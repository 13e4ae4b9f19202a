//! YAML to rules.

use remora_capture::alert::Alert;
use remora_rules::{Decision, RULES_MAX, Rules, decide, explain};

const ALERT: &[u8] = br#"{"rule": "C2", "priority": "Critical", "source": "syscall",
    "tags": ["network", "mitre"], "output_fields": {"container.id": "0123456789ab",
    "proc.name": "nc", "fd.sip": "198.51.100.23", "fd.sport": 4444}}"#;

/// # Panics
/// A message or what rules decide breaks its bounds.
pub fn check(text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    match Rules::parse([("rules.yaml", text.as_ref())]) {
        Ok(rules) => {
            assert!(rules.len() <= RULES_MAX);
            let shown = rules.to_string();
            assert!(shown.chars().all(|c| c == '\n' || !c.is_control()));
            let alert = Alert::from_json(ALERT).expect("an alert");
            let explanation = explain(&rules, &alert);
            let shown = explanation.to_string();
            assert!(shown.chars().all(|c| c == '\n' || !c.is_control()));
            if let Decision::Capture(plans) = decide(&rules, &alert) {
                let captures = plans.iter().filter(|plan| plan.capture(&alert).is_ok());
                assert_eq!(captures.count(), explanation.captures().count());
            }
        }
        Err(error) => {
            let shown = error.to_string();
            assert!(shown.len() < 16 * 1024, "{} bytes", shown.len());
            assert!(
                shown.chars().all(|c| c == '\n' || !c.is_control()),
                "{shown:?}"
            );
        }
    }
}
