//! What the API server has, and what has happened to it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Kinds that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Pod,
    Namespace,
}

impl Kind {
    pub(super) fn of_path(path: &str) -> Option<Self> {
        match path {
            "/api/v1/pods" => Some(Self::Pod),
            "/api/v1/namespaces" => Some(Self::Namespace),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Pod => "Pod",
            Self::Namespace => "Namespace",
        }
    }

    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::Pod => "pods",
            Self::Namespace => "namespaces",
        }
    }
}

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A watch has the event that its version is too old.
    TooOldEvent(Kind),
    /// A watch is answered with the status that its version is too old.
    TooOldStatus(Kind),
    /// A watch has no events any more, and no end.
    Stall(Kind),
    /// The connection of a watch is gone in the middle of an event.
    Close(Kind),
    /// A watch ends at once, in order.
    End(Kind),
    /// A request of any kind is answered with 429 and this `Retry-After`, in seconds.
    TooMany(Kind, u32),
    /// A request is answered with 500 and no JSON.
    Broken(Kind),
}

impl Fault {
    pub(super) fn kind(self) -> Kind {
        match self {
            Self::TooOldEvent(kind)
            | Self::TooOldStatus(kind)
            | Self::Stall(kind)
            | Self::Close(kind)
            | Self::End(kind)
            | Self::TooMany(kind, _)
            | Self::Broken(kind) => kind,
        }
    }

    /// It is for watches that are open already, too.
    pub(super) fn is_for_open_watches(self) -> bool {
        matches!(self, Self::TooOldEvent(_) | Self::Stall(_) | Self::Close(_))
    }

    pub(super) fn is_for_watches(self) -> bool {
        !matches!(self, Self::TooMany(..) | Self::Broken(_))
    }
}

#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) version: u64,
    pub(super) kind: Kind,
    /// ADDED, MODIFIED, DELETED.
    pub(super) what: &'static str,
    pub(super) object: Value,
}

#[derive(Debug, Default)]
pub(super) struct Objects {
    version: u64,
    objects: BTreeMap<(Kind, String, String), Value>,
    log: Vec<Event>,
    /// Versions before this one are too old.
    oldest: u64,
    pub(super) faults: Vec<Fault>,
    pub(super) requests: Vec<String>,
}

fn text(object: &Value, pointer: &str) -> String {
    let text = object.pointer(pointer).and_then(Value::as_str);
    text.unwrap_or_default().to_owned()
}

impl Objects {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn put(&mut self, kind: Kind, mut object: Value) -> u64 {
        self.version += 1;
        object["apiVersion"] = json!("v1");
        object["kind"] = json!(kind.name());
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let (namespace, name) = (
            text(&object, "/metadata/namespace"),
            text(&object, "/metadata/name"),
        );
        assert!(!name.is_empty(), "an object without a name: {object}");
        let before = self.objects.insert((kind, namespace, name), object.clone());
        self.log.push(Event {
            version: self.version,
            kind,
            what: if before.is_some() {
                "MODIFIED"
            } else {
                "ADDED"
            },
            object,
        });
        self.version
    }

    pub(super) fn delete(&mut self, kind: Kind, namespace: &str, name: &str) -> u64 {
        self.version += 1;
        let key = (kind, namespace.to_owned(), name.to_owned());
        let object = self.objects.remove(&key);
        let mut object =
            object.unwrap_or_else(|| panic!("there is no {kind:?} {namespace}/{name}"));
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.log.push(Event {
            version: self.version,
            kind,
            what: "DELETED",
            object,
        });
        self.version
    }

    pub(super) fn forget_history(&mut self) {
        self.log.clear();
        self.oldest = self.version;
    }

    pub(super) fn list(&self, kind: Kind, selector: &Selector) -> Vec<Value> {
        let objects = self.objects.iter();
        let of_kind = objects.filter(|((of, ..), _)| *of == kind);
        of_kind
            .map(|(_, object)| object)
            .filter(|object| selector.takes(object))
            .cloned()
            .collect()
    }

    /// `None`: it is too old.
    pub(super) fn since(
        &self,
        version: u64,
        kind: Kind,
        selector: &Selector,
    ) -> Option<Vec<Event>> {
        if version < self.oldest {
            return None;
        }
        let events = self.log.iter();
        let events = events.filter(|event| {
            event.version > version && event.kind == kind && selector.takes(&event.object)
        });
        Some(events.cloned().collect())
    }

    /// The first fault that fits is met now.
    pub(super) fn meet(&mut self, fits: impl Fn(Fault) -> bool) -> Option<Fault> {
        let at = self.faults.iter().position(|fault| fits(*fault))?;
        Some(self.faults.remove(at))
    }
}

/// `spec.nodeName=worker-1`, or nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector(pub(super) Option<(String, String)>);

impl Selector {
    /// As it is in a query.
    pub(super) fn of_text(value: &str) -> Option<Self> {
        let (field, value) = value.split_once('=')?;
        let pointer = format!("/{}", field.replace('.', "/"));
        Some(Self(Some((
            pointer,
            value.trim_start_matches('=').to_owned(),
        ))))
    }

    fn takes(&self, object: &Value) -> bool {
        let Self(Some((pointer, wanted))) = self else {
            return true;
        };
        text(object, pointer) == *wanted
    }
}
