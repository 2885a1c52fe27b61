//! `broker.auth.jwt`, `.http` and `.ldap`: logins that others vouch for.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use url::Url;

use super::Resolver;
use super::value::{Item, Section, Text, beside};
use crate::broker::auth::ldap::{Template, TemplateError};
use crate::broker::auth::{Hidden, http, jwt, ldap, tls};
use crate::config::{hidden, keys};

const SECOND: Duration = Duration::from_secs(1);

/// How long somebody else may take to answer, where nothing is said: a machine that connects waits as long.
const TIMEOUT: Duration = Duration::from_secs(5);

impl Resolver<'_> {
    pub(super) fn jwt(&mut self, item: Option<Item<'_>>) -> Option<jwt::Config> {
        let section = self.section(&item?, &keys::JWT);
        if section.is_wrong {
            return None;
        }
        let terms = self.jwt_terms(&section);
        let given: Vec<_> = ["key", "secret", "jwks"].into_iter().filter_map(|key| section.get(key)).collect();
        if let [_, more, ..] = &given[..] {
            let wrong = format!("`{}` is one source of keys too many", more.name);
            self.mistakes.error(more.place(), wrong, "keep one of `key`, `secret` and `jwks`".to_owned());
        }
        let Some(source) = given.into_iter().next() else {
            let hint = "`key: FILE` with a public key, `secret: \"${file:..}\"`, or `jwks: https://..`";
            self.mistakes.error(&section.place, "`jwt` has no keys to check tokens by", hint.to_owned());
            return None;
        };
        let keys = match source.name {
            "secret" => self.jwt_secret(source),
            "key" => self.jwt_file(source, false).map(jwt::KeySource::Pem),
            _ => self.jwks(&section, source),
        };
        Some(jwt::Config { keys: keys?, terms })
    }

    fn jwt_secret(&mut self, item: Item<'_>) -> Option<jwt::KeySource> {
        let text = self.text(Some(item))?;
        if !text.is_substituted() {
            self.plain_password(text.place());
        }
        if text.value.len() < jwt::SECRET_BYTES_MIN {
            let wrong = format!("a secret for tokens has at least {} bytes", jwt::SECRET_BYTES_MIN);
            self.mistakes.error(text.place(), wrong, "such as one of `openssl rand -base64 48`".to_owned());
        }
        Some(jwt::KeySource::Secret(text.value.into()))
    }

    fn jwt_file(&mut self, item: Item<'_>, is_jwks: bool) -> Option<PathBuf> {
        self.file_that(item, |content| match jwt::count_keys(content, is_jwks) {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        })
    }

    fn jwks(&mut self, section: &Section<'_>, item: Item<'_>) -> Option<jwt::KeySource> {
        let is_url = |item: &Item<'_>| matches!(&item.node.value, crate::config::raw::Value::Scalar(scalar) if scalar.text.contains("://"));
        if !is_url(&item) {
            for alone in ["ca", "timeout", "refresh"].into_iter().filter_map(|key| section.get(key)) {
                let wrong = format!("`{}` has no meaning for keys in a file", alone.name);
                self.mistakes.error(alone.place(), wrong, "a file is read again when it changes".to_owned());
            }
            return self.jwt_file(item, true).map(jwt::KeySource::JwksFile);
        }
        let ca = self.authority(section.get("ca"));
        let timeout = self.duration(section.get("timeout"), SECOND / 10..=60 * SECOND).unwrap_or(TIMEOUT);
        let refresh = self.duration(section.get("refresh"), 60 * SECOND..=7 * 86_400 * SECOND);
        let (text, url) = self.service(item, &["https", "http"], "such as `https://id.example/keys.json`")?;
        self.check_http(&text, &url, "whoever sits on the line can put in a key of his own");
        let refresh = refresh.unwrap_or(3_600 * SECOND);
        Some(jwt::KeySource::JwksUrl { url: url.as_str().parse().ok()?, ca, timeout, refresh })
    }

    fn jwt_terms(&mut self, section: &Section<'_>) -> jwt::Terms {
        let mut terms = jwt::Terms::default();
        for item in section.get("algorithms").map(|list| self.items(&list)).unwrap_or_default() {
            terms.algorithms.extend(self.choice(Some(item), &jwt::Algorithm::ALL));
        }
        terms.issuer = self.text(section.get("issuer")).map(|text| text.value.into());
        for item in section.get("audience").map(|list| self.items(&list)).unwrap_or_default() {
            terms.audience.extend(self.text(Some(item)).map(|text| text.value.into()));
        }
        if let Some(leeway) = self.duration(section.get("leeway"), Duration::ZERO..=600 * SECOND) {
            terms.leeway = leeway;
        }
        if let Some(claim) = self.text(section.get("user_claim")) {
            terms.user_claim = claim.value.into();
        }
        terms.groups_claim = self.text(section.get("groups_claim")).map(|text| text.value.into());
        terms.acl_claim = self.text(section.get("acl_claim")).map(|text| text.value.into());
        if let Some(required) = section.get("require_expiry") {
            terms.require_expiry = self.boolean(Some(required.clone())).unwrap_or(true);
            if !terms.require_expiry {
                let wrong =
                    "a token without an expiry is good for ever: who loses one can only be shut out by a new key";
                self.mistakes.warning(required.place(), wrong, "leave the key out".to_owned());
            }
        }
        terms
    }

    pub(super) fn http_hook(&mut self, item: Option<Item<'_>>) -> Option<http::Config> {
        let section = self.section(&item?, &keys::AUTH_HTTP);
        let timeout = self.duration(section.get("timeout"), SECOND / 10..=60 * SECOND).unwrap_or(TIMEOUT);
        let cache = self.duration(section.get("cache"), Duration::ZERO..=86_400 * SECOND).unwrap_or_default();
        let requests_max = self.few(&section, "requests_max").unwrap_or(32);
        let ca = self.authority(section.get("ca"));
        let mut headers = Vec::new();
        if let Some(item) = section.get("headers") {
            for entry in self.entries(&item) {
                let Some(text) = self.text(Some(entry.item())) else { continue };
                if !text.is_substituted() && hidden::is_secret_header(&entry.key, text.given) {
                    self.plain_secret(text.place());
                }
                match http::header(&entry.key, &text.value) {
                    Some(header) => headers.push(header),
                    None => {
                        let wrong = format!("`{}` and its value cannot be a header", entry.key);
                        let hint = "a name has letters, digits and `-`, a value printable characters";
                        self.mistakes.error(&entry.place, wrong, hint.to_owned());
                    }
                }
            }
        }
        let item = self.needed(&section, "url", "such as `url: https://id.example/mqtt-login`")?;
        let (text, url) = self.service(item, &["https", "http"], "such as `https://id.example/mqtt-login`")?;
        self.check_http(&text, &url, "passwords are sent where everybody on the line can read them");
        if url.scheme() == "http" && ca.is_some() {
            self.without_tls(&section, "https://");
        }
        Some(http::Config { url: url.as_str().parse().ok()?, timeout, headers, ca, cache, requests_max })
    }

    pub(super) fn ldap(&mut self, item: Option<Item<'_>>) -> Option<ldap::Config> {
        let section = self.section(&item?, &keys::LDAP);
        let timeout = self.duration(section.get("timeout"), SECOND / 10..=60 * SECOND).unwrap_or(TIMEOUT);
        let cache = self.duration(section.get("cache"), Duration::ZERO..=86_400 * SECOND).unwrap_or_default();
        let connections_max = self.few(&section, "connections_max").unwrap_or(16);
        let ca = self.authority(section.get("ca"));
        let starttls = self.boolean(section.get("starttls")).unwrap_or(false);
        let groups = section.get("groups").map(|item| self.ldap_groups(&item));
        let by_name = section.get("bind_dn").map(|item| self.template(item, Template::name).map(ldap::Find::ByName));
        let by_search = section.get("search").map(|item| self.ldap_search(&item));
        if let (Some(_), Some(item)) = (&by_name, section.get("search")) {
            let wrong = "`bind_dn` and `search` are both there: which of them should find a user's entry?";
            self.mistakes.error(item.place(), wrong, "keep one of them".to_owned());
        }
        let find = by_name.or(by_search);
        if find.is_none() && !section.is_wrong {
            let hint =
                "`bind_dn: \"uid={user},ou=people,dc=example\"`, or `search: { base: .., filter: \"(uid={user})\" }`";
            self.mistakes.error(&section.place, "`ldap` does not say how a user's entry is found", hint.to_owned());
        }
        let item = self.needed(&section, "url", "such as `url: ldaps://directory.example`")?;
        let (text, url) = self.service(item, &["ldaps", "ldap"], "such as `ldaps://directory.example`")?;
        match (url.scheme(), starttls) {
            ("ldaps", true) => {
                let item = section.get("starttls");
                let place = item.as_ref().map_or(&section.place, Item::place);
                self.mistakes.error(
                    place,
                    "`ldaps://` is TLS from the first byte: `starttls` asks for it on `ldap://`",
                    None,
                );
            }
            ("ldap", false) => {
                if ca.is_some() {
                    self.without_tls(&section, "ldaps://");
                }
                if !is_loopback(&url) {
                    let wrong = "passwords are sent where everybody on the line can read them";
                    self.mistakes.warning(text.place(), wrong, "`ldaps://`, or add `starttls: true`".to_owned());
                }
            }
            _ => {}
        }
        let groups = groups.flatten();
        Some(ldap::Config { url, starttls, ca, timeout, connections_max, cache, find: find??, groups })
    }

    fn ldap_search(&mut self, item: &Item<'_>) -> Option<ldap::Find> {
        let section = self.section(item, &keys::LDAP_SEARCH);
        let dn = self.needed(&section, "bind_dn", "the service account, such as `cn=gateway,dc=example`");
        let password = self.needed(&section, "password", "the service account's, as `${file:..}` or `${env:..}`");
        let base = self.needed(&section, "base", "such as `ou=people,dc=example`");
        let filter = self.needed(&section, "filter", "such as `(uid={user})`");
        let dn = self.text(dn).map(|text| text.value);
        let password = self.text(password);
        if let Some(text) = password.as_ref().filter(|text| !text.is_substituted()) {
            self.plain_password(text.place());
        }
        let base = self.text(base).map(|text| text.value);
        let filter = filter.and_then(|item| self.template(item, Template::user_filter));
        let account = ldap::Account { dn: dn?.into(), password: Hidden::from(password?.value) };
        Some(ldap::Find::BySearch { account, base: base?.into(), filter: filter? })
    }

    fn ldap_groups(&mut self, item: &Item<'_>) -> Option<ldap::Groups> {
        let section = self.section(item, &keys::LDAP_GROUPS);
        let base = self.needed(&section, "base", "such as `ou=groups,dc=example`");
        let filter = self.needed(&section, "filter", "such as `(member={dn})`");
        let attribute = self.text(section.get("attribute")).map_or_else(|| "cn".to_owned(), |text| text.value);
        let base = self.text(base).map(|text| text.value);
        let filter = filter.and_then(|item| self.template(item, Template::group_filter));
        Some(ldap::Groups { base: base?.into(), filter: filter?, attribute: attribute.into() })
    }

    fn template(&mut self, item: Item<'_>, parse: fn(&str) -> Result<Template, TemplateError>) -> Option<Template> {
        let text = self.text(Some(item))?;
        match parse(&text.value) {
            Ok(template) => Some(template),
            Err(error) => {
                let wrong = format!("`{}`: {error}", text.item.name);
                self.wrong_part(&text, 0..text.given.len(), wrong, None);
                None
            }
        }
    }

    fn needed<'n>(&mut self, section: &Section<'n>, key: &'static str, example: &str) -> Option<Item<'n>> {
        let item = section.get(key);
        if item.is_none() {
            self.missing(section, key, example);
        }
        item
    }

    /// 1 to 1,000.
    fn few(&mut self, section: &Section<'_>, key: &'static str) -> Option<usize> {
        self.number(section.get(key), 1..=1_000).and_then(|number| usize::try_from(number).ok())
    }

    /// A file of PEM certificates.
    fn authority(&mut self, item: Option<Item<'_>>) -> Option<PathBuf> {
        self.file_that(item?, |content| match tls::authorities(content.as_bytes()) {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        })
    }

    /// A path to a file that has to be there and of use.
    fn file_that(&mut self, item: Item<'_>, is_good: impl FnOnce(&str) -> Result<(), String>) -> Option<PathBuf> {
        let text = self.text(Some(item))?;
        let path = beside(text.place(), Path::new(&text.value));
        if self.env.no_secrets {
            return Some(path);
        }
        let wrong = match (self.env.file)(&path) {
            Ok(content) => is_good(&content).err(),
            Err(error) => Some(error.to_string()),
        };
        if let Some(wrong) = wrong {
            self.wrong_part(&text, 0..text.given.len(), format!("{}: {wrong}", path.display()), None);
        }
        Some(path)
    }

    /// The address of a service, without a login in it.
    fn service<'n>(&mut self, item: Item<'n>, schemes: &[&str], example: &str) -> Option<(Text<'n>, Url)> {
        if self.is_of_other_scheme(&item, schemes) {
            return None;
        }
        let text = self.url_text(Some(item))?;
        let url = match Url::parse(&text.value) {
            Ok(url) if url.host_str().is_some_and(|host| !host.is_empty()) => url,
            Ok(_) => {
                self.mistakes.error(text.place(), "the URL names no host", example.to_owned());
                return None;
            }
            Err(error) => {
                self.mistakes.error(text.place(), format!("this is no URL: {error}"), example.to_owned());
                return None;
            }
        };
        if !schemes.contains(&url.scheme()) {
            self.wrong_scheme(&text, url.scheme(), schemes);
            return None;
        }
        if !url.username().is_empty() || url.password().is_some() {
            let wrong = "this URL holds a login, which would not be used";
            self.mistakes.error(
                text.place(),
                wrong,
                "`headers`, or the service account of `search`, carry it".to_owned(),
            );
        }
        Some((text, url))
    }

    fn check_http(&mut self, text: &Text<'_>, url: &Url, wrong: &str) {
        if url.scheme() == "http" && !is_loopback(url) {
            self.mistakes.warning(text.place(), wrong, "begin the URL with `https://`".to_owned());
        }
    }

    fn without_tls(&mut self, section: &Section<'_>, scheme: &str) {
        if let Some(item) = section.get("ca") {
            let hint = format!("begin the URL with `{scheme}`");
            self.mistakes.error(item.place(), "`ca` has no meaning without TLS", hint);
        }
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
