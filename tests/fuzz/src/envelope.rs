//! What alerts come in: CloudEvents, and both of Falco Talon's calls.
//!
//! ```text
//! 0 (u8) | a structured CloudEvent
//! 1 (u8) | a call of Talon's `aws:lambda`
//! 2 (u8) | a call of the actionner `remora:capture`
//! ```

use http::{HeaderMap, HeaderValue, header};
use remora_capture::alert::Alert;
use remora_controller::{
    cloudevents,
    outcome::Refusal,
    talon::{Action, Mode},
};
use remora_rules::Asked;

use crate::{Pieces, alert};

/// # Panics
/// An alert is not taken out as it is, or an answer is not for a terminal.
pub fn check(data: &[u8]) {
    let mut pieces = Pieces(data);
    match pieces.u8() % 3 {
        0 => event(pieces.rest()),
        1 => {
            let body = pieces.rest();
            match Action::of_lambda(body, "key", Mode::Live) {
                Ok(action) => confirm_action(&action, body),
                Err(refusal) => confirm(&refusal),
            }
        }
        _ => {
            let body = pieces.rest();
            match Action::of_actionner(body, "key") {
                Ok((event, action)) => {
                    confirm_verbatim(body, &event);
                    confirm_action(&action, &event);
                }
                Err(refusal) => confirm(&refusal),
            }
        }
    }
}

fn event(body: &[u8]) {
    let kind = HeaderValue::from_static(cloudevents::MEDIA_TYPE);
    let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, kind)]);
    match cloudevents::open(&headers, body.to_vec()) {
        Ok(opened) => {
            confirm_verbatim(body, &opened.alert);
            assert!(opened.id.is_some_and(|id| id.len() < 2048));
            alert::check(&opened.alert);
        }
        Err(refusal) => confirm(&refusal),
    }
}

/// The alert that its hash is of is a piece of what came.
fn confirm_verbatim(body: &[u8], alert: &[u8]) {
    assert!(body.windows(alert.len()).any(|piece| piece == alert));
}

fn confirm_action(action: &Action, event: &[u8]) {
    alert::check(event);
    match action.asked() {
        Ok(asked) => confirm_asked(&asked, event),
        Err(refusal) => confirm(&refusal),
    }
}

fn confirm_asked(asked: &Asked, event: &[u8]) {
    if let Some(note) = Action::note(asked) {
        confirm_shown(&note);
    }
    if let Ok(alert) = Alert::from_json(event)
        && let Ok(wanted) = asked.plan().capture(&alert)
    {
        assert_eq!(wanted.spec.target.validate(), Ok(()));
    }
}

fn confirm(refusal: &Refusal) {
    confirm_shown(&refusal.reason);
}

fn confirm_shown(text: &str) {
    assert!(text.len() < 4096, "{} bytes", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?}");
}
