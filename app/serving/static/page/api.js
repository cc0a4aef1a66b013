// Requests to the server. Every failure becomes a `Failure` with a sentence for the reader.
import { $, store, stored, wait } from "./dom.js";

const LONGEST_PAUSE_S = 15;
let key = stored("sessionStorage", "key") || "";
let model = "";  // name of the chosen model, "" for the server's default
let trouble = null;
const isStatic = document.querySelector("meta[name=oddigit-static]") !== null;  // `oddigit page` wrote this page: there is no server

export const events = new EventTarget();  // "key": a key was entered; "model": another model
export const chosenModel = () => model;

export function chooseModel(name) {
  model = name;
  events.dispatchEvent(new Event("model"));
}

// The server serves another version now: everything about the detector is asked for again.
export function followReload() {
  cards.clear();
  events.dispatchEvent(new Event("model"));
}

export class Failure extends Error {
  // `kind`: offline, busy, key, proxy or refused; `retryAfter` in seconds, null where trying again does not help.
  constructor(kind, message, retryAfter = null) {
    super(message);
    this.kind = kind;
    this.retryAfter = retryAfter;
  }
}

// The page's requests are no traffic to learn from: watch=0 leaves them out of verdict metrics and drift.
export function address(path, options = {}) {
  const query = new URLSearchParams(options);
  if (model) query.set("model", model);
  const text = query.toString();
  return text ? `${path}?${text}` : path;
}

// The body of the response to a request, read as `as`: json, text or blob. Raises Failure; `quiet`: the reader is told nothing.
export async function ask(path, { quiet = false, as = "json", ...options } = {}) {
  try {
    const response = await send(path, options);
    if (as === "json" && /html/.test(response.headers.get("content-type"))) throw await failureOf(response);
    const body = await response[as]().catch(() => {
      throw new Failure("proxy", "The server's answer was cut off. The page tries again by itself.", 1);
    });
    if (trouble && !quiet) tell(null);
    return body;
  } catch (failure) {
    if (!quiet && failure.kind !== "refused") tell(failure);
    throw failure;
  }
}

async function send(path, { headers = {}, ...options }) {
  const sentKey = key;
  let response;
  try {
    if (isStatic) response = await (await import("./local.js")).respond(path, options);
    else response = await fetch(path, { ...options, headers: sentKey ? { ...headers, "X-API-Key": sentKey } : headers });
  } catch {
    for (const file of options.body instanceof FormData ? options.body.getAll("file") : []) {
      await file.slice(0, 1).arrayBuffer().catch(() => { throw new Failure("refused", `${file.name} cannot be read on this computer.`); });
    }
    throw new Failure("offline", "The server does not answer. The page tries again by itself.", 1);
  }
  if (response.ok) return response;
  const failure = await failureOf(response, sentKey);
  if (failure.kind === "key" && key !== sentKey) return send(path, { headers, ...options });  // another key was entered meanwhile
  throw failure;
}

async function failureOf(response, sentKey) {
  const isProblem = /json/.test(response.headers.get("content-type") || "");
  const problem = isProblem ? await response.json().catch(() => ({})) : {};
  const pause = Number(response.headers.get("retry-after")) || null;
  if (response.status === 401) return new Failure("key", sentKey ? "The server does not accept the key that was entered." : "This server answers only with a key.");
  if (!isProblem) {
    const isFinal = response.status >= 300 && response.status < 500 && ![408, 425, 429].includes(response.status), again = isFinal ? "" : " The page tries again by itself.";
    const sentence = `Something between this page and the server answered with an error page (status ${response.status}).${again}`;
    return new Failure("proxy", sentence, isFinal ? null : pause || 2);
  }
  if ([429, 503, 504].includes(response.status)) {
    return new Failure("busy", `The server is busy. The page tries again in ${pause || 1} s.`, pause || 1);
  }
  return new Failure("refused", problem.detail || problem.title || `The server refused this (status ${response.status}).`);
}

// `ask` until it succeeds, with growing pauses. A missing key is waited for; a refusal is final.
export async function askPersistently(path, { attempts = Infinity, ...options } = {}) {
  for (let attempt = 0; ; attempt++) {
    try {
      return await ask(path, options);
    } catch (failure) {
      if (attempt + 1 >= attempts) throw failure;
      if (failure.kind === "key") await new Promise((resolve) => { events.addEventListener("key", resolve, { once: true }); });
      else if (failure.retryAfter) await wait(pauseBefore(attempt, failure));
      else throw failure;
    }
  }
}

const cards = new Map();  // name of a detector -> promise of its card

// The card of the chosen detector.
export function modelCard() {
  const name = model;
  if (!cards.has(name)) {
    cards.set(name, askPersistently(address("model")));
    cards.get(name).catch(() => cards.delete(name));
  }
  return cards.get(name);
}

// Milliseconds before the next attempt: the server's own Retry-After, or 1, 2, 4 ... s.
export function pauseBefore(attempt, failure) {
  return 1000 * Math.min(LONGEST_PAUSE_S, Math.max(failure.retryAfter || 0, 2 ** Math.min(attempt, 4) * 0.5));
}

function tell(failure) {
  trouble = failure;
  $("trouble").hidden = !failure;
  document.body.classList.toggle("stale", Boolean(failure));
  $("trouble-text").textContent = failure ? failure.message : "";
  $("key-form").hidden = !failure || failure.kind !== "key";
}

export function startKeyForm() {
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    key = $("key").value.trim();
    $("trouble-text").textContent = "";  // the same sentence again is announced again
    store("sessionStorage", "key", key);
    $("key").value = "";
    events.dispatchEvent(new Event("key"));
  });
}
