// Many files: a row for each, scored in small forms, sorted, filtered, judged together on request, and downloaded.
import { Failure, address, askPersistently, events } from "./api.js";
import { $, make } from "./dom.js";
import { rate } from "./histogram.js";
import { count, decidingWarning, number, warningSentence } from "./words.js";

const MOST = 2000;
const FORM_FILES = 16, FORM_BYTES = 4e6;  // of one request
const SENDERS = 2;
const PAGE_ROWS = 100;
const DRAW_MS = 250;
const COLUMNS = { name: "Name", score: "Score", p: "p-value", verdict: "Verdict", notes: "Remarks" };

let entries = [], queue = [], senders = 0, generation = 0;
let order = { column: null, descending: false }, shown = PAGE_ROWS, drawTimer = 0, openFile = () => {};

export function start(view, actions) {
  ({ openFile } = actions);
  view.append(
    make("h2", { textContent: "Many files" }),
    make("p", { className: "prose" }, `Drop, paste or choose up to ${count(MOST)} images. Each is prepared as MNIST's makers did and scored by the server; nothing is kept there.`),
    make("div", { className: "tools" },
      make("input", { id: "many", className: "unseen", type: "file", multiple: true, accept: "image/*", "aria-label": "Choose files" }),
      make("label", { className: "button", htmlFor: "many" }, "Choose files"),
      make("button", { type: "button", id: "files-csv", textContent: "Download CSV", disabled: true }),
      make("button", { type: "button", id: "files-json", textContent: "Download JSON", disabled: true }),
      make("button", { type: "button", id: "files-clear", textContent: "Remove all", disabled: true })),
    make("div", { className: "row" },
      make("label", {}, "Show ", select("files-filter", { all: "all", flagged: "flagged", normal: "digits", unknown: "without verdict", warned: "with remarks", failed: "not readable" })),
      make("label", {}, "Name has ", make("input", { id: "files-search", type: "search" })),
      make("label", {}, make("input", { id: "files-fdr", type: "checkbox" }), " Judge them together: of those flagged, at most ",
        select("files-rate", { 0.01: "1 %", 0.05: "5 %", 0.1: "10 %", 0.2: "20 %" }, "0.05"), " are false")),
    make("progress", { id: "files-progress", max: 1, value: 0, "aria-label": "Files scored" }),
    make("p", { id: "files-summary", className: "soft" }, "No files yet."),
    make("div", { className: "results" }, make("table", {}, make("thead"), make("tbody", { id: "files-rows" }))),
    make("button", { type: "button", id: "files-more", hidden: true }),
  );
  drawHead(view.querySelector("thead"));
  $("many").addEventListener("change", (event) => { add([...event.target.files]); event.target.value = ""; });
  for (const id of ["files-filter", "files-search", "files-fdr", "files-rate"]) $(id).addEventListener("input", () => { shown = PAGE_ROWS; draw(); });
  $("files-more").addEventListener("click", () => { shown += PAGE_ROWS; draw(); });
  $("files-clear").addEventListener("click", clear);
  $("files-csv").addEventListener("click", () => download("oddigit.csv", "text/csv", csv()));
  $("files-json").addEventListener("click", () => download("oddigit.json", "application/json", JSON.stringify(records(), null, 1)));
  events.addEventListener("model", () => restart());
  return { add, enter: draw };
}

const select = (id, options, chosen) => make("select", { id }, ...Object.entries(options).sort(([a], [b]) => a - b).map(([value, text]) => new Option(text, value, false, value === chosen)));

function drawHead(head) {
  const cells = Object.entries(COLUMNS).map(([column, title]) => {
    const button = make("button", { type: "button", textContent: title });
    button.addEventListener("click", () => sortBy(column));
    return make("th", { scope: "col", "data-column": column }, button);
  });
  head.append(make("tr", {}, make("td", {}), ...cells));
}

function sortBy(column) {
  order = { column, descending: order.column === column && !order.descending };
  for (const cell of document.querySelectorAll("th[data-column]")) {
    if (cell.dataset.column === column) cell.setAttribute("aria-sort", order.descending ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
  }
  draw();
}

export function add(files) {
  const room = MOST - entries.length, taken = files.slice(0, room).map((file) => ({ file, name: file.name || "pasted" }));
  entries = entries.concat(taken);
  queue = queue.concat(taken);
  $("files-summary").dataset.left = files.length > room ? `${count(files.length - room)} files over ${count(MOST)} were left out. ` : "";
  run();
  draw();
}

function clear() {
  generation += 1;
  entries = [];
  queue = [];
  shown = PAGE_ROWS;
  $("files-summary").dataset.left = "";
  draw();
}

// Score everything again, for instance by another detector.
function restart() {
  generation += 1;
  entries = entries.map(({ file, name }) => ({ file, name }));
  queue = [...entries];
  run();
  draw();
}

function run() {
  while (senders < SENDERS && queue.length) {
    senders += 1;
    sendAll(generation).finally(() => {
      senders -= 1;
      run();
    });
  }
}

async function sendAll(mine) {
  while (queue.length && mine === generation) {
    const batch = [];
    for (let bytes = 0; queue.length && batch.length < FORM_FILES && (!batch.length || bytes + queue[0].file.size <= FORM_BYTES);) {
      bytes += queue[0].file.size;
      batch.push(queue.shift());
    }
    await score(batch);
    drawSoon();
  }
}

async function score(batch) {
  const form = new FormData();
  for (const { file, name } of batch) form.append("file", file, name);
  try {
    const { results } = await askPersistently(address("inspect", { watch: "0" }), { method: "POST", body: form });
    for (const [index, entry] of batch.entries()) {
      const isLimited = batch.length > 1 && results[index].error?.type?.endsWith("decoding-limit");
      if (isLimited) await score([entry]);  // the files of a form share the time for decoding
      else take(entry, results[index]);
    }
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    if (batch.length === 1) batch[0].error = failure.message;
    else for (const entry of batch) await score([entry]);  // nothing in the form could be read: each has its own sentence
  }
}

function take(entry, result) {
  if (result.error) entry.error = result.error.detail;
  else Object.assign(entry, { score: result.score, p: result.p_value, error_of: result.reconstruction_error, warnings: result.warnings, input: result.input });
}

// ------------------------------------------------------------------------------------------------------------ judging

// The p-value at or below which an image is flagged: the chosen alpha, or Benjamini and Hochberg's limit over all files.
function limit() {
  if (!$("files-fdr").checked) return rate()?.alpha ?? 0.01;
  const fdr = Number($("files-rate").value), sorted = entries.filter(isScored).map(({ p }) => p).sort((a, b) => a - b);
  const kept = sorted.findLastIndex((p, index) => p <= fdr * (index + 1) / sorted.length);
  return fdr * (kept < 0 ? 1 : kept + 1) / (sorted.length || 1);
}

const isScored = (entry) => entry.p !== undefined;

function verdict(entry, most) {
  if (entry.error !== undefined) return "failed";
  if (!isScored(entry)) return "waiting";
  if (entry.p <= most) return "flagged";
  return !$("files-fdr").checked && entry.score > rate()?.threshold ? "unknown" : "normal";  // too few calibrated images of its kind
}

function chosenRows(most) {
  const filter = $("files-filter").value, search = $("files-search").value.toLowerCase();
  const rows = entries.filter((entry) => entry.name.toLowerCase().includes(search)
    && (filter === "all" || (filter === "warned" ? entry.warnings?.length : verdict(entry, most) === filter)));
  if (!order.column) return rows;
  const sign = order.descending ? -1 : 1, value = (entry) => sortValue(entry, most);
  return rows.sort((a, b) => sign * (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0));
}

function sortValue(entry, most) {
  if (order.column === "name") return entry.name;
  if (order.column === "verdict") return verdict(entry, most);
  if (order.column === "notes") return entry.error ?? entry.warnings?.join() ?? "";
  return entry[order.column] ?? Infinity;
}

// ------------------------------------------------------------------------------------------------------------ drawing

function drawSoon() {
  drawTimer ||= setTimeout(draw, DRAW_MS);
}

function draw() {
  clearTimeout(drawTimer);
  drawTimer = 0;
  const most = limit(), rows = chosenRows(most);
  const done = entries.filter((entry) => verdict(entry, most) !== "waiting").length;
  const flagged = entries.filter((entry) => verdict(entry, most) === "flagged").length;
  const failed = entries.filter((entry) => entry.error !== undefined).length;
  $("files-rows").replaceChildren(...rows.slice(0, shown).map((entry) => row(entry, most)));
  $("files-progress").max = entries.length || 1;
  $("files-progress").value = done;
  $("files-summary").textContent = entries.length
    ? `${$("files-summary").dataset.left || ""}${count(done)} of ${count(entries.length)} done, ${count(flagged)} flagged at p ≤ ${Number(most.toPrecision(2))}, ${count(failed)} not readable.`
    : "No files yet.";
  if (done && done === entries.length && !$("view-files").hidden) $("announce").textContent = $("files-summary").textContent;
  for (const id of ["files-csv", "files-json"]) $(id).disabled = !done;
  $("files-clear").disabled = !entries.length;
  $("files-more").hidden = rows.length <= shown;
  $("files-more").textContent = `Show ${count(Math.min(PAGE_ROWS, rows.length - shown))} of ${count(rows.length - shown)} more`;
}

const WORDS = { failed: "not readable", waiting: "waiting", flagged: "not a digit", normal: "digit", unknown: "no verdict" };

function row(entry, most) {
  const state = verdict(entry, most), picture = make("td");
  if (entry.input) {
    const button = make("button", { type: "button", className: "thumbnail", title: "Open on the paper", "aria-label": `Open ${entry.name}` },
      make("img", { src: `data:image/png;base64,${entry.input}`, alt: "", width: 28, height: 28 }));
    button.addEventListener("click", () => { location.hash = "draw"; openFile(entry.file); });
    picture.append(button);
  }
  const notes = entry.error ?? (entry.warnings || []).map(warningSentence).join(" ");
  return make("tr", { "data-state": state }, picture, make("th", { scope: "row", textContent: entry.name }),
    make("td", { className: "number", textContent: isScored(entry) ? number(entry.score) : "" }),
    make("td", { className: "number", textContent: isScored(entry) ? Number(entry.p.toPrecision(2)).toString() : "" }),
    make("td", { className: "word", textContent: decidingWarning(entry.warnings || [])?.toLowerCase() ?? WORDS[state] }), make("td", { textContent: notes }));
}

// ---------------------------------------------------------------------------------------------------------- downloads

function records() {
  const most = limit();
  return chosenRows(most).map((entry) => ({
    name: entry.name, score: entry.score ?? null, p_value: entry.p ?? null, is_anomaly: { flagged: true, normal: false }[verdict(entry, most)] ?? null,
    reconstruction_error: entry.error_of ?? null, warnings: entry.warnings || [], error: entry.error ?? null,
  }));
}

// A cell that begins like a formula gets an apostrophe, so that spreadsheets show it as text.
function csv() {
  const cell = (value) => {
    const text = Array.isArray(value) ? value.join(" ") : String(value ?? "");
    return `"${(typeof value !== "number" && /^[-=+@\t\r]/.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`;
  };
  const rows = records();
  return [Object.keys(rows[0] || {}).map(cell).join(","), ...rows.map((record) => Object.values(record).map(cell).join(","))].join("\r\n");
}

function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
