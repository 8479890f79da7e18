"""Signed requests at a steady rate, each on a connection of its own, until standard input closes. Writes one line of
JSON: the ids answered 200, and what became of the others.

    load.py PORT SECRET RATE
"""

import hashlib
import hmac
import http.client
import json
import secrets
import sys
import threading
import time

THREADS = 4
# PlexTrac's own limit.
LIMIT = 5


class Load:
    def __init__(self, port, secret, rate):
        self.port, self.secret, self.pause = port, secret, THREADS / rate
        self.ended = threading.Event()
        self.lock = threading.Lock()
        self.accepted, self.other, self.slowest = [], [], 0.0

    def send(self):
        name = secrets.token_hex(12)
        body = json.dumps({"event": "ReportPublished", "targetType": "report", "cuid": name}).encode()
        signature = hmac.new(self.secret, body, hashlib.sha256).hexdigest()
        began = time.monotonic()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
            connection.request("POST", "/webhooks/plextrac", body, {"X-Authorization-HMAC-256": signature})
            answer = connection.getresponse().status
            connection.close()
        except (OSError, http.client.HTTPException) as error:
            answer = type(error).__name__
        took = time.monotonic() - began
        with self.lock:
            self.slowest = max(self.slowest, took)
            if answer == 200:
                self.accepted.append(name)
            else:
                self.other.append(answer)

    def thread(self):
        due = time.monotonic()
        while not self.ended.is_set():
            self.send()
            due += self.pause
            self.ended.wait(max(0.0, due - time.monotonic()))


def main():
    port, secret, rate = int(sys.argv[1]), sys.argv[2].encode(), float(sys.argv[3])
    load = Load(port, secret, rate)
    threads = [threading.Thread(target=load.thread) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    load.ended.set()
    for thread in threads:
        thread.join()
    print(json.dumps({"accepted": load.accepted, "other": load.other, "slowest": round(load.slowest, 3)}))


if __name__ == "__main__":
    main()
