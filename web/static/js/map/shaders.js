// The overlay's two programs in one: a quad for each vehicle, placed between its last two fixes by the vertex shader, and a
// shape drawn by distance in the fragment shader. Nothing is computed per vehicle and frame on the CPU.

export const VERTEX = `#version 300 es
precision highp float;
precision highp int;
layout(location = 0) in ivec4 a_path;   // from x, y; to x, y
layout(location = 1) in vec4 a_motion;  // start s, length s, heading at start, at end (degrees; < -500: none)
layout(location = 2) in uvec4 a_look;   // state, severity, mark (1 hovered, 2 selected), speed known and moving
uniform ivec2 u_center;
uniform vec2 u_view;      // half the canvas, CSS pixels
uniform float u_world;    // the world's width, CSS pixels
uniform float u_now;
uniform float u_radius;
uniform vec3 u_state[3];
uniform vec3 u_severity[4];
flat out vec3 v_body;
out vec2 v_at;            // in radii, y up
flat out vec2 v_heading;  // cos, sin; (2, 0) if none
flat out uvec3 v_look;

const vec2 CORNERS[4] = vec2[4](vec2(-1, -1), vec2(1, -1), vec2(-1, 1), vec2(1, 1));
const vec2 SCALE = vec2(1.0 / 4294967296.0, 1.0 / 2147483648.0);

void main() {
	float t = a_motion.y > 0.0 ? clamp((u_now - a_motion.x) / a_motion.y, 0.0, 1.0) : 1.0;
	// Differences of integers first: exact at any zoom, and wrapping around the world by themselves.
	vec2 from = vec2(a_path.xy - u_center) * SCALE;
	vec2 way = vec2(a_path.zw - a_path.xy) * SCALE;
	vec2 px = (from + way * t) * u_world;
	bool arrow = a_motion.w > -500.0 && a_look.w > 0u && u_radius > 3.6;
	// No larger than what is drawn: every pixel of the quad costs.
	float reach = a_look.z > 0u ? 2.7 : a_look.y > 2u ? 3.2 : (arrow ? 1.35 : 0.8) + 1.6 / u_radius;
	vec2 corner = CORNERS[gl_VertexID];
	v_at = corner * reach;
	px += vec2(corner.x, -corner.y) * reach * u_radius;
	gl_Position = vec4(px.x / u_view.x, -px.y / u_view.y, 0.0, 1.0);
	v_look = a_look.xyz;
	v_body = a_look.y > 0u ? u_severity[min(a_look.y, 3u)] : u_state[min(a_look.x, 2u)];
	v_heading = vec2(2.0, 0.0);
	if (arrow) {
		float turn = mod(a_motion.w - a_motion.z + 540.0, 360.0) - 180.0;
		float a = radians(a_motion.z + turn * t);
		v_heading = vec2(cos(a), sin(a));
	}
}`;

export const FRAGMENT = `#version 300 es
precision highp float;
in vec2 v_at;
flat in vec2 v_heading;
flat in uvec3 v_look;
flat in vec3 v_body;
uniform float u_radius;
uniform float u_dim;      // opacity of vehicles that are not marked
uniform float u_pulse;    // 0 to 1, or -1 for a still ring
uniform vec3 u_edge;
uniform vec3 u_mark;
out vec4 color;

// drop is the distance to a round body with a tip that points up: a disc and a smaller one, and the tangents between them.
float drop(vec2 p, float body, float tip, float length_) {
	p.x = abs(p.x);
	float s = (body - tip) / length_;
	float c = sqrt(1.0 - s * s);
	float side = dot(p, vec2(-s, c));
	if (side < 0.0) return length(p) - body;
	if (side > c * length_) return length(p - vec2(0.0, length_)) - tip;
	return dot(p, vec2(c, s)) - body;
}

void over(inout vec4 below, vec3 rgb, float a) {
	below = vec4(rgb * a, a) + below * (1.0 - a);
}

void main() {
	float px = 1.0 / u_radius;  // one CSS pixel, in radii
	bool offline = v_look.x == 2u;
	float d;
	if (v_heading.x < 1.5) {
		vec2 p = vec2(v_at.x * v_heading.x - v_at.y * v_heading.y, v_at.x * v_heading.y + v_at.y * v_heading.x);
		d = drop(p + vec2(0.0, 0.14), 0.74, 0.08, 1.35);
	} else {
		d = length(v_at) - 0.8;
	}
	float soft = 0.75 * px;
	color = vec4(0.0);
	if (v_look.y > 2u) {
		float r = u_pulse < 0.0 ? 1.9 : 1.0 + 1.9 * u_pulse;
		float fade = u_pulse < 0.0 ? 0.45 : 0.5 * (1.0 - u_pulse);
		over(color, v_body, fade * (1.0 - smoothstep(0.0, soft * 2.0, abs(length(v_at) - r) - px)));
	}
	if (v_look.z > 0u) {
		float r = v_look.z == 2u ? 2.3 : 2.0;
		float w = 1.0;
		float ring = abs(length(v_at) - r) - w * px;
		over(color, u_edge, 0.8 * (1.0 - smoothstep(0.0, soft, ring - 1.2 * px)));
		over(color, u_mark, 1.0 - smoothstep(0.0, soft, ring));
	}
	float edge = u_radius > 3.4 ? 1.3 * px : 0.5 * px;
	over(color, u_edge, 1.0 - smoothstep(-soft, soft, d - edge));
	over(color, v_body, 1.0 - smoothstep(-soft, soft, d));
	if (offline && v_look.y == 0u && u_radius > 3.4) {
		over(color, u_edge, 1.0 - smoothstep(-soft, soft, length(v_at) - 0.42));
	}
	if (v_look.z == 0u) color *= u_dim;
	if (color.a < 0.004) discard;
}`;
