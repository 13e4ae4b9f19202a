//! The HTTP client by which credentials are asked for where they are not in the environment.

use std::time::Duration;

use object_store::{
    ClientOptions, Error,
    client::{HttpClient, HttpConnector},
};

const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(30);

/// Makes one on a machine without CA certificates, too: instance roles are asked for by http.
#[derive(Debug)]
pub(super) struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        let plain = || {
            reqwest::Client::builder()
                .connect_timeout(CONNECT)
                .timeout(ANSWER)
        };
        let without = |_no_certificates| plain().tls_certs_only(Vec::new()).build();
        let client = plain().build().or_else(without);
        let client = client.map_err(|error| Error::Generic {
            store: "HTTP",
            source: Box::new(error),
        })?;
        Ok(HttpClient::new(client))
    }
}
