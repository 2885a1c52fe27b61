//! Names by which gateways are told apart, by each other and by remotes: two that have the same one get into each other's way.

use super::{Meet, Sketch, Sketched, at};
use crate::config::diagnostic::Mistakes;
use crate::links::{Kind, kafka, mqtt};
use crate::router::{Endpoint, Pattern, Route};

/// `site` itself.
pub(super) fn check_sites(sites: &[&Sketch], mistakes: &mut Mistakes) {
    for (number, site) in sites.iter().enumerate() {
        let Some(name) = site.site.as_deref() else {
            let wrong =
                "this file names no `site`: it is the name of the machine that runs it, which is not known here";
            mistakes.warning(&site.place, wrong, "write `site: NAME`, another in each file".to_owned());
            continue;
        };
        let mut earlier = sites.iter().take(number);
        if let Some(other) = earlier.find(|other| other.site.as_deref() == Some(name)) {
            let wrong =
                format!("`{name}` is the site of {} too: each would stop what the other has sent", at(&other.place));
            let hint =
                "each gateway needs a `site` of its own: it stands in `tg-path`, and in default client ids and groups";
            mistakes.error(&site.place, wrong, hint.to_owned());
        }
    }
}

/// A link of a site whose name is known, and where its remote is.
struct Guest<'s> {
    number: usize,
    site: &'s Sketch,
    link: &'s Sketched,
    remote: usize,
}

/// What links are called at the same remote. Of several files only what is between them: the rest is told of each alone.
pub(super) fn check(sites: &[&Sketch], meet: &mut Meet, mistakes: &mut Mistakes) {
    let mut guests: Vec<Guest<'_>> = Vec::new();
    for (number, site) in sites.iter().enumerate() {
        for link in site.links.iter().filter(|link| link.config.has_sink || !link.config.sources.is_empty()) {
            let Some(remote) = meet.place_of(number, &Endpoint::Link(link.config.id.clone())) else { continue };
            let guest = Guest { number, site, link, remote };
            let others = guests.iter().filter(|other| other.remote == remote);
            for other in others.filter(|other| sites.len() == 1 || other.number != number) {
                match (&guest.link.config.kind, &other.link.config.kind) {
                    (Kind::Mqtt(own), Kind::Mqtt(theirs)) => clients(&guest, own, other, theirs, mistakes),
                    (Kind::Kafka(own), Kind::Kafka(theirs)) => {
                        producers(&guest, own, other, theirs, mistakes);
                        // A route that is not known may make the difference, or be it.
                        if guest.site.is_whole && other.site.is_whole {
                            groups(&guest, own, other, theirs, meet, mistakes);
                        }
                    }
                    (Kind::Mqtt(_) | Kind::Rabbitmq(_) | Kind::Kafka(_), _) => {}
                }
            }
            guests.push(guest);
        }
    }
}

impl Guest<'_> {
    /// `SITE-LINK`, where that is known.
    fn default_name(&self) -> Option<String> {
        Some(format!("{}-{}", self.site.site.as_deref()?, self.link.config.id))
    }

    /// For texts: `link `hq` of b.yaml:4`.
    fn shown(&self) -> String {
        format!("link `{}` at {}", self.link.config.id, at(&self.link.place))
    }

    /// R25: one client, or one for each direction.
    fn client_ids(&self, config: &mqtt::Config) -> Vec<String> {
        let Some(id) = config.client_id.clone().or_else(|| self.default_name()) else { return Vec::new() };
        let both = self.link.config.has_sink && !self.link.config.sources.is_empty();
        if both { vec![format!("{id}-out"), format!("{id}-in")] } else { vec![id] }
    }
}

fn clients(own: &Guest<'_>, config: &mqtt::Config, other: &Guest<'_>, theirs: &mqtt::Config, mistakes: &mut Mistakes) {
    let taken = other.client_ids(theirs);
    if let Some(id) = own.client_ids(config).into_iter().find(|id| taken.contains(id)) {
        let wrong = format!(
            "`{id}` is the client id of {} too, at the same remote: each would end the other's connection",
            other.shown()
        );
        mistakes.error(&own.link.place, wrong, "give each link a `client_id` of its own".to_owned());
    }
}

/// Within one file this is looked at whatever the cluster is.
fn producers(
    own: &Guest<'_>,
    config: &kafka::Config,
    other: &Guest<'_>,
    theirs: &kafka::Config,
    mistakes: &mut Mistakes,
) {
    let id_of = |guest: &Guest<'_>, config: &kafka::Config| {
        let default = || guest.default_name().map(|name| format!("tidegate-{name}"));
        config.transactional_id.clone().or_else(default).filter(|_| config.exactly_once && guest.link.config.has_sink)
    };
    if own.number != other.number
        && let Some(id) = id_of(own, config).filter(|id| Some(id) == id_of(other, theirs).as_ref())
    {
        let wrong = format!(
            "`{id}` is the `transactional_id` of {} too, in the same cluster: each would end the other",
            other.shown()
        );
        mistakes.error(&own.link.place, wrong, "each link and each gateway needs one of its own".to_owned());
    }
}

/// A group may have several members, if all do the same.
fn groups(
    own: &Guest<'_>,
    config: &kafka::Config,
    other: &Guest<'_>,
    theirs: &kafka::Config,
    meet: &mut Meet,
    mistakes: &mut Mistakes,
) {
    let group = |guest: &Guest<'_>, config: &kafka::Config| {
        config.group.clone().or_else(|| guest.default_name()).filter(|_| !guest.link.config.sources.is_empty())
    };
    let Some(name) = group(own, config).filter(|name| Some(name) == group(other, theirs).as_ref()) else { return };
    let [ours, others] = [own, other].map(|guest| &guest.link.config.sources);
    let shared = ours.iter().find(|topic| others.contains(topic));
    let all_shared = ours.len() == others.len() && ours.iter().all(|topic| others.contains(topic));
    if let Some(topic) = shared
        && uses(own, topic, meet) != uses(other, topic, meet)
    {
        let wrong = format!(
            "{} is of the group `{name}` too and does something else with `{topic}`: each record comes to one of both",
            other.shown()
        );
        mistakes.warning(&own.link.place, wrong, "give each use a `group` of its own".to_owned());
    } else if !all_shared {
        let wrong = format!(
            "{} is of the group `{name}` too and reads other topics: whenever one of both comes or goes, the other pauses",
            other.shown()
        );
        mistakes.warning(&own.link.place, wrong, "give each use a `group` of its own".to_owned());
    }
}

/// What the routes of a site do with the records of a topic, for comparing.
fn uses(guest: &Guest<'_>, topic: &str, meet: &mut Meet) -> Vec<String> {
    let link = Endpoint::Link(guest.link.config.id.clone());
    let mut uses = Vec::new();
    for Route { from, except, filter, to, .. } in guest.site.routes.iter().map(|draught| &draught.route) {
        let begins = from.iter().filter(|from| from.endpoint == link && from.channel.as_deref() == Some(topic));
        for from in begins {
            let pattern = from.pattern.as_ref().map_or("#", Pattern::as_str);
            for to in to {
                let place = match &to.endpoint {
                    Endpoint::Broker => None,
                    link @ Endpoint::Link(_) => meet.place_of(guest.number, link),
                };
                uses.push(format!("{pattern} {except:?} {filter:?} {place:?} {}", to.template));
            }
        }
    }
    uses.sort_unstable();
    uses
}
