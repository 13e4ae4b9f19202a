//! The cluster's own rules, by way of its API server.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::future::join_all;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use super::{
    ALLOW_FOR, Action, Caller, Credentials, DEADLINE, DENY_FOR, Denied, Scope,
    cache::Cache,
    review::{Identity, Reviews},
    rights::{Answer, Right, User, judge, rights},
};

/// Most callers whose identity is kept.
const CALLERS_MAX: usize = 4096;
/// Most answers about rights that are kept.
const ANSWERS_MAX: usize = 16 * 1024;
/// Most questions under way; more wait, within their call's deadline.
const QUESTIONS_MAX: usize = 64;

/// Whom the API server calls by a certificate: nobody there has such a name, unless a role binding
/// gives it rights.
const CERTIFICATE_USER: &str = "remora:tls:";
const CERTIFICATE_GROUP: &str = "remora:tls";

type Key = [u8; 32];

/// Somebody whom the API server knows, for as long as a call lasts.
#[derive(Clone, Debug)]
pub struct Identified {
    pub user: Arc<User>,
    /// Of his credentials: another token of the same user may have other rights.
    key: Key,
}

/// Asks the API server by TokenReview and SubjectAccessReview, and keeps the answers for a while.
#[derive(Debug)]
pub struct ClusterAccess {
    reviews: Reviews,
    /// `Err`: of nobody, and why.
    callers: Mutex<Cache<Key, Result<Arc<User>, String>>>,
    answers: Mutex<Cache<(Key, Right), bool>>,
    questions: Semaphore,
}

impl ClusterAccess {
    #[must_use]
    pub fn new(reviews: Reviews) -> Self {
        Self {
            reviews,
            callers: Mutex::new(Cache::new(CALLERS_MAX)),
            answers: Mutex::new(Cache::new(ANSWERS_MAX)),
            questions: Semaphore::new(QUESTIONS_MAX),
        }
    }

    /// Who `caller` is.
    ///
    /// # Errors
    /// Nobody, or nobody could be asked.
    pub async fn identify(&self, caller: &Caller) -> Result<Identified, Denied> {
        let key = caller.key().ok_or(Denied::NoCredentials)?;
        let deadline = Instant::now() + DEADLINE;
        let user = self.user(caller, key, deadline).await?;
        Ok(Identified { user, key })
    }

    /// May `who` do `action` in all of `scope`?
    ///
    /// # Errors
    /// No, or nobody could be asked.
    pub async fn allow(
        &self,
        who: &Identified,
        action: Action,
        scope: &Scope,
    ) -> Result<(), Denied> {
        let deadline = Instant::now() + DEADLINE;
        let Identified { user, key } = who;
        let answers = join_all(rights(action, scope)?.into_iter().map(async |right| {
            let answer = self.answer(user, *key, right.clone(), deadline).await;
            (right, answer)
        }));
        judge(user, answers.await)
    }

    async fn user(
        &self,
        caller: &Caller,
        key: Key,
        deadline: Instant,
    ) -> Result<Arc<User>, Denied> {
        let token = match &caller.credentials {
            Credentials::None => return Err(Denied::NoCredentials),
            Credentials::Certificate(name) => {
                return Ok(Arc::new(User {
                    name: format!("{CERTIFICATE_USER}{name}"),
                    uid: None,
                    groups: vec![CERTIFICATE_GROUP.to_owned()],
                    extra: BTreeMap::new(),
                }));
            }
            Credentials::Token(token) => token,
        };
        let known = lock(&self.callers).get(&key, Instant::now());
        if let Some(known) = known {
            return known.map_err(Denied::BadToken);
        }
        let asked = Instant::now();
        let identity = self
            .ask(deadline, self.reviews.token(token))
            .await
            .map_err(Denied::NotAsked)?;
        let (found, lasts) = match identity {
            Identity::User(user) => (Ok(Arc::new(user)), ALLOW_FOR),
            Identity::Nobody(why) => (Err(why), DENY_FOR),
        };
        lock(&self.callers).put(key, found.clone(), asked, lasts);
        found.map_err(Denied::BadToken)
    }

    async fn answer(&self, user: &User, key: Key, right: Right, deadline: Instant) -> Answer {
        let place = (key, right);
        let known = lock(&self.answers).get(&place, Instant::now());
        let allowed = match known {
            Some(known) => known,
            None => {
                // From the question on: an answer may be on its way while a right is taken.
                let asked = Instant::now();
                match self
                    .ask(deadline, self.reviews.access(user, &place.1))
                    .await
                {
                    Ok(allowed) => {
                        let lasts = if allowed { ALLOW_FOR } else { DENY_FOR };
                        lock(&self.answers).put(place, allowed, asked, lasts);
                        allowed
                    }
                    Err(why) => return Answer::Unknown(why),
                }
            }
        };
        if allowed { Answer::Yes } else { Answer::No }
    }

    async fn ask<T>(
        &self,
        deadline: Instant,
        question: impl Future<Output = Result<T, String>>,
    ) -> Result<T, String> {
        let asked = async {
            let _place = self
                .questions
                .acquire()
                .await
                .map_err(|closed| closed.to_string())?;
            question.await
        };
        timeout_at(deadline, asked)
            .await
            .unwrap_or_else(|_elapsed| {
                Err(format!("the API server did not answer within {DEADLINE:?}"))
            })
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
