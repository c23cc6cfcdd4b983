// The outline that a browser without WebGL draws: lines of [longitude, latitude] in hundredths of a degree, each line flat
// and as differences from the point before.
import {feature, mesh} from 'topojson-client';
import {unwrap} from './unwrap.mjs';

export function outline({coarse, us}) {
	const lines = (geometry, every) => {
		const parts = geometry.type === 'LineString' ? [geometry.coordinates] : geometry.coordinates;
		return parts.map((p) => pack(p, every)).filter((p) => p.length > 4);
	};
	return {
		land: feature(coarse, coarse.objects.land).features.flatMap((f) =>
			(f.geometry.type === 'Polygon' ? [unwrap(f.geometry).coordinates] : unwrap(f.geometry).coordinates).map((p) => pack(p[0], 0))),
		borders: lines(unwrap(mesh(coarse, coarse.objects.countries, (a, b) => a !== b)), 0),
		states: lines(mesh(us, us.objects.states, (a, b) => a !== b), 12),
	};
}

// pack leaves out points nearer than `near` hundredths of a degree to the one before.
function pack(points, near) {
	const out = [];
	let px = 0, py = 0;
	points.forEach(([lon, lat], i) => {
		const x = Math.round(lon * 100), y = Math.round(lat * 100);
		const last = i === points.length - 1;
		if (i > 0 && !last && Math.abs(x - px) + Math.abs(y - py) <= near) return;
		out.push(i ? x - px : x, i ? y - py : y);
		[px, py] = [x, y];
	});
	return out;
}
