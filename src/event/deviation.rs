//! Deviations of a payload from the documented one: the field and the kind. Names of fields only, never values.

use std::fmt;

use crate::settings::named;

named! {
    /// A field that the vendor documents, or that its webhooks are known to have.
    ///
    /// Source: the vendor's page on webhook payloads; `flawId` is another name for `findingId`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub(crate) enum Field {
        /// Identifies the webhook request.
        Cuid = "cuid",
        /// Names the person who caused the event.
        ActorCuid = "actorCuid",
        /// Names the event.
        Event = "event",
        /// Names the one entity concerned.
        TargetCuid = "targetCuid",
        /// Names the entities concerned, in place of `targetCuid`.
        TargetCuids = "targetCuids",
        /// Names the kind of entity.
        TargetType = "targetType",
        /// Holds free text.
        Text = "text",
        /// Optional number of the client.
        ClientId = "clientId",
        /// Optional number of the report.
        ReportId = "reportId",
        /// Optional number of the finding.
        FindingId = "findingId",
        /// The older name of `findingId`.
        FlawId = "flawId",
        /// Optional number of the assessment.
        AssessmentId = "assessmentId",
    }
}

impl Field {
    /// The number of fields.
    pub(crate) const COUNT: usize = Self::ALL.len();

    /// The field with this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.name() == name)
    }
}

named! {
    /// The ways in which a field deviates from what is documented.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub(crate) enum Deviation {
        /// A required field is absent: `cuid`, `actorCuid`, `event`, `targetType`, `text`, or, named `targetCuid`, both
        /// `targetCuid` and `targetCuids`.
        Missing = "missing",
        /// It is `null`.
        Null = "null",
        /// It has another type.
        Type = "type",
        /// It is an empty text or list. `text` may be empty.
        Empty = "empty",
        /// It occurs twice; the last one counts.
        Duplicate = "duplicate",
        /// `targetCuids` occurs beside `targetCuid`, neither of them `null`.
        BothTargets = "both_targets",
        /// It has a lone surrogate. `text` may have one.
        Surrogate = "surrogate",
    }
}

impl Deviation {
    /// The number of kinds.
    pub(crate) const COUNT: usize = Self::ALL.len();

    /// The words that follow the name of the field in a sentence.
    pub(crate) fn phrase(self) -> &'static str {
        match self {
            Self::Missing => "is missing",
            Self::Null => "is null",
            Self::Type => "is of another type",
            Self::Empty => "is empty",
            Self::Duplicate => "is given twice",
            Self::BothTargets => "is given beside `targetCuid`",
            Self::Surrogate => "has a lone surrogate",
        }
    }
}

/// The deviations of one payload, by kind and then by field. It displays as `text:missing,targetCuid:null`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Deviations([u16; Deviation::COUNT]);

impl Deviations {
    /// Adds a deviation.
    pub(crate) fn note(&mut self, field: Field, deviation: Deviation) {
        self.0[deviation as usize] |= 1 << field as u16;
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0 == [0; Deviation::COUNT]
    }

    /// Whether this deviation is among them.
    pub(crate) fn has(&self, field: Field, deviation: Deviation) -> bool {
        self.0[deviation as usize] & (1 << field as u16) != 0
    }

    /// All deviations, in the order in which they are displayed.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Field, Deviation)> + '_ {
        let of = |deviation: Deviation| Field::ALL.into_iter().map(move |field| (field, deviation));
        Deviation::ALL.into_iter().flat_map(of).filter(|(field, deviation)| self.has(*field, *deviation))
    }
}

impl fmt::Display for Deviations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (field, deviation)) in self.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{}:{}", field.name(), deviation.name())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn displays_kinds_in_their_order_and_fields_within_each() {
        let mut deviations = Deviations::default();
        assert!(deviations.is_empty());
        deviations.note(Field::TargetCuid, Deviation::Null);
        deviations.note(Field::Text, Deviation::Missing);
        deviations.note(Field::Text, Deviation::Missing);
        deviations.note(Field::ActorCuid, Deviation::Null);
        assert_eq!(deviations.to_string(), "text:missing,actorCuid:null,targetCuid:null");
        assert!(
            deviations.has(Field::Text, Deviation::Missing) && !deviations.has(Field::Cuid, Deviation::Missing)
        );
    }

    #[test]
    fn stays_below_the_limit_of_a_header_with_every_departure_at_once() {
        let mut deviations = Deviations::default();
        for (field, deviation) in Field::ALL.into_iter().flat_map(|f| Deviation::ALL.map(|d| (f, d))) {
            // A value has one type; only a list can have items of several kinds.
            let is_possible = match deviation {
                Deviation::Missing => false,
                Deviation::Null | Deviation::Duplicate => true,
                Deviation::Type | Deviation::Empty | Deviation::BothTargets | Deviation::Surrogate => {
                    field == Field::TargetCuids
                }
            };
            if is_possible {
                deviations.note(field, deviation);
            }
        }
        assert!(deviations.to_string().len() < 1024, "{deviations}");
    }

    #[test]
    fn finds_every_field_by_its_name() {
        for (at, field) in Field::ALL.into_iter().enumerate() {
            assert_eq!((Field::named(field.name()), field as usize), (Some(field), at));
        }
        assert_eq!(Field::named("flawid"), None);
    }
}
