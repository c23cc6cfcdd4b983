#!/bin/sh
# mosquitto_pub and mosquitto_sub, plain and over TLS with a device's certificate: telemetry in, a retained message, a will, a command.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"; kill $(jobs -p) 2>/dev/null || true' EXIT
want() { # what got want
	[ "$2" = "$3" ] || { echo "$1: got '$2', want '$3'" >&2; exit 1; }
}
sql() { curl -sS "$MILEPOST_HTTP/v1/sql?format=csv" -H 'Content-Type: text/plain' --data-binary "$1" | tail -n 1 | tr -d '\r'; }
v=mosq-$$
pub() { mosquitto_pub -h 127.0.0.1 -p "$MILEPOST_MQTT" "$@"; }
sub() { mosquitto_sub -h 127.0.0.1 -p "$MILEPOST_MQTT" -W 15 "$@"; }

# Many readings on one connection, one a line, QoS 1 and 2.
for i in $(seq 200); do echo "{\"ts\":$((1790000000000 + i)),\"speed\":$i}"; done | pub -q 1 -V mqttv5 -t "fleet/$v/telemetry" -l
for i in $(seq 201 300); do echo "{\"ts\":$((1790000000000 + i)),\"speed\":$i}"; done | pub -q 2 -V mqttv311 -t "fleet/$v/telemetry" -l
for _ in $(seq 50); do [ "$(sql "SELECT count(*) FROM readings WHERE vehicle_id = '$v'")" = 300 ] && break; sleep 0.2; done
want readings "$(sql "SELECT count(*) FROM readings WHERE vehicle_id = '$v'")" 300

# A subscriber follows readings by topic, with a wildcard.
sub -q 1 -t 'fleet/+/telemetry' -C 1 -F '%t %p' >"$dir/live" &
sleep 1
pub -q 1 -t "fleet/$v/telemetry" -m '{"ts":1790000001000,"speed":7}'
wait $!
want live "$(cat "$dir/live")" "fleet/$v/telemetry {\"ts\":1790000001000,\"speed\":7}"

# Retained, and a session that outlives its connection.
pub -q 1 -r -t "notes/$v" -m hello
want retained "$(sub -q 1 -t "notes/$v" -C 1)" hello
mosquitto_sub -h 127.0.0.1 -p "$MILEPOST_MQTT" -i "s-$v" -c -q 1 -t "queue/$v" -E
pub -q 1 -t "queue/$v" -m "while you were away"
want queued "$(sub -i "s-$v" -c -q 1 -t "queue/$v" -C 1)" "while you were away"

# A command, by HTTP, to a device with a certificate.
tls="-h localhost -p $MILEPOST_MQTT_TLS --cafile $MILEPOST_DEVICES/root.crt --cert $MILEPOST_DEVICES/truck-mosq.crt --key $MILEPOST_DEVICES/truck-mosq.key -i truck-mosq"
# shellcheck disable=SC2086
mosquitto_sub $tls -W 15 -q 1 -t fleet/truck-mosq/commands -C 1 >"$dir/command" &
sleep 1
curl -sS -f "$MILEPOST_HTTP/v1/vehicles/truck-mosq/commands" -H 'Content-Type: application/json' -d '{"name":"horn"}' >/dev/null
wait $!
grep -q '"horn"' "$dir/command" || { echo "command: $(cat "$dir/command")" >&2; exit 1; }
# shellcheck disable=SC2086
mosquitto_pub $tls -q 1 -t fleet/truck-mosq/telemetry -m '{"speed":50}'
for _ in $(seq 50); do [ "$(sql "SELECT count(*) FROM readings WHERE vehicle_id = 'truck-mosq'")" = 1 ] && break; sleep 0.2; done
want "readings with a certificate" "$(sql "SELECT count(*) FROM readings WHERE vehicle_id = 'truck-mosq'")" 1
echo "mosquitto clients ok"
