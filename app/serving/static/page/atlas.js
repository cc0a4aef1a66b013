// The map of the latent plane: decoded digits behind the test images, and a ring that can be dragged.
import { address, ask, askPersistently, chosenModel, events, modelCard } from "./api.js";
import { DecodedGrid, decode } from "./decoded.js";
import { $, bitmapOf, clamp, cssColour, reducedMotion } from "./dom.js";
import { followPointers } from "./gestures.js";
import { Plane } from "./plane.js";
import { number } from "./words.js";

const GLIDE_MS = 280;
const REST_MS = 250;  // until the exact image is asked for
const NEAR_PX = 22;  // of the ring, for dragging
const HOVER_PX = 9;
const MOST_ZOOM = 12;
const MARGIN = 0.03;  // of the map, around the places
const SIZE = 28;
const KEYS = { ArrowLeft: [-0.01, 0], ArrowRight: [0.01, 0], ArrowUp: [0, 0.01], ArrowDown: [0, -0.01] };

const map = $("map"), chart = map.getContext("2d"), decoded = $("decoded").getContext("2d", { willReadFrequently: true });
let plane = null, grid = null, layer = null, sprite = null;
let view = { zoom: 1, u: 0, v: 0 };  // corner at the lower left
let embedding = null;  // of the drawing
let ring = null, glide = 0, restTimer = 0, onDecode = () => {};

// The ring moves to the embedding of the drawing; null: there is none.
export function placeRing(found) {
  embedding = found;
  if (!plane) return;
  if (found) glideTo(plane.placeOf(found));
  else {
    cancelAnimationFrame(glide);
    ring = null;
    draw();
  }
}

// `callback` gets the pixels that the network draws where the reader moves the ring.
export function startAtlas(callback) {
  onDecode = callback;
  const near = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    near.disconnect();
    load();
    events.addEventListener("model", load);
  }, { rootMargin: "100px" });
  near.observe(map);
  new ResizeObserver(() => { layer = null; draw(); }).observe(map);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { layer = null; draw(); });
  followPointers(map, { drag, pinch, hover });
  map.addEventListener("touchstart", (event) => { if (event.touches.length > 1 || isNearRing(event.touches[0])) event.preventDefault(); }, { passive: false });
  map.addEventListener("wheel", wheel, { passive: false });
  map.addEventListener("keydown", key);
  $("zoom-in").addEventListener("click", () => zoom(1.6));
  $("zoom-out").addEventListener("click", () => zoom(1 / 1.6));
  $("zoom-reset").addEventListener("click", () => setView(1, 0, 0));
}

async function load() {
  plane = grid = layer = sprite = ring = null;
  delete map.dataset.state;
  const name = chosenModel(), card = await modelCard(), article = map.closest("article");
  article.hidden = !("report/latent.npz" in card.files);
  $("sample").hidden = !("report/latent_images.png" in card.files);
  if (article.hidden) return;
  const latent = await askPersistently(address("latent"));
  if (name !== chosenModel()) return;
  plane = new Plane(latent);
  if (embedding && embedding.length === card.architecture.latent_dim) placeRing(embedding);
  draw();
  const loaded = await DecodedGrid.load(plane);
  if (!loaded || name !== chosenModel()) return;
  grid = loaded;
  layer = null;
  draw();
  showPlace(ring || [0.5, 0.5]);
  map.dataset.state = "ready";
  if (!$("sample").hidden) loadSprite(name);
}

// The test images themselves, in the order of the points, fifty in a row.
async function loadSprite(name) {
  const picture = await ask(address("model/report/latent_images.png"), { quiet: true, as: "blob" }).catch(() => null);
  const bitmap = picture && await createImageBitmap(picture);
  if (name !== chosenModel() || !bitmap) return;
  sprite = bitmap;
  showSample(plane.nearest(ring || [0.5, 0.5]));
}

// ------------------------------------------------------------------------------------------------------------- drawing

const side = () => map.width;
const onMap = (share) => MARGIN + (1 - 2 * MARGIN) * share;
const fromMap = (share) => (share - MARGIN) / (1 - 2 * MARGIN);
const toPixel = ([u, v]) => [(onMap(u) - view.u) * view.zoom * side(), (1 - (onMap(v) - view.v) * view.zoom) * side()];

function toPlace(event) {
  const box = map.getBoundingClientRect();
  const across = (event.clientX - box.left) / box.width, up = 1 - (event.clientY - box.top) / box.height;
  return [fromMap(view.u + across / view.zoom), fromMap(view.v + up / view.zoom)];
}

function draw() {
  const pixels = Math.round(map.clientWidth * Math.min(devicePixelRatio || 1, 2)) || 560;
  if (map.width !== pixels) {
    map.width = map.height = pixels;
    layer = null;
  }
  chart.clearRect(0, 0, pixels, pixels);
  if (!plane) return;
  layer ??= drawLayer();
  chart.drawImage(layer, 0, 0);
  if (ring) drawRing(toPixel(ring).map((value) => clamp(value, 10, pixels - 10)));
}

function drawRing([x, y]) {
  const unit = side() / map.clientWidth;
  for (const [colour, width] of [[cssColour("--sheet"), 7], [cssColour("--ink"), 3]]) {
    chart.lineWidth = width * unit;
    chart.strokeStyle = colour;
    chart.beginPath();
    chart.arc(x, y, 10 * unit, 0, 2 * Math.PI);
    chart.stroke();
  }
}

// Background, points and labels, which change only with the view.
function drawLayer() {
  const canvas = Object.assign(document.createElement("canvas"), { width: side(), height: side() });
  const context = canvas.getContext("2d"), unit = side() / map.clientWidth;
  if (grid) {
    const [left, top] = toPixel([0, 1]), width = (1 - 2 * MARGIN) * side() * view.zoom;
    context.globalAlpha = Number(cssColour("--atlas"));
    context.drawImage(grid.background(), left, top, width, width);
    context.globalAlpha = 1;
  }
  const radius = unit * Math.min(4, 1.5 * Math.sqrt(view.zoom * map.clientWidth / 600)), colours = Array.from({ length: 10 }, (_, index) => cssColour(`--c${index}`));
  plane.places.forEach((place, index) => {
    const [x, y] = toPixel(place);
    context.fillStyle = colours[plane.labels[index] % 10];
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.fill();
  });
  context.font = `800 ${26 * unit}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.lineJoin = "round";
  context.lineWidth = 6 * unit;
  context.strokeStyle = cssColour("--sheet");
  for (const { label, place } of plane.medians()) {
    const [x, y] = toPixel(place);
    context.strokeText(label, x, y);
    context.fillStyle = colours[label % 10];
    context.fillText(label, x, y);
  }
  return canvas;
}

// --------------------------------------------------------------------------------------------------------- interaction

function glideTo(target) {
  cancelAnimationFrame(glide);
  const from = ring || target, start = performance.now();
  const step = (now) => {
    const share = reducedMotion() ? 1 : clamp((now - start) / GLIDE_MS, 0, 1), eased = 1 - (1 - share) ** 3;
    ring = from.map((value, axis) => value + eased * (target[axis] - value));
    draw();
    if (share < 1) glide = requestAnimationFrame(step);
    else showPlace(ring);
  };
  glide = requestAnimationFrame(step);
}

// The reader moves the ring: the network draws there.
function moveRing(place) {
  cancelAnimationFrame(glide);
  ring = place.map((value) => clamp(value, 0, 1));
  draw();
  if (grid) onDecode(showPlace(ring));
  clearTimeout(restTimer);
  restTimer = setTimeout(() => showExact(ring), REST_MS);
}

function showPlace(place) {
  if (!grid) return null;
  const pixels = grid.at(place), nearest = plane.nearest(place), numbers = plane.embeddingAt(place).slice(0, 4).map((value) => number(value));
  decoded.putImageData(pixels, 0, 0);
  showSample(nearest);
  const where = ring ? "The network's drawing at the ring" : "Draw, or click on the map: a ring appears. The network's drawing in the middle";
  $("place").textContent = `${where}: ${numbers.join(", ")}. The nearest test image is ${imageOf(nearest)}.`;
  return pixels;
}

// The grid blends its neighbours; where the ring rests, the network's own drawing takes over.
async function showExact(place) {
  const [image] = await decode([plane.embeddingAt(place)], { quiet: true }), bitmap = await bitmapOf(image);
  if (place !== ring) return;
  decoded.drawImage(bitmap, 0, 0);
  onDecode(decoded.getImageData(0, 0, SIZE, SIZE));
}

function isNearRing(event) {
  if (!ring) return false;
  const box = map.getBoundingClientRect(), [x, y] = toPixel(ring).map((value) => value * box.width / side());
  return Math.hypot(event.clientX - box.left - x, event.clientY - box.top - y) < NEAR_PX;
}

// Drag the ring, or the view where it is enlarged; a click moves the ring.
function drag(event) {
  if (!plane) return null;
  const start = toPlace(event), { zoom: zoomed, ...origin } = view, pans = zoomed > 1 && !isNearRing(event), size = map.clientWidth * zoomed;
  let moved = false;
  return {
    move(next) {
      const right = next.clientX - event.clientX, below = next.clientY - event.clientY;
      moved ||= Math.hypot(right, below) > 4;
      if (!moved) return;
      if (pans) setView(zoomed, origin.u - right / size, origin.v + below / size);
      else moveRing(toPlace(next));
    },
    end() { if (!moved) moveRing(start); },
  };
}

// Two pointers zoom and pan: the place that was between them stays between them.
function pinch(start) {
  const origin = view.zoom, u = view.u + start.right / origin, v = view.v + start.up / origin;
  return (now) => {
    const zoomed = clamp(origin * now.distance / start.distance, 1, MOST_ZOOM);
    setView(zoomed, u - now.right / zoomed, v - now.up / zoomed);
  };
}

function setView(zoomed, u, v) {
  const most = 1 - 1 / zoomed;
  view = { zoom: zoomed, u: clamp(u, 0, most), v: clamp(v, 0, most) };
  layer = null;
  for (const id of ["zoom-out", "zoom-reset"]) $(id).disabled = zoomed === 1;
  draw();
}

function zoom(factor, around = ring || [0.5, 0.5]) {
  const zoomed = clamp(view.zoom * factor, 1, MOST_ZOOM), ratio = view.zoom / zoomed;
  const [u, v] = around.map(onMap);
  setView(zoomed, u - (u - view.u) * ratio, v - (v - view.v) * ratio);
}

function wheel(event) {
  if (!plane || !(event.ctrlKey || event.metaKey || document.activeElement === map)) return;
  event.preventDefault();
  zoom(1.0018 ** -event.deltaY, toPlace(event));
}

function key(event) {
  if (!plane || event.ctrlKey || event.metaKey || event.altKey) return;
  const step = KEYS[event.key];
  if (step) moveRing((ring || [0.5, 0.5]).map((value, axis) => value + step[axis] * (event.shiftKey ? 5 : 1) / view.zoom));
  else if (event.key === "+" || event.key === "=") zoom(1.6);
  else if (event.key === "-") zoom(1 / 1.6);
  else return;
  event.preventDefault();
}

// The nearest test image: its class and, where the version has them, its pixels.
function hover(event) {
  if (!plane || event.buttons) return;
  const box = map.getBoundingClientRect(), scale = box.width / side();
  let nearest = -1, least = HOVER_PX;
  plane.places.forEach((place, index) => {
    const [x, y] = toPixel(place), distance = Math.hypot(x * scale - event.clientX + box.left, y * scale - event.clientY + box.top);
    if (distance < least) [nearest, least] = [index, distance];
  });
  map.style.cursor = isNearRing(event) ? "grab" : nearest >= 0 ? "crosshair" : "";
  if (nearest < 0) return;
  showPlace(plane.places[nearest]);
  const image = plane.labels[nearest] === 255 ? "A test image" : `A test image of a ${plane.labels[nearest]}`;
  $("place").textContent = `${image}${sprite ? " and" : ":"} what the network makes of it.`;
}

const imageOf = (index) => (plane.labels[index] === 255 ? "of no known class" : `a ${plane.labels[index]}`);

function showSample(index) {
  if (sprite) $("sample").getContext("2d").drawImage(sprite, index % 50 * SIZE, Math.floor(index / 50) * SIZE, SIZE, SIZE, 0, 0, SIZE, SIZE);
}
