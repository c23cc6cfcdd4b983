#!/bin/sh
# The aws CLI on functions: it invokes one, maps it to a stream, changes, pauses and deletes the mapping, and sees what the handler made of
# the records. Needs the aws CLI in the path, and a server whose configuration has the function "double" (interop.sh has it).
set -eu
a() { aws --endpoint-url "$MILEPOST_KINESIS" --region "$AWS_REGION" --output text "$@"; }
want() { # what got want
	[ "$2" = "$3" ] || { echo "$1: got '$2', want '$3'" >&2; exit 1; }
}
until_is() { # what want command…: within 20 s
	what=$1 value=$2
	shift 2
	for _ in $(seq 100); do
		got=$("$@")
		[ "$got" = "$value" ] && return
		sleep 0.2
	done
	echo "$what: got '$got', want '$value'" >&2
	exit 1
}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
name=interop-lambda-$$
want functions "$(a lambda list-functions --query "Functions[?FunctionName=='double'].FunctionName")" double

# By hand.
printf '{"Records":[]}' >"$dir/event"
status=$(a lambda invoke --function-name double --log-type Tail --payload "fileb://$dir/event" --query StatusCode "$dir/answer" 2>/dev/null)
want status "$status" 200
want answer "$(tr -d ' ' <"$dir/answer")" '{"output":[]}'
printf '{"Records":5}' >"$dir/event"
want error "$(a lambda invoke --function-name double --payload "fileb://$dir/event" --query FunctionError "$dir/answer")" Unhandled
grep -q errorMessage "$dir/answer" || { echo "an error without errorMessage: $(cat "$dir/answer")" >&2; exit 1; }

# On a stream.
a kinesis create-stream --stream-name "$name" --shard-count 1
a kinesis wait stream-exists --stream-name "$name"
arn=$(a kinesis describe-stream-summary --stream-name "$name" --query StreamDescriptionSummary.StreamARN)
uuid=$(a lambda create-event-source-mapping --function-name double --event-source-arn "$arn" --batch-size 10 --starting-position TRIM_HORIZON \
	--bisect-batch-on-function-error --maximum-retry-attempts 1 --function-response-types ReportBatchItemFailures \
	--filter-criteria '{"Filters":[{"Pattern":"{\"data\":{\"n\":[{\"numeric\":[\">\",0]}]}}"}]}' --query UUID)
until_is state Enabled a lambda get-event-source-mapping --uuid "$uuid" --query State
want twice "$(a lambda create-event-source-mapping --function-name double --event-source-arn "$arn" --starting-position LATEST 2>&1 | grep -c ResourceConflictException)" 1
want listed "$(a lambda list-event-source-mappings --event-source-arn "$arn" --query 'EventSourceMappings[0].UUID')" "$uuid"
for n in 1 -2 3; do a kinesis put-record --stream-name "$name" --partition-key k --data "$(printf '{"n":%s}' $n | base64)" --cli-binary-format base64 >/dev/null 2>&1 ||
	a kinesis put-record --stream-name "$name" --partition-key k --data "{\"n\":$n}" >/dev/null; done
until_is result OK a lambda get-event-source-mapping --uuid "$uuid" --query LastProcessingResult
a lambda update-event-source-mapping --uuid "$uuid" --no-enabled --batch-size 5 >/dev/null
until_is state Disabled a lambda get-event-source-mapping --uuid "$uuid" --query State
want size "$(a lambda get-event-source-mapping --uuid "$uuid" --query BatchSize)" 5
a lambda update-event-source-mapping --uuid "$uuid" --enabled >/dev/null
until_is state Enabled a lambda get-event-source-mapping --uuid "$uuid" --query State
a lambda delete-event-source-mapping --uuid "$uuid" >/dev/null
until_is gone 1 sh -c "aws --endpoint-url $MILEPOST_KINESIS --region $AWS_REGION lambda get-event-source-mapping --uuid $uuid 2>&1 | grep -c ResourceNotFoundException"

# What the mapping of the configuration has made: doubles on a stream of its own.
for n in 20 21; do a kinesis put-record --stream-name interop-numbers --partition-key k --data "$(printf '{"n":%s}' $n | base64)" --cli-binary-format base64 >/dev/null 2>&1 ||
	a kinesis put-record --stream-name interop-numbers --partition-key k --data "{\"n\":$n}" >/dev/null; done
doubles() {
	it=$(a kinesis get-shard-iterator --shard-id shardId-000000000000 --shard-iterator-type TRIM_HORIZON --stream-name interop-doubles --query ShardIterator)
	for d in $(a kinesis get-records --shard-iterator "$it" --query 'Records[].Data'); do printf '%s' "$d" | base64 -d; done
}
until_is doubles '{"n": 40}{"n": 42}' doubles
a kinesis delete-stream --stream-name "$name"
echo "aws lambda ok"
