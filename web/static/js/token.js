// The server's token (http.token): asked for once, when the server first wants it, and kept until this tab is closed.

import {form} from './dialog.js';
import {h} from './dom.js';

const KEY = 'milepost-token';
let kept = '';
let asking = null;

try {
	kept = sessionStorage.getItem(KEY) ?? '';
} catch {
	// storage is off: it holds until the page is left
}

export const stored = () => kept;

function keep(token) {
	kept = token;
	try {
		sessionStorage.setItem(KEY, token);
	} catch {
		// as above
	}
}

// withToken does what somebody asked for. If the server wants a token it asks for one, and does it again. Only for what people do:
// what the page does by itself must not open a dialog.
export async function withToken(act) {
	for (;;) {
		const used = kept;
		try {
			return await act();
		} catch (err) {
			if (err.status !== 401 || (kept === used && !(await (asking ??= askFor(used !== '').finally(() => (asking = null)))))) throw err;
		}
	}
}

function askFor(refused) {
	const input = h('input', {type: 'password', autocomplete: 'off', spellcheck: 'false', required: true, 'aria-label': 'Token'});
	return form({
		title: 'The server’s token', action: 'Continue',
		body: [
			refused ? h('p', {class: 'message error', role: 'alert'}, 'The server did not take that token.') : h('p', {}, 'This server wants its token for what administers or changes something.'),
			h('label', {class: 'field'}, h('span', {}, 'Token'), input, h('small', {}, 'It is http.token in the server’s configuration. This tab keeps it until it is closed.'))],
		run: () => {
			const token = input.value.trim();
			if (!/^[\x21-\x7e]+$/.test(token)) throw new Error('A token has only letters, digits and signs, and no spaces.');
			keep(token);
			return true;
		},
	});
}
