// The server's answer about one image: verdict, pictures, the two numbers, error map.
import { $, bitmapOf, clamp } from "./dom.js";
import { decidingWarning, number, pValue, raritySentence, warningSentence } from "./words.js";

const VERDICTS = { normal: "A digit", anomaly: "Not a digit", empty: "Nothing yet", error: "No answer", unknown: "No verdict" };
const PICTURES = { input: "What the network sees", reconstruction: "Its reconstruction", error_map: "Error map" };
const HEAT_FULL = 4;  // a white pixel of the error map: this many times the usual error
const TOO_FEW = " Too few images of this kind were calibrated for a verdict at this rate.";
const SIZE = 28;
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

let cell = [14, 14];  // column and row of the pixel that is read
let heat = null;  // pixels of the error map, and of the input below it
let given = null;
let newest = null;  // the result whose pictures are to be shown: decoding them takes a moment, in which another may come

export function showEmpty() {
  setVerdict("empty");
  $("reason").textContent = "Draw on the white square, or choose an example.";
  $("warnings").replaceChildren();
  $("notes").textContent = "";
  $("numbers").textContent = "–";
  $("pixel").textContent = "Point at the error map, or use the arrow keys on it, to read a value.";
  heat = given = newest = null;
  for (const [id, text] of Object.entries(PICTURES)) {
    contextOf(id).clearRect(0, 0, SIZE, SIZE);
    $(id).setAttribute("aria-label", `${text}: nothing yet`);
  }
}

export function showFailure(failure) {
  setVerdict("error");
  $("reason").textContent = failure.message;
}

// `result` of /inspect at the limit `alpha` with its `threshold`.
export function showVerdict(result, alpha, threshold) {
  const isAnomaly = result.p_value <= alpha, isAbove = result.score > threshold, decided = decidingWarning(result.warnings);
  setVerdict(isAnomaly || decided ? "anomaly" : isAbove ? "unknown" : "normal");
  if (decided) $("verdict").textContent = decided;
  const side = isAbove || isAnomaly ? "above" : "not above", tooFew = isAbove && !isAnomaly ? TOO_FEW : "";
  $("reason").textContent = `${raritySentence(result.p_value).slice(0, -1)}: p-value ${pValue(result.p_value)}. Score ${number(result.score)}, ${side} the threshold ${number(threshold)}.${tooFew}`;
  $("warnings").replaceChildren(...result.warnings.map((warning) => Object.assign(document.createElement("li"), { textContent: warningSentence(warning) })));
}

export async function showPictures(result) {
  newest = result;
  const [input, reconstruction, map] = await Promise.all(["input", "reconstruction", "error_map"].map((name) => bitmapOf(result[name])));
  if (newest !== result) return;
  $("numbers").textContent = result.embedding.slice(0, 4).map((value) => number(value)).join("\n") + (result.embedding.length > 4 ? "\n…" : "");
  const steps = result.preprocess.map((step) => step.replaceAll("_", " "));
  $("notes").textContent = steps.length ? `Prepared as the makers of MNIST did: ${steps.join(", ")}.` : "";
  given = pixelsOf(input, "input");
  pixelsOf(reconstruction, "reconstruction");
  heat = pixelsOf(map, "error_map");
  drawErrorMap();
  const largest = Math.max(...Array.from({ length: SIZE ** 2 }, (_, index) => errorAt(index)));
  $("input").setAttribute("aria-label", "What the network sees: your image as 28 by 28 grey pixels");
  $("reconstruction").setAttribute("aria-label", "Its reconstruction of your image from the two numbers");
  $("error_map").setAttribute("aria-label", `Error map: the largest error of a pixel is ${largest >= HEAT_FULL ? "4 times or more" : `${number(largest, 1)} times`} the usual one`);
}

// Another picture in the place of the reconstruction: what the network draws at another place of the plane.
export function showDecoded(pixels) {
  contextOf("reconstruction").putImageData(pixels, 0, 0);
}

export const verdictText = () => `${$("verdict").textContent}. ${$("reason").textContent} ${[...$("warnings").children].map((item) => item.textContent).join(" ")}`;

export function startErrorMap() {
  const key = $("heat").getContext("2d");
  for (let x = 0; x < 120; x++) {
    key.fillStyle = heatColour(HEAT_FULL * x / 119);
    key.fillRect(x, 0, 1, 1);
  }
  $("overlay").addEventListener("change", drawErrorMap);
  $("error_map").addEventListener("pointermove", (event) => {
    const box = $("error_map").getBoundingClientRect();
    readPixel([(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map((share) => Math.floor(share * SIZE)));
  });
  $("error_map").addEventListener("keydown", (event) => {
    if (!(event.key in STEPS)) return;
    event.preventDefault();
    readPixel(cell.map((value, axis) => value + STEPS[event.key][axis]));
  });
}

function setVerdict(state) {
  $("verdict").dataset.state = state;
  $("verdict").textContent = VERDICTS[state];
}

const contextOf = (id) => $(id).getContext("2d", { willReadFrequently: true });

function pixelsOf(bitmap, id) {
  const context = contextOf(id);
  context.drawImage(bitmap, 0, 0, SIZE, SIZE);
  return context.getImageData(0, 0, SIZE, SIZE);
}

// The error of a pixel, 1 = usual: the colours run from black over red and yellow to white.
const errorAt = (index) => HEAT_FULL * (heat.data[4 * index] + heat.data[4 * index + 1] + heat.data[4 * index + 2]) / 765;

function heatColour(error) {
  const level = 3 * error / HEAT_FULL;
  return `rgb(${[0, 1, 2].map((channel) => Math.round(255 * Math.max(0, Math.min(1, level - channel)))).join(" ")})`;
}

function drawErrorMap() {
  if (!heat) return;
  const pixels = new ImageData(new Uint8ClampedArray(heat.data), SIZE, SIZE);
  if ($("overlay").checked) {
    for (let index = 0; index < SIZE ** 2; index++) {
      const share = Math.min(1, errorAt(index) / 2);
      for (let channel = 0; channel < 3; channel++) {
        const at = 4 * index + channel;
        pixels.data[at] = share * heat.data[at] + (1 - share) * given.data[at] * 0.7;
      }
    }
  }
  contextOf("error_map").putImageData(pixels, 0, 0);
}

function readPixel(place) {
  if (!heat) return;
  cell = place.map((value) => clamp(value, 0, SIZE - 1));
  const [column, row] = cell, error = errorAt(row * SIZE + column);
  $("pixel").textContent = `Column ${column + 1}, row ${row + 1}: ${error >= HEAT_FULL ? "4 times or more" : `${number(error, 1)} times`} the usual error.`;
}
