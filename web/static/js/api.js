// The HTTP API. An answer that is not a success becomes an ApiError with the server's own words.

import {stored} from './token.js';

export class ApiError extends Error {
	constructor(status, detail, type) {
		super(detail);
		this.status = status;
		this.type = type;
	}
}

async function ask(path, options = {}) {
	let res;
	const token = stored();
	if (token) options = {...options, headers: {...options.headers, Authorization: `Bearer ${token}`}};
	try {
		res = await fetch(path, options);
	} catch (err) {
		if (err.name === 'AbortError') throw err;
		throw new ApiError(0, 'The server cannot be reached.', 'unreachable');
	}
	if (res.ok) return res;
	let detail = `${res.status} ${res.statusText}`, type = '';
	try {
		const p = await res.json();
		detail = p.detail || p.error || detail;
		type = p.type || '';
	} catch {
		// not a problem of ours: a proxy's page, perhaps
	}
	if (res.status === 401) detail = 'This needs the server’s token.';
	throw new ApiError(res.status, detail, type);
}

export const get = async (path, signal) => (await ask(path, {signal})).json();

export async function post(path, body, {signal, accept, method = 'POST', headers} = {}) {
	return ask(path, {
		method, signal, body: typeof body === 'string' ? body : JSON.stringify(body),
		headers: {'Content-Type': 'application/json', ...(accept && {Accept: accept}), ...headers},
	});
}

export const remove = (path) => ask(path, {method: 'DELETE'});

// query makes a query string of what is set.
export function query(params) {
	const q = new URLSearchParams();
	for (const [k, v] of Object.entries(params)) if (v !== '' && v !== null && v !== undefined) q.set(k, v);
	const s = q.toString();
	return s && `?${s}`;
}

export const devicePath = (id) => `/v1/devices/${encodeURIComponent(id)}`;
export const vehiclePath = (id) => `/v1/vehicles/${encodeURIComponent(id)}`;
