#!/bin/sh
# Telegraf's kinesis output: the measurements of a file arrive in the stream, before and after a split. Then its outputs for InfluxDB and
# MQTT, to which Milepost is what it takes it for: each measurement is a reading. Needs telegraf and the aws CLI in the path.
set -eu
k() { aws --endpoint-url "$MILEPOST_KINESIS" --region "$AWS_REGION" --output text kinesis "$@"; }
name=interop-telegraf-$$
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
k create-stream --stream-name "$name" --shard-count 1
k wait stream-exists --stream-name "$name"
cat >"$dir/conf" <<CONF
[agent]
  omit_hostname = true
[[inputs.file]]
  files = ["$dir/in"]
  data_format = "influx"
[[outputs.kinesis]]
  region = "$AWS_REGION"
  endpoint_url = "$MILEPOST_KINESIS"
  streamname = "$name"
  data_format = "influx"
  [outputs.kinesis.partition]
    method = "tag"
    key = "vehicle"
CONF
collect() { # first last: one measurement each, of a vehicle of its own
	for i in $(seq "$1" "$2"); do echo "truck,vehicle=T$i speed=$i 1700000000000000000"; done >"$dir/in"
	telegraf --config "$dir/conf" --once --quiet --strict-env-handling
}
collect 1 20
k split-shard --stream-name "$name" --shard-to-split shardId-000000000000 --new-starting-hash-key 170141183460469231731687303715884105728
until [ "$(k describe-stream-summary --stream-name "$name" --query StreamDescriptionSummary.StreamStatus)" = ACTIVE ]; do :; done
collect 21 40
for shard in 0 1 2; do
	it=$(k get-shard-iterator --shard-id shardId-00000000000$shard --shard-iterator-type TRIM_HORIZON --stream-name "$name" --query ShardIterator)
	k get-records --shard-iterator "$it" --query 'Records[].[Data]' >"$dir/shard$shard"
done
for i in $(seq 1 40); do echo "truck,vehicle=T$i speed=$i 1700000000000000000"; done | sort >"$dir/want"
python3 -c 'import base64, sys
for l in sys.stdin: sys.stdout.write(base64.b64decode(l).decode())' <"$dir/shard0" >"$dir/got"
[ "$(grep -c . "$dir/got")" = 20 ] || { echo "telegraf: $(grep -c . "$dir/got") measurements before the split, want 20" >&2; exit 1; }
cat "$dir/shard1" "$dir/shard2" | python3 -c 'import base64, sys
for l in sys.stdin: sys.stdout.write(base64.b64decode(l).decode())' >>"$dir/got"
sort "$dir/got" | diff "$dir/want" - || { echo "telegraf: other measurements arrived than were sent" >&2; exit 1; }
k delete-stream --stream-name "$name"

now=$(date +%s)
for i in $(seq 1 30); do echo "readings,name=tg-$$,fleet=South velocity=$i,fuel_state=0.5 $((now - i))000000000"; done >"$dir/in"
cat >"$dir/conf" <<CONF
[agent]
  omit_hostname = true
[[inputs.file]]
  files = ["$dir/in"]
  data_format = "influx"
[[outputs.influxdb_v2]]
  urls = ["$MILEPOST_HTTP"]
  token = "none"
  organization = "any"
  bucket = "any"
CONF
telegraf --config "$dir/conf" --once --quiet --strict-env-handling
sed -i "s/tg-$$/tm-$$/" "$dir/in"
sed -i '/outputs.influxdb_v2/,$d' "$dir/conf"
cat >>"$dir/conf" <<CONF
[[outputs.mqtt]]
  servers = ["tcp://127.0.0.1:$MILEPOST_MQTT"]
  topic = "telegraf/{{ .Tag \"name\" }}"
  qos = 1
  data_format = "influx"
CONF
telegraf --config "$dir/conf" --once --quiet --strict-env-handling
rows() {
	curl -sS "$MILEPOST_HTTP/v1/sql?format=csv" -H 'Content-Type: text/plain' --data-binary "SELECT count(*), sum(speed), max(fuel) FROM readings WHERE vehicle_id = '$1'" | tail -n 1 | tr -d '\r'
}
for v in "tg-$$" "tm-$$"; do
	for _ in $(seq 50); do [ "$(rows "$v")" = 30,465.0,50.0 ] && break; sleep 0.2; done
	case $(rows "$v") in 30,465*,50*) ;; *) echo "telegraf: readings of $v: $(rows "$v"), want 30,465,50" >&2; exit 1 ;; esac
done
echo "Telegraf ok"
