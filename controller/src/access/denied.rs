//! Why somebody may not, in words that say what to do.

use remora_capture::text::{excerpt, shown};
use remora_proto::reason::{Reason, status};
use tonic::{Code, Status};

use super::rights::{NAMESPACES_MAX, Right};

/// Longest reason of the API server's that is told, in characters.
const REASON_MAX: usize = 300;

/// A call is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error(
        "nobody is named: send a Kubernetes token as `authorization: Bearer TOKEN` (kubectl remora does; \
         `kubectl create token SERVICEACCOUNT` makes one)"
    )]
    NoCredentials,
    #[error("the authorization is not `Bearer TOKEN` with a token of at most {max} bytes", max = super::caller::TOKEN_MAX)]
    BadHeader,
    #[error("the token is of nobody: it has expired, was revoked, or is for another audience{}; log in again", because(.0))]
    BadToken(String),
    #[error(
        "user \"{}\" may not {right}; who may grant it: {}",
        shown(user),
        grant(user, right)
    )]
    NotAllowed { user: String, right: Right },
    #[error("the call touches no namespace that anybody could have a right in")]
    Nowhere,
    #[error(
        "{0} namespaces are touched, and at most {NAMESPACES_MAX} can be asked about; select less"
    )]
    TooManyNamespaces(usize),
    #[error(
        "nobody could be asked who may do this ({0}), so nobody may; is the API server there? try again"
    )]
    NotAsked(String),
}

impl Denied {
    /// A stable word, as in the audit log and the metrics.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::NoCredentials => "no_credentials",
            Self::BadHeader => "bad_header",
            Self::BadToken(_) => "bad_token",
            Self::NotAllowed { .. } => "not_allowed",
            Self::Nowhere => "nowhere",
            Self::TooManyNamespaces(_) => "too_many_namespaces",
            Self::NotAsked(_) => "not_asked",
        }
    }
}

impl From<&Denied> for Status {
    fn from(denied: &Denied) -> Self {
        let code = match denied {
            Denied::NoCredentials | Denied::BadHeader | Denied::BadToken(_) => {
                Code::Unauthenticated
            }
            Denied::NotAllowed { .. } | Denied::Nowhere => Code::PermissionDenied,
            Denied::TooManyNamespaces(_) => Code::InvalidArgument,
            Denied::NotAsked(_) => Code::Unavailable,
        };
        status(code, Reason::PermissionDenied, denied.to_string())
    }
}

impl From<Denied> for Status {
    fn from(denied: Denied) -> Self {
        Self::from(&denied)
    }
}

fn because(reason: &str) -> String {
    if reason.is_empty() {
        String::new()
    } else {
        format!(" ({})", excerpt(reason, REASON_MAX))
    }
}

/// The commands that grant `right` to `user`. What comes from outside is quoted, for they are meant to be pasted.
fn grant(user: &str, right: &Right) -> String {
    let (kind, place) = match &right.namespace {
        Some(namespace) => ("role", format!(" -n {}", quoted(namespace))),
        None => ("clusterrole", String::new()),
    };
    let subject = match user
        .strip_prefix("system:serviceaccount:")
        .filter(|account| account.split(':').count() == 2)
    {
        Some(account) => format!("--serviceaccount={}", quoted(account)),
        None => format!("--user={}", quoted(user)),
    };
    let name = format!(
        "remora-{}-{}",
        right.verb,
        right.subresource.unwrap_or(Right::RESOURCE)
    );
    format!(
        "kubectl create {kind} {name}{place} --verb={verb} --resource={resource} && \
         kubectl create {kind}binding {name}{place} --{kind}={name} {subject}",
        verb = right.verb,
        resource = right.resource(),
    )
}

/// For a shell.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/@=".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", shown(text).to_string().replace('\'', r"'\''"))
}
