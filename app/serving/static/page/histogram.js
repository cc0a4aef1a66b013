// The scores of the calibration images, the threshold for the chosen rate of false alarms, and the mark of the drawing.
import { address, askPersistently, events, modelCard } from "./api.js";
import { $, clamp, makeSvg } from "./dom.js";
import { alphaSentence, count, number } from "./words.js";

const NEAR = 90;  // of the edges, where the mark's text would stick out
const WIDTH = 640, HEIGHT = 260, LEFT = 8, RIGHT = 632, BASE = 214, TOP = 44;

let calibration = null;
let largest = 1;  // score at the right edge
let score = null;
let chosen = null;  // the rate that the reader chose; it stays when another detector is chosen

// The chosen rate and its threshold; null until the calibration is loaded.
export const rate = () => (calibration ? calibration.rates[$("alpha").valueAsNumber] : null);

// `onRate` is called when the rate changes.
export function startHistogram(onRate) {
  $("alpha").addEventListener("input", () => {
    chosen = rate()?.alpha ?? null;
    describe();
    drawThreshold();
    onRate();
  });
  events.addEventListener("model", () => load(onRate));
  load(onRate);
}

export function showScore(value) {
  score = value;
  drawMark();
}

async function load(onRate) {
  calibration = null;
  const path = address("model/calibration");
  const found = await askPersistently(path);
  const { alpha } = await modelCard();
  if (path !== address("model/calibration")) return;
  calibration = found;
  const index = found.rates.findIndex((entry) => entry.alpha === (chosen ?? alpha));
  $("alpha").max = found.rates.length - 1;
  $("alpha").value = index < 0 ? 0 : index;
  $("calibration-images").textContent = count(found.images);
  largest = 2 * (found.rates.find((entry) => entry.alpha === alpha) || found.rates[0]).threshold;
  describe();
  drawBars();
  onRate();
}

function describe() {
  const { alpha } = rate();
  $("alpha-value").textContent = `${Number((100 * alpha).toPrecision(3))} %`;
  $("alpha").setAttribute("aria-valuetext", `${Number((100 * alpha).toPrecision(3))} percent`);
  $("alpha-text").textContent = alphaSentence(alpha);
}

const toX = (value) => LEFT + (RIGHT - LEFT) * Math.max(0, Math.min(1, value / largest));

function drawBars() {
  const { edges, counts } = calibration, highest = Math.max(...counts), width = edges[1] - edges[0];
  const bars = counts.map((images, index) => {
    const height = images ? Math.max(1, (BASE - TOP) * images / highest) : 0;
    return makeSvg("rect", { class: "bar", x: toX(edges[index]), width: Math.max(1, toX(edges[index] + width) - toX(edges[index]) - 1), y: BASE - height, height });
  });
  const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 50].find((size) => largest / size <= 12) || largest / 10;
  const ticks = Array.from({ length: Math.floor(largest / step) + 1 }, (_, index) => index * step)
    .map((value) => makeSvg("text", { x: toX(value), y: BASE + 17, "text-anchor": value ? "middle" : "start" }, Number(value.toFixed(2)).toString()));
  $("histogram").replaceChildren(
    makeSvg("rect", { class: "zone", y: TOP, height: BASE - TOP }), ...bars,
    makeSvg("line", { class: "axis", x1: LEFT, x2: RIGHT, y1: BASE, y2: BASE }), ...ticks,
    makeSvg("text", { x: RIGHT, y: HEIGHT - 6, "text-anchor": "end" }, "score: higher is more unusual →"),
    makeSvg("line", { class: "limit", y1: TOP - 8, y2: BASE }), makeSvg("text", { class: "limit-text", y: TOP - 14 }),
    makeSvg("g", { class: "yours", visibility: "hidden" },
      makeSvg("path", { class: "mark", d: `M0 ${BASE}v-62m-5 8l5 -9l5 9z` }), makeSvg("text", { class: "mark-text", y: BASE - 76, "text-anchor": "middle" })),
  );
  drawThreshold();
  drawMark();
}

function drawThreshold() {
  if (!calibration) return;
  const { threshold } = rate(), x = toX(threshold), svg = $("histogram"), text = svg.querySelector(".limit-text");
  const line = svg.querySelector(".limit"), zone = svg.querySelector(".zone");
  line.setAttribute("x1", x);
  line.setAttribute("x2", x);
  zone.setAttribute("x", x);
  zone.setAttribute("width", RIGHT - x);
  text.setAttribute("x", x > RIGHT - 150 ? x - 6 : x + 6);
  text.setAttribute("text-anchor", x > RIGHT - 150 ? "end" : "start");
  text.textContent = `threshold ${number(threshold)}: flagged above`;
  label();
}

function drawMark() {
  if (!calibration) return;
  const mark = $("histogram").querySelector(".yours"), text = mark.querySelector("text");
  mark.setAttribute("visibility", score === null ? "hidden" : "visible");
  if (score !== null) {
    const x = clamp(toX(score), LEFT + 6, RIGHT - 6), isLeft = x < LEFT + NEAR, isRight = x > RIGHT - NEAR;
    mark.setAttribute("transform", `translate(${x} 0)`);
    text.setAttribute("text-anchor", isLeft ? "start" : isRight ? "end" : "middle");
    text.setAttribute("x", isLeft ? LEFT - x : isRight ? RIGHT - x : 0);
    text.textContent = score > largest ? `yours ${number(score, 1)} →` : `yours ${number(score)}`;
  }
  label();
}

function label() {
  const { alpha, threshold } = rate();
  const own = score === null ? "" : ` Yours scores ${number(score)}.`;
  $("histogram").setAttribute("aria-label", `Histogram of the scores of ${count(calibration.images)} normal digits. `
    + `The threshold for ${Number((100 * alpha).toPrecision(3))} percent false alarms is ${number(threshold)}.${own}`);
}
