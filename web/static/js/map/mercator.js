// Web Mercator, as fractions of the world's width: x and y from 0 (west, north) to 1.

export const x = (lon) => (lon + 180) / 360;

export function y(lat) {
	const s = Math.sin((Math.max(-85.05, Math.min(85.05, lat)) * Math.PI) / 180);
	return 0.5 - Math.log((1 + s) / (1 - s)) / (4 * Math.PI);
}

export const lon = (mx) => mx * 360 - 180;
export const lat = (my) => (Math.atan(Math.sinh(Math.PI * (1 - 2 * my))) * 180) / Math.PI;

// worldSize is the world's width in CSS pixels at a zoom, as MapLibre counts zooms.
export const worldSize = (zoom) => 512 * 2 ** zoom;

// The overlay keeps places as 32-bit integers. x uses all of them, so that the difference of two wraps around the world by
// itself and always takes the short way; y does not wrap and uses half.
export const ix = (lonDeg) => (x(lonDeg) * 4294967296) | 0;
export const iy = (latDeg) => Math.min(2147483647, y(latDeg) * 2147483648) | 0;
