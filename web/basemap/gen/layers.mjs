// The base map's layers as GeoJSON, each with the zoom range in which its tiles carry it.
import {feature, mesh, merge} from 'topojson-client';
import {unwrap} from './unwrap.mjs';

export const MAX_ZOOM = 6; // beyond it the browser enlarges these tiles

export function layers({world, us, regions, cities}) {
	const inhabited = world.objects.countries.geometries.filter((g) => g.properties.name !== 'Antarctica'); // 300 kB of coast
	const line = (geometry, properties = {}) => ({type: 'Feature', geometry, properties});
	const interior = (topo, object) => mesh(topo, object, (a, b) => a !== b);

	// First-level divisions outside the United States, where the source has them: Canada, Australia, Brazil.
	const divisions = [['north-america', 'CAN'], ['asia', 'AUS'], ['south-america', 'BRA']].map(([region, country]) => {
		const topo = regions[region];
		const geometries = topo.objects.subunits.geometries.filter((g) => g.properties.gu === country);
		return {topo, country, object: {type: 'GeometryCollection', geometries}};
	});
	const stateLabels = feature(us, us.objects.states).features
		.filter((f) => !TERRITORIES.has(f.properties.name))
		.map((f) => label(f, f.properties.name, 'state'));
	for (const d of divisions) {
		for (const f of feature(d.topo, d.object).features) {
			const name = NAMES[d.country][f.id];
			if (name) stateLabels.push(label(f, name, 'state'));
		}
	}
	const countryLabels = feature(world, world.objects.countries).features
		.filter((f) => f.properties.name)
		.map((f) => label(f, COUNTRY_NAMES[f.properties.name] ?? f.properties.name, 'country'));

	return [
		{name: 'land', from: 0, tolerance: 3, features: [line(unwrap(merge(world, inhabited)))]},
		{name: 'lake', from: 1, tolerance: 3, features: water(regions, 'lakes')},
		{name: 'river', from: 3, tolerance: 3, features: water(regions, 'rivers')},
		{name: 'border', from: 0, tolerance: 2, features: [line(unwrap(interior(world, world.objects.countries)))]},
		{name: 'state', from: 3, tolerance: 2, features: [
			line(interior(us, us.objects.states)),
			...divisions.map((d) => line(interior(d.topo, d.object))),
		]},
		{name: 'county', from: 5, tolerance: 3, features: [
			line(mesh(us, us.objects.counties, (a, b) => a !== b && a.id.slice(0, 2) === b.id.slice(0, 2))),
		]},
		{name: 'area', from: 0, tolerance: 0, features: [...countryLabels, ...stateLabels]},
		{name: 'city', from: 2, tolerance: 0, features: places(cities), keep: (z, p) => p.p >= CITY_FLOOR[z]},
	];
}

// CITY_FLOOR is the smallest population that a zoom's tiles carry, as round(10·log10(population)).
const CITY_FLOOR = [99, 99, 66, 61, 57, 50, 0];

function places(cities) {
	// Sections of cities, historical and destroyed places are not where anybody drives to.
	const skip = new Set(['PPLX', 'PPLH', 'PPLQ', 'PPLW', 'PPLCH']);
	const seen = new Set();
	return cities
		.filter((c) => !skip.has(c.featureCode) && c.population >= (NEAR.has(c.country) ? 5000 : 15000))
		.sort((a, b) => b.population - a.population || a.cityId - b.cityId)
		.filter((c) => { // one label where a town and its administrative seat are listed twice
			const [x, y] = c.loc.coordinates;
			const key = `${c.name}/${Math.round(x * 4)}/${Math.round(y * 4)}`;
			return !seen.has(key) && seen.add(key);
		})
		.map((c) => ({
			type: 'Feature',
			geometry: c.loc,
			properties: {n: c.name, p: Math.round(10 * Math.log10(c.population)), ...(c.featureCode === 'PPLC' && {c: 1})},
		}));
}

// water takes each lake or river from the region whose copy is drawn most finely.
function water(regions, object) {
	const at = (x, y) => (x < -32 ? (y < 9 ? 'south-america' : 'north-america') : x >= 59 || y < -40 ? 'asia' : y < 8 ? 'africa' : 'europe');
	const out = [];
	for (const [region, topo] of Object.entries(regions)) {
		for (const f of feature(topo, topo.objects[object]).features) {
			const [x0, y0, x1, y1] = bounds(f.geometry);
			if (at((x0 + x1) / 2, (y0 + y1) / 2) === region) out.push({type: 'Feature', geometry: f.geometry, properties: {}});
		}
	}
	return out;
}

// label is a point inside the largest polygon of a feature, with a rank by its size: 0 is the largest.
function label(f, name, kind) {
	let best = null, area = 0;
	const polygons = f.geometry.type === 'MultiPolygon' ? unwrap(f.geometry).coordinates : [unwrap(f.geometry).coordinates];
	for (const p of polygons) {
		const a = Math.abs(ringArea(p[0]));
		if (a >= area) [best, area] = [p, a];
	}
	const at = LABEL_AT[name] ?? inside(best);
	const r = area > 400 ? 0 : area > 90 ? 1 : area > 25 ? 2 : area > 8 ? 3 : area > 1 ? 4 : 5;
	return {type: 'Feature', geometry: {type: 'Point', coordinates: at}, properties: {n: name, k: kind, r}};
}

// inside finds a visual centre: of a grid over the polygon, the point that is furthest from its edges.
function inside(polygon) {
	const [x0, y0, x1, y1] = bounds({coordinates: polygon});
	let best = [(x0 + x1) / 2, (y0 + y1) / 2], far = -Infinity;
	const ring = polygon[0].filter((_, i) => polygon[0].length < 400 || i % Math.ceil(polygon[0].length / 400) === 0);
	for (let i = 1; i < 24; i++) {
		for (let j = 1; j < 24; j++) {
			const p = [x0 + ((x1 - x0) * i) / 24, y0 + ((y1 - y0) * j) / 24];
			if (!contains(polygon[0], p)) continue;
			let d = Infinity; // labels are wide: distance across counts less than distance up and down
			for (const q of ring) d = Math.min(d, ((q[0] - p[0]) * 0.6) ** 2 + (q[1] - p[1]) ** 2);
			if (d > far) [best, far] = [p, d];
		}
	}
	return best.map((v) => Math.round(v * 1e3) / 1e3);
}

function contains(ring, [x, y]) {
	let odd = false;
	for (let i = 0, j = ring.length - 1; i < ring.length; j = i++) {
		const [xi, yi] = ring[i], [xj, yj] = ring[j];
		if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) odd = !odd;
	}
	return odd;
}

function ringArea(ring) {
	let sum = 0;
	for (let i = 0, j = ring.length - 1; i < ring.length; j = i++) {
		sum += (ring[j][0] + ring[i][0]) * (ring[j][1] - ring[i][1]);
	}
	return sum / 2;
}

function bounds(geometry) {
	const b = [Infinity, Infinity, -Infinity, -Infinity];
	const walk = (c) => {
		if (typeof c[0] !== 'number') return c.forEach(walk);
		b[0] = Math.min(b[0], c[0]); b[1] = Math.min(b[1], c[1]);
		b[2] = Math.max(b[2], c[0]); b[3] = Math.max(b[3], c[1]);
	};
	walk(geometry.coordinates);
	return b;
}

const NEAR = new Set(['US', 'CA']); // sparsely settled: a small town is a landmark
const LABEL_AT = {'United States': [-98.5, 39.8], Russia: [95, 62], Canada: [-105, 58], Norway: [9, 61.2], France: [2.4, 46.7]};
const TERRITORIES = new Set(['American Samoa', 'Guam', 'Commonwealth of the Northern Mariana Islands', 'United States Virgin Islands', 'Puerto Rico']);
const COUNTRY_NAMES = {
	'United States of America': 'United States', 'Dem. Rep. Congo': 'DR Congo', 'Central African Rep.': 'Central African Republic',
	'Dominican Rep.': 'Dominican Republic', 'Bosnia and Herz.': 'Bosnia and Herzegovina', 'Eq. Guinea': 'Equatorial Guinea',
	'S. Sudan': 'South Sudan', 'W. Sahara': 'Western Sahara', 'Czech Rep.': 'Czechia', 'Falkland Is.': 'Falkland Islands',
	'Solomon Is.': 'Solomon Islands',
};
const NAMES = {
	CAN: {
		AB: 'Alberta', BC: 'British Columbia', MB: 'Manitoba', NB: 'New Brunswick', NL: 'Newfoundland and Labrador',
		NT: 'Northwest Territories', NS: 'Nova Scotia', NU: 'Nunavut', ON: 'Ontario', PE: 'Prince Edward Island',
		QC: 'Québec', SK: 'Saskatchewan', YT: 'Yukon',
	},
	AUS: {
		WA: 'Western Australia', NT: 'Northern Territory', SA: 'South Australia', QL: 'Queensland', QLD: 'Queensland',
		TS: 'Tasmania', TAS: 'Tasmania', VI: 'Victoria', VIC: 'Victoria', NS: 'New South Wales', NSW: 'New South Wales',
	},
	BRA: {
		AC: 'Acre', AL: 'Alagoas', AP: 'Amapá', AM: 'Amazonas', BA: 'Bahia', CE: 'Ceará', ES: 'Espírito Santo', GO: 'Goiás',
		MA: 'Maranhão', MT: 'Mato Grosso', MS: 'Mato Grosso do Sul', MG: 'Minas Gerais', PA: 'Pará', PB: 'Paraíba',
		PR: 'Paraná', PE: 'Pernambuco', PI: 'Piauí', RJ: 'Rio de Janeiro', RN: 'Rio Grande do Norte',
		RS: 'Rio Grande do Sul', RO: 'Rondônia', RR: 'Roraima', SC: 'Santa Catarina', SP: 'São Paulo', SE: 'Sergipe',
		TO: 'Tocantins',
	},
};
