#!/bin/sh
# Builds the handler as for AWS, puts records.ndjson, and compares what comes out with expected.ndjson.
set -eu
cd "$(dirname "$0")"
CGO_ENABLED=0 go build -tags lambda.norpc -o bootstrap .
exec ${MILEPOST:-go run ../../cmd/milepost} try --expect expected.ndjson "$@"
