//! `broker.auth`: who may come in, and what they may do.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::Resolver;
use super::value::{Item, Section, beside, listed};
use crate::broker::Bind;
use crate::broker::auth::acl::{Acl, Asks, Glob, Grants, Pattern, Rule, Who, Whom};
use crate::broker::auth::users::Users;
use crate::broker::auth::{AclSource, Config, LineError, acl_file};
use crate::config::keys;

/// What `login_max` may be.
const LOGIN_MIN: Duration = Duration::from_secs(1);
const LOGIN_MAX: Duration = Duration::from_secs(365 * 86_400);

impl Resolver<'_> {
    pub(super) fn auth(&mut self, item: Option<Item<'_>>) -> Config {
        let mut config = Config::default();
        let Some(item) = item else { return config };
        let section = self.section(&item, &keys::AUTH);
        config.users = self.parsed_file(section.get("users"), |text| {
            let users = Users::parse(text)?;
            Ok(users.is_empty().then_some("no user is in it yet: `tidegate passwd FILE USER` adds one"))
        });
        config.jwt = self.jwt(section.get("jwt"));
        config.http = self.http_hook(section.get("http"));
        config.ldap = self.ldap(section.get("ldap"));
        if let Some(most) = self.number(section.get("failed_logins_max"), 0..=1_000_000) {
            config.failed_logins_max = u32::try_from(most).ok().and_then(NonZeroU32::new);
        }
        config.login_max = self.duration(section.get("login_max"), LOGIN_MIN..=LOGIN_MAX);
        if let Some(groups) = section.get("groups") {
            self.groups(&groups, &mut config);
        }
        let file = self.parsed_file(section.get("acl_file"), |text| acl_file::parse(text).map(|_acl| None));
        if let Some(path) = file {
            config.acl = AclSource::File(path);
        }
        if let Some(list) = section.get("acl") {
            if section.get("acl_file").is_some() {
                let wrong = "`acl` and `acl_file` are both there: which of them should decide?";
                self.mistakes.error(list.place(), wrong, "keep one of them".to_owned());
            }
            config.acl = AclSource::Rules(self.acl(&list, &config));
        }
        self.check_privacy(section.get("users"), config.users.as_deref());
        config
    }

    /// Hashes can be guessed at by whoever has them.
    fn check_privacy(&mut self, item: Option<Item<'_>>, users: Option<&Path>) {
        if let (Some(item), Some(path)) = (item, users)
            && !self.env.no_secrets
            && (self.env.is_public)(path)
        {
            let wrong =
                format!("the passwords' hashes in {} can be read by every user of this machine", path.display());
            self.mistakes.warning(item.place(), wrong, format!("`chmod o-r {}`", path.display()));
        }
    }

    /// A path to a file that has to be there and free of mistakes. `parse` answers what is to be warned of.
    fn parsed_file(
        &mut self,
        item: Option<Item<'_>>,
        parse: impl FnOnce(&str) -> Result<Option<&'static str>, Vec<LineError>>,
    ) -> Option<std::path::PathBuf> {
        let text = self.text(item)?;
        let path = beside(text.place(), Path::new(&text.value));
        if self.env.no_secrets {
            return Some(path);
        }
        let shown = path.display();
        match (self.env.file)(&path).map(|content| parse(&content)) {
            Err(error) => self.wrong_part(&text, 0..text.given.len(), format!("{shown}: {error}"), None),
            Ok(Ok(None)) => {}
            Ok(Ok(Some(warning))) => self.mistakes.warning(text.place(), format!("{shown}: {warning}"), None),
            Ok(Err(wrong)) => {
                for LineError { line, text: words } in wrong {
                    self.mistakes.error(text.place(), format!("{shown}:{line}: {words}"), None);
                }
            }
        }
        Some(path)
    }

    /// `operators: [alice, bob]`.
    fn groups(&mut self, item: &Item<'_>, config: &mut Config) {
        for entry in self.entries(item) {
            let group: Arc<str> = entry.key.as_str().into();
            for user in self.items(&entry.item()) {
                let Some(user) = self.text(Some(user)) else { continue };
                let groups = config.groups.entry(user.value.as_str().into()).or_default();
                if !groups.contains(&group) {
                    groups.push(Arc::clone(&group));
                }
            }
        }
    }

    fn acl(&mut self, list: &Item<'_>, config: &Config) -> Acl {
        let mut rules: Vec<Rule> = Vec::new();
        for item in self.items(list) {
            let section = self.section(&item, &keys::ACL_RULE);
            if section.is_wrong {
                continue;
            }
            let Some(who) = self.who(&section, config) else { continue };
            if rules.iter().any(|earlier| hides(&earlier.who, &who)) {
                let wrong =
                    "this rule is never asked: an earlier one is for all users, and the first that matches decides";
                self.mistakes.warning(&section.place, wrong, "put the narrower rule first".to_owned());
            }
            let mut grants = |allow, deny| Grants {
                allow: self.patterns(section.get(allow)),
                deny: self.patterns(section.get(deny)),
            };
            let (publish, subscribe) = (grants("publish", "deny_publish"), grants("subscribe", "deny_subscribe"));
            rules.push(Rule { who, publish, subscribe });
        }
        Acl::new(rules, Asks::First)
    }

    /// `None`: nobody can be meant, which is reported.
    fn who(&mut self, section: &Section<'_>, config: &Config) -> Option<Who> {
        let anonymous = self.boolean(section.get("anonymous")).unwrap_or(false);
        let [user, client, group] = ["user", "client", "group"].map(|key| (key, section.get(key)));
        if !anonymous && [&user, &client, &group].iter().all(|(_, item)| item.is_none()) {
            let hint = "name `user`, `client` or `group`, such as `user: \"*\"` for all users, or `anonymous: true`";
            self.mistakes.error(&section.place, "this rule is for nobody", hint.to_owned());
            return None;
        }
        for (key, item) in [&user, &group] {
            if let Some(item) = item.as_ref().filter(|_| anonymous) {
                let wrong = format!("a rule with `anonymous: true` is for clients without a user: it has no `{key}`");
                self.mistakes.error(item.place(), wrong, "write two rules".to_owned());
            }
        }
        let group = self.group(group.1, config);
        let mut name = |item| self.text(item).map(|text| Glob::like(&text.value));
        let user = match name(user.1) {
            _ if anonymous => Whom::Anonymous,
            Some(glob) => Whom::Named(glob),
            None => Whom::Named(Glob::like("*")),
        };
        Some(Who { user, client: name(client.1), group })
    }

    fn group(&mut self, item: Option<Item<'_>>, config: &Config) -> Option<Arc<str>> {
        let text = self.text(item)?;
        let group: Arc<str> = text.value.as_str().into();
        let mut known: Vec<&Arc<str>> = config.groups.values().flatten().collect();
        known.sort_unstable();
        known.dedup();
        // Who is in a group may be known elsewhere alone.
        let is_known_here = config.jwt.is_none() && config.http.is_none() && config.ldap.is_none();
        if is_known_here && !known.contains(&&group) {
            let meant = keys::nearest(text.given, known.iter().map(|name| &***name));
            let hint = match meant {
                Some(meant) => format!("did you mean `{meant}`?"),
                None if known.is_empty() => "such as `groups: { operators: [alice, bob] }` below `auth`".to_owned(),
                None => format!("known here: {}", listed(known)),
            };
            self.mistakes.warning(text.place(), format!("`groups` names nobody who is in `{}`", text.shown()), hint);
        }
        Some(group)
    }

    fn patterns(&mut self, item: Option<Item<'_>>) -> Vec<Pattern> {
        let Some(item) = item else { return Vec::new() };
        let mut patterns = Vec::new();
        for item in self.items(&item) {
            let Some(text) = self.text(Some(item)) else { continue };
            match Pattern::parse(&text.value) {
                Ok(pattern) => patterns.push(pattern),
                Err(error) => {
                    let wrong = format!("`{}` is no topic filter: {error}", text.shown());
                    let hint = "such as `factory/{client_id}/#`".to_owned();
                    self.wrong_part(&text, 0..text.given.len(), wrong, Some(hint));
                }
            }
        }
        patterns
    }

    /// Whether a listener lets in whom it should.
    pub(super) fn check_access(
        &mut self,
        bind: &Item<'_>,
        addr: &Bind,
        (anonymous, has_logins): (bool, bool),
        auth: &Config,
    ) {
        if !anonymous {
            if !has_logins {
                let wrong = format!("{addr} asks clients for a login, and `auth` names nothing to check one by");
                let hint = "add `auth: { users: users.passwd }` to `broker` (`tidegate passwd` makes the file), or `anonymous: \
                            true` here and bind it to 127.0.0.1 or a network that you trust";
                self.mistakes.error(bind.place(), wrong, hint.to_owned());
            }
            return;
        }
        let may_nothing = matches!(&auth.acl, AclSource::Rules(acl) if !acl.names_anonymous());
        if may_nothing {
            let wrong = format!("clients without a login are let in at {addr}, and no rule of `acl` is for them");
            let hint = "add a rule with `anonymous: true`, or leave `anonymous` out of the listener";
            self.mistakes.warning(bind.place(), wrong, hint.to_owned());
        } else if addr.address().is_some_and(|address| !address.ip().is_loopback()) {
            let wrong = match auth.acl {
                AclSource::Everything => {
                    format!("whoever reaches {addr} can publish and subscribe: the listener is anonymous")
                }
                AclSource::Rules(_) | AclSource::File(_) => {
                    format!("whoever reaches {addr} can do what the rules let anonymous clients do")
                }
            };
            self.mistakes.warning(bind.place(), wrong, "bind it to 127.0.0.1, or guard the network".to_owned());
        }
    }
}

/// Whether everybody whom `later` is for is somebody whom `earlier` is for, as far as is plain to see.
fn hides(earlier: &Who, later: &Who) -> bool {
    let all = earlier.user == Whom::Named(Glob::like("*")) && earlier.client.is_none() && earlier.group.is_none();
    all && matches!(later.user, Whom::Named(_))
}
