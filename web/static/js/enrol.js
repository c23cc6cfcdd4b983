// Enrolling a device with a one-time token: a link as a QR code for a phone, and commands for everything else.

import {get, post, remove} from './api.js';
import {dialog, form} from './dialog.js';
import {fill, h, toast} from './dom.js';
import * as fmt from './format.js';
import {code, field, message} from './parts.js';
import {withToken} from './token.js';

const LIVES = [['1h', '1 hour'], ['24h', '1 day'], ['168h', '7 days'], ['720h', '30 days']];

// enrol asks for which device, and shows the token's QR code. A device that is there already gets another certificate.
export async function enrol(app, id = '') {
	const device = h('input', {type: 'text', value: id, readonly: id !== '', required: true, maxlength: 128, autocomplete: 'off', spellcheck: 'false', autocapitalize: 'off', placeholder: 'truck-17'});
	const vehicle = h('input', {type: 'text', maxlength: 128, autocomplete: 'off', spellcheck: 'false', autocapitalize: 'off', placeholder: 'the same'});
	const policy = h('select', {}, h('option', {value: ''}, 'own: its own topics only'));
	const life = h('select', {}, LIVES.map(([v, text]) => h('option', {value: v}, text)));
	life.value = '24h';
	if (!id) {
		try {
			const {policies} = await withToken(() => get('/v1/ca'));
			policy.append(...Object.keys(policies).filter((n) => n !== 'own').sort().map((n) => h('option', {value: n}, n)));
		} catch {
			// without the list there is own
		}
	}
	const made = await form({
		title: id ? `Another certificate for ${id}` : 'Enrol a device', action: 'Make a token',
		body: [h('p', {class: 'hint'}, 'A token lets the device fetch a certificate, once. Its private key stays on the device.'),
			h('div', {class: 'connect-form'}, field('Device', device, 'letters, digits and . _ : @ -'), !id && field('Vehicle it reports for', vehicle),
				!id && field('Policy', policy), field('The token can be used for', life))],
		run: async () => (await withToken(() => post('/v1/device-tokens', {
			device: device.value.trim(), ...(vehicle.value.trim() && {vehicle: vehicle.value.trim()}), ...(policy.value && {policy: policy.value}), expires_in: life.value,
		}))).json(),
	});
	if (made) await show(app, made);
}

function show(app, {token, secret, url}) {
	const link = url || `${location.origin}/v1/devices/enroll?${new URLSearchParams({device: token.device, token: secret})}`;
	const at = new URL(link), origin = at.origin, state = h('p', {class: 'hint', role: 'status'}, 'Waiting for the device …');
	const el = dialog(`Enrol ${token.device}`,
		h('p', {class: 'message note'}, `This is shown once. The token can be used one time, until ${fmt.when(Date.parse(token.expires), app.now())}.`),
		state,
		at.protocol !== 'https:' && h('p', {class: 'message error'}, 'The link is not encrypted: use it only in a network that you trust. milepost ca init --url https://… gives the server a public address.'),
		h('div', {class: 'connect-box'},
			h('figure', {class: 'qr'}, h('img', {src: `/v1/qr?text=${encodeURIComponent(link)}`, alt: `QR code to enrol ${token.device}`, width: 240, height: 240}),
				h('figcaption', {}, 'For a phone: it opens the page that makes its certificate.')),
			h('div', {}, h('h3', {}, 'The link'), code(link),
				h('h3', {}, 'On a device with a shell'),
				code(`curl -sSk ${origin}/v1/ca/root.crt -o root.crt\nopenssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \\\n  -keyout ${token.device}.key -out ${token.device}.csr -subj /CN=${token.device}\ncurl -sS --cacert root.crt ${origin}/v1/devices/enroll \\\n  -H 'Authorization: Bearer ${secret}' \\\n  -H 'Content-Type: application/pkcs10' -H 'Accept: application/x-pem-file' \\\n  --data-binary @${token.device}.csr -o ${token.device}.crt`),
				h('p', {class: 'hint'}, 'The first line trusts the network, once: bring root.crt another way if you do not.'))));
	return new Promise((resolve) => {
		const look = setInterval(async () => {
			try {
				const {tokens: all} = await get('/v1/device-tokens');
				if (!all.find((t) => t.id === token.id)?.used) return;
				clearInterval(look);
				state.className = 'message enrolled';
				fill(state, `${token.device} has its certificate.`);
			} catch {
				// it looks again
			}
		}, 3000);
		el.addEventListener('close', () => {
			clearInterval(look);
			resolve();
		});
	});
}

// tokens is the list of those that can still be used, to withdraw them.
export function tokens(app) {
	const list = h('ul', {class: 'commands'}), el = h('details', {class: 'tokens', hidden: true}, h('summary', {}), list);
	const load = async () => {
		let open;
		try {
			open = (await get('/v1/device-tokens')).tokens.filter((t) => t.uses > 0 && Date.parse(t.expires) > app.now());
		} catch {
			return; // the page says what is wrong
		}
		el.hidden = !open.length;
		fill(el.firstChild, `${fmt.count(open.length)} open ${open.length === 1 ? 'token' : 'tokens'}`);
		if (list.contains(document.activeElement) && el.open) return; // not under somebody's finger
		fill(list, open.map((t) => h('li', {}, h('div', {class: 'command-head'}, h('b', {}, t.device || `${t.prefix || 'any'}…`),
			h('span', {class: 'hint'}, `${t.device ? 'once' : `${fmt.count(t.uses)} more times`}, until ${fmt.when(Date.parse(t.expires), app.now())}`),
			h('button', {type: 'button', class: 'button', 'aria-label': `Withdraw the token for ${t.device || t.prefix}`, onclick: async (e) => {
				e.target.disabled = true;
				try {
					await withToken(() => remove(`/v1/device-tokens/${encodeURIComponent(t.id)}`));
					toast('The token can be used no more.');
				} catch (err) {
					toast(`Not withdrawn: ${err.message}`, 'critical');
				}
				e.target.blur();
				load();
			}}, 'Withdraw')))), !open.length && message('None.'));
	};
	return {el, load};
}
