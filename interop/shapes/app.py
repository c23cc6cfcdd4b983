"""Does what its event says: the function that shapes.py invokes to see every answer of the Invoke API."""

import time


def handler(event, context):
    if "print" in event:
        print(event["print"])
    if "sleep" in event:
        time.sleep(event["sleep"])
    if "raise" in event:
        raise ValueError(event["raise"])
    if "size" in event:
        return "x" * event["size"]
    return event
