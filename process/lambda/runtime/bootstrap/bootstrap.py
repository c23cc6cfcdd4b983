"""Runs a plain Python handler over the Lambda Runtime API. Milepost writes this file beside each function and starts it.

One socket is kept open; the server is Milepost's own, so every answer has a Content-Length.
"""
import importlib
import json
import logging
import os
import socket
import sys
import time
import traceback
from decimal import Decimal

ROOT = "/2018-06-01/runtime/"
HOST = os.environ["AWS_LAMBDA_RUNTIME_API"]


class API:
    def __init__(self):
        self.sock = None
        self.buf = b""

    def connect(self):
        host, _, port = HOST.rpartition(":")
        self.sock = socket.create_connection((host, int(port)))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buf = b""

    def call(self, method, path, body=b"", headers=""):
        head = f"{method} {ROOT}{path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode()
        if self.sock is None:
            self.connect()
        if len(body) < 65536:
            self.sock.sendall(head + body)
        else:
            self.sock.sendall(head)
            self.sock.sendall(body)
        while True:
            end = self.buf.find(b"\r\n\r\n")
            if end >= 0:
                break
            self.more()
        lines = self.buf[:end].decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ", 2)[1])
        got = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            got[name.lower()] = value.strip()
        size = int(got.get("content-length", 0))
        rest = self.buf[end + 4:]
        if len(rest) >= size:
            self.buf = rest[size:]
            return status, got, rest[:size]
        data = bytearray(size)
        data[:len(rest)] = rest
        view, at = memoryview(data)[len(rest):], 0
        while at < len(view):
            n = self.sock.recv_into(view[at:])
            if n == 0:
                raise EOFError("the Runtime API has closed the connection")
            at += n
        self.buf = b""
        return status, got, data

    def more(self):
        part = self.sock.recv(65536)
        if not part:
            raise EOFError("the Runtime API has closed the connection")
        self.buf += part


class Fields:
    """An object made of a dictionary, as client contexts are."""

    def __init__(self, values, names):
        for key, name in names.items():
            setattr(self, name, values.get(key))


class ClientContext:
    def __init__(self, values):
        self.custom = values.get("custom")
        self.env = values.get("env")
        self.client = None
        if values.get("client"):
            names = ["installation_id", "app_title", "app_version_name", "app_version_code", "app_package_name"]
            self.client = Fields(values["client"], {n: n for n in names})


class Context:
    def __init__(self, headers):
        env = os.environ
        self.aws_request_id = headers["lambda-runtime-aws-request-id"]
        self.invoked_function_arn = headers.get("lambda-runtime-invoked-function-arn")
        self.function_name = env["AWS_LAMBDA_FUNCTION_NAME"]
        self.function_version = env["AWS_LAMBDA_FUNCTION_VERSION"]
        self.memory_limit_in_mb = env["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"]
        self.log_group_name = env["AWS_LAMBDA_LOG_GROUP_NAME"]
        self.log_stream_name = env["AWS_LAMBDA_LOG_STREAM_NAME"]
        self.tenant_id = headers.get("lambda-runtime-aws-tenant-id")
        self._deadline = int(headers.get("lambda-runtime-deadline-ms", 0))
        identity = json.loads(headers.get("lambda-runtime-cognito-identity") or "{}")
        self.identity = Fields(identity, {"cognitoIdentityId": "cognito_identity_id", "cognitoIdentityPoolId": "cognito_identity_pool_id"})
        client = headers.get("lambda-runtime-client-context")
        self.client_context = None
        if client:
            try:
                values = json.loads(client)
            except ValueError:  # as the Invoke API takes it
                import base64
                values = json.loads(base64.b64decode(client))
            self.client_context = ClientContext(values)

    def get_remaining_time_in_millis(self):
        return max(0, self._deadline - int(time.time() * 1000))

    def log(self, message):
        print(message)


class LogHandler(logging.Handler):
    request_id = ""

    def emit(self, record):
        record.aws_request_id = LogHandler.request_id
        sys.stdout.write(self.format(record))


class LogFormatter(logging.Formatter):
    converter = time.gmtime


def set_up_logging():
    handler = LogHandler()
    handler.setFormatter(LogFormatter("[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(aws_request_id)s\t%(message)s\n", "%Y-%m-%dT%H:%M:%S"))
    logging.getLogger().addHandler(handler)
    level = os.environ.get("AWS_LAMBDA_LOG_LEVEL", "").upper()
    if level in ("DEBUG", "INFO", "WARN", "ERROR", "FATAL"):
        logging.getLogger().setLevel(level)


def document(kind, message, trace=(), request_id=""):
    return {"errorMessage": message, "errorType": kind, "requestId": request_id, "stackTrace": list(trace)}


def frames(err):
    """The user's part of a stack: what lies above is this file's and the import machinery's."""
    ours = os.path.abspath(__file__)
    rows = [r for r in traceback.extract_tb(err.__traceback__) if os.path.abspath(r.filename) != ours and "importlib" not in r.filename]
    return traceback.format_list(rows)


def report(doc):
    rows = "\n".join(r.rstrip("\n") for r in doc["stackTrace"])
    print(f"[ERROR] {doc['errorType']}: {doc['errorMessage']}" + ("\nTraceback (most recent call last):\n" + rows if rows else ""))


def load():
    """Returns (handler, None) or (None, error document)."""
    name = os.environ["_HANDLER"]
    try:
        module, function = name.rsplit(".", 1)
    except ValueError as e:
        return None, document("Runtime.MalformedHandlerName", f"Bad handler '{name}': {e}")
    try:
        loaded = importlib.import_module(module.replace("/", "."))
    except ImportError as e:
        return None, document("Runtime.ImportModuleError", f"Unable to import module '{module}': {e}", frames(e))
    except SyntaxError as e:
        where = f'  File "{e.filename}" Line {e.lineno}\n    {(e.text or "").strip()}\n'
        return None, document("Runtime.UserCodeSyntaxError", f"Syntax error in module '{module}': {e}", [where])
    except Exception as e:
        return None, document(type(e).__name__, str(e), frames(e))
    try:
        return getattr(loaded, function), None
    except AttributeError:
        return None, document("Runtime.HandlerNotFound", f"Handler '{function}' missing on module '{module}'")


def encode_more(value):
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def run(handler, headers, body):
    """Returns (answer, None) or (None, error document)."""
    context = Context(headers)
    try:
        event = json.loads(body)
    except ValueError as e:
        return None, document("Runtime.UnmarshalError", f"Unable to unmarshal input: {e}", (), context.aws_request_id)
    try:
        result = handler(event, context)
    except Exception as e:
        return None, document(type(e).__name__, str(e), frames(e), context.aws_request_id)
    try:
        return json.dumps(result, ensure_ascii=False, default=encode_more).encode(), None
    except Exception as e:
        return None, document("Runtime.MarshalError", f"Unable to marshal response: {e}", (), context.aws_request_id)


def main():
    root = os.environ["LAMBDA_TASK_ROOT"]
    runtime_dir = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [root] + [p for p in sys.path if p not in (root, runtime_dir)]
    set_up_logging()
    api = API()
    handler, doc = load()
    if doc:
        report(doc)
        sys.stdout.flush()
        api.call("POST", "init/error", json.dumps(doc).encode(), f"Lambda-Runtime-Function-Error-Type: {doc['errorType']}\r\n")
        sys.exit(1)
    while True:
        status, headers, body = api.call("GET", "invocation/next")
        if status != 200:
            sys.exit(f"GET invocation/next: {status}")
        request_id = headers["lambda-runtime-aws-request-id"]
        LogHandler.request_id = request_id
        trace = headers.get("lambda-runtime-trace-id")
        if trace:
            os.environ["_X_AMZN_TRACE_ID"] = trace
        else:
            os.environ.pop("_X_AMZN_TRACE_ID", None)
        answer, doc = run(handler, headers, body)
        if doc:
            report(doc)
        sys.stdout.flush()
        sys.stderr.flush()
        if doc:
            status, _, _ = api.call("POST", f"invocation/{request_id}/error", json.dumps(doc).encode(),
                                    f"Content-Type: application/json\r\nLambda-Runtime-Function-Error-Type: {doc['errorType']}\r\n")
        else:
            status, _, _ = api.call("POST", f"invocation/{request_id}/response", answer, "Content-Type: application/json\r\n")
        if status not in (202, 413):
            sys.exit(f"POST answer: {status}")


if __name__ == "__main__":
    main()
