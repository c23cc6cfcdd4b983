// world-atlas is drawn on the sphere: a ring that crosses 180° jumps from one end of a flat map to the other. unwrap lets it
// run on past 180° instead; whoever cuts tiles brings the rest around.
export function unwrap(geometry) {
	const line = (points) => {
		let turn = 0, before = points[0][0];
		return points.map(([lon, lat]) => {
			if (lon - before > 180) turn -= 360;
			else if (lon - before < -180) turn += 360;
			before = lon;
			return [lon + turn, lat];
		});
	};
	const walk = (c) => (typeof c[0][0] === 'number' ? line(c) : c.map(walk));
	return {...geometry, coordinates: walk(geometry.coordinates)};
}
