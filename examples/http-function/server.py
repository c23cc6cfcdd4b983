"""The receiver of an HTTP function. It checks the signature, answers, and answers a repetition as it did before."""

import base64
import hashlib
import hmac
import json
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

SECRET = b"not-so-secret"
answered = {}  # by request id; a real one would keep this with its data


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        signature = dict(part.split("=", 1) for part in self.headers["Milepost-Signature"].split(","))
        want = hmac.new(SECRET, signature["t"].encode() + b"." + body, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(signature["v1"], want) or abs(time.time() - int(signature["t"])) > 300:
            self.send_error(401, "signature does not match")
            return
        request = self.headers["Idempotency-Key"]
        if request not in answered:
            output = []
            for record in json.loads(body)["Records"]:
                order = json.loads(base64.b64decode(record["kinesis"]["data"]))
                truck = "lorry" if order["pallets"] > 8 else "van"
                output.append({"key": order["order"], "json": {"order": order["order"], "truck": truck}})
            answered[request] = json.dumps({"output": output}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answered[request])))
        self.end_headers()
        self.wfile.write(answered[request])

    def log_message(self, *args):
        pass


HTTPServer(("127.0.0.1", 8099), Handler).serve_forever()
