//! The ingress built from the current settings. A reload replaces it, for requests that begin afterwards.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::ingress::body::Budget;
use crate::ingress::handle::{Ingress, Shared};
use crate::ingress::settings::{Settings, Source};

/// The ingress that all threads read.
pub(crate) struct CurrentIngress(ArcSwap<Ingress>);

impl CurrentIngress {
    /// An ingress for these sources; `read_budget` bounds the bodies being read, in bytes.
    pub(crate) fn new(settings: Settings, sources: &[Source], shared: Shared, read_budget: usize) -> Arc<Self> {
        Arc::new(Self(ArcSwap::from_pointee(Ingress::new(settings, sources, shared, Budget::new(read_budget)))))
    }

    /// The ingress at this moment.
    pub(crate) fn now(&self) -> Arc<Ingress> {
        self.0.load_full()
    }

    /// Replaces the settings. Requests in progress end with the previous ones; a source that stays keeps its counts, by
    /// its name.
    pub(crate) fn apply(&self, settings: Settings, sources: &[Source], read_budget: usize) {
        let last = self.0.load();
        let next = Ingress::new(settings, sources, last.shared.clone(), last.budget.resized(read_budget));
        self.0.store(Arc::new(next));
    }
}

/// One thread's reference to an ingress: between two reloads requests share no counter with other threads.
pub(super) type ThreadIngress = Rc<Arc<Ingress>>;

/// The ingress as one thread sees it.
pub(super) struct ThreadView {
    live: Arc<CurrentIngress>,
    seen: RefCell<ThreadIngress>,
}

impl ThreadView {
    pub(super) fn new(live: Arc<CurrentIngress>) -> Self {
        let seen = RefCell::new(Rc::new(live.now()));
        Self { live, seen }
    }

    pub(super) fn now(&self) -> ThreadIngress {
        let mut seen = self.seen.borrow_mut();
        let now = self.live.0.load();
        if !Arc::ptr_eq(&now, &seen) {
            *seen = Rc::new(Arc::clone(&now));
        }
        seen.clone()
    }
}
