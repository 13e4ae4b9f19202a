//! Where a controller listens.

use std::{fmt, path::PathBuf, str::FromStr};

use remora_proto::client::AgentAddress;

/// Port of a controller's gRPC that was not told another.
pub(crate) const CONTROLLER_PORT: u16 = 2805;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ControllerAddress {
    /// Path of a Unix socket; written `unix:PATH`.
    Unix(PathBuf),
    /// By TLS; written `https://HOST:PORT`.
    Tls { host: String, port: u16 },
}

/// A text is not a [`ControllerAddress`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a controller's address; use https://HOST:PORT or unix:PATH")]
pub(crate) struct AddressError(String);

impl FromStr for ControllerAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let refused = || {
            let short: String = text.chars().take(80).collect();
            AddressError(short.escape_debug().to_string())
        };
        let Some(rest) = text.strip_prefix("https://") else {
            let Ok(AgentAddress::Unix(path)) = text.parse::<AgentAddress>() else {
                return Err(refused());
            };
            return Ok(Self::Unix(path));
        };
        let authority: http::uri::Authority = rest
            .strip_suffix('/')
            .unwrap_or(rest)
            .parse()
            .map_err(|_refused| refused())?;
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(refused());
        }
        let port = match authority.port() {
            Some(port) => port.as_u16(),
            // A colon without a number after it, or with one that is none.
            None if authority.as_str() != authority.host() => return Err(refused()),
            None => CONTROLLER_PORT,
        };
        Ok(Self::Tls {
            host: authority.host().to_owned(),
            port,
        })
    }
}

impl fmt::Display for ControllerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.to_string_lossy().escape_debug()),
            Self::Tls { host, port } => write!(f, "https://{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_back_as_written() {
        for (text, shown) in [
            ("unix:/run/c.sock", "unix:/run/c.sock"),
            ("/run/c.sock", "unix:/run/c.sock"),
            ("https://remora.example:9000", "https://remora.example:9000"),
            ("https://remora.example", "https://remora.example:2805"),
            ("https://10.0.0.1:2805/", "https://10.0.0.1:2805"),
            ("https://[2001:db8::1]:2805", "https://[2001:db8::1]:2805"),
        ] {
            let address: ControllerAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), shown);
        }
    }

    #[test]
    fn other_texts_are_refused_unprinted() {
        for text in [
            "",
            "remora:2805",
            "http://remora:2805",
            "https://",
            "https://remora:",
            "https://remora:99999",
            "https://remora:2805/path",
            "https://user@remora:2805",
            "unix:",
            "https://\u{1b}[31m",
        ] {
            let error = text.parse::<ControllerAddress>().unwrap_err().to_string();
            assert!(error.contains("use https://HOST:PORT"), "{text}: {error}");
            assert!(!error.contains('\u{1b}'), "{error}");
        }
    }
}
