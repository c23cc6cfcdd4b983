#!/bin/sh
# The aws CLI as the AWS guides print it: create-stream, put-record, get-records, split-shard, merge-shards.
set -eu
k() { aws --endpoint-url "$MILEPOST_KINESIS" --region "${AWS_REGION:-us-east-1}" --output text kinesis "$@"; }
want() { # what got want
	[ "$2" = "$3" ] || { echo "$1: got '$2', want '$3'" >&2; exit 1; }
}
name=interop-cli-$$
k create-stream --stream-name "$name" --shard-count 1
k wait stream-exists --stream-name "$name"
want status "$(k describe-stream-summary --stream-name "$name" --query StreamDescriptionSummary.StreamStatus)" ACTIVE
want shard "$(k put-record --stream-name "$name" --partition-key 123 --data dGVzdGRhdGE= --cli-binary-format base64 --query ShardId 2>/dev/null ||
	k put-record --stream-name "$name" --partition-key 123 --data testdata --query ShardId)" shardId-000000000000
it=$(k get-shard-iterator --shard-id shardId-000000000000 --shard-iterator-type TRIM_HORIZON --stream-name "$name" --query ShardIterator)
want data "$(k get-records --shard-iterator "$it" --query 'Records[0].Data' | tr -d '\n')" dGVzdGRhdGE=
k split-shard --stream-name "$name" --shard-to-split shardId-000000000000 --new-starting-hash-key 170141183460469231731687303715884105728
k wait stream-exists --stream-name "$name"
want shards "$(k list-shards --stream-name "$name" --shard-filter Type=AT_LATEST --query 'length(Shards)')" 2
until [ "$(k describe-stream-summary --stream-name "$name" --query StreamDescriptionSummary.StreamStatus)" = ACTIVE ]; do :; done
k merge-shards --stream-name "$name" --shard-to-merge shardId-000000000001 --adjacent-shard-to-merge shardId-000000000002
want merged "$(k describe-stream --stream-name "$name" --query 'StreamDescription.Shards[3].AdjacentParentShardId')" shardId-000000000002
until [ "$(k describe-stream-summary --stream-name "$name" --query StreamDescriptionSummary.StreamStatus)" = ACTIVE ]; do :; done

# The guides' next question: is everything still there? A record to the merged shard, then all four shards from their beginning.
want shard "$(k put-record --stream-name "$name" --partition-key 123 --data "$(printf after | base64)" --cli-binary-format base64 --query ShardId 2>/dev/null ||
	k put-record --stream-name "$name" --partition-key 123 --data after --query ShardId)" shardId-000000000003
for shard in 0:dGVzdGRhdGE= 1:None 2:None 3:YWZ0ZXI=; do
	it=$(k get-shard-iterator --shard-id "shardId-00000000000${shard%%:*}" --shard-iterator-type TRIM_HORIZON --stream-name "$name" --query ShardIterator)
	want "data of shard ${shard%%:*}" "$(k get-records --shard-iterator "$it" --query 'Records[0].Data')" "${shard#*:}"
done
k increase-stream-retention-period --stream-name "$name" --retention-period-hours 48
k add-tags-to-stream --stream-name "$name" --tags Project=fleet
want tag "$(k list-tags-for-stream --stream-name "$name" --query 'Tags[0].Value')" fleet
until [ "$(k describe-stream-summary --stream-name "$name" --query StreamDescriptionSummary.StreamStatus)" = ACTIVE ]; do :; done
k delete-stream --stream-name "$name"
k wait stream-not-exists --stream-name "$name"
echo "$(aws --version) ok"
