//! Authorities, certificates and revocation lists for tests.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason, RevokedCertParams, SerialNumber, date_time_ymd,
};

/// One that signs.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub(crate) pem: String,
}

/// A certificate with its key.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) cert: String,
    pub(crate) key: String,
    serial: u64,
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A server's certificate for this machine.
    pub(crate) fn server(&self) -> Identity {
        self.issue("edge", |params| {
            let names = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
            params.subject_alt_names = names.subject_alt_names;
        })
    }

    pub(crate) fn client(&self, name: &str) -> Identity {
        self.issue(name, |_| {})
    }

    /// One that has ended.
    pub(crate) fn expired(&self, name: &str) -> Identity {
        self.issue(name, |params| params.not_after = date_time_ymd(2020, 1, 1))
    }

    fn issue(&self, name: &str, fill: impl FnOnce(&mut CertificateParams)) -> Identity {
        let serial = rand::random::<u64>() >> 1;
        let mut params = named(name);
        params.serial_number = Some(SerialNumber::from(serial));
        fill(&mut params);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap().pem();
        Identity { cert, key: key.serialize_pem(), serial }
    }

    /// A list of what it has revoked.
    pub(crate) fn revoke(&self, identities: &[&Identity]) -> String {
        let revoked = |identity: &&Identity| RevokedCertParams {
            serial_number: SerialNumber::from(identity.serial),
            revocation_time: date_time_ymd(2026, 1, 1),
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 1, 1),
            next_update: date_time_ymd(2126, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: identities.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}
