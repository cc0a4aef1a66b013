// The page: joins its parts. Each module in page/ is one of them.
import { showDecoded, showEmpty, showFailure, showPictures, showVerdict, startErrorMap, verdictText } from "./page/answer.js";
import { askPersistently, chooseModel, chosenModel, events, followReload, modelCard, startKeyForm } from "./page/api.js";
import { startAtlas, placeRing } from "./page/atlas.js";
import { $, bitmapOf, bytesOf, reducedMotion } from "./page/dom.js";
import { makeExamples, pause, replay, strokesOf } from "./page/examples.js";
import { rate, showScore, startHistogram } from "./page/histogram.js";
import { Live } from "./page/live.js";
import { Paper } from "./page/paper.js";
import { decodeStrokes, encodeStrokes } from "./page/strokes.js";
import { startViews } from "./page/views.js";
import { count, inWords } from "./page/words.js";

const ANNOUNCE_MS = 700;  // after the last answer, so that a stroke is announced once
const SHOW_MS = 1800;  // an example that the page draws by itself stays this long
const SHOWN_PX = 1024;  // longest side of an opened picture as the undo steps keep it

let answer = null;  // the newest answer of the server
let playing = new AbortController();  // stops the drawing of an example
let isOwn = false;  // the page drew what is on the paper: the reader's first stroke replaces it
let announceTimer = 0;

const say = (text) => { $("announce").textContent = text; };

const paper = new Paper({ onChange: changed, onTouch: takeOver, say });
const live = new Live({
  take: () => paper.picture(),
  show,
  fail,
  slow: () => { $("reason").textContent = "The server is slow; the answer is still to come."; },
  wait: (isBusy) => $("answer").setAttribute("aria-busy", isBusy),
});

function changed() {
  $("ghost").hidden = !paper.isEmpty;
  if (!paper.isEmpty) {
    live.changed();
    return;
  }
  live.reset();
  forgetAnswer();
}

function forgetAnswer() {
  answer = null;
  showEmpty();
  showScore(null);
  placeRing(null);
}

function show(found, picture) {
  if (answer && answer.model.name === found.model.name && answer.model.version !== found.model.version) followReload();
  answer = found;
  const [result] = found.results;
  judge();
  showScore(result.score);
  placeRing(result.embedding);
  showPictures(result).then(() => showUnreadable(result, picture));
  announce();
}

// After a final failure, the result of the earlier picture is removed.
function fail(failure) {
  if (failure.retryAfter === null) forgetAnswer();
  showFailure(failure);
  announce();
}

// Verdict and threshold at the rate that the reader chose, else at the model's own.
function judge() {
  if (!answer) return;
  const { alpha, threshold } = rate() || answer;
  showVerdict(answer.results[0], alpha, threshold);
}

// A file that the browser cannot show, for instance a TIFF: the server's picture of it stands in.
async function showUnreadable(result, picture) {
  const opened = paper.state.picture;
  if (!opened || opened.bitmap || picture.file !== opened.file) return;
  opened.bitmap = await bitmapOf(result.input);
  paper.redraw();
}

function announce() {
  clearTimeout(announceTimer);
  announceTimer = setTimeout(() => say(verdictText()), ANNOUNCE_MS);
}

function stop() {
  playing.abort();
  playing = new AbortController();
  return playing.signal;
}

// The reader draws: an example that the page shows by itself makes room.
function takeOver() {
  stop();
  if (isOwn) paper.set({ strokes: [] });
  isOwn = false;
}

function clear() {
  stop();
  isOwn = false;
  paper.clear();
}

async function showExample(name) {
  const signal = stop();
  isOwn = false;
  $("paper").scrollIntoView({ block: "nearest", behavior: reducedMotion() ? "auto" : "smooth" });
  paper.set({ strokes: [] });
  if (name === "blank") await openFile(blankFile());
  else if (reducedMotion()) paper.set({ strokes: strokesOf(name) });
  else await replay(paper, strokesOf(name), signal);
}

function blankFile() {
  const canvas = Object.assign(document.createElement("canvas"), { width: 280, height: 280 });
  canvas.getContext("2d").fillStyle = "#fff";
  canvas.getContext("2d").fillRect(0, 0, 280, 280);
  return new File([bytesOf(canvas.toDataURL("image/png").split(",")[1])], "blank.png", { type: "image/png" });
}

// The first second: a seven, then a cat, until the reader does something.
async function introduce() {
  if (reducedMotion() || !$("view-draw").checkVisibility()) return;
  const { signal } = playing;
  isOwn = true;
  for (const [name, stay] of [["seven", SHOW_MS], ["cat", 0]]) {
    paper.set({ strokes: [] });
    if (!(await replay(paper, strokesOf(name), signal)) || !(await pause(stay, signal))) return;
  }
}

async function openFile(file) {
  const signal = stop();
  isOwn = false;
  const bitmap = await readPicture(file);
  if (!signal.aborted) paper.set({ strokes: [], picture: { file, bitmap } });
}

// The picture in a file, reduced to SHOWN_PX; null where the browser cannot read it.
async function readPicture(file) {
  const whole = await createImageBitmap(file).catch(() => null);
  if (!whole || Math.max(whole.width, whole.height) <= SHOWN_PX) return whole;
  const reduced = await createImageBitmap(whole, { [whole.width > whole.height ? "resizeWidth" : "resizeHeight"]: SHOWN_PX, resizeQuality: "high" });
  whole.close();
  return reduced;
}

async function share() {
  const hash = paper.strokes.length ? `#draw=${encodeStrokes(paper.strokes)}` : "#draw";
  history.replaceState(null, "", hash);
  $("link").value = location.href;
  $("link").hidden = false;
  $("link").select();
  try {
    await navigator.clipboard.writeText(location.href);
    say("The link to this drawing is copied.");
  } catch { /* no permission: the link stands in the field */ }
}

// Draw the strokes of the address, if it has any.
function openLink() {
  const strokes = location.hash.startsWith("#draw=") ? decodeStrokes(location.hash.slice(6)) : null;
  if (!strokes) return false;
  stop();
  isOwn = false;
  paper.set({ strokes });
  return true;
}

async function describeModel() {
  const name = chosenModel(), card = await modelCard();
  if (name !== chosenModel()) return;
  const dimensions = card.architecture.latent_dim;
  $("kept").textContent = dimensions === 1 ? "one number" : `${inWords(dimensions)} numbers`;
  $("model").textContent = `${card.name}/${card.version} on ${card.device}, ${count(card.architecture.parameters)} weights`;
}

// A list of the detectors, shown where there is more than one.
async function listModels() {
  const { models } = await askPersistently("models");
  $("models").replaceChildren(...models.map(({ name }) => new Option(name, name, false, name === chosenModel())));
  $("models-field").hidden = models.length < 2;
}

function onKey(event) {
  if (!(event.ctrlKey || event.metaKey) || event.altKey || /^(input|textarea|select)$/i.test(event.target.tagName)) return;
  const key = event.key.toLowerCase(), isRedo = key === "y" || (key === "z" && event.shiftKey);
  if (!isRedo && key !== "z") return;
  event.preventDefault();
  stop();
  isOwn = false;
  if (isRedo) paper.redo();
  else paper.undo();
}

function start() {
  showEmpty();
  startErrorMap();
  startKeyForm();
  makeExamples($("examples"), showExample);
  startHistogram(judge);
  startAtlas((pixels) => { if (answer) showDecoded(pixels); });
  startViews({ openFile });
  $("clear").addEventListener("click", clear);
  $("undo").addEventListener("click", () => { stop(); isOwn = false; paper.undo(); });
  $("redo").addEventListener("click", () => { stop(); isOwn = false; paper.redo(); });
  $("width").addEventListener("input", (event) => { paper.width = event.target.valueAsNumber; });
  $("share").addEventListener("click", share);
  $("models").addEventListener("change", (event) => chooseModel(event.target.value));
  document.addEventListener("keydown", onKey);
  events.addEventListener("model", describeModel);
  describeModel();
  listModels();
  addEventListener("hashchange", openLink);
  if (!openLink()) introduce();
}

start();
