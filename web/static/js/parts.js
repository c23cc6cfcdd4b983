// Small parts that several pages use.

import {post} from './api.js';
import {h, icon, setText, toast} from './dom.js';
import * as fmt from './format.js';

export const severityTag = (severity) => h('span', {class: `tag ${SEVERE.has(severity) ? severity : 'info'}`}, severity || 'info');
const SEVERE = new Set(['info', 'warning', 'critical']);

export const vehicleLink = (id) => h('a', {href: `/vehicles/${encodeURIComponent(id)}`, class: 'vehicle-link'}, id);

// when shows a moment with its age, and the whole date on hover.
export function moment(ms, now) {
	return h('time', {datetime: new Date(ms).toISOString(), title: fmt.fullTime(ms)}, `${fmt.when(ms, now)} · ${fmt.age(ms, now)}`);
}

export const message = (text, kind = '') => h('p', {class: `message ${kind}`, role: kind === 'error' ? 'alert' : null}, text);

// whoAcknowledges asks once and remembers: there are no accounts yet.
function whoAcknowledges() {
	try {
		return localStorage.getItem('milepost-name') ?? '';
	} catch {
		return '';
	}
}

// alertCard is one alert. done is called with the alert as it is after an acknowledgement.
export function alertCard(a, now, done, {vehicle = true} = {}) {
	const card = h('article', {class: 'alert', 'data-severity': a.severity, 'data-state': a.state, 'data-id': a.id});
	const button = h('button', {type: 'button', class: 'button ack', onclick: async () => {
		button.disabled = true;
		try {
			const res = await post(`/v1/alerts/${encodeURIComponent(a.id)}/ack`, {by: whoAcknowledges()});
			done(await res.json());
		} catch (err) {
			button.disabled = false;
			toast(`Not acknowledged: ${err.message}`, 'critical');
		}
	}}, icon('check'), 'Acknowledge');
	button.setAttribute('aria-label', `Acknowledge ${a.rule} on ${a.vehicle_id}`);
	const times = [h('span', {}, a.state === 'firing' ? 'Since ' : 'Fired ', moment(a.fired_at, now))];
	if (a.resolved_at) times.push(h('span', {}, `resolved after ${fmt.span(a.resolved_at - a.fired_at)}`));
	if (a.acked_at) times.push(h('span', {}, `acknowledged by ${a.acked_by || 'somebody'} ${fmt.age(a.acked_at, now)}`));
	if (a.reopened) times.push(h('span', {}, `came back ${a.reopened}×`));
	if (a.late) times.push(h('span', {title: 'Found in data that arrived too late to notify anyone'}, 'late data'));
	card.append(
		h('header', {}, severityTag(a.severity), h('b', {class: 'alert-rule'}, a.rule), vehicle && vehicleLink(a.vehicle_id),
			h('span', {class: `alert-state ${a.state}`}, a.state)),
		h('p', {class: 'alert-summary'}, a.summary),
		h('p', {class: 'alert-times'}, times.flatMap((t, i) => (i ? [' · ', t] : [t]))),
		h('details', {}, h('summary', {}, 'Rule'), h('code', {}, a.condition)));
	if (a.state === 'firing' && !a.acked_at) card.append(button);
	return card;
}

// tabs is a row of choices, one of them taken; arrow keys move.
export function choices(label, options, chosen, pick) {
	const el = h('div', {class: 'choices', role: 'radiogroup', 'aria-label': label});
	const buttons = options.map(([value, text]) => h('button', {
		type: 'button', role: 'radio', 'data-value': value, onclick: () => set(value),
	}, h('span', {class: 'choice-text'}, text), h('span', {class: 'choice-count'})));
	const set = (value, tell = true) => {
		for (const b of buttons) {
			const on = b.dataset.value === value;
			b.setAttribute('aria-checked', on);
			b.tabIndex = on ? 0 : -1;
		}
		if (tell) pick(value);
	};
	el.addEventListener('keydown', (e) => {
		const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[e.key];
		if (!step) return;
		const k = buttons.findIndex((b) => b.tabIndex === 0);
		const b = buttons[(k + step + buttons.length) % buttons.length];
		set(b.dataset.value);
		b.focus();
		e.preventDefault();
	});
	el.append(...buttons);
	set(chosen, false);
	el.counts = (of) => buttons.forEach((b) => setText(b.lastChild, of[b.dataset.value] === undefined ? '' : fmt.brief(of[b.dataset.value])));
	el.set = (value) => set(value, false);
	return el;
}

// code is text to be copied.
export function code(text) {
	return h('div', {class: 'code'}, h('pre', {}, text), h('button', {type: 'button', class: 'button', 'aria-label': 'Copy', onclick: async () => {
		try {
			await navigator.clipboard.writeText(text);
			toast('Copied');
		} catch {
			toast('The browser does not allow copying: select the text', 'warning');
		}
	}}, icon('copy'), 'Copy'));
}

export const field = (label, input, hint) => h('label', {class: 'field'}, h('span', {}, label), input, hint && h('small', {}, hint));

export const fact = (name, ...value) => h('div', {}, h('dt', {}, name), h('dd', {}, value));

// table takes headings, those of numbers with a "-" before them, and rows of cells.
export function table(heads, rows) {
	const num = heads.map((t) => t.startsWith('-'));
	return h('div', {class: 'table-scroll'}, h('table', {},
		h('thead', {}, h('tr', {}, heads.map((t, i) => h('th', {scope: 'col', class: num[i] ? 'num' : ''}, t.replace(/^-/, ''))))),
		h('tbody', {}, rows.map((r) => h('tr', {}, r.map((c, i) => h('td', {class: num[i] ? 'num' : ''}, c)))))));
}

// expiry writes when a certificate ends, in the colour of how soon that is.
export function expiry(end, now) {
	if (!end) return h('span', {class: 'faint'}, 'none');
	const ms = Date.parse(end), left = ms - now, day = 86400e3;
	const kind = left < 7 * day ? 'critical' : left < 30 * day ? 'warning' : '';
	const text = left <= 0 ? `ended ${fmt.age(ms, now)}` : `in ${fmt.span(left)}`;
	return h('time', {datetime: end, title: fmt.fullTime(ms), class: kind ? `tag ${kind}` : ''}, text);
}
