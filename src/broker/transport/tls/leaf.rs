//! What a client's certificate says of its owner.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustls::pki_types::CertificateDer;
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::prelude::{AttributeTypeAndValue, FromDer, GeneralName, X509Certificate, X509Name};

use crate::broker::transport::peer::{AlternativeName, PeerCertificate};

/// Of a certificate that has been verified. `Err`: it cannot be read all the same, which is a reason to refuse it.
pub(super) fn parse(der: &CertificateDer<'_>) -> Result<PeerCertificate, String> {
    let wrong = |error: &dyn std::fmt::Display| format!("the client's certificate cannot be read: {error}");
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| wrong(&error))?;
    let names = certificate.subject_alternative_name().map_err(|error| wrong(&error))?;
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    let subject = certificate.subject();
    let common_name = subject.iter_common_name().next().and_then(|name| name.as_str().ok());
    Ok(PeerCertificate {
        common_name: common_name.filter(|name| is_clean(name)).map(Into::into),
        subject: subject_text(subject).into(),
        alternative_names: names.iter().filter_map(alternative_name).collect(),
        der: der.to_vec().into(),
    })
}

/// A name with control characters, NUL above all, may read as another one further on.
fn is_clean(name: &str) -> bool {
    !name.is_empty() && !name.contains(char::is_control)
}

fn alternative_name(name: &GeneralName<'_>) -> Option<AlternativeName> {
    let text = |text: &str| is_clean(text).then(|| Box::from(text));
    if let GeneralName::DNSName(name) = name {
        text(name).map(AlternativeName::Dns)
    } else if let GeneralName::RFC822Name(name) = name {
        text(name).map(AlternativeName::Email)
    } else if let GeneralName::URI(name) = name {
        text(name).map(AlternativeName::Uri)
    } else if let GeneralName::IPAddress(bytes) = name {
        ip(bytes).map(AlternativeName::Ip)
    } else {
        None
    }
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes)));
    v4.or_else(|_length| <[u8; 16]>::try_from(bytes).map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes)))).ok()
}

/// RFC 4514: the last part first.
fn subject_text(subject: &X509Name<'_>) -> String {
    let parts: Vec<String> =
        subject.iter().map(|part| part.iter().map(attribute_text).collect::<Vec<_>>().join("+")).collect();
    parts.into_iter().rev().collect::<Vec<_>>().join(",")
}

fn attribute_text(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type();
    let name = oid2abbrev(oid, oid_registry()).map_or_else(|_unknown| oid.to_id_string(), str::to_owned);
    match attribute.as_str() {
        Ok(text) => format!("{name}={}", escaped(text)),
        Err(_) => {
            let hex: String = attribute.as_slice().iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{name}=#{hex}")
        }
    }
}

/// RFC 4514 section 2.4.
fn escaped(text: &str) -> String {
    let last = text.chars().count().saturating_sub(1);
    let mut out = String::new();
    for (at, c) in text.chars().enumerate() {
        match c {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => out.extend(['\\', c]),
            ' ' if at == 0 || at == last => out.extend(['\\', ' ']),
            '#' if at == 0 => out.extend(['\\', '#']),
            c if c.is_control() => {
                let mut bytes = [0; 4];
                out.extend(c.encode_utf8(&mut bytes).bytes().map(|byte| format!("\\{byte:02X}")));
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn certificate(fill: impl FnOnce(&mut CertificateParams)) -> PeerCertificate {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        fill(&mut params);
        let made = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let parsed = parse(made.der()).unwrap();
        assert_eq!(&*parsed.der, &made.der()[..]);
        parsed
    }

    #[test]
    fn a_subject_is_written_as_rfc_4514_has_it() {
        let parsed = certificate(|params| {
            params.distinguished_name.push(DnType::CountryName, "DE");
            params.distinguished_name.push(DnType::OrganizationName, "Pl,ant \"7\"");
            params.distinguished_name.push(DnType::CommonName, " press+7 ");
        });
        assert_eq!(&*parsed.subject, r#"CN=\ press\+7\ ,O=Pl\,ant \"7\",C=DE"#);
        assert_eq!(parsed.common_name.as_deref(), Some(" press+7 "));
    }

    #[test]
    fn a_name_with_a_control_character_is_none() {
        let parsed = certificate(|params| params.distinguished_name.push(DnType::CommonName, "press\0-7"));
        assert_eq!((parsed.common_name, &*parsed.subject), (None, r"CN=press\00-7"));
        assert_eq!(certificate(|_| {}).common_name, None);
    }

    #[test]
    fn alternative_names_keep_their_order() {
        let parsed = certificate(|params| {
            params.subject_alt_names = vec![
                SanType::Rfc822Name("press@plant.example".try_into().unwrap()),
                SanType::DnsName("press.example".try_into().unwrap()),
                SanType::IpAddress("192.0.2.7".parse().unwrap()),
                SanType::IpAddress("2001:db8::7".parse().unwrap()),
                SanType::URI("urn:press:7".try_into().unwrap()),
            ];
        });
        let expected = [
            AlternativeName::Email("press@plant.example".into()),
            AlternativeName::Dns("press.example".into()),
            AlternativeName::Ip("192.0.2.7".parse().unwrap()),
            AlternativeName::Ip("2001:db8::7".parse().unwrap()),
            AlternativeName::Uri("urn:press:7".into()),
        ];
        assert_eq!(parsed.alternative_names, expected);
    }
}
