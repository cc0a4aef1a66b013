// A small line chart: several lines over one axis of time or epochs, linear or logarithmic.
import { makeSvg } from "./dom.js";

const WIDTH = 320, HEIGHT = 140, LEFT = 44, RIGHT = 312, TOP = 22, BOTTOM = 118;

// `lines`: [{values, name}]; values may be null. `limit`: {value, name}, a dashed line. Returns an <svg>.
export function lineChart(label, lines, { log = false, zero = true, limit = null, unit = "", start = "", end = "" } = {}) {
  const known = lines.flatMap(({ values }) => values.filter((value) => value !== null)), all = limit ? [...known, limit.value] : known;
  const scale = makeScale(all, log, zero), length = Math.max(2, ...lines.map(({ values }) => values.length));
  const toX = (index) => LEFT + (RIGHT - LEFT) * index / (length - 1), toY = (value) => BOTTOM - (BOTTOM - TOP) * scale.share(value);
  const parts = [makeSvg("line", { class: "axis", x1: LEFT, x2: RIGHT, y1: BOTTOM, y2: BOTTOM })];
  for (const value of [scale.low, scale.high]) parts.push(makeSvg("text", { x: LEFT - 6, y: toY(value) + 4, "text-anchor": "end" }, short(value) + unit));
  lines.forEach(({ values, name }, number) => {
    const points = values.map((value, index) => (value === null ? null : `${toX(index).toFixed(1)} ${toY(value).toFixed(1)}`));
    const path = points.map((point, index) => (point === null ? "" : `${index && points[index - 1] !== null ? "L" : "M"}${point}`)).join("");
    parts.push(makeSvg("path", { class: `line line-${number}`, d: path }));
    const last = values.at(-1);
    if (name && last !== null && last !== undefined) parts.push(makeSvg("text", { class: `name-${number}`, x: RIGHT, y: toY(last) - 6, "text-anchor": "end" }, name));
  });
  if (limit) parts.push(makeSvg("line", { class: "limit", x1: LEFT, x2: RIGHT, y1: toY(limit.value), y2: toY(limit.value) }),
    makeSvg("text", { class: "limit-text", x: LEFT + 4, y: toY(limit.value) - 5 }, limit.name));
  parts.push(makeSvg("text", { x: LEFT, y: HEIGHT - 6 }, start), makeSvg("text", { x: RIGHT, y: HEIGHT - 6, "text-anchor": "end" }, end));
  return makeSvg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label }, ...parts);
}

function makeScale(values, log, zero) {
  const positive = log ? [1, ...values.filter((value) => value > 0)] : values;
  let low = log || !zero ? Math.min(...positive, 1e300) : 0, high = Math.max(...positive, 0) || 1;
  if (!positive.length) [low, high] = [0, 1];
  if (log) {
    low = 10 ** Math.floor(Math.log10(low) + 1e-9);
    high = Math.max(10 ** Math.ceil(Math.log10(high) - 1e-9), 10 * low);
  }
  const transform = log ? (value) => Math.log10(Math.max(value, low)) : (value) => value;
  return { low, high, share: (value) => (transform(value) - transform(low)) / (transform(high) - transform(low)) };
}

export function short(value) {
  if (value !== 0 && (Math.abs(value) < 0.001 || Math.abs(value) >= 1e6)) return value.toExponential(0).replace("e+", "e").replace("-", "−");
  return Number(value.toPrecision(2)).toLocaleString("en");
}
