// One device: why it cannot get in or that all is well, its certificates, what its policy allows, what the doors saw of it.

import {devicePath, get, post} from '../api.js';
import {form} from '../dialog.js';
import {enrol} from '../enrol.js';
import {fill, h, icon, toast} from '../dom.js';
import * as fmt from '../format.js';
import {expiry, fact, message, moment, table, vehicleLink} from '../parts.js';
import {withToken} from '../token.js';
import {connection, statusTag} from './devices.js';

const EVERY = 5000; // ms
const REASONS = ['', 'key_compromise', 'superseded', 'cessation'];
const REASON_WORDS = {'': 'no reason given', key_compromise: 'its key is in wrong hands', superseded: 'it was replaced', cessation: 'it is out of service'};

export class DevicePage {
	name = 'device';

	constructor(app) {
		this.app = app;
		this.head = h('div', {class: 'page-head'});
		this.doctor = h('section', {class: 'box doctor', 'aria-labelledby': 'd-doctor'});
		this.facts = h('section', {class: 'box'});
		this.certificates = h('section', {class: 'box', 'aria-labelledby': 'd-certs'});
		this.policy = h('section', {class: 'box', 'aria-labelledby': 'd-policy'});
		this.journal = h('section', {class: 'box', 'aria-labelledby': 'd-journal'});
		this.el = h('div', {class: 'page device-page'}, h('a', {class: 'back', href: '/devices'}, icon('back'), 'All devices'), this.head,
			h('div', {class: 'stack'}, this.doctor, this.facts, this.certificates, this.policy, this.journal));
	}

	title(id) {
		return id;
	}

	enter(id) {
		this.here = true;
		this.id = id;
		this.shown = {};
		fill(this.head, h('h1', {}, id));
		for (const el of [this.facts, this.certificates, this.policy, this.journal]) el.hidden = true;
		fill(this.doctor, message('Loading …'));
		this.load(true);
	}

	leave() {
		this.here = false;
		clearTimeout(this.timer);
	}

	async load(ask = false) {
		clearTimeout(this.timer);
		if (!this.here) return;
		const id = this.id;
		if (!document.hidden) {
			try {
				const read = (path) => (ask ? withToken(() => get(path)) : get(path));
				// The doctor and the journal know names that are not enrolled; the list's answer says whether it is, without an error.
				const all = await read(`/v1/devices?prefix=${encodeURIComponent(id)}&limit=1`);
				const [doctor, journal, ca] = await Promise.all([read(devicePath(id) + '/doctor'), read(devicePath(id) + '/journal'), this.ca ?? read('/v1/ca')]);
				if (id !== this.id) return;
				this.ca = ca;
				this.#show(all.devices.find((d) => d.id === id), doctor, journal);
			} catch (err) {
				if (id !== this.id) return;
				if (!this.shown.doctor || err.status === 401) {
					this.shown = {};
					for (const el of [this.facts, this.certificates, this.policy, this.journal]) el.hidden = true;
					fill(this.doctor, message(err.status === 404 ? 'This server knows no devices.' : err.message, err.status === 404 ? 'note' : 'error'),
						err.status === 401 && h('button', {type: 'button', class: 'button', onclick: () => this.load(true)}, 'Enter the token'));
				}
				if (err.status === 401 || err.status === 404) return;
			}
		}
		clearTimeout(this.timer);
		if (this.here) this.timer = setTimeout(() => this.load(), EVERY);
	}

	// #part makes a part anew only if what it shows has changed: a button that somebody is about to press stays where it is.
	#part(name, el, what, make) {
		const now = JSON.stringify(what);
		if (this.shown[name] === now) return;
		this.shown[name] = now;
		el.hidden = false;
		fill(el, make());
	}

	#show(d, doctor, journal) {
		const now = this.app.now();
		this.#part('head', this.head, [d?.status, d?.id, Boolean(d)], () => this.#head(d));
		this.#part('doctor', this.doctor, doctor, () => diagnosis(doctor, this.doctor.querySelector('details')?.open));
		if (d) {
			// Ages change all the time; nothing here is pressed but a link.
			fill(this.facts, h('dl', {class: 'facts'},
				fact('Connection', connection(d, now)), fact('Vehicle', vehicleLink(d.vehicle)),
				fact('Certificate ends', expiry(d.certificate_ends, now)),
				fact('Last connect', d.last_connect ? moment(Date.parse(d.last_connect), now) : 'never'), fact('From', d.last_remote || '–'),
				fact('Last message', d.last_message ? moment(Date.parse(d.last_message), now) : 'never'),
				fact('Last disconnect', d.last_disconnect ? moment(Date.parse(d.last_disconnect), now) : '–'),
				fact('Disconnect reason', d.last_disconnect_reason || '–'),
				fact('Enrolled', moment(Date.parse(d.created), now), d.origin && ` by ${d.origin}`), fact('Password', d.password ? 'set' : 'none')));
			this.facts.hidden = false;
			this.#part('certs', this.certificates, [d.certificates, d.status, Math.floor(now / 3600e3)], () => this.#certificates(d, now));
			this.#part('policy', this.policy, [d.policy, d.vehicle], () => this.#policy(d));
		}
		for (const el of [this.facts, this.certificates, this.policy]) if (!d) el.hidden = true;
		this.#part('journal', this.journal, [journal, Math.floor(now / 60e3)], () => events(journal, now));
	}

	#head(d) {
		const button = (text, act, kind = '') => h('button', {type: 'button', class: `button ${kind}`, onclick: act}, text);
		return [h('h1', {}, this.id), d ? statusTag(d.status) : h('span', {class: 'tag'}, 'not enrolled'), h('span', {class: 'head-do'},
			d?.status === 'active' && [button('New certificate …', () => enrol(this.app, this.id).then(() => this.load())), button('Disable …', () => this.#disable())],
			d?.status === 'disabled' && button('Enable', (e) => this.#enable(e.target), 'primary'),
			d && d.status !== 'revoked' && button('Revoke …', () => this.#revoke(d), 'danger'),
			(!d || d.status === 'revoked') && button('Enrol …', () => enrol(this.app, this.id).then(() => this.load()), 'primary'))];
	}

	#certificates(d, now) {
		const state = (c) => {
			if (c.revoked) return h('span', {class: 'tag critical'}, `revoked ${fmt.age(Date.parse(c.revoked), now)}`);
			if (c.retires) return h('span', {class: 'tag'}, Date.parse(c.retires) > now ? `replaced, let in for ${fmt.span(Date.parse(c.retires) - now)}` : 'replaced');
			if (Date.parse(c.not_before) > now) return h('span', {class: 'tag warning'}, `begins ${fmt.when(Date.parse(c.not_before), now)}`);
			return expiry(c.not_after, now);
		};
		return [h('h2', {id: 'd-certs'}, 'Certificates'), !d.certificates.length ? message(d.password ? 'None. It comes with a password.' : 'None.')
			: table(['Serial', 'Ends', 'Valid', 'Issued by', ''], [...d.certificates].reverse().map((c) => [
				h('code', {class: 'serial'}, c.serial), state(c), `${day(c.not_before)} to ${day(c.not_after)}`, c.authority === 'own' ? 'this server' : c.authority || c.issuer,
				!c.revoked && d.status !== 'revoked' && h('button', {type: 'button', class: 'button', 'aria-label': `Revoke certificate ${c.serial}`, onclick: () => this.#revoke(d, c.serial)}, 'Revoke …')]))];
	}

	#policy(d) {
		const p = this.ca.policies[d.policy];
		const own = (t) => t.replaceAll('{device}', d.id).replaceAll('{vehicle}', p.vehicles?.length ? '{vehicle}' : d.vehicle);
		const row = (name, list) => list?.length && fact(name, h('ul', {class: 'topics'}, list.map((t) => h('li', {}, h('code', {}, own(t))))));
		return [h('h2', {id: 'd-policy'}, `Policy: ${d.policy}`), !p ? message('This policy is no longer in the configuration: the device may do nothing.', 'error')
			: h('dl', {class: 'facts policy'}, row('May publish to', p.publish), row('May subscribe to', p.subscribe), row('May not publish to', p.deny_publish),
				row('May not receive', p.deny_subscribe), row('Reports for vehicles', p.vehicles), row('Client ids', p.client_ids?.length ? p.client_ids : [`${d.id}`, `${d.id}/…`]))];
	}

	async #disable() {
		const done = await form({
			title: `Disable ${this.id}`, action: 'Disable',
			body: [h('p', {}, 'Its connections are cut now, and it is refused until it is enabled again. Its certificates stay valid: enabling it is enough to let it back.')],
			run: () => withToken(() => post(devicePath(this.id), {status: 'disabled'}, {method: 'PATCH'})),
		});
		if (done) {
			toast(`${this.id} is disabled.`);
			this.load();
		}
	}

	async #enable(button) {
		button.disabled = true;
		try {
			await withToken(() => post(devicePath(this.id), {status: 'active'}, {method: 'PATCH'}));
			toast(`${this.id} may connect again.`);
		} catch (err) {
			toast(`Not enabled: ${err.message}`, 'critical');
		}
		button.disabled = false;
		this.load();
	}

	async #revoke(d, serial = '') {
		const reason = h('select', {}, REASONS.map((r) => h('option', {value: r}, REASON_WORDS[r])));
		const what = serial ? [h('p', {}, 'The certificate ', h('code', {class: 'serial'}, serial), ' is refused from now on, for good, and connections that use it are cut. Another certificate of the device still lets it in.')]
			: [h('p', {}, 'All its certificates are revoked now and for good, its password is taken away, and its connections are cut. It can only come back by being enrolled anew.'),
				d.connections > 0 && h('p', {class: 'message note'}, 'It is connected at this moment.')];
		const done = await form({
			title: serial ? `Revoke a certificate of ${d.id}` : `Revoke ${d.id}`, action: 'Revoke', danger: true, typed: d.id,
			body: [what, h('label', {class: 'field'}, h('span', {}, 'Reason'), reason)],
			run: () => withToken(() => post(`${devicePath(d.id)}/revoke`, {...(serial && {serial}), ...(reason.value && {reason: reason.value})})),
		});
		if (done) {
			toast(serial ? 'The certificate is revoked.' : `${d.id} is revoked.`);
			this.load();
		}
	}
}

const day = (t) => t.slice(0, 10);

// diagnosis is what the doctor says, in its words.
function diagnosis(d, open = false) {
	const list = (name, lines, tag = 'ul') => lines?.length > 0 && [h('h3', {}, name), h(tag, {}, lines.map((l) => h('li', {}, l)))];
	return [h('h2', {id: 'd-doctor'}, 'Diagnosis'),
		h('p', {class: `verdict ${d.ok ? 'fine' : 'trouble'}`}, icon(d.ok ? 'check' : 'bell'), h('span', {}, d.summary)),
		list('What to do', d.mend, 'ol'), list('Worth knowing', d.notes),
		d.evidence?.length > 0 && h('details', {open}, h('summary', {}, 'What the server saw'), h('ul', {}, d.evidence.map((l) => h('li', {}, l))))];
}

// events are refusals, refused messages and ends of connections in one list, the newest first.
function events(j, now) {
	const times = (n) => n > 1 && h('span', {class: 'hint'}, `${fmt.count(n)} times`);
	const all = [
		...j.refusals.map((a) => ({at: a.at, kind: 'refused', tag: 'critical', text: a.text, n: a.times, about: [a.class, a.remote && `from ${a.remote}`, a.client_id && `client id ${a.client_id}`, a.user && `user ${a.user}`, a.serial && `certificate ${a.serial} of ${a.subject}`]})),
		...j.rejections.map((m) => ({at: m.at, kind: 'message refused', tag: 'warning', text: m.text, n: m.times, about: [m.why, `on ${m.topic}`]})),
		...j.departures.map((x) => ({at: x.at, kind: 'disconnected', tag: '', text: x.why, n: 1, about: []})),
	].sort((a, b) => Date.parse(b.at) - Date.parse(a.at));
	return [h('h2', {id: 'd-journal'}, 'Journal'), !all.length && message('Nothing was refused, and no connection has ended.'),
		h('ul', {class: 'journal'}, all.map((e) => h('li', {}, h('div', {class: 'command-head'}, h('span', {class: `tag ${e.tag}`}, e.kind), moment(Date.parse(e.at), now), times(e.n)),
			h('p', {}, e.text), e.about.some(Boolean) && h('p', {class: 'hint'}, e.about.filter(Boolean).join(' · ')))))];
}
