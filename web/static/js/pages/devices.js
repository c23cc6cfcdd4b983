// Devices: who may connect, whose certificate ends, who is connected, and letting in another one.

import {get, query} from '../api.js';
import {enrol, tokens} from '../enrol.js';
import {fill, h, icon, setText} from '../dom.js';
import * as fmt from '../format.js';
import {choices, expiry, message, vehicleLink} from '../parts.js';
import {withToken} from '../token.js';

const EVERY = 5000; // ms
const PAGE = 100;

export const statusTag = (status) => h('span', {class: `tag ${{active: 'online', disabled: 'warning', revoked: 'critical'}[status] ?? ''}`}, status);

export const deviceLink = (id) => h('a', {href: `/devices/${encodeURIComponent(id)}`, class: 'vehicle-link'}, id);

// connection says whether a device is connected, or how its last connection ended.
export function connection(d, now) {
	if (d.connections > 0) return h('span', {class: 'connected'}, d.connections > 1 ? `connected ${d.connections}×` : 'connected', d.last_connect && h('small', {}, ` since ${fmt.age(Date.parse(d.last_connect), now)}`.replace(' ago', '')));
	if (!d.last_connect) return h('span', {class: 'faint'}, 'never connected');
	return h('span', {}, 'was here ', fmt.age(Date.parse(d.last_disconnect ?? d.last_connect), now));
}

export class DevicesPage {
	name = 'devices';

	constructor(app) {
		this.app = app;
		this.which = '';
		this.choices = choices('Which devices', [['', 'All'], ['active', 'Active'], ['disabled', 'Disabled'], ['revoked', 'Revoked'], ['ends', 'Ending soon']], '', (v) => {
			this.which = v;
			this.load();
		});
		this.search = h('input', {type: 'search', placeholder: 'Device or vehicle', 'aria-label': 'Search devices by id or vehicle', autocomplete: 'off', spellcheck: 'false', oninput: () => {
			clearTimeout(this.typing);
			this.typing = setTimeout(() => this.load(), 200);
		}});
		this.ending = h('p', {class: 'message note', hidden: true});
		this.said = h('div', {});
		this.rows = h('tbody', {});
		this.table = h('table', {class: 'devices', hidden: true},
			h('thead', {}, h('tr', {}, ['Device', 'Status', 'Certificate ends', 'Connection', 'Last trouble'].map((t) => h('th', {scope: 'col'}, t)))), this.rows);
		this.more = h('button', {type: 'button', class: 'button', hidden: true, onclick: () => this.load({older: true})}, 'More');
		this.tokens = tokens(app);
		this.el = h('div', {class: 'page devices-page'},
			h('div', {class: 'page-head'}, h('h1', {}, 'Devices'), this.choices, h('label', {class: 'search'}, icon('search'), this.search),
				h('button', {type: 'button', class: 'button primary', onclick: () => enrol(app).then(() => this.load())}, icon('plus'), 'Enrol a device')),
			this.ending, h('div', {class: 'box devices-box'}, this.said, this.table), this.more, this.tokens.el);
	}

	title() {
		return 'Devices';
	}

	enter() {
		this.here = true;
		this.load({ask: true});
	}

	leave() {
		this.here = false;
		clearTimeout(this.timer);
		clearTimeout(this.typing);
	}

	async load({older = false, ask = false, quiet = false} = {}) {
		clearTimeout(this.timer);
		if (!this.here) return;
		const asked = (this.asked = {}), ends = this.which === 'ends';
		if (!this.devices && !quiet) fill(this.said, message('Loading …'));
		try {
			// A refresh brings as many as are shown, so that the list does not shrink under the reader.
			const limit = older ? PAGE : Math.min(1000, Math.max(PAGE, quiet ? this.devices.length : 0));
			const path = `/v1/devices${query({q: this.search.value.trim(), status: ends ? 'active' : this.which, ends_within: ends ? 30 : '', limit, after: older ? this.next : ''})}`;
			const page = await (ask ? withToken(() => get(path)) : get(path));
			if (asked !== this.asked) return;
			this.devices = older ? [...this.devices, ...page.devices] : page.devices;
			this.next = page.next;
			this.#show();
			const {expiring} = await get('/v1/devices/expiring');
			if (asked !== this.asked) return;
			this.#expiring(expiring);
			this.tokens.load();
		} catch (err) {
			if (asked !== this.asked) return;
			if (!this.devices || err.status === 401) {
				this.devices = null;
				this.table.hidden = this.more.hidden = this.ending.hidden = true;
				fill(this.said, message(err.status === 404 ? 'This server knows no devices.' : err.message, err.status === 404 ? 'note' : 'error'),
					err.status === 401 && h('button', {type: 'button', class: 'button', onclick: () => this.load({ask: true})}, 'Enter the token'));
			}
			if (err.status === 401 || err.status === 404) return;
		}
		clearTimeout(this.timer);
		if (this.here) this.timer = setTimeout(() => (document.hidden ? this.#later() : this.load({quiet: Boolean(this.devices)})), EVERY);
	}

	#later() {
		this.timer = setTimeout(() => (document.hidden ? this.#later() : this.load({quiet: Boolean(this.devices)})), EVERY);
	}

	#expiring(list) {
		const now = this.app.now(), ended = list.filter((e) => Date.parse(e.ends) <= now).length, soon = list.length - ended;
		this.choices.counts({ends: list.length || undefined});
		this.ending.hidden = !list.length;
		setText(this.ending, [ended && `${fmt.count(ended)} ${ended === 1 ? 'certificate has' : 'certificates have'} ended`,
			soon && `${fmt.count(soon)} ${soon === 1 ? 'certificate ends' : 'certificates end'} within 30 days`].filter(Boolean).join(', ') + '. A device without a valid certificate cannot connect.');
	}

	#show() {
		const now = this.app.now(), focused = document.activeElement?.closest?.('.devices tr')?.dataset.id;
		this.table.hidden = !this.devices.length;
		this.more.hidden = !this.next;
		const wanted = this.search.value.trim() || this.which;
		fill(this.said, !this.devices.length && message(this.which === 'ends' ? 'No certificate ends within 30 days.' : wanted ? 'None matches.' : 'No device is enrolled yet. Enrol one: it gets a certificate, and nobody else can send in its name.', 'calm'));
		fill(this.rows, this.devices.map((d) => {
			const trouble = d.last_refusal && (!d.last_connect || Date.parse(d.last_refusal.at) > Date.parse(d.last_connect)) ? `refused ${fmt.age(Date.parse(d.last_refusal.at), now)}: ${d.last_refusal.text}`
				: d.last_rejection ? `message refused: ${d.last_rejection}` : d.connections === 0 && d.last_disconnect_reason ? d.last_disconnect_reason : '';
			return h('tr', {'data-id': d.id},
				h('td', {}, deviceLink(d.id), d.vehicle !== d.id && h('small', {}, ' for ', vehicleLink(d.vehicle))),
				h('td', {}, statusTag(d.status)), h('td', {'data-label': 'Certificate'}, d.status === 'revoked' ? '' : expiry(d.certificate_ends, now)),
				h('td', {'data-label': 'Connection'}, connection(d, now)), h('td', {class: 'trouble', 'data-label': 'Last trouble'}, trouble));
		}));
		if (focused) [...this.rows.children].find((r) => r.dataset.id === focused)?.querySelector('a').focus({preventScroll: true});
	}
}
