// The pipeline: what comes in, where it waits, what was refused, and each dead letter in full.

import {get, query} from '../api.js';
import {Spark} from '../chart.js';
import {fill, h, icon} from '../dom.js';
import * as fmt from '../format.js';
import {message, moment, table} from '../parts.js';
import {Functions} from '../functions.js';

const EVERY = 2000; // ms

export class PipelinePage {
	name = 'pipeline';

	constructor(app) {
		this.app = app;
		this.sparks = {in: new Spark('Readings accepted each second'), out: new Spark('Records processed each second, slowest function'), lag: new Spark('Lag in seconds')};
		this.figures = h('div', {class: 'figures'});
		this.body = h('div', {class: 'flow'});
		this.functions = new Functions(() => app.now());
		this.letters = h('div', {class: 'letters'});
		this.more = h('button', {type: 'button', class: 'button', hidden: true, onclick: () => this.#letters(true)}, 'Older');
		this.dialog = h('dialog', {class: 'letter', 'aria-label': 'Dead letter', onclick: (e) => e.target === this.dialog && this.dialog.close()});
		this.el = h('div', {class: 'page'},
			h('div', {class: 'page-head'}, h('h1', {}, 'Pipeline'), (this.since = h('span', {class: 'hint'}))),
			this.figures, this.functions.el, this.body,
			h('section', {class: 'box', 'aria-labelledby': 'p-dead'},
				h('div', {class: 'section-head'}, h('h2', {id: 'p-dead'}, 'Dead letters'),
					h('button', {type: 'button', class: 'button', onclick: () => this.#letters()}, 'Refresh')),
				h('p', {class: 'hint'}, 'What could not be used, kept whole so that it can be mended and sent again.'), this.letters, this.more),
			this.dialog);
		this.cells = ['in', 'refused', 'out', 'lag', 'dead'].reduce((o, k) => ({...o, [k]: h('b', {}, '–')}), {});
		const figure = (name, cell, spark) => h('div', {class: 'figure'}, h('span', {}, name), cell, spark?.el);
		fill(this.figures, figure('Accepted', this.cells.in, this.sparks.in), figure('Processed', this.cells.out, this.sparks.out),
			figure('Behind', this.cells.lag, this.sparks.lag), figure('Refused', this.cells.refused), figure('Dead letters', this.cells.dead));
	}

	title() {
		return 'Pipeline';
	}

	enter() {
		this.here = true;
		this.before = null;
		this.#poll();
		this.#letters();
		this.functions.enter();
	}

	leave() {
		this.here = false;
		this.functions.leave();
		clearTimeout(this.timer);
		if (this.dialog.open) this.dialog.close();
	}

	async #poll() {
		clearTimeout(this.timer);
		if (!this.here) return;
		if (!document.hidden) {
			try {
				this.#show(await get('/v1/pipeline'));
				this.failed = false;
			} catch (err) {
				if (!this.failed || !this.before) fill(this.body, message(err.message, err.status === 501 ? 'note' : 'error'));
				this.failed = true;
				if (err.status === 501) return;
			}
		}
		if (this.here) this.timer = setTimeout(() => this.#poll(), EVERY);
	}

	#show(s) {
		const b = this.before, now = Date.parse(s.time);
		const secs = b ? (now - Date.parse(b.time)) / 1000 : 0;
		const per = (cur, prev) => (secs > 0 && prev !== undefined && cur >= prev ? (cur - prev) / secs : null);
		const total = (list, f) => list.reduce((n, x) => n + f(x), 0);
		const refused = (d) => total(Object.values(d.refused ?? {}), (n) => n);
		const accepted = per(total(s.doors, (d) => d.accepted), b && total(b.doors, (d) => d.accepted));
		// The first consumer is the fleet's own; others may have other streams, or read when they like.
		const fleet = s.functions[0], processed = fleet ? per(fleet.processed, b?.functions.find((x) => x.name === fleet.name)?.processed) : null;
		const lag = Math.max(0, ...s.functions.flatMap((f) => f.shards ?? []).map((l) => l.lag_seconds));
		if (accepted !== null) this.sparks.in.add(accepted);
		if (processed !== null) this.sparks.out.add(processed);
		this.sparks.lag.add(lag);
		fill(this.cells.in, accepted === null ? '–' : fmt.rate(accepted));
		fill(this.cells.out, processed === null ? '–' : fmt.rate(processed));
		fill(this.cells.lag, fmt.span(lag * 1000));
		fill(this.cells.refused, fmt.brief(total(s.doors, refused)));
		fill(this.cells.dead, fmt.brief(s.dead_letters));
		fill(this.since, `up ${fmt.span(now - Date.parse(s.started))}${s.version ? ` · version ${s.version}` : ''}`);
		const focused = this.body.contains(document.activeElement) ? document.activeElement.closest('details')?.dataset.key : null;
		const open = new Set([...this.body.querySelectorAll('details[open]')].map((d) => d.dataset.key));
		const rateOf = (cur, prev) => {
			const r = per(cur, prev);
			return r === null ? '–' : fmt.rate(r);
		};
		fill(this.body,
			box('Doors', table(['Door', '-Connections', '-Rate', '-Accepted', '-Bytes', 'Refused'], s.doors.map((d) => [
				h('span', {}, h('b', {}, d.name), d.address && h('small', {}, ` ${d.address}`)), fmt.count(d.connections),
				rateOf(d.accepted, b?.doors.find((x) => x.name === d.name)?.accepted), fmt.brief(d.accepted), fmt.bytes(d.bytes),
				Object.entries(d.refused ?? {}).filter(([, n]) => n).map(([why, n]) => h('span', {class: 'refused'}, `${why}: ${fmt.brief(n)}`)),
			]))),
			box('Streams', s.streams.map((st) => {
				const prev = b?.streams.find((x) => x.name === st.name);
				return detail(`s/${st.name}`, open, [h('b', {}, st.name), h('span', {}, rateOf(st.records, prev?.records)), h('span', {}, `${fmt.bytes(st.stored_bytes)} kept`),
					h('span', {}, `${st.shards?.length ?? 0} ${st.shards?.length === 1 ? 'shard' : 'shards'}`), st.fenced && h('span', {class: 'tag critical'}, st.fenced)],
				table(['Shard', '-Records', 'Newest', 'Oldest'], (st.shards ?? []).map((sh) => [
					h('code', {}, sh.id), fmt.brief(sh.records), sh.tip ? fmt.age(Date.parse(sh.tip), now) : '–', sh.oldest ? fmt.age(Date.parse(sh.oldest), now) : '–'])));
			})),
			box('Consumers', s.functions.map((f) => {
				const prev = b?.functions.find((x) => x.name === f.name), shards = f.shards ?? [];
				const worst = Math.max(0, ...shards.map((l) => l.lag_seconds)), waiting = total(shards, (l) => Math.max(0, l.lag));
				return detail(`f/${f.name}`, open, [h('b', {}, f.name), h('span', {}, rateOf(f.processed, prev?.processed)),
					h('span', {class: worst > 5 ? 'late' : ''}, waiting ? `${fmt.brief(waiting)} waiting, ${fmt.span(worst * 1000)}` : 'caught up'),
					f.errors > 0 && h('span', {class: 'tag warning'}, `${fmt.brief(f.errors)} errors`), f.dead_letters > 0 && h('span', {class: 'tag critical'}, `${fmt.brief(f.dead_letters)} dead`)],
				[f.last_error && message(`Last error: ${f.last_error}`, 'error'), lagBars(shards)]);
			})),
			s.archive && box('Archive', h('dl', {class: 'facts'}, ...[
				['Files', fmt.count(s.archive.files)], ['Rows', fmt.brief(s.archive.rows)], ['Size', fmt.bytes(s.archive.bytes)],
				['Not yet in a file', `${fmt.brief(s.archive.tail_rows)} rows`], ['Newest file', s.archive.newest ? fmt.age(Date.parse(s.archive.newest), now) : '–'],
			].map(([k, v]) => h('div', {}, h('dt', {}, k), h('dd', {}, v)))), s.archive.error && message(s.archive.error, 'error')),
			s.sinks.length > 0 && box('Notifications', table(['Sink', '-Sent', '-Failed', '-Waiting', 'Error'], s.sinks.map((k) => [k.name, fmt.brief(k.sent), fmt.brief(k.failed), fmt.brief(k.pending), k.error ?? '']))));
		if (focused) this.body.querySelector(`details[data-key="${CSS.escape(focused)}"] summary`)?.focus({preventScroll: true});
		this.before = s;
	}

	async #letters(older = false) {
		try {
			const page = await get(`/v1/deadletters${query({limit: 25, before: older ? this.next : ''})}`);
			const rows = page.dead_letters.map((l) => h('button', {type: 'button', class: 'letter-row', onclick: () => this.#letter(l.ref)},
				h('span', {class: 'letter-reason'}, l.reason), h('span', {class: 'letter-about'}, [l.source, l.key].filter(Boolean).join(' · ')), moment(Date.parse(l.at), this.app.now())));
			if (older) this.letters.append(...rows);
			else fill(this.letters, rows, !rows.length && message('None. Everything could be used.', 'calm'));
			this.next = page.next;
			this.more.hidden = !page.next;
		} catch (err) {
			fill(this.letters, message(err.message, err.status === 501 ? 'note' : 'error'));
		}
	}

	async #letter(ref) {
		const close = h('button', {type: 'button', class: 'button icon-only', 'aria-label': 'Close', onclick: () => this.dialog.close()}, icon('close'));
		const show = (...body) => fill(this.dialog, h('div', {class: 'section-head'}, h('h2', {}, 'Dead letter'), close), ...body);
		show(message('Loading …'));
		this.dialog.showModal();
		try {
			const l = await get(`/v1/deadletters/${encodeURIComponent(ref)}`);
			const bytes = Uint8Array.from(atob(l.data ?? ''), (c) => c.charCodeAt(0));
			const facts = [['Source', l.source], ['From', l.from], ['Key', l.key], ['Stream', l.stream], ['Shard', l.shard], ['Position', l.position], ['Refused', fmt.fullTime(Date.parse(l.at))]];
			show(h('p', {class: 'letter-why'}, l.reason),
				h('dl', {class: 'facts'}, facts.filter(([, v]) => v).map(([k, v]) => h('div', {}, h('dt', {}, k), h('dd', {}, v)))),
				h('h3', {}, `Payload, ${fmt.bytes(bytes.length + (l.cut ?? 0))}`), h('pre', {tabindex: 0}, payload(bytes)),
				l.cut > 0 && message(`${fmt.bytes(l.cut)} more were not kept.`, 'note'));
		} catch (err) {
			show(message(err.message, 'error'));
		}
		close.focus();
	}
}

const box = (name, ...body) => h('section', {class: 'box'}, h('h2', {}, name), ...body);

function detail(key, open, heads, ...body) {
	return h('details', {'data-key': key, open: open.has(key)}, h('summary', {}, heads), ...body);
}

// lagBars shows how far behind a function is on each shard.
function lagBars(shards) {
	const top = Math.max(1, ...shards.map((l) => l.lag_seconds));
	return h('ul', {class: 'lags'}, shards.map((l) => h('li', {},
		h('code', {}, l.shard.replace(/^shardId-0*(?=\d)/, 'shard ')),
		h('span', {class: 'bar'}, h('i', {style: {width: `${Math.max(l.lag > 0 ? 2 : 0, (l.lag_seconds / top) * 100)}%`}})),
		h('span', {class: 'num'}, l.lag < 0 ? 'unknown' : `${fmt.brief(l.lag)} · ${fmt.span(l.lag_seconds * 1000)}`))));
}

// payload shows text as text and anything else as bytes.
function payload(bytes) {
	try {
		const text = new TextDecoder('utf-8', {fatal: true}).decode(bytes);
		if (!/[\0-\x08\x0e-\x1f]/.test(text)) return text;
	} catch {
		// not text
	}
	const lines = [];
	for (let i = 0; i < Math.min(bytes.length, 4096); i += 16) {
		const row = [...bytes.subarray(i, i + 16)];
		lines.push(`${i.toString(16).padStart(6, '0')}  ${row.map((b) => b.toString(16).padStart(2, '0')).join(' ').padEnd(47)}  ${row.map((b) => (b >= 32 && b < 127 ? String.fromCharCode(b) : '.')).join('')}`);
	}
	return lines.join('\n');
}
