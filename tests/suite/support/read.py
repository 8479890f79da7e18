"""Reads a broker back with a client that is not the bridge's: `read.py ORDER`, the order as JSON.

Prints one JSON object a line, in the broker's order: address, partition, key, id, headers, body (base64).
Every call ends by itself: at the end of what is stored, or (RabbitMQ, which cannot say where that is) once
`at_least` messages came and nothing more for a while.
"""

import asyncio
import base64
import json
import ssl
import sys
import time


# The ids of what the plain client of `cluster.py` published, which does not count.
OTHERS = "probe"


def show(address, key, message_id, headers, body, partition=0):
    names = [name for name, _ in headers]
    if len(set(names)) != len(names):
        sys.exit(f"a header stands twice: {names}")
    line = {"address": address, "partition": partition, "key": key, "id": message_id, "headers": dict(headers),
            "body": base64.b64encode(body).decode()}
    print(json.dumps(line))


def text(value):
    return value.decode() if isinstance(value, bytes) else value


def kafka(order):
    from confluent_kafka import Consumer, KafkaException, TopicPartition

    def ends(part):
        # A broker that stood still knows none of its partitions for a moment.
        while True:
            try:
                return consumer.get_watermark_offsets(part, timeout=10)
            except KafkaException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    secured = {"security.protocol": "SSL", "ssl.ca.location": order["ca"]} if "ca" in order else {}
    consumer = Consumer({"bootstrap.servers": order["bootstrap"], **secured,
                         "group.id": "reader", "enable.auto.commit": False,
                         # Whatever a fetch of a fresh partition says: never on from its end.
                         "auto.offset.reset": "earliest"})
    topics = consumer.list_topics(timeout=30).topics
    parts = [TopicPartition(name, number, 0) for name, topic in topics.items() if name.startswith(order["prefix"])
             for number in topic.partitions]
    if not parts:
        return
    consumer.assign(parts)
    follows = {(part.topic, part.partition): 0 for part in parts}
    count, enough, deadline = 0, time.monotonic() + 10, time.monotonic() + 60
    while True:
        # Up to what the broker itself says is there, not to the first time that a partition seems to end.
        for part in parts:
            place = part.topic, part.partition
            low, high = ends(part)
            follows[place] = max(follows[place], low)
            while follows[place] < high:
                if time.monotonic() > deadline:
                    sys.exit(f"kafka: {place} was not read to its end at {high}: {follows}")
                message = consumer.poll(1)
                if message is None or message.error():
                    continue
                deadline = time.monotonic() + 60
                at = message.topic(), message.partition()
                if message.offset() < follows[at]:
                    continue  # read again after a change of leader: the same message, not a repeat
                if message.offset() > follows[at]:
                    sys.exit(f"kafka: the reader went from {follows[at]} to {message.offset()} in {at}")
                follows[at] += 1
                headers = [(name, text(value)) for name, value in message.headers() or []]
                count += not dict(headers).get("ce_id", "").startswith(OTHERS)
                show(message.topic(), text(message.key() or b""), dict(headers).get("ce_id", ""), headers,
                     message.value(), message.partition())
        # A leader that was elected just now may say less at first.
        if count >= order.get("at_least", 0) or time.monotonic() > enough:
            break
        time.sleep(0.5)
    consumer.close()


def rabbitmq(order):
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(order["url"]))
    queues = []
    for queue in order["queues"]:
        channel = connection.channel()
        try:
            channel.queue_declare(queue, passive=True)
            queues.append(queue)
        except pika.exceptions.ChannelClosedByBroker:
            continue
    channel, count, deadline = connection.channel(), 0, time.monotonic() + 20
    channel.basic_qos(prefetch_count=500)
    while True:
        for queue in queues:
            # As many as the queue itself says there are: if those on their way were given up, they would come back behind others.
            left = channel.queue_declare(queue, passive=True).method.message_count
            while left and time.monotonic() <= deadline:
                method, properties, body = next(channel.consume(queue, inactivity_timeout=1))
                if method is None:
                    continue
                deadline, left = time.monotonic() + 20, left - 1
                channel.basic_ack(method.delivery_tag)
                count += not (properties.message_id or "").startswith(OTHERS)
                headers = [(name, text(value)) for name, value in (properties.headers or {}).items()]
                if properties.content_type:
                    headers.append(("content-type", properties.content_type))
                if properties.delivery_mode != 2:
                    sys.exit("rabbitmq: a message that is not persistent")
                show(method.exchange, method.routing_key, properties.message_id or "", headers, body)
            channel.cancel()
        if count >= order["at_least"] or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    connection.close()


async def nats(order):
    import nats as client
    from nats.js.api import ConsumerConfig, DeliverPolicy
    from nats.js.errors import NotFoundError

    secured = {}
    if "ca" in order:
        secured["tls"] = ssl.create_default_context(cafile=order["ca"])
        secured["tls"].load_cert_chain(order["certificate"], order["key"])
    nc = await client.connect(order["url"], connect_timeout=10, **secured)
    js = nc.jetstream(timeout=30)
    left, follows, deadline = None, 1, time.monotonic() + 60
    while left != 0:
        try:
            if left is None:
                left = (await js.stream_info(order["stream"])).state.messages
                continue
            config = ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=follows,
                                    inactive_threshold=30)
            consumer = await js.pull_subscribe("", stream=order["stream"], config=config)
            while left:
                for message in await consumer.fetch(min(left, 500), timeout=30):
                    deadline = time.monotonic() + 60
                    at = message.metadata.sequence.stream
                    if at < follows:
                        sys.exit(f"nats: the reader went back from {follows} to {at}")
                    headers = list((message.headers or {}).items())
                    # `Nats-Msg-Id` is more than the id for events without a `cuid`.
                    id = dict(headers).get("ce-id") or dict(headers).get("Nats-Msg-Id", "")
                    show(message.subject, "", id, headers, message.data)
                    await message.ack()
                    left, follows = left - 1, at + 1
        except client.errors.Error as error:
            if left is None and isinstance(error, NotFoundError):
                break
            # A cluster in which a server stood still elects leaders for a moment, those of a consumer too.
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.5)
    await nc.close()


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    {"kafka": kafka, "rabbitmq": rabbitmq, "nats": lambda order: asyncio.run(nats(order))}[wanted["broker"]](wanted)
