//! Who there is, by which token, and the kubeconfig that says so.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use rcgen::KeyPair;

use super::{
    authority::{Authority, Files, Usage, write_secret},
    lan,
};

/// The user that may do everything.
pub const ADMIN: &str = "admin";
pub const CONTROLLER_MANAGER: &str = "system:kube-controller-manager";
pub const SCHEDULER: &str = "system:kube-scheduler";
/// Users without any right.
pub const PEOPLE: [&str; 3] = ["alice", "bob", "mallory"];

/// Certificates, and users with their tokens.
#[derive(Debug)]
pub struct Access {
    authority: Authority,
    /// Token by user.
    tokens: BTreeMap<String, String>,
    directory: PathBuf,
    /// What the API server shows.
    pub(super) server: Files,
    /// What the API server shows to kubelets.
    pub(super) to_kubelets: Files,
}

impl Access {
    pub(super) fn new(directory: &Path, nodes: &[&str]) -> Result<Self> {
        let directory = directory.join("access");
        let authority = Authority::new("remora-test", &directory)?;
        let (api, vip) = (lan::API.to_string(), lan::KUBERNETES.to_string());
        let names = [
            "127.0.0.1",
            &api,
            &vip,
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
        ];
        let server = authority.issue(Usage::Server, "kube-apiserver", None, &names)?;
        let masters = Some("system:masters");
        let to_kubelets = authority.issue(Usage::Client, "to-kubelets", masters, &[])?;
        let accounts = KeyPair::generate()?;
        write_secret(&directory.join("accounts.key"), &accounts.serialize_pem())?;
        write_secret(&directory.join("accounts.pub"), &accounts.public_key_pem())?;

        let mut users: Vec<(String, &str)> = vec![
            (ADMIN.into(), "system:masters"),
            (CONTROLLER_MANAGER.into(), ""),
            (SCHEDULER.into(), ""),
        ];
        users.extend(nodes.iter().map(|node| (node_user(node), "system:nodes")));
        users.extend(PEOPLE.map(|person| (person.into(), "")));
        let (mut tokens, mut table) = (BTreeMap::new(), String::new());
        for (user, group) in users {
            let token = secret()?;
            table += &format!("{token},{user},{user},\"{group}\"\n");
            tokens.insert(user, token);
        }
        write_secret(&directory.join("tokens.csv"), &table)?;
        Ok(Self {
            authority,
            tokens,
            directory,
            server,
            to_kubelets,
        })
    }

    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The key that service accounts' tokens are signed with.
    pub(super) fn accounts_key(&self) -> PathBuf {
        self.directory.join("accounts.key")
    }

    /// Its public half.
    pub(super) fn accounts_public_key(&self) -> PathBuf {
        self.directory.join("accounts.pub")
    }

    /// The API server's table of tokens.
    pub(super) fn token_table(&self) -> PathBuf {
        self.directory.join("tokens.csv")
    }

    /// A user's token.
    ///
    /// # Errors
    /// There is no such user.
    pub fn token(&self, user: &str) -> Result<&str> {
        let token = self.tokens.get(user);
        Ok(token.with_context(|| format!("no user {user}"))?)
    }

    /// Writes a kubeconfig with which a user reaches the API server at `url` into a directory.
    ///
    /// # Errors
    /// There is no such user, or it cannot be written.
    pub fn kubeconfig(&self, user: &str, url: &str, directory: &Path) -> Result<PathBuf> {
        let path = directory.join(format!("{}.kubeconfig", user.replace(':', "-")));
        self.kubeconfig_at(user, url, &path)?;
        Ok(path)
    }

    /// The same as a file of any name.
    ///
    /// # Errors
    /// As [`Self::kubeconfig`].
    pub fn kubeconfig_at(&self, user: &str, url: &str, path: &Path) -> Result<()> {
        self.kubeconfig_with(user, self.token(user)?, url, path)
    }

    /// The same of any token, a service account's perhaps.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn kubeconfig_with(&self, user: &str, token: &str, url: &str, path: &Path) -> Result<()> {
        let authority = BASE64_STANDARD.encode(self.authority.pem());
        let text = format!(
            r#"apiVersion: v1
kind: Config
current-context: remora-test
contexts:
- name: remora-test
  context: {{cluster: remora-test, user: "{user}"}}
clusters:
- name: remora-test
  cluster:
    server: {url}
    certificate-authority-data: {authority}
users:
- name: "{user}"
  user: {{token: {token}}}
"#
        );
        write_secret(path, &text)
    }

    /// For certificates of the tests' own.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

/// The user that a node's kubelet is.
pub(super) fn node_user(node: &str) -> String {
    format!("system:node:{node}")
}

/// 32 hexadecimal digits that nobody can guess.
fn secret() -> Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
