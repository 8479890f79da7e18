//! Sessions against librdkafka's own mock of a cluster: what a broker says, and what becomes of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rdkafka::error::RDKafkaErrorCode;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::brokers::kafka::client::{Client, Reports};
use crate::brokers::kafka::record::BATCH_SIZE;
use crate::brokers::kafka::session::{KafkaSession, SessionLimits};
use crate::brokers::kafka::topics::SessionTopics;
use crate::brokers::kafka::topology::{TopicState, Topics};
use crate::brokers::kafka::{Kafka, Settings};
use crate::brokers::{
    Broker as _, Cause, ErrorKind, Finding, Refusal, RefusalReason, Refused, Routed, Sent, Sequence, Session,
    Terms, Verdict,
};
use crate::event::{Event, Fields, Message, Origin};
use crate::settings::testing;

pub(super) fn broker(toml: &str) -> Kafka {
    let (settings, problems) = testing::read(&["broker", "kafka"], toml, Settings::read);
    assert!(problems.errors.is_empty(), "{problems:?}");
    Kafka::new(&settings, &Terms::of_tests(Settings::headers))
}

pub(super) fn message(broker: &mut Kafka, event: &str, body: &[u8]) -> Message {
    let origin = Origin {
        source: "main".into(),
        signature: Some([b'a'; 64]),
        verified: true,
        traceparent: None,
        received: SystemTime::now(),
    };
    let fields =
        Fields { cuid: "c1", event, target_type: "t", actor_cuid: "a", target_cuid: "x", ..Fields::default() };
    let event = Event::new(origin, body.into(), &fields, &[0; 32]);
    let Routed { address, key, .. } = broker.admin.settings.router.clone().route(&event, || 0).unwrap();
    Message { event: Box::new(event), address, key }
}

/// Sends one message and waits for what becomes of it.
pub(super) async fn outcome(
    session: &mut Box<dyn Session>,
    sequence: Sequence,
    message: &Message,
) -> Result<Verdict, String> {
    match session.send(sequence, message) {
        Sent::Taken => {}
        Sent::Refused(refusal) => return Ok(Verdict::Refused(refusal)),
        Sent::RetryLater(text) => return Ok(Verdict::RetryLater(text)),
        Sent::Lost(error) => return Err(error.text),
    }
    let mut verdicts = Vec::new();
    match tokio::time::timeout(Duration::from_secs(20), session.verdicts(&mut verdicts)).await {
        Ok(Ok(())) => {
            assert_eq!((verdicts.len(), verdicts[0].0), (1, sequence));
            Ok(verdicts.remove(0).1)
        }
        Ok(Err(error)) => Err(error.text),
        Err(_) => Err("no verdict".to_owned()),
    }
}

type Cluster = MockCluster<'static, DefaultProducerContext>;

/// A cluster with the topic `events`.
fn cluster() -> (Cluster, String) {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("events", 2, 1).unwrap();
    let toml = format!(
        "bootstrap_servers = \"{}\"\ntopic = \"events\"\ntopology = \"check\"\n",
        cluster.bootstrap_servers()
    );
    (cluster, toml)
}

#[tokio::test]
async fn stores_and_closes_with_every_verdict() {
    let (_cluster, toml) = cluster();
    let mut broker = broker(&toml);
    let (mut session, findings) = broker.connect().await.unwrap();
    assert!(matches!(findings.as_slice(), [Finding::Good(_)]), "{findings:?}");
    let message = message(&mut broker, "E", b"{}");
    assert_eq!(outcome(&mut session, 0, &message).await, Ok(Verdict::Stored));
    for sequence in 1..=100 {
        assert!(matches!(session.send(sequence, &message), Sent::Taken));
    }
    let mut verdicts = Vec::new();
    session.close(Duration::from_secs(5), &mut verdicts).await;
    assert_eq!(verdicts, (1..=100).map(|sequence| (sequence, Verdict::Stored)).collect::<Vec<_>>());
}

#[tokio::test]
async fn asks_for_a_topic_before_it_refuses_or_connects() {
    let (cluster, toml) = cluster();
    let mut absent = broker(&toml.replace("\"events\"", "\"absent\""));
    let error = absent.connect().await.err().unwrap();
    assert_eq!(
        error.text,
        "the topic absent does not exist, or these credentials may not see it; create it, or set \
         topology = \"declare\""
    );
    let mut broker = broker(&format!("{toml}\n[[routes]]\nevent = \"R\"\ntopic = \"route-{{event}}\""));
    let (mut session, _) = broker.connect().await.unwrap();
    let routed = message(&mut broker, "R", b"{}");
    let Ok(Verdict::Refused(first)) = outcome(&mut session, 0, &routed).await else { panic!("not refused") };
    assert_eq!(first.kind, Refused::AddressUnable, "nothing is known of it yet");
    let asked = tokio::time::timeout(Duration::from_secs(1), session.verdicts(&mut Vec::new())).await;
    assert!(asked.is_err() && !session.has_changed(), "{asked:?}");
    let missing = Refusal::wrong(RefusalReason::NoDestination, "the topic route-R does not exist");
    assert_eq!(outcome(&mut session, 1, &routed).await, Ok(Verdict::Refused(missing)));
    cluster.create_topic("route-R", 1, 1).unwrap();
    tokio::time::timeout(Duration::from_secs(5), session.verdicts(&mut Vec::new())).await.unwrap().unwrap();
    assert!(session.has_changed() && !session.has_changed());
    assert_eq!(outcome(&mut session, 1, &routed).await, Ok(Verdict::Stored));
    let message = message(&mut broker, "E", b"{}");
    assert_eq!(outcome(&mut session, 2, &message).await, Ok(Verdict::Stored));
    drop(cluster);
}

#[tokio::test]
async fn refuses_what_these_credentials_may_not_write() {
    let (cluster, toml) = cluster();
    let mut broker = broker(&toml);
    let (mut session, _) = broker.connect().await.unwrap();
    cluster.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED]);
    let message = message(&mut broker, "E", b"{}");
    let Ok(Verdict::Refused(refusal)) = outcome(&mut session, 0, &message).await else { panic!("not refused") };
    assert_eq!(refusal.kind, Refused::AddressWrong(RefusalReason::NotAuthorised));
}

#[tokio::test]
async fn blames_a_small_message_for_being_too_large_only_where_it_was_alone_in_its_batch() {
    let (cluster, toml) = cluster();
    let mut broker = broker(&toml);
    let (mut session, _) = broker.connect().await.unwrap();
    let too_large = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE; 2];
    let kind = Refused::Event(RefusalReason::TooLarge);
    let message = message(&mut broker, "E", b"{}");
    cluster.request_errors(RDKafkaApiKey::Produce, &too_large[..1]);
    let alone = outcome(&mut session, 0, &message).await;
    assert!(matches!(&alone, Ok(Verdict::Refused(refusal)) if refusal.kind == kind), "{alone:?}");
    cluster.request_errors(RDKafkaApiKey::Produce, &too_large);
    for sequence in [1, 2] {
        assert!(matches!(session.send(sequence, &message), Sent::Taken));
    }
    let mut verdicts = Vec::new();
    let error = session.verdicts(&mut verdicts).await.unwrap_err();
    assert!(matches!(&error.suspect, Cause::Message(refusal) if refusal.kind == kind), "{error:?}");
    assert_eq!(verdicts, []);
}

/// A session that was told this limit of the topic `events` when it began.
fn session_with_limit(broker: &Kafka, limit: usize) -> Box<dyn Session> {
    let survey = Topics {
        brokers: 1,
        partitions: HashMap::from([("events".to_owned(), 2)]),
        standing: HashMap::from([("events".into(), TopicState::Exists(Some(limit)))]),
        gone: None,
    };
    let limits = SessionLimits {
        batch_size: BATCH_SIZE,
        compressed: false,
        renders: false,
        stuck_after: Duration::from_mins(1),
        most_at_once: 0,
    };
    let client = Arc::new(Client::new(&broker.admin.config, None).unwrap());
    let headers = Terms::of_tests(Settings::headers).headers;
    Box::new(KafkaSession::new(client, headers, SessionTopics::new(broker.admin.clone(), &survey), limits))
}

/// The mock says no limits, so a question leaves the topic without one.
#[tokio::test]
async fn asks_for_a_limit_again_before_an_old_one_makes_a_message_too_large() {
    let (_cluster, toml) = cluster();
    let mut broker = broker(&toml);
    let limit = 2 * BATCH_SIZE;
    let (small, large) = (message(&mut broker, "E", b"{}"), message(&mut broker, "E", &vec![b'x'; limit]));
    let mut session = session_with_limit(&broker, limit);
    let Sent::Refused(refusal) = session.send(0, &large) else { panic!("taken") };
    assert_eq!(refusal.kind, Refused::Event(RefusalReason::TooLarge));
    assert_eq!(outcome(&mut session, 1, &small).await, Ok(Verdict::Stored));
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(5)).await;
    tokio::time::resume();
    let Sent::Refused(refusal) = session.send(2, &large) else { panic!("taken") };
    assert_eq!(refusal.kind, Refused::AddressUnable);
    let answer = tokio::time::timeout(Duration::from_secs(20), session.verdicts(&mut Vec::new())).await;
    assert!(matches!(answer, Ok(Ok(()))) && session.has_changed(), "{answer:?}");
    assert_eq!(outcome(&mut session, 2, &large).await, Ok(Verdict::Stored));
}

/// `ingress.max_body` may have been larger when an event arrived, or became a dead letter.
#[tokio::test]
async fn sends_what_is_larger_than_the_largest_body_of_today() {
    let (_cluster, toml) = cluster();
    let (settings, _) = testing::read(&["broker", "kafka"], &toml, Settings::read);
    let mut broker = Kafka::new(&settings, &Terms { max_body: 1024, ..Terms::of_tests(Settings::headers) });
    let (mut session, _) = broker.connect().await.unwrap();
    let message = message(&mut broker, "E", &vec![b'x'; 3 * BATCH_SIZE]);
    assert_eq!(outcome(&mut session, 0, &message).await, Ok(Verdict::Stored));
}

/// The mock creates each topic that a client asks for by its name, as a cluster with `auto.create.topics.enable` does.
#[tokio::test]
async fn lets_no_cluster_create_a_topic_unless_the_operator_says_so() {
    let (_cluster, toml) = cluster();
    let toml = toml.replace("\"check\"", "\"ignore\"").replace("\"events\"", "\"absent\"");
    let mut leaving = broker(&toml);
    let (mut session, _) = leaving.connect().await.unwrap();
    let message = message(&mut leaving, "E", b"{}");
    let Ok(Verdict::Refused(refusal)) = outcome(&mut session, 0, &message).await else { panic!("created") };
    assert_eq!(refusal.kind, Refused::AddressWrong(RefusalReason::NoDestination));
    let mut creating = broker(&format!("{toml}properties = {{ \"allow.auto.create.topics\" = \"true\" }}"));
    let (mut session, _) = creating.connect().await.unwrap();
    assert_eq!(outcome(&mut session, 0, &message).await, Ok(Verdict::Stored));
}

#[tokio::test]
async fn warns_of_a_topic_without_a_leader_when_it_inspects() {
    let (cluster, toml) = cluster();
    let mut broker = broker(&toml);
    let text = "the topic events may not take messages at present: partition 1 has no leader";
    let warning = Finding::Warning(text.to_owned());
    assert!(!broker.inspect().await.unwrap().contains(&warning));
    cluster.partition_leader("events", 1, None).unwrap();
    let findings = broker.inspect().await.unwrap();
    assert!(findings.contains(&warning), "{findings:?}");
}

/// The mock creates no topics.
#[tokio::test]
async fn connects_although_the_topic_of_a_route_cannot_be_created() {
    let (_cluster, toml) = cluster();
    let declare = toml.replace("\"check\"", "\"declare\"");
    let mut broker = broker(&format!("{declare}\n[[routes]]\nevent = \"R\"\ntopic = \"absent\""));
    let (mut session, findings) = broker.connect().await.unwrap();
    let text = "the topic absent does not exist and cannot be created";
    let is_told = |finding: &Finding| matches!(finding, Finding::Missing(missing) if missing.starts_with(text));
    assert!(findings.iter().any(is_told), "{findings:?}");
    let (main, routed) = (message(&mut broker, "E", b"{}"), message(&mut broker, "R", b"{}"));
    let refused = outcome(&mut session, 0, &routed).await;
    assert!(
        matches!(&refused, Ok(Verdict::Refused(refusal)) if refusal.kind == Refused::AddressUnable),
        "{refused:?}"
    );
    assert_eq!(outcome(&mut session, 1, &main).await, Ok(Verdict::Stored));
    let mut absent = self::broker(&declare.replace("\"events\"", "\"absent\""));
    let error = absent.connect().await.err().unwrap();
    assert!(error.text.contains("cannot create the missing topics (absent)"), "{error:?}");
}

#[tokio::test]
async fn settles_nothing_after_a_fatal_error() {
    let (cluster, toml) = cluster();
    let mut broker = broker(&toml);
    let (mut session, _) = broker.connect().await.unwrap();
    let message = message(&mut broker, "E", b"{}");
    assert_eq!(outcome(&mut session, 0, &message).await, Ok(Verdict::Stored));
    cluster
        .request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER]);
    for sequence in 1..=10 {
        assert!(matches!(session.send(sequence, &message), Sent::Taken));
    }
    let mut verdicts = Vec::new();
    let error = loop {
        if let Err(error) = session.verdicts(&mut verdicts).await {
            break error;
        }
    };
    assert_eq!(error.kind, ErrorKind::Lost, "{error:?}");
    session.close(Duration::from_secs(1), &mut verdicts).await;
    assert_eq!(verdicts, []);
    let (mut session, _) = broker.connect().await.unwrap();
    assert_eq!(outcome(&mut session, 1, &message).await, Ok(Verdict::Stored));
}

#[tokio::test]
async fn tells_that_the_brokers_are_away_until_they_are_back() {
    let (cluster, toml) = cluster();
    let mut broker = broker(&toml);
    let (mut session, _) = broker.connect().await.unwrap();
    assert_eq!(session.away(), None);
    cluster.broker_down(1).unwrap();
    let message = message(&mut broker, "E", b"{}");
    assert!(matches!(session.send(0, &message), Sent::Taken));
    let mut verdicts = Vec::new();
    let waiting = tokio::time::timeout(Duration::from_secs(1), session.verdicts(&mut verdicts)).await;
    assert!(waiting.is_err(), "{waiting:?}");
    assert_eq!(session.away().map(|away| away.kind), Some(ErrorKind::Connect));
    cluster.broker_up(1).unwrap();
    session.verdicts(&mut verdicts).await.unwrap();
    assert_eq!(verdicts, [(0, Verdict::Stored)]);
    assert_eq!(session.away(), None);
}

#[tokio::test]
async fn sends_a_record_whose_time_is_refused_again_with_the_present_time() {
    let (cluster, toml) = cluster();
    let mut broker = broker(&toml);
    let (mut session, _) = broker.connect().await.unwrap();
    let mut message = message(&mut broker, "E", b"{}");
    message.event.origin.received = SystemTime::now() - Duration::from_secs(100);
    // Several such records in one batch are called invalid.
    let codes =
        [RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_RECORD, RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP];
    for (sequence, code) in codes.into_iter().enumerate() {
        let sequence = sequence as Sequence;
        cluster.request_errors(RDKafkaApiKey::Produce, &[code]);
        let first = outcome(&mut session, sequence, &message).await;
        let Ok(Verdict::Refused(refusal)) = first else { panic!("{first:?}") };
        assert!(refusal.kind == Refused::AddressUnable && refusal.text.contains("present time"), "{refusal:?}");
        assert_eq!(outcome(&mut session, sequence, &message).await, Ok(Verdict::Stored));
    }
    // Older than one that was refused: with the present time at once, so what is wrong now is the record.
    cluster.request_errors(RDKafkaApiKey::Produce, &codes[..1]);
    let refused = outcome(&mut session, 2, &message).await;
    assert!(
        matches!(&refused, Ok(Verdict::Refused(refusal)) if refusal.kind == Refused::Event(RefusalReason::Other)),
        "{refused:?}"
    );
}

#[tokio::test]
async fn replaces_a_client_that_gives_no_answer_although_its_topic_could() {
    let (cluster, toml) = cluster();
    let mut broker = broker(&toml);
    broker.stuck_after = Duration::from_secs(1);
    let (mut session, _) = broker.connect().await.unwrap();
    let silence = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS; 200];
    cluster.request_errors(RDKafkaApiKey::Produce, &silence);
    let message = message(&mut broker, "E", b"{}");
    assert!(matches!(session.send(0, &message), Sent::Taken) && session.takes(&message));
    session.flush();
    assert!(!session.takes(&message) && !session.takes_more());
    let mut verdicts = Vec::new();
    let lost = async {
        loop {
            if let Err(lost) = session.verdicts(&mut verdicts).await {
                return lost;
            }
        }
    };
    let lost = tokio::time::timeout(Duration::from_mins(1), lost).await.unwrap();
    assert!(lost.text.ends_with("connecting with a new client"), "{lost:?}");
}

#[test]
fn one_broker_of_three_that_refuses_a_certificate_is_not_the_cluster() {
    let reports = Reports::default();
    reports.note_brokers(3);
    let refuse = |node: &str| {
        let text = format!(
            "ssl://node{node}:9093/{node}: SSL handshake failed: certificate expired (after 3ms in state SSL_HANDSHAKE)"
        );
        reports.note_error(RDKafkaErrorCode::SSL, &text);
    };
    for node in ["1", "1", "2"] {
        refuse(node);
        assert_eq!(reports.away(), None);
    }
    reports.note_brokers(3);
    refuse("3");
    assert_eq!(reports.away(), None, "a success in between");
    refuse("1");
    refuse("2");
    assert_eq!(reports.away().map(|error| error.kind), Some(ErrorKind::Tls));
    reports.note_brokers(1);
    refuse("1");
    assert!(reports.away().is_some(), "the only one");
}
