// The map page: the fleet in a line, a list with search beside the map, and the two in step.

import {frameOnce, h, icon, setText} from '../dom.js';
import * as fmt from '../format.js';
import {VehicleList} from '../list.js';
import {choices} from '../parts.js';

export class MapPage {
	name = 'map';
	map = true;

	constructor(app) {
		this.app = app;
		this.filter = {text: '', filter: 'all'};
		this.list = new VehicleList(app.fleet, () => app.now());
		this.summary = h('div', {class: 'summary', role: 'status', 'aria-label': 'The fleet now'});
		this.search = h('input', {
			type: 'search', placeholder: 'Search vehicles', 'aria-label': 'Search vehicles', autocomplete: 'off', spellcheck: 'false',
			oninput: () => {
				this.filter.text = this.search.value;
				this.list.el.scrollTop = 0;
				this.refresh();
			},
			onkeydown: (e) => {
				if (e.key === 'ArrowDown') {
					this.list.el.focus();
					e.preventDefault();
				}
			},
		});
		this.choices = choices('Which vehicles', [['all', 'All'], ['alerting', 'Alerting'], ['online', 'Online'], ['stale', 'Stale'], ['offline', 'Offline']], 'all', (v) => {
			this.filter.filter = v;
			this.list.el.scrollTop = 0;
			this.refresh();
		});
		this.grip = h('button', {type: 'button', class: 'grip', 'aria-label': 'Show more of the list', 'aria-expanded': 'false', onclick: () => this.#sheet()});
		this.el = h('div', {class: 'fleet-panel'}, this.grip, h('h1', {class: 'sr-only'}, 'Fleet map'), this.summary,
			h('label', {class: 'search'}, icon('search'), this.search), this.choices, this.list.el);
		this.#drag();
		this.refresh = frameOnce(() => this.#refresh());
		this.list.addEventListener('select', (e) => app.map().select(e.detail, {look: true, quiet: true}));
		this.list.addEventListener('open', (e) => app.openVehicle(app.fleet.ids[e.detail]));
		app.fleet.addEventListener('change', () => this.here && this.refresh());
		app.live.addEventListener('alerts', () => this.here && this.#summary());
		setInterval(() => this.here && this.list.draw(), 1000); // ages
	}

	title() {
		return 'Map';
	}

	enter() {
		this.here = true;
		const map = this.app.map();
		map.cardOff = false;
		this.onSelect ??= (e) => this.list.select(e.detail);
		map.addEventListener('select', this.onSelect);
		map.trail([]);
		this.#refresh();
	}

	leave() {
		this.here = false;
		this.app.map().removeEventListener('select', this.onSelect);
	}

	#refresh() {
		const {fleet} = this.app;
		const shown = fleet.select(this.filter);
		this.list.show(shown, fleet.size ? 'No vehicle matches.' : 'No vehicle has reported yet.');
		if (this.here) this.app.map().show(shown);
		const c = fleet.counts();
		this.choices.counts({all: c.total, alerting: c.alerting}); // the line above has the others
		this.#summary(c);
	}

	#summary(c = this.app.fleet.counts()) {
		const a = this.app.live.alerts;
		if (!this.cells) {
			const cell = (key, name) => [key, h('span', {class: `cell ${key}`}, h('b', {}, '–'), h('span', {}, name))];
			this.cells = Object.fromEntries([cell('online', 'online'), cell('stale', 'stale'), cell('offline', 'offline'), cell('critical', 'critical'), cell('warning', 'warning')]);
			this.summary.append(...Object.values(this.cells));
		}
		const put = (k, n) => setText(this.cells[k].firstChild, n === undefined ? '–' : fmt.brief(n));
		put('online', c.online);
		put('stale', c.stale);
		put('offline', c.offline);
		put('critical', a?.critical);
		put('warning', a?.warning);
		this.cells.critical.classList.toggle('none', !a?.critical);
		this.cells.warning.classList.toggle('none', !a?.warning);
	}

	// #sheet opens and closes the list on a phone, where it lies over the map.
	#sheet(open = !this.el.classList.contains('open')) {
		this.el.classList.toggle('open', open);
		this.grip.setAttribute('aria-expanded', open);
		this.grip.setAttribute('aria-label', open ? 'Show less of the list' : 'Show more of the list');
	}

	#drag() {
		let from = null;
		this.grip.addEventListener('pointerdown', (e) => {
			from = e.clientY;
			this.grip.setPointerCapture(e.pointerId);
		});
		this.grip.addEventListener('pointerup', (e) => {
			const d = from === null ? 0 : e.clientY - from;
			from = null;
			if (Math.abs(d) > 24) {
				this.#sheet(d < 0);
				this.grip.addEventListener('click', (c) => c.stopImmediatePropagation(), {once: true, capture: true});
			}
		});
		this.search.addEventListener('focus', () => matchMedia('(max-width: 760px)').matches && this.#sheet(true));
	}
}
