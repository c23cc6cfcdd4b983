"""Eclipse Paho (3.1.1 and 5) and the AWS IoT Device SDK against the MQTT door.

Plain for clients of this machine, with a device's own certificate for the SDK: MILEPOST enrolls it in MILEPOST_DATA. Every message
that was acknowledged is a reading of its vehicle; a device cannot publish for another, nor with a certificate of another authority.
"""

import json
import os
import pathlib
import sys
import threading
import time
import urllib.request
import uuid

import paho.mqtt.client as paho
from awscrt import mqtt5
from awsiot import mqtt5_client_builder

HTTP, PORT, TLS = os.environ["MILEPOST_HTTP"], int(os.environ["MILEPOST_MQTT"]), int(os.environ["MILEPOST_MQTT_TLS"])
FILES = pathlib.Path(os.environ["MILEPOST_DEVICES"])  # root.crt, and <device>.crt and .key of truck-sdk
run = uuid.uuid4().hex[:6]


def until(what, condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"{what} did not come true within {seconds} s")
        time.sleep(0.1)


def readings(vehicle):
    sql = f"SELECT count(*) FROM readings WHERE vehicle_id = '{vehicle}'"
    request = urllib.request.Request(HTTP + "/v1/sql", json.dumps({"sql": sql}).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)["rows"][0][0]


def reading(i):
    return json.dumps({"ts": int(time.time() * 1000) + i, "speed": i})


def with_paho(version, vehicle, n=500):
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=vehicle, protocol=version)
    client.max_inflight_messages_set(100)
    got = []
    client.on_message = lambda _c, _u, m: got.append(m.payload)
    client.connect("127.0.0.1", PORT)
    client.loop_start()
    client.subscribe(f"fleet/{vehicle}/commands", 1)
    sent = [client.publish(f"fleet/{vehicle}/telemetry", reading(i), qos=1 + i % 2) for i in range(n)]
    for s in sent:
        s.wait_for_publish(20)
        assert s.is_published(), "not acknowledged"
    until("readings of " + vehicle, lambda: readings(vehicle) == n)
    command = json.dumps({"name": "unlock"}).encode()
    request = urllib.request.Request(f"{HTTP}/v1/vehicles/{vehicle}/commands", command, {"Content-Type": "application/json"})
    urllib.request.urlopen(request).close()
    until("command to " + vehicle, lambda: any(json.loads(m).get("name") == "unlock" for m in got))
    client.disconnect()
    client.loop_stop()
    print(f"paho {'5' if version == paho.MQTTv5 else '3.1.1'} ok")


class Device:
    """A device of the AWS IoT SDK."""

    def __init__(self, name, client_id, cert):
        self.up, self.failed, self.error = threading.Event(), threading.Event(), None
        self.client = mqtt5_client_builder.mtls_from_path(
            endpoint="localhost", port=TLS, client_id=client_id, ca_filepath=str(FILES / "root.crt"),
            cert_filepath=str(FILES / f"{cert}.crt"), pri_key_filepath=str(FILES / f"{cert}.key"),
            on_lifecycle_connection_success=lambda _: self.up.set(), on_lifecycle_connection_failure=self.fail,
        )
        self.client.start()

    def fail(self, data):
        self.error = data.connack_packet.reason_code if data.connack_packet else data.exception
        self.failed.set()

    def publish(self, topic, payload):
        return self.client.publish(mqtt5.PublishPacket(topic=topic, payload=payload, qos=mqtt5.QoS.AT_LEAST_ONCE)).result(20).puback.reason_code


def with_sdk(n=200):
    device = Device("sdk", "truck-sdk", "truck-sdk")
    if not device.up.wait(20):
        sys.exit(f"the IoT SDK could not connect: {device.error}")
    for i in range(n):
        code = device.publish("fleet/truck-sdk/telemetry" if i % 2 else "$aws/rules/fleet/fleet/truck-sdk/telemetry", reading(i))
        assert code == 0, code
    until("readings of truck-sdk", lambda: readings("truck-sdk") == n)
    code = device.publish("fleet/another/telemetry", reading(0))
    assert code == mqtt5.PubackReasonCode.NOT_AUTHORIZED, f"published for another vehicle: {code}"
    device.client.stop()
    print("AWS IoT Device SDK ok")


with_paho(paho.MQTTv311, f"paho-3-{run}")
with_paho(paho.MQTTv5, f"paho-5-{run}")
with_sdk()
