"""Changes a broker as its administrator would: `admin.py ORDER`, the order as JSON; ends when the change is done."""

import asyncio
import base64
import json
import socket
import struct
import sys
import time
import uuid


def compact(text):
    return bytes([len(text) + 1]) + text.encode()


def register(host, port, cluster, broker):
    """Registers a broker that does not exist: replicas that are placed there are never in sync."""
    listener = compact("PLAINTEXT") + compact(host) + struct.pack(">Hh", 1, 0) + b"\0"
    names = ("metadata", "kraft", "group", "transaction", "eligible.leader.replicas", "share", "streams")
    features = [compact(f"{name}.version") + struct.pack(">hh", 7 if name == "metadata" else 0, 1000) + b"\0"
                for name in names]
    # BrokerRegistration, version 3: no rack, no migration, one directory, no epoch before.
    request = (struct.pack(">hhih", 62, 3, 1, 5) + b"admin\0" + struct.pack(">i", broker) + compact(cluster)
               + uuid.uuid4().bytes + b"\2" + listener + bytes([len(features) + 1]) + b"".join(features)
               + b"\0\0\2" + uuid.uuid4().bytes + struct.pack(">q", -1) + b"\0")
    with socket.create_connection((host, port), 30) as controller:
        controller.sendall(struct.pack(">i", len(request)) + request)
        answer = controller.makefile("rb").read(4 + 11)
    code = struct.unpack(">h", answer[-2:])[0]
    # 101: an earlier one is registered.
    if code not in (0, 101):
        sys.exit(f"kafka: the broker is not registered: {code}")


def kafka(order):
    from confluent_kafka.admin import (AclBinding, AclOperation, AclPermissionType, AdminClient, AlterConfigOpType,
                                       ConfigEntry, ConfigResource, NewTopic, ResourcePatternType, ResourceType)

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
    elif order["do"] == "create_short":
        # Two replicas must be in sync, and one of the two is at a broker that does not exist.
        host, port = order["plain"].rsplit(":", 1)
        register(host, int(port) + 3, admin.list_topics(timeout=30).cluster_id, 1000)
        places = [[1, 1000]] * order.get("partitions", 1)
        topic = NewTopic(order["topic"], num_partitions=len(places), replica_assignment=places,
                         config={"min.insync.replicas": "2"})
        admin.create_topics([topic])[order["topic"]].result(30)
        until(True)
    elif order["do"] == "configure":
        entries = [ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
                   for name, value in order["config"].items()]
        topic = ConfigResource(ConfigResource.Type.TOPIC, order["topic"], incremental_configs=entries)
        admin.incremental_alter_configs([topic])[topic].result(30)
    elif order["do"] == "partitions":
        print(json.dumps(len(admin.list_topics(timeout=30).topics[order["topic"]].partitions)))
    elif order["do"] in ("deny", "allow"):
        rule = AclBinding(ResourceType.TOPIC, order["topic"], ResourcePatternType.LITERAL, "User:" + order["user"], "*",
                          AclOperation[order.get("operation", "WRITE")], AclPermissionType[order["do"].upper()])
        admin.create_acls([rule])[rule].result(30)
    elif order["do"] == "password":
        from confluent_kafka.admin import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096)
        change = UserScramCredentialUpsertion(order["user"], info, order["password"].encode())
        admin.alter_user_scram_credentials([change])[order["user"]].result(30)
    elif order["do"] == "publish":
        from confluent_kafka import Producer

        producer = Producer({"bootstrap.servers": order["bootstrap"], "security.protocol": "SSL",
                             "ssl.ca.location": order["ca"], "partitioner": "murmur2_random"})
        headers = [(name, value.encode()) for name, value in order["headers"].items()]
        producer.produce(order["topic"], base64.b64decode(order["body"]), order["key"], headers=headers)
        if producer.flush(30):
            sys.exit("kafka: not published")


def rabbitmq(order):
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(order["url"]))
    channel = connection.channel()
    if order["do"] == "create":
        channel.exchange_declare(order["exchange"], order.get("type", "topic"), durable=True)
        if order.get("queue"):
            arguments = {"x-queue-type": "quorum", **order.get("arguments", {})}
            # Both at once, without waiting in between: no event finds the queue without its binding.
            requests = [pika.spec.Queue.Declare(queue=order["queue"], durable=True, nowait=True, arguments=arguments),
                        pika.spec.Queue.Bind(queue=order["queue"], exchange=order["exchange"], 
                                        routing_key=order.get("binding", "#"), nowait=True)]
            for request in requests:
                channel._impl._send_method(request)
            channel.queue_declare(order["queue"], passive=True)
    elif order["do"] == "delete":
        if order.get("queue"):
            channel.queue_delete(order["queue"])
        else:
            channel.exchange_delete(order["exchange"])
    elif order["do"] == "publish":
        headers = order["headers"]
        properties = pika.BasicProperties(headers.get("content-type"), headers=headers, delivery_mode=2,
                                          message_id=headers["cloudEvents_id"])
        channel.confirm_delivery()
        channel.basic_publish(order["exchange"], order["key"], base64.b64decode(order["body"]), properties, True)
    connection.close()


async def nats(order):
    import nats as client
    from nats.js.api import StreamConfig

    nc = await client.connect(order["url"], connect_timeout=10)
    js = nc.jetstream(timeout=30)
    if order["do"] == "create":
        await js.add_stream(StreamConfig(name=order["stream"], subjects=order["subjects"], **order.get("config", {})))
    elif order["do"] == "update":
        await js.update_stream(StreamConfig(name=order["stream"], subjects=order["subjects"], **order["config"]))
    elif order["do"] == "delete":
        await js.delete_stream(order["stream"])
    elif order["do"] == "publish":
        await js.publish(order["subject"], base64.b64decode(order["body"]), stream=order["stream"],
                         headers=order["headers"])
    await nc.close()


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    {"kafka": kafka, "rabbitmq": rabbitmq, "nats": lambda order: asyncio.run(nats(order))}[wanted["broker"]](wanted)
