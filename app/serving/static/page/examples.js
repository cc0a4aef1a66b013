// Examples as strokes of a pen, replayed as they were drawn.
import { makeSvg, make } from "./dom.js";
import { PEN_WIDTH, SIDE, smooth } from "./strokes.js";

const PEN_SPEED = 0.75;  // paper units a millisecond
const LIFT_MS = 90;  // between two strokes

const circle = (x, y, rx, ry, start = -0.9, turns = 1.02) => Array.from({ length: 17 }, (_, index) => {
  const angle = 2 * Math.PI * (start / 4 - turns * index / 16);
  return [x + rx * Math.cos(angle), y + ry * Math.sin(angle)];
});

const CORNERS = {
  seven: [[[0.24, 0.26], [0.45, 0.24], [0.75, 0.22], [0.66, 0.42], [0.55, 0.62], [0.46, 0.86]]],
  three: [[[0.3, 0.24], [0.48, 0.16], [0.66, 0.24], [0.64, 0.4], [0.45, 0.48]], [[0.45, 0.48], [0.66, 0.54], [0.72, 0.7], [0.56, 0.84], [0.3, 0.8]]],
  two: [[[0.3, 0.32], [0.4, 0.18], [0.6, 0.18], [0.68, 0.34], [0.56, 0.54], [0.3, 0.82], [0.48, 0.78], [0.76, 0.82]]],
  zero: [circle(0.5, 0.5, 0.2, 0.33)],
  cat: [
    [[0.28, 0.5], [0.26, 0.16], [0.42, 0.32], [0.58, 0.32], [0.74, 0.16], [0.72, 0.5]],
    [[0.72, 0.5], [0.7, 0.72], [0.5, 0.84], [0.3, 0.72], [0.28, 0.5]],
    [[0.4, 0.48], [0.42, 0.48]], [[0.58, 0.48], [0.6, 0.48]],
    [[0.06, 0.56], [0.3, 0.62]], [[0.06, 0.74], [0.3, 0.68]], [[0.94, 0.56], [0.7, 0.62]], [[0.94, 0.74], [0.7, 0.68]],
  ],
  house: [
    [[0.18, 0.48], [0.5, 0.14], [0.82, 0.48]], [[0.24, 0.48], [0.24, 0.86], [0.76, 0.86], [0.76, 0.48]],
    [[0.42, 0.86], [0.42, 0.62], [0.58, 0.62], [0.58, 0.86]], [[0.24, 0.48], [0.76, 0.48]],
  ],
  star: [[[0.5, 0.12], [0.72, 0.85], [0.14, 0.4], [0.86, 0.4], [0.28, 0.85], [0.5, 0.12]]],
  fish: [circle(0.4, 0.5, 0.28, 0.19, 0.15, 0.96), [[0.64, 0.42], [0.88, 0.72], [0.88, 0.28], [0.64, 0.58]], [[0.26, 0.45], [0.28, 0.45]]],
  sun: [circle(0.5, 0.5, 0.16, 0.16), ...[0, 1, 2, 3, 4, 5, 6, 7].map((ray) => [0.24, 0.4].map((far) => [0.5 + far * Math.cos(0.785 * ray), 0.5 + far * Math.sin(0.785 * ray)]))],
  smile: [circle(0.5, 0.5, 0.36, 0.36), [[0.38, 0.42], [0.38, 0.44]], [[0.62, 0.42], [0.62, 0.44]], [[0.33, 0.6], [0.5, 0.7], [0.67, 0.6]]],
  fortytwo: [
    [[0.2, 0.24], [0.14, 0.54], [0.44, 0.54]], [[0.38, 0.26], [0.35, 0.8]],
    [[0.6, 0.34], [0.7, 0.24], [0.82, 0.34], [0.76, 0.54], [0.58, 0.78], [0.86, 0.76]],
  ],
  o: [circle(0.5, 0.5, 0.24, 0.32)],
  s: [[[0.68, 0.22], [0.5, 0.15], [0.34, 0.26], [0.4, 0.44], [0.6, 0.54], [0.67, 0.7], [0.5, 0.84], [0.3, 0.78]]],
};
const STRAIGHT = new Set(["house", "star"]);
const THIN = { cat: 15, house: 15, fortytwo: 15, fish: 15, star: 14, sun: 14 };

const GROUPS = [
  ["Digits", ["seven", "three", "two", "zero"]],
  ["Something else", ["cat", "house", "star", "fish", "sun", "fortytwo"]],
  ["What slips through", ["o", "s", "smile"]],
];
const NAMES = { fortytwo: "a 42", o: "a letter O", s: "a letter S", smile: "a face" };

export function strokesOf(name) {
  const points = (corners) => (STRAIGHT.has(name) ? corners.slice(1).flatMap((corner, index) => smooth([corners[index], corner])) : smooth(corners));
  return CORNERS[name].map((corners) => ({ width: THIN[name] || PEN_WIDTH, points: points(corners) }));
}

// A button for each example; `choose` gets its name.
export function makeExamples(element, choose) {
  for (const [title, names] of GROUPS) element.append(make("div", {}, make("span", { textContent: title }), ...names.map((name) => button(name, choose))));
  const blank = make("button", { type: "button", "aria-label": "Example: a blank page", title: "a blank page", className: "blank", textContent: "blank" });
  blank.addEventListener("click", () => choose("blank"));
  element.children[1].append(blank);
}

function button(name, choose) {
  const path = strokesOf(name).map(({ points }) => `M${points.map(([x, y]) => `${x.toFixed()} ${y.toFixed()}`).join("L")}`).join("");
  const label = NAMES[name] || `a ${name}`;
  const element = make("button", { type: "button", title: label, "aria-label": `Example: ${label}` });
  element.append(makeSvg("svg", { viewBox: `0 0 ${SIDE} ${SIDE}`, "aria-hidden": "true" }, makeSvg("path", { d: path })));
  element.addEventListener("click", () => choose(name));
  return element;
}

// Draw strokes on the paper at the speed of a hand. Returns whether it came to the end: `signal` stops it.
export async function replay(paper, strokes, signal) {
  for (const { width, points } of strokes) {
    if (!(await pause(LIFT_MS, signal))) return false;
    paper.beginStroke(points[0], width);
    let drawn = 1, travelled = 0, last = performance.now();
    while (drawn < points.length) {
      const now = await frame();
      if (signal.aborted) return false;
      travelled += PEN_SPEED * Math.min(now - last, 50);
      last = now;
      const upTo = nextPoint(points, drawn, travelled);
      travelled -= upTo.length;
      if (upTo.index > drawn) paper.extend(points.slice(drawn, upTo.index));
      drawn = upTo.index;
    }
    paper.endStroke();
  }
  return true;
}

// The points from `start` on that lie within `distance` along the stroke.
function nextPoint(points, start, distance) {
  let index = start, length = 0;
  while (index < points.length) {
    const step = Math.hypot(points[index][0] - points[index - 1][0], points[index][1] - points[index - 1][1]);
    if (length + step > distance) break;
    length += step;
    index += 1;
  }
  return { index, length };
}

const frame = () => new Promise((resolve) => { requestAnimationFrame(resolve); });

// Wait; false as soon as `signal` stops it.
export function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(() => resolve(!signal.aborted), milliseconds);
    signal.addEventListener("abort", () => { clearTimeout(timer); resolve(false); }, { once: true });
  });
}
