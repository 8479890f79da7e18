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
use crate::brokers::kafka::settings::Settings;
use crate::brokers::kafka::topology::TopicAdmin;

const PATIENCE: Duration = Duration::from_secs(5);

/// The rights of a login on a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rights {
    /// It may not even see whether it exists.
    None,
    /// It sees it, and may write to it or not.
    Seen { writes: bool },
    /// The cluster does not say: it is missing, mostly.
    Unknown,
}

/// The findings about the topics that these credentials may not write to, or create.
pub(super) async fn lacking(client: &Arc<Client>, admin: &TopicAdmin, settings: &Settings) -> Vec<Finding> {
    let (asked, names) = (client.clone(), admin.literals.clone());
    let rights = tokio::task::spawn_blocking(move || ask(&asked, &names)).await.unwrap_or_default();
    let who = match settings.client.security.username.as_str() {
        "" => "these credentials lack".to_owned(),
        user => format!("the user {user} lacks"),
    };
    let text = |operation: &str, name: &str| format!("{who} the operation {operation} on the topic {name}");
    let (mut findings, mut missing) = (Vec::new(), Vec::new());
    for name in &admin.literals {
        match rights.get(&**name) {
            Some(Rights::None) => findings.push(Finding::Missing(text("Write, and with it Describe,", name))),
            Some(Rights::Seen { writes: false }) => findings.push(Finding::Missing(text("Write", name))),
            Some(Rights::Seen { writes: true }) => {}
            Some(Rights::Unknown) | None => missing.push(name.clone()),
        }
    }
    let uncreatable = admin.uncreatable(&missing).await;
    findings.extend(uncreatable.iter().map(|name| Finding::Missing(text("Create", name))));
    findings
}

/// Asks for the rights on each topic. Blocks.
#[expect(unsafe_code, reason = "rdkafka has no description of topics")]
fn ask(client: &Client, names: &[Arc<str>]) -> HashMap<String, Rights> {
    let names: Vec<CString> = names.iter().filter_map(|name| CString::new(&**name).ok()).collect();
    let mut pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
    let patience = i32::try_from(PATIENCE.as_millis()).unwrap_or(i32::MAX);
    let mut rights = HashMap::new();
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
                rights.insert(name.to_string_lossy().into_owned(), read(topic));
            }
            sys::rd_kafka_event_destroy(event);
        }
        sys::rd_kafka_TopicCollection_destroy(topics);
        sys::rd_kafka_AdminOptions_destroy(options);
        sys::rd_kafka_queue_destroy(queue);
    }
    rights
}

/// Reads the description of a topic.
#[expect(unsafe_code, reason = "rdkafka has no description of topics")]
unsafe fn read(topic: *const sys::rd_kafka_TopicDescription_t) -> Rights {
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
        RDKafkaErrorCode::TopicAuthorizationFailed => Rights::None,
        RDKafkaErrorCode::NoError if !operations.is_empty() => {
            let write = sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_WRITE;
            Rights::Seen { writes: operations.contains(&write) }
        }
        _ => Rights::Unknown,
    }
}
