//! The files of a listener's TLS: what is wrong with them, for `check` and for a reload, and the server's side that they make; and
//! what is wrong with those of a client. Pure: their text and the time are arguments.

use std::fmt;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig};
use x509_parser::prelude::{ASN1Time, CertificateRevocationList, FromDer, X509Certificate, X509Version};

use crate::broker::{ClientCert, TlsVersions};
use crate::clock::WallMs;

/// A certificate that ends sooner is warned of: those that a machine renews have more left.
const ENDS_SOON_S: i64 = 14 * 86_400;

/// `openssl x509 -req` makes such ones where nobody says otherwise.
const VERSION_HINT: &str = "make one of version 3: with `-extfile FILE` that holds `subjectAltName = DNS:..`, the names that clients connect to";

/// The texts of the files, as PEM.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// `cert`: the certificate, and those between it and its authority.
    pub cert: &'a str,
    /// `key`.
    pub key: &'a str,
    /// `client_ca`.
    pub client_ca: Option<&'a str>,
    /// `crl`.
    pub crl: Option<&'a str>,
}

/// The texts of a client's files, as PEM, those that there are.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClientSources<'a> {
    /// `ca`: whom it trusts.
    pub ca: Option<&'a str>,
    /// `cert`: the certificate that it shows, and those between it and its authority.
    pub cert: Option<&'a str>,
    /// `key`.
    pub key: Option<&'a str>,
}

/// Which file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// See [`Sources::cert`].
    Cert,
    /// See [`Sources::key`].
    Key,
    /// See [`Sources::client_ca`].
    ClientCa,
    /// See [`Sources::crl`].
    Crl,
    /// See [`ClientSources::ca`].
    Ca,
}

impl Part {
    /// Its key in `routes.yaml`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cert => "cert",
            Self::Key => "key",
            Self::ClientCa => "client_ca",
            Self::Crl => "crl",
            Self::Ca => "ca",
        }
    }
}

/// Something wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which.
    pub part: Part,
    /// The files cannot be used; otherwise a warning.
    pub is_error: bool,
    /// What is wrong, one line.
    pub text: String,
    /// What would be right.
    pub hint: Option<&'static str>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.part.name(), self.text)?;
        self.hint.map_or(Ok(()), |hint| write!(f, " ({hint})"))
    }
}

/// What the files make.
#[derive(Clone, Debug)]
pub struct Material {
    /// The server's side, without ALPN.
    pub config: ServerConfig,
    /// When the certificate ends, seconds since 1970.
    pub not_after_s: i64,
}

/// Looks at all of them. No material if a finding is an error.
#[must_use]
pub fn examine(
    sources: Sources<'_>,
    client_cert: ClientCert,
    versions: TlsVersions,
    now: WallMs,
) -> (Option<Material>, Vec<Finding>) {
    let now_s = i64::try_from(now.0 / 1_000).unwrap_or(i64::MAX);
    let mut examiner =
        Examiner { now_s, findings: Vec::new(), provider: Arc::new(rustls::crypto::ring::default_provider()) };
    let identity = examiner.identity(sources.cert, sources.key);
    let verifier = sources.client_ca.map(|text| examiner.verifier(text, sources.crl, client_cert));
    let config = examiner.config(identity, verifier, versions);
    let usable = examiner.findings.iter().all(|finding| !finding.is_error);
    (config.filter(|_| usable), examiner.findings)
}

/// Looks at what a client has. Each finding is an error: what it would not connect with at all. When the certificates end is not asked.
#[must_use]
pub fn examine_client(sources: ClientSources<'_>) -> Vec<Finding> {
    let mut examiner =
        Examiner { now_s: 0, findings: Vec::new(), provider: Arc::new(rustls::crypto::ring::default_provider()) };
    if let Some(authorities) = sources.ca.and_then(|text| examiner.certificates(Part::Ca, text)) {
        let mut roots = RootCertStore::empty();
        if let Some(error) = authorities.into_iter().find_map(|der| roots.add(der).err()) {
            examiner.error(Part::Ca, format!("a certificate in it cannot be an authority: {error}"), None);
        }
    }
    let chain = sources.cert.and_then(|text| examiner.certificates(Part::Cert, text));
    let key = sources.key.and_then(|text| examiner.key(text));
    if let (Some(chain), Some(key)) = (chain, key) {
        examiner.certified(chain, key);
    }
    examiner.findings
}

struct Examiner {
    now_s: i64,
    findings: Vec<Finding>,
    provider: Arc<CryptoProvider>,
}

type Verifier = Option<Arc<dyn ClientCertVerifier>>;

impl Examiner {
    fn error(&mut self, part: Part, text: impl Into<String>, hint: impl Into<Option<&'static str>>) {
        self.findings.push(Finding { part, is_error: true, text: text.into(), hint: hint.into() });
    }

    fn warning(&mut self, part: Part, text: impl Into<String>, hint: impl Into<Option<&'static str>>) {
        self.findings.push(Finding { part, is_error: false, text: text.into(), hint: hint.into() });
    }

    /// The certificate and its key, and when the former ends.
    fn identity(&mut self, cert: &str, key: &str) -> Option<(CertifiedKey, i64)> {
        let chain = self.certificates(Part::Cert, cert);
        let key = self.key(key);
        let not_after_s = self.check_chain(chain.as_deref()?)?;
        Some((self.certified(chain?, key?)?, not_after_s))
    }

    /// Whether the key can be used, and is the certificate's.
    fn certified(&mut self, chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Option<CertifiedKey> {
        match CertifiedKey::from_der(chain, key, &self.provider) {
            Ok(identity) => Some(identity),
            Err(rustls::Error::InvalidCertificate(error)) => {
                self.error(Part::Cert, format!("its first certificate cannot be used: {error}"), None);
                None
            }
            Err(rustls::Error::InconsistentKeys(_)) => {
                self.error(Part::Key, "this key does not belong to the certificate in `cert`", None);
                None
            }
            Err(error) => {
                self.error(
                    Part::Key,
                    format!("this key cannot be used: {error}"),
                    "RSA of 2048 bits or more, or EC on P-256 or P-384, or Ed25519",
                );
                None
            }
        }
    }

    fn certificates(&mut self, part: Part, text: &str) -> Option<Vec<CertificateDer<'static>>> {
        match CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>() {
            Ok(found) if found.is_empty() => {
                let has_key = text.contains("PRIVATE KEY-----");
                let hint = has_key.then_some("it holds a key: has it taken the place of the certificate?");
                self.error(part, "the file holds no certificate in PEM (`-----BEGIN CERTIFICATE-----`)", hint);
                None
            }
            Ok(found) => Some(found),
            Err(error) => {
                self.error(part, format!("the file is no sound PEM: {error}"), None);
                None
            }
        }
    }

    fn key(&mut self, text: &str) -> Option<PrivateKeyDer<'static>> {
        match PrivateKeyDer::from_pem_slice(text.as_bytes()) {
            Ok(key) => return Some(key),
            Err(_) if text.contains("ENCRYPTED") => {
                let hint = "`openssl pkey -in KEY -out PLAIN` takes the passphrase away; keep PLAIN readable for this user alone";
                self.error(Part::Key, "the key is encrypted, and nobody is there to type its passphrase", hint);
            }
            Err(_) if text.contains("-----BEGIN CERTIFICATE-----") => {
                self.error(Part::Key, "the file holds a certificate, and no key", None);
            }
            Err(_) => {
                self.error(Part::Key, "the file holds no private key in PEM (`-----BEGIN PRIVATE KEY-----`)", None);
            }
        }
        None
    }

    /// The order and the ends of a server's chain. Answers when its first ends.
    fn check_chain(&mut self, chain: &[CertificateDer<'static>]) -> Option<i64> {
        let parsed: Vec<_> = chain.iter().map(|der| X509Certificate::from_der(der)).collect();
        let mut certificates = Vec::new();
        for one in parsed {
            match one {
                Ok((_, certificate)) => certificates.push(certificate),
                Err(error) => {
                    self.error(Part::Cert, format!("a certificate in it cannot be read: {error}"), None);
                    return None;
                }
            }
        }
        if let Some(old) = certificates.first().filter(|leaf| leaf.version() != X509Version::V3) {
            let text = format!("the certificate of `{}` is of X.509 version {}", old.subject(), old.version().0 + 1);
            self.error(Part::Cert, text, VERSION_HINT);
            return None;
        }
        for certificate in &certificates {
            self.check_validity(Part::Cert, certificate);
        }
        let mut pairs = certificates.iter().zip(certificates.iter().skip(1));
        if pairs.any(|(lower, upper)| lower.issuer().as_raw() != upper.subject().as_raw()) {
            let hint = "the server's own comes first, each other one behind the one that it has signed";
            self.warning(
                Part::Cert,
                "the certificates do not follow each other: clients may not find the way to their authority",
                hint,
            );
        }
        certificates.first().map(|leaf| leaf.validity().not_after.timestamp())
    }

    fn check_validity(&mut self, part: Part, certificate: &X509Certificate<'_>) {
        let (validity, subject) = (certificate.validity(), certificate.subject());
        let (from, to) = (validity.not_before, validity.not_after);
        if self.now_s < from.timestamp() {
            let text = format!("the certificate of `{subject}` is valid only from {} on", day(from));
            self.warning(part, text, "is this machine's clock right?");
        } else if self.now_s > to.timestamp() {
            self.warning(part, format!("the certificate of `{subject}` has ended on {}", day(to)), None);
        } else if to.timestamp().saturating_sub(self.now_s) < ENDS_SOON_S {
            self.warning(part, format!("the certificate of `{subject}` ends on {}", day(to)), None);
        }
    }

    fn verifier(&mut self, ca: &str, crl: Option<&str>, client_cert: ClientCert) -> Verifier {
        let authorities = self.certificates(Part::ClientCa, ca);
        let lists = crl.map(|text| self.lists(text));
        let authorities = authorities?;
        let mut roots = RootCertStore::empty();
        let mut parsed = Vec::new();
        for der in &authorities {
            match X509Certificate::from_der(der) {
                Ok((_, certificate)) => parsed.push(certificate),
                Err(error) => {
                    self.error(Part::ClientCa, format!("a certificate in it cannot be read: {error}"), None);
                    return None;
                }
            }
            if let Err(error) = roots.add(der.clone()) {
                self.error(Part::ClientCa, format!("a certificate in it cannot be an authority: {error}"), None);
                return None;
            }
        }
        for certificate in &parsed {
            self.check_validity(Part::ClientCa, certificate);
            if !certificate.is_ca() {
                let text =
                    format!("`{}` is no authority: it may not sign clients' certificates", certificate.subject());
                self.warning(Part::ClientCa, text, "name the certificate that has signed the clients' ones");
            }
        }
        let lists = match lists {
            Some(lists) => {
                let lists = lists?;
                self.check_lists(&lists, &parsed)?;
                lists
            }
            None => Vec::new(),
        };
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider));
        // As OpenSSL does it, and so Mosquitto: the client's own certificate is looked up, and a list that has run out counts no more.
        let builder = builder.with_crls(lists).only_check_end_entity_revocation().enforce_revocation_expiration();
        let builder = match client_cert {
            ClientCert::Required => builder,
            ClientCert::Optional => builder.allow_unauthenticated(),
        };
        builder.build().map_err(|error| self.error(Part::ClientCa, error.to_string(), None)).ok()
    }

    fn lists(&mut self, text: &str) -> Option<Vec<CertificateRevocationListDer<'static>>> {
        let found = CertificateRevocationListDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
        match found {
            Ok(lists) if !lists.is_empty() => Some(lists),
            Ok(_) => {
                self.error(
                    Part::Crl,
                    "the file holds no revocation list in PEM (`-----BEGIN X509 CRL-----`)",
                    "`openssl crl -inform DER -in LIST -out LIST.pem` converts one",
                );
                None
            }
            Err(error) => {
                self.error(Part::Crl, format!("the file is no sound PEM: {error}"), None);
                None
            }
        }
    }

    /// Whose lists they are, and whether they still count.
    fn check_lists(
        &mut self,
        lists: &[CertificateRevocationListDer<'static>],
        authorities: &[X509Certificate<'_>],
    ) -> Option<()> {
        let mut issuers = Vec::new();
        for der in lists {
            let list = match CertificateRevocationList::from_der(der) {
                Ok((_, list)) => list,
                Err(error) => {
                    self.error(Part::Crl, format!("a list in it cannot be read: {error}"), None);
                    return None;
                }
            };
            let issuer = list.issuer();
            let mut of =
                authorities.iter().filter(|authority| authority.subject().as_raw() == issuer.as_raw()).peekable();
            if of.peek().is_none() {
                self.error(Part::Crl, format!("the list is of `{issuer}`, which is not in `client_ca`"), None);
            } else if !of.any(|authority| list.verify_signature(authority.public_key()).is_ok()) {
                let text =
                    format!("the list says that it is of `{issuer}`, and the one in `client_ca` has not signed it");
                self.error(Part::Crl, text, None);
            }
            if let Some(next) = list.next_update().filter(|next| self.now_s > next.timestamp()) {
                let text = format!("the list of `{issuer}` has run out on {}: its clients are refused", day(next));
                self.warning(Part::Crl, text, "fetch a newer one; it is read as soon as it is there");
            }
            issuers.push(issuer.as_raw().to_vec());
        }
        for authority in authorities.iter().filter(|authority| authority.is_ca()) {
            if !issuers.iter().any(|issuer| issuer == authority.subject().as_raw()) {
                let text =
                    format!("there is no list of `{}`: clients with its certificates are refused", authority.subject());
                self.warning(Part::Crl, text, "put the lists of all authorities into the file");
            }
        }
        Some(())
    }

    fn config(
        &mut self,
        identity: Option<(CertifiedKey, i64)>,
        verifier: Option<Verifier>,
        versions: TlsVersions,
    ) -> Option<Material> {
        let (identity, not_after_s) = identity?;
        let versions: &[_] = match versions {
            TlsVersions::From12 => &[&rustls::version::TLS12, &rustls::version::TLS13],
            TlsVersions::Only13 => &[&rustls::version::TLS13],
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider)).with_protocol_versions(versions);
        let builder = builder.map_err(|error| self.error(Part::Cert, error.to_string(), None)).ok()?;
        let builder = match verifier {
            None => builder.with_no_client_auth(),
            Some(verifier) => builder.with_client_cert_verifier(verifier?),
        };
        let config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(identity)));
        Some(Material { config, not_after_s })
    }
}

/// `2027-01-31`.
fn day(time: ASN1Time) -> String {
    time.to_datetime().date().to_string()
}
