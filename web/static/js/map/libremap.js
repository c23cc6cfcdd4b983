// The base map drawn by MapLibre GL, behind the few calls that MapView makes; FlatMap answers the same ones.

import {reducedMotion} from '../dom.js';
import {baseStyle, cityDot} from './basestyle.js';
import {PMTiles} from './pmtiles.js';

const EMPTY = {type: 'FeatureCollection', features: []};
const GAP = 10 * 60e3; // ms between two points of a trail that are not joined

export class LibreMap {
	static async open(el, config, dark) {
		const gl = await import('../../vendor/maplibre/maplibre-gl.mjs');
		const m = new LibreMap();
		m.config = config;
		await m.#tiles(gl);
		m.gl = new gl.Map({
			container: el, style: m.#style(dark), center: [-96, 39], zoom: 3.2, minZoom: 1, maxZoom: 18,
			dragRotate: false, pitchWithRotate: false, touchPitch: false, rollEnabled: false, attributionControl: false,
			fadeDuration: reducedMotion() ? 0 : 150, localIdeographFontFamily: 'sans-serif', maxPitch: 0,
		});
		m.gl.touchZoomRotate.disableRotation();
		m.gl.keyboard.disableRotation();
		m.gl.addControl(new gl.AttributionControl({compact: true, customAttribution: config.tile_by ? escape(config.tile_by) : undefined}), 'bottom-right');
		m.gl.setMissingStyleImageResolver?.((id) => m.#image(id));
		m.gl.on('error', (e) => console.warn('map:', e.error?.message ?? e));
		m.gl.on('render', () => m.onrender?.());
		m.gl.on('move', () => m.onmove?.());
		await new Promise((resolve, reject) => {
			m.gl.once('style.load', resolve);
			m.gl.once('webglcontextcreationerror', () => reject(new Error('WebGL does not start')));
		});
		m.#dress();
		// On a small map the credits wait behind their button.
		if (el.clientWidth < 640) m.gl.once('idle', () => el.querySelector('.maplibregl-compact-show')?.classList.remove('maplibregl-compact-show'));
		return m;
	}

	// #tiles finds out what the operator's tiles are.
	async #tiles(gl) {
		const {tile_url: url, pmtiles_url: archive} = this.config;
		if (archive) {
			const reader = new PMTiles(archive);
			try {
				const head = await reader.open();
				gl.addProtocol('pmtiles', async (req) => {
					const [z, x, y] = req.url.replace('pmtiles://', '').split('/').map(Number);
					return {data: (await reader.tile(z, x, y)) ?? new ArrayBuffer(0)};
				});
				this.tiles = {...head, url: 'pmtiles://{z}/{x}/{y}'};
			} catch (err) {
				console.warn('map: PMTiles:', err.message); // the base map is still there
			}
		} else if (url) {
			this.tiles = {raster: !/\.(pbf|mvt)(\?|$)/.test(url), url: new URL(url, location.origin).href.replaceAll('%7B', '{').replaceAll('%7D', '}'), minzoom: 0, maxzoom: 19};
		}
	}

	#style(dark) {
		const style = baseStyle(dark, {...this.config, tiles: this.tiles});
		if (this.tiles) {
			const {raster, url, minzoom, maxzoom} = this.tiles;
			style.sources.tiles = {type: raster ? 'raster' : 'vector', tiles: [url], minzoom, maxzoom: raster ? maxzoom : Math.min(maxzoom, 15), ...(raster && {tileSize: 256})};
		}
		style.sources.trail = {type: 'geojson', data: this.trailData ?? EMPTY};
		style.sources.mark = {type: 'geojson', data: this.markData ?? EMPTY};
		const line = (id, paint) => ({id, type: 'line', source: 'trail', layout: {'line-cap': 'round', 'line-join': 'round'}, paint});
		style.layers.push(
			line('trail-edge', {'line-color': dark ? '#0d141b' : '#ffffff', 'line-width': 6, 'line-opacity': 0.8}),
			line('trail', {'line-color': dark ? '#5aa9ff' : '#1f6feb', 'line-width': 3}),
			{id: 'mark', type: 'circle', source: 'mark', paint: {'circle-radius': 6, 'circle-color': dark ? '#5aa9ff' : '#1f6feb', 'circle-stroke-color': dark ? '#0d141b' : '#ffffff', 'circle-stroke-width': 2}},
		);
		return style;
	}

	#image(id) {
		return id === 'city-dot' ? {data: cityDot(), sdf: true} : undefined;
	}

	#dress() {
		if (!this.gl.hasImage('city-dot')) this.gl.addImage('city-dot', cityDot(), {sdf: true, pixelRatio: 2});
	}

	surface() {
		return this.gl.getCanvas();
	}

	camera() {
		const c = this.gl.getCenter();
		return {lon: c.lng, lat: c.lat, zoom: this.gl.getZoom()};
	}

	zoomBy(d) {
		this.gl.easeTo({zoom: this.gl.getZoom() + d, duration: reducedMotion() ? 0 : 250});
	}

	go(lon, lat, zoom = this.gl.getZoom(), animate = true) {
		if (animate) this.gl.easeTo({center: [lon, lat], zoom, duration: 600});
		else this.gl.jumpTo({center: [lon, lat], zoom});
	}

	fit([w, s, e, n], animate) {
		const size = Math.min(this.gl.getContainer().clientWidth, this.gl.getContainer().clientHeight);
		this.gl.fitBounds([[w, s], [e, n]], {padding: Math.min(60, size / 8), maxZoom: 13, duration: animate ? 600 : 0});
	}

	// trail draws points [ms, lat, lon, speed]; empty: none. Where nothing was heard for a while there is no line.
	trail(points) {
		const parts = [];
		let part = [], before = 0;
		for (const [t, lat, lon] of points) {
			if (part.length && t - before > Math.max(GAP, points.step ?? 0)) {
				parts.push(part);
				part = [];
			}
			part.push([lon, lat]);
			before = t;
		}
		parts.push(part);
		this.trailData = {
			type: 'FeatureCollection',
			features: parts.filter((p) => p.length > 1).map((coordinates) => ({type: 'Feature', properties: {}, geometry: {type: 'LineString', coordinates}})),
		};
		this.gl.getSource('trail')?.setData(this.trailData);
		if (!points.length) this.trailMark(null);
	}

	trailMark(p) {
		this.markData = p ? {type: 'Feature', properties: {}, geometry: {type: 'Point', coordinates: [p[2], p[1]]}} : EMPTY;
		this.gl.getSource('mark')?.setData(this.markData);
	}

	resize() {
		this.gl.resize();
	}

	async theme(dark) {
		this.gl.setStyle(this.#style(dark), {diff: true});
		await new Promise((resolve) => this.gl.once('styledata', resolve));
		this.#dress();
	}

	remove() {
		this.gl?.remove();
	}
}

// escape: the attribution is put into the page as HTML by the map.
const escape = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
