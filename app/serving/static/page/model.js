// The card of the chosen detector as a page, with the pictures of its report; those over the epochs behind a slider.
import { address, ask, askPersistently, events, modelCard } from "./api.js";
import { lineChart, short } from "./chart.js";
import { make } from "./dom.js";
import { count, number } from "./words.js";

const TITLES = {
  "latent.png": "Test images in the latent plane", "errors.png": "Scores of test images and the threshold", "loss.png": "Loss over the epochs",
  "epochs.png": "Five digits over the epochs", "extremes.png": "The most normal and the most anomalous test images",
  "p_values.png": "p-values of test images", "false_alarms.png": "False alarms by digit", "uploads.png": "False alarms by kind of upload",
};
const HIDDEN = new Set(["latent_images.png", "epoch_images.png"]);  // for the map and the slider
const SIZE = 28;

const titleOf = (file) => TITLES[file] || (file.startsWith("reconstructions_") ? "Test images above their reconstructions" : file.slice(0, -4).replaceAll("_", " "));

let view;

export function start(element) {
  view = element;
  events.addEventListener("model", draw);
  draw();
  return {};
}

async function draw() {
  const card = await modelCard(), [versions, report] = await Promise.all([storedVersions(), pictures(card)]);
  if (card !== await modelCard()) return;  // another detector was chosen, or another version is in service
  const { architecture: net, training, data } = card;
  const layers = [net.image_size ** 2, ...net.hidden, net.latent_dim].join(" – ");
  const facts = {
    Detector: `${card.name}/${card.version}, published ${card.created.slice(0, 10)}, runs on ${card.device}`,
    "In the store": versions(card),
    Network: `${net.variational ? "variational autoencoder" : "autoencoder"}, ${layers} and back, ${count(net.parameters)} weights`,
    "Trained on": `${count(data.fit_images ?? 0)} images of ${data.name ?? data.source ?? "a data set"}, ${training.epochs ?? "?"} epochs, seed ${training.seed ?? "?"}`,
    Scorer: card.scorer,
    Threshold: `${number(card.threshold)} at alpha ${card.alpha}, from ${count(card.calibration_images)} images kept out of training`,
    Uploads: card.preprocess === "none" ? `only resized to ${SIZE}x${SIZE}` : card.uploads ? `calibrated by kind (${card.uploads})` : "not calibrated by kind",
  };
  view.replaceChildren(
    make("h2", { textContent: "Model" }),
    make("dl", { className: "facts" }, ...Object.entries(facts).flatMap(([term, text]) => [make("dt", { textContent: term }), make("dd", { textContent: text })])),
    make("div", { className: "tiles" }, ...lossTile(card.losses), metricsTile(card.metrics)),
    make("details", {}, make("summary", { textContent: "The whole card" }), make("pre", { tabIndex: 0, textContent: JSON.stringify(card, null, 1) })),
    make("h3", { textContent: "Report" }), report,
  );
}

// A function from the card to the versions in the store as text, the newest first, each with its state.
async function storedVersions() {
  const [{ models }, { refused_versions: refused }] = await Promise.all([askPersistently("models"), ask("readyz", { quiet: true }).catch(() => ({ refused_versions: [] }))]);
  return ({ name, version: served }) => {
    const reasons = new Map(refused.filter(({ model }) => model === name).map(({ version, reason }) => [version, reason]));
    const state = (version) => (version === served ? " (in service)" : reasons.has(version) ? ` (refused: ${reasons.get(version)})` : "");
    const versions = models.find((model) => model.name === name)?.stored_versions ?? [served];
    return versions.toReversed().map((version) => `${name}/${version}${state(version)}`).join(", ");
  };
}

function lossTile({ fit, test }) {
  if (!fit.length) return [];
  const chart = lineChart("Mean squared error after each epoch", [{ values: fit.slice(1), name: "" }, { values: test.slice(1), name: "test images" }], { zero: false, start: "epoch 1", end: `${fit.length - 1}` });
  return [make("section", { className: "tile", "aria-label": "Loss" }, make("h3", { textContent: "Loss" }), make("p", { className: "figure", textContent: short(test.at(-1)) }), chart)];
}

function metricsTile(metrics) {
  const rows = Object.entries(metrics).flatMap(([name, value]) => flat(name, value)).slice(0, 60);
  const body = rows.map(([name, value]) => make("tr", {}, make("th", { scope: "row", textContent: name }), make("td", { className: "number", textContent: value })));
  return make("section", { className: "tile", "aria-label": "Measured" }, make("h3", { textContent: "Measured" }),
    make("div", { className: "scroll", tabIndex: 0, role: "group", "aria-label": "Measured figures" }, make("table", {}, make("tbody", {}, ...body))));
}

function flat(name, value) {
  const words = name.replaceAll("_", " ");
  if (Array.isArray(value)) return [[words, value.map((entry) => (typeof entry === "number" ? short(entry) : entry)).join(" – ")]];
  if (value && typeof value === "object") return Object.entries(value).flatMap(([inner, part]) => flat(`${words}: ${inner}`, part));
  return [[words, typeof value === "number" ? Number(value.toPrecision(3)).toString() : String(value)]];
}

async function pictures(card) {
  const files = Object.keys(card.files).filter((file) => /^report\/.*\.png$/.test(file)).map((file) => file.slice(7)).sort();
  const last = files.findLast((file) => /_\d{3}\.png$/.test(file));  // older versions have one for each tenth epoch
  const shown = files.filter((file) => !HIDDEN.has(file) && (file === last || !/_\d{3}\.png$/.test(file)));
  const figures = [...(files.includes("epoch_images.png") ? [slider(card.training)] : []), ...shown.map(figure)];
  const loaded = (await Promise.allSettled(figures)).flatMap(({ value }) => value ?? []);  // without those that do not come
  return loaded.length ? make("div", { className: "report" }, ...loaded) : make("p", { textContent: figures.length ? "The pictures of the report did not come." : "This version has no report." });
}

async function figure(file) {
  const alt = titleOf(file), src = URL.createObjectURL(await load(file));
  return make("figure", {}, make("img", { src, alt, onload: () => URL.revokeObjectURL(src) }), make("figcaption", { textContent: alt }));
}

// The sheet's first row are test images; a row for each epoch that was recorded follows.
async function slider({ picture_every: every = 1, epochs = 0 }) {
  const sheet = await createImageBitmap(await load("epoch_images.png"));
  const rows = sheet.height / SIZE - 1, range = make("input", { type: "range", min: 0, max: rows - 1, value: rows - 1, "aria-label": "Epoch" });
  const canvas = make("canvas", { width: sheet.width, height: 2 * SIZE, className: "sheet", role: "img" }), context = canvas.getContext("2d"), caption = make("figcaption");
  const show = () => {
    const row = range.valueAsNumber, epoch = row === rows - 1 ? epochs : row * every;
    context.drawImage(sheet, 0, 0, sheet.width, SIZE, 0, 0, sheet.width, SIZE);
    context.drawImage(sheet, 0, (row + 1) * SIZE, sheet.width, SIZE, 0, SIZE, sheet.width, SIZE);
    caption.textContent = `Test images above their reconstructions after ${epoch} epochs`;
    canvas.setAttribute("aria-label", caption.textContent);
    range.setAttribute("aria-valuetext", `epoch ${epoch}`);
  };
  range.addEventListener("input", show);
  show();
  return make("figure", { className: "epochs" }, canvas, range, caption);
}

// Fetched, because a picture's address cannot carry an API key.
const load = (file) => askPersistently(address(`model/report/${file}`), { as: "blob", quiet: true, attempts: 3 });
