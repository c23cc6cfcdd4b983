// One vehicle: where it is and since when, its signals now, its last hours as charts with the trail on the map, its alerts.

import {get, query, vehiclePath} from '../api.js';
import {Chart} from '../chart.js';
import {fill, h, icon, setText} from '../dom.js';
import * as fmt from '../format.js';
import {alertCard, choices, fact, message, severityTag} from '../parts.js';
import {Commands} from '../commands.js';

const RANGES = [['1', '1 h'], ['6', '6 h'], ['24', '24 h'], ['168', '7 d']];
const HUES = {speed: '--accent', fuel: '--hue-fuel', engine_temp: '--hue-heat', cargo_temp: '--hue-cold', fuel_pressure: '--hue-press'};

export class VehiclePage {
	name = 'vehicle';
	map = true;

	constructor(app) {
		this.app = app;
		this.hours = 6;
		this.head = h('div', {class: 'vehicle-head'});
		this.now = h('div', {class: 'signals'});
		this.alerts = h('div', {class: 'alert-list'});
		this.charts = h('div', {class: 'charts'});
		this.commands = new Commands(app);
		this.range = choices('How far back', RANGES, String(this.hours), (v) => {
			this.hours = Number(v);
			this.#history();
		});
		this.el = h('div', {class: 'vehicle-panel'},
			h('a', {class: 'back', href: '/'}, icon('back'), 'All vehicles'), this.head,
			h('section', {'aria-labelledby': 'v-now'}, h('h2', {id: 'v-now'}, 'Now'), this.now),
			h('section', {'aria-labelledby': 'v-alerts'}, h('h2', {id: 'v-alerts'}, 'Recent alerts'), this.alerts),
			this.commands.el,
			h('section', {'aria-labelledby': 'v-hist'}, h('div', {class: 'section-head'}, h('h2', {id: 'v-hist'}, 'History'), this.range), this.charts));
		app.fleet.addEventListener('change', (e) => this.here && this.#moved(e.detail));
		app.live.addEventListener('alerts', () => this.here && this.#alerts());
		setInterval(() => this.here && this.v && this.#ages(), 1000);
	}

	title(id) {
		return id;
	}

	enter(id) {
		this.here = true;
		this.id = id;
		this.v = null;
		this.looked = false;
		this.points = null;
		this.stop?.abort();
		this.stop = new AbortController();
		fill(this.head, h('h1', {}, id));
		fill(this.now, message('Loading …'));
		fill(this.alerts, message('Loading …'));
		fill(this.charts, message('Loading …'));
		const map = this.app.map();
		map.cardOff = true;
		map.dim(true);
		map.trail([]);
		this.#onMap();
		this.#state();
		this.#alerts();
		this.#history();
		this.commands.enter(id);
		this.timer = setInterval(() => !document.hidden && this.#history(true), 60_000);
		this.el.parentElement?.scrollTo?.(0, 0);
	}

	leave() {
		this.here = false;
		this.stop?.abort();
		clearInterval(this.timer);
		clearTimeout(this.soon);
		this.commands.leave();
		const map = this.app.map();
		map.cardOff = false;
		map.dim(false);
		map.trail([]);
		map.select(map.selected);
	}

	// #onMap shows the vehicle among the others, and closely at first.
	#onMap() {
		const map = this.app.map(), f = this.app.fleet, i = f.index.get(this.id);
		map.show(f.select());
		if (i === undefined) return;
		map.select(i, {quiet: true});
		if (!this.looked && f.placed[i]) {
			this.looked = true;
			map.go(f.lon[i], f.lat[i], 9, false);
		}
	}

	#moved({indexes, whole}) {
		const i = this.app.fleet.index.get(this.id);
		this.#onMap();
		if (i === undefined || (!whole && !indexes.includes(i))) return;
		this.#lengthen(i);
		// Its signals come with its state: ask again, at most once a second.
		this.soon ??= setTimeout(() => {
			this.soon = null;
			if (this.here) this.#state();
		}, 1000);
	}

	async #state() {
		const id = this.id;
		try {
			const v = await get(vehiclePath(id), this.stop.signal);
			if (id !== this.id) return;
			this.v = v;
			this.#show();
		} catch (err) {
			if (err.name === 'AbortError' || id !== this.id) return;
			if (!this.v) {
				fill(this.head, h('h1', {}, id));
				fill(this.now, message(err.message, 'error'));
			}
		}
	}

	#show() {
		const v = this.v, now = this.app.now();
		this.heard = h('span', {});
		this.placed = h('span', {});
		this.times = [];
		fill(this.head,
			h('div', {class: 'vehicle-title'}, h('h1', {}, v.vehicle_id), h('span', {class: `tag ${v.connectivity}`}, v.connectivity), v.severity && severityTag(v.severity)),
			h('dl', {class: 'facts'},
				fact('Heard', this.heard),
				fact('Place', v.has_place ? h('span', {}, fmt.place(v.lat, v.lon), ' · ', this.placed) : 'none yet'),
				fact('Status', v.status || 'none sent'),
				fact('Readings', fmt.count(v.readings))));
		fill(this.now, v.signals.map((s) => {
			const age = h('span', {class: 'signal-age'});
			this.times.push([age, s.time]);
			return h('div', {class: 'signal'}, h('span', {class: 'signal-name', title: s.name}, fmt.signalName(s.name)), h('b', {}, fmt.value(s.value, s.unit)), age);
		}), !v.signals.length && message('It has sent no signals.'));
		this.#ages(now);
	}

	#ages(now = this.app.now()) {
		const v = this.v;
		setText(this.heard, `${fmt.age(v.arrival_time, now)} (${fmt.when(v.arrival_time, now)})`);
		if (v.has_place) setText(this.placed, fmt.age(v.place_time, now));
		for (const [el, t] of this.times) {
			const old = now - t > 120_000;
			setText(el, old ? fmt.age(t, now) : '');
			el.parentElement.classList.toggle('old', old);
		}
	}

	async #alerts() {
		const id = this.id;
		try {
			const {alerts} = await get(`/v1/alerts${query({vehicle: id, limit: 10})}`, this.stop.signal);
			if (id !== this.id) return;
			fill(this.alerts, alerts.map((a) => alertCard(a, this.app.now(), () => this.#alerts(), {vehicle: false})), !alerts.length && message('None.'));
		} catch (err) {
			if (err.name !== 'AbortError' && id === this.id) fill(this.alerts, message(err.message, err.status === 501 ? '' : 'error'));
		}
	}

	async #history(again = false) {
		const id = this.id, hours = this.hours, to = Math.round(this.app.now()), from = to - hours * 3600e3;
		if (!again) fill(this.charts, message('Loading …'));
		try {
			const [series, trail] = await Promise.all([
				get(vehiclePath(id) + '/history' + query({from, to, points: 300}), this.stop.signal),
				get(vehiclePath(id) + '/trail' + query({from, to, points: 1500}), this.stop.signal),
			]);
			if (id !== this.id || hours !== this.hours) return;
			this.points = Object.assign(trail.points, {step: trail.step * 3});
			this.app.map().trail(this.points);
			this.#charts(series);
			if (!again && this.points.length > 1) this.#fitTrail();
		} catch (err) {
			if (err.name === 'AbortError' || id !== this.id || again) return;
			fill(this.charts, message(err.message, err.status === 501 ? 'note' : 'error'));
		}
	}

	// #lengthen lets the trail follow the vehicle until the next look at history.
	#lengthen(i) {
		const f = this.app.fleet, last = this.points?.at(-1);
		if (!last || !f.placed[i] || f.seen[i] * 1000 <= last[0]) return;
		this.points.push([f.seen[i] * 1000, f.lat[i], f.lon[i], f.speed[i]]);
		this.app.map().trail(this.points);
	}

	#fitTrail() {
		const box = [Infinity, Infinity, -Infinity, -Infinity];
		for (const [, lat, lon] of this.points) {
			box[0] = Math.min(box[0], lon);
			box[1] = Math.min(box[1], lat);
			box[2] = Math.max(box[2], lon);
			box[3] = Math.max(box[3], lat);
		}
		this.looked = true;
		this.app.map().fit(box);
	}

	#charts({from, to, start, step, signals}) {
		const look = (ms) => {
			for (const c of made) c.look(ms);
			this.app.map().trailMark(ms === null ? null : nearest(this.points, ms));
		};
		const made = [];
		for (const s of signals) {
			const c = new Chart({title: fmt.signalName(s.name), unit: s.unit, cursor: look, hue: HUES[s.name] ?? '--accent'});
			c.show({from, to, start, step, points: s.points});
			made.push(c);
		}
		fill(this.charts, made.map((c) => c.el), !made.length && message('It has sent no signals to draw.'));
	}
}

// nearest is the trail's point at about a moment, if there is one within a few steps of it.
function nearest(points, ms) {
	let best = null;
	for (const p of points) if (!best || Math.abs(p[0] - ms) < Math.abs(best[0] - ms)) best = p;
	return best && Math.abs(best[0] - ms) < Math.max(60_000, points.step) ? best : null;
}
