//! A request as an AWS SDK signs it. Also a module of other crates' tests; its code is its own, so that
//! it does not share the controller's mistakes.

use sha2::{Digest as _, Sha256};

/// Who signs, for which service.
#[derive(Clone, Copy, Debug)]
pub struct Signer<'a> {
    pub access_key: &'a str,
    pub secret_key: &'a str,
    pub service: &'a str,
    /// As `20261124T030039Z`.
    pub date: &'a str,
}

/// What is signed.
#[derive(Clone, Copy, Debug)]
pub struct Unsigned<'a> {
    pub method: &'a str,
    /// Without a query, and without characters that need an encoding.
    pub path: &'a str,
    pub host: &'a str,
    /// With lower-case names.
    pub headers: &'a [(&'a str, &'a str)],
    pub body: &'a [u8],
}

const REGION: &str = "us-east-1";

impl Signer<'_> {
    /// All headers of the request, `host` and `authorization` too.
    #[must_use]
    pub fn sign(&self, request: Unsigned<'_>) -> Vec<(String, String)> {
        let length = request.body.len().to_string();
        let mut headers: Vec<(String, String)> = request
            .headers
            .iter()
            .copied()
            .chain([("host", request.host), ("x-amz-date", self.date)])
            .chain((!request.body.is_empty()).then_some(("content-length", &*length)))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        headers.sort();
        let names: Vec<&str> = headers.iter().map(|(name, _)| &**name).collect();
        let names = names.join(";");
        let mut text = format!("{}\n{}\n\n", request.method, request.path);
        for (name, value) in &headers {
            text += &format!("{name}:{value}\n");
        }
        text += &format!("\n{names}\n{}", hex(&Sha256::digest(request.body)));
        let day = &self.date[..8];
        let scope = format!("{day}/{REGION}/{}/aws4_request", self.service);
        let text = format!(
            "AWS4-HMAC-SHA256\n{}\n{scope}\n{}",
            self.date,
            hex(&Sha256::digest(text.as_bytes()))
        );
        let mut key = hmac(format!("AWS4{}", self.secret_key).as_bytes(), day);
        for part in [REGION, self.service, "aws4_request"] {
            key = hmac(&key, part);
        }
        let signature = hex(&hmac(&key, &text));
        headers.push((
            "authorization".to_owned(),
            format!(
                "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
                self.access_key
            ),
        ));
        headers
    }
}

/// RFC 2104.
fn hmac(key: &[u8], text: &str) -> [u8; 32] {
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let pad = |with: u8| block.map(|byte| byte ^ with);
    let inner = Sha256::new_with_prefix(pad(0x36))
        .chain_update(text)
        .finalize();
    Sha256::new_with_prefix(pad(0x5c))
        .chain_update(inner)
        .finalize()
        .into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
