// Numbers, times and names as people read them: the browser's language and zone, always with the unit.

const number = [0, 1, 2].map((d) => new Intl.NumberFormat(undefined, {maximumFractionDigits: d}));
const compact = new Intl.NumberFormat(undefined, {notation: 'compact', maximumFractionDigits: 1});
const clock = new Intl.DateTimeFormat(undefined, {hour: '2-digit', minute: '2-digit', second: '2-digit'});
const short = new Intl.DateTimeFormat(undefined, {hour: '2-digit', minute: '2-digit'});
const dayClock = new Intl.DateTimeFormat(undefined, {month: 'short', day: 'numeric', hour: '2-digit', minute: '2-digit'});
const full = new Intl.DateTimeFormat(undefined, {dateStyle: 'medium', timeStyle: 'long'});

export const count = (n) => number[0].format(n);
export const brief = (n) => (Math.abs(n) < 10_000 ? number[0].format(n) : compact.format(n));

// value writes a signal's value in the unit people expect on the dashboard of a vehicle.
export function value(v, unit) {
	if (v === null || v === undefined || Number.isNaN(v)) return '–';
	if (unit === 'm' && Math.abs(v) >= 10_000) return `${number[Math.abs(v) < 1e6 ? 1 : 0].format(v / 1000)} km`;
	if (unit === 'deg') return `${number[0].format(v)}° ${compass(v)}`;
	const digits = Math.abs(v) >= 100 ? 0 : Math.abs(v) >= 10 ? 1 : 2;
	return number[digits].format(v) + (unit ? (unit === '%' ? ' %' : ` ${unit}`) : '');
}

export const compass = (deg) => ['N', 'NE', 'E', 'SE', 'S', 'SW', 'W', 'NW'][Math.round(deg / 45) % 8];

export const speed = (v) => (v >= 0 ? `${number[0].format(v)} km/h` : 'speed unknown');

export function bytes(n) {
	const units = ['B', 'kB', 'MB', 'GB', 'TB', 'PB'];
	let i = 0;
	for (; n >= 1000 && i < units.length - 1; i++) n /= 1000;
	return `${number[n < 10 && i > 0 ? 1 : 0].format(n)} ${units[i]}`;
}

export const rate = (n) => `${n < 10 ? number[1].format(n) : brief(n)}/s`;

// span writes a length of time: "4 s", "12 min", "3 h 5 min", "2 d".
export function span(ms) {
	const s = Math.max(0, ms) / 1000;
	if (s < 1) return `${Math.round(s * 1000)} ms`;
	if (s < 90) return `${number[0].format(s)} s`;
	if (s < 3600) return `${Math.round(s / 60)} min`;
	if (s < 48 * 3600) {
		const m = Math.round(s / 60);
		return m % 60 && s < 12 * 3600 ? `${Math.floor(m / 60)} h ${m % 60} min` : `${Math.round(m / 60)} h`;
	}
	return `${Math.round(s / 86400)} d`;
}

// age is how long ago a moment was. A clock that is a little off does not make it the future.
export function age(ms, now) {
	if (!ms) return 'never';
	const d = now - ms;
	return d < 1500 ? 'now' : `${span(d)} ago`;
}

export const timeOfDay = (ms) => clock.format(ms);
export const when = (ms, now = Date.now()) => (Math.abs(now - ms) < 20 * 3600e3 && new Date(ms).getDate() === new Date(now).getDate() ? clock : dayClock).format(ms);
export const fullTime = (ms) => full.format(ms);
export const axisTime = (ms, range) => (range > 36 * 3600e3 ? dayClock : range < 10 * 60e3 ? clock : short).format(ms);

export function place(lat, lon) {
	return `${Math.abs(lat).toFixed(5)}° ${lat < 0 ? 'S' : 'N'}, ${Math.abs(lon).toFixed(5)}° ${lon < 0 ? 'W' : 'E'}`;
}

// signalName makes a signal's name readable; unknown ones stay what the device calls them.
export function signalName(name) {
	return SIGNALS[name] ?? name.replaceAll('_', ' ');
}

const SIGNALS = {
	speed: 'Speed', heading: 'Heading', fuel: 'Fuel', engine_temp: 'Engine temp.', fuel_pressure: 'Fuel pressure',
	cargo_temp: 'Cargo temp.', rpm: 'Engine speed', odometer: 'Odometer', battery: 'Battery', altitude: 'Altitude',
	accuracy: 'Position accuracy',
};
