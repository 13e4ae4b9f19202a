//! The services, and the Unix socket that they are on; [`super::network`] has them on the network.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::unistd::chown;
use remora_proto::{
    FILE_DESCRIPTOR_SET,
    limits::{REQUEST_BYTES_MAX, STREAM_MESSAGE_BYTES_MAX},
    v1::{capture_server::CaptureServer, node_server::NodeServer, uploads_server::UploadsServer},
};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{service::Routes, transport::Server};

use super::{
    PeerPolicy, StatusSource, capture::CaptureService, custody::Custody, node::NodeService,
    uploads::UploadsService,
};
use crate::{
    custody::Custodian, node::AskEvidence, session::DriverHandle, supervisor, upload::Uploader,
};

/// Calls under way on one connection.
const STREAMS_MAX: u32 = 128;

/// What the server is made of.
pub struct ServerParts {
    pub driver: DriverHandle,
    pub peers: PeerPolicy,
    pub status: StatusSource,
    pub evidence: AskEvidence,
    pub custodian: Arc<dyn Custodian>,
    pub uploader: Arc<dyn Uploader>,
}

/// The socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("an agent is listening on {} already; choose another --socket", .0.display())]
    InUse(PathBuf),
    #[error("{} is there and is not a socket; choose another --socket", .0.display())]
    NotASocket(PathBuf),
    #[error("failed to {action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// The socket, removed when the agent ends.
#[derive(Debug)]
pub struct Socket {
    listener: Option<UnixListener>,
    path: PathBuf,
}

impl Socket {
    /// Makes the socket with mode 0660. A dead agent's socket is replaced.
    ///
    /// # Errors
    /// [`SocketError`].
    pub async fn bind(path: &Path, peers: &PeerPolicy) -> Result<Self, SocketError> {
        let failed = |action| {
            let path = path.to_owned();
            move |source| SocketError::Io {
                action,
                path,
                source,
            }
        };
        if let Some(parent) = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            fs::create_dir_all(parent).map_err(failed("make the directory of"))?;
        }
        match fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => {
                return Err(SocketError::NotASocket(path.to_owned()));
            }
            Ok(_) => {
                if UnixStream::connect(path).await.is_ok() {
                    return Err(SocketError::InUse(path.to_owned()));
                }
                fs::remove_file(path).map_err(failed("replace"))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("look at")(error)),
        }
        let listener = UnixListener::bind(path).map_err(failed("listen on"))?;
        let socket = Self {
            listener: Some(listener),
            path: path.to_owned(),
        };
        if let Some(gid) = peers.gid() {
            chown(path, None, Some(gid))
                .map_err(|errno| failed("give to its group")(errno.into()))?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o660))
            .map_err(failed("set the mode of"))?;
        Ok(socket)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "failed to remove the socket");
        }
    }
}

/// All that is served; the same on the socket and on the network.
#[derive(Clone)]
pub struct Services(Routes);

impl Services {
    /// # Errors
    /// The API's description is not one.
    pub async fn new(parts: ServerParts) -> anyhow::Result<Self> {
        let ServerParts {
            driver,
            peers,
            status,
            evidence,
            custodian,
            uploader,
        } = parts;
        let uploads = UploadsServer::new(UploadsService {
            uploader: Arc::clone(&uploader),
            peers: peers.clone(),
        })
        .max_decoding_message_size(REQUEST_BYTES_MAX);
        let capture = CaptureServer::new(CaptureService {
            driver: driver.clone(),
            peers: peers.clone(),
            evidence,
            custody: Custody {
                custodian,
                uploader,
            },
            spawn: supervisor::detach,
        })
        .max_decoding_message_size(REQUEST_BYTES_MAX)
        .max_encoding_message_size(
            STREAM_MESSAGE_BYTES_MAX.max(remora_proto::limits::RESPONSE_BYTES_MAX),
        );
        let node = NodeServer::new(NodeService {
            driver,
            peers,
            source: status,
        })
        .max_decoding_message_size(REQUEST_BYTES_MAX);
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<CaptureServer<CaptureService>>().await;
        health.set_serving::<NodeServer<NodeService>>().await;
        health.set_serving::<UploadsServer<UploadsService>>().await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let routes = Routes::new(capture)
            .add_service(node)
            .add_service(uploads)
            .add_service(health_service)
            .add_service(reflection);
        Ok(Self(routes))
    }

    pub(super) fn routes(self) -> Routes {
        self.0
    }
}

/// Serves until `stop`, then lets calls under way end.
///
/// # Errors
/// The transport fails.
pub async fn serve(
    mut socket: Socket,
    services: Services,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let Some(listener) = socket.listener.take() else {
        return Ok(());
    };
    Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .add_routes(services.routes())
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop)
        .await?;
    Ok(())
}
