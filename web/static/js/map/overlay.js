// The vehicles: a WebGL canvas over the map. Being apart from the map, it draws as often as vehicles move while the map
// below is drawn only when the view changes. One draw call, whatever the number of vehicles.

import {reducedMotion} from '../dom.js';
import {color} from '../theme.js';
import * as merc from './mercator.js';
import {FRAGMENT, VERTEX} from './shaders.js';

const STRIDE = 36; // bytes: 4 int32, 4 float32, 4 uint8
const JUMP = 0.0005; // of the world's width, some 20 km at the equator: too far to have driven, so no gliding
const PULSE = 2200; // ms
const SLOW = 45; // ms from drawing to the next frame: past it the machine has no graphics to spare

// radiusAt is a vehicle's radius in CSS pixels at a zoom.
export const radiusAt = (zoom) => Math.max(2.3, Math.min(9.5, 2.3 + (zoom - 3.2) * 0.95));

export class Overlay {
	// camera() returns {lon, lat, zoom}; show() says which vehicles to draw, worst first.
	constructor(canvas, fleet, camera) {
		this.canvas = canvas;
		this.fleet = fleet;
		this.camera = camera;
		this.shown = new Uint32Array(0);
		this.marked = {hovered: -1, selected: -1};
		this.dim = 1; // opacity of the others
		this.glides = new Glides(fleet);
		this.base = performance.now();
		this.frames = {drawn: 0, ms: 0};
		this.cost = 0; // ms from a drawing to the next frame, smoothed
		canvas.addEventListener('webglcontextlost', (e) => e.preventDefault());
		canvas.addEventListener('webglcontextrestored', () => this.#setUp() && this.draw());
		this.ok = this.#setUp();
		this.tick = this.tick.bind(this);
	}

	#setUp() {
		const gl = (this.gl = this.canvas.getContext('webgl2', {antialias: false, premultipliedAlpha: true, alpha: true}));
		if (!gl) return false;
		const program = gl.createProgram();
		for (const [type, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
			const s = gl.createShader(type);
			gl.shaderSource(s, source);
			gl.compileShader(s);
			gl.attachShader(program, s);
			if (!gl.getShaderParameter(s, gl.COMPILE_STATUS) && !gl.isContextLost()) throw new Error(`overlay: ${gl.getShaderInfoLog(s)}`);
		}
		gl.linkProgram(program);
		gl.useProgram(program);
		const places = new Map();
		this.at = (name) => {
			if (!places.has(name)) places.set(name, gl.getUniformLocation(program, name));
			return places.get(name);
		};
		gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
		gl.enableVertexAttribArray(0);
		gl.vertexAttribIPointer(0, 4, gl.INT, STRIDE, 0);
		gl.enableVertexAttribArray(1);
		gl.vertexAttribPointer(1, 4, gl.FLOAT, false, STRIDE, 16);
		gl.enableVertexAttribArray(2);
		gl.vertexAttribIPointer(2, 4, gl.UNSIGNED_BYTE, STRIDE, 32);
		for (let i = 0; i < 3; i++) gl.vertexAttribDivisor(i, 1);
		gl.enable(gl.BLEND);
		gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
		this.theme();
		return true;
	}

	// theme reads the colours again.
	theme() {
		if (!this.gl) return;
		const flat = (...names) => new Float32Array(names.flatMap((n) => rgb(color(n))));
		this.gl.uniform3fv(this.at('u_state'), flat('--online', '--stale', '--offline'));
		this.gl.uniform3fv(this.at('u_severity'), flat('--online', '--info', '--warning', '--critical'));
		this.gl.uniform3fv(this.at('u_edge'), flat('--vehicle-edge'));
		this.gl.uniform3fv(this.at('u_mark'), flat('--ink'));
	}

	// moved takes in the feed's change; show decides what of the fleet is drawn.
	moved(indexes, whole) {
		this.glides.moved(indexes, whole, (performance.now() - this.base) / 1000);
	}

	show(indexes) {
		this.shown = indexes;
		this.#pack();
		this.wake();
	}

	mark(kind, index) {
		if (this.marked[kind] === index) return;
		this.marked[kind] = index;
		this.#pack();
		this.wake();
	}

	// #pack writes the instances in drawing order: the worst last, so that they lie on top.
	#pack() {
		const {fleet, glides, shown, marked} = this;
		if ((this.room ?? 0) < shown.length + 2) {
			this.room = (shown.length + 2) * 2;
			this.buffer = new ArrayBuffer(this.room * STRIDE);
			this.i32 = new Int32Array(this.buffer);
			this.f32 = new Float32Array(this.buffer);
			this.u8 = new Uint8Array(this.buffer);
		}
		let n = 0, fastest = 0, critical = false;
		const put = (i, mark) => {
			if (!fleet.used[i] || !fleet.placed[i]) return;
			const o = n++ * (STRIDE / 4);
			glides.write(i, this.i32, this.f32, o);
			const b = o * 4 + 32;
			this.u8[b] = fleet.state[i];
			this.u8[b + 1] = fleet.severity[i];
			this.u8[b + 2] = mark;
			this.u8[b + 3] = fleet.speed[i] >= 2 && fleet.heading[i] >= 0 && fleet.state[i] !== 2 ? 1 : 0;
			if (fleet.state[i] === 0) fastest = Math.max(fastest, fleet.speed[i]);
			critical ||= fleet.severity[i] === 3;
		};
		for (let k = shown.length - 1; k >= 0; k--) put(shown[k], 0); // shown is sorted worst first
		if (marked.selected >= 0) put(marked.selected, 2);
		if (marked.hovered >= 0 && marked.hovered !== marked.selected) put(marked.hovered, 1);
		this.count = n;
		this.fastest = fastest / 3.6; // m/s
		this.critical = critical;
		this.dirty = true;
	}

	// draw draws now: the map calls it in the frame in which it moves, so that the two never part.
	draw() {
		const gl = this.gl;
		if (!gl || gl.isContextLost()) return;
		const began = performance.now();
		const {lon, lat, zoom} = this.camera();
		const dpr = Math.min(window.devicePixelRatio || 1, 2);
		const w = this.canvas.clientWidth, h = this.canvas.clientHeight;
		if (this.canvas.width !== Math.round(w * dpr) || this.canvas.height !== Math.round(h * dpr)) {
			this.canvas.width = Math.round(w * dpr);
			this.canvas.height = Math.round(h * dpr);
		}
		gl.viewport(0, 0, this.canvas.width, this.canvas.height);
		gl.clearColor(0, 0, 0, 0);
		gl.clear(gl.COLOR_BUFFER_BIT);
		if (this.count) {
			if (this.dirty) {
				gl.bufferData(gl.ARRAY_BUFFER, this.u8.subarray(0, this.count * STRIDE), gl.DYNAMIC_DRAW);
				this.dirty = false;
			}
			const pulse = reducedMotion() || this.cost > SLOW ? -1 : (began % PULSE) / PULSE;
			gl.uniform2i(this.at('u_center'), merc.ix(lon), merc.iy(lat));
			gl.uniform2f(this.at('u_view'), w / 2, h / 2);
			gl.uniform1f(this.at('u_world'), merc.worldSize(zoom));
			gl.uniform1f(this.at('u_now'), (began - this.base) / 1000);
			gl.uniform1f(this.at('u_radius'), radiusAt(zoom));
			gl.uniform1f(this.at('u_pulse'), pulse);
			gl.uniform1f(this.at('u_dim'), this.dim);
			gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, this.count);
		}
		this.last = began;
		this.#time();
		this.frames.drawn++;
		this.frames.ms += performance.now() - began;
	}

	// #time learns what a drawing costs here. Only the frame after it tells: the work is done on other threads.
	#time() {
		if (this.timing) return;
		this.timing = true;
		const began = performance.now();
		requestAnimationFrame(() => {
			this.timing = false;
			this.cost += (Math.min(500, performance.now() - began) - this.cost) * 0.1;
		});
	}

	// wake draws in the next frame and goes on while something moves that one could see.
	wake() {
		this.due = true;
		this.#ask(0);
	}

	// #ask has tick called after a while; sooner than was asked before, if so.
	#ask(wait) {
		if (this.asked) return;
		clearTimeout(this.timer);
		if (wait >= 40) {
			this.timer = setTimeout(() => this.#ask(0), Math.min(wait - 16, 60_000));
			return;
		}
		this.asked = true;
		requestAnimationFrame(this.tick);
	}

	tick(now) {
		this.asked = false;
		const wait = this.#interval();
		if (this.due || now - this.last >= wait - 4) {
			this.due = false;
			this.draw();
		}
		if (wait < Infinity && !document.hidden) this.#ask(wait);
	}

	// #interval is how long the picture stays true: until the fastest vehicle has moved half a pixel.
	#interval() {
		if (reducedMotion() || !this.canvas.clientWidth) return Infinity; // the feed's changes draw
		const {lat, zoom} = this.camera();
		const perMetre = merc.worldSize(zoom) / (40_075_017 * Math.cos((lat * Math.PI) / 180));
		const move = this.fastest > 0 ? 500 / (this.fastest * perMetre) : Infinity;
		// A machine that draws in software spends at most a third of its time on vehicles, and none on pulsing.
		if (this.cost > SLOW) return Math.max(move, 3 * this.cost);
		return Math.min(move, this.critical ? 42 : Infinity);
	}

	// pick returns the vehicle nearest to a point of the canvas within reach, or -1.
	pick(px, py, reach) {
		const {lon, lat, zoom} = this.camera();
		const world = merc.worldSize(zoom), now = (performance.now() - this.base) / 1000;
		const cx = merc.ix(lon), cy = merc.iy(lat);
		const hx = px - this.canvas.clientWidth / 2, hy = py - this.canvas.clientHeight / 2;
		let best = -1, near = Math.max(reach, radiusAt(zoom) + 3) ** 2;
		for (const i of this.shown) { // worst first, and strictly nearer wins: on a tie the one on top
			if (!this.fleet.placed[i]) continue;
			const [x, y] = this.glides.at(i, now);
			const dx = (((x - cx) | 0) / 4294967296) * world - hx, dy = ((y - cy) / 2147483648) * world - hy;
			const d = dx * dx + dy * dy;
			if (d < near) [best, near] = [i, d];
		}
		return best;
	}

	// placeOf is where a vehicle is drawn now, in CSS pixels of the canvas.
	placeOf(i) {
		const {lon, lat, zoom} = this.camera();
		const world = merc.worldSize(zoom);
		const [x, y] = this.glides.at(i, (performance.now() - this.base) / 1000);
		return [
			(((x - merc.ix(lon)) | 0) / 4294967296) * world + this.canvas.clientWidth / 2,
			((y - merc.iy(lat)) / 2147483648) * world + this.canvas.clientHeight / 2,
		];
	}
}

// Glides remembers for each vehicle the way it is drawn along: from where it was drawn when a fix came, to that fix, in the
// time that lay between its fixes.
class Glides {
	constructor(fleet) {
		this.fleet = fleet;
		this.grow(0);
	}

	grow(n) {
		const room = Math.max(256, n * 2), old = this.path ? this : null;
		this.path = copy(new Int32Array(room * 4), old?.path);
		this.motion = copy(new Float32Array(room * 4), old?.motion);
		this.fixed = copy(new Float32Array(room), old?.fixed); // when its newest fix came
		this.room = room;
	}

	moved(indexes, whole, now) {
		const {fleet, path, motion} = this;
		if (whole) this.fixed.fill(0);
		if (fleet.size > this.room) {
			this.grow(fleet.size);
			return this.moved(indexes, false, now);
		}
		const still = reducedMotion();
		for (const i of indexes) {
			if (!fleet.placed[i]) continue;
			const x = merc.ix(fleet.lon[i]), y = merc.iy(fleet.lat[i]), o = i * 4;
			const known = this.fixed[i] > 0;
			const [fx, fy, fh] = known ? this.at(i, now) : [x, y, fleet.heading[i]];
			const far = Math.abs((x - fx) | 0) / 4294967296 > JUMP || Math.abs(y - fy) / 2147483648 > JUMP;
			const glide = known && !far && !still;
			path[o] = glide ? fx : x;
			path[o + 1] = glide ? fy : y;
			path[o + 2] = x;
			path[o + 3] = y;
			motion[o] = now;
			// A little longer than the gap, so that the next fix comes before this way ends: no stop and go.
			motion[o + 1] = glide ? Math.min(5, Math.max(0.5, (now - this.fixed[i]) * 1.05)) : 0;
			motion[o + 2] = glide && fh >= 0 ? fh : fleet.heading[i];
			motion[o + 3] = fleet.heading[i] >= 0 ? fleet.heading[i] : -1000;
			this.fixed[i] = now;
		}
	}

	// at is where a vehicle is drawn at a moment: x, y and heading.
	at(i, now) {
		const {path, motion} = this, o = i * 4;
		const t = motion[o + 1] > 0 ? Math.min(1, Math.max(0, (now - motion[o]) / motion[o + 1])) : 1;
		const turn = ((motion[o + 3] - motion[o + 2] + 540) % 360) - 180;
		return [
			(path[o] + Math.round(((path[o + 2] - path[o]) | 0) * t)) | 0,
			path[o + 1] + Math.round((path[o + 3] - path[o + 1]) * t),
			motion[o + 3] < 0 ? -1 : (motion[o + 2] + turn * t + 360) % 360,
		];
	}

	write(i, i32, f32, o) {
		for (let k = 0; k < 4; k++) {
			i32[o + k] = this.path[i * 4 + k];
			f32[o + 4 + k] = this.motion[i * 4 + k];
		}
	}
}

function copy(to, from) {
	if (from) to.set(from);
	return to;
}

function rgb(hex) {
	const n = parseInt(hex.slice(1), 16);
	return [(n >> 16) / 255, ((n >> 8) & 255) / 255, (n & 255) / 255];
}
