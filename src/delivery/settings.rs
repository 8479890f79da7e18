//! `[publish]` and `[dead_letters]`.

use std::time::Duration;

use crate::brokers::HeaderStyle;
use crate::dead_letters::largest_line;
use crate::settings::Section;

/// `[publish]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// The maximum number of unconfirmed messages.
    pub(crate) max_in_flight: usize,
    /// The longest time that a sender waits for what `ack` promises.
    pub(crate) timeout: Duration,
    /// The shortest wait between two attempts to reach the broker.
    pub(crate) retry_min: Duration,
    /// The longest wait between two attempts.
    pub(crate) retry_max: Duration,
    /// The time that events wait at a wrong address before they become dead letters.
    pub(crate) refuse_after: Duration,
    /// The headers that are sent.
    pub(crate) headers: HeaderStyle,
}

impl Settings {
    /// Reads `[publish]`.
    pub(crate) fn read(section: &mut Section<'_>) -> Self {
        // librdkafka's queue and the clients' windows are sized from it: a million is beyond every broker here.
        let most = section.integer("max_in_flight", 1, 1_000_000);
        let settings = Self {
            max_in_flight: usize::try_from(most).unwrap_or(1),
            timeout: section.duration("timeout"),
            retry_min: section.duration("retry_min"),
            retry_max: section.duration("retry_max"),
            refuse_after: section.duration("refuse_after"),
            headers: section
                .choice("headers", &[("cloudevents", HeaderStyle::CloudEvents), ("none", HeaderStyle::None)]),
        };
        if settings.timeout.is_zero() {
            section.problem("timeout", "must be above 0, or no sender ever gets a 200 in `published` mode");
        }
        if settings.retry_min.is_zero() {
            section.problem("retry_min", "must be above 0, or an unreachable broker is retried without a pause");
        }
        if settings.retry_max < settings.retry_min {
            section.problem("retry_max", "is below `publish.retry_min`");
        }
        settings
    }
}

/// `[dead_letters]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeadLetterLimit {
    /// The size limit of the store, in bytes.
    pub(crate) bytes: usize,
}

impl DeadLetterLimit {
    /// Reads `[dead_letters]`.
    pub(crate) fn read(section: &mut Section<'_>) -> Self {
        Self { bytes: section.size("max_bytes") }
    }

    /// The problem if not even one dead letter fits: delivery would wait for room for ever.
    #[must_use]
    pub(crate) fn problem(self, largest_body: usize) -> Option<String> {
        let needed = largest_line(largest_body);
        (self.bytes < needed).then(|| {
            format!(
                "`dead_letters.max_bytes` ({} bytes) has no room for a dead letter with a body of `ingress.max_body` \
                 ({largest_body} bytes): raise it to at least \"{}KiB\"",
                self.bytes,
                needed.div_ceil(1024)
            )
        })
    }
}
