#!/bin/bash
# Real clients against the real program. Of Kinesis: boto3, the aws CLI, the JavaScript SDK, the Kinesis Client Library 3 and the Kinesis
# Producer Library on Java (with DynamoDB Local for the leases), and Telegraf; each puts, reads and reshards. Of Lambda: the aws CLI.
# Every answer of both, raw, against AWS' service models as botocore brings them: shapes.
# Of the device door: Eclipse Paho, the AWS IoT Device SDK, the mosquitto clients, and Telegraf over MQTT and HTTP.
#
# It builds and starts milepost on free loopback ports with a directory and a certificate of its own, and stops it at the end. What a
# client needs is installed once into INTEROP_DIR (default: milepost-interop in the user's cache directory). A client whose runtime is
# missing (python3 with venv, node and npm, a JDK from 17 with maven and openssl) is skipped with a message, and with CI=true is a failure.
# ONLY="boto cli js java telegraf lambda shapes mqtt mosquitto" picks some.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
dir=${INTEROP_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/milepost-interop}
only=${ONLY:-boto cli js java telegraf lambda shapes mqtt mosquitto}
began=$SECONDS
mkdir -p "$dir"
run=$(mktemp -d)
server=
stop() {
	status=$?
	if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; fi
	if [ "$status" != 0 ] && [ -f "$run/log" ]; then echo "--- the end of the server's log"; tail -n 30 "$run/log"; fi >&2
	rm -rf "$run"
}
trap stop EXIT
trap 'exit 130' INT TERM

wanted() { case " $only " in *" $1 "*) return 0 ;; esac; return 1; }
failed= ran=
have() { # client command…: whether the client is wanted and its commands are there
	local client=$1 c
	wanted "$client" || return 1
	shift
	for c; do
		if ! command -v "$c" >/dev/null; then
			echo "skipped: $client (no $c)" >&2
			if [ "${CI:-}" = true ]; then failed="$failed $client"; fi
			return 1
		fi
	done
	return 0
}
client() { # name command…
	local name=$1 start=$SECONDS
	shift
	echo "--- $name"
	if "$@"; then ran="$ran $name"; echo "$name: ok in $((SECONDS - start)) s"; else
		echo "$name: FAILED after $((SECONDS - start)) s" >&2
		failed="$failed $name"
	fi
}
port() { # one that nothing listens on; each of the five from a range of its own
	local p
	while :; do
		p=$(($1 + RANDOM % 2500))
		(exec 3<>"/dev/tcp/127.0.0.1/$p") 2>/dev/null || break
	done
	echo "$p"
}

http=$(port 20000) mqtt=$(port 22500) kinesis=$(port 25000) tls=$(port 27500) mqtts=$(port 17500)
cat >"$run/milepost.yaml" <<CONF
data: $run/data
http: {listen: "127.0.0.1:$http"}
mqtt:
  listen: 127.0.0.1:$mqtt
  tls: {listen: "127.0.0.1:$mqtts"}
streams:
  interop-numbers: {}
  interop-doubles: {}
functions:
  double:
    runtime: python3
    handler: app.handler
    code: $root/interop/double
    on:
      - {stream: interop-numbers, output: interop-doubles}
  shapes:
    runtime: python3
    handler: app.handler
    code: $root/interop/shapes
    timeout: 2s
    concurrency: 1
kinesis:
  listen: 127.0.0.1:$kinesis
CONF
if command -v openssl >/dev/null; then # the Producer Library speaks https only
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost \
		-addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout "$run/key.pem" -out "$run/cert.pem" 2>/dev/null
	echo "  tls: {listen: \"127.0.0.1:$tls\", cert: $run/cert.pem, key: $run/key.pem}" >>"$run/milepost.yaml"
fi
(cd "$root" && go build -o "$run/milepost" ./cmd/milepost)
"$run/milepost" ca init --data "$run/data" --host localhost >/dev/null
"$run/milepost" serve --config "$run/milepost.yaml" 2>"$run/log" &
server=$!
for _ in $(seq 300); do
	if (exec 3<>"/dev/tcp/127.0.0.1/$kinesis" 4<>"/dev/tcp/127.0.0.1/$http") 2>/dev/null; then break; fi
	kill -0 "$server" 2>/dev/null || { echo "milepost did not start" >&2; exit 1; }
	sleep 0.1
done

unset AWS_PROFILE AWS_SESSION_TOKEN AWS_ENDPOINT_URL AWS_ENDPOINT_URL_KINESIS
export AWS_ACCESS_KEY_ID=interop AWS_SECRET_ACCESS_KEY=interop AWS_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true
export AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null AWS_PAGER=
export MILEPOST_KINESIS=http://127.0.0.1:$kinesis MILEPOST_KINESIS_TLS=https://127.0.0.1:$tls
export MILEPOST_HTTP=http://127.0.0.1:$http MILEPOST=$run/milepost MILEPOST_MQTT=$mqtt MILEPOST_MQTT_TLS=$mqtts MILEPOST_DEVICES=$run/devices
for device in truck-sdk truck-mosq; do "$run/milepost" device enroll "$device" --url "$MILEPOST_HTTP" --out "$run/devices" >/dev/null; done

python_ready() {
	[ -f "$dir/venv/ready-2" ] && return
	rm -rf "$dir/venv"
	python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" -q --disable-pip-version-check install boto3 awscli aws_kinesis_agg protobuf paho-mqtt awsiotsdk && touch "$dir/venv/ready-2"
}
boto() { python_ready && "$dir/venv/bin/python" "$root/interop/boto.py"; }
lambda() { python_ready && PATH=$dir/venv/bin:$PATH sh "$root/interop/lambda.sh"; }
shapes() { python_ready && "$dir/venv/bin/python" "$root/interop/shapes.py"; }
mqtt_clients() { python_ready && "$dir/venv/bin/python" "$root/interop/mqtt.py"; }
mosquitto_clients() { sh "$root/interop/mosquitto.sh"; }
cli() { python_ready && PATH=$dir/venv/bin:$PATH sh "$root/interop/cli.sh"; }
js() {
	mkdir -p "$dir/js"
	cp "$root/interop/js/package.json" "$root/interop/js/run.mjs" "$dir/js/"
	(cd "$dir/js" && npm install --silent --no-audit --no-fund --cache "$dir/npm" && node --no-warnings run.mjs)
}
java_clients() {
	mkdir -p "$dir/java/tmp"
	cp -R "$root/interop/java/pom.xml" "$root/interop/java/src" "$dir/java/"
	(cd "$dir/java" && mvn -q -B -Dstyle.color=never -Dmaven.repo.local="$dir/m2" package dependency:copy-dependencies -DoutputDirectory=target/lib &&
		java -Xmx384m -Djava.io.tmpdir="$dir/java/tmp" -Dorg.slf4j.simpleLogger.defaultLogLevel="${INTEROP_LOG:-error}" \
			-Dsqlite4java.library.path=target/lib -cp 'target/classes:target/lib/*' Interop)
}

# Telegraf as released, with its own go.sum, and of its plugins only those that the run needs.
telegraf_version=v1.37.2
telegraf_ready() {
	[ -x "$dir/telegraf-$telegraf_version-2" ] && return
	local mod=github.com/influxdata/telegraf src=$dir/telegraf
	rm -rf "$src"
	mkdir -p "$src"
	(cd "$src" && GOWORK=off nice go mod download -json "$mod@$telegraf_version" >download.json &&
		cp -R "$(sed -n 's/^\t"Dir": "\(.*\)",*$/\1/p' download.json)" source && chmod -R u+w source && cd source &&
		GOWORK=off GOFLAGS=-mod=readonly nice go build -tags custom,inputs.file,outputs.kinesis,outputs.mqtt,outputs.influxdb_v2,parsers.influx,serializers.influx \
			-o "$src/telegraf" ./cmd/telegraf && mv "$src/telegraf" "$dir/telegraf-$telegraf_version-2" && rm -rf "$src")
}
telegraf_output() {
	python_ready && telegraf_ready && mkdir -p "$dir/bin" && ln -sf "$dir/telegraf-$telegraf_version-2" "$dir/bin/telegraf" &&
		PATH=$dir/bin:$dir/venv/bin:$PATH sh "$root/interop/telegraf.sh"
}

if have boto python3; then client boto boto; fi
if have cli python3; then client cli cli; fi
if have js node npm; then client js js; fi
if have java java javac mvn openssl; then client java java_clients; fi
if have telegraf python3 go; then client telegraf telegraf_output; fi
if have lambda python3; then client lambda lambda; fi
if have shapes python3; then client shapes shapes; fi
if have mqtt python3; then client mqtt mqtt_clients; fi
if have mosquitto mosquitto_pub mosquitto_sub curl; then client mosquitto mosquitto_clients; fi

if ! kill -0 "$server" 2>/dev/null; then
	echo "milepost ended by itself" >&2
	exit 1
fi
kill "$server"
wait "$server" || { echo "milepost did not end well" >&2; exit 1; }
server=
if [ -n "$failed" ]; then
	echo "interop: failed:$failed" >&2
	exit 1
fi
[ -n "$ran" ] || { echo "interop: no client could run" >&2; exit 1; }
echo "interop: ok in $((SECONDS - began)) s:$ran"
