//! What went wrong with the controller or the API server, and what the user can do.

use std::error::Error as _;

use anyhow::anyhow;
use remora_proto::reason::{Reason, reason_of};
use tonic::{Code, Status};

/// The right that a call needs: one of the chart's cluster roles, bound in a namespace or, for what is
/// in none, in the cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Right<'a> {
    role: &'static str,
    namespace: Option<&'a str>,
}

impl<'a> Right<'a> {
    /// To capture, to end captures and to read packets.
    pub(crate) fn to_capture(namespace: Option<&'a str>) -> Self {
        Self {
            role: "remora-capturer",
            namespace,
        }
    }

    /// To delete captures, to hold them and to let them go.
    pub(crate) fn to_keep(namespace: Option<&'a str>) -> Self {
        Self {
            role: "remora-custodian",
            namespace,
        }
    }

    /// To see captures and nodes.
    pub(crate) fn to_see(namespace: Option<&'a str>) -> Self {
        Self {
            role: "remora-viewer",
            namespace,
        }
    }

    /// The command that gives it to `user`.
    pub(super) fn grant(self, user: Option<&str>) -> String {
        let Self { role, namespace } = self;
        let (kind, place) = match namespace {
            Some(namespace) => ("rolebinding", format!(" -n {namespace}")),
            None => ("clusterrolebinding", String::new()),
        };
        let (name, subject) = subject(user);
        format!("kubectl create {kind} {role}-{name}{place} --clusterrole={role} {subject}")
    }
}

/// What a controller refused, for a person.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct Refusal {
    pub(super) code: Code,
    text: String,
}
/// Role of who may reach the controller, in Remora's own namespace.
const CLIENT_ROLE: &str = "remora-access";

/// The connection failed, not the call: another replica may answer it.
pub(super) fn is_gone(status: &Status) -> bool {
    // What a server says has no cause on our side.
    reason_of(status).is_none() && (status.source().is_some() || status.code() == Code::Unavailable)
}

/// The status as a line with what to do next; `grant` is the command that would allow it.
pub(super) fn explain(controller: &str, status: &Status, grant: &str) -> Refusal {
    let message = status.message();
    let text = match (reason_of(status), status.code()) {
        (Some(Reason::InvalidFilter), _) => format!("filter: {message}"),
        (Some(Reason::PermissionDenied), _) | (None, Code::PermissionDenied)
            if !message.contains("kubectl create") =>
        {
            format!("{message}\nwhoever may grant it can do so by\n  {grant}")
        }
        (None, Code::Unauthenticated) => format!(
            "{controller} does not know who you are: {message}\nis the token expired, or of another \
             cluster? `kubectl auth whoami` shows whose it is"
        ),
        (Some(_), _) | (None, Code::PermissionDenied) => message.to_owned(),
        (None, Code::Unimplemented) => format!(
            "{controller} does not know this call: is it older than this kubectl-remora, or no \
             controller?"
        ),
        (None, _) if status.source().is_some() => {
            format!("{controller} went away ({})", causes(status))
        }
        (None, Code::Unavailable) => format!("{controller} cannot answer: {message}"),
        (None, code) => format!("{controller} refused: {message} ({code:?})"),
    };
    Refusal {
        code: status.code(),
        text,
    }
}

/// What is told of a connection's end, once each.
fn causes(status: &Status) -> String {
    let mut told = vec![status.message().to_owned()];
    let mut cause = status.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !told.iter().any(|known| known.contains(&text)) {
            told.push(text);
        }
        cause = error.source();
    }
    told.retain(|text| !text.is_empty());
    told.join(": ")
}

/// The command that lets `user` reach the controller.
fn grant_way(user: Option<&str>, namespace: &str) -> String {
    let (name, subject) = subject(user);
    format!(
        "kubectl create rolebinding {CLIENT_ROLE}-{name} -n {namespace} --role={CLIENT_ROLE} {subject}"
    )
}

/// A name for a binding, and its subject as kubectl's flag.
fn subject(user: Option<&str>) -> (String, String) {
    let Some(user) = user else {
        return ("NAME".into(), "--user=NAME".into());
    };
    let mut name: String = user
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(40)
        .collect();
    name = name.trim_matches('-').to_owned();
    let account = user.strip_prefix("system:serviceaccount:");
    let is_plain = |text: &str| {
        let mut bytes = text.bytes();
        bytes.all(|b| b.is_ascii_alphanumeric() || b"-_.:@/".contains(&b))
    };
    let subject = match account {
        Some(account) if is_plain(account) => format!("--serviceaccount={account}"),
        _ if is_plain(user) => format!("--user={user}"),
        _ => format!("--user='{}'", user.replace('\'', r"'\''")),
    };
    (name, subject)
}

/// What the API server refused on the way to the controller.
pub(super) fn explain_api(
    error: kube::Error,
    doing: &str,
    user: Option<&str>,
    namespace: &str,
) -> anyhow::Error {
    match &error {
        kube::Error::Api(status) if status.code == 403 => anyhow!(
            "{doing}: {}\nwhoever may grant it can do so by\n  {}",
            status.message,
            grant_way(user, namespace)
        ),
        kube::Error::Api(status) if status.code == 401 => anyhow!(
            "{doing}: the API server does not know who you are ({}); is the token expired? \
             `kubectl auth whoami` shows whose it is",
            status.message
        ),
        kube::Error::Api(status) => anyhow!("{doing}: {}", status.message),
        _ => anyhow::Error::new(error).context(doing.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use remora_proto::reason;

    use super::*;

    fn told(status: &Status) -> String {
        explain("the controller", status, "GRANT").to_string()
    }

    #[test]
    fn a_missing_right_comes_with_the_command_that_grants_it() {
        let status = reason::status(Code::PermissionDenied, Reason::PermissionDenied, "no right");
        assert!(told(&status).ends_with("GRANT"), "{}", told(&status));
        let status = Status::permission_denied("no right");
        assert!(told(&status).ends_with("GRANT"), "{}", told(&status));
        // The controller knows better.
        let status = Status::permission_denied("no right: kubectl create rolebinding x");
        assert_eq!(told(&status), status.message());
        // No right goes beyond the namespace's level.
        let code = Code::PermissionDenied;
        let status = reason::status(code, Reason::NamespacePrivate, "its level is `none`");
        assert_eq!(told(&status), status.message());
    }

    #[test]
    fn every_refusal_keeps_the_controllers_words() {
        for reason in Reason::ALL {
            let status = reason::status(Code::Internal, reason, "as it is");
            assert!(told(&status).contains("as it is"));
            assert!(!is_gone(&status));
        }
        let lost = Status::unavailable("reset");
        assert!(is_gone(&lost) && told(&lost).contains("cannot answer: reset"));
        assert!(told(&Status::unauthenticated("x")).contains("whoami"));
        assert!(told(&Status::unimplemented("x")).contains("older"));
        assert!(told(&Status::not_found("no pod")).contains("no pod"));
    }

    #[test]
    fn grants_are_what_a_shell_takes() {
        for (user, namespace, command) in [
            (
                Some("alice"),
                Some("shop"),
                "kubectl create rolebinding remora-capturer-alice -n shop \
                 --clusterrole=remora-capturer --user=alice",
            ),
            (
                Some("system:serviceaccount:ci:runner"),
                None,
                "kubectl create clusterrolebinding remora-capturer-system-serviceaccount-ci-runner \
                 --clusterrole=remora-capturer --serviceaccount=ci:runner",
            ),
            (
                Some("O'Neil; rm"),
                Some("shop"),
                r"kubectl create rolebinding remora-capturer-o-neil--rm -n shop --clusterrole=remora-capturer --user='O'\''Neil; rm'",
            ),
            (
                None,
                Some("shop"),
                "kubectl create rolebinding remora-capturer-NAME -n shop \
                 --clusterrole=remora-capturer --user=NAME",
            ),
        ] {
            assert_eq!(Right::to_capture(namespace).grant(user), command);
        }
    }
}
