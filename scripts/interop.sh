#!/bin/sh
# Real Kinesis clients against the endpoint in MILEPOST_KINESIS (http://127.0.0.1:4567): boto3, the aws CLI, the JavaScript SDK, and
# with maven and a JDK the Java SDK, the Kinesis Client Library and DynamoDB Local for its leases. With MILEPOST_KINESIS_TLS, an
# https endpoint of the same door, the Kinesis Producer Library as well, and with telegraf in the path its output. What a client
# needs is installed into INTEROP_DIR (.interop), once. ONLY="boto cli js java telegraf" picks some.
#
# When access keys are configured, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY must be of one that may do everything.
set -eu
: "${MILEPOST_KINESIS:=http://127.0.0.1:4567}"
: "${AWS_ACCESS_KEY_ID:=interop}"
: "${AWS_SECRET_ACCESS_KEY:=interop}"
: "${AWS_REGION:=us-east-1}"
export MILEPOST_KINESIS AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_REGION
root=$(cd "$(dirname "$0")/.." && pwd)
dir=${INTEROP_DIR:-$root/.interop}
only=${ONLY:-boto cli js java telegraf}
mkdir -p "$dir"
wanted() { case " $only " in *" $1 "*) return 0 ;; esac; return 1; }

if wanted boto || wanted cli; then
	[ -x "$dir/venv/bin/aws" ] || { python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" -q install boto3 awscli; }
	PATH=$dir/venv/bin:$PATH
fi
if wanted boto; then python "$root/interop/boto.py"; fi
if wanted cli; then sh "$root/interop/cli.sh"; fi
if wanted js; then
	mkdir -p "$dir/js"
	cp "$root/interop/js/package.json" "$root/interop/js/run.mjs" "$dir/js/"
	(cd "$dir/js" && npm install --silent --no-audit --no-fund && node --no-warnings run.mjs)
fi
if wanted java; then
	if command -v mvn >/dev/null; then
		mkdir -p "$dir/java"
		cp -R "$root/interop/java/pom.xml" "$root/interop/java/src" "$dir/java/"
		(cd "$dir/java" && mvn -q -B package dependency:copy-dependencies -DoutputDirectory=target/lib &&
			java -Xmx512m -Dsqlite4java.library.path=target/lib -cp 'target/classes:target/lib/*' Interop)
	else
		echo "skipped: java (no mvn)" >&2
	fi
fi
if wanted telegraf; then
	if command -v telegraf >/dev/null; then
		sh "$root/interop/telegraf.sh"
	else
		echo "skipped: telegraf (not in the path)" >&2
	fi
fi
