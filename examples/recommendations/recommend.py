"""Counts which items are seen by the same user, and recommends the one seen most often beside the item at hand.

Milepost delivers a batch at least once, and always under the same request id (context.aws_request_id): after a crash between
the handler's commit and Milepost's the batch comes again. So the id is stored in the same transaction as the counters, with
the answer: a repetition gets the same answer and counts nothing. That makes the effect exactly once.
"""

import base64
import json
import os
import sqlite3

db = sqlite3.connect(os.environ.get("COUNTERS", ":memory:"), isolation_level=None)
db.executescript("""
CREATE TABLE IF NOT EXISTS done (request TEXT PRIMARY KEY, answer TEXT);
CREATE TABLE IF NOT EXISTS seen (user TEXT, item TEXT, PRIMARY KEY (user, item));
CREATE TABLE IF NOT EXISTS together (item TEXT, other TEXT, n INTEGER, PRIMARY KEY (item, other));
""")


def count(user, item):
    for (other,) in db.execute("SELECT item FROM seen WHERE user = ? AND item <> ?", (user, item)).fetchall():
        for a, b in ((item, other), (other, item)):
            db.execute("INSERT INTO together VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET n = n + 1", (a, b))
    db.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (user, item))


def best(item):
    row = db.execute("SELECT other, n FROM together WHERE item = ? ORDER BY n DESC, other LIMIT 1", (item,)).fetchone()
    return {"item": item, "recommend": row[0], "together": row[1]} if row else None


def handler(event, context):
    db.execute("BEGIN IMMEDIATE")
    try:
        known = db.execute("SELECT answer FROM done WHERE request = ?", (context.aws_request_id,)).fetchone()
        if known:
            db.execute("ROLLBACK")
            return json.loads(known[0])
        items = []
        for record in event["Records"]:
            view = json.loads(base64.b64decode(record["kinesis"]["data"]))
            count(view["user"], view["item"])
            items.append(view["item"])
        rows = [best(item) for item in sorted(set(items))]
        answer = {"output": [{"key": r["item"], "json": r} for r in rows if r]}
        db.execute("INSERT INTO done VALUES (?, ?)", (context.aws_request_id, json.dumps(answer)))
        db.execute("COMMIT")
        return answer
    except BaseException:
        db.execute("ROLLBACK")
        raise
