"""Changes a broker as its administrator would: `admin.py ORDER`, the order as JSON; ends when the change is done."""

import asyncio
import json
import sys
import time


def kafka(order):
    from confluent_kafka.admin import (AclBinding, AclOperation, AclPermissionType, AdminClient, NewTopic,
                                       ResourcePatternType, ResourceType)

    admin = AdminClient({"bootstrap.servers": order["bootstrap"], "security.protocol": "SSL",
                         "ssl.ca.location": order["ca"]})

    def until(there):
        deadline = time.monotonic() + 60
        while (order["topic"] in admin.list_topics(timeout=30).topics) != there:
            if time.monotonic() > deadline:
                sys.exit(f"kafka: the topic is not {'there' if there else 'gone'}")
            time.sleep(0.1)

    if order["do"] == "create":
        topic = NewTopic(order["topic"], order.get("partitions", 1), 1, config=order.get("config", {}))
        admin.create_topics([topic])[order["topic"]].result(30)
        until(True)
    elif order["do"] == "delete":
        admin.delete_topics([order["topic"]])[order["topic"]].result(30)
        until(False)
    elif order["do"] == "partitions":
        print(json.dumps(len(admin.list_topics(timeout=30).topics[order["topic"]].partitions)))
    elif order["do"] == "deny":
        rule = AclBinding(ResourceType.TOPIC, order["topic"], ResourcePatternType.LITERAL, "User:" + order["user"], "*",
                          AclOperation.WRITE, AclPermissionType.DENY)
        admin.create_acls([rule])[rule].result(30)


def rabbitmq(order):
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(order["url"]))
    channel = connection.channel()
    if order["do"] == "create":
        channel.exchange_declare(order["exchange"], "topic", durable=True)
        if order.get("queue"):
            channel.queue_declare(order["queue"], durable=True, arguments={"x-queue-type": "quorum"})
            channel.queue_bind(order["queue"], order["exchange"], "#")
    elif order["do"] == "delete":
        channel.queue_delete(order["queue"])
    connection.close()


async def nats(order):
    import nats as client
    from nats.js.api import StreamConfig

    nc = await client.connect(order["url"], connect_timeout=10)
    js = nc.jetstream(timeout=30)
    if order["do"] == "create":
        await js.add_stream(StreamConfig(name=order["stream"], subjects=order["subjects"]))
    elif order["do"] == "delete":
        await js.delete_stream(order["stream"])
    await nc.close()


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    {"kafka": kafka, "rabbitmq": rabbitmq, "nats": lambda order: asyncio.run(nats(order))}[wanted["broker"]](wanted)
