// The base map's look, light and dark: calm, so that vehicles stand out. Labels are drawn with the system's own fonts, so no
// glyph server is needed.

const LIGHT = {
	water: '#d9e4ea', land: '#f6f5f1', coast: '#c3d1d9', river: '#cbdae2', border: '#a9b1b8', state: '#cdd0cf', county: '#e4e4df',
	city: '#4b5661', country: '#7c8791', region: '#a3a8a5', halo: '#f6f5f1', dot: '#8b949c',
};
const DARK = {
	water: '#0d141b', land: '#1a232c', coast: '#263440', river: '#14202a', border: '#4c5a67', state: '#303d49', county: '#222d37',
	city: '#a8b4bf', country: '#75828f', region: '#55626f', halo: '#1a232c', dot: '#5b6874',
};

const FONT = ['system-ui', 'Segoe UI', 'Roboto', 'Helvetica Neue', 'Arial', 'sans-serif'];

// citiesFrom is the smallest city shown at a zoom, as 10·log10 of its population, which is what the tiles carry.
const citiesFrom = ['step', ['zoom'], 99, 2, 67, 3, 62, 4, 58, 5, 53, 6, 49, 7, 45, 8, 41, 9, 0];

export function baseStyle(dark, config) {
	const c = dark ? DARK : LIGHT;
	const zoomed = (...stops) => ['interpolate', ['exponential', 1.4], ['zoom'], ...stops];
	const text = (color, extra) => ({'text-color': color, 'text-halo-color': c.halo, 'text-halo-width': 1.4, ...extra});
	const line = (layer, color, width, extra = {}) => ({
		id: layer, type: 'line', source: 'base', 'source-layer': layer, layout: {'line-join': 'round'},
		paint: {'line-color': color, 'line-width': width}, ...extra,
	});
	return {
		version: 8,
		sources: {
			base: {
				type: 'vector', minzoom: 0, maxzoom: config.basemap.max_zoom, attribution: config.basemap.attribution,
				tiles: [`${location.origin}/basemap/{z}/{x}/{y}?v=${config.basemap.version}`],
			},
		},
		layers: [
			{id: 'water', type: 'background', paint: {'background-color': c.water}},
			{id: 'land', type: 'fill', source: 'base', 'source-layer': 'land', paint: {'fill-color': c.land}},
			line('land', c.coast, zoomed(1, 0.4, 8, 1.4), {id: 'coast'}),
			line('river', c.river, zoomed(3, 0.5, 8, 1.6), {maxzoom: 9.5}), // 1:50m: too coarse to follow closer
			{id: 'lake', type: 'fill', source: 'base', 'source-layer': 'lake', paint: {'fill-color': c.water, 'fill-outline-color': c.coast}},
			line('county', c.county, zoomed(5, 0.4, 10, 1.2), {minzoom: 5.5}),
			line('state', c.state, zoomed(3, 0.5, 9, 1.8)),
			line('border', c.border, zoomed(1, 0.4, 9, 2)),
			...overlays(config, dark),
			{
				id: 'region-name', type: 'symbol', source: 'base', 'source-layer': 'area', minzoom: 3.6, maxzoom: 8,
				filter: ['all', ['==', ['get', 'k'], 'state'], ['<=', ['get', 'r'], ['step', ['zoom'], 2, 4, 3, 5, 5]]],
				layout: {
					'text-field': ['get', 'n'], 'text-font': FONT, 'text-size': zoomed(4, 9.5, 7, 13), 'text-letter-spacing': 0.08,
					'text-transform': 'uppercase', 'text-max-width': 7, 'symbol-sort-key': ['+', 20, ['get', 'r']],
				},
				paint: text(c.region),
			},
			{
				id: 'country-name', type: 'symbol', source: 'base', 'source-layer': 'area', minzoom: 1.2, maxzoom: 7,
				filter: ['all', ['==', ['get', 'k'], 'country'], ['<=', ['get', 'r'], ['step', ['zoom'], 0, 2, 1, 3, 2, 4, 4, 5, 5]]],
				layout: {
					'text-field': ['get', 'n'], 'text-font': FONT, 'text-size': zoomed(1, 10, 5, 14), 'text-max-width': 7,
					'symbol-sort-key': ['get', 'r'],
				},
				paint: text(c.country),
			},
			{
				id: 'city', type: 'symbol', source: 'base', 'source-layer': 'city', minzoom: 2.5, filter: ['>=', ['get', 'p'], citiesFrom],
				layout: {
					'text-field': ['get', 'n'], 'text-font': FONT, 'text-max-width': 8,
					'text-size': ['interpolate', ['linear'], ['zoom'], 3, ['interpolate', ['linear'], ['get', 'p'], 50, 9.5, 70, 12.5],
						9, ['interpolate', ['linear'], ['get', 'p'], 37, 11, 50, 13.5, 65, 18]],
					'text-variable-anchor': ['left', 'right', 'top', 'bottom'], 'text-radial-offset': 0.45, 'text-justify': 'auto',
					'symbol-sort-key': ['-', 0, ['get', 'p']], 'icon-image': 'city-dot', 'icon-allow-overlap': true, 'icon-optional': true,
				},
				paint: text(c.city, {'icon-color': c.dot, 'icon-opacity': 0.9}),
			},
		],
	};
}

// overlays are the layers of the operator's own tiles, between the borders and the names.
function overlays(config, dark) {
	const c = dark ? DARK : LIGHT;
	if (config.tiles?.raster) {
		return [{id: 'tiles', type: 'raster', source: 'tiles', paint: dark ? {'raster-brightness-max': 0.72, 'raster-saturation': -0.3} : {}}];
	}
	if (!config.tiles) return [];
	// The layer names of the usual vector schemas; what a tile set does not have is drawn as nothing.
	const src = (id, type, layer, paint, extra = {}) => ({id: `tiles-${id}`, type, source: 'tiles', 'source-layer': layer, paint, ...extra});
	const width = ['interpolate', ['exponential', 1.5], ['zoom'], 6, 0.5, 12, 1.6, 16, 6];
	const road = dark ? '#33414e' : '#ffffff', edge = dark ? '#121a21' : '#d8d6cf', major = dark ? '#44566a' : '#f1dfb6';
	const layers = [];
	for (const l of ['earth', 'land']) layers.push(src(l, 'fill', l, {'fill-color': c.land}));
	layers.push(src('water', 'fill', 'water', {'fill-color': c.water}, {filter: ['==', ['geometry-type'], 'Polygon']}));
	for (const l of ['roads', 'transportation', 'streets']) {
		const big = ['in', ['coalesce', ['get', 'kind'], ['get', 'class'], ''], ['literal', ['highway', 'major_road', 'motorway', 'trunk', 'primary']]];
		layers.push(src(`${l}-edge`, 'line', l, {'line-color': edge, 'line-width': width, 'line-gap-width': 1}, {minzoom: 11}));
		layers.push(src(l, 'line', l, {'line-color': ['case', big, major, road], 'line-width': width}));
	}
	for (const l of ['buildings', 'building']) layers.push(src(l, 'fill', l, {'fill-color': edge, 'fill-opacity': 0.5}, {minzoom: 14}));
	return layers;
}

// cityDot is the image of a city's point, as a shape that the style colours.
export function cityDot() {
	const n = 12, c = document.createElement('canvas');
	c.width = c.height = n;
	const g = c.getContext('2d');
	g.arc(n / 2, n / 2, 4, 0, 2 * Math.PI);
	g.fill();
	return g.getImageData(0, 0, n, n);
}
