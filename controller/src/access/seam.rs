//! The guard, as the cluster's service asks it.

use remora_proto::reason::{Reason, status};
use tonic::{Code, Extensions, Status, metadata::MetadataMap};

use super::{About, Action, Caller, Guard, Known, Scope};
use crate::api::access::{self, Access, Reach, Verb, Wish};

#[tonic::async_trait]
impl Access for Guard {
    async fn caller(
        &self,
        metadata: &MetadataMap,
        connection: &Extensions,
    ) -> Result<access::Caller, Status> {
        let caller = match Caller::shown(metadata, connection) {
            Ok(caller) => caller,
            Err(denied) => return Err(self.unread(connection, &denied).await),
        };
        let known = self.identify(caller).await?;
        Ok(access::Caller {
            name: known.who.user.name.clone(),
            known: Some(known),
        })
    }

    async fn allow(&self, caller: &access::Caller, wish: Wish<'_>) -> Result<(), Status> {
        let known = known(caller)?;
        Self::allow(self, known, action(wish), &scope(wish.reach), about(wish)).await
    }

    async fn still(&self, caller: &access::Caller, wish: Wish<'_>) -> Result<(), Status> {
        let known = known(caller)?;
        Self::still(self, known, action(wish), &scope(wish.reach), about(wish)).await
    }

    async fn read(&self, caller: &access::Caller, wish: Wish<'_>, bytes: u64, fault: &str) {
        if let Some(known) = &caller.known {
            Self::read(self, known, about(wish), bytes, fault).await;
        }
    }
}

/// Nobody but [`Guard::identify`] makes callers here.
fn known(caller: &access::Caller) -> Result<&Known, Status> {
    caller.known.as_ref().ok_or_else(|| {
        status(
            Code::PermissionDenied,
            Reason::PermissionDenied,
            "the caller is not known",
        )
    })
}

fn action(wish: Wish<'_>) -> Action {
    match wish.verb {
        Verb::Start => Action::Start,
        Verb::Stop => Action::Stop,
        Verb::See if wish.capture.is_empty() => Action::List,
        Verb::See => Action::Show,
        Verb::Read => Action::Read,
        Verb::Delete => Action::Delete,
        Verb::Hold => Action::Hold,
        Verb::Release => Action::Release,
    }
}

fn scope(reach: Reach<'_>) -> Scope {
    match reach {
        Reach::Namespace(name) => Scope::namespace(name),
        Reach::Cluster => Scope::Cluster,
    }
}

fn about(wish: Wish<'_>) -> About<'_> {
    About {
        target: wish.target,
        filter: wish.filter,
        capture: wish.capture,
    }
}
