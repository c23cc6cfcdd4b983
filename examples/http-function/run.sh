#!/bin/sh
# Starts the receiver, puts records.ndjson, and compares what comes out with expected.ndjson.
set -eu
cd "$(dirname "$0")"
python3 server.py &
trap 'kill $!' EXIT
${MILEPOST:-go run ../../cmd/milepost} try --expect expected.ndjson "$@"
