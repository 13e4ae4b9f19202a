//! Who the user is: the bearer token that the API server is shown, too.

use anyhow::{Context as _, bail};
use http::{HeaderValue, Request, Response, header::AUTHORIZATION};
use kube::{
    Config,
    client::{Body, ConfigExt as _, middleware::AuthLayer},
    config::AuthInfo,
};
use tonic::metadata::AsciiMetadataValue;
use tower::{BoxError, Layer as _, ServiceExt as _, service_fn};

/// What the controller is shown.
pub(crate) struct Credential {
    layer: Option<AuthLayer>,
    /// What the user has instead of a token.
    instead: Instead,
}

/// Credentials that do not reach the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instead {
    Nothing,
    Certificate,
    Password,
}

impl Credential {
    /// Of the user that `config` has; runs its credential plug-in, if there is one.
    ///
    /// # Errors
    /// The plug-in failed, or a token file cannot be read.
    pub(crate) fn of(config: &Config) -> anyhow::Result<Self> {
        let layer = config
            .auth_layer()
            .context("no token of the kubeconfig's user")?;
        Ok(Self {
            instead: instead(&config.auth_info, layer.is_some()),
            layer,
        })
    }

    /// Nobody.
    pub(crate) fn none() -> Self {
        Self {
            layer: None,
            instead: Instead::Nothing,
        }
    }

    /// The token as `Bearer TOKEN`; a new one if the last is about to expire.
    ///
    /// # Errors
    /// There is no token; the error says what to do.
    pub(crate) async fn bearer(&self) -> anyhow::Result<AsciiMetadataValue> {
        match (self.instead, &self.layer) {
            (Instead::Password, _) => bail!(
                "the kubeconfig's user has a password, which no Kubernetes takes any more; {}",
                with_a_token()
            ),
            (Instead::Certificate, _) => bail!(
                "the kubeconfig's user has a client certificate, which ends at the API server; {}",
                with_a_token()
            ),
            (Instead::Nothing, None) => bail!("no token; {}", with_a_token()),
            (Instead::Nothing, Some(layer)) => {
                let header = authorization(layer).await?;
                let mut value = AsciiMetadataValue::try_from(header.as_bytes())
                    .ok()
                    .context("the token is not one line of ASCII")?;
                value.set_sensitive(true);
                Ok(value)
            }
        }
    }

    /// There may be a token.
    pub(crate) fn is_some(&self) -> bool {
        self.layer.is_some()
    }
}

fn instead(user: &AuthInfo, has_layer: bool) -> Instead {
    let has_certificate =
        user.client_certificate.is_some() || user.client_certificate_data.is_some();
    match has_layer {
        // A plug-in that gives a certificate leaves nothing to show.
        false if has_certificate || user.exec.is_some() => Instead::Certificate,
        true if user.username.is_some() && user.password.is_some() => Instead::Password,
        _ => Instead::Nothing,
    }
}

fn with_a_token() -> &'static str {
    "the controller needs a token: --token \"$(kubectl create token NAME -n NAMESPACE)\", of a \
     service account that is bound to the cluster role remora-capturer"
}

/// What the layer puts into a request's header: the way to its token that kube shows.
async fn authorization(layer: &AuthLayer) -> anyhow::Result<HeaderValue> {
    let echo = service_fn(|request: Request<Body>| {
        let value = request.headers().get(AUTHORIZATION).cloned();
        std::future::ready(Ok::<_, BoxError>(Response::new(value)))
    });
    let answer = layer.layer(echo).oneshot(Request::new(Body::empty())).await;
    let value = answer
        .map_err(|error| anyhow::anyhow!(error))
        .context("no token of the kubeconfig's user")?;
    value
        .into_body()
        .context("no token of the kubeconfig's user")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(user: AuthInfo) -> anyhow::Result<Credential> {
        let mut config = Config::new("https://127.0.0.1:1".parse().unwrap());
        config.auth_info = user;
        Credential::of(&config)
    }

    async fn bearer(user: AuthInfo) -> anyhow::Result<String> {
        let value = credential(user)?.bearer().await?;
        assert!(value.is_sensitive(), "it would be logged");
        Ok(value.to_str()?.to_owned())
    }

    #[tokio::test]
    async fn a_token_is_shown_as_it_is_or_as_its_file_has_it() {
        let user = AuthInfo {
            token: Some("abc".to_owned().into()),
            ..AuthInfo::default()
        };
        assert_eq!(bearer(user).await.unwrap(), "Bearer abc");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "from-file").unwrap();
        let user = AuthInfo {
            token_file: Some(file.path().to_str().unwrap().to_owned()),
            ..AuthInfo::default()
        };
        assert_eq!(bearer(user).await.unwrap(), "Bearer from-file");
    }

    #[tokio::test]
    async fn a_plug_in_is_asked() {
        let script = r#"echo '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"from-plugin"}}'"#;
        let user = AuthInfo {
            exec: Some(kube::config::ExecConfig {
                api_version: Some("client.authentication.k8s.io/v1".into()),
                command: Some("sh".into()),
                args: Some(vec!["-c".into(), script.into()]),
                ..Default::default()
            }),
            ..AuthInfo::default()
        };
        assert_eq!(bearer(user).await.unwrap(), "Bearer from-plugin");
    }

    #[tokio::test]
    async fn who_has_no_token_is_told_what_to_do() {
        let certificate = AuthInfo {
            client_certificate_data: Some("x".into()),
            ..AuthInfo::default()
        };
        let password = AuthInfo {
            username: Some("a".into()),
            password: Some("b".to_owned().into()),
            ..AuthInfo::default()
        };
        for (user, part) in [
            (certificate, "client certificate"),
            (password, "password"),
            (AuthInfo::default(), "no token"),
        ] {
            let error = bearer(user).await.unwrap_err().to_string();
            assert!(
                error.contains(part) && error.contains("kubectl create token"),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn a_certificate_does_not_hide_a_token() {
        let user = AuthInfo {
            client_certificate_data: Some("x".into()),
            token: Some("abc".to_owned().into()),
            ..AuthInfo::default()
        };
        assert_eq!(bearer(user).await.unwrap(), "Bearer abc");
    }

    #[test]
    fn a_plug_in_that_is_not_there_is_told() {
        let user = AuthInfo {
            exec: Some(kube::config::ExecConfig {
                command: Some("no-such-plugin-of-remora".into()),
                ..Default::default()
            }),
            ..AuthInfo::default()
        };
        let error = format!("{:#}", credential(user).err().unwrap());
        assert!(
            error.contains("no token of the kubeconfig's user"),
            "{error}"
        );
    }
}
