// What the page knows of every vehicle: columns by the feed's index. 50,000 vehicles are a few megabytes.

export const ONLINE = 0, STALE = 1, OFFLINE = 2, GONE = 3;
export const STATES = ['online', 'stale', 'offline', 'gone'];
export const SEVERITIES = ['', 'info', 'warning', 'critical'];

export class Fleet extends EventTarget {
	constructor() {
		super();
		this.clear();
	}

	clear() {
		this.size = 0; // indexes below it may be in use
		this.ids = [];
		this.lower = []; // ids in lower case, for searching
		this.index = new Map(); // by id
		this.used = new Uint8Array(0);
		this.lat = new Float64Array(0);
		this.lon = new Float64Array(0);
		this.speed = new Float32Array(0);
		this.heading = new Float32Array(0);
		this.seen = new Uint32Array(0);
		this.state = new Uint8Array(0);
		this.severity = new Uint8Array(0);
		this.placed = new Uint8Array(0);
		this.rank = null; // index → place in the order of ids; made when asked for
	}

	#grow(n) {
		const room = Math.max(256, n * 2);
		for (const k of ['used', 'lat', 'lon', 'speed', 'heading', 'seen', 'state', 'severity', 'placed']) {
			const bigger = new this[k].constructor(room);
			bigger.set(this[k]);
			this[k] = bigger;
		}
	}

	// name gives an index to a vehicle; one that had it before is gone.
	name(i, id) {
		if (i >= this.used.length) this.#grow(i + 1);
		if (this.ids[i] !== undefined && this.ids[i] !== id) this.index.delete(this.ids[i]);
		this.ids[i] = id;
		this.lower[i] = id.toLowerCase();
		this.index.set(id, i);
		this.size = Math.max(this.size, i + 1);
		this.rank = null;
	}

	set(i, p) {
		if (this.ids[i] === undefined) return; // never named: not ours to show
		this.used[i] = p.state === GONE ? 0 : 1;
		this.lat[i] = p.lat;
		this.lon[i] = p.lon;
		this.speed[i] = p.speed;
		this.heading[i] = p.heading;
		this.seen[i] = p.seen;
		this.state[i] = p.state;
		this.severity[i] = p.severity;
		this.placed[i] = p.placed ? 1 : 0;
	}

	changed(indexes, whole) {
		this.dispatchEvent(new CustomEvent('change', {detail: {indexes, whole}}));
	}

	counts() {
		const c = {total: 0, online: 0, stale: 0, offline: 0, alerting: 0};
		for (let i = 0; i < this.size; i++) {
			if (!this.used[i]) continue;
			c.total++;
			c[STATES[this.state[i]]]++;
			if (this.severity[i]) c.alerting++;
		}
		return c;
	}

	#ranks() {
		if (this.rank) return this.rank;
		const order = Array.from({length: this.size}, (_, i) => i).filter((i) => this.ids[i] !== undefined);
		const cmp = new Intl.Collator(undefined, {numeric: true}).compare;
		order.sort((a, b) => cmp(this.ids[a], this.ids[b]));
		this.rank = new Uint32Array(this.size);
		order.forEach((i, r) => (this.rank[i] = r));
		return this.rank;
	}

	// select returns the indexes that match, worst alert first, then online, stale, offline, each by id.
	select({text = '', filter = 'all'} = {}) {
		const want = text.trim().toLowerCase();
		const rank = this.#ranks();
		const keys = new Float64Array(this.size), byRank = new Uint32Array(this.size);
		let n = 0;
		for (let i = 0; i < this.size; i++) {
			if (!this.used[i]) continue;
			if (filter === 'alerting' ? !this.severity[i] : filter !== 'all' && STATES[this.state[i]] !== filter) continue;
			if (want && !this.lower[i].includes(want)) continue;
			byRank[rank[i]] = i;
			keys[n++] = ((3 - this.severity[i]) * 4 + this.state[i]) * 4294967296 + rank[i];
		}
		const sorted = keys.subarray(0, n).sort();
		const out = new Uint32Array(n);
		for (let k = 0; k < n; k++) out[k] = byRank[sorted[k] % 4294967296];
		return out;
	}
}
