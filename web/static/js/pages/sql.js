// SQL: write, run with Ctrl-Enter, read as a table, take away as CSV.

import {post} from '../api.js';
import {fill, h, icon} from '../dom.js';
import * as fmt from '../format.js';
import {message} from '../parts.js';

const EXAMPLES = [
	['Readings in the last hour, by vehicle', "SELECT vehicle_id, count(*) AS readings, max(speed) AS top_speed, avg(fuel) AS fuel\nFROM readings\nWHERE event_time > now() - INTERVAL 1 HOUR\nGROUP BY vehicle_id\nORDER BY readings DESC\nLIMIT 100"],
	['Vehicles that are low on fuel', 'SELECT *\nFROM vehicles\nWHERE fuel < 15\nORDER BY fuel'],
	['Alerts by rule, last 7 days', "SELECT rule, severity, count(*) AS alerts, count(DISTINCT vehicle_id) AS vehicles\nFROM alerts\nGROUP BY rule, severity\nORDER BY alerts DESC"],
	['Daily figures', 'SELECT *\nFROM daily_kpis\nORDER BY date DESC, vehicle_id\nLIMIT 200'],
	['How late readings arrive', "SELECT date_trunc('hour', event_time) AS hour, count(*) AS readings,\n  avg(epoch_ms(arrival_time) - epoch_ms(event_time)) / 1000 AS mean_seconds_late\nFROM readings\nGROUP BY hour\nORDER BY hour DESC\nLIMIT 48"],
	['Windows, newest first', 'SELECT name, key, start, "end", rows, figures, final\nFROM windows\nORDER BY start DESC, name, key\nLIMIT 200'],
	['Cargo that got too warm', "SELECT vehicle_id, min(event_time) AS first, max(event_time) AS last, max(cargo_temp) AS warmest\nFROM readings\nWHERE cargo_temp > 8\nGROUP BY vehicle_id\nORDER BY warmest DESC"],
];
const TABLES = [
	['readings', 'every reading: vehicle_id, event_time, arrival_time, lat, lon, speed, heading, fuel, engine_temp, fuel_pressure, cargo_temp, rpm, odometer, battery, altitude, accuracy, status, flags, signals'],
	['vehicles', 'the latest state of each'], ['alerts', 'every alert'], ['daily_kpis', 'figures by vehicle and day'],
];
const KEEP = 'milepost-sql';
const DRAWN = 1000; // rows put into the table at once

export class SqlPage {
	name = 'sql';

	constructor(app) {
		this.app = app;
		this.editor = h('textarea', {
			class: 'editor', spellcheck: 'false', autocapitalize: 'off', autocomplete: 'off', rows: 8, 'aria-label': 'SQL statement',
			value: remembered() ?? EXAMPLES[0][1],
			onkeydown: (e) => {
				if (e.key === 'Enter' && (e.ctrlKey || e.metaKey)) {
					e.preventDefault();
					this.run();
				}
			},
		});
		this.runButton = h('button', {type: 'button', class: 'button primary', onclick: () => this.run(), title: 'Ctrl-Enter'}, icon('play'), 'Run');
		this.csvButton = h('button', {type: 'button', class: 'button', onclick: () => this.csv()}, icon('down'), 'CSV');
		this.examples = h('select', {'aria-label': 'Examples', onchange: () => {
			if (this.examples.value) this.editor.value = EXAMPLES[Number(this.examples.value)][1];
			this.examples.value = '';
			this.editor.focus();
		}}, h('option', {value: ''}, 'Examples'), EXAMPLES.map(([name], i) => h('option', {value: i}, name)));
		this.note = h('p', {class: 'sql-note', role: 'status', 'aria-live': 'polite'});
		this.result = h('div', {class: 'result', tabindex: 0, role: 'region', 'aria-label': 'Result'});
		const {rows, timeout_ms: timeout} = app.config.sql_limits;
		this.el = h('div', {class: 'page sql-page'},
			h('div', {class: 'page-head'}, h('h1', {}, 'SQL'), this.examples),
			h('details', {class: 'tables'}, h('summary', {}, 'Tables'), h('dl', {}, TABLES.map(([t, about]) => [h('dt', {}, t), h('dd', {}, about)]))),
			this.editor,
			h('div', {class: 'sql-bar'}, this.runButton, this.csvButton,
				h('span', {class: 'hint'}, `Ctrl-Enter runs. Read only; at most ${fmt.count(rows)} rows and ${fmt.span(timeout)}.`)),
			this.note, this.result);
	}

	title() {
		return 'SQL';
	}

	enter() {
		if (!this.app.config.has.sql) {
			fill(this.note, 'SQL is not available in this server: it needs a build with cgo and a C compiler.');
			this.runButton.disabled = this.csvButton.disabled = true;
		} else if (matchMedia('(min-width: 761px)').matches) {
			this.editor.focus();
		}
	}

	leave() {}

	async run() {
		this.stop?.abort();
		const stop = (this.stop = new AbortController());
		remember(this.editor.value);
		this.runButton.disabled = true;
		fill(this.note, 'Running …');
		const began = performance.now();
		try {
			const res = await post('/v1/sql', {sql: this.editor.value}, {signal: stop.signal});
			this.#show(await res.json(), performance.now() - began);
		} catch (err) {
			if (err.name === 'AbortError') return;
			fill(this.result);
			fill(this.note, message(err.message, 'error'));
		} finally {
			if (stop === this.stop) this.runButton.disabled = false;
		}
	}

	#show({columns, rows, truncated, elapsed_ms: elapsed}, took) {
		fill(this.note, `${fmt.count(rows.length)} ${rows.length === 1 ? 'row' : 'rows'} in ${fmt.span(elapsed ?? took)}`,
			truncated && h('strong', {class: 'truncated'}, ' · cut off at the limit: there are more rows'),
			rows.length > DRAWN && ` · the first ${fmt.count(DRAWN)} are shown, CSV has all`);
		const numeric = columns.map((c) => /INT|DOUBLE|FLOAT|DECIMAL|REAL|NUMERIC/i.test(c.type));
		const cell = (v, i) => {
			if (v === null) return h('td', {class: 'null'}, 'null');
			if (typeof v === 'object') return h('td', {}, JSON.stringify(v));
			if (columns[i].name === 'vehicle_id') return h('td', {}, h('a', {href: `/vehicles/${encodeURIComponent(v)}`}, v));
			return h('td', {class: numeric[i] ? 'num' : String(v).length > 60 ? 'long' : ''}, String(v));
		};
		fill(this.result, h('table', {},
			h('thead', {}, h('tr', {}, columns.map((c, i) => h('th', {scope: 'col', class: numeric[i] ? 'num' : ''}, c.name, h('small', {}, c.type.toLowerCase()))))),
			h('tbody', {}, rows.slice(0, DRAWN).map((r) => h('tr', {}, r.map(cell))))));
		this.result.scrollTo(0, 0);
	}

	async csv() {
		this.csvButton.disabled = true;
		try {
			const res = await post('/v1/sql?format=csv', {sql: this.editor.value});
			const url = URL.createObjectURL(await res.blob());
			h('a', {href: url, download: 'milepost.csv'}).click();
			setTimeout(() => URL.revokeObjectURL(url), 10_000);
		} catch (err) {
			fill(this.note, message(err.message, 'error'));
		} finally {
			this.csvButton.disabled = false;
		}
	}
}

function remembered() {
	try {
		return localStorage.getItem(KEEP);
	} catch {
		return null;
	}
}

function remember(sql) {
	try {
		localStorage.setItem(KEEP, sql);
	} catch {
		// it is in the editor still
	}
}
