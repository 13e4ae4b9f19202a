//! Connections: to an address, by TLS to what answers at the other end of a forwarded port.

use std::time::Duration;

use anyhow::Context as _;
use remora_proto::{
    limits::{REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX, STREAM_MESSAGE_BYTES_MAX},
    v1::cluster_client::ClusterClient,
};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use super::address::ControllerAddress;

/// How long a connection may take, the API server's part of it included.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Where a forwarded port leads: the controllers' certificate has this name in any namespace.
const FORWARDED: &str = "https://remora-controller";
/// Silence after which the controller is asked for a sign of life, and how long that may take.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Connects to an address.
///
/// # Errors
/// Nobody takes the connection, or who takes it is not the controller.
pub(super) async fn direct(
    address: &ControllerAddress,
    authority: Option<&[u8]>,
) -> anyhow::Result<Channel> {
    let endpoint = match address {
        ControllerAddress::Unix(path) => {
            let path = path.to_str().context("the socket's path is not UTF-8")?;
            Endpoint::from_shared(format!("unix:{path}"))?
        }
        ControllerAddress::Tls { .. } => {
            let authority = authority.context(
                "--controller https://… needs the controller's certificate authority: --remora-ca FILE",
            )?;
            tls(Endpoint::from_shared(address.to_string())?, authority)?
        }
    };
    alive(endpoint)
        .connect()
        .await
        .with_context(|| format!("no connection to the controller at {address}"))
}

/// For a port that is forwarded to a controller.
///
/// # Errors
/// The authority is not one.
pub(super) fn forwarded(authority: &[u8]) -> anyhow::Result<Endpoint> {
    let endpoint = Endpoint::from_static(FORWARDED);
    Ok(alive(tls(endpoint, authority)?))
}

fn tls(endpoint: Endpoint, authority: &[u8]) -> anyhow::Result<Endpoint> {
    let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority));
    endpoint
        .tls_config(config)
        .context("the controller's certificate authority is not one in PEM")
}

fn alive(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
}

/// The service, with the limits of [`remora_proto::limits`].
pub(super) fn cluster_client(channel: Channel) -> ClusterClient<Channel> {
    ClusterClient::new(channel)
        .max_encoding_message_size(REQUEST_BYTES_MAX)
        .max_decoding_message_size(RESPONSE_BYTES_MAX.max(STREAM_MESSAGE_BYTES_MAX))
}
