// Building the page. Text always goes in as text: nothing a device says is ever parsed as HTML.

const SVG = 'http://www.w3.org/2000/svg';

// h makes an element. Attributes beginning with "on" are listeners; null and false leave an attribute out.
export function h(tag, attrs = {}, ...children) {
	const el = document.createElement(tag);
	setAttrs(el, attrs);
	append(el, children);
	return el;
}

function setAttrs(el, attrs) {
	for (const [k, v] of Object.entries(attrs)) {
		if (v === null || v === undefined || v === false) continue;
		if (k.startsWith('on')) el.addEventListener(k.slice(2), v);
		else if (k === 'value') el.value = v;
		else if (k === 'style') Object.assign(el.style, v);
		else el.setAttribute(k, v === true ? '' : String(v));
	}
}

function append(el, children) {
	for (const c of children.flat(Infinity)) {
		if (c === null || c === undefined || c === false) continue;
		el.append(c instanceof Node ? c : document.createTextNode(String(c)));
	}
}

// fill replaces an element's content.
export function fill(el, ...children) {
	el.replaceChildren();
	append(el, children);
	return el;
}

// setText writes only when it must, so that a screen reader is not told again.
export function setText(el, text) {
	if (el.textContent !== text) el.textContent = text;
}

const ICONS = {
	map: 'M3 6.5 9 4l6 2.5L21 4v13.5L15 20l-6-2.5L3 20zM9 4v13.5M15 6.5V20',
	bell: 'M6 16.5V11a6 6 0 1 1 12 0v5.5l1.5 2h-15zM10 21h4',
	sql: 'M4 6.5C4 4.6 7.6 3 12 3s8 1.6 8 3.5v11c0 1.9-3.6 3.5-8 3.5s-8-1.6-8-3.5zM4 6.5C4 8.4 7.6 10 12 10s8-1.6 8-3.5M4 12c0 1.9 3.6 3.5 8 3.5s8-1.6 8-3.5',
	flow: 'M3 6h5l4 6-4 6H3M12 12h9M17 8l4 4-4 4',
	device: 'M8.5 8.5h7v7h-7zM5.5 5.5h13v13h-13zM9.5 2v3.5M14.5 2v3.5M9.5 18.5V22M14.5 18.5V22M2 9.5h3.5M2 14.5h3.5M18.5 9.5H22M18.5 14.5H22',
	sun: 'M12 7.5a4.5 4.5 0 1 0 0 9 4.5 4.5 0 0 0 0-9M12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.4M17.6 17.6 19 19M5 19l1.4-1.4M17.6 6.4 19 5',
	moon: 'M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5z',
	auto: 'M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18',
	back: 'M15 5l-7 7 7 7',
	search: 'M10.5 4a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13M15.5 15.5 21 21',
	check: 'M5 12.5 10 17.5 19.5 7',
	close: 'M6 6l12 12M18 6 6 18',
	play: 'M7 4.5v15l12-7.5z',
	down: 'M12 4v11M7 11l5 5 5-5M5 20h14',
	copy: 'M9 9h11v11H9zM5 15H4V4h11v1',
	plus: 'M12 5v14M5 12h14',
	minus: 'M5 12h14',
	fit: 'M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5',
	arrow: 'M5 12h14M13 6l6 6-6 6',
};

export function icon(name) {
	const svg = document.createElementNS(SVG, 'svg');
	svg.setAttribute('viewBox', '0 0 24 24');
	svg.setAttribute('class', 'icon');
	svg.setAttribute('aria-hidden', 'true');
	const path = document.createElementNS(SVG, 'path');
	path.setAttribute('d', ICONS[name]);
	svg.append(path);
	return svg;
}

// toast says something for a few seconds.
export function toast(text, kind = 'info') {
	const el = h('div', {class: `toast ${kind}`}, text);
	document.getElementById('toasts').append(el);
	setTimeout(() => el.remove(), 6000);
}

// frameOnce makes fn run at most once a frame.
export function frameOnce(fn) {
	let asked = false;
	return () => {
		if (asked) return;
		asked = true;
		requestAnimationFrame(() => {
			asked = false;
			fn();
		});
	};
}

export const reducedMotion = () => matchMedia('(prefers-reduced-motion: reduce)').matches;
