// A reader of PMTiles v3 archives over HTTP ranges, as far as a map needs it: header, directories, tiles.
// https://github.com/protomaps/PMTiles/blob/main/spec/v3/spec.md

const HEAD = 16_384; // header and root directory lie in it

export class PMTiles {
	constructor(url) {
		this.url = url;
		this.dirs = new Map(); // by offset; few: leaf directories are large
	}

	open() {
		this.opened ??= this.#open();
		return this.opened;
	}

	async #open() {
		const b = await this.#bytes(0, HEAD);
		const v = new DataView(b);
		if (new TextDecoder().decode(new Uint8Array(b, 0, 7)) !== 'PMTiles' || v.getUint8(7) !== 3) throw new Error('not a PMTiles v3 archive');
		const u64 = (at) => Number(v.getBigUint64(at, true));
		this.leaves = u64(40);
		this.data = u64(56);
		this.inner = v.getUint8(97); // compression of directories: 1 none, 2 gzip
		this.outer = v.getUint8(98); // of tiles
		const root = await unpack(b.slice(u64(8), u64(8) + u64(16)), this.inner);
		this.root = directory(new Uint8Array(root));
		return {raster: v.getUint8(99) !== 1, minzoom: v.getUint8(100), maxzoom: v.getUint8(101)};
	}

	async tile(z, x, y) {
		await this.open();
		const id = tileID(z, x, y);
		let dir = this.root;
		for (let depth = 0; depth < 4; depth++) {
			const e = find(dir, id);
			if (!e) return null;
			if (e.run > 0) {
				if (id >= e.id + e.run) return null;
				return unpack(await this.#bytes(this.data + e.offset, e.length), this.outer);
			}
			dir = await this.#leaf(e);
		}
		return null;
	}

	#leaf(e) {
		if (!this.dirs.has(e.offset)) {
			if (this.dirs.size > 64) this.dirs.clear();
			const load = async () => directory(new Uint8Array(await unpack(await this.#bytes(this.leaves + e.offset, e.length), this.inner)));
			const p = load();
			p.catch(() => this.dirs.delete(e.offset));
			this.dirs.set(e.offset, p);
		}
		return this.dirs.get(e.offset);
	}

	async #bytes(offset, length) {
		const res = await fetch(this.url, {headers: {Range: `bytes=${offset}-${offset + length - 1}`}});
		if (res.status !== 206 && !(res.ok && offset === 0)) throw new Error(`${this.url} answers ${res.status}; byte ranges are needed`);
		const b = await res.arrayBuffer();
		return res.status === 206 ? b : b.slice(0, length);
	}
}

async function unpack(buffer, compression) {
	if (compression <= 1) return buffer;
	const name = {2: 'gzip'}[compression];
	if (!name) throw new Error('PMTiles: only gzip is understood');
	return new Response(new Blob([buffer]).stream().pipeThrough(new DecompressionStream(name))).arrayBuffer();
}

function directory(b) {
	let at = 0;
	const varint = () => {
		let v = 0, mul = 1;
		for (;;) {
			const c = b[at++];
			v += (c & 127) * mul; // not shifts: offsets pass 32 bits
			if (c < 128) return v;
			mul *= 128;
		}
	};
	const n = varint(), out = Array.from({length: n}, () => ({}));
	let id = 0;
	for (const e of out) e.id = id += varint();
	for (const e of out) e.run = varint();
	for (const e of out) e.length = varint();
	out.forEach((e, i) => {
		const v = varint();
		e.offset = v === 0 && i > 0 ? out[i - 1].offset + out[i - 1].length : v - 1;
	});
	return out;
}

// find returns the last entry at or before an id.
function find(dir, id) {
	let lo = 0, hi = dir.length - 1;
	while (lo <= hi) {
		const mid = (lo + hi) >> 1;
		if (dir[mid].id <= id) lo = mid + 1;
		else hi = mid - 1;
	}
	return dir[hi];
}

// tileID counts tiles along a Hilbert curve, zoom after zoom.
export function tileID(z, x, y) {
	let id = (4 ** z - 1) / 3;
	for (let s = 2 ** (z - 1); s >= 1; s /= 2) {
		const rx = Math.floor(x / s) % 2, ry = Math.floor(y / s) % 2;
		id += s * s * ((3 * rx) ^ ry);
		if (ry === 0) {
			if (rx === 1) [x, y] = [s - 1 - (x % s), s - 1 - (y % s)];
			[x, y] = [y, x];
		}
	}
	return id;
}
