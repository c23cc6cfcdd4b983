// Connect a sender: for each kind what to install or write, filled in for one vehicle, and a QR code where an app reads one.

import {fill, h} from '../dom.js';
import {choices, code, field} from '../parts.js';

const base64 = (text) => btoa(String.fromCharCode(...new TextEncoder().encode(text)));

// A kind returns what to do for a vehicle: steps (text or code), a link for the QR code, what to know.
const KINDS = {
	owntracks: {
		name: 'OwnTracks', about: 'A phone as tracker, Android and iOS.',
		make: ({origin, id, token}) => {
			const config = {
				_type: 'configuration', mode: 3, url: `${origin}/in/owntracks`, auth: true, username: id, usernameEnabled: true, deviceId: id,
				password: token, usePassword: Boolean(token), tid: id.slice(-2), monitoring: 2,
			};
			return {
				qr: `owntracks:///config?inline=${base64(JSON.stringify(config))}`,
				steps: ['Install OwnTracks and scan the code, or set by hand: mode HTTP, the address below, user and device the vehicle’s name.', {code: `${origin}/in/owntracks/${encodeURIComponent(id)}`}],
			};
		},
	},
	traccar: {
		name: 'Traccar Client', about: 'A phone as tracker, Android and iOS.',
		make: ({origin, id, token}) => {
			const url = `${origin}/in/osmand${token ? `?token=${encodeURIComponent(token)}` : ''}`;
			return {
				qr: `${origin}/in/osmand?${new URLSearchParams({id, url, interval: 30, accuracy: 'high'})}`,
				steps: ['Install Traccar Client, open its settings and scan the code, or set by hand: device identifier', {code: id}, 'and server URL', {code: url}],
			};
		},
	},
	overland: {
		name: 'Overland', about: 'A phone as tracker that sends in batches.',
		make: ({origin, id, token}) => ({
			qr: `overland://setup?${new URLSearchParams({url: `${origin}/in/overland`, token: token || 'none', device_id: id, unique_id: 'no'})}`,
			steps: ['Install Overland and scan the code with the phone’s camera. Receiver endpoint:', {code: `${origin}/in/overland`}],
		}),
	},
	torque: {
		name: 'Torque Pro', about: 'A car’s own engine data through an OBD-II dongle.',
		make: ({origin, id, token}) => ({
			steps: ['Torque Pro, settings, data logging and upload: switch on the upload to a web server, and as its URL', {code: `${origin}/in/torque/${encodeURIComponent(id)}${token ? `?token=${encodeURIComponent(token)}` : ''}`},
				'Choose the sensors to log: coolant temperature, engine speed, fuel level, voltage.'],
		}),
	},
	mqtt: {
		name: 'MQTT device', about: 'Anything that speaks MQTT 3.1.1 or 5.',
		make: ({host, id}) => ({
			steps: ['Publish one JSON object, an array, or one a line, with QoS 1: the acknowledgement means that it is on disk.',
				{code: `mosquitto_pub -h ${host} -p 1883 -q 1 -t 'fleet/${id}/telemetry' \\\n  -m '{"lat":38.72,"lon":-9.14,"speed":63.2,"engine_temp":92.4}'`},
				'With a certificate, which is how devices out there should come in:',
				{code: `milepost device enroll ${id}\nmosquitto_pub -h ${host} -p 8883 --cafile ca.pem --cert ${id}.pem --key ${id}.key -q 1 \\\n  -t 'fleet/${id}/telemetry' -m '{"speed":63.2}'`}],
		}),
	},
	http: {
		name: 'HTTP', about: 'Scripts, gateways, other servers.',
		make: ({origin, id, token}) => ({
			steps: ['One reading or many; 200 means that they are on disk.',
				{code: `curl -sS ${origin}/v1/vehicles/${encodeURIComponent(id)}/readings${token ? ` \\\n  -H 'Authorization: Bearer ${token}'` : ''} \\\n  -d '{"lat":38.72,"lon":-9.14,"speed":63.2}'`}],
		}),
	},
	aws: {
		name: 'AWS', about: 'Kinesis producers and IoT devices that exist already.',
		make: ({host, id}) => ({
			steps: ['A Kinesis producer changes its endpoint; the partition key is the vehicle:',
				{code: `aws kinesis put-record --endpoint-url http://${host}:4567 --stream-name readings \\\n  --partition-key ${id} --cli-binary-format raw-in-base64-out --data '{"vehicle_id":"${id}","speed":63.2}'`},
				'An AWS IoT device changes its endpoint and its CA. Basic Ingest topics are understood:', {code: `$aws/rules/fleet/fleet/${id}/telemetry`}],
		}),
	},
	gateway: {
		name: 'Traccar server', about: 'Two thousand kinds of trackers, through a Traccar server.',
		make: ({origin}) => ({
			steps: ['In traccar.xml:', {code: `<entry key='forward.enable'>true</entry>\n<entry key='forward.type'>json</entry>\n<entry key='forward.url'>${origin}/in/traccar</entry>`},
				'The vehicle is the device’s identifier in Traccar.'],
		}),
	},
	telegraf: {
		name: 'Telegraf', about: 'Machines, gateways and everything Telegraf reads.',
		make: ({origin, token}) => ({
			steps: ['Unmodified, with the output for InfluxDB:', {code: `[[outputs.influxdb_v2]]\n  urls = ["${origin}"]\n  token = "${token || 'none'}"\n  organization = "any"\n  bucket = "any"`},
				'The vehicle is the tag vehicle_id, vehicle, name, device or host, the first that is there.'],
		}),
	},
	vss: {
		name: 'VSS, Tesla, Sparkplug', about: 'Cars and gateways with names of their own.',
		make: ({origin, id}) => ({
			steps: ['Signals named by the Vehicle Signal Specification:', {code: `curl -sS ${origin}/in/vss/${encodeURIComponent(id)} -d '{"Vehicle.Speed":63.2}'`},
				'Tesla’s fleet-telemetry, its HTTP dispatcher:', {code: `${origin}/in/tesla`}, 'Sparkplug B edge nodes publish to the MQTT door as they do:', {code: `spBv1.0/<group>/DDATA/<edge node>/${id}`}],
		}),
	},
};

export class ConnectPage {
	name = 'connect';

	constructor(app) {
		this.app = app;
		this.kind = 'owntracks';
		this.id = h('input', {type: 'text', value: 'truck-7', maxlength: 128, autocomplete: 'off', spellcheck: 'false', oninput: () => this.#show()});
		this.token = h('input', {type: 'password', value: '', autocomplete: 'off', placeholder: 'if the server wants one', oninput: () => this.#show()});
		this.address = h('input', {type: 'text', value: location.origin, spellcheck: 'false', oninput: () => this.#show()});
		this.out = h('div', {class: 'connect-out'});
		this.el = h('div', {class: 'page connect-page'},
			h('div', {class: 'page-head'}, h('h1', {}, 'Connect a sender')),
			choices('Kind of sender', Object.entries(KINDS).map(([k, v]) => [k, v.name]), this.kind, (k) => {
				this.kind = k;
				this.#show();
			}),
			h('div', {class: 'connect-form'},
				field('Vehicle', this.id), field('Address of this server', this.address, 'as the sender reaches it'), field('Token', this.token)),
			this.out);
	}

	title() {
		return 'Connect';
	}

	enter() {
		this.#show();
	}

	leave() {}

	#show() {
		const kind = KINDS[this.kind];
		let origin = this.address.value.trim().replace(/\/+$/, ''), host = 'localhost';
		try {
			host = new URL(origin).hostname;
		} catch {
			fill(this.out, h('p', {class: 'message error', role: 'alert'}, 'The address is not a URL: write http://host:port.'));
			return;
		}
		const id = this.id.value.trim();
		if (!id || /[/+#]/.test(id)) {
			fill(this.out, h('p', {class: 'message error', role: 'alert'}, 'A vehicle’s name is not empty and has no /, + or #.'));
			return;
		}
		const made = kind.make({origin, host, id, token: this.token.value});
		const local = /^(localhost|127\.|\[?::1)/.test(host);
		fill(this.out,
			h('section', {class: 'box connect-box'},
				h('div', {}, h('h2', {}, kind.name), h('p', {class: 'hint'}, kind.about),
					local && h('p', {class: 'message note'}, 'This address only works on this machine. Set http.listen and give the address that others reach.'),
					made.steps.map((s) => (typeof s === 'string' ? h('p', {}, s) : code(s.code)))),
				made.qr && h('figure', {class: 'qr'}, h('img', {src: `/v1/qr?text=${encodeURIComponent(made.qr)}`, alt: `QR code that sets up ${kind.name}`, width: 240, height: 240}),
					h('figcaption', {}, 'Scan it with the app or the camera.'))));
	}
}
