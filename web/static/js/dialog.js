// Dialogs: something to read, or something to decide. Each is made when it is needed and gone when it is closed.

import {h, icon} from './dom.js';

let count = 0;

// dialog opens one. Escape, its cross and a click beside it close it.
export function dialog(title, ...body) {
	const id = `dialog-${count++}`;
	const close = h('button', {type: 'button', class: 'button icon-only', 'aria-label': 'Close', onclick: () => el.close()}, icon('close'));
	const el = h('dialog', {class: 'letter', 'aria-labelledby': id, onclose: () => el.remove(), onmousedown: (e) => {
		const r = el.getBoundingClientRect();
		if (e.target === el && (e.clientX < r.left || e.clientX > r.right || e.clientY < r.top || e.clientY > r.bottom)) el.close();
	}}, h('div', {class: 'section-head'}, h('h2', {id}, title), close), body);
	document.body.append(el);
	el.showModal();
	return el;
}

// form asks, and does what was asked for when its button is pressed. An error is said in the dialog, which stays open. The promise
// is what run returned, or null if somebody thought better of it. typed is what must be typed first, so that nobody does it by the way.
export function form({title, body, action, danger = false, typed = '', run}) {
	return new Promise((resolve) => {
		let result = null;
		const wrong = h('p', {class: 'message error', role: 'alert', hidden: true});
		const go = h('button', {type: 'submit', class: `button ${danger ? 'danger' : 'primary'}`, disabled: typed !== ''}, action);
		const word = typed && h('input', {type: 'text', autocomplete: 'off', spellcheck: 'false', autocapitalize: 'off', oninput: () => (go.disabled = word.value !== typed)});
		const el = dialog(title, h('form', {class: 'dialog-form', onsubmit: async (e) => {
			e.preventDefault();
			if (go.disabled) return;
			go.disabled = true;
			wrong.hidden = true;
			try {
				result = await run();
				el.close();
			} catch (err) {
				wrong.textContent = err.message;
				wrong.hidden = false;
				go.disabled = false;
			}
		}}, body, word && h('label', {class: 'field'}, h('span', {}, 'Type ', h('b', {class: 'typed'}, typed), ' to confirm'), word), wrong,
		h('div', {class: 'dialog-end'}, h('button', {type: 'button', class: 'button', onclick: () => el.close()}, 'Cancel'), go)));
		el.addEventListener('close', () => resolve(result));
		(el.querySelector('form :is(input, select, textarea):not(:disabled, [readonly])') ?? el.querySelector('.dialog-end .button')).focus();
	});
}
