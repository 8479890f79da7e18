//! The operations on topics that a login lacks, as the cluster tells it.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::bindings as sys;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::types::RDKafkaRespErr;

use crate::brokers::Finding;
use crate::brokers::kafka::client::Client;
use crate::brokers::kafka::topology::{TopicAdmin, is_forbidden};

const PATIENCE: Duration = Duration::from_secs(5);

/// The findings about the topics that these credentials may not write to, or create; of `uncreatable` it is known why.
pub(super) async fn lacking(
    client: &Arc<Client>,
    admin: &TopicAdmin,
    uncreatable: &[(Arc<str>, RDKafkaErrorCode)],
) -> Vec<Finding> {
    let (asked, names) = (client.clone(), admin.literals.clone());
    let lacks = tokio::task::spawn_blocking(move || ask(&asked, &names)).await.unwrap_or_default();
    let who = match admin.settings.client.security.username.as_str() {
        "" => "these credentials lack".to_owned(),
        user => format!("the user {user} lacks"),
    };
    let finding = |operation: &str, name: &Arc<str>| {
        Finding::Missing(format!("{who} the operation {operation} on the topic {name}"))
    };
    let seen = admin.literals.iter().filter_map(|name| Some(finding((*lacks.get(&**name)?)?, name)));
    let mut findings: Vec<Finding> = seen.collect();
    let forbidden = uncreatable.iter().filter(|(name, code)| is_forbidden(*code) && !lacks.contains_key(&**name));
    findings.extend(forbidden.map(|(name, _)| finding("Create", name)));
    findings
}

/// The operation that a login lacks on a topic, if any.
type Lacks = Option<&'static str>;

/// Asks for the rights on each topic that the cluster says them of: not of one that is missing, mostly. Blocks.
#[expect(unsafe_code, reason = "rdkafka has no description of topics")]
fn ask(client: &Client, names: &[Arc<str>]) -> HashMap<String, Lacks> {
    let names: Vec<CString> = names.iter().filter_map(|name| CString::new(&**name).ok()).collect();
    let mut pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
    let patience = i32::try_from(PATIENCE.as_millis()).unwrap_or(i32::MAX);
    let mut lacks = HashMap::new();
    // SAFETY: the client outlives the call, the names end in a zero byte and outlive the collection, which copies them;
    // each thing that is made here is destroyed once, the result's parts are read while its event lives.
    unsafe {
        let client = client.native();
        let queue = sys::rd_kafka_queue_new(client);
        let operation = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        let options = sys::rd_kafka_AdminOptions_new(client, operation);
        let _ = sys::rd_kafka_AdminOptions_set_include_authorized_operations(options, 1);
        let topics = sys::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        sys::rd_kafka_DescribeTopics(client, topics, options, queue);
        let event = sys::rd_kafka_queue_poll(queue, patience);
        if !event.is_null() {
            let result = sys::rd_kafka_event_DescribeTopics_result(event);
            let mut count = 0;
            let first = if result.is_null() {
                std::ptr::null_mut()
            } else {
                sys::rd_kafka_DescribeTopics_result_topics(result, &raw mut count)
            };
            for at in 0..count {
                let topic = *first.add(at);
                let name = CStr::from_ptr(sys::rd_kafka_TopicDescription_name(topic));
                lacks.extend(read(topic).map(|lacks| (name.to_string_lossy().into_owned(), lacks)));
            }
            sys::rd_kafka_event_destroy(event);
        }
        sys::rd_kafka_TopicCollection_destroy(topics);
        sys::rd_kafka_AdminOptions_destroy(options);
        sys::rd_kafka_queue_destroy(queue);
    }
    lacks
}

/// Reads the description of a topic.
#[expect(unsafe_code, reason = "rdkafka has no description of topics")]
unsafe fn read(topic: *const sys::rd_kafka_TopicDescription_t) -> Option<Lacks> {
    let mut count = 0;
    // SAFETY: the caller has a description that lives; so do its parts.
    let (code, operations) = unsafe {
        let error = sys::rd_kafka_TopicDescription_error(topic);
        let code = if error.is_null() {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
        } else {
            sys::rd_kafka_error_code(error)
        };
        let first = sys::rd_kafka_TopicDescription_authorized_operations(topic, &raw mut count);
        (code, if first.is_null() { &[] } else { std::slice::from_raw_parts(first, count) })
    };
    match RDKafkaErrorCode::from(code) {
        RDKafkaErrorCode::TopicAuthorizationFailed => Some(Some("Write, and with it Describe,")),
        RDKafkaErrorCode::NoError if !operations.is_empty() => {
            let write = sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_WRITE;
            Some((!operations.contains(&write)).then_some("Write"))
        }
        _ => None,
    }
}
