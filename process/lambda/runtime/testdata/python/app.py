import logging
import os
import signal
import subprocess
import sys
import time


def handler(event, context):
    do = event.get("do")
    if do == "echo":
        return event["value"]
    if do == "context":
        return {
            "id": context.aws_request_id, "arn": context.invoked_function_arn, "name": context.function_name,
            "version": context.function_version, "memory": context.memory_limit_in_mb, "group": context.log_group_name,
            "stream": context.log_stream_name.split("]")[0].split("[")[1],
            "remaining": 0 < context.get_remaining_time_in_millis() <= 5000,
            "custom": context.client_context.custom if context.client_context else None,
            "cwd": os.getcwd(), "trace": os.environ.get("_X_AMZN_TRACE_ID"),
        }
    if do == "environment":
        return dict(os.environ)
    if do == "raise":
        raise ValueError("boom ü")
    if do == "print":
        print("to stdout: grüße")
        print("to stderr", file=sys.stderr)
        sys.stdout.write("no newline")
        logging.getLogger().warning("careful")
        return None
    if do == "much":
        for i in range(5000):
            print("line", i, "x" * 100)
        return None
    if do == "huge":
        return "x" * (7 << 20)
    if do == "sleep":
        time.sleep(60)
    if do == "exit":
        sys.exit(event["status"])
    if do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "child":
        p = subprocess.Popen(["sleep", "600"])
        return p.pid
    if do == "pid":
        return os.getpid()
    if do == "set":
        return {1, 2}
    return None


not_callable = None
