#!/bin/sh
# Runs this example from empty counters: puts records.ndjson, and compares what comes out with expected.ndjson.
set -eu
cd "$(dirname "$0")"
rm -f /tmp/milepost-recommendations.db
exec ${MILEPOST:-go run ../../cmd/milepost} try --expect expected.ndjson "$@"
