"""A client of HTTPS that is not ours: Python's own ssl and http.client.

    https.py ORDER

ORDER is JSON: host, port, path, body, headers; ca (a file); pair ([certificate, key], files, or nothing); protocols (of
ALPN, or nothing). Prints one line of JSON: status, body, version and alpn, or error.
"""

import http.client
import json
import ssl
import sys


def main(order):
    context = ssl.create_default_context(cafile=order["ca"])
    if order.get("pair"):
        context.load_cert_chain(*order["pair"])
    if order.get("protocols"):
        context.set_alpn_protocols(order["protocols"])
    connection = http.client.HTTPSConnection(order["host"], order["port"], timeout=20, context=context)
    try:
        connection.request("POST", order["path"], order["body"].encode(), order["headers"])
        alpn, version = connection.sock.selected_alpn_protocol(), connection.sock.version()
        answer = connection.getresponse()
        said = {"status": answer.status, "body": answer.read().decode(), "alpn": alpn, "version": version}
    except OSError as error:
        said = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(said))


main(json.loads(sys.argv[1]))
