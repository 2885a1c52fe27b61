//! Several sites' files at once: where their links meet, whether messages go round between them, and which names they may
//! not share. A single file is looked at by the same rules.
//!
//! PURE: it sees what [`resolve`](super::resolve) has made of the files, by [`Sketch`].

mod circles;
mod meet;
mod names;
mod ways;

use std::path::PathBuf;
use std::sync::Arc;

use super::diagnostic::Mistakes;
use super::resolve::Draught;
use super::source::Place;
use crate::broker::Listener;
use crate::links;
use crate::links::mqtt::Version;
use crate::router::{Endpoint, LinkId};
pub use meet::Ties;
pub(super) use meet::{Meet, Untied};

/// What one file has to do with others.
#[derive(Debug)]
pub(super) struct Sketch {
    /// As it was named.
    pub(super) path: PathBuf,
    /// `None`: the file leaves it to the machine, which is not this one.
    pub(super) site: Option<Arc<str>>,
    /// Of `site`, or where the file begins.
    pub(super) place: Place,
    pub(super) listeners: Vec<Listener>,
    /// Those that are right.
    pub(super) links: Vec<Sketched>,
    /// Those that are right.
    pub(super) routes: Vec<Draught>,
    /// Those are all routes.
    pub(super) is_whole: bool,
}

/// A link, and where its name stands.
#[derive(Debug)]
pub(super) struct Sketched {
    pub(super) place: Place,
    pub(super) config: links::Config,
}

impl Sketch {
    /// Its name for people.
    fn shown(&self) -> String {
        self.site.as_deref().map_or_else(|| self.path.display().to_string(), str::to_owned)
    }

    fn link(&self, id: &LinkId) -> Option<&Sketched> {
        self.links.iter().find(|link| link.config.id == *id)
    }

    /// Whether what passes there loses its properties.
    fn is_without_properties(&self, endpoint: &Endpoint) -> bool {
        let Endpoint::Link(id) = endpoint else { return false };
        let kind = self.link(id).map(|link| &link.config.kind);
        matches!(kind, Some(links::Kind::Mqtt(config)) if config.version == Version::V4)
    }
}

/// `FILE:LINE` of a place, for texts.
fn at(place: &Place) -> String {
    let (line, _) = place.source.line_of(place.span.start);
    format!("{}:{line}", place.source.path.display())
}

/// What is wrong within one file.
pub(super) fn check_one(site: &Sketch, mistakes: &mut Mistakes) {
    let sites = [site];
    let Ok(mut meet) = Meet::of(&sites, &Ties::default()) else { return };
    circles::check_echoes(site, &mut meet, mistakes);
    circles::check(&sites, &mut meet, mistakes);
    names::check(&sites, &mut meet, mistakes);
}

/// What is wrong between files that are each right.
pub(super) fn check_all(sites: &[&Sketch], meet: &mut Meet, mistakes: &mut Mistakes) {
    names::check_sites(sites, mistakes);
    names::check(sites, meet, mistakes);
    circles::check(sites, meet, mistakes);
}
