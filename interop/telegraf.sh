#!/bin/sh
# Telegraf's kinesis output: what it collects once arrives in the stream. Needs the aws CLI, as scripts/interop.sh installs it.
set -eu
k() { aws --endpoint-url "$MILEPOST_KINESIS" --region "$AWS_REGION" --output text kinesis "$@"; }
name=interop-telegraf-$$
conf=$(mktemp)
trap 'rm -f "$conf"' EXIT
k create-stream --stream-name "$name" --shard-count 1
k wait stream-exists --stream-name "$name"
cat >"$conf" <<CONF
[[inputs.mem]]
[[outputs.kinesis]]
  region = "$AWS_REGION"
  endpoint_url = "$MILEPOST_KINESIS"
  streamname = "$name"
  data_format = "influx"
  [outputs.kinesis.partition]
    method = "random"
CONF
telegraf --config "$conf" --once --quiet
it=$(k get-shard-iterator --shard-id shardId-000000000000 --shard-iterator-type TRIM_HORIZON --stream-name "$name" --query ShardIterator)
[ "$(k get-records --shard-iterator "$it" --query 'length(Records)')" -ge 1 ] || { echo "telegraf: nothing arrived" >&2; exit 1; }
k delete-stream --stream-name "$name"
echo "$(telegraf --version) ok"
