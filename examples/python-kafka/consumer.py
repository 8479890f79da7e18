"""Prints PlexTrac's events from Kafka: each one verified, each once, committed only after the work is done.

Environment: SECRET or SECRET_FILE (the webhook's), KAFKA_BOOTSTRAP_SERVERS, KAFKA_TOPIC, KAFKA_GROUP.
"""

import collections
import hashlib
import hmac
import json
import os
import pathlib
import signal
import sys

from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event
from cloudevents.core.exceptions import BaseCloudEventException
from confluent_kafka import Consumer, KafkaException

# Repeats follow closely, after a reconnect or a restart: as many ids as the bridge remembers by default.
REMEMBERED = 100_000


def secret():
    if file := os.environ.get("SECRET_FILE"):
        return pathlib.Path(file).read_bytes().removesuffix(b"\n").removesuffix(b"\r")
    return os.environ["SECRET"].encode()


def is_genuine(key, body, signature):
    """Whether the body is, byte for byte, what PlexTrac signed. While a secret changes, try both."""
    expected = hmac.new(key, body, hashlib.sha256).hexdigest().encode()
    return hmac.compare_digest(expected, signature.lower())


class Handled:
    """Source and id of what was done, the last ones only, and forgotten at the end of the process.

    A real consumer keeps them in its database, and writes them in the transaction that does the work: then a crash
    between the work and the commit of the offset cannot make it work twice.
    """

    def __init__(self):
        self.identities = collections.OrderedDict()

    def add(self, identity):
        self.identities[identity] = None
        if len(self.identities) > REMEMBERED:
            self.identities.popitem(last=False)

    def __contains__(self, identity):
        return identity in self.identities


def work(event):
    """Does what your service does with an event; raises an error if it cannot be done.

    Only the signature is certain: a field may be absent, null or of another type, and a body that an operator replayed as
    it is may be any bytes.
    """
    payload = event.get_data()
    text = payload.get("text") if isinstance(payload, dict) else None
    shown = json.dumps(text, ensure_ascii=False, separators=(",", ":"))
    print("event", event.get_id(), event.get_type(), event.get_subject() or "-", shown, flush=True)


def refuse(message, why):
    """A real consumer keeps it aside and raises an alert: the bridge writes no such message."""
    place = f"{message.topic()}[{message.partition()}]@{message.offset()}"
    print("refused", place, why, file=sys.stderr, flush=True)


def take(message, key, handled):
    headers = dict(message.headers() or [])
    # First of all, over the raw bytes: a body that is not genuine is never parsed.
    if not is_genuine(key, message.value() or b"", headers.get("x-authorization-hmac-256") or b""):
        return refuse(message, "the signature does not belong to the body")
    try:
        event = from_binary_event(KafkaMessage(headers=headers, key=message.key(), value=message.value()))
    except (BaseCloudEventException, ValueError) as error:
        return refuse(message, error)
    # Two sources may have the same id.
    identity = (event.get_source(), event.get_id())
    if identity in handled:
        print("repeat", event.get_id(), file=sys.stderr, flush=True)
        return
    # What is not as PlexTrac documents it: for a service that depends on a field, the moment to look.
    if deviations := headers.get("x-plextrac-deviations"):
        print("deviates", event.get_id(), deviations.decode(), file=sys.stderr, flush=True)
    work(event)
    handled.add(identity)


def main():
    key, handled, stopped = secret(), Handled(), []
    # A text may have a lone surrogate, which UTF-8 cannot carry: it is printed as the escape that JSON has for it.
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.append(True))
    consumer = Consumer({
        "bootstrap.servers": os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092"),
        "group.id": os.environ.get("KAFKA_GROUP", "plextrac-example"),
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "topic.metadata.refresh.interval.ms": 10_000,  # a topic that is made later is found so soon
    })
    consumer.subscribe([os.environ.get("KAFKA_TOPIC", "plextrac-events")])
    try:
        while not stopped:
            message = consumer.poll(0.5)
            if message is None:
                continue
            if error := message.error():
                if error.fatal():
                    raise KafkaException(error)
                # The client tries again by itself: brokers that are away, a topic that is not there yet.
                print("waiting", error.str(), file=sys.stderr, flush=True)
                continue
            take(message, key, handled)
            # One commit each shows the order of things; a busy consumer commits once for many.
            consumer.commit(message, asynchronous=False)
    finally:
        consumer.close()  # leaves the group, so that others take over at once


if __name__ == "__main__":
    main()
