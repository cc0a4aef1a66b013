// Strokes of the pen: [{width, points: [[x, y, width factor], ...]}, ...] on a paper of 280 x 280, and their form in links.

export const SIDE = 280;
export const PEN_WIDTH = 18;
export const INK = "#15161b";

// Draw a stroke from its point number `from` on; `context` is scaled so that the paper is SIDE wide.
export function drawStroke(context, stroke, from = 0) {
  context.strokeStyle = INK;
  context.lineCap = context.lineJoin = "round";
  const { points } = stroke;
  for (let index = Math.max(from, points.length > 1 ? 1 : 0); index < points.length; index++) {
    const [x, y, factor = 1] = points[index], [startX, startY] = points[Math.max(index - 1, 0)];
    context.lineWidth = stroke.width * factor;
    context.beginPath();
    context.moveTo(startX, startY);
    context.lineTo(x, index ? y : y + 0.01);
    context.stroke();
  }
}

// A Catmull-Rom curve through corner points in [0, 1], as points of the paper about `step` apart.
export function smooth(corners, step = 4) {
  const knots = [corners[0], ...corners, corners.at(-1)].map(([x, y]) => [x * SIDE, y * SIDE]);
  const points = [];
  for (let index = 0; index + 3 < knots.length; index++) {
    const [a, b, c, d] = knots.slice(index, index + 4);
    const steps = Math.max(1, Math.round(Math.hypot(c[0] - b[0], c[1] - b[1]) / step));
    for (let part = index ? 1 : 0; part <= steps; part++) points.push([0, 1].map((axis) => spline(a[axis], b[axis], c[axis], d[axis], part / steps)));
  }
  return points;
}

function spline(a, b, c, d, t) {
  return (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t ** 2 + (3 * (b - c) + d - a) * t ** 3) / 2;
}

// Strokes -> text for a link: a byte for the width, two for the number of points, two for each point.
export function encodeStrokes(strokes) {
  const bytes = [];
  for (const { width, points } of strokes) {
    const kept = thinned(points);
    bytes.push(Math.round(width * 4), kept.length >> 8, kept.length & 255);
    for (const [x, y] of kept) bytes.push(toByte(x), toByte(y));
  }
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

// The strokes of a link; null if the text is none.
export function decodeStrokes(text) {
  try {
    const bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (character) => character.charCodeAt(0));
    const strokes = [];
    for (let at = 0; at + 2 < bytes.length;) {
      const stroke = { width: bytes[at] / 4, points: [] }, end = at + 3 + 2 * (256 * bytes[at + 1] + bytes[at + 2]);
      for (at += 3; at < Math.min(end, bytes.length - 1); at += 2) stroke.points.push([bytes[at], bytes[at + 1]].map((byte) => byte / 255 * SIDE));
      if (stroke.points.length && stroke.width > 0) strokes.push(stroke);
    }
    return strokes.length ? strokes : null;
  } catch {
    return null;
  }
}

const toByte = (value) => Math.max(0, Math.min(255, Math.round(value / SIDE * 255)));

function thinned(points) {
  const kept = [points[0]];
  for (const point of points.slice(1)) {
    if (Math.hypot(point[0] - kept.at(-1)[0], point[1] - kept.at(-1)[1]) >= 3) kept.push(point);
  }
  if (kept.at(-1) !== points.at(-1)) kept.push(points.at(-1));
  return kept;
}
