//! The entries of `broker.listeners`.

use std::path::{Path, PathBuf};

use super::Resolver;
use super::value::{Item, Section, beside};
use crate::broker::{
    Bind, CertificateUser, ClientCert, Listener, Network, ProxyTerms, TlsConfig, TlsFinding, TlsPart, TlsSources,
    TlsVersions, WebSocketTerms, auth, examine_tls,
};
use crate::config::keys;
use crate::config::raw::Value;
use crate::config::source::Place;

/// Its owner and group may connect.
const SOCKET_MODE_DEFAULT: u32 = 0o660;

impl Resolver<'_> {
    pub(super) fn listeners(&mut self, list: &Item<'_>, auth: &auth::Config) -> Vec<Listener> {
        let mut listeners: Vec<Listener> = Vec::new();
        for item in self.items(list) {
            let section = self.section(&item, &keys::LISTENER);
            if section.is_wrong {
                continue;
            }
            let Some(bind) = section.get("bind") else {
                let hint = "such as `{ bind: \"127.0.0.1:1883\", anonymous: true }`";
                self.mistakes.error(&section.place, "a listener needs `bind`", hint.to_owned());
                continue;
            };
            let anonymous = self.boolean(section.get("anonymous")).unwrap_or(false);
            let tls = section.get("tls").and_then(|item| self.tls(&item));
            let websocket = section.get("websocket").and_then(|item| self.websocket(&item));
            let proxy_protocol = section.get("proxy_protocol").and_then(|item| self.proxy_protocol(&item));
            let certificate_user =
                self.certificate_user(section.get("certificate_user"), &tls, proxy_protocol.is_some());
            let Some(address) = self.bind(&section, &bind) else { continue };
            self.check_proxies(&section, &address, &proxy_protocol);
            let v6_only = self.env.v6_only;
            if let Some(first) = listeners.iter().find(|listener| listener.bind.collides(&address, v6_only)) {
                self.bound_twice(&bind, &address, &first.bind, "another listener");
            }
            let has_logins = auth.has_logins() || certificate_user.is_some();
            self.check_access(&bind, &address, (anonymous, has_logins), auth);
            let limits = self.listener_limits(section.get("limits"));
            listeners.push(Listener {
                bind: address,
                anonymous,
                limits,
                certificate_user,
                tls,
                websocket,
                proxy_protocol,
            });
        }
        if self.items(list).is_empty() {
            let hint = "leave the key out for 127.0.0.1:1883, anonymous";
            self.mistakes.error(list.place(), "`listeners` names no listener", hint.to_owned());
        }
        listeners
    }

    /// Two that want one port of one address: the second cannot be bound.
    pub(super) fn bound_twice(&mut self, bind: &Item<'_>, address: &Bind, first: &Bind, whose: &str) {
        let is_all = |bind: &Bind| bind.address().is_some_and(|address| address.ip().is_unspecified());
        let (wrong, hint) = if address.to_string() == first.to_string() {
            (format!("{address} is bound twice: {whose} has it"), "give one of them another `bind`")
        } else if is_all(address) {
            (
                format!("{address} stands for {first} too, which {whose} has"),
                "leave the other one out, or give it another port",
            )
        } else {
            (
                format!("{first}, which {whose} has, stands for {address} too"),
                "leave this one out, or give it another port",
            )
        };
        self.mistakes.error(bind.place(), wrong, hint.to_owned());
    }

    /// Which part of a client's certificate is its user.
    fn certificate_user(
        &mut self,
        item: Option<Item<'_>>,
        tls: &Option<TlsConfig>,
        proxy_protocol: bool,
    ) -> Option<CertificateUser> {
        let parts = [
            ("cn", CertificateUser::CommonName),
            ("san", CertificateUser::AlternativeName),
            ("subject", CertificateUser::Subject),
        ];
        let part = self.choice(item.clone(), &parts)?;
        let shows_one = tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        // A proxy tells the common name alone.
        let is_told = proxy_protocol && part == CertificateUser::CommonName;
        if !(shows_one || is_told) {
            let wrong = "clients show no certificate here that could name their user";
            let hint = "add `tls: { .., client_ca: ca.pem }`, or, behind a proxy that ends TLS, `proxy_protocol: true` and `cn`";
            self.mistakes.error(item?.place(), wrong, hint.to_owned());
        }
        Some(part)
    }

    /// `127.0.0.1:1883`, or `unix:/run/tidegate/mqtt.sock` with `mode`.
    fn bind(&mut self, section: &Section<'_>, bind: &Item<'_>) -> Option<Bind> {
        let text = self.text(Some(bind.clone()))?;
        let Some(path) = text.value.strip_prefix("unix:") else {
            if let Some(mode) = section.get("mode") {
                let hint = "such as `bind: unix:/run/tidegate/mqtt.sock`";
                self.mistakes.error(mode.place(), "`mode` has a meaning only for a Unix socket", hint.to_owned());
            }
            return self.socket_addr(Some(bind.clone())).map(Bind::Tcp);
        };
        if path.is_empty() {
            self.mistakes.error(
                bind.place(),
                "`unix:` needs a path",
                "such as `unix:/run/tidegate/mqtt.sock`".to_owned(),
            );
            return None;
        }
        let path = beside(text.place(), Path::new(path));
        let mode = section.get("mode").map_or(Some(SOCKET_MODE_DEFAULT), |mode| self.mode(mode))?;
        if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            let wrong = format!("a socket's path has at most {SOCKET_PATH_BYTES_MAX} bytes");
            self.mistakes.error(bind.place(), wrong, "such as `unix:/run/tidegate/mqtt.sock`".to_owned());
        }
        Some(Bind::Unix { path, mode })
    }

    fn tls(&mut self, item: &Item<'_>) -> Option<TlsConfig> {
        let section = self.section(item, &keys::TLS);
        let client_certs = [("required", ClientCert::Required), ("optional", ClientCert::Optional)];
        let client_cert = self.choice(section.get("client_cert"), &client_certs).unwrap_or_default();
        let versions = [("1.2", TlsVersions::From12), ("1.3", TlsVersions::Only13)];
        let versions = self.choice(section.get("versions"), &versions).unwrap_or_default();
        let files = ["cert", "key", "client_ca", "crl"].map(|name| self.tls_file(section.get(name)));
        for name in ["cert", "key"] {
            if section.get(name).is_none() && !section.is_wrong {
                let hint = "such as `tls: { cert: server.pem, key: server.key }`";
                self.mistakes.error(&section.place, format!("`tls` needs `{name}`"), hint.to_owned());
            }
        }
        for name in ["client_cert", "crl"] {
            if let Some(item) = section.get(name).filter(|_| section.get("client_ca").is_none()) {
                let wrong = format!("`{name}` has no meaning without `client_ca`");
                let hint = "add `client_ca: ca.pem`, the authority that has signed the clients' certificates";
                self.mistakes.error(item.place(), wrong, hint.to_owned());
            }
        }
        let [cert, key, client_ca, crl] = files;
        self.check_tls(&section, [&cert, &key, &client_ca, &crl], client_cert, versions);
        let path = |file: Option<TlsFile>| file.map(|file| file.path);
        let (cert, key, client_ca, crl) = (path(cert)?, path(key)?, path(client_ca), path(crl));
        Some(TlsConfig { cert, key, client_ca, crl, client_cert, versions })
    }

    /// Looks into the files, if those that have to be there are.
    fn check_tls(
        &mut self,
        section: &Section<'_>,
        files: [&Option<TlsFile>; 4],
        client_cert: ClientCert,
        versions: TlsVersions,
    ) {
        let [cert, key, client_ca, crl] = files.map(|file| file.as_ref()?.text.as_deref());
        let (Some(cert), Some(key_text)) = (cert, key) else { return };
        // A list without an authority has been reported.
        let sources = TlsSources { cert, key: key_text, client_ca, crl: crl.filter(|_| client_ca.is_some()) };
        let (_material, findings) = examine_tls(sources, client_cert, versions, self.env.now);
        self.tls_findings(section, findings);
        let [_, key, _, _] = files;
        if let (Some(item), Some(key)) = (section.get(TlsPart::Key.name()), key) {
            self.check_public_key(item.place(), &key.path);
        }
    }

    /// A private key is its owner's.
    pub(super) fn check_public_key(&mut self, place: &Place, path: &Path) {
        if (self.env.is_public)(path) {
            let hint = format!("`chmod o-r {}`", path.display());
            self.mistakes.warning(place, "everyone on this machine can read the key", hint);
        }
    }

    /// What is wrong with files that `section` names.
    pub(super) fn tls_findings(&mut self, section: &Section<'_>, findings: Vec<TlsFinding>) {
        for finding in findings {
            let Some(item) = section.get(finding.part.name()) else { continue };
            let hint = finding.hint.map(str::to_owned);
            match finding.is_error {
                true => self.mistakes.error(item.place(), finding.text, hint),
                false => self.mistakes.warning(item.place(), finding.text, hint),
            }
        }
    }

    /// A PEM file, with its text where it can be had.
    pub(super) fn tls_file(&mut self, item: Option<Item<'_>>) -> Option<TlsFile> {
        let text = self.text(item)?;
        let path = beside(text.place(), Path::new(&text.value));
        if self.env.no_secrets {
            return Some(TlsFile { path, text: None });
        }
        match (self.env.file)(&path) {
            Ok(text) => Some(TlsFile { path, text: Some(text) }),
            Err(error) => {
                let hint = (error.kind() == std::io::ErrorKind::InvalidData).then(|| {
                    "the files are PEM: `openssl x509 -inform DER -in FILE -out FILE.pem` converts one".to_owned()
                });
                let wrong = format!("{}: {error}", path.display());
                self.wrong_part(&text, 0..text.given.len(), wrong, hint);
                Some(TlsFile { path, text: None })
            }
        }
    }

    /// `true`, or a section.
    fn websocket(&mut self, item: &Item<'_>) -> Option<WebSocketTerms> {
        if matches!(item.node.value, Value::Scalar(_)) {
            return self.boolean(Some(item.clone()))?.then(WebSocketTerms::default);
        }
        let section = self.section(item, &keys::WEBSOCKET);
        let mut terms = WebSocketTerms::default();
        if let Some(path) = self.text(section.get("path")) {
            if !path.value.starts_with('/') || path.value.contains(['?', '#', ' ']) {
                let wrong = format!("`{}` is no path of a URL", path.shown());
                self.mistakes.error(path.place(), wrong, "such as `/mqtt`".to_owned());
            }
            terms.path = Some(path.value.into());
        }
        let Some(list) = section.get("origins") else { return Some(terms) };
        for item in self.items(&list) {
            let Some(text) = self.text(Some(item)) else { continue };
            let host = text.value.strip_prefix("https://").or_else(|| text.value.strip_prefix("http://"));
            if host.is_none_or(|host| host.is_empty() || host.contains(['/', '*', ' '])) {
                let wrong = format!("`{}` is no origin of pages", text.shown());
                let hint = "scheme and host, and the port if it is a special one, such as `https://hmi.example`";
                self.mistakes.error(text.place(), wrong, hint.to_owned());
            }
            terms.origins.push(text.value.into());
        }
        if terms.origins.is_empty() {
            self.mistakes.error(list.place(), "`origins` names none", "leave the key out for all".to_owned());
        }
        Some(terms)
    }

    /// `true`, or a section.
    fn proxy_protocol(&mut self, item: &Item<'_>) -> Option<ProxyTerms> {
        if matches!(item.node.value, Value::Scalar(_)) {
            return self.boolean(Some(item.clone()))?.then(ProxyTerms::default);
        }
        let section = self.section(item, &keys::PROXY_PROTOCOL);
        let mut terms = ProxyTerms::default();
        let Some(list) = section.get("from") else { return Some(terms) };
        for item in self.items(&list) {
            let Some(text) = self.text(Some(item)) else { continue };
            match text.value.parse::<Network>() {
                Ok(network) => terms.from.push(network),
                Err(error) => {
                    let hint =
                        "such as `10.0.0.0/8`, `192.0.2.7` or `fd00::/8`; names are not looked up here".to_owned();
                    let wrong = format!("`{}` names no addresses: {error}", text.shown());
                    self.wrong_part(&text, 0..text.given.len(), wrong, Some(hint));
                }
            }
        }
        if self.items(&list).is_empty() {
            let hint = "such as `from: [ \"10.0.0.0/8\" ]`; or write `proxy_protocol: true`".to_owned();
            self.mistakes.error(list.place(), "`from` names no proxy", hint);
        }
        Some(terms)
    }

    /// Who reaches a listener behind a proxy without passing the proxy can claim to be anyone.
    fn check_proxies(&mut self, section: &Section<'_>, address: &Bind, terms: &Option<ProxyTerms>) {
        let (Some(terms), Some(item)) = (terms, section.get("proxy_protocol")) else { return };
        match address {
            Bind::Unix { .. } if !terms.from.is_empty() => {
                let hint = "its `mode` and its folder's permissions say who reaches it: write `proxy_protocol: true`"
                    .to_owned();
                self.mistakes.error(item.place(), "clients of a Unix socket have no address to know them by", hint);
            }
            Bind::Tcp(tcp) if !tcp.ip().is_loopback() && terms.trusts_everyone() => {
                let wrong = format!(
                    "whoever reaches {address} can name any address, and any user where a proxy's certificate names it"
                );
                let hint = "name the proxies: `proxy_protocol: { from: [ \"10.0.0.0/8\" ] }`, or bind it to 127.0.0.1"
                    .to_owned();
                // Then a user's name is all that it takes to be that user.
                match section.get("certificate_user") {
                    Some(_) => self.mistakes.error(item.place(), wrong, hint),
                    None => self.mistakes.warning(item.place(), wrong, hint),
                }
            }
            Bind::Unix { .. } | Bind::Tcp(_) => {}
        }
    }

    /// Permissions in octal digits.
    fn mode(&mut self, item: Item<'_>) -> Option<u32> {
        let text = self.text(Some(item))?;
        let digits = text.value.strip_prefix("0o").unwrap_or(&text.value);
        let mode = u32::from_str_radix(digits, 8).ok().filter(|mode| digits.len() >= 3 && (0..=0o777).contains(mode));
        if mode.is_none() {
            let wrong = format!("`{}` is no file mode", text.shown());
            let hint = "three octal digits, such as `\"0660\"`: owner and group, and nobody else";
            self.mistakes.error(text.place(), wrong, hint.to_owned());
        }
        mode
    }
}

/// A PEM file.
#[derive(Debug)]
pub(super) struct TlsFile {
    pub(super) path: PathBuf,
    /// None where it cannot be read, and where secrets are not looked up.
    pub(super) text: Option<String>,
}

/// Of `sun_path`, less the end and the `.t/s` that it is bound under first (Linux: 108 bytes).
const SOCKET_PATH_BYTES_MAX: usize = 103;
