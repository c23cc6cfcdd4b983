// The map on the page: the base map (MapLibre, or a plain drawing where WebGL is missing), the vehicles over it, a trail, and
// how one points at and picks vehicles. One map serves all pages.

import {fill, frameOnce, h, icon, reducedMotion, setText, toast} from '../dom.js';
import * as fmt from '../format.js';
import {SEVERITIES, STATES} from '../fleet.js';
import {isDark, onTheme} from '../theme.js';
import {FlatMap} from './flatmap.js';
import {LibreMap} from './libremap.js';
import {Overlay} from './overlay.js';

export class MapView extends EventTarget {
	constructor(host, fleet, config, clock) {
		super();
		this.fleet = fleet;
		this.config = config;
		this.clock = clock;
		this.selected = -1;
		this.shown = new Uint32Array(0);
		this.base = h('div', {class: 'map-base'});
		this.canvas = h('canvas', {class: 'map-vehicles', 'aria-hidden': 'true'});
		this.tip = h('div', {class: 'map-tip', hidden: true, 'aria-hidden': 'true'});
		this.card = h('div', {class: 'map-card', hidden: true, role: 'region', 'aria-label': 'Selected vehicle'});
		this.said = h('p', {class: 'sr-only', role: 'status', 'aria-live': 'polite'});
		const button = (name, label, fn) => h('button', {type: 'button', title: label, 'aria-label': label, onclick: fn}, icon(name));
		this.controls = h('div', {class: 'map-controls', role: 'group', 'aria-label': 'Map view'},
			button('plus', 'Zoom in', () => this.map?.zoomBy(1)),
			button('minus', 'Zoom out', () => this.map?.zoomBy(-1)),
			button('fit', 'Show all vehicles', () => this.fitAll()));
		host.append(this.base, this.canvas, this.controls, this.tip, this.card, this.said);
		this.host = host;
		this.ready = this.#start();
		fleet.addEventListener('change', (e) => this.#moved(e.detail));
		onTheme(() => this.#theme());
		new ResizeObserver(frameOnce(() => this.resize())).observe(host);
	}

	async #start() {
		const camera = () => this.map.camera();
		try {
			if (!hasWebGL()) throw new Error('this browser has no WebGL 2');
			this.map = await LibreMap.open(this.base, this.config, isDark());
			this.overlay = new Overlay(this.canvas, this.fleet, camera);
			if (!this.overlay.ok) throw new Error('this browser has no WebGL 2');
			this.map.onrender = () => this.overlay.draw();
		} catch (err) {
			this.map?.remove();
			this.canvas.hidden = true;
			fill(this.base);
			this.map = new FlatMap(this.base, this.fleet, this.config);
			this.overlay = this.map; // it draws the vehicles itself
			this.host.dataset.plain = 'true';
			toast(`The detailed map needs WebGL; this is a plain one (${err.message}).`);
		}
		this.overlay.dim = this.dimmed ?? 1;
		this.overlay.mark('selected', this.selected);
		this.host.dataset.ready = 'true';
		this.map.onmove = frameOnce(() => this.#follow());
		this.#point(this.map.surface());
		this.#moved({indexes: Uint32Array.from({length: this.fleet.size}, (_, i) => i).filter((i) => this.fleet.used[i]), whole: true});
		this.overlay.show(this.shown);
	}

	#moved({indexes, whole}) {
		if (!this.overlay) return;
		this.overlay.moved(indexes, whole);
		this.#place();
		this.#card();
	}

	// #place looks at the fleet once, as soon as there is a fleet and a map on the page, unless a page looks elsewhere.
	#place() {
		if (this.placedOnce || !this.fleet.size || !this.host.clientWidth) return;
		this.placedOnce = true;
		if (!this.held) this.fitAll(false);
	}

	// show says which vehicles are drawn, worst first.
	show(indexes) {
		this.shown = indexes;
		this.overlay?.show(indexes);
	}

	// dim fades all but the marked vehicles, or does not.
	dim(on) {
		this.dimmed = on ? 0.4 : 1;
		if (!this.overlay) return;
		this.overlay.dim = this.dimmed;
		this.overlay.wake();
	}

	// select marks a vehicle and tells about it; -1: none. look: move the map if it is out of sight.
	select(i, {look = false, quiet = false} = {}) {
		this.selected = i;
		this.overlay?.mark('selected', i);
		this.#card();
		if (i >= 0 && look && this.map && this.fleet.placed[i]) {
			const [x, y] = this.overlay.placeOf(i);
			const inset = 60, w = this.host.clientWidth, h_ = this.host.clientHeight;
			if (x < inset || y < inset || x > w - inset || y > h_ - inset - 100) this.map.go(this.fleet.lon[i], this.fleet.lat[i]);
		}
		if (!quiet) this.dispatchEvent(new CustomEvent('select', {detail: i}));
	}

	// go shows a place closely.
	async go(lon, lat, zoom, animate = true) {
		this.held = true;
		await this.ready;
		this.map.go(lon, lat, zoom, animate && !reducedMotion());
	}

	fitAll(animate = true) {
		const f = this.fleet, lons = [], lats = [];
		for (const i of this.shown.length ? this.shown : Uint32Array.from({length: f.size}, (_, k) => k)) {
			if (!f.used[i] || !f.placed[i]) continue;
			lons.push(f.lon[i]);
			lats.push(f.lat[i]);
		}
		if (!lons.length) return;
		this.fit(bounds(lons, lats), animate);
	}

	async fit(box, animate = true) {
		this.held = true;
		await this.ready;
		this.map.fit(box, animate && !reducedMotion());
	}

	async trail(points) {
		await this.ready;
		this.map.trail(points, isDark());
	}

	async trailMark(point) {
		await this.ready;
		this.map.trailMark(point);
	}

	resize() {
		if (!this.map || !this.host.clientWidth) return;
		this.map.resize();
		this.overlay.draw();
		this.#place();
	}

	async #theme() {
		await this.ready;
		await this.map.theme(isDark());
		this.overlay.theme?.();
		this.overlay.draw();
	}

	// #point wires mouse, touch and keys of the map's surface.
	#point(surface) {
		let at = null;
		const reach = (e) => (e.pointerType === 'touch' ? 24 : 10);
		const look = frameOnce(() => {
			if (!at) return;
			const i = this.overlay.pick(at.x, at.y, at.reach);
			this.overlay.mark('hovered', i);
			surface.style.cursor = i >= 0 ? 'pointer' : '';
			this.#tip(i);
		});
		const where = (e) => {
			const r = this.base.getBoundingClientRect();
			return {x: e.clientX - r.left, y: e.clientY - r.top, reach: reach(e)};
		};
		let down = null;
		surface.addEventListener('pointermove', (e) => {
			if (e.pointerType === 'touch' || e.buttons) return;
			at = where(e);
			look();
		});
		surface.addEventListener('pointerleave', () => {
			at = null;
			this.overlay.mark('hovered', -1);
			this.#tip(-1);
		});
		surface.addEventListener('pointerdown', (e) => (down = where(e)));
		surface.addEventListener('click', (e) => {
			const p = {...where(e), reach: down?.reach ?? 10};
			if (down && Math.hypot(p.x - down.x, p.y - down.y) > 5) return; // a drag
			this.select(this.overlay.pick(p.x, p.y, p.reach));
		});
		surface.addEventListener('dblclick', (e) => {
			const p = where(e);
			const i = this.overlay.pick(p.x, p.y, p.reach);
			if (i >= 0) this.dispatchEvent(new CustomEvent('open', {detail: i}));
		});
		surface.addEventListener('keydown', (e) => this.#key(e));
		surface.setAttribute('aria-label', 'Map of vehicles. Arrow keys move, plus and minus zoom, N and P step through the vehicles in view, Enter opens one.');
	}

	#key(e) {
		if (e.ctrlKey || e.metaKey || e.altKey) return;
		const step = {n: 1, p: -1}[e.key.toLowerCase()];
		if (step) this.#step(step);
		else if (e.key === 'Enter' && this.selected >= 0) this.dispatchEvent(new CustomEvent('open', {detail: this.selected}));
		else if (e.key === 'Escape' && this.selected >= 0) this.select(-1);
		else return;
		e.preventDefault();
	}

	// #step selects the next vehicle in view, from left to right.
	#step(by) {
		const w = this.host.clientWidth, h_ = this.host.clientHeight, inView = [];
		for (const i of this.shown) {
			if (!this.fleet.placed[i]) continue;
			const [x, y] = this.overlay.placeOf(i);
			if (x >= 0 && y >= 0 && x <= w && y <= h_) inView.push([x, i]);
		}
		if (!inView.length) return setText(this.said, 'No vehicle is in view.');
		inView.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
		const k = inView.findIndex(([, i]) => i === this.selected);
		const next = inView[(k + by + inView.length + (k < 0 && by < 0 ? 1 : 0)) % inView.length][1];
		this.select(next);
		setText(this.said, `${this.fleet.ids[next]}, ${this.#sentence(next)}`);
	}

	#sentence(i) {
		const f = this.fleet;
		const alert = f.severity[i] ? `, ${SEVERITIES[f.severity[i]]} alert` : '';
		const moving = f.state[i] === 0 ? fmt.speed(f.speed[i]) : STATES[f.state[i]];
		return `${moving}, heard ${fmt.age(f.seen[i] * 1000, this.clock())}${alert}`;
	}

	#tip(i) {
		this.tipped = i;
		this.tip.hidden = i < 0;
		if (i < 0) return;
		fill(this.tip, h('b', {}, this.fleet.ids[i]), h('span', {}, this.#sentence(i)));
		this.#placeTip();
	}

	#placeTip() {
		const [x, y] = this.overlay.placeOf(this.tipped);
		const left = Math.min(Math.max(8, x - this.tip.offsetWidth / 2), this.host.clientWidth - this.tip.offsetWidth - 8);
		const above = y - this.tip.offsetHeight - 16;
		this.tip.style.transform = `translate(${Math.round(left)}px, ${Math.round(above < 8 ? y + 18 : above)}px)`;
	}

	#follow() {
		if (!this.tip.hidden) this.#placeTip();
	}

	// #card is the selected vehicle in a few words, with the way to its page.
	#card() {
		const i = this.selected, f = this.fleet;
		this.card.hidden = i < 0 || !f.used[i] || this.cardOff;
		if (this.card.hidden) {
			this.cardFor = undefined;
			return;
		}
		if (this.cardFor !== f.ids[i]) {
			this.cardFor = f.ids[i];
			this.cardText = h('span', {class: 'map-card-text'});
			fill(this.card,
				h('div', {class: 'map-card-name'}, h('b', {}, f.ids[i]), this.cardText),
				h('button', {type: 'button', class: 'button primary', onclick: () => this.dispatchEvent(new CustomEvent('open', {detail: i}))}, 'Details'),
				h('button', {type: 'button', class: 'button icon-only', 'aria-label': 'Clear selection', onclick: () => this.select(-1)}, icon('close')));
		}
		setText(this.cardText, this.#sentence(i));
		this.card.dataset.severity = SEVERITIES[f.severity[i]];
	}
}

function bounds(lons, lats) {
	const b = [Infinity, Infinity, -Infinity, -Infinity];
	for (let i = 0; i < lons.length; i++) {
		b[0] = Math.min(b[0], lons[i]);
		b[1] = Math.min(b[1], lats[i]);
		b[2] = Math.max(b[2], lons[i]);
		b[3] = Math.max(b[3], lats[i]);
	}
	return b;
}

function hasWebGL() {
	if (new URLSearchParams(location.search).has('plain')) return false; // to see the plain map in any browser
	return document.createElement('canvas').getContext('webgl2') !== null;
}
