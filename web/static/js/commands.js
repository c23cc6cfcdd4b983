// Commands to a vehicle: issue one, see what became of each.

import {get, post, remove, vehiclePath} from './api.js';
import {fill, h, toast} from './dom.js';
import * as fmt from './format.js';
import {field, message} from './parts.js';
import {withToken} from './token.js';

const EVERY = 5000; // ms
const KINDS = {queued: 'info', sent: 'info', acknowledged: 'info', done: 'online', failed: 'critical', expired: 'warning', cancelled: ''};
const WORDS = {queued: 'waits for the device', sent: 'sent, no answer yet', acknowledged: 'the device has accepted it'};
const LIVES = [[600, '10 minutes'], [3600, '1 hour'], [86400, '1 day'], [604800, '7 days']];

export class Commands {
	constructor(app) {
		this.app = app;
		this.name = h('input', {type: 'text', required: true, maxlength: 128, autocomplete: 'off', spellcheck: 'false', autocapitalize: 'off', placeholder: 'lock'});
		this.payload = h('textarea', {rows: 2, spellcheck: 'false', autocapitalize: 'off', placeholder: '{"door": 1}'});
		this.life = h('select', {}, LIVES.map(([s, text]) => h('option', {value: s}, text)));
		this.life.value = '86400';
		this.button = h('button', {type: 'submit', class: 'button primary'}, 'Send');
		this.wrong = h('p', {class: 'message error', role: 'alert', hidden: true});
		this.list = h('ul', {class: 'commands'});
		this.el = h('section', {'aria-labelledby': 'v-commands', hidden: true}, h('h2', {id: 'v-commands'}, 'Commands'),
			h('form', {class: 'command-form', onsubmit: (e) => {
				e.preventDefault();
				this.#issue();
			}}, field('Command', this.name), field('Give up after', this.life), field('Payload, JSON', this.payload, 'may be empty'), this.button),
			this.wrong, this.list);
		for (const el of [this.name, this.payload, this.life]) el.addEventListener('input', () => (this.key = ''));
	}

	enter(id) {
		this.here = true;
		this.id = id;
		this.seen = '';
		this.key = '';
		this.wrong.hidden = true;
		fill(this.list);
		this.el.hidden = true;
		this.#load();
	}

	leave() {
		this.here = false;
		clearTimeout(this.timer);
	}

	async #load(ask = false) {
		clearTimeout(this.timer);
		if (!this.here || this.absent) return;
		const id = this.id;
		if (!document.hidden) {
			try {
				const read = () => get(`${vehiclePath(id)}/commands?limit=20`);
				const {commands} = await (ask ? withToken(read) : read());
				if (id !== this.id) return;
				this.#show(commands);
			} catch (err) {
				if (id !== this.id) return;
				if (err.status === 404) { // this server sends none
					this.absent = true;
					this.el.hidden = true;
					return;
				}
				this.el.hidden = false;
				this.seen = '';
				fill(this.list, h('li', {class: 'command-none'}, message(err.message, err.status === 401 ? '' : 'error'),
					err.status === 401 && h('button', {type: 'button', class: 'button', onclick: () => this.#load(true)}, 'Enter the token')));
				if (err.status === 401) return; // until somebody gives it
			}
		}
		clearTimeout(this.timer);
		if (this.here) this.timer = setTimeout(() => this.#load(), EVERY);
	}

	#show(commands) {
		this.el.hidden = false;
		const now = this.app.now(), open = new Set([...this.list.querySelectorAll('details[open]')].map((d) => d.closest('li').dataset.id));
		const focused = this.list.contains(document.activeElement) ? [document.activeElement.closest('li').dataset.id, document.activeElement.tagName] : null;
		fill(this.list, commands.map((c) => this.#row(c, now, open.has(c.id))), !commands.length && h('li', {class: 'command-none'}, message('None yet.')));
		if (focused) [...this.list.children].find((li) => li.dataset.id === focused[0])?.querySelector(focused[1])?.focus({preventScroll: true});
	}

	#row(c, now, open) {
		const when = (t) => fmt.age(Date.parse(t), now), ended = Boolean(c.ended_at);
		const text = (v) => (typeof v === 'string' ? v : JSON.stringify(v, null, 1));
		return h('li', {'data-id': c.id, 'data-state': c.state},
			h('div', {class: 'command-head'}, h('b', {}, c.name), h('span', {class: `tag ${KINDS[c.state] ?? ''}`}, c.state),
				h('span', {class: 'hint'}, `issued ${when(c.issued)}`, c.by && ` by ${c.by}`, ended ? ` · ended ${when(c.ended_at)}` : ` · ${WORDS[c.state] ?? ''}, gives up in ${fmt.span(Date.parse(c.expires) - now)}`),
				!ended && h('button', {type: 'button', class: 'button', 'aria-label': `Cancel ${c.name}`, onclick: (e) => this.#cancel(c, e.target)}, 'Cancel')),
			c.reason && c.reason !== c.state && h('p', {class: `command-why ${c.state === 'failed' ? 'bad' : ''}`}, c.reason),
			(c.payload !== undefined || c.result !== undefined || c.sends > 0) && h('details', {open}, h('summary', {}, 'More'),
				c.sends > 0 && h('p', {class: 'hint'}, `Handed out ${c.sends === 1 ? 'once' : `${fmt.count(c.sends)} times`}${c.sent_at ? `, at last ${when(c.sent_at)}` : ''}${c.device ? `, device ${c.device}` : ''}.`),
				c.payload !== undefined && [h('h3', {}, 'Payload'), h('pre', {}, text(c.payload))],
				c.result !== undefined && [h('h3', {}, 'Result'), h('pre', {}, text(c.result))]));
	}

	async #issue() {
		const id = this.id, raw = this.payload.value.trim();
		this.wrong.hidden = true;
		try {
			if (raw) JSON.parse(raw);
		} catch (err) {
			this.#say(`The payload is not JSON: ${err.message}`);
			this.payload.focus();
			return;
		}
		this.button.disabled = true;
		this.key ||= key(); // pressed again after a lost answer, it is the same command
		try {
			// The payload goes as it was written: a number with many digits stays whole.
			const body = `{"name":${JSON.stringify(this.name.value.trim())},${raw ? `"payload":${raw},` : ''}"expires_in":${this.life.value}}`;
			const c = await (await withToken(() => post(`${vehiclePath(id)}/commands`, body, {headers: {'Idempotency-Key': this.key}}))).json();
			this.key = '';
			toast(c.state === 'queued' ? `${c.name} waits until the device connects.` : `${c.name} was sent.`);
			this.name.value = this.payload.value = '';
			if (id === this.id) await this.#load();
		} catch (err) {
			this.#say(err.message);
		}
		this.button.disabled = false;
	}

	async #cancel(c, button) {
		button.disabled = true;
		try {
			await withToken(() => remove(`${vehiclePath(c.vehicle)}/commands/${encodeURIComponent(c.id)}`));
			toast(c.sends > 0 ? `${c.name} is cancelled. The device had it already: it may still carry it out.` : `${c.name} is cancelled.`);
		} catch (err) {
			toast(`Not cancelled: ${err.message}`, 'critical');
		}
		await this.#load();
	}

	#say(text) {
		this.wrong.textContent = text;
		this.wrong.hidden = false;
	}
}

function key() {
	return [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, '0')).join('');
}
