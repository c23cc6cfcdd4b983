"""An AWS service model, as botocore brings it, as a judge of raw answers.

A Service sends requests over plain HTTP, laid out as the model says, and holds what comes back strictly to the model: the status, the
headers, the type of every member, no member that the model does not have, no null, lengths, ranges, patterns and enums, timestamps as
numbers, and for errors a code that the model has for the operation, with its status and its members. What AWS always gives and the
model does not mark as required is the caller's to say.
"""

import base64
import http.client
import json
import re
import urllib.parse
import uuid

import botocore.loaders

# What every AWS service answers before the operation itself is asked, and no service model lists.
COMMON = {
    "ValidationException": 400,
    "SerializationException": 400,
    "UnknownOperationException": 404,
}


class Wrong(AssertionError):
    pass


def unique(pairs):
    out = dict(pairs)
    if len(out) != len(pairs):
        raise Wrong(f"a key comes twice: {[k for k, _ in pairs]}")
    return out


class Answer:
    def __init__(self, status, headers, body, document, error=None, message=None):
        self.status, self.headers, self.body, self.document, self.error, self.message = status, headers, body, document, error, message

    def __getitem__(self, member):
        return self.document[member]


class Service:
    def __init__(self, name, version, endpoint, unbounded=()):
        """unbounded names shapes whose lengths AWS' own answers do not keep to."""
        self.unbounded = set(unbounded)
        self.model = botocore.loaders.Loader().load_service_model(name, "service-2", version)
        self.shapes, self.operations = self.model["shapes"], self.model["operations"]
        self.rest = self.model["metadata"]["protocol"] == "rest-json"
        self.host = urllib.parse.urlsplit(endpoint).netloc
        self.seen = {}  # operation: the outcomes that were checked

    # Values against shapes.

    def check(self, shape, value, at):
        s = self.shapes[shape]
        if shape in self.unbounded:
            s = {k: v for k, v in s.items() if k not in ("min", "max")}
        getattr(self, "check_" + s["type"])(s, value, at)

    def fail(self, at, what, value):
        raise Wrong(f"{at}: {what}: {json.dumps(value)[:300]}")

    def check_structure(self, s, value, at):
        if not isinstance(value, dict):
            self.fail(at, "not an object", value)
        members = {m.get("locationName", k): m for k, m in s["members"].items() if "location" not in m}
        for k, v in value.items():
            if k not in members:
                self.fail(f"{at}.{k}", "the model has no such member", v)
            if v is None:
                self.fail(f"{at}.{k}", "null", v)
            self.check(members[k]["shape"], v, f"{at}.{k}")
        for k in s.get("required", []):
            m = s["members"][k]
            if "location" not in m and m.get("locationName", k) not in value:
                self.fail(f"{at}.{k}", "missing, and the model requires it", value)

    def check_list(self, s, value, at):
        if not isinstance(value, list):
            self.fail(at, "not a list", value)
        self.size(s, len(value), at, value)
        for i, v in enumerate(value):
            self.check(s["member"]["shape"], v, f"{at}[{i}]")

    def check_map(self, s, value, at):
        if not isinstance(value, dict):
            self.fail(at, "not a map", value)
        self.size(s, len(value), at, value)
        for k, v in value.items():
            self.check(s["key"]["shape"], k, f"{at} key {k!r}")
            self.check(s["value"]["shape"], v, f"{at}.{k}")

    def check_string(self, s, value, at):
        if not isinstance(value, str):
            self.fail(at, "not a string", value)
        self.size(s, len(value), at, value)
        if "enum" in s and value not in s["enum"]:
            self.fail(at, f"not one of {s['enum']}", value)
        if "pattern" in s and not self.matches(s["pattern"], value):
            self.fail(at, f"does not match {s['pattern']}", value)

    def matches(self, pattern, value):
        if r"\p{" in pattern:  # Java's classes
            pattern = pattern.replace(r"\p{L}", r"\w").replace(r"\p{Z}", r"\s").replace(r"\p{N}", r"\d")
        return re.fullmatch(pattern, value)

    def check_integer(self, s, value, at):
        if not isinstance(value, int) or isinstance(value, bool):
            self.fail(at, "not an integer", value)
        self.size(s, value, at, value)

    check_long = check_integer

    def check_boolean(self, s, value, at):
        if not isinstance(value, bool):
            self.fail(at, "not a boolean", value)

    def check_timestamp(self, s, value, at):
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            self.fail(at, "not a number of seconds", value)
        if not 946684800 < value < 4102444800:
            self.fail(at, "not in this century: milliseconds?", value)

    def check_blob(self, s, value, at):
        if not isinstance(value, str):
            self.fail(at, "not base64", value)
        self.size(s, len(base64.b64decode(value, validate=True)), at, value)

    def size(self, s, n, at, value):
        if n < s.get("min", n) or n > s.get("max", n):
            self.fail(at, f"out of {s.get('min')}..{s.get('max')}", value)

    # Requests.

    def send(self, method, path, headers, body):
        c = http.client.HTTPConnection(self.host, timeout=60)
        try:
            c.request(method, path, body, headers)
            r = c.getresponse()
            return r.status, r.headers, r.read()
        finally:
            c.close()

    def layout(self, op, params):
        """The request for params: what is not given is left out, whether the model requires it or not."""
        if not self.rest:
            target = self.model["metadata"]["targetPrefix"] + "." + op["name"]
            return "POST", "/", {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": target}, json.dumps(params).encode()
        shape = self.shapes[op["input"]["shape"]] if "input" in op else {"members": {}}
        path, query, headers, document = op["http"]["requestUri"], [], {}, {}
        raw = None
        for k, v in params.items():
            m = shape["members"].get(k, {})
            where, name = m.get("location"), m.get("locationName", k)
            if where == "uri":
                path = path.replace("{" + name + "}", urllib.parse.quote(str(v), safe=""))
            elif where == "querystring":
                query += [(name, x) for x in (v if isinstance(v, list) else [v])]
            elif where == "header":
                headers[name] = str(v)
            elif shape.get("payload") == k:
                raw = v
            else:
                document[name] = v
        if raw is None and op["http"]["method"] in ("POST", "PUT", "PATCH"):
            raw = json.dumps(document).encode()
        if raw is not None:
            headers["Content-Type"] = "application/json"
        return op["http"]["method"], path + ("?" + urllib.parse.urlencode(query) if query else ""), headers, raw

    def call(self, operation, _error=None, _raw=None, **params):
        """Sends a request and checks the answer: that of the operation, or the error of the name _error."""
        op = self.operations[operation]
        method, path, headers, body = self.layout(op, params)
        if _raw is not None:
            body = _raw
        status, got, answer = self.send(method, path, headers, body)
        at = f"{operation} {json.dumps(params, default=str)[:200]}"
        self.seen.setdefault(operation, set()).add(_error or "ok")
        uuid.UUID(got["x-amzn-RequestId"])
        if _error:
            return self.error(at, op, _error, status, got, answer)
        if "x-amzn-ErrorType" in got:
            raise Wrong(f"{at}: answered {status} {got['x-amzn-ErrorType']}: {answer[:300]!r}")
        return self.output(at, op, status, got, answer)

    def output(self, at, op, status, headers, body):
        shape = self.shapes[op["output"]["shape"]] if "output" in op else {"members": {}}
        by_status = any(m.get("location") == "statusCode" for m in shape["members"].values())
        if not by_status and status != op["http"].get("responseCode", 200):
            raise Wrong(f"{at}: status {status}, the model has {op['http'].get('responseCode', 200)}")
        for m in shape["members"].values():
            if m.get("location") == "header" and m["locationName"] in headers:
                value = headers[m["locationName"]]
                self.check(m["shape"], int(value) if self.shapes[m["shape"]]["type"] == "integer" else value, f"{at}: header {m['locationName']}")
        if "payload" in shape:
            return Answer(status, headers, body, None)
        document = None
        if all("location" in m for m in shape["members"].values()):
            if body not in (b"", b"{}"):
                raise Wrong(f"{at}: a body where the model has none: {body[:100]!r}")
        else:
            self.content(at, headers)
            document = json.loads(body, object_pairs_hook=unique)
            self.check(op["output"]["shape"], document, at)
        return Answer(status, headers, body, document)

    def content(self, at, headers):
        want = "application/json" if self.rest else "application/x-amz-json-1.1"
        if headers["Content-Type"] != want:
            raise Wrong(f"{at}: Content-Type {headers['Content-Type']}, not {want}")

    def error(self, at, op, want, status, headers, body):
        self.content(at, headers)
        document = json.loads(body, object_pairs_hook=unique)
        if self.rest:
            code = headers.get("x-amzn-ErrorType", "")
        else:
            code = document.pop("__type", "")
        if code != want:
            raise Wrong(f"{at}: answered {status} {code!r}, not {want}: {body[:300]!r}")
        if want in COMMON:
            if status != COMMON[want] and self.rest or status != 400 and not self.rest:
                raise Wrong(f"{at}: {want} with status {status}")
            message = document.pop("message", None) or document.pop("Message", None)
            if document or not message and want != "SerializationException":
                raise Wrong(f"{at}: {want} is not a message alone: {body[:300]!r}")
            return Answer(status, headers, body, None, code, message)
        if want not in {e["shape"] for e in op.get("errors", [])}:
            raise Wrong(f"{at}: the model does not let the operation answer {want}")
        s = self.shapes[want]
        if status != s.get("error", {}).get("httpStatusCode", 400):
            raise Wrong(f"{at}: {want} with status {status}, the model has {s['error']['httpStatusCode']}")
        self.check(want, document, f"{at}: {want}")
        message = document.get("message") or document.get("Message")
        if not message:
            raise Wrong(f"{at}: {want} without a message: {body[:300]!r}")
        if "Type" in s["members"] and document.get("Type") != ("User" if status < 500 else "Service"):
            raise Wrong(f"{at}: Type is {document.get('Type')!r}")
        for m in s["members"].values():
            if m.get("location") == "header" and m["locationName"] not in headers:
                raise Wrong(f"{at}: {want} without the header {m['locationName']}")
        return Answer(status, headers, body, document, code, message)

    def others(self):
        """The operations that were not called."""
        return sorted(set(self.operations) - set(self.seen))
