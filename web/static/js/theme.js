// Light, dark, or as the system says; remembered.

const KEY = 'milepost-theme';
const system = matchMedia('(prefers-color-scheme: dark)');
const listeners = new Set();
let choice = read();

function read() {
	try {
		return localStorage.getItem(KEY) ?? 'auto';
	} catch {
		return 'auto'; // storage is off
	}
}

export const themeChoice = () => choice;
export const isDark = () => (choice === 'auto' ? system.matches : choice === 'dark');
export const onTheme = (fn) => listeners.add(fn);

export function setTheme(next) {
	choice = next;
	try {
		localStorage.setItem(KEY, next);
	} catch {
		// it holds until the page is left
	}
	apply();
}

export function apply() {
	document.documentElement.dataset.theme = isDark() ? 'dark' : 'light';
	document.querySelector('meta[name=theme-color]').content = isDark() ? '#141b23' : '#ffffff';
	for (const fn of listeners) fn(isDark());
}

system.addEventListener('change', apply);

// color reads a colour of the current theme, for canvases.
export const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
