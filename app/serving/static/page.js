// The demo page: what is drawn, opened, dropped or pasted is sent to the server, and its answers are shown.
"use strict";

const $ = (id) => document.getElementById(id);
const paper = $("paper"), pen = paper.getContext("2d", { willReadFrequently: true });
const map = $("map"), chart = map.getContext("2d");
const COLOURS = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bb5500", "#777777", "#44aa99", "#882255"];
const PICTURES = ["input", "reconstruction", "error_map"];

let last = null, timer = 0, turn = 0;
let plane = null, place = null;
let model = "", asked = null;  // the chosen model, "" for the default; the last image

// The page's requests are no traffic to learn from: watch=0 leaves them out of verdict metrics and drift.
const url = (path) => `${path}?watch=0${model ? `&model=${encodeURIComponent(model)}` : ""}`;

function clear() {
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, paper.width, paper.height);
  place = asked = null;
  turn += 1;
  clearTimeout(timer);
  $("verdict").textContent = "Nothing yet";
  $("verdict").className = "verdict";
  $("reason").textContent = "The page asks as you draw.";
  $("bar").style.width = "0";
  $("notes").textContent = "";
  for (const id of PICTURES) $(id).removeAttribute("src");
  drawMap();
}

function point(event) {
  const box = paper.getBoundingClientRect();
  return [(event.clientX - box.left) * paper.width / box.width, (event.clientY - box.top) * paper.height / box.height];
}

function stroke(event) {
  const [x, y] = point(event);
  pen.strokeStyle = "#15161b";
  pen.lineWidth = 18;
  pen.lineCap = pen.lineJoin = "round";
  pen.beginPath();
  pen.moveTo(...(last || [x, y]));
  pen.lineTo(x, y + (last ? 0 : 0.01));
  pen.stroke();
  last = [x, y];
  askSoon();
}

function askSoon() {
  clearTimeout(timer);
  timer = setTimeout(() => paper.toBlob((blob) => ask(blob, "drawing.png")), 120);
}

async function question(path, blob, name) {
  const form = new FormData();
  form.append("file", blob, name);
  const response = await fetch(url(path), { method: "POST", body: form });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.detail || answer.title || "The server gave no answer.");
  return answer;
}

async function ask(blob, name) {
  const mine = ++turn;
  asked = [blob, name];
  try {
    const [score, pictures, embedding] = await Promise.all(
      ["score", "reconstruct", "embed"].map((path) => question(path, blob, name)));
    if (mine === turn) show(score, pictures.results[0], embedding.results[0]);
  } catch (error) {
    if (mine !== turn) return;
    $("verdict").textContent = "No answer";
    $("verdict").className = "verdict";
    $("reason").textContent = error.message;
  }
}

function show(answer, pictures, embedding) {
  const result = answer.results[0], kind = result.is_anomaly ? "anomaly" : "normal";
  $("verdict").textContent = result.is_anomaly ? "Not a digit" : "A digit";
  $("verdict").className = `verdict ${kind}`;
  $("reason").textContent = `Score ${result.score.toFixed(2)}, threshold ${answer.threshold.toFixed(2)}. ` + rarity(result.p_value);
  $("bar").className = kind;
  $("bar").style.width = `${Math.min(100, 50 * result.score / answer.threshold)}%`;
  for (const id of PICTURES) $(id).src = `data:image/png;base64,${pictures[id]}`;
  const notes = [...result.preprocess, ...result.warnings.map((warning) => `⚠ ${warning}`)];
  $("notes").textContent = notes.join(" · ").replaceAll("_", " ");
  place = embedding.embedding;
  drawMap();
}

function rarity(p) {
  if (p > 0.5) return "Most digits look odder than this.";
  return `Of ${Math.round(1 / p).toLocaleString("en")} digits, one looks at least as odd.`;
}

function showFile(file) {
  if (!file) return;
  clear();
  createImageBitmap(file).then((image) => {
    const scale = Math.min(paper.width / image.width, paper.height / image.height);
    const width = image.width * scale, height = image.height * scale;
    pen.drawImage(image, (paper.width - width) / 2, (paper.height - height) / 2, width, height);
  }, () => {});
  ask(file, file.name || "pasted");
}

// The map: embeddings to pixels by their middle 98 %, so that a few far ones do not squeeze the rest.
function range(values) {
  const sorted = [...values].sort((a, b) => a - b), at = (q) => sorted[Math.floor(q * (sorted.length - 1))];
  const margin = 0.08 * (at(0.99) - at(0.01));
  return [at(0.01) - margin, at(0.99) + margin];
}

const dot = (a, b) => a.reduce((sum, value, index) => sum + value * b[index], 0);

// Centre and axes of the map: the coordinates themselves in two dimensions, else the mean and the first two principal axes.
function projection(embedding) {
  const size = embedding[0].length, zeros = () => Array(size).fill(0);
  if (size === 2) return { centre: [0, 0], axes: [[1, 0], [0, 1]] };
  const centre = zeros().map((_, i) => embedding.reduce((sum, e) => sum + e[i], 0) / embedding.length);
  const covariance = zeros().map(zeros);
  for (const e of embedding) {
    const d = e.map((value, i) => value - centre[i]);
    for (let i = 0; i < size; i++) for (let j = 0; j < size; j++) covariance[i][j] += d[i] * d[j] / embedding.length;
  }
  const axes = [];
  for (let count = 0; count < 2; count++) {  // power iteration, orthogonal to the axes before
    let axis = zeros().map((_, i) => 1 + i % 3);
    for (let step = 0; step < 200; step++) {
      axis = covariance.map((row) => dot(row, axis));
      for (const other of axes) { const along = dot(axis, other); axis = axis.map((value, i) => value - along * other[i]); }
      const length = Math.hypot(...axis) || 1;
      axis = axis.map((value) => value / length);
    }
    axes.push(axis);
  }
  return { centre, axes };
}

async function loadMap() {
  plane = null;
  const mine = model, response = await fetch(url("latent"));
  const answer = response.ok ? await response.json() : null;
  if (mine !== model) return;
  if (answer) {
    const { centre, axes } = projection(answer.embedding);
    const toMap = (e) => axes.map((axis) => dot(axis, e.map((value, i) => value - centre[i])));
    const points = answer.embedding.map(toMap);
    const fromMap = (x, y) => centre.map((value, i) => value + x * axes[0][i] + y * axes[1][i]);
    plane = { points, labels: answer.labels, toMap, fromMap, x: range(points.map((p) => p[0])), y: range(points.map((p) => p[1])) };
  }
  drawMap();
}

const toPixel = ([x, y]) => [
  (x - plane.x[0]) / (plane.x[1] - plane.x[0]) * map.width,
  (plane.y[1] - y) / (plane.y[1] - plane.y[0]) * map.height,
];

function drawMap() {
  chart.clearRect(0, 0, map.width, map.height);
  if (!plane) return;
  plane.points.forEach((point, index) => {
    if (index % 3) return;
    const [x, y] = toPixel(point);
    chart.fillStyle = COLOURS[plane.labels[index] % COLOURS.length] + "99";
    chart.fillRect(x - 1, y - 1, 2, 2);
  });
  if (!place) return;
  const [x, y] = toPixel(plane.toMap(place)).map((value) => Math.max(8, Math.min(map.width - 8, value)));
  chart.lineWidth = 3;
  chart.strokeStyle = "#d00";
  chart.beginPath();
  chart.arc(x, y, 6, 0, 2 * Math.PI);
  chart.stroke();
}

let decoding = false;
async function decodeAt(event) {
  if (!plane || decoding) return;
  decoding = true;
  const box = map.getBoundingClientRect();
  const x = plane.x[0] + (event.clientX - box.left) / box.width * (plane.x[1] - plane.x[0]);
  const y = plane.y[1] - (event.clientY - box.top) / box.height * (plane.y[1] - plane.y[0]);
  try {
    const response = await fetch(url("decode"), {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ embedding: [plane.fromMap(x, y)] }),
    });
    if (response.ok) $("decoded").src = `data:image/png;base64,${(await response.json()).images[0]}`;
  } finally {
    decoding = false;
  }
}

async function loadModel() {
  const response = await fetch(url("model"));
  if (!response.ok) return;
  $("card").href = url("model");
  const card = await response.json();
  $("model").textContent = `${card.name}/${card.version} on ${card.device}, ${card.architecture.parameters.toLocaleString("en")} weights`;
}

// A list of the models, shown where there is more than one.
async function loadModels() {
  const response = await fetch("models");
  if (!response.ok) return;
  const { models } = await response.json(), list = $("models");
  list.replaceChildren(...models.map(({ name }) => new Option(name, name)));
  list.hidden = models.length < 2;
}

function chooseModel(event) {
  model = event.target.value;
  place = null;
  loadMap();
  loadModel();
  if (asked) ask(...asked);
}

paper.addEventListener("pointerdown", (event) => { paper.setPointerCapture(event.pointerId); last = null; stroke(event); });
paper.addEventListener("pointermove", (event) => { if (event.buttons) stroke(event); });
paper.addEventListener("pointerup", () => { last = null; });
map.addEventListener("pointermove", decodeAt);
$("models").addEventListener("change", chooseModel);
$("clear").addEventListener("click", clear);
$("file").addEventListener("change", (event) => { showFile(event.target.files[0]); event.target.value = ""; });
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => { event.preventDefault(); showFile(event.dataTransfer.files[0]); });
document.addEventListener("paste", (event) => showFile(event.clipboardData.files[0]));
clear();
loadMap();
loadModel();
loadModels();
