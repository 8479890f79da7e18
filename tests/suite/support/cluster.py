"""An operator of a cluster, and a plain client of it, neither of them the bridge: `cluster.py FACTS`, as JSON.

Reads one order a line from its input and prints one answer a line, JSON both; ends with its input. An order says what to
`do`, the `name` of topic, queue or stream, and which nodes (1, 2, 3) are `alive`. Nothing in here waits longer than two
minutes. What the plain client publishes has an id that begins with `probe`.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request

LIMIT = 120  # seconds


def probe_id():
    return f"probe-{time.monotonic_ns()}"


def until(what, look, pause=0.1):
    """Looks until there is something to see."""
    deadline = time.monotonic() + LIMIT
    why = None
    while time.monotonic() < deadline:
        try:
            if found := look():
                return found
        except Exception as error:  # whatever a cluster in the middle of something says
            why = error
        time.sleep(pause)
    raise TimeoutError(f"not within {LIMIT} s: {what}: {why}")


class Kafka:
    def __init__(self, facts):
        from confluent_kafka.admin import AdminClient

        self.client = {"bootstrap.servers": facts["bootstrap"], "socket.timeout.ms": 5000, "log_level": 0,
                       "reconnect.backoff.max.ms": 500}
        self.addresses = [address.split(":") for address in facts["bootstrap"].split(",")]
        self.admin = AdminClient(self.client)

    def parts(self, name):
        topic = self.admin.list_topics(timeout=5).topics.get(name)
        return topic.partitions if topic else {}

    def leader(self, order):
        """Of the first partition."""
        return until("a leader", lambda: (part := self.parts(order["name"]).get(0)) and part.leader > 0 and part.leader)

    def whole(self, order):
        def look():
            seen = self.admin.list_topics(timeout=5)
            parts = [part for name, topic in seen.topics.items() if name.startswith(order["name"])
                     for part in topic.partitions.values()]
            return len(seen.brokers) == 3 and all(len(part.isrs) == len(part.replicas) and part.leader > 0 for part in parts)
        until("three nodes, all replicas in sync", look)

    def move(self, order):
        """Another order of the same replicas, then an election of the preferred ones: each partition has another leader."""
        from confluent_kafka import ElectionType, TopicPartition

        now = self.parts(order["name"])
        # The client library has no call for AlterPartitionReassignments: version 0, compact arrays and strings.
        body = struct.pack(">i", 5000) + uvarint(2) + compact(order["name"]) + uvarint(len(now) + 1)
        for number, part in now.items():
            turned = part.replicas[1:] + part.replicas[:1]
            body += struct.pack(">i", number) + uvarint(len(turned) + 1)
            body += b"".join(struct.pack(">i", replica) for replica in turned) + b"\0"
        request = struct.pack(">hhih", 45, 0, 1, 1) + b"x\0" + body + b"\0\0"
        host, port = self.addresses[order["alive"][0] - 1]
        with socket.create_connection((host, int(port)), 5) as connection:
            connection.settimeout(5)
            connection.sendall(struct.pack(">i", len(request)) + request)
            connection.recv(4096)
        parts = [TopicPartition(order["name"], number) for number in now]
        # Refused where the new order is not known yet; those that have their leader are no failure.
        self.admin.elect_leaders(ElectionType.PREFERRED, parts).result(5)
        until("other leaders", lambda: any(part.leader not in (0, now[number].leader)
                                           for number, part in self.parts(order["name"]).items()))

    def probe(self, order):
        """Confirmed in every partition."""
        from confluent_kafka import Producer

        topic = order["name"] + ("-other" if order.get("other") else "")
        producer = Producer({**self.client, "acks": "all", "message.timeout.ms": 60000, "retry.backoff.ms": 100,
                             "topic.metadata.refresh.fast.interval.ms": 100, "socket.timeout.ms": 3000})
        confirmed = set()

        def done(error, message):
            if error is None:
                confirmed.add(message.partition())
        wanted = until("the partitions", lambda: set(self.parts(topic)))
        deadline = time.monotonic() + LIMIT
        while confirmed < wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(f"confirmed in {confirmed} of {wanted}")
            for part in wanted - confirmed:
                producer.produce(topic, b"{}", partition=part, headers={"ce_id": probe_id()}, on_delivery=done)
            end = time.monotonic() + 0.5
            while time.monotonic() < end and confirmed < wanted:
                producer.poll(0.02)
        producer.purge()
        producer.flush(1)

    def prepare(self, order):
        """A topic that the death of node 2 leaves with too few replicas."""
        from confluent_kafka.admin import NewTopic

        name = order["name"] + "-other"
        self.admin.create_topics([NewTopic(name, num_partitions=1, replica_assignment=[[1, 2]])])[name].result(10)
        until("the topic", lambda: self.parts(name))

    def delete(self, order):
        self.admin.delete_topics([order["name"]])[order["name"]].result(10)
        until("no topic", lambda: not self.parts(order["name"]))

    def create(self, order):
        """On the nodes in another order."""
        from confluent_kafka.admin import NewTopic

        places = [[3, 1, 2], [1, 2, 3], [2, 3, 1]]
        with contextlib.suppress(Exception):  # the bridge may have been quicker
            topic = NewTopic(order["name"], num_partitions=3, replica_assignment=places)
            self.admin.create_topics([topic])[order["name"]].result(10)
        until("the topic", lambda: self.parts(order["name"]))

    def credentials(self, order):
        """A user and its password, which replaces another one. Old connections end when they log in again."""
        from confluent_kafka.admin import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096)
        change = UserScramCredentialUpsertion(order["user"], info, order["password"].encode())
        self.admin.alter_user_scram_credentials([change])[order["user"]].result(10)

    def expel(self, order):
        """Until every connection has logged in again."""
        time.sleep(6)

    def partitions(self, order):
        from confluent_kafka.admin import NewPartitions

        self.admin.create_partitions([NewPartitions(order["name"], 6)])[order["name"]].result(10)
        until("six partitions", lambda: len(self.parts(order["name"])) == 6)


def uvarint(number):
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def compact(text):
    return uvarint(len(text) + 1) + text.encode()


class Rabbitmq:
    def __init__(self, facts):
        self.urls = facts["urls"]
        self.distribution = facts["distribution"]

    def call(self, node, what):
        """One expression in one node, by Erlang's own tool; an error where it does not answer."""
        command = ["erl_call", "-address", self.distribution[node - 1], "-c", "clustercookie", "-timeout", "5", "-r", "-e"]
        done = subprocess.run(command, input=what + ".\n", capture_output=True, text=True, timeout=7)
        if done.returncode or not done.stdout.startswith("{ok,"):
            raise OSError(f"{what}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout.strip()

    def any(self, order, what):
        """In the first node that answers."""
        for node in order["alive"]:
            try:
                return self.call(node, what)
            except (OSError, subprocess.TimeoutExpired) as error:
                last = error
        raise last

    @staticmethod
    def queue(order):
        return f"'%2F_{order['name']}'"

    def leader(self, order):
        def look():
            for node in order["alive"]:
                # Each node has its own opinion, and one that just died may still be somebody's.
                found = re.search(r"bridge(\d)@", self.call(node, f"ra_leaderboard:lookup_leader({self.queue(order)})"))
                if found and int(found[1]) in order["alive"]:
                    return int(found[1])
        return until("a leader", look)

    def whole(self, order):
        def look():
            if any(len(set(re.findall(r"bridge\d@", self.call(node, "rabbit_nodes:all_running()")))) < 3
                   for node in (1, 2, 3)):
                return False
            if not order.get("member"):
                return True
            replicas = self.any(order, "[{lists:keyfind(<<\"Raft State\">>, 1, R), lists:keyfind(<<\"Commit Index\">>, 1, R)} "
                                       f"|| R <- rabbit_quorum_queue:status(<<\"/\">>, <<\"{order['name']}\">>)]")
            states = re.findall(r">, (leader|follower)}", replicas)
            commits = [int(index) for index in re.findall(r">, (\d+)}", replicas)]
            return len(states) == len(commits) == 3 and max(commits) - min(commits) < 1000
        until("three nodes run, all replicas follow", look)

    def move(self, order):
        now = self.leader(order)
        to = order.get("to") or next(node for node in order["alive"] if node != now)
        if to == now:
            return

        def look():
            if self.leader(order) != to:
                self.call(now, f"ra:transfer_leadership({{{self.queue(order)},'bridge{now}@127.0.0.1'}},"
                               f"{{{self.queue(order)},'bridge{to}@127.0.0.1'}})")
            return self.leader(order) == to
        until("another leader", look, 0.3)

    def probe(self, order):
        """On a channel of its own each time, over each node that runs."""
        confirmed = threading.Event()
        deadline = time.monotonic() + LIMIT
        turn = 0
        while not confirmed.is_set():
            if time.monotonic() > deadline:
                raise TimeoutError("not confirmed")
            node = order["alive"][turn % len(order["alive"])]
            turn += 1
            threading.Thread(target=self.publish, args=(order, node, confirmed), daemon=True).start()
            confirmed.wait(0.25)

    def publish(self, order, node, confirmed):
        import pika

        exchange = order["name"] + ("-other" if order.get("other") else "")
        url = pika.URLParameters(self.urls[node - 1])
        url.socket_timeout = url.stack_timeout = url.blocked_connection_timeout = 3
        with contextlib.suppress(Exception):  # the next attempt is under way already
            connection = pika.BlockingConnection(url)
            channel = connection.channel()
            channel.confirm_delivery()
            properties = pika.BasicProperties(message_id=probe_id(), delivery_mode=2)
            channel.basic_publish(exchange, "probe", b"{}", properties, mandatory=True)
            confirmed.set()
            connection.close()

    def prepare(self, order):
        """What the bridge does not declare: the queue of another exchange."""
        import pika

        connection = pika.BlockingConnection(pika.URLParameters(self.urls[0]))
        channel, name = connection.channel(), order["name"] + "-other"
        channel.exchange_declare(name, "topic", durable=True)
        channel.queue_declare(name, durable=True, arguments={"x-queue-type": "quorum"})
        channel.queue_bind(name, name, "#")
        channel.confirm_delivery()
        # A full queue is not empty.
        for _ in range(3):
            channel.basic_publish(name, "probe", b"{}", pika.BasicProperties(message_id=probe_id(), delivery_mode=2))
        connection.close()

    def limit(self, order, length):
        name = order["name"]
        self.any(order, f"rabbit_policy:set(<<\"/\">>, <<\"{name}\">>, <<\"^{name}-other$\">>, "
                        f"[{{<<\"max-length\">>, {length}}}, {{<<\"overflow\">>, <<\"reject-publish\">>}}], "
                        "0, <<\"queues\">>, <<\"test\">>)")

    def refuse(self, order):
        """A limit that the queue has passed."""
        self.limit(order, 1)

    def accept(self, order):
        """A limit far away."""
        self.limit(order, 1_000_000)

    def unlimit(self, order):
        """No limit. The queue does not tell those that it told of the limit: their channels stay as they are."""
        self.any(order, f"rabbit_policy:delete(<<\"/\">>, <<\"{order['name']}\">>, <<\"test\">>)")

    def delete(self, order):
        import pika

        connection = pika.BlockingConnection(pika.URLParameters(self.urls[order["alive"][0] - 1]))
        connection.channel().queue_delete(order["name"])
        connection.close()

    def create(self, order):
        """Declared over another node, where its leader is then."""
        import pika

        connection = pika.BlockingConnection(pika.URLParameters(self.urls[order["alive"][-1] - 1]))
        channel = connection.channel()
        channel.queue_declare(order["name"], durable=True, arguments={"x-queue-type": "quorum"})
        channel.queue_bind(order["name"], order["name"], "#")
        connection.close()


    def credentials(self, order):
        user, password = order["user"], order["password"]
        with contextlib.suppress(OSError):  # it is there already
            self.any(order, f"rabbit_auth_backend_internal:add_user(<<\"{user}\">>, <<\"{password}\">>, <<\"test\">>)")
        self.any(order, f"rabbit_auth_backend_internal:change_password(<<\"{user}\">>, <<\"{password}\">>, <<\"test\">>)")
        self.any(order, f"rabbit_auth_backend_internal:set_permissions(<<\"{user}\">>, <<\"/\">>, <<\".*\">>, <<\".*\">>, "
                        "<<\".*\">>, <<\"test\">>)")

    def expel(self, order):
        """Those who logged in with the old password."""
        for node in order["alive"]:
            self.call(node, f"rabbit_networking:close_all_user_connections(<<\"{order['user']}\">>, <<\"test\">>)")


class Nats:
    def __init__(self, facts):
        self.directories = facts["directories"]
        self.urls = facts["urls"]
        self.monitoring = facts["monitoring"]

    def look(self, node, path):
        with urllib.request.urlopen(f"http://{self.monitoring[node - 1]}{path}", timeout=3) as answer:
            return json.load(answer)

    def stream(self, order):
        """As its leader sees it; empty while nobody says that it is the leader."""
        for node in order["alive"]:
            with contextlib.suppress(OSError, ValueError):
                seen = self.look(node, "/jsz?accounts=1&streams=1&config=1")
                for account in seen.get("account_details") or []:
                    for stream in account.get("stream_detail") or []:
                        if stream["name"] == order["name"] and stream["cluster"].get("leader") == f"node{node}":
                            return stream
        return {}

    def leader(self, order):
        return until("a leader", lambda: (stream := self.stream(order)) and int(stream["cluster"]["leader"][4:]))

    def connected(self, order):
        """The node that the bridge is connected to."""
        for node in order["alive"]:
            seen = self.look(node, "/connz")
            if any(connection.get("lang") == "rust" for connection in seen.get("connections") or []):
                return node
        return None

    def whole(self, order):
        def look():
            for node in (1, 2, 3):
                meta = self.look(node, "/jsz").get("meta_cluster") or {}
                if not meta.get("leader") or self.look(node, "/healthz").get("status") != "ok":
                    return False
            if not order.get("member"):
                return True
            replicas = self.stream(order).get("cluster", {}).get("replicas") or []
            return len(replicas) == 2 and all(peer.get("current") and not peer.get("offline") for peer in replicas)
        until("three servers, all replicas current", look)

    def client(self, order, call):
        import nats

        async def go():
            connection = await nats.connect([self.urls[node - 1] for node in order["alive"]], connect_timeout=3,
                                            allow_reconnect=False)
            try:
                return await call(connection, connection.jetstream(timeout=5))
            finally:
                await connection.close()
        return asyncio.run(go())

    def move(self, order):
        now = self.leader(order)
        to = order.get("to")
        if to == now:
            return
        wish = json.dumps({"placement": {"preferred": f"node{to}"}}).encode() if to else b""

        async def step_down(connection, _):
            await connection.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{order['name']}", wish, timeout=5)

        def look():
            if self.leader(order) in (now, *([node for node in (1, 2, 3) if node != to] if to else [])):
                self.client(order, step_down)
            return self.leader(order) == to if to else self.leader(order) != now
        until("another leader", look, 0.3)

    def probe(self, order):
        subject = f"{order['name']}." + ("Trapped.report" if order.get("other") else "probe")

        async def publish(_, stream):
            await stream.publish(subject, b"{}", timeout=1, headers={"Nats-Msg-Id": probe_id()})
        until("confirmed", lambda: self.client(order, publish) or True)

    def credentials(self, order):
        """A user and its password, which replaces another one: the servers expel those who have that one."""
        for directory in self.directories:
            with open(directory + "/users.conf", "w") as users:
                users.write("USERS: [ { user: anonymous, password: anonymous }, "
                            f"{{ user: {order['user']}, password: {order['password']} }} ]\n")
            with open(directory + "/pid") as pid:
                os.kill(int(pid.read().split()[0]), signal.SIGHUP)

        async def log_in():
            for url in self.urls:
                connection = await nats.connect(url, user=order["user"], password=order["password"], connect_timeout=3,
                                                allow_reconnect=False, max_reconnect_attempts=1)
                await connection.close()
        import nats
        until("the new password is known", lambda: asyncio.run(log_in()) or True)

    def expel(self, order):
        """Done by the servers themselves."""

    def refuse(self, order):
        """A limit per subject that this one alone has reached."""
        count = 10_000
        self.change(order, max_msgs_per_subject=count, discard="new", discard_new_per_subject=True)

        async def fill(connection, stream):
            subject = f"{order['name']}.Trapped.report"
            for _ in range(count):
                await connection.publish(subject, b"{}", headers={"Nats-Msg-Id": probe_id()})
            await connection.flush(30)
            while True:
                seen = await stream.stream_info(order["name"], subjects_filter=subject)
                if (seen.state.subjects or {}).get(subject, 0) >= count:
                    return
                await asyncio.sleep(0.1)
        self.client(order, fill)

    def accept(self, order):
        self.change(order, max_msgs_per_subject=-1, discard="old", discard_new_per_subject=False)

    def change(self, order, **what):
        async def update(connection, _):
            seen = json.loads((await connection.request(f"$JS.API.STREAM.INFO.{order['name']}", b"", timeout=5)).data)
            config = json.dumps({**seen["config"], **what}).encode()
            answer = await connection.request(f"$JS.API.STREAM.UPDATE.{order['name']}", config, timeout=5)
            if error := json.loads(answer.data).get("error"):
                raise ValueError(error)
        self.client(order, update)

    def delete(self, order):
        async def delete(_, stream):
            await stream.delete_stream(order["name"])
        self.client(order, delete)

    def create(self, order):
        async def create(_, stream):
            from nats.js.api import Placement, StreamConfig

            with contextlib.suppress(Exception):  # the bridge may have been quicker
                config = StreamConfig(name=order["name"], subjects=[order["name"] + ".>"], num_replicas=3)
                await stream.add_stream(config)
        self.client(order, create)


if __name__ == "__main__":
    facts = json.loads(sys.argv[1])
    broker = {"kafka": Kafka, "rabbitmq": Rabbitmq, "nats": Nats}[facts["broker"]](facts)
    for line in sys.stdin:
        wanted = json.loads(line)
        try:
            answer = {"answer": getattr(broker, wanted["do"])(wanted)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
