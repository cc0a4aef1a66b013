// For operators: requests, latency, flagged share, drift and versions, from the server's own metrics, every two seconds.
import { address, ask, chosenModel } from "./api.js";
import { lineChart, short } from "./chart.js";
import { $, make } from "./dom.js";
import { count } from "./words.js";

const INTERVAL_MS = 2000;
const KEPT = 150;  // samples: five minutes
const SCORING = /^\/(score|embed|reconstruct|inspect|v2\/models\/.*infer)$/;

let samples = [], previous = null, timer = 0, running = false;

export function start(view) {
  const tile = (id, title, text) => make("section", { className: "tile", "aria-label": title }, make("h3", { textContent: title }),
    make("p", { id: `${id}-now`, className: "figure" }, "–"), make("div", { id }), make("p", { className: "soft", textContent: text }));
  view.append(
    make("h2", { textContent: "Monitor" }),
    make("p", { className: "soft" }, "The last five minutes, from /metrics and /drift of this server. The page's own requests are served, but count neither as verdicts nor for drift."),
    make("div", { className: "tiles" },
      tile("requests", "Requests a second", "Answers of the scoring endpoints; dashed: those with an error."),
      tile("latency", "Latency", "From head to answer, of the requests of the last two seconds: median and 99th percentile."),
      tile("flagged", "Share flagged", "Of the images judged since the server started."),
      tile("drift", "Drift", "Capital of a bet that the traffic is not normal. It reaches the alarm line by chance with a probability of at most 1 / level.")),
    make("h3", { textContent: "Detectors in service" }),
    make("div", { className: "results" }, make("table", { id: "served" })),
    make("p", { id: "memory", className: "soft" }), make("div", { id: "refused" }),
  );
  return { enter, leave };
}

function enter() {
  running = true;
  poll();
}

function leave() {
  running = false;
  clearTimeout(timer);
}

async function poll() {
  try {
    const [text, drift, ready, models] = await Promise.all(
      [ask("metrics", { as: "text" }), ask(address("drift")), ask("readyz", { quiet: true }).catch(() => ({ refused_versions: [] })), ask("models")]);
    const now = read(parse(text), performance.now(), drift.model.name);
    if (previous) samples = [...samples, { ...difference(previous, now), capital: drift.capital }].slice(-KEPT);
    previous = now;
    draw(now, drift);
    drawVersions(models, ready);
  } catch { /* told above the page; the next poll tries again */ }
  if (running) timer = setTimeout(poll, INTERVAL_MS);
}

// Prometheus's text format -> [{name, labels, value}].
function parse(text) {
  return [...text.matchAll(/^(\w+)(?:\{(.*)\})? (\S+)$/gm)].map(([, name, labels = "", value]) => (
    { name, labels: Object.fromEntries([...labels.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, key, text_]) => [key, text_])), value: Number(value) }));
}

function read(metrics, time, model) {
  const of = (name) => metrics.filter((metric) => metric.name === name), sum = (list) => list.reduce((total, { value }) => total + value, 0);
  const requests = of("oddigit_requests_total").filter(({ labels }) => SCORING.test(labels.route));
  const buckets = new Map();
  for (const { labels, value } of of("oddigit_request_seconds_bucket")) {
    if (SCORING.test(labels.route)) buckets.set(Number(labels.le.replace("+Inf", "Infinity")), (buckets.get(Number(labels.le.replace("+Inf", "Infinity"))) || 0) + value);
  }
  const images = of("oddigit_images_total").filter(({ labels }) => labels.model === model);
  return {
    time, buckets, requests: sum(requests), errors: sum(requests.filter(({ labels }) => Number(labels.status) >= 400)),
    images: sum(images), anomalies: sum(images.filter(({ labels }) => labels.verdict === "anomaly")),
  };
}

function difference(before, now) {
  const seconds = (now.time - before.time) / 1000 || 1, buckets = [...now.buckets].map(([le, value]) => [le, value - (before.buckets.get(le) || 0)]);
  return {
    requests: Math.max(0, now.requests - before.requests) / seconds, errors: Math.max(0, now.errors - before.errors) / seconds,
    median: percentile(buckets, 0.5), slow: percentile(buckets, 0.99), flagged: now.images ? now.anomalies / now.images : null,
  };
}

// Milliseconds, linear within a bucket of [upper bound, cumulative count]; null without requests.
function percentile(buckets, share) {
  const sorted = buckets.sort(([a], [b]) => a - b), total = sorted.at(-1)?.[1] || 0;
  let bound = 0, below = 0;
  for (const [le, cumulative] of sorted) {
    if (total && cumulative >= share * total) return 1000 * (le === Infinity ? bound : bound + (le - bound) * (share * total - below) / (cumulative - below || 1));
    [bound, below] = [le, cumulative];
  }
  return null;
}

function draw(now, drift) {
  const column = (name) => samples.map((sample) => sample[name]), last = samples.at(-1);
  const axis = { start: samples.length ? `${count(samples.length * INTERVAL_MS / 1000)} s ago` : "", end: "now" };
  const put = (id, text, chart) => { $(`${id}-now`).textContent = text; $(id).replaceChildren(chart); };
  put("requests", last ? short(last.requests) : "–", lineChart("Requests a second", [{ values: column("requests") }, { values: column("errors"), name: last?.errors ? "errors" : "" }], axis));
  const slow = last?.median === null || !last ? "no requests" : `${short(last.median)} ms, ${short(last.slow)} ms`;
  put("latency", slow, lineChart("Latency in milliseconds", [{ values: column("slow"), name: "99 %" }, { values: column("median"), name: "median" }], { ...axis, unit: " ms" }));
  put("flagged", now.images ? `${short(100 * now.anomalies / now.images)} % of ${count(now.images)}` : "no images yet",
    lineChart("Share of images flagged, in percent", [{ values: column("flagged").map((value) => (value === null ? null : 100 * value)) }], { ...axis, unit: " %" }));
  put("drift", drift.drifting ? `Alarm since image ${count(drift.since)}` : `${short(drift.capital)} of ${count(drift.level)}`,
    lineChart("Drift capital on a logarithmic axis", [{ values: column("capital") }], { ...axis, log: true, limit: { value: drift.level, name: "alarm" } }));
  $("drift-now").dataset.state = drift.drifting ? "anomaly" : "normal";
}

function drawVersions({ models, memory_bytes: memory }, ready) {
  const head = ["Detector", "Version", "Scorer", "alpha", "Numbers kept", "Runs on"];
  const row = (model) => [model.name, model.version, model.scorer, model.alpha, model.latent_dim, `${model.device}, ${model.runtime}`];
  $("served").replaceChildren(
    make("thead", {}, make("tr", {}, ...head.map((text) => make("th", { scope: "col", textContent: text })))),
    make("tbody", {}, ...models.map((model) => make("tr", {}, ...row(model).map((value) => make("td", { textContent: value }))))));
  $("memory").textContent = memory ? `This process takes ${count(memory / 2 ** 20)} MiB. ${chosenModel() || !ready.model ? "" : `${ready.model.name} answers where a request names no detector.`}` : "";
  const refused = ready.refused_versions.map(({ model, version, reason }) => make("li", { textContent: `${model}/${version}: ${reason}` }));
  $("refused").replaceChildren(...(refused.length ? [make("h3", { textContent: "Refused versions" }), make("ul", {}, ...refused)] : []));
}
