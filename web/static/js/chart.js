// A line chart on a canvas: the band between smallest and largest, the mean as a line, gaps left open, an axis with round
// numbers, and a cursor that mouse, finger or arrow keys move. Several charts may share one cursor.

import {frameOnce, h} from './dom.js';
import * as fmt from './format.js';
import {color, onTheme} from './theme.js';

const LEFT = 46, RIGHT = 10, TOP = 8, BOTTOM = 20;

export class Chart {
	// cursor(ms or null) is told where the reader looks.
	constructor({title, unit, height = 120, cursor = () => {}, hue = '--accent'}) {
		Object.assign(this, {title, unit, cursor, hue});
		this.data = null;
		this.at = null;
		this.canvas = h('canvas', {tabindex: 0, role: 'img', style: {height: `${height}px`}});
		this.now = h('span', {class: 'chart-now'});
		this.el = h('figure', {class: 'chart'}, h('figcaption', {}, h('span', {class: 'chart-title'}, title), this.now), this.canvas);
		this.draw = frameOnce(() => this.#draw());
		new ResizeObserver(this.draw).observe(this.canvas);
		onTheme(this.draw);
		this.#listen();
	}

	// show takes {from, to, start, step, points: [[bucket, min, mean, max, n], …]}.
	show(data) {
		this.data = data;
		const p = data.points;
		let lo = Infinity, hi = -Infinity;
		for (const [, min, , max] of p) {
			lo = Math.min(lo, min);
			hi = Math.max(hi, max);
		}
		const mean = p.length ? p.reduce((s, b) => s + b[2] * b[4], 0) / p.reduce((s, b) => s + b[4], 0) : 0;
		this.canvas.setAttribute('aria-label', p.length
			? `${this.title}: from ${fmt.value(lo, this.unit)} to ${fmt.value(hi, this.unit)}, mean ${fmt.value(mean, this.unit)}. Left and right arrow keys read the values.`
			: `${this.title}: no values in this time.`);
		this.#scale(lo, hi);
		this.#say();
		this.draw();
	}

	// look puts the cursor at a moment without telling anybody.
	look(ms) {
		this.at = ms;
		this.#say();
		this.draw();
	}

	#scale(lo, hi) {
		if (lo > hi) [lo, hi] = [0, 1];
		if (hi - lo < 1e-9 * Math.max(1, Math.abs(hi))) [lo, hi] = [lo - 1, hi + 1];
		const step = niceStep((hi - lo) / 3);
		this.lo = Math.floor(lo / step) * step;
		this.hi = Math.ceil(hi / step) * step;
		this.step = step;
	}

	#bucketAt(ms) {
		const {points, start, step} = this.data;
		const b = Math.floor((ms - start) / step);
		let lo = 0, hi = points.length - 1;
		while (lo < hi) {
			const mid = (lo + hi) >> 1;
			if (points[mid][0] < b) lo = mid + 1;
			else hi = mid;
		}
		const near = [points[lo - 1], points[lo]].filter(Boolean).sort((p, q) => Math.abs(p[0] - b) - Math.abs(q[0] - b))[0];
		return near && Math.abs(near[0] - b) <= 2 ? near : null;
	}

	#say() {
		const p = this.data?.points;
		let text = '';
		if (p?.length && this.at !== null) {
			const b = this.#bucketAt(this.at);
			text = b ? `${fmt.value(b[2], this.unit)} at ${fmt.when(this.data.start + b[0] * this.data.step)}${b[3] > b[1] ? ` (${fmt.value(b[1], '')} – ${fmt.value(b[3], '')})` : ''}` : 'no value';
		} else if (p?.length) {
			text = fmt.value(p[p.length - 1][2], this.unit);
		}
		this.now.textContent = text;
	}

	#draw() {
		const dpr = window.devicePixelRatio || 1, w = this.canvas.clientWidth, hh = this.canvas.clientHeight;
		if (!w || !this.data) return;
		this.canvas.width = Math.round(w * dpr);
		this.canvas.height = Math.round(hh * dpr);
		const g = this.canvas.getContext('2d');
		g.scale(dpr, dpr);
		const {from, to, start, step, points} = this.data;
		const x = (ms) => LEFT + ((ms - from) / (to - from)) * (w - LEFT - RIGHT);
		const y = (v) => TOP + ((this.hi - v) / (this.hi - this.lo)) * (hh - TOP - BOTTOM);
		g.font = '11px system-ui, sans-serif';
		g.strokeStyle = color('--line');
		g.fillStyle = color('--muted');
		g.textAlign = 'right';
		g.textBaseline = 'middle';
		for (let v = this.lo; v <= this.hi + this.step / 2; v += this.step) {
			g.beginPath();
			g.moveTo(LEFT, Math.round(y(v)) + 0.5);
			g.lineTo(w - RIGHT, Math.round(y(v)) + 0.5);
			g.stroke();
			g.fillText(axis(v, this.step, this.unit), LEFT - 6, y(v));
		}
		g.textBaseline = 'alphabetic';
		for (const t of timeTicks(from, to, Math.max(2, Math.floor((w - LEFT) / 90)))) {
			g.textAlign = x(t) > w - 30 ? 'right' : x(t) < LEFT + 18 ? 'left' : 'center';
			g.fillText(fmt.axisTime(t, to - from), Math.min(x(t), w - 2), hh - 5);
		}
		if (!points.length) {
			g.textAlign = 'center';
			g.fillText('no values in this time', (LEFT + w) / 2, hh / 2 - 4);
			return;
		}
		const mid = (b) => x(Math.min(to, Math.max(from, start + (b[0] + 0.5) * step)));
		const accent = color(this.hue);
		for (const run of runs(points)) {
			g.fillStyle = accent;
			g.globalAlpha = 0.18;
			g.beginPath();
			for (const b of run) g.lineTo(mid(b), y(b[3]));
			for (const b of run.toReversed()) g.lineTo(mid(b), y(b[1]));
			g.fill();
			g.globalAlpha = 1;
			g.strokeStyle = accent;
			g.lineWidth = 1.6;
			g.lineJoin = 'round';
			g.beginPath();
			if (run.length === 1) g.arc(mid(run[0]), y(run[0][2]), 1.4, 0, 7);
			else for (const b of run) g.lineTo(mid(b), y(b[2]));
			g.stroke();
		}
		if (this.at !== null && this.at >= from && this.at <= to) {
			const b = this.#bucketAt(this.at), cx = b ? mid(b) : x(this.at);
			g.strokeStyle = color('--muted');
			g.lineWidth = 1;
			g.beginPath();
			g.moveTo(Math.round(cx) + 0.5, TOP);
			g.lineTo(Math.round(cx) + 0.5, hh - BOTTOM);
			g.stroke();
			if (b) {
				g.fillStyle = accent;
				g.beginPath();
				g.arc(cx, y(b[2]), 3.5, 0, 7);
				g.fill();
			}
		}
	}

	#listen() {
		const c = this.canvas;
		const point = (e) => {
			if (!this.data) return;
			const {from, to} = this.data;
			const share = (e.clientX - c.getBoundingClientRect().left - LEFT) / (c.clientWidth - LEFT - RIGHT);
			this.cursor(from + Math.min(1, Math.max(0, share)) * (to - from));
		};
		c.addEventListener('pointermove', point);
		c.addEventListener('pointerdown', point);
		c.addEventListener('pointerleave', (e) => e.pointerType !== 'touch' && this.cursor(null));
		c.addEventListener('keydown', (e) => {
			if (!this.data) return;
			const {from, to, step} = this.data, jump = e.shiftKey ? 10 * step : step;
			if (e.key === 'ArrowLeft') this.cursor(Math.max(from, (this.at ?? to) - jump));
			else if (e.key === 'ArrowRight') this.cursor(Math.min(to, (this.at ?? from) + jump));
			else if (e.key === 'Escape') this.cursor(null);
			else return;
			e.preventDefault();
		});
		c.addEventListener('blur', () => this.cursor(null));
	}
}

// runs splits the buckets where one or more are missing: a gap in the data is a gap in the line.
function runs(points) {
	const out = [];
	let run = [];
	for (const b of points) {
		if (run.length && b[0] - run[run.length - 1][0] > 2) {
			out.push(run);
			run = [];
		}
		run.push(b);
	}
	out.push(run);
	return out;
}

function niceStep(raw) {
	const mag = 10 ** Math.floor(Math.log10(raw));
	return [1, 2, 5, 10].find((m) => m * mag >= raw) * mag;
}

function axis(v, step, unit) {
	if (unit === 'm' && step >= 1000) return String(Number((v / 1000).toPrecision(6)));
	if (Math.abs(v) >= 10_000) return fmt.brief(v);
	return String(Number(v.toFixed(Math.max(0, -Math.floor(Math.log10(step))))));
}

// timeTicks are round moments of the reader's own day.
function timeTicks(from, to, most) {
	const steps = [1, 5, 10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800].map((s) => s * 1000);
	const step = steps.find((s) => (to - from) / s <= most) ?? steps.at(-1) * Math.ceil((to - from) / steps.at(-1) / most);
	const zone = new Date(to).getTimezoneOffset() * 60e3, out = [];
	for (let t = Math.ceil((from - zone) / step) * step + zone; t <= to; t += step) out.push(t);
	return out;
}

// Spark is a small line of the last values, for rates.
export class Spark {
	constructor(label, keep = 90) {
		this.values = [];
		this.keep = keep;
		this.el = h('canvas', {class: 'spark', role: 'img', 'aria-label': label});
		this.draw = frameOnce(() => this.#draw());
		new ResizeObserver(this.draw).observe(this.el);
		onTheme(this.draw);
	}

	add(v) {
		this.values.push(v);
		if (this.values.length > this.keep) this.values.shift();
		this.draw();
	}

	#draw() {
		const dpr = window.devicePixelRatio || 1, w = this.el.clientWidth, hh = this.el.clientHeight;
		if (!w) return;
		this.el.width = Math.round(w * dpr);
		this.el.height = Math.round(hh * dpr);
		const g = this.el.getContext('2d');
		g.scale(dpr, dpr);
		const top = Math.max(1e-9, ...this.values) * 1.15;
		const x = (i) => w - ((this.values.length - 1 - i) / (this.keep - 1)) * w, y = (v) => hh - 1 - (v / top) * (hh - 3);
		g.strokeStyle = color('--accent');
		g.lineWidth = 1.5;
		g.beginPath();
		this.values.forEach((v, i) => g.lineTo(x(i), y(v)));
		g.stroke();
		if (this.values.length < 2) return;
		g.lineTo(w, hh);
		g.lineTo(x(0), hh);
		g.globalAlpha = 0.12;
		g.fillStyle = color('--accent');
		g.fill();
	}
}
