//! From an event to its address and key: the routes of the settings, first match wins, with a cache.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::json;

use crate::brokers::template::{Template, TemplateKind};
use crate::brokers::{Refusal, RefusalReason};
use crate::event::Event;
use crate::settings::Section;

/// Pairs of event and target type are few; a sender of thousands must not fill the memory.
const CACHED: usize = 1024;

/// Says why a rendered address or key is not legal for the broker.
pub(crate) type Legal = fn(&str) -> Result<(), String>;

/// The names and kinds of a broker's two templates.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TemplateNames {
    /// The settings key of the address template: `topic`, `exchange`, `subject`, `name`.
    pub(crate) address: &'static str,
    /// The settings key of the key template and its kind, where the broker has one; the stream, where it has those.
    pub(crate) key: Option<(&'static str, TemplateKind)>,
    /// The rule for a legal address.
    pub(crate) address_legal: Legal,
    /// The rule for a legal key.
    pub(crate) key_legal: Legal,
}

/// One route: which events it takes, and the templates it has for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    event: Option<String>,
    target_type: Option<String>,
    address: Template,
    key: Option<Template>,
}

impl Route {
    /// The template of the address.
    #[must_use]
    pub(crate) fn address(&self) -> &Template {
        &self.address
    }

    /// The template of the key, if the broker has one.
    #[must_use]
    pub(crate) fn key(&self) -> Option<&Template> {
        self.key.as_ref()
    }

    fn takes(&self, event: &Event) -> bool {
        self.event.as_deref().is_none_or(|name| name == event.event())
            && self.target_type.as_deref().is_none_or(|name| name == event.target_type())
    }
}

/// The destination of an event.
#[derive(Clone, Debug)]
pub(crate) struct Routed {
    /// The address.
    pub(crate) address: Arc<str>,
    /// The key; empty where there is none.
    pub(crate) key: Arc<str>,
    /// The number that the caller gave its pair of event and target type.
    pub(crate) pair: u16,
}

/// All routes of a broker; the last one takes everything. A reload replaces it as a whole.
#[derive(Clone, Debug)]
pub(crate) struct Router {
    routes: Vec<Route>,
    shape: TemplateNames,
    cache: Cache,
    cached: usize,
}

/// By source, event and target type.
type Cache = HashMap<Box<str>, HashMap<Box<str>, HashMap<Box<str>, Cached>>>;

#[derive(Clone, Debug)]
struct Cached {
    address: Arc<str>,
    key: CachedKey,
    pair: u16,
}

#[derive(Clone, Debug)]
enum CachedKey {
    Same(Arc<str>),
    RenderedBy(usize),
}

impl Router {
    /// Reads the templates of a broker's table and its `routes`.
    pub(crate) fn read(section: &mut Section<'_>, shape: TemplateNames) -> Self {
        let address = template(section, shape.address, TemplateKind::Address, shape.address_legal);
        let key = shape.key.map(|(name, kind)| template(section, name, kind, shape.key_legal));
        let mut routes = Vec::new();
        for mut table in section.sections("routes") {
            let event = table.text("event");
            table.describe("", json!({ "required": ["event"] }));
            if event.is_empty() {
                table.problem("event", "missing or empty; a route names the event it takes");
            }
            let target_type = Some(table.text("target_type")).filter(|_| table.has("target_type"));
            let mut own = |name, kind, legal, fallback: &Template| {
                // Asked for in either case, so that it is known when a wrong key is reported.
                let is_blank = !table.has(name) && table.text(name).is_empty();
                if is_blank { fallback.clone() } else { template(&mut table, name, kind, legal) }
            };
            let route_address = own(shape.address, TemplateKind::Address, shape.address_legal, &address);
            let route_key = match (shape.key, &key) {
                (Some((name, kind)), Some(key)) => Some(own(name, kind, shape.key_legal, key)),
                _ => None,
            };
            routes.push(Route { event: Some(event), target_type, address: route_address, key: route_key });
            table.finish();
        }
        routes.push(Route { event: None, target_type: None, address, key });
        Self { routes, shape, cache: HashMap::new(), cached: 0 }
    }

    /// The route of everything that no other takes.
    pub(crate) fn main(&self) -> &Route {
        &self.routes[self.routes.len() - 1]
    }

    /// That route, then all of them.
    pub(crate) fn main_first(&self) -> impl Iterator<Item = &Route> {
        std::iter::once(self.main()).chain(&self.routes)
    }

    /// The addresses without a placeholder, each once, that of the main route first.
    pub(crate) fn literals(&self) -> Vec<&str> {
        let mut literals = Vec::new();
        for literal in self.main_first().filter_map(|route| route.address.literal()) {
            if !literals.contains(&literal) {
                literals.push(literal);
            }
        }
        literals
    }

    /// Whether an address is known only when its first event arrives.
    pub(crate) fn has_placeholders(&self) -> bool {
        self.routes.iter().any(|route| route.address.literal().is_none())
    }

    /// Whether a key has a place of its own at the broker, a queue or a stream, which can be missing or full while others
    /// take everything: then it is part of where a message goes.
    pub(crate) fn has_keyed_addresses(&self) -> bool {
        self.shape.key.is_some_and(|(_, kind)| kind != TemplateKind::Key)
    }

    /// Whether every event goes where it goes by the other one.
    pub(crate) fn has_same_routes(&self, other: &Self) -> bool {
        self.routes == other.routes
    }

    /// The destination of an event. `pair` numbers its pair of event and target type, once for each that is remembered.
    ///
    /// # Errors
    /// The rendered address or key is not legal for this broker.
    pub(crate) fn route(&mut self, event: &Event, pair: impl FnOnce() -> u16) -> Result<Routed, Refusal> {
        let by_event = self.cache.get(&*event.origin.source).and_then(|events| events.get(event.event()));
        if let Some(cached) = by_event.and_then(|types| types.get(event.target_type())) {
            let key = match &cached.key {
                CachedKey::Same(key) => key.clone(),
                CachedKey::RenderedBy(route) => self.key(*route, event)?,
            };
            return Ok(Routed { address: cached.address.clone(), key, pair: cached.pair });
        }
        let at = self.routes.iter().position(|route| route.takes(event)).unwrap_or(self.routes.len() - 1);
        let route = &self.routes[at];
        let address = route.address.render(event);
        (self.shape.address_legal)(&address).map_err(|text| Refusal::event(RefusalReason::Unroutable, text))?;
        let address: Arc<str> = address.into();
        let cacheable = route.key.as_ref().is_none_or(Template::is_cacheable);
        let key = self.key(at, event)?;
        let pair = pair();
        if self.cached < CACHED {
            self.cached += 1;
            let cached = if cacheable { CachedKey::Same(key.clone()) } else { CachedKey::RenderedBy(at) };
            let by_event = self.cache.entry((&*event.origin.source).into()).or_default();
            let by_type = by_event.entry(event.event().into()).or_default();
            by_type.insert(event.target_type().into(), Cached { address: address.clone(), key: cached, pair });
        }
        Ok(Routed { address, key, pair })
    }

    fn key(&self, route: usize, event: &Event) -> Result<Arc<str>, Refusal> {
        let Some(template) = &self.routes[route].key else { return Ok("".into()) };
        let key = template.render(event);
        (self.shape.key_legal)(&key).map_err(|text| Refusal::event(RefusalReason::Unroutable, text))?;
        Ok(key.into())
    }
}

#[cfg(test)]
impl Router {
    /// The one route of these templates.
    pub(crate) fn of(address: &str, key: &str) -> Self {
        let template = |kind, text| Template::parse(kind, text).unwrap();
        let route = Route {
            event: None,
            target_type: None,
            address: template(TemplateKind::Address, address),
            key: Some(template(TemplateKind::Key, key)),
        };
        let shape = TemplateNames {
            address: "address",
            key: Some(("key", TemplateKind::Key)),
            address_legal: |_| Ok(()),
            key_legal: |_| Ok(()),
        };
        Self { routes: vec![route], shape, cache: HashMap::new(), cached: 0 }
    }
}

/// Reads one template and checks, as far as it can be, that what it renders is legal.
fn template(section: &mut Section<'_>, key: &str, kind: TemplateKind, legal: Legal) -> Template {
    let text = section.text(key);
    match Template::parse(kind, &text) {
        Ok(template) => {
            let wrong = match kind {
                TemplateKind::Address | TemplateKind::Name => {
                    template.samples().iter().find_map(|sample| legal(sample).err())
                }
                TemplateKind::Key => None,
            };
            if let Some(wrong) = wrong {
                section.problem(key, wrong);
            }
            template
        }
        Err(error) => {
            section.problem(key, error);
            Template::placeholder(kind)
        }
    }
}
