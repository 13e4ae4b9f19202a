//! The two questions that the API server is asked.

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, api::PostParams};
use remora_capture::text::excerpt;

use super::{
    caller::Token,
    rights::{Right, User},
};

/// Longest part of an error that is told, in characters.
const ERROR_MAX: usize = 200;

/// Whom a token is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    User(User),
    /// Nobody; what the API server says.
    Nobody(String),
}

/// Asks the API server.
#[derive(Clone)]
pub struct Reviews {
    client: Client,
    /// Tokens must be for it; `None`: for the API server itself.
    audience: Option<String>,
}

impl std::fmt::Debug for Reviews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reviews")
            .field("audience", &self.audience)
            .finish_non_exhaustive()
    }
}

impl Reviews {
    #[must_use]
    pub fn new(client: Client, audience: Option<String>) -> Self {
        Self { client, audience }
    }

    /// # Errors
    /// There is no answer; why.
    pub(super) async fn token(&self, token: &Token) -> Result<Identity, String> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.secret().to_owned(),
                audiences: self.audience.clone().map(|audience| vec![audience]),
            },
            ..TokenReview::default()
        };
        let answer = Api::<TokenReview>::all(self.client.clone())
            .create(&PostParams::default(), &review)
            .await
            .map_err(|error| told(&error))?;
        let status = answer.status.ok_or("its answer has no status")?;
        Ok(identity(status, self.audience.as_deref()))
    }

    /// # Errors
    /// There is no answer; why.
    pub(super) async fn access(&self, user: &User, right: &Right) -> Result<bool, String> {
        let review = SubjectAccessReview {
            spec: question(user, right),
            ..SubjectAccessReview::default()
        };
        let answer = Api::<SubjectAccessReview>::all(self.client.clone())
            .create(&PostParams::default(), &review)
            .await
            .map_err(|error| told(&error))?;
        let status = answer.status.ok_or("its answer has no status")?;
        if let Some(error) = &status.evaluation_error {
            tracing::warn!(error = %excerpt(error, ERROR_MAX), %right, "a right was judged in part");
        }
        Ok(status.allowed && status.denied != Some(true))
    }
}

fn identity(status: TokenReviewStatus, audience: Option<&str>) -> Identity {
    let TokenReviewStatus {
        audiences,
        authenticated,
        error,
        user,
    } = status;
    let nobody = || Identity::Nobody(error.clone().unwrap_or_default());
    if authenticated != Some(true) {
        return nobody();
    }
    // A server that knows no audiences names none: it has not looked.
    if let Some(audience) = audience
        && !audiences.is_some_and(|audiences| audiences.iter().any(|one| one == audience))
    {
        return Identity::Nobody(format!("it is not for `{audience}`"));
    }
    let Some(UserInfo {
        extra,
        groups,
        uid,
        username: Some(name),
    }) = user.filter(|user| user.username.as_ref().is_some_and(|name| !name.is_empty()))
    else {
        return nobody();
    };
    Identity::User(User {
        name,
        uid,
        groups: groups.unwrap_or_default(),
        extra: extra.unwrap_or_default(),
    })
}

fn question(user: &User, right: &Right) -> SubjectAccessReviewSpec {
    let User {
        name,
        uid,
        groups,
        extra,
    } = user;
    SubjectAccessReviewSpec {
        extra: Some(extra.clone()),
        groups: Some(groups.clone()),
        uid: uid.clone(),
        user: Some(name.clone()),
        resource_attributes: Some(ResourceAttributes {
            group: Some(Right::GROUP.to_owned()),
            resource: Some(Right::RESOURCE.to_owned()),
            subresource: right.subresource.map(str::to_owned),
            verb: Some(right.verb.to_owned()),
            namespace: right.namespace.clone(),
            ..ResourceAttributes::default()
        }),
        non_resource_attributes: None,
    }
}

fn told(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            "the controller may not ask; its service account needs the cluster role \
             system:auth-delegator"
                .to_owned()
        }
        kube::Error::Api(status) => format!(
            "the API server answered {}: {}",
            status.code,
            excerpt(&status.message, ERROR_MAX)
        ),
        kube::Error::SerdeError(_) => "the API server's answer is not one".to_owned(),
        error => format!(
            "the API server is not reached: {}",
            excerpt(&error.to_string(), ERROR_MAX)
        ),
    }
}
