// Users' functions on the pipeline page: how each of their mappings is doing, and pausing, resuming, resetting and redriving them.

import {get, post} from './api.js';
import {dialog, form} from './dialog.js';
import {fill, h, setText, toast} from './dom.js';
import * as fmt from './format.js';
import {fact, message, moment} from './parts.js';
import {withToken} from './token.js';

const EVERY = 2000; // ms
const path = (name, what) => `/v1/functions/${encodeURIComponent(name)}/${what}`;

export class Functions {
	constructor(clock) {
		this.clock = clock;
		this.cards = new Map(); // by function
		this.list = h('div', {class: 'functions'});
		this.said = h('div', {});
		this.el = h('section', {class: 'box wide', 'aria-labelledby': 'p-own', hidden: true}, h('h2', {id: 'p-own'}, 'Your functions'), this.said, this.list);
	}

	enter() {
		this.here = true;
		this.load();
	}

	leave() {
		this.here = false;
		clearTimeout(this.timer);
	}

	async load() {
		clearTimeout(this.timer);
		if (!this.here) return;
		if (!document.hidden) {
			try {
				this.#show((await get('/v1/functions')).functions);
			} catch (err) {
				if (err.status === 404) return; // this server has none
				this.el.hidden = false;
				fill(this.said, message(err.message, 'error'));
			}
		}
		clearTimeout(this.timer);
		if (this.here) this.timer = setTimeout(() => this.load(), EVERY);
	}

	// #show changes what is there instead of making it anew: what has the focus keeps it, and no button moves under a finger.
	#show(functions) {
		this.el.hidden = false;
		fill(this.said, !functions.length && message('None. Functions run your own code on a stream: write them under functions in the configuration.'));
		const names = new Set(functions.map((f) => f.name));
		for (const [name, card] of this.cards) {
			if (names.has(name)) continue;
			card.el.remove();
			this.cards.delete(name);
		}
		for (const f of functions) {
			if (!this.cards.has(f.name)) {
				const card = new Card(f.name, this.clock, () => this.load());
				this.cards.set(f.name, card);
				this.list.append(card.el);
			}
			this.cards.get(f.name).show(f);
		}
	}
}

class Card {
	constructor(name, clock, reload) {
		Object.assign(this, {name, clock, reload, rows: new Map()});
		this.about = h('span', {class: 'hint'});
		this.error = h('p', {class: 'message error', hidden: true});
		this.none = h('p', {class: 'hint', hidden: true}, 'It is on no stream: it runs when somebody invokes it.');
		this.mappings = h('div', {class: 'mappings'});
		this.el = h('article', {class: 'function', 'data-name': name},
			h('header', {}, h('h3', {}, name), this.about, h('button', {type: 'button', class: 'button', 'aria-label': `Log of ${name}`, onclick: () => log(name, clock)}, 'Log')),
			this.error, this.none, this.mappings);
	}

	show(f) {
		const p = f.pool;
		setText(this.about, [f.runtime, p.limit > 0 && `${fmt.count(p.busy)} of ${fmt.count(p.limit)} at work`, `timeout ${fmt.span(f.timeout_seconds * 1000)}`,
			p.timeouts > 0 && `${fmt.brief(p.timeouts)} timed out`, p.restarts > 0 && `${fmt.brief(p.restarts)} ${p.restarts === 1 ? 'restart' : 'restarts'}`].filter(Boolean).join(' · '));
		const own = f.mappings.every((m) => !m.last_error) ? p.last_error : ''; // else the mapping says it
		this.error.hidden = !own;
		setText(this.error, own ? `Last error: ${own}` : '');
		this.none.hidden = f.mappings.length > 0;
		const ids = new Set(f.mappings.map((m) => m.uuid));
		for (const [id, row] of this.rows) {
			if (ids.has(id)) continue;
			row.el.remove();
			this.rows.delete(id);
		}
		for (const m of f.mappings) {
			if (!this.rows.has(m.uuid)) {
				const row = new Mapping(m, this.clock, this.reload);
				this.rows.set(m.uuid, row);
				this.mappings.append(row.el);
			}
			this.rows.get(m.uuid).show(m);
		}
	}
}

const FACTS = [['lag', 'Waiting'], ['age', 'Iterator age'], ['last', 'Last invocation'], ['invocations', 'Invocations'], ['errors', 'Errors'], ['throttles', 'Throttles'], ['dead', 'Dead letters']];

class Mapping {
	constructor(m, clock, reload) {
		Object.assign(this, {m, clock, reload, cells: {}});
		this.tags = h('span', {class: 'tags'});
		this.error = h('p', {class: 'message error', hidden: true});
		this.notes = h('p', {class: 'hint', hidden: true});
		const button = (text, act) => h('button', {type: 'button', class: 'button', 'aria-label': `${text.replace(' …', '')} ${m.function} on ${m.stream}`, onclick: act}, text);
		this.pause = button('Pause', () => this.#switch('pause'));
		this.resume = button('Resume', () => this.#switch('resume'));
		this.reset = button('Reset …', () => reset(this.m, clock()).then((done) => done && this.reload()));
		this.redrive = button('Redrive …', () => redrive(this.m).then((done) => done && this.reload()));
		this.el = h('div', {class: 'mapping', 'data-uuid': m.uuid},
			h('div', {class: 'mapping-head'}, h('span', {class: 'mapping-of'}, 'on ', h('b', {}, m.stream), m.consumer && ` as ${m.consumer}`), this.tags,
				h('span', {class: 'mapping-do'}, this.pause, this.resume, this.reset, this.redrive)),
			h('dl', {class: 'facts'}, FACTS.map(([key, name]) => fact(name, (this.cells[key] = h('span', {}))))),
			this.error, this.notes);
	}

	show(m) {
		this.m = m;
		const c = this.cells, t = m.total, now = this.clock(), late = m.iterator_age_ms > 60_000;
		const put = (el, text, kind = '') => {
			setText(el, text);
			if (el.className !== kind) el.className = kind;
		};
		put(c.lag, m.lag < 0 ? 'not known' : m.lag === 0 ? 'caught up' : `${fmt.brief(m.lag)} records`);
		put(c.age, m.lag < 0 ? '–' : fmt.span(m.iterator_age_ms), late ? 'warn' : '');
		put(c.last, m.last_invocation ? fmt.age(Date.parse(m.last_invocation), now) : 'never');
		put(c.invocations, fmt.brief(t.invocations));
		put(c.errors, fmt.brief(t.errors), t.errors ? 'warn' : '');
		put(c.throttles, fmt.brief(t.throttles), t.throttles ? 'warn' : '');
		put(c.dead, fmt.brief(t.dead_letters), t.dead_letters ? 'bad' : '');
		const states = new Set(m.shards.map((s) => s.state)), held = states.has('paused by overflow');
		const tags = [[m.state, m.state === 'Enabled' ? 'online' : '']];
		if (states.has('retrying')) tags.push(['retrying', 'warning']);
		if (m.overflow || held) tags.push([held ? 'paused by overflow' : 'overflow', 'warning']);
		if (m.breaker && m.breaker.state !== 'closed') tags.push([`circuit ${m.breaker.state}`, 'critical']);
		const text = tags.map((x) => x[0]).join(', ');
		if (this.tags.dataset.text !== text) {
			this.tags.dataset.text = text;
			fill(this.tags, tags.map(([word, kind]) => h('span', {class: `tag ${kind}`}, word)));
		}
		const error = m.last_error || m.shards.find((s) => s.error)?.error;
		this.error.hidden = !error;
		setText(this.error, error ? `Last error${m.last_error_time ? `, ${fmt.age(Date.parse(m.last_error_time), now)}` : ''}: ${error}` : '');
		const notes = [
			m.breaker && m.breaker.state !== 'closed' && `It failed ${fmt.count(m.breaker.failures)} times in a row and is not called${Date.parse(m.breaker.until) > now ? ` until ${fmt.timeOfDay(Date.parse(m.breaker.until))}` : ''}; ${fmt.count(m.breaker.held)} invocations were put off.`,
			m.overflow && `It cannot keep up: ${m.overflow}.`,
			t.sampled > 0 && `${fmt.brief(t.sampled)} records were passed over.`,
			t.spilled > 0 && `${fmt.brief(t.spilled)} records were put off, ${fmt.brief(t.caught_up)} of them caught up with.`,
			t.missed > 0 && `${fmt.brief(t.missed)} records were gone before they were read.`,
			m.owed > 0 && `${fmt.count(m.owed)} failure documents wait for their destination ${m.on_failure ?? ''}.`,
		].filter(Boolean);
		this.notes.hidden = !notes.length;
		setText(this.notes, notes.join(' '));
		const off = /^Disabl/.test(m.state), gone = m.state === 'Deleting';
		this.pause.hidden = off || gone;
		this.resume.hidden = !(off || held) || gone;
		this.reset.hidden = this.redrive.hidden = gone;
	}

	async #switch(action) {
		const [one, other] = action === 'pause' ? [this.pause, this.resume] : [this.resume, this.pause];
		const focused = document.activeElement === one;
		one.disabled = true;
		try {
			await withToken(() => post(path(this.m.function, action), {mapping: this.m.uuid}));
			toast(action === 'pause' ? `${this.m.function} is paused. It keeps its place on ${this.m.stream}.` : `${this.m.function} goes on.`);
			await this.reload();
			if (focused && one.hidden) other.focus();
		} catch (err) {
			toast(`Nothing changed: ${err.message}`, 'critical');
		}
		one.disabled = false;
	}
}

// reset asks where a mapping goes on, and says what that means for the records between.
function reset(m, now) {
	const at = h('input', {type: 'datetime-local', step: 1, value: local(now - 3600e3), 'aria-label': 'Moment', oninput: () => say()});
	const means = h('p', {class: 'message note', 'aria-live': 'polite'});
	let to = 'TRIM_HORIZON';
	const say = () => {
		at.disabled = to !== 'AT_TIMESTAMP';
		setText(means, {
			TRIM_HORIZON: `Everything that ${m.stream} still keeps is processed again: what ${m.function} did with it once, it does again.`,
			LATEST: `${m.lag < 0 ? 'What waits now' : m.lag === 1 ? 'The 1 record that waits now' : `The ${fmt.brief(m.lag)} records that wait now`} will not be processed. It goes on with what comes next.`,
			AT_TIMESTAMP: `It goes on with the first record from then. What it has done since then it does again; if it is not that far yet, it leaves out what lies between.`,
		}[to]);
	};
	const radio = (value, text, extra) => h('label', {class: 'radio'}, h('input', {type: 'radio', name: 'to', value, checked: value === to, onchange: () => {
		to = value;
		say();
	}}), h('span', {}, text), extra);
	say();
	return form({
		title: `Reset ${m.function} on ${m.stream}`, action: 'Reset', danger: true, typed: m.function,
		body: [h('fieldset', {class: 'radios'}, h('legend', {}, 'Go on from'),
			radio('TRIM_HORIZON', 'the oldest record that is kept'), radio('LATEST', 'now'), radio('AT_TIMESTAMP', 'a moment', at)), means],
		run: async () => {
			const q = {mapping: m.uuid, confirm: m.function, to};
			if (to === 'AT_TIMESTAMP') {
				const t = new Date(at.value);
				if (Number.isNaN(t.getTime())) throw new Error('Write the moment: day and time.');
				q.time = t.toISOString();
			}
			await withToken(() => post(path(m.function, 'reset'), q));
			toast(`${m.function} has a new place on ${m.stream}.`);
			return true;
		},
	});
}

// local is a moment as a datetime-local field wants it.
function local(ms) {
	const d = new Date(ms);
	return new Date(ms - d.getTimezoneOffset() * 60e3).toISOString().slice(0, 19);
}

async function redrive(m) {
	const from = m.on_failure ? `the documents at ${m.on_failure}` : 'its dead letters';
	const report = await form({
		title: `Redrive ${m.function} on ${m.stream}`, action: 'Redrive',
		body: [h('p', {}, `${m.function} is invoked again with the records that it gave up: those of ${from}.`),
			h('p', {class: 'hint'}, 'What succeeds now is not redriven a second time. What fails again stays where it is. Mend the cause first.')],
		run: async () => (await (await withToken(() => post(path(m.function, 'redrive'), {mapping: m.uuid}))).json()).done[0]?.report ?? {},
	});
	if (!report) return false;
	const n = (v) => fmt.count(v ?? 0);
	dialog(`Redriven: ${m.function}`,
		!report.documents ? message('There was nothing to redrive.') : h('dl', {class: 'facts'},
			fact('Documents', n(report.documents)), fact('Records processed', n(report.records)), fact('Failed again', n(report.failed)), fact('No longer kept', n(report.missing))),
		report.errors?.map((e) => message(e, 'error')));
	return true;
}

// log shows what a function wrote, the newest invocation first.
async function log(name, clock) {
	const body = h('div', {class: 'log'}, message('Loading …'));
	const load = async () => {
		try {
			const {invocations} = await get(path(name, 'logs'));
			fill(body, [...invocations].reverse().map((v) => h('section', {class: 'log-entry'},
				h('p', {class: 'log-head'}, moment(Date.parse(v.at), clock()), h('span', {}, `took ${fmt.span(v.seconds * 1000)}`), h('code', {}, v.request_id)),
				v.error && message(v.error, 'error'), v.log && h('pre', {tabindex: 0}, v.log))),
			!invocations.length && message('It has written nothing yet. What it prints while it runs is kept here, for its last invocations.'));
		} catch (err) {
			fill(body, message(err.message, 'error'));
		}
	};
	dialog(`Log of ${name}`, h('button', {type: 'button', class: 'button', onclick: load}, 'Refresh'), body);
	await load();
}

