// The live feed: one EventSource, decoded into the fleet. It closes while nobody looks at the page and catches up after.

const POINT = 20; // bytes; web/frame.go states them
const SILENCE = 40_000; // ms without an event: the feed sends rates every few seconds, so it is dead

export class Live extends EventTarget {
	constructor(fleet) {
		super();
		this.fleet = fleet;
		this.state = 'connecting';
		this.alerts = null;
		this.stats = null;
		this.bytes = 0;
		document.addEventListener('visibilitychange', () => this.#visibility());
		setInterval(() => this.#watch(), 5000);
		this.open();
	}

	open() {
		this.source?.close();
		const es = (this.source = new EventSource('/v1/live'));
		this.heard = performance.now();
		es.onopen = () => this.#say('open');
		es.onerror = () => {
			this.#say('lost');
			if (es.readyState === EventSource.CLOSED) setTimeout(() => this.source === es && this.open(), 3000);
		};
		es.addEventListener('vehicles', (e) => {
			this.#hear(e);
			this.#vehicles(JSON.parse(e.data));
		});
		es.addEventListener('alerts', (e) => {
			this.#hear(e);
			this.alerts = JSON.parse(e.data);
			this.dispatchEvent(new Event('alerts'));
		});
		es.addEventListener('stats', (e) => {
			this.#hear(e);
			this.stats = JSON.parse(e.data);
			this.clock(this.stats.t);
			this.dispatchEvent(new Event('stats'));
		});
	}

	// now is the server's time: ages do not depend on this machine's clock.
	now() {
		return Date.now() + (this.offset ?? 0);
	}

	clock(t) {
		const o = t - Date.now();
		if (this.offset === undefined || Math.abs(o - this.offset) > 1500) this.offset = o;
	}

	#hear(e) {
		this.heard = performance.now();
		this.bytes += e.data.length;
		this.#say('open');
	}

	#say(state) {
		if (state === this.state) return;
		this.state = state;
		this.dispatchEvent(new Event('state'));
	}

	#vehicles(msg) {
		this.clock(msg.t);
		const raw = atob(msg.points);
		const bytes = new Uint8Array(raw.length);
		for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
		const view = new DataView(bytes.buffer);
		if (msg.whole) this.fleet.clear();
		for (const [index, id] of Object.entries(msg.names)) this.fleet.name(Number(index), id);
		const changed = new Uint32Array(bytes.length / POINT);
		for (let i = 0, at = 0; at + POINT <= bytes.length; i++, at += POINT) {
			const flags = view.getUint8(at + 19);
			const speed = view.getUint16(at + 16, true);
			changed[i] = view.getUint32(at, true);
			this.fleet.set(changed[i], {
				lat: view.getInt32(at + 4, true) / 1e7,
				lon: view.getInt32(at + 8, true) / 1e7,
				seen: view.getUint32(at + 12, true),
				speed: speed === 65535 ? -1 : speed / 10,
				heading: flags & 32 ? (view.getUint8(at + 18) * 360) / 256 : -1,
				state: flags & 3,
				severity: (flags >> 2) & 3,
				placed: (flags & 16) !== 0,
			});
		}
		this.fleet.changed(changed, msg.whole);
	}

	#visibility() {
		clearTimeout(this.leaving);
		if (document.hidden) {
			this.leaving = setTimeout(() => {
				this.source.close();
				this.#say('paused');
			}, 20_000);
		} else if (this.state === 'paused') {
			this.open();
		}
	}

	#watch() {
		if (this.state !== 'paused' && performance.now() - this.heard > SILENCE) {
			this.#say('lost');
			this.open();
		}
	}
}
