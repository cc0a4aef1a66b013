// Answers the page's requests without a server, where `oddigit page` wrote it as static files: the detector runs in the browser.
// A drawing is prepared more simply than by the server, and scored as an image, without the server's further networks for uploads.
import * as ort from "../runtime/ort.wasm.min.mjs";
import { clamp } from "./dom.js";

const SIZE = 28, BOX = 20;  // pixels of an image, and of the longest side of a digit in it
const LARGEST = 280;  // longest side of a picture that is prepared
const MIN_CONTRAST = 0.03;
const HEAT_FULL = 4;  // a white pixel of the error map: this many times the usual error

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = new URL("../runtime/", import.meta.url).href;

let loaded = null, decoder = null, last = Promise.resolve();

// The Response to a request of the page.
export async function respond(path, { body } = {}) {
  const [name] = path.split("?");
  if (name === "inspect") return inspect(body);
  if (name === "decode") return Response.json({ images: await decode(JSON.parse(body).embedding) });
  const file = name.replace("model/", "");
  return fetch(`answers/${file}${file.endsWith(".png") ? "" : ".json"}`);
}

function load() {
  loaded ??= Promise.all([
    fetch("answers/model.json").then((response) => response.json()),
    fetch("answers/scores.bin").then(async (response) => new Float32Array(await response.arrayBuffer())),
    ort.InferenceSession.create("detector.onnx"),
  ]);
  return loaded;
}

// One run after the other: a session takes one at a time.
function run(session, feeds) {
  last = last.catch(() => null).then(() => session.run(feeds));
  return last;
}

async function inspect(body) {
  const files = body instanceof FormData ? body.getAll("file") : [new File([body], "0", { type: "image/png" })];
  const [card, scores, session] = await load(), results = [];
  for (const file of files) results.push(await inspectFile(file, card, scores, session));
  if (results.length === 1 && results[0].error) return Response.json(results[0].error, { status: 400 });
  return Response.json({ model: { name: card.name, version: card.version }, alpha: card.alpha, threshold: card.threshold, results });
}

async function inspectFile(file, card, scores, session) {
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) return { name: file.name, error: { detail: `${file.name}: this browser cannot read the image.` } };
  const { image, steps, warnings } = prepare(bitmap), found = await run(session, { images: new ort.Tensor("uint8", image, [1, SIZE, SIZE]) });
  const [score] = found.score.data, p = (1 + scores.length - countBelow(scores, score)) / (scores.length + 1);
  return {
    name: file.name, score, p_value: p, is_anomaly: score > card.threshold, reconstruction_error: found.reconstruction_error.data[0],
    embedding: [...found.embedding.data], preprocess: steps, warnings, input: picture(image, grey), reconstruction: picture(found.reconstruction.data, (value) => grey(255 * value)),
    error_map: picture(found.error_map.data, (value) => [0, 1, 2].map((channel) => 255 * clamp(3 * value / HEAT_FULL - channel, 0, 1))),
  };
}

async function decode(points) {
  decoder ??= ort.InferenceSession.create("decoder.onnx");
  const { reconstruction } = await run(await decoder, { embedding: new ort.Tensor("float32", points.flat(), [points.length, points[0].length]) });
  return points.map((_, index) => picture(reconstruction.data.subarray(index * SIZE ** 2, (index + 1) * SIZE ** 2), (value) => grey(255 * value)));
}

const grey = (value) => [value, value, value];

// Number of ascending `scores` below `score`.
function countBelow(scores, score) {
  let low = 0, high = scores.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (scores[middle] < score) low = middle + 1;
    else high = middle;
  }
  return low;
}

// A PNG in base64 of SIZE x SIZE values, whose colours `colour` gives.
function picture(values, colour) {
  const canvas = Object.assign(document.createElement("canvas"), { width: SIZE, height: SIZE }), image = new ImageData(SIZE, SIZE);
  values.forEach((value, index) => image.data.set([...colour(value), 255], 4 * index));
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas.toDataURL("image/png").split(",")[1];
}

// ---------------------------------------------------------------------------------------------------------- preparation

// As MNIST's makers did: bright ink on dark, cropped, the longest side BOX pixels, the centre of mass in the middle.
function prepare(bitmap) {
  const scale = Math.min(1, LARGEST / Math.max(bitmap.width, bitmap.height));
  const width = Math.max(1, Math.round(bitmap.width * scale)), height = Math.max(1, Math.round(bitmap.height * scale));
  const context = Object.assign(document.createElement("canvas"), { width, height }).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height), green = Uint8Array.from({ length: width * height }, (_, index) => data[4 * index + 1]);
  const isGrey = green.every((value, index) => Math.abs(data[4 * index] - value) <= 2 && Math.abs(data[4 * index + 2] - value) <= 2);
  if (width === SIZE && height === SIZE && isGrey) return centred(green);
  const ink = inkOf(green, width, height), box = ink && boxOf(ink, width, height);
  if (!box) return { image: new Uint8Array(SIZE ** 2), steps: ["blank"], warnings: ["blank"] };
  const shrunk = resized(ink, width, box);
  return { image: placed(shrunk), steps: ["cropped", "centred"], warnings: [] };
}

// Ink in [0, 1], the difference from the median of the edge; null where there is no contrast.
function inkOf(values, width, height) {
  const edge = values.filter((_, index) => index < width || index >= width * (height - 1) || index % width === 0 || index % width === width - 1).sort();
  const paper = edge[edge.length >> 1], ink = Float32Array.from(values, (value) => Math.abs(value - paper) / 255);
  const strongest = ink.reduce((most, value) => Math.max(most, value), 0);
  return strongest < MIN_CONTRAST ? null : ink.map((value) => Math.min(1, value / (0.9 * strongest)));
}

function boxOf(ink, width, height) {
  const box = { left: width, top: height, right: 0, bottom: 0 };
  ink.forEach((value, index) => {
    if (value <= 0.1) return;
    const x = index % width, y = Math.floor(index / width);
    box.left = Math.min(box.left, x);
    box.top = Math.min(box.top, y);
    box.right = Math.max(box.right, x + 1);
    box.bottom = Math.max(box.bottom, y + 1);
  });
  return box;
}

// The ink in a box as {values, width, height}, each pixel the mean of the area that it covers.
function resized(ink, stride, { left, top, right, bottom }) {
  const scale = BOX / Math.max(right - left, bottom - top);
  const width = Math.max(1, Math.round((right - left) * scale)), height = Math.max(1, Math.round((bottom - top) * scale));
  const columns = shares(right - left, width), rows = shares(bottom - top, height);
  const values = Float32Array.from({ length: width * height }, (_, index) => {
    let sum = 0;
    for (const [y, down] of rows[Math.floor(index / width)]) for (const [x, across] of columns[index % width]) sum += down * across * ink[(top + y) * stride + left + x];
    return sum;
  });
  const largest = values.reduce((most, value) => Math.max(most, value), 0);
  return { values: values.map((value) => value / largest), width, height };
}

// For each of `target` pixels: [source pixel, its share of the target's area].
function shares(source, target) {
  const step = source / target;
  return Array.from({ length: target }, (_, index) => {
    const start = index * step, end = start + step, covered = [];
    for (let pixel = Math.floor(start); pixel < Math.min(source, Math.ceil(end)); pixel++) covered.push([pixel, (Math.min(end, pixel + 1) - Math.max(start, pixel)) / step]);
    return covered;
  });
}

function placed({ values, width, height }) {
  const image = new Uint8Array(SIZE ** 2), [x, y] = centreOf(values, width);
  const left = clamp(Math.round(SIZE / 2 - x), 0, SIZE - width), top = clamp(Math.round(SIZE / 2 - y), 0, SIZE - height);
  values.forEach((value, index) => { image[(top + Math.floor(index / width)) * SIZE + left + index % width] = Math.round(255 * value); });
  return image;
}

function centreOf(values, width) {
  let sum = 0, x = 0, y = 0;
  values.forEach((value, index) => {
    sum += value;
    x += value * (index % width);
    y += value * Math.floor(index / width);
  });
  return [x / (sum || 1), y / (sum || 1)];
}

// A 28x28 image stays as it is; more than a pixel off the middle it is shifted by whole pixels, as far as its ink allows.
function centred(image) {
  const off = centreOf(image, SIZE).map((value) => value - SIZE / 2), box = boxOf(image, SIZE, SIZE);
  if (Math.max(...off.map(Math.abs)) <= 1 || box.right === 0) return { image, steps: [], warnings: [] };
  const right = clamp(-Math.round(off[0]), -box.left, SIZE - box.right), down = clamp(-Math.round(off[1]), -box.top, SIZE - box.bottom);
  const moved = new Uint8Array(SIZE ** 2);
  for (let y = box.top; y < box.bottom; y++) for (let x = box.left; x < box.right; x++) moved[(y + down) * SIZE + x + right] = image[y * SIZE + x];
  return { image: moved, steps: right || down ? ["centred"] : [], warnings: [] };
}
