// The list of vehicles: any number of rows, of which only those in sight exist. One tab stop; arrow keys choose.

import {frameOnce, h, setText} from './dom.js';
import * as fmt from './format.js';
import {SEVERITIES, STATES} from './fleet.js';

const ROW = 52; // px, as in map.css

export class VehicleList extends EventTarget {
	constructor(fleet, clock) {
		super();
		this.fleet = fleet;
		this.clock = clock;
		this.shown = new Uint32Array(0);
		this.active = -1; // index of the vehicle, not of the row
		this.rows = [];
		this.tall = h('div', {class: 'list-tall'});
		this.el = h('div', {class: 'list', role: 'listbox', tabindex: 0, 'aria-label': 'Vehicles'}, this.tall);
		this.empty = h('p', {class: 'list-empty', hidden: true}, 'No vehicle matches.');
		this.el.append(this.empty);
		this.draw = frameOnce(() => this.#draw());
		this.el.addEventListener('scroll', this.draw, {passive: true});
		this.el.addEventListener('keydown', (e) => this.#key(e));
		this.el.addEventListener('focus', () => this.active < 0 && this.shown.length && this.#pick(0));
		new ResizeObserver(this.draw).observe(this.el);
	}

	show(indexes, emptyText) {
		this.shown = indexes;
		this.tall.style.height = `${indexes.length * ROW}px`;
		this.empty.hidden = indexes.length > 0;
		setText(this.empty, emptyText);
		this.draw();
	}

	// select follows the map's selection.
	select(i, reveal = true) {
		this.active = i;
		const row = this.shown.indexOf(i);
		if (reveal && row >= 0) this.#reveal(row);
		this.draw();
	}

	#reveal(row) {
		const top = row * ROW, view = this.el.clientHeight;
		if (top < this.el.scrollTop) this.el.scrollTop = top;
		else if (top + ROW > this.el.scrollTop + view) this.el.scrollTop = top + ROW - view;
	}

	#pick(row) {
		row = Math.max(0, Math.min(this.shown.length - 1, row));
		this.active = this.shown[row];
		this.#reveal(row);
		this.draw();
		this.dispatchEvent(new CustomEvent('select', {detail: this.active}));
	}

	#key(e) {
		if (!this.shown.length || e.ctrlKey || e.metaKey || e.altKey) return;
		const row = this.shown.indexOf(this.active), page = Math.max(1, Math.floor(this.el.clientHeight / ROW) - 1);
		const to = {ArrowDown: row + 1, ArrowUp: row < 0 ? 0 : row - 1, Home: 0, End: this.shown.length - 1, PageDown: row + page, PageUp: row - page}[e.key];
		if (to !== undefined) this.#pick(to);
		else if (e.key === 'Enter' && this.active >= 0) this.dispatchEvent(new CustomEvent('open', {detail: this.active}));
		else return;
		e.preventDefault();
	}

	#draw() {
		const first = Math.max(0, Math.floor(this.el.scrollTop / ROW) - 2);
		const last = Math.min(this.shown.length, Math.ceil((this.el.scrollTop + this.el.clientHeight) / ROW) + 2);
		while (this.rows.length < last - first) this.rows.push(this.#row());
		let activeID = null;
		this.rows.forEach((r, k) => {
			const row = first + k;
			const hide = row >= last;
			if (r.el.hidden !== hide) r.el.hidden = hide;
			if (hide) return;
			this.#fill(r, row);
			if (r.vehicle === this.active) activeID = r.el.id;
		});
		if (activeID) this.el.setAttribute('aria-activedescendant', activeID);
		else this.el.removeAttribute('aria-activedescendant');
	}

	#row() {
		const r = {
			name: h('span', {class: 'row-name'}), about: h('span', {class: 'row-about'}),
			state: h('i', {class: 'row-state'}), speed: h('span', {class: 'row-speed'}),
		};
		r.el = h('div', {class: 'row', role: 'option', id: `row-${this.rows.length}`, onclick: () => {
			this.active = r.vehicle;
			this.draw();
			this.dispatchEvent(new CustomEvent('select', {detail: r.vehicle}));
		}, ondblclick: () => this.dispatchEvent(new CustomEvent('open', {detail: r.vehicle}))}, r.state, r.name, r.speed, r.about);
		this.tall.append(r.el);
		return r;
	}

	#fill(r, row) {
		const f = this.fleet, i = (r.vehicle = this.shown[row]);
		r.el.style.transform = `translateY(${row * ROW}px)`;
		r.el.setAttribute('aria-posinset', row + 1);
		r.el.setAttribute('aria-setsize', this.shown.length);
		r.el.setAttribute('aria-selected', i === this.active);
		const state = STATES[f.state[i]], severity = SEVERITIES[f.severity[i]];
		if (r.state.className !== `row-state ${state} ${severity}`) r.state.className = `row-state ${state} ${severity}`;
		setText(r.name, f.ids[i]);
		setText(r.speed, f.state[i] === 0 ? (f.speed[i] >= 0 ? fmt.speed(f.speed[i]) : '') : state);
		const heard = fmt.age(f.seen[i] * 1000, this.clock());
		setText(r.about, severity ? `${severity} alert · ${heard}` : heard);
	}
}
