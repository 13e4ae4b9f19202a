//! What stands before each call: who calls, whether he may, and the account of both.

use std::sync::Arc;

use remora_capture::audit::{Decision, Entry};
use remora_proto::{
    reason::{Reason, status},
    tls::Peer,
};
use tonic::{Code, Extensions, Status};

use super::{Action, Caller, ClusterAccess, Credentials, Denied, Identified, Scope};
use crate::{
    audit::{Audit, AuditError},
    metrics::Metrics,
};

/// What is refused before it is known what is wanted.
const CALL: &str = "call";

/// Who calls, as far as that is known.
#[derive(Clone, Debug)]
pub struct Known {
    pub caller: Caller,
    pub who: Identified,
}

/// What a call is about, for the account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct About<'a> {
    /// The selector, as text.
    pub target: &'a str,
    pub filter: &'a str,
    /// The capture's id, once it has one.
    pub capture: &'a str,
}

/// Lets through who may, when that is in the audit log.
#[derive(Debug)]
pub struct Guard {
    access: ClusterAccess,
    audit: Audit,
    metrics: Arc<Metrics>,
}

impl Guard {
    #[must_use]
    pub fn new(access: ClusterAccess, audit: Audit, metrics: Arc<Metrics>) -> Self {
        Self {
            access,
            audit,
            metrics,
        }
    }

    /// Who `caller` is. That nobody is known goes into the log.
    ///
    /// # Errors
    /// UNAUTHENTICATED; UNAVAILABLE if nobody could be asked.
    pub async fn identify(&self, caller: Caller) -> Result<Known, Status> {
        match self.access.identify(&caller).await {
            Ok(who) => Ok(Known { caller, who }),
            Err(denied) => {
                let entry = entry(CALL, &caller, None, &denied_as(&denied), About::default());
                Err(self.refuse(CALL, entry, &denied).await)
            }
        }
    }

    /// Somebody whose credentials cannot be read. That, too, goes into the log.
    pub(super) async fn unread(&self, connection: &Extensions, denied: &Denied) -> Status {
        let caller = Caller {
            credentials: Credentials::None,
            address: connection.get::<Peer>().map(|peer| peer.address),
        };
        let entry = entry(CALL, &caller, None, &denied_as(denied), About::default());
        self.refuse(CALL, entry, denied).await
    }

    /// What lasts asks again, every [`super::ALLOW_FOR`], whether it still may; only that it may not goes into the
    /// log.
    ///
    /// # Errors
    /// As [`Guard::allow`].
    pub async fn still(
        &self,
        known: &Known,
        action: Action,
        scope: &Scope,
        about: About<'_>,
    ) -> Result<(), Status> {
        let Known { caller, who } = known;
        let asked = async {
            let who = self.access.identify(caller).await?;
            self.access.allow(&who, action, scope).await
        };
        let Err(denied) = asked.await else {
            return Ok(());
        };
        let action = action.as_str();
        let entry = entry(action, caller, Some(who), &denied_as(&denied), about);
        Err(self.refuse(action, entry, &denied).await)
    }

    /// Lets `known` do `action` in all of `scope`, once that is in the log.
    ///
    /// # Errors
    /// PERMISSION_DENIED with the right that is missing; UNAVAILABLE if nobody could be asked, or the log cannot
    /// be written.
    pub async fn allow(
        &self,
        known: &Known,
        action: Action,
        scope: &Scope,
        about: About<'_>,
    ) -> Result<(), Status> {
        let Known { caller, who } = known;
        let word = action.as_str();
        let of = |outcome| {
            let mut entry = entry(word, caller, Some(who), &outcome, about);
            if let Scope::Namespaces(names) = scope {
                entry.namespaces = names.iter().cloned().collect();
            }
            entry
        };
        match self.access.allow(who, action, scope).await {
            Ok(()) => {
                let recorded = self.audit.record(of(Outcome::Allowed)).await;
                recorded.map_err(|error| self.unrecorded(word, &error))?;
                self.metrics.access(word, "allowed");
                Ok(())
            }
            Err(denied) => {
                let entry = of(denied_as(&denied));
                Err(self.refuse(word, entry, &denied).await)
            }
        }
    }

    /// What was allowed is over: `bytes` of packets were read, and why no more if there was a fault.
    pub async fn read(&self, known: &Known, about: About<'_>, bytes: u64, fault: &str) {
        let Known { caller, who } = known;
        let outcome = Outcome::Done(fault.to_owned());
        let mut entry = entry(Action::Read.as_str(), caller, Some(who), &outcome, about);
        entry.bytes = Some(bytes);
        // The packets are out: all that can be done is to say so.
        if let Err(error) = self.audit.record(entry).await {
            let user = &who.user.name;
            tracing::error!(%error, user, bytes, capture = about.capture, "a read is not in the log");
        }
    }

    async fn refuse(&self, action: &'static str, entry: Entry, denied: &Denied) -> Status {
        self.metrics.access(action, denied.word());
        tracing::warn!(
            user = entry.who,
            address = entry.address,
            action,
            reason = denied.word(),
            "refused a call"
        );
        // It is refused all the same; that the log cannot be written is logged by its writer.
        let _unrecorded = self.audit.record(entry).await;
        denied.into()
    }

    fn unrecorded(&self, action: &'static str, error: &AuditError) -> Status {
        self.metrics.access(action, "audit");
        status(
            Code::Unavailable,
            Reason::PermissionDenied,
            error.to_string(),
        )
    }
}

enum Outcome {
    Allowed,
    Refused(String),
    Done(String),
}

fn denied_as(denied: &Denied) -> Outcome {
    Outcome::Refused(format!("{}: {denied}", denied.word()))
}

fn entry(
    action: &'static str,
    caller: &Caller,
    who: Option<&Identified>,
    outcome: &Outcome,
    about: About<'_>,
) -> Entry {
    let (decision, reason) = match outcome {
        Outcome::Allowed => (Decision::Allowed, String::new()),
        Outcome::Refused(reason) => (Decision::Refused, reason.clone()),
        Outcome::Done(fault) => (Decision::Done, fault.clone()),
    };
    let name = match (who, &caller.credentials) {
        (Some(who), _) => who.user.name.clone(),
        (None, Credentials::Certificate(name)) => format!("certificate {name}"),
        (None, Credentials::Token(_)) => "unknown token".to_owned(),
        (None, Credentials::None) => "nobody".to_owned(),
    };
    Entry {
        address: caller
            .address
            .map(|address| address.to_string())
            .unwrap_or_default(),
        target: about.target.to_owned(),
        filter: about.filter.to_owned(),
        capture: about.capture.to_owned(),
        reason,
        ..Entry::new(action, decision, &name)
    }
}
