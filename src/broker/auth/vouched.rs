//! Methods that ask others: tokens, a program, a directory. What each of them says becomes one kind of answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::acl::Acl;
use super::http::{self, PasswordText, Question};
use super::{Answer, Authenticator, By, Granted, Login, jwt, ldap};
use crate::clock::WallMs;

/// A login that lives longer is as good as one that does not end: timers need not reach further.
const LIFE_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);

impl Authenticator {
    pub(super) async fn ask_jwt(&self, method: &jwt::Jwt, login: &Login<'_>) -> Answer {
        let Some(password) = login.password else { return Answer::Unknown };
        match method.check(login.user, password).await {
            jwt::Verdict::NotMine => Answer::Unknown,
            jwt::Verdict::Bad(why) => Answer::Wrong(why.into()),
            jwt::Verdict::NoKeys(why) => Answer::Away("jwt", why),
            jwt::Verdict::Good(claims) => self.granted(Some(claims.user), &claims.groups, claims.rules, claims.expires),
        }
    }

    pub(super) async fn ask_http(&self, method: &http::Hook, login: &Login<'_>) -> Answer {
        let certificate = login.peer.certificate.as_ref().and_then(|certificate| certificate.common_name.as_deref());
        let question = Question {
            client_id: login.client_id,
            user: login.user,
            password: PasswordText::of(login.password),
            address: login.peer.address.map(|address| address.to_string()),
            listener: login.peer.listener.bind.to_string(),
            certificate,
            protocol: login.version.to_string(),
        };
        match method.check(&question).await {
            http::Answer::Unknown => Answer::Unknown,
            http::Answer::Deny(why) => Answer::Wrong(why.into()),
            http::Answer::Away(why) => Answer::Away("http", why),
            http::Answer::Allow(grant) => {
                let user = grant.user.as_deref().or(login.user).map(Into::into);
                self.granted(user, &grant.groups, grant.rules, grant.expires)
            }
        }
    }

    pub(super) async fn ask_ldap(&self, method: &Arc<ldap::Ldap>, login: &Login<'_>) -> Answer {
        let Some(user) = login.user else { return Answer::Unknown };
        match method.check(user, login.password.unwrap_or_default()).await {
            ldap::Verdict::Unknown => Answer::Unknown,
            ldap::Verdict::Bad(why) => Answer::Wrong(why.into()),
            ldap::Verdict::Away(why) => Answer::Away("ldap", why),
            ldap::Verdict::Good(groups) => self.granted(Some(user.into()), &groups, None, None),
        }
    }

    fn granted(
        &self,
        user: Option<Arc<str>>,
        groups: &[Box<str>],
        rules: Option<Arc<Acl>>,
        expires: Option<WallMs>,
    ) -> Answer {
        let groups = groups.iter().map(|group| Arc::from(&**group)).collect();
        let expires = self.end_of_login(expires.and_then(|at| self.instant_of(at)));
        Answer::Granted(Granted { user, groups, rules, expires, by: By::Others, since: 0 })
    }

    /// When a login ends that begins now: by what vouched for it, or by `login_max`, whichever is first. Nobody says here that a user is not
    /// known there any more; so it has to come again. A tenth of the time is left to chance: who came in together, after a restart, does not come
    /// again together.
    pub(super) fn end_of_login(&self, expires: Option<Instant>) -> Option<Instant> {
        let Some(most) = self.login_max else { return expires };
        let end = self.clock.now() + most.mul_f64(1.0 - rand::random::<f64>() / 10.0);
        Some(expires.map_or(end, |expires| expires.min(end)))
    }

    /// A moment of the wall clock, as a timer needs it. What has passed meanwhile is now.
    fn instant_of(&self, at: WallMs) -> Option<Instant> {
        let left = at.since(self.clock.wall());
        (left <= LIFE_MAX).then(|| self.clock.now() + left)
    }
}
