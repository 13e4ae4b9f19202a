//! A CA and certificates by it, good and bad, as files. Also a module of other crates' tests.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};

/// Something that signs certificates.
#[derive(Debug)]
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    key: String,
    pem: String,
}

/// What a certificate says.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// DNS names, URIs (with `://`) and IP addresses of its subjectAltName.
    pub names: &'a [&'a str],
    pub uses: Vec<ExtendedKeyUsagePurpose>,
    /// First and last year in which it is valid.
    pub years: (i32, i32),
}

impl<'a> Wanted<'a> {
    /// A client's.
    #[must_use]
    pub fn client(names: &'a [&'a str]) -> Self {
        Self::of(names, ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// A server's.
    #[must_use]
    pub fn server(names: &'a [&'a str]) -> Self {
        Self::of(names, ExtendedKeyUsagePurpose::ServerAuth)
    }

    fn of(names: &'a [&'a str], purpose: ExtendedKeyUsagePurpose) -> Self {
        Self {
            names,
            uses: vec![purpose],
            years: (2020, 2090),
        }
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.subject_alt_names = self.names.iter().map(|name| san(name)).collect();
        params.extended_key_usages.clone_from(&self.uses);
        params.not_before = date_time_ymd(self.years.0, 1, 1);
        params.not_after = date_time_ymd(self.years.1, 12, 31);
        params.distinguished_name = named("remora test");
        params
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn san(name: &str) -> SanType {
    if let Ok(address) = name.parse::<IpAddr>() {
        SanType::IpAddress(address)
    } else if name.contains("://") {
        SanType::URI(name.try_into().expect("a URI is ASCII"))
    } else {
        SanType::DnsName(name.try_into().expect("a DNS name is ASCII"))
    }
}

/// A certificate and its key, in files.
#[derive(Clone, Debug)]
pub struct Files {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Files {
    /// Writes them as `NAME.crt` and `NAME.key`.
    #[must_use]
    pub fn write(directory: &Path, name: &str, cert: &str, key: &str) -> Self {
        let files = Self {
            cert: directory.join(format!("{name}.crt")),
            key: directory.join(format!("{name}.key")),
        };
        fs::write(&files.cert, cert).expect("a test's directory can be written");
        fs::write(&files.key, key).expect("a test's directory can be written");
        files
    }
}

impl Ca {
    /// One that signed itself.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = named(name);
        let key = KeyPair::generate().expect("a key can be made");
        let pem = params.self_signed(&key).expect("it signs itself").pem();
        Self {
            key: key.serialize_pem(),
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// Its certificate.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Writes its certificate as `NAME.crt`.
    #[must_use]
    pub fn file(&self, directory: &Path, name: &str) -> PathBuf {
        self.as_own(directory, name).cert
    }

    /// Its own certificate and key, as if it were somebody's.
    #[must_use]
    pub fn as_own(&self, directory: &Path, name: &str) -> Files {
        Files::write(directory, name, &self.pem, &self.key)
    }

    /// A certificate by it.
    #[must_use]
    pub fn sign(&self, directory: &Path, name: &str, wanted: &Wanted<'_>) -> Files {
        let key = KeyPair::generate().expect("a key can be made");
        let cert = wanted.params().signed_by(&key, &self.issuer);
        let cert = cert.expect("the CA signs").pem();
        Files::write(directory, name, &cert, &key.serialize_pem())
    }
}

/// A certificate that only itself signed.
#[must_use]
pub fn self_signed(directory: &Path, name: &str, wanted: &Wanted<'_>) -> Files {
    let key = KeyPair::generate().expect("a key can be made");
    let cert = wanted.params().self_signed(&key).expect("it signs itself");
    Files::write(directory, name, &cert.pem(), &key.serialize_pem())
}

/// A certificate by one that may not sign any, with that one behind it in the file.
#[must_use]
pub fn by_a_leaf(ca: &Ca, directory: &Path, name: &str, wanted: &Wanted<'_>) -> Files {
    let between = KeyPair::generate().expect("a key can be made");
    let params = wanted.params();
    let middle = params
        .signed_by(&between, &ca.issuer)
        .expect("the CA signs");
    let issuer = Issuer::new(params, between);
    let key = KeyPair::generate().expect("a key can be made");
    let leaf = wanted.params().signed_by(&key, &issuer);
    let chain = leaf.expect("it signs").pem() + &middle.pem();
    Files::write(directory, name, &chain, &key.serialize_pem())
}
