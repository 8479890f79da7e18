//! One event as an AMQP message: its properties and headers, and what of it cannot travel.

use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, Confirmation};

use crate::brokers::rabbitmq::settings::SHORT_STRING;
use crate::brokers::{Headers, Refusal, RefusalReason};
use crate::event::{Event, Message};

/// The size of a content header beside the table of headers: frame, class, flags, the other properties.
const FRAME_REST: usize = 1024;

/// A header's type and the two lengths.
const HEADER_REST: usize = 6;

/// The part of a message that the client library gets.
pub(super) struct Publication {
    exchange: ShortString,
    routing_key: ShortString,
    properties: BasicProperties,
    body: Box<[u8]>,
}

impl Publication {
    /// The message as AMQP carries it. A header cannot be split over frames: a larger one would cost the connection,
    /// again and again.
    pub(super) fn new(message: &Message, headers: &Headers, frame_max: usize) -> Result<Self, Refusal> {
        let event = &message.event;
        let (table, size) = table(headers, event)?;
        if size + FRAME_REST > frame_max {
            let text = format!("the headers are {size} bytes, too many for one frame of {frame_max} bytes");
            return Err(Refusal::event(RefusalReason::TooLarge, text));
        }
        let mut properties = BasicProperties::default()
            .with_content_type(short("the content type", event.content_type().name())?)
            .with_delivery_mode(2) // persistent
            .with_message_id(short("the event id", event.id())?);
        if size > 0 {
            properties = properties.with_headers(table);
        }
        Ok(Self {
            exchange: short("the exchange's name", &message.address)?,
            routing_key: short("the routing key", &message.key)?,
            properties,
            body: event.body.clone(),
        })
    }

    /// Sends it and waits for its confirm. The first poll takes the next delivery tag.
    pub(super) async fn publish(self, channel: Channel) -> lapin::Result<Confirmation> {
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let confirm =
            channel.basic_publish(self.exchange, self.routing_key, options, &self.body, self.properties).await?;
        // The library has its own copy; the confirm may take long.
        drop(self.body);
        confirm.await
    }
}

/// The headers as a table, and its size in bytes. The content type is a property in AMQP, not a header.
fn table(headers: &Headers, event: &Event) -> Result<(FieldTable, usize), Refusal> {
    let mut table = FieldTable::default();
    let (mut size, mut wrong) = (0, None);
    headers.each(event, |name, value| {
        if name == "content-type" {
            return;
        }
        match short("a header's name", name) {
            Ok(short) => {
                size += name.len() + value.len() + HEADER_REST;
                table.insert(short, AMQPValue::LongString(LongString::from(value)));
            }
            Err(refusal) => wrong = Some(refusal),
        }
    });
    wrong.map_or(Ok((table, size)), Err)
}

fn short(what: &str, text: &str) -> Result<ShortString, Refusal> {
    ShortString::try_new(text).map_err(|_| {
        let text = format!("{what} is {} bytes; AMQP carries at most {SHORT_STRING}", text.len());
        Refusal::event(RefusalReason::Other, text)
    })
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::brokers::{Encoding, HeaderStyle};
    use crate::event::{Fields, Origin};

    fn message(cuid: &str, event: &str) -> Message {
        let origin = Origin {
            source: "main".into(),
            signature: Some([b'a'; 64]),
            verified: true,
            traceparent: None,
            received: SystemTime::UNIX_EPOCH,
        };
        let fields = Fields { cuid, event, target_type: "t", ..Fields::default() };
        let event = Event::new(origin, Box::from(*b"{}"), &fields, &[0; 32]);
        Message { event: Box::new(event), address: "x".into(), key: "k".into() }
    }

    fn publication(style: HeaderStyle, message: &Message) -> Result<Publication, Refusal> {
        within_frames(131_072, style, message)
    }

    fn within_frames(most: usize, style: HeaderStyle, message: &Message) -> Result<Publication, Refusal> {
        let headers = Headers::new(style, "cloudEvents_", "content-type", Encoding::Plain);
        Publication::new(message, &headers, most)
    }

    #[test]
    fn puts_the_content_type_into_the_property_and_not_among_the_headers() {
        let sent = publication(HeaderStyle::CloudEvents, &message("c", "E")).unwrap();
        let properties = &sent.properties;
        assert_eq!(properties.content_type().as_ref().unwrap().as_str(), "application/json");
        assert_eq!(properties.message_id().as_ref().unwrap().as_str(), "c-000000000000");
        assert_eq!(*properties.delivery_mode(), Some(2));
        let names: Vec<&str> =
            properties.headers().as_ref().unwrap().inner().keys().map(ShortString::as_str).collect();
        let expected = [
            "cloudEvents_id",
            "cloudEvents_source",
            "cloudEvents_specversion",
            "cloudEvents_subject",
            "cloudEvents_time",
            "cloudEvents_type",
            "x-authorization-hmac-256",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn sends_no_headers_when_told_so() {
        let sent = publication(HeaderStyle::None, &message("c", "E")).unwrap();
        assert!(sent.properties.headers().is_none());
        assert!(sent.properties.content_type().is_some());
    }

    #[test]
    fn refuses_an_id_that_is_no_short_string() {
        let refusal = publication(HeaderStyle::None, &message(&"c".repeat(243), "E")).err().unwrap();
        let text = "the event id is 256 bytes; AMQP carries at most 255";
        assert_eq!(refusal, Refusal::event(RefusalReason::Other, text));
        assert!(publication(HeaderStyle::None, &message(&"c".repeat(242), "E")).is_ok());
    }

    #[test]
    fn refuses_headers_that_do_not_fit_into_one_frame() {
        let message = message("c", &"E".repeat(200_000));
        let refusal = within_frames(2048, HeaderStyle::CloudEvents, &message).err().unwrap();
        assert_eq!(refusal.reason(), RefusalReason::TooLarge);
        assert!(refusal.text.ends_with("too many for one frame of 2048 bytes"), "{}", refusal.text);
        // The least that AMQP allows takes a name of any length.
        assert!(within_frames(4096, HeaderStyle::CloudEvents, &message).is_ok());
    }
}
