// The plain map for browsers without WebGL: outlines and dots on a 2D canvas, with the calls of LibreMap and of Overlay.

import {h, frameOnce} from '../dom.js';
import {color} from '../theme.js';
import * as merc from './mercator.js';
import {radiusAt} from './overlay.js';

export class FlatMap {
	constructor(el, fleet, config) {
		this.el = el;
		this.fleet = fleet;
		this.canvas = h('canvas', {class: 'flat', tabindex: 0, role: 'application'});
		el.append(this.canvas, h('div', {class: 'flat-credit'}, config.basemap.attribution));
		this.view = {lon: -96, lat: 39, zoom: 3};
		this.shown = new Uint32Array(0);
		this.marked = {hovered: -1, selected: -1};
		this.dim = 1;
		this.lines = {land: [], borders: [], states: []};
		this.wake = frameOnce(() => this.draw());
		this.#gestures();
		this.#load();
	}

	async #load() {
		const res = await fetch('/basemap/outline.json');
		if (!res.ok) return; // dots on water are still a map
		const data = await res.json();
		for (const kind of Object.keys(this.lines)) this.lines[kind] = data[kind].map(unpack);
		this.wake();
	}

	camera() {
		return this.view;
	}
	surface() {
		return this.canvas;
	}
	moved() {
		this.wake();
	}
	show(indexes) {
		this.shown = indexes;
		this.wake();
	}
	mark(kind, i) {
		this.marked[kind] = i;
		this.wake();
	}
	resize() {
		this.wake();
	}
	async theme() {
		this.wake();
	}
	trail(points) {
		this.path = points;
		this.wake();
	}
	trailMark(p) {
		this.dot = p;
		this.wake();
	}
	remove() {
		this.canvas.remove();
	}

	zoomBy(d, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
		const at = this.#unproject(x, y);
		this.view.zoom = Math.max(1, Math.min(16, this.view.zoom + d));
		const now = this.#unproject(x, y);
		this.#shift(at[0] - now[0], at[1] - now[1]);
	}

	go(lon, lat, zoom = this.view.zoom) {
		this.view = {lon, lat, zoom};
		this.wake();
	}

	fit([w, s, e, n]) {
		const dx = Math.max(1e-6, merc.x(e) - merc.x(w)), dy = Math.max(1e-6, merc.y(s) - merc.y(n));
		const room = Math.min(this.canvas.clientWidth / dx, this.canvas.clientHeight / dy) * 0.85;
		this.go((w + e) / 2, merc.lat((merc.y(s) + merc.y(n)) / 2), Math.max(1, Math.min(13, Math.log2(room / 512))));
	}

	#unproject(x, y) {
		const size = merc.worldSize(this.view.zoom);
		return [
			merc.x(this.view.lon) + (x - this.canvas.clientWidth / 2) / size,
			merc.y(this.view.lat) + (y - this.canvas.clientHeight / 2) / size,
		];
	}

	#shift(dx, dy) {
		const y = Math.max(0.02, Math.min(0.98, merc.y(this.view.lat) + dy));
		this.view.lon = ((((merc.x(this.view.lon) + dx) % 1) + 1) % 1) * 360 - 180;
		this.view.lat = merc.lat(y);
		this.wake();
		this.onmove?.();
	}

	placeOf(i) {
		return this.#project(this.fleet.lon[i], this.fleet.lat[i]);
	}

	#project(lon, lat) {
		const size = merc.worldSize(this.view.zoom);
		let dx = merc.x(lon) - merc.x(this.view.lon);
		dx -= Math.round(dx);
		return [dx * size + this.canvas.clientWidth / 2, (merc.y(lat) - merc.y(this.view.lat)) * size + this.canvas.clientHeight / 2];
	}

	pick(px, py, reach) {
		let best = -1, near = Math.max(reach, radiusAt(this.view.zoom) + 3) ** 2;
		for (const i of this.shown) {
			if (!this.fleet.placed[i]) continue;
			const [x, y] = this.placeOf(i);
			const d = (x - px) ** 2 + (y - py) ** 2;
			if (d < near) [best, near] = [i, d];
		}
		return best;
	}

	draw() {
		const dpr = window.devicePixelRatio || 1, w = this.canvas.clientWidth, hh = this.canvas.clientHeight;
		if (!w) return;
		if (this.canvas.width !== Math.round(w * dpr) || this.canvas.height !== Math.round(hh * dpr)) {
			this.canvas.width = Math.round(w * dpr);
			this.canvas.height = Math.round(hh * dpr);
		}
		const g = this.canvas.getContext('2d');
		g.setTransform(dpr, 0, 0, dpr, 0, 0);
		g.fillStyle = color('--flat-water');
		g.fillRect(0, 0, w, hh);
		this.#lines(g, this.lines.land, color('--flat-land'), color('--flat-line'));
		this.#lines(g, this.lines.borders, null, color('--flat-line'));
		if (this.view.zoom > 3) this.#lines(g, this.lines.states, null, color('--flat-faint'));
		if (this.path?.length) {
			g.strokeStyle = color('--accent');
			g.lineWidth = 3;
			g.beginPath();
			this.path.forEach(([, lat, lon], i) => g[i ? 'lineTo' : 'moveTo'](...this.#project(lon, lat)));
			g.stroke();
		}
		const r = radiusAt(this.view.zoom);
		const states = ['--online', '--stale', '--offline'].map(color), severities = [null, '--info', '--warning', '--critical'].map((c) => c && color(c));
		for (let k = this.shown.length - 1; k >= 0; k--) {
			const i = this.shown[k];
			if (!this.fleet.placed[i]) continue;
			g.globalAlpha = i === this.marked.selected ? 1 : this.dim;
			const [x, y] = this.placeOf(i);
			if (x < -20 || y < -20 || x > w + 20 || y > hh + 20) continue;
			g.fillStyle = severities[this.fleet.severity[i]] ?? states[this.fleet.state[i]];
			g.beginPath();
			g.arc(x, y, r, 0, 7);
			g.fill();
		}
		g.globalAlpha = 1;
		g.lineWidth = 2;
		g.strokeStyle = color('--ink');
		for (const i of [this.marked.hovered, this.marked.selected]) {
			if (i < 0 || !this.fleet.placed[i]) continue;
			g.beginPath();
			g.arc(...this.placeOf(i), r + 5, 0, 7);
			g.stroke();
		}
		if (this.dot) {
			g.fillStyle = color('--accent');
			g.beginPath();
			g.arc(...this.#project(this.dot[2], this.dot[1]), 6, 0, 7);
			g.fill();
		}
	}

	#lines(g, lines, fillStyle, strokeStyle) {
		const size = merc.worldSize(this.view.zoom), w = this.canvas.clientWidth, hh = this.canvas.clientHeight;
		const cx = merc.x(this.view.lon), cy = merc.y(this.view.lat);
		for (const turn of [-1, 0, 1]) { // the neighbouring worlds
			g.beginPath();
			for (const l of lines) {
				for (let i = 0; i < l.length; i += 2) {
					g[i ? 'lineTo' : 'moveTo']((l[i] + turn - cx) * size + w / 2, (l[i + 1] - cy) * size + hh / 2);
				}
			}
			if (fillStyle) {
				g.fillStyle = fillStyle;
				g.fill('evenodd');
			}
			g.strokeStyle = strokeStyle;
			g.lineWidth = 0.8;
			g.stroke();
		}
	}

	#gestures() {
		const c = this.canvas, held = new Map();
		let apart = 0;
		c.addEventListener('pointerdown', (e) => {
			held.set(e.pointerId, e);
			c.setPointerCapture(e.pointerId);
			apart = 0;
		});
		c.addEventListener('pointermove', (e) => {
			const before = held.get(e.pointerId);
			if (!before) return;
			held.set(e.pointerId, e);
			const size = merc.worldSize(this.view.zoom);
			this.#shift((before.clientX - e.clientX) / size / held.size, (before.clientY - e.clientY) / size / held.size);
			if (held.size === 2) {
				const [a, b] = [...held.values()];
				const d = Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
				const r = c.getBoundingClientRect();
				if (apart) this.zoomBy(Math.log2(d / apart), (a.clientX + b.clientX) / 2 - r.left, (a.clientY + b.clientY) / 2 - r.top);
				apart = d;
			}
		});
		for (const end of ['pointerup', 'pointercancel']) c.addEventListener(end, (e) => held.delete(e.pointerId));
		c.addEventListener('wheel', (e) => {
			e.preventDefault();
			const r = c.getBoundingClientRect();
			this.zoomBy(Math.max(-1, Math.min(1, -e.deltaY / 240)), e.clientX - r.left, e.clientY - r.top);
		}, {passive: false});
		c.addEventListener('keydown', (e) => {
			const size = merc.worldSize(this.view.zoom), d = 80 / size;
			const move = {ArrowLeft: [-d, 0], ArrowRight: [d, 0], ArrowUp: [0, -d], ArrowDown: [0, d]}[e.key];
			if (move) this.#shift(...move);
			else if (e.key === '+' || e.key === '=') this.zoomBy(1);
			else if (e.key === '-') this.zoomBy(-1);
			else return;
			e.preventDefault();
		});
	}
}

// unpack turns differences in hundredths of a degree into flat Mercator places.
function unpack(deltas) {
	const out = new Float32Array(deltas.length);
	let x = 0, y = 0;
	for (let i = 0; i < deltas.length; i += 2) {
		x += deltas[i];
		y += deltas[i + 1];
		out[i] = merc.x(x / 100);
		out[i + 1] = merc.y(y / 100);
	}
	return out;
}
