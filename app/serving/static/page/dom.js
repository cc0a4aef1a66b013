// Helpers for building and finding elements.

export const $ = (id) => document.getElementById(id);

// An element with properties and children; `data-...` and `aria-...` names become attributes.
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role" || name === "scope") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

export function makeSvg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
export const wait = (milliseconds) => new Promise((resolve) => { setTimeout(resolve, milliseconds); });
export const reducedMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
export const cssColour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// The pixels of a PNG in base64 as a bitmap.
export async function bitmapOf(base64) {
  return createImageBitmap(new Blob([bytesOf(base64)], { type: "image/png" }));
}

export const bytesOf = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

// Values kept for this tab or this browser, where storage is allowed.
export function stored(storage, name) {
  try { return window[storage].getItem(`oddigit-${name}`); } catch { return null; }
}

export function store(storage, name, value) {
  try {
    if (value === null) window[storage].removeItem(`oddigit-${name}`);
    else window[storage].setItem(`oddigit-${name}`, value);
  } catch { /* storage is full or forbidden: the value lasts until the page is left */ }
}
