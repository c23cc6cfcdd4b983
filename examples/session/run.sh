#!/bin/sh
# Runs this example: puts records.ndjson, and compares what comes out with expected.ndjson.
set -eu
cd "$(dirname "$0")"
exec ${MILEPOST:-go run ../../cmd/milepost} try --expect expected.ndjson "$@"
