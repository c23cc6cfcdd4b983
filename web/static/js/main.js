// Where the page begins: configuration, feed, head, and which page is shown at which address.

import {get} from './api.js';
import {fill, h, icon, setText, toast} from './dom.js';
import {Fleet} from './fleet.js';
import {Live} from './live.js';
import {MapView} from './map/mapview.js';
import {AlertsPage} from './pages/alerts.js';
import {ConnectPage} from './pages/connect.js';
import {DevicePage} from './pages/device.js';
import {DevicesPage} from './pages/devices.js';
import {MapPage} from './pages/map.js';
import {PipelinePage} from './pages/pipeline.js';
import {SqlPage} from './pages/sql.js';
import {VehiclePage} from './pages/vehicle.js';
import * as theme from './theme.js';

const PAGES = [
	{path: /^\/$/, make: (app) => new MapPage(app), nav: '/'},
	{path: /^\/vehicles\/(.+)$/, make: (app) => new VehiclePage(app), nav: '/'},
	{path: /^\/alerts$/, make: (app) => new AlertsPage(app), nav: '/alerts'},
	{path: /^\/sql$/, make: (app) => new SqlPage(app), nav: '/sql'},
	{path: /^\/pipeline$/, make: (app) => new PipelinePage(app), nav: '/pipeline'},
	{path: /^\/devices$/, make: (app) => new DevicesPage(app), nav: '/devices'},
	{path: /^\/devices\/([^/]+)$/, make: (app) => new DevicePage(app), nav: '/devices'},
	{path: /^\/connect$/, make: (app) => new ConnectPage(app), nav: '/connect'},
];

const NAV = [['/', 'map', 'Map'], ['/alerts', 'bell', 'Alerts'], ['/sql', 'sql', 'SQL'], ['/pipeline', 'flow', 'Pipeline'], ['/devices', 'device', 'Devices'], ['/connect', 'plus', 'Connect']];

class App {
	async start() {
		theme.apply();
		this.config = await get('/v1/ui-config');
		this.fleet = new Fleet();
		this.live = new Live(this.fleet);
		this.stage = document.getElementById('stage');
		this.panel = document.getElementById('panel');
		this.#head();
		addEventListener('popstate', () => this.#route());
		document.addEventListener('click', (e) => this.#link(e));
		document.addEventListener('keydown', (e) => {
			if (e.key === '/' && !/INPUT|TEXTAREA|SELECT/.test(e.target.tagName) && !e.ctrlKey && !e.metaKey) {
				const box = document.querySelector('#panel input[type=search]');
				if (box) {
					e.preventDefault();
					box.focus();
				}
			}
		});
		this.#route();
		window.milepost = this; // for the console, and for tests that measure
	}

	now() {
		return this.live.now();
	}

	// map returns the one map, made when a page first needs it.
	map() {
		if (!this.mapView) {
			this.mapView = new MapView(this.stage, this.fleet, this.config, () => this.now());
			this.mapView.addEventListener('open', (e) => this.openVehicle(this.fleet.ids[e.detail]));
		}
		return this.mapView;
	}

	openVehicle(id) {
		this.go(`/vehicles/${encodeURIComponent(id)}`);
	}

	go(path) {
		if (path === location.pathname + location.search) return;
		history.pushState(null, '', path);
		this.#route(true);
	}

	#link(e) {
		const a = e.target.closest?.('a[href]');
		if (!a || e.defaultPrevented || e.button || e.ctrlKey || e.metaKey || e.shiftKey || a.target || a.hasAttribute('download')) return;
		const url = new URL(a.href);
		if (url.origin !== location.origin || !PAGES.some((p) => p.path.test(url.pathname))) return;
		e.preventDefault();
		this.go(url.pathname + url.search);
	}

	#route(byUser = false) {
		const page = PAGES.find((p) => p.path.test(location.pathname)) ?? PAGES[0];
		const params = location.pathname.match(page.path)?.slice(1).map(safeDecode) ?? [];
		this.page?.leave();
		for (const d of document.querySelectorAll('dialog[open]')) d.close();
		this.page = page.page ??= page.make(this);
		const withMap = Boolean(this.page.map);
		document.body.dataset.page = this.page.name;
		this.stage.hidden = !withMap;
		fill(this.panel, this.page.el);
		document.title = `${this.page.title(...params)} – ${this.config.title}`;
		for (const a of document.querySelectorAll('#head nav a')) {
			if (a.getAttribute('href') === page.nav) a.setAttribute('aria-current', 'page');
			else a.removeAttribute('aria-current');
		}
		if (withMap) this.map().resize();
		this.page.enter(...params);
		if (byUser) document.getElementById('content').focus({preventScroll: true});
	}

	#head() {
		const badge = h('span', {class: 'badge', hidden: true});
		const state = h('span', {class: 'feed', role: 'status'});
		const mode = h('button', {type: 'button', class: 'button icon-only', onclick: () => {
			theme.setTheme({auto: 'light', light: 'dark', dark: 'auto'}[theme.themeChoice()]);
			dress();
		}});
		const dress = () => {
			const c = theme.themeChoice();
			fill(mode, icon({auto: 'auto', light: 'sun', dark: 'moon'}[c]));
			mode.title = `Theme: ${{auto: 'as the system', light: 'light', dark: 'dark'}[c]}`;
			mode.setAttribute('aria-label', mode.title);
		};
		dress();
		fill(document.getElementById('head'),
			h('a', {class: 'brand', href: '/'}, h('span', {class: 'brand-mark', 'aria-hidden': 'true'}), h('span', {}, this.config.title)),
			h('nav', {'aria-label': 'Pages'}, NAV.map(([href, i, name]) => h('a', {href}, icon(i), h('span', {}, name), href === '/alerts' && badge))),
			h('div', {class: 'head-end'}, state, mode));
		const feed = () => {
			const words = {open: 'Live', connecting: 'Connecting', lost: 'Reconnecting', paused: 'Paused'};
			state.dataset.state = this.live.state;
			setText(state, words[this.live.state]);
		};
		feed();
		this.live.addEventListener('state', feed);
		let critical;
		this.live.addEventListener('alerts', () => {
			const a = this.live.alerts;
			badge.hidden = !a.unacked;
			setText(badge, String(a.unacked));
			badge.setAttribute('aria-label', `${a.unacked} not acknowledged`);
			badge.dataset.severity = a.critical ? 'critical' : a.warning ? 'warning' : 'info';
			const now = new Set(a.firing.filter((x) => x.severity === 'critical').map((x) => x.id));
			if (critical) for (const x of a.firing) if (now.has(x.id) && !critical.has(x.id)) toast(x.summary.includes(x.vehicle_id) ? x.summary : `${x.vehicle_id}: ${x.summary}`, 'critical');
			critical = now;
		});
	}
}

function safeDecode(s) {
	try {
		return decodeURIComponent(s);
	} catch {
		return s;
	}
}

new App().start().catch((err) => {
	fill(document.getElementById('panel'), h('p', {class: 'plain', role: 'alert'}, `The dashboard cannot start: ${err.message}`));
});
