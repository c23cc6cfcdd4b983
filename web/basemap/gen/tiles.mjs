// The tile archive. Its bytes, all numbers little endian:
//
//   "MPT1"  u32 count  count × { u32 z<<24 | x<<12 | y, u32 offset, u32 length }  blobs
//
// sorted by the first number; offset counts from the start of the file. A blob is one Mapbox vector tile, gzipped. Tiles
// with the same content share a blob; a tile that is not listed is empty.
import {createRequire} from 'node:module';
import {createHash} from 'node:crypto';
import {gzipSync} from 'node:zlib';
import * as vt from 'geojson-vt';
import {MAX_ZOOM} from './layers.mjs';

const EXTENT = 2048; // 300 m at the last zoom: finer than the sources are true
const require = createRequire(import.meta.url);
const vtpbf = require('vt-pbf');
const GeoJSONVT = vt.GeoJSONVT ?? vt.default;
const make = (data, options) => (GeoJSONVT.prototype?.getTile ? new GeoJSONVT(data, options) : GeoJSONVT(data, options));

export function tileArchive(layers) {
	const indexes = layers.map((l) => ({
		...l,
		// Points need no buffer: a label is placed once, by the tile that holds it. One zoom more than is kept, because the
		// last one is not simplified.
		index: make({type: 'FeatureCollection', features: l.features}, {
			maxZoom: MAX_ZOOM + 1, indexMaxZoom: MAX_ZOOM, indexMaxPoints: 0, extent: EXTENT, tolerance: l.tolerance,
			buffer: l.name === 'area' || l.name === 'city' ? 0 : 80,
		}),
	}));
	const entries = [], blobs = new Map(), byZoom = [];
	for (let z = 0; z <= MAX_ZOOM; z++) {
		byZoom[z] = 0;
		for (let x = 0; x < 1 << z; x++) {
			for (let y = 0; y < 1 << z; y++) {
				const tile = {};
				for (const l of indexes) {
					if (z < l.from) continue;
					const t = l.index.getTile(z, x, y);
					const features = t ? t.features.filter((f) => !l.keep || l.keep(z, f.tags)) : [];
					if (features.length) tile[l.name] = {features};
				}
				if (Object.keys(tile).length === 0) continue;
				const raw = Buffer.from(vtpbf.fromGeojsonVt(tile, {version: 2, extent: EXTENT}));
				const key = createHash('sha256').update(raw).digest('hex');
				if (!blobs.has(key)) {
					const data = gzipSync(raw, {level: 9});
					data[9] = 255; // the header's "made on" byte differs between systems
					blobs.set(key, {data, offset: 0});
					byZoom[z] += data.length;
				}
				entries.push({id: z * 2 ** 24 + x * 2 ** 12 + y, blob: blobs.get(key)});
			}
		}
	}
	entries.sort((a, b) => a.id - b.id);
	const head = Buffer.alloc(8 + entries.length * 12);
	head.write('MPT1');
	head.writeUInt32LE(entries.length, 4);
	let end = head.length;
	for (const b of blobs.values()) {
		b.offset = end;
		end += b.data.length;
	}
	entries.forEach((e, i) => {
		head.writeUInt32LE(e.id, 8 + i * 12);
		head.writeUInt32LE(e.blob.offset, 12 + i * 12);
		head.writeUInt32LE(e.blob.data.length, 16 + i * 12);
	});
	return {bytes: Buffer.concat([head, ...[...blobs.values()].map((b) => b.data)]), tiles: entries.length, blobs: blobs.size, byZoom};
}
