//! The subject of each error code of Kafka's protocol, as one table; the tests go through all codes that there are.
//!
//! A code that is not in it, and every code of librdkafka's own, is about the broker: it refuses no event.

use rdkafka::error::RDKafkaErrorCode as Code;

use crate::brokers::Refused::{self, AddressUnable, AddressWrong, Broker, Event};
use crate::brokers::{Refusal, RefusalReason};

/// The kind of a code.
pub(super) fn kind(code: Code) -> Refused {
    match code {
        Code::MessageSizeTooLarge => Event(RefusalReason::TooLarge),
        Code::InvalidTopic => Event(RefusalReason::Unroutable),
        // Also where only the timestamp is not taken: the session sends it with the present time first.
        Code::InvalidRecord => Event(RefusalReason::Other),
        // First a question: a leader that has just started may not know its topics.
        Code::UnknownTopicOrPartition => AddressWrong(RefusalReason::NoDestination),
        Code::TopicAuthorizationFailed => AddressWrong(RefusalReason::NotAuthorised),
        // A rule of the operator for this topic.
        Code::PolicyViolation => AddressWrong(RefusalReason::Other),
        // Its leader and replicas.
        Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::ReplicaNotAvailable
        | Code::NotEnoughReplicas
        | Code::NotEnoughReplicasAfterAppend
        | Code::ReassignmentInProgress
        | Code::ListenerNotFound
        | Code::FencedLeaderEpoch
        | Code::UnknownLeaderEpoch
        | Code::OffsetNotAvailable
        | Code::PreferredLeaderNotAvailable
        | Code::EligibleLeadersNotAvailable
        // The disk of this partition.
        | Code::KafkaStorageError
        | Code::LogDirNotFound
        // Of the whole batch: the session judges by its size.
        | Code::MessageBatchTooLarge
        // Sent again with the present time.
        | Code::InvalidTimestamp
        // A topic of an old format has no place for headers.
        | Code::UnsupportedForMessageFormat
        | Code::UnsupportedCompressionType
        // The topic was deleted and made again: its new id is known in a moment.
        | Code::UnknownTopicId => AddressUnable,
        // Among them a checksum that is wrong (`InvalidMessage`): damaged on the way.
        _ => Broker,
    }
}

/// The meaning of a code for a message.
pub(super) fn refusal(code: Code, topic: &str) -> Refusal {
    Refusal::new(kind(code), format!("topic {topic}: {code}"))
}

#[cfg(test)]
mod tests {
    use rdkafka::types::RDKafkaRespErr;

    use super::*;

    /// Every code that librdkafka knows of the protocol, in the order of their numbers.
    const TABLE: [(Code, Refused); 107] = [
        (Code::Unknown, Broker),
        (Code::OffsetOutOfRange, Broker),
        (Code::InvalidMessage, Broker),
        (Code::UnknownTopicOrPartition, AddressWrong(RefusalReason::NoDestination)),
        (Code::InvalidMessageSize, Broker),
        (Code::LeaderNotAvailable, AddressUnable),
        (Code::NotLeaderForPartition, AddressUnable),
        (Code::RequestTimedOut, Broker),
        (Code::BrokerNotAvailable, Broker),
        (Code::ReplicaNotAvailable, AddressUnable),
        (Code::MessageSizeTooLarge, Event(RefusalReason::TooLarge)),
        (Code::StaleControllerEpoch, Broker),
        (Code::OffsetMetadataTooLarge, Broker),
        (Code::NetworkException, Broker),
        (Code::CoordinatorLoadInProgress, Broker),
        (Code::CoordinatorNotAvailable, Broker),
        (Code::NotCoordinator, Broker),
        (Code::InvalidTopic, Event(RefusalReason::Unroutable)),
        (Code::MessageBatchTooLarge, AddressUnable),
        (Code::NotEnoughReplicas, AddressUnable),
        (Code::NotEnoughReplicasAfterAppend, AddressUnable),
        (Code::InvalidRequiredAcks, Broker),
        (Code::IllegalGeneration, Broker),
        (Code::InconsistentGroupProtocol, Broker),
        (Code::InvalidGroupId, Broker),
        (Code::UnknownMemberId, Broker),
        (Code::InvalidSessionTimeout, Broker),
        (Code::RebalanceInProgress, Broker),
        (Code::InvalidCommitOffsetSize, Broker),
        (Code::TopicAuthorizationFailed, AddressWrong(RefusalReason::NotAuthorised)),
        (Code::GroupAuthorizationFailed, Broker),
        (Code::ClusterAuthorizationFailed, Broker),
        (Code::InvalidTimestamp, AddressUnable),
        (Code::UnsupportedSASLMechanism, Broker),
        (Code::IllegalSASLState, Broker),
        (Code::UnsupportedVersion, Broker),
        (Code::TopicAlreadyExists, Broker),
        (Code::InvalidPartitions, Broker),
        (Code::InvalidReplicationFactor, Broker),
        (Code::InvalidReplicaAssignment, Broker),
        (Code::InvalidConfig, Broker),
        (Code::NotController, Broker),
        (Code::InvalidRequest, Broker),
        (Code::UnsupportedForMessageFormat, AddressUnable),
        (Code::PolicyViolation, AddressWrong(RefusalReason::Other)),
        (Code::OutOfOrderSequenceNumber, Broker),
        (Code::DuplicateSequenceNumber, Broker),
        (Code::InvalidProducerEpoch, Broker),
        (Code::InvalidTransactionalState, Broker),
        (Code::InvalidProducerIdMapping, Broker),
        (Code::InvalidTransactionTimeout, Broker),
        (Code::ConcurrentTransactions, Broker),
        (Code::TransactionCoordinatorFenced, Broker),
        (Code::TransactionalIdAuthorizationFailed, Broker),
        (Code::SecurityDisabled, Broker),
        (Code::OperationNotAttempted, Broker),
        (Code::KafkaStorageError, AddressUnable),
        (Code::LogDirNotFound, AddressUnable),
        (Code::SaslAuthenticationFailed, Broker),
        (Code::UnknownProducerId, Broker),
        (Code::ReassignmentInProgress, AddressUnable),
        (Code::DelegationTokenAuthDisabled, Broker),
        (Code::DelegationTokenNotFound, Broker),
        (Code::DelegationTokenOwnerMismatch, Broker),
        (Code::DelegationTokenRequestNotAllowed, Broker),
        (Code::DelegationTokenAuthorizationFailed, Broker),
        (Code::DelegationTokenExpired, Broker),
        (Code::InvalidPrincipalType, Broker),
        (Code::NonEmptyGroup, Broker),
        (Code::GroupIdNotFound, Broker),
        (Code::FetchSessionIdNotFound, Broker),
        (Code::InvalidFetchSessionEpoch, Broker),
        (Code::ListenerNotFound, AddressUnable),
        (Code::TopicDeletionDisabled, Broker),
        (Code::FencedLeaderEpoch, AddressUnable),
        (Code::UnknownLeaderEpoch, AddressUnable),
        (Code::UnsupportedCompressionType, AddressUnable),
        (Code::StaleBrokerEpoch, Broker),
        (Code::OffsetNotAvailable, AddressUnable),
        (Code::MemberIdRequired, Broker),
        (Code::PreferredLeaderNotAvailable, AddressUnable),
        (Code::GroupMaxSizeReached, Broker),
        (Code::FencedInstanceId, Broker),
        (Code::EligibleLeadersNotAvailable, AddressUnable),
        (Code::ElectionNotNeeded, Broker),
        (Code::NoReassignmentInProgress, Broker),
        (Code::GroupSubscribedToTopic, Broker),
        (Code::InvalidRecord, Event(RefusalReason::Other)),
        (Code::UnstableOffsetCommit, Broker),
        (Code::ThrottlingQuotaExceeded, Broker),
        (Code::ProducerFenced, Broker),
        (Code::ResourceNotFound, Broker),
        (Code::DuplicateResource, Broker),
        (Code::UnacceptableCredential, Broker),
        (Code::InconsistentVoterSet, Broker),
        (Code::InvalidUpdateVersion, Broker),
        (Code::FeatureUpdateFailed, Broker),
        (Code::PrincipalDeserializationFailure, Broker),
        (Code::UnknownTopicId, AddressUnable),
        (Code::FencedMemberEpoch, Broker),
        (Code::UnreleasedInstanceId, Broker),
        (Code::UnsupportedAssignor, Broker),
        (Code::StaleMemberEpoch, Broker),
        (Code::UnknownSubscriptionId, Broker),
        (Code::TelemetryTooLarge, Broker),
        (Code::RebootstrapRequired, Broker),
        (Code::NoError, Broker),
    ];

    /// Every code of librdkafka's list, those of the protocol or its own.
    fn codes(range: std::ops::RangeInclusive<i32>) -> Vec<Code> {
        let known = range.filter_map(|number| RDKafkaRespErr::try_from(number).ok()).map(Code::from);
        known.filter(|code| !matches!(code, Code::Begin | Code::End | Code::EndAll)).collect()
    }

    #[test]
    fn knows_each_code_of_the_protocol_once() {
        let protocol = codes(-1..=1000);
        for code in &protocol {
            let rows: Vec<Refused> =
                TABLE.iter().filter(|(known, _)| known == code).map(|(_, kind)| *kind).collect();
            assert_eq!(rows, [kind(*code)], "{code}");
        }
        assert_eq!(protocol.len(), TABLE.len());
    }

    #[test]
    fn blames_an_event_or_its_topic_for_these_codes_and_no_other() {
        let all = codes(-1000..=1000);
        let is_blamed = |code: &Code| matches!(kind(*code), Event(_) | AddressWrong(_));
        let refused: Vec<Code> = all.into_iter().filter(is_blamed).collect();
        let expected = [
            Code::UnknownTopicOrPartition,
            Code::MessageSizeTooLarge,
            Code::InvalidTopic,
            Code::TopicAuthorizationFailed,
            Code::PolicyViolation,
            Code::InvalidRecord,
        ];
        assert_eq!(refused, expected);
    }

    #[test]
    fn blames_the_topic_alone_for_its_replicas_and_nothing_for_an_unknown_code() {
        for code in [Code::NotEnoughReplicas, Code::NotEnoughReplicasAfterAppend, Code::LeaderNotAvailable] {
            assert_eq!(kind(code), AddressUnable);
        }
        assert_eq!((kind(Code::EndAll), kind(Code::MessageTimedOut)), (Broker, Broker));
    }
}
