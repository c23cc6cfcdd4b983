// Alerts: what fires now and what was, to read and to acknowledge.

import {get, query} from '../api.js';
import {fill, h, icon} from '../dom.js';
import * as fmt from '../format.js';
import {alertCard, choices, message} from '../parts.js';

export class AlertsPage {
	name = 'alerts';

	constructor(app) {
		this.app = app;
		this.state = 'firing';
		this.choices = choices('Which alerts', [['firing', 'Firing'], ['resolved', 'Resolved'], ['', 'All']], this.state, (v) => {
			this.state = v;
			this.load();
		});
		this.search = h('input', {
			type: 'search', placeholder: 'Vehicle or rule', 'aria-label': 'Search alerts by vehicle or rule', autocomplete: 'off', spellcheck: 'false',
			oninput: () => this.#show(),
		});
		this.list = h('div', {class: 'alert-list', 'aria-live': 'off', onkeydown: (e) => this.#key(e)});
		this.more = h('button', {type: 'button', class: 'button', hidden: true, onclick: () => this.load(true)}, 'Older');
		this.el = h('div', {class: 'page'},
			h('div', {class: 'page-head'}, h('h1', {}, 'Alerts'), this.choices, h('label', {class: 'search'}, icon('search'), this.search)),
			h('p', {class: 'hint'}, 'J and K step through the list, A acknowledges.'), this.list, this.more);
		app.live.addEventListener('alerts', () => {
			this.#counts();
			if (this.here) this.load();
		});
	}

	title() {
		return 'Alerts';
	}

	enter() {
		this.here = true;
		this.#counts();
		this.load();
	}

	leave() {
		this.here = false;
	}

	#counts() {
		const a = this.app.live.alerts;
		if (a) this.choices.counts({firing: a.critical + a.warning + a.info});
	}

	async load(older = false) {
		const asked = (this.asked = {});
		if (!older && !this.alerts) fill(this.list, message('Loading …'));
		try {
			// A refresh brings as many as are shown, so that the list does not shrink under the reader.
			const limit = older ? 100 : Math.min(1000, Math.max(100, this.alerts?.length ?? 0));
			const page = await get(`/v1/alerts${query({state: this.state, limit, before: older ? this.next : ''})}`);
			if (asked !== this.asked) return;
			this.alerts = older ? [...this.alerts, ...page.alerts] : page.alerts;
			this.next = page.next;
			this.more.hidden = !page.next;
			this.#show();
		} catch (err) {
			if (asked === this.asked) fill(this.list, message(err.message, err.status === 501 ? 'note' : 'error'));
		}
	}

	#show() {
		if (!this.alerts) return;
		const want = this.search.value.trim().toLowerCase();
		const focused = document.activeElement?.closest?.('.alert')?.dataset.id;
		const shown = this.alerts.filter((a) => !want || a.vehicle_id.toLowerCase().includes(want) || a.rule.toLowerCase().includes(want));
		const open = new Set([...this.list.querySelectorAll('details[open]')].map((d) => d.closest('.alert').dataset.id));
		const cards = shown.map((a) => {
			const c = alertCard(a, this.app.now(), (now) => this.#acked(now));
			c.tabIndex = -1;
			if (open.has(a.id)) c.querySelector('details').open = true;
			return c;
		});
		fill(this.list, cards, !cards.length && message(want ? 'None matches.' : this.state === 'firing' ? 'Nothing fires. All is well.' : 'None yet.', 'calm'));
		if (cards.length) cards[0].tabIndex = 0;
		if (focused) cards.find((c) => c.dataset.id === focused)?.focus({preventScroll: true});
		this.list.setAttribute('aria-label', `${fmt.count(cards.length)} alerts`);
	}

	#acked(now) {
		this.alerts = this.alerts.map((a) => (a.id === now.id ? now : a));
		this.#show();
	}

	#key(e) {
		if (e.ctrlKey || e.metaKey || e.altKey || e.target.closest('input')) return;
		const cards = [...this.list.querySelectorAll('.alert')], at = cards.indexOf(document.activeElement.closest('.alert'));
		const to = {j: at + 1, k: at - 1, ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: cards.length - 1}[e.key];
		if (to !== undefined) {
			const c = cards[Math.max(0, Math.min(cards.length - 1, to))];
			for (const x of cards) x.tabIndex = x === c ? 0 : -1;
			c?.focus();
		} else if (e.key === 'a' && at >= 0) {
			cards[at].querySelector('.ack')?.click();
		} else return;
		e.preventDefault();
	}
}
