//! Which rights an action needs, and what the answers mean. Pure.

use std::{collections::BTreeMap, collections::BTreeSet, fmt};

use remora_capture::session::Selector;

use super::Denied;

/// Most namespaces that one call may touch.
pub const NAMESPACES_MAX: usize = 64;

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Begin a capture.
    Start,
    /// End one.
    Stop,
    /// Know of one: its state, its counts.
    Show,
    /// Know of all.
    List,
    /// Be told of changes.
    Watch,
    /// Have the packets.
    Read,
    /// Know the nodes and their agents.
    Status,
    /// Delete what the nodes keep.
    Delete,
    /// See to it that nobody does.
    Hold,
    /// No more.
    Release,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 10] = [
        Self::Start,
        Self::Stop,
        Self::Show,
        Self::List,
        Self::Watch,
        Self::Read,
        Self::Status,
        Self::Delete,
        Self::Hold,
        Self::Release,
    ];

    /// The word, as in the audit log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Show => "show",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Read => "read",
            Self::Status => "status",
            Self::Delete => "delete",
            Self::Hold => "hold",
            Self::Release => "release",
        }
    }

    const fn verb(self) -> &'static str {
        match self {
            Self::Start | Self::Hold => "create",
            Self::Stop => "update",
            Self::Show | Self::Read => "get",
            Self::List | Self::Status => "list",
            Self::Watch => "watch",
            Self::Delete | Self::Release => "delete",
        }
    }

    const fn subresource(self) -> Option<&'static str> {
        match self {
            Self::Read | Self::Delete => Some("data"),
            Self::Hold | Self::Release => Some("hold"),
            _ => None,
        }
    }
}

/// Where somebody wants to do it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// In each of these; none is nowhere, and nowhere nobody has a right.
    Namespaces(BTreeSet<String>),
    /// In no namespace: nodes.
    Cluster,
}

impl Scope {
    #[must_use]
    pub fn namespace(name: impl Into<String>) -> Self {
        Self::Namespaces(BTreeSet::from([name.into()]))
    }

    /// What a capture of `selector` touches.
    #[must_use]
    pub fn of(selector: &Selector) -> Self {
        selector.namespace().map_or(Self::Cluster, Self::namespace)
    }
}

/// A verb on captures, somewhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Right {
    pub verb: &'static str,
    pub subresource: Option<&'static str>,
    /// `None`: in the whole cluster.
    pub namespace: Option<String>,
}

impl Right {
    /// API group of captures.
    pub const GROUP: &'static str = "remora.dev";
    pub const RESOURCE: &'static str = "captures";

    /// As kubectl's `--resource` takes it.
    #[must_use]
    pub fn resource(&self) -> String {
        let (resource, group) = (Self::RESOURCE, Self::GROUP);
        match self.subresource {
            Some(subresource) => format!("{resource}.{group}/{subresource}"),
            None => format!("{resource}.{group}"),
        }
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource())?;
        match &self.namespace {
            Some(namespace) => write!(f, " in namespace \"{namespace}\""),
            None => f.write_str(" in the whole cluster"),
        }
    }
}

/// Who somebody is, as the API server says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: Option<String>,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What was answered about one right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Yes,
    No,
    /// Nobody could be asked; why.
    Unknown(String),
}

/// The rights that `action` needs in `scope`.
///
/// # Errors
/// Nowhere, or too many places.
pub(super) fn rights(action: Action, scope: &Scope) -> Result<Vec<Right>, Denied> {
    let right = |namespace| Right {
        verb: action.verb(),
        subresource: action.subresource(),
        namespace,
    };
    match scope {
        // The nodes are the cluster's; so is what is in none.
        Scope::Cluster => Ok(vec![right(None)]),
        Scope::Namespaces(_) if action == Action::Status => Ok(vec![right(None)]),
        Scope::Namespaces(names) if names.is_empty() => Err(Denied::Nowhere),
        // An empty name asks for all namespaces: it would be another question.
        Scope::Namespaces(names) if names.contains("") => Err(Denied::Nowhere),
        Scope::Namespaces(names) if names.len() > NAMESPACES_MAX => {
            Err(Denied::TooManyNamespaces(names.len()))
        }
        Scope::Namespaces(names) => {
            Ok(names.iter().map(|name| right(Some(name.clone()))).collect())
        }
    }
}

/// All yes is yes. One no is no, whatever else could not be asked.
pub(super) fn judge(user: &User, answers: Vec<(Right, Answer)>) -> Result<(), Denied> {
    if answers.is_empty() {
        return Err(Denied::Nowhere);
    }
    let mut unknown = None;
    for (right, answer) in answers {
        match answer {
            Answer::Yes => {}
            Answer::No => {
                return Err(Denied::NotAllowed {
                    user: user.name.clone(),
                    right,
                });
            }
            Answer::Unknown(why) => unknown = Some(why),
        }
    }
    unknown.map_or(Ok(()), |why| Err(Denied::NotAsked(why)))
}
