//! The display of a request under way: a bar on a terminal, else lines; at the end a sentence.

use std::io::IsTerminal as _;

use crate::dead_letters::{Action, Progress};
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::{complain, say};

/// The display of one request.
pub(super) struct Display {
    bar: Option<ProgressBar>,
    action: Action,
    is_quiet: bool,
    shown: Option<(u64, Option<String>)>,
}

impl Display {
    /// Nothing but the end is said where a program reads.
    pub(super) fn new(action: Action, is_quiet: bool) -> Self {
        let is_bar = !is_quiet && std::io::stderr().is_terminal();
        let bar = is_bar.then(|| {
            let bar = ProgressBar::new(0);
            if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} letters, {eta} left {wide_msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self { bar, action, is_quiet, shown: None }
    }

    /// Shows how far it is, if that is news.
    pub(super) fn update(&mut self, progress: &Progress) {
        let news = (progress.done, progress.error.clone());
        if self.shown.as_ref() == Some(&news) {
            return;
        }
        if let Some(bar) = &self.bar {
            bar.set_length(progress.selected);
            bar.set_position(progress.done);
            bar.set_message(progress.error.clone().map(|error| format!("waiting: {error}")).unwrap_or_default());
        } else if !self.is_quiet {
            let Progress { done, selected, .. } = progress;
            match &progress.error {
                Some(error) => say(format_args!("{done} of {selected}, waiting: {error}")),
                None => say(format_args!("{done} of {selected}")),
            }
        }
        self.shown = Some(news);
    }

    /// The result of a request that could not be made; a person reads the error alone.
    pub(super) fn refused(&self, error: &str) {
        if self.is_quiet {
            say(Progress::refused(error.to_owned()).json());
        }
    }

    /// The result.
    pub(super) fn end(&self, progress: &Progress) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if self.is_quiet {
            return say(progress.json());
        }
        let Progress { selected, published, dead_lettered, dropped, skipped, unreadable, .. } = progress;
        match self.action {
            Action::Replay => say(format_args!(
                "{selected} selected: {published} published, {dead_lettered} refused again and kept, {skipped} left"
            )),
            Action::Drop if *skipped == 0 => say(format_args!("{selected} selected: {dropped} dropped")),
            Action::Drop => say(format_args!("{selected} selected: {dropped} dropped, {skipped} left")),
        }
        if *unreadable > 0 {
            complain(format_args!(
                "{unreadable} lines or files cannot be read, and stay; `dead-letters list` names the first"
            ));
        }
        if let Some(error) = &progress.error {
            complain(error);
        }
    }
}
