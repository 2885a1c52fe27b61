//! Keys that verify tokens: from a shared secret, a PEM file or a JWK set (RFC 7517), each pinned to the algorithms that
//! its kind allows. A token's header never decides how a key is used: an RSA key checks no HMAC, whatever the header says.
//!
//! PURE: bytes come in as arguments.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::{hmac, signature};
use rustls_pki_types::pem::{self, PemObject, SectionKind};
use serde::Deserialize;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::{PublicKey, RSAPublicKey};
use x509_parser::x509::SubjectPublicKeyInfo;

/// The shortest shared secret: what HMAC-SHA-256 needs (RFC 7518 section 3.2).
pub const SECRET_BYTES_MIN: usize = 32;

/// The shortest RSA modulus that is taken (RFC 7518 section 3.3); ring's own limit too.
const RSA_BITS_MIN: usize = 2_048;

/// A signature algorithm of RFC 7518 section 3.1 or RFC 8037 section 3.1. `none` is not among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// HMAC with SHA-256.
    Hs256,
    /// HMAC with SHA-384.
    Hs384,
    /// HMAC with SHA-512.
    Hs512,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// RSASSA-PSS with SHA-384.
    Ps384,
    /// RSASSA-PSS with SHA-512.
    Ps512,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// Each with its name in a token's header.
    pub const ALL: [(&'static str, Self); 12] = [
        ("HS256", Self::Hs256),
        ("HS384", Self::Hs384),
        ("HS512", Self::Hs512),
        ("RS256", Self::Rs256),
        ("RS384", Self::Rs384),
        ("RS512", Self::Rs512),
        ("PS256", Self::Ps256),
        ("PS384", Self::Ps384),
        ("PS512", Self::Ps512),
        ("ES256", Self::Es256),
        ("ES384", Self::Es384),
        ("EdDSA", Self::EdDsa),
    ];

    /// By its name, which is case-sensitive. `None` for `none` and for whatever else is not above.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, algorithm)| *algorithm)
    }

    /// Its name in a token's header.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, known)| *known == self).map_or("", |(name, _)| name)
    }
}

/// One key.
pub(super) struct Key {
    /// Its name in the set; a key without a name is tried for every token.
    id: Option<Box<str>>,
    /// The only algorithm that its set allows (`alg`).
    only: Option<Algorithm>,
    material: Material,
}

/// A shared secret, for each hash.
struct Macs {
    sha256: hmac::Key,
    sha384: hmac::Key,
    sha512: hmac::Key,
}

enum Material {
    /// A shared secret, for each hash.
    Secret(Box<Macs>),
    /// Modulus and exponent, big-endian, without leading zeroes.
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// An uncompressed point.
    P256(Vec<u8>),
    /// The same.
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

/// What kind it is, never what it holds.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("id", &self.id).field("kind", &self.material.kind()).finish_non_exhaustive()
    }
}

impl Key {
    /// Whether a token with this key id and algorithm may be checked by this key.
    pub(super) fn fits(&self, id: Option<&str>, algorithm: Algorithm) -> bool {
        let named = self.id.as_deref().is_none_or(|own| id.is_none_or(|id| id == own));
        named && self.only.is_none_or(|only| only == algorithm) && self.material.allows(algorithm)
    }

    /// Whether the token's key id is the name of this key, or this key has none.
    pub(super) fn is_meant_by(&self, id: Option<&str>) -> bool {
        self.id.as_deref().is_none_or(|own| id.is_none_or(|id| id == own))
    }

    /// Whether `signature` is that of `message`. `false` also where the key does not allow `algorithm`.
    pub(super) fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        let by = |with: &'static dyn signature::VerificationAlgorithm, key: &[u8]| {
            signature::UnparsedPublicKey::new(with, key).verify(message, signature).is_ok()
        };
        match (&self.material, algorithm) {
            (Material::Secret(macs), Algorithm::Hs256) => hmac::verify(&macs.sha256, message, signature).is_ok(),
            (Material::Secret(macs), Algorithm::Hs384) => hmac::verify(&macs.sha384, message, signature).is_ok(),
            (Material::Secret(macs), Algorithm::Hs512) => hmac::verify(&macs.sha512, message, signature).is_ok(),
            (Material::Rsa { n, e }, _) => rsa_parameters(algorithm).is_some_and(|with| {
                signature::RsaPublicKeyComponents { n, e }.verify(with, message, signature).is_ok()
            }),
            (Material::P256(key), Algorithm::Es256) => by(&signature::ECDSA_P256_SHA256_FIXED, key),
            (Material::P384(key), Algorithm::Es384) => by(&signature::ECDSA_P384_SHA384_FIXED, key),
            (Material::Ed25519(key), Algorithm::EdDsa) => by(&signature::ED25519, key),
            _ => false,
        }
    }
}

impl Material {
    fn secret(bytes: &[u8]) -> Result<Self, KeyError> {
        if bytes.len() < SECRET_BYTES_MIN {
            return Err(KeyError::ShortSecret(bytes.len()));
        }
        Ok(Self::Secret(Box::new(Macs {
            sha256: hmac::Key::new(hmac::HMAC_SHA256, bytes),
            sha384: hmac::Key::new(hmac::HMAC_SHA384, bytes),
            sha512: hmac::Key::new(hmac::HMAC_SHA512, bytes),
        })))
    }

    fn rsa(n: &[u8], e: &[u8]) -> Result<Self, KeyError> {
        let bare = |number: &[u8]| number.iter().copied().skip_while(|byte| *byte == 0).collect::<Vec<_>>();
        let (n, e) = (bare(n), bare(e));
        let bits = n.first().map_or(0, |first| n.len() * 8 - first.leading_zeros() as usize);
        if bits < RSA_BITS_MIN {
            return Err(KeyError::ShortRsa(bits));
        }
        Ok(Self::Rsa { n, e })
    }

    /// An uncompressed point of one of the two curves.
    fn point(point: &[u8]) -> Result<Self, KeyError> {
        match (point.first(), point.len()) {
            (Some(4), 65) => Ok(Self::P256(point.to_vec())),
            (Some(4), 97) => Ok(Self::P384(point.to_vec())),
            _ => Err(KeyError::Unsupported("an elliptic curve other than P-256 and P-384, or a compressed point")),
        }
    }

    fn ed25519(point: &[u8]) -> Result<Self, KeyError> {
        if point.len() == 32 {
            Ok(Self::Ed25519(point.to_vec()))
        } else {
            Err(KeyError::Unsupported("an Edwards curve other than Ed25519"))
        }
    }

    const fn kind(&self) -> &'static str {
        match self {
            Self::Secret(_) => "secret",
            Self::Rsa { .. } => "RSA",
            Self::P256(_) => "P-256",
            Self::P384(_) => "P-384",
            Self::Ed25519(_) => "Ed25519",
        }
    }

    const fn allows(&self, algorithm: Algorithm) -> bool {
        match self {
            Self::Secret(_) => matches!(algorithm, Algorithm::Hs256 | Algorithm::Hs384 | Algorithm::Hs512),
            Self::Rsa { .. } => rsa_parameters(algorithm).is_some(),
            Self::P256(_) => matches!(algorithm, Algorithm::Es256),
            Self::P384(_) => matches!(algorithm, Algorithm::Es384),
            Self::Ed25519(_) => matches!(algorithm, Algorithm::EdDsa),
        }
    }
}

const fn rsa_parameters(algorithm: Algorithm) -> Option<&'static signature::RsaParameters> {
    match algorithm {
        Algorithm::Rs256 => Some(&signature::RSA_PKCS1_2048_8192_SHA256),
        Algorithm::Rs384 => Some(&signature::RSA_PKCS1_2048_8192_SHA384),
        Algorithm::Rs512 => Some(&signature::RSA_PKCS1_2048_8192_SHA512),
        Algorithm::Ps256 => Some(&signature::RSA_PSS_2048_8192_SHA256),
        Algorithm::Ps384 => Some(&signature::RSA_PSS_2048_8192_SHA384),
        Algorithm::Ps512 => Some(&signature::RSA_PSS_2048_8192_SHA512),
        Algorithm::Hs256
        | Algorithm::Hs384
        | Algorithm::Hs512
        | Algorithm::Es256
        | Algorithm::Es384
        | Algorithm::EdDsa => None,
    }
}

/// Why there is no key in what was given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A secret that could be guessed.
    #[error("the secret has {0} bytes; it needs at least {SECRET_BYTES_MIN} (RFC 7518 section 3.2)")]
    ShortSecret(usize),
    /// An RSA key that could be factored.
    #[error("the RSA key has {0} bits; it needs at least {RSA_BITS_MIN} (RFC 7518 section 3.3)")]
    ShortRsa(usize),
    /// A key that no algorithm here uses.
    #[error("the key is {0}")]
    Unsupported(&'static str),
    /// A file of another kind.
    #[error("there is no PEM public key or certificate in it (`-----BEGIN PUBLIC KEY-----`)")]
    NoPem,
    /// A private key where a public one belongs.
    #[error(
        "it holds a private key: give the public one (`openssl pkey -in KEY -pubout`), tokens are only checked here"
    )]
    PrivateKey,
    /// A PEM section that does not hold what it says.
    #[error("a PEM section in it cannot be read as {0}")]
    BadPem(&'static str),
    /// Not a JWK set.
    #[error("it is no JWK set (RFC 7517: `{{\"keys\": [..]}}`): {0}")]
    NoJwks(String),
    /// A JWK set of which nothing can be used.
    #[error("no key in the set can check a token{0}")]
    NoUsableJwk(String),
}

/// The one key of a shared secret.
pub(super) fn of_secret(secret: &[u8]) -> Result<Vec<Key>, KeyError> {
    Ok(vec![Key { id: None, only: None, material: Material::secret(secret)? }])
}

/// All public keys and certificates in PEM text.
pub(super) fn of_pem(text: &[u8]) -> Result<Vec<Key>, KeyError> {
    let mut keys = Vec::new();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text) {
        let (kind, der) = section.map_err(|_error: pem::Error| KeyError::NoPem)?;
        let material = match kind {
            SectionKind::PublicKey => of_spki(&der)?,
            SectionKind::Certificate => {
                let (_, certificate) =
                    X509Certificate::from_der(&der).map_err(|_error| KeyError::BadPem("a certificate"))?;
                of_spki(certificate.public_key().raw)?
            }
            SectionKind::RsaPrivateKey | SectionKind::PrivateKey | SectionKind::EcPrivateKey => {
                return Err(KeyError::PrivateKey);
            }
            SectionKind::Crl | SectionKind::Csr | SectionKind::EchConfigList | _ => continue,
        };
        keys.push(Key { id: None, only: None, material });
    }
    if keys.is_empty() { Err(KeyError::NoPem) } else { Ok(keys) }
}

/// SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7).
fn of_spki(der: &[u8]) -> Result<Material, KeyError> {
    const ED25519: &str = "1.3.101.112";
    let (_, spki) = SubjectPublicKeyInfo::from_der(der).map_err(|_error| KeyError::BadPem("a public key"))?;
    if spki.algorithm.algorithm.to_id_string() == ED25519 {
        return Material::ed25519(&spki.subject_public_key.data);
    }
    match spki.parsed().map_err(|_error| KeyError::BadPem("a public key"))? {
        PublicKey::RSA(RSAPublicKey { modulus, exponent }) => Material::rsa(modulus, exponent),
        PublicKey::EC(point) => Material::point(point.data()),
        PublicKey::DSA(_) | PublicKey::GostR3410(_) | PublicKey::GostR3410_2012(_) | PublicKey::Unknown(_) => {
            Err(KeyError::Unsupported("neither RSA, P-256, P-384 nor Ed25519"))
        }
    }
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<serde_json::Value>,
}

/// A JSON Web Key (RFC 7517 section 4, RFC 7518 section 6, RFC 8037 section 2).
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<Box<str>>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    k: Option<String>,
}

/// The keys of a JWK set that can check a token. As RFC 7517 section 5 asks, those of unknown kinds are passed over; so are
/// secrets where `may_hold_secrets` is not set, since what everybody may fetch keeps none.
pub(super) fn of_jwks(text: &[u8], may_hold_secrets: bool) -> Result<Vec<Key>, KeyError> {
    let set: Jwks = serde_json::from_slice(text).map_err(|error| KeyError::NoJwks(error.to_string()))?;
    let (mut keys, mut last) = (Vec::new(), None);
    for value in set.keys {
        match of_jwk(value, may_hold_secrets) {
            Ok(key) => keys.push(key),
            Err(error) => last = Some(error),
        }
    }
    if keys.is_empty() {
        return Err(KeyError::NoUsableJwk(last.map_or_else(String::new, |error| format!(": {error}"))));
    }
    Ok(keys)
}

fn of_jwk(value: serde_json::Value, may_hold_secrets: bool) -> Result<Key, KeyError> {
    let jwk: Jwk = serde_json::from_value(value).map_err(|error| KeyError::NoJwks(error.to_string()))?;
    let checks = jwk.purpose.as_deref().is_none_or(|purpose| purpose == "sig")
        && jwk.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op == "verify"));
    if !checks {
        return Err(KeyError::Unsupported("not for signatures (`use`, `key_ops`)"));
    }
    let only = match jwk.alg.as_deref() {
        None => None,
        Some(name) => Some(Algorithm::named(name).ok_or(KeyError::Unsupported("for an unknown algorithm (`alg`)"))?),
    };
    let material = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("oct", _) if may_hold_secrets => Material::secret(&decoded(jwk.k.as_deref())?)?,
        ("oct", _) => {
            return Err(KeyError::Unsupported("a secret, which an address that others can read must not hold"));
        }
        ("RSA", _) => Material::rsa(&decoded(jwk.n.as_deref())?, &decoded(jwk.e.as_deref())?)?,
        ("EC", Some("P-256" | "P-384")) => {
            let point = [&[4][..], &decoded(jwk.x.as_deref())?, &decoded(jwk.y.as_deref())?].concat();
            Material::point(&point)?
        }
        ("OKP", Some("Ed25519")) => Material::ed25519(&decoded(jwk.x.as_deref())?)?,
        _ => return Err(KeyError::Unsupported("neither RSA, P-256, P-384 nor Ed25519")),
    };
    if only.is_some_and(|only| !material.allows(only)) {
        return Err(KeyError::Unsupported("of another kind than its algorithm (`alg`) needs"));
    }
    Ok(Key { id: jwk.kid, only, material })
}

fn decoded(text: Option<&str>) -> Result<Vec<u8>, KeyError> {
    let text = text.ok_or(KeyError::Unsupported("not complete"))?;
    URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_error| KeyError::Unsupported("not in base64url"))
}
