// The paper: a pen by pointer or keyboard, undo and redo, an opened picture below the strokes.
import { $, clamp } from "./dom.js";
import { greyPng } from "./png.js";
import { PEN_WIDTH, SIDE, drawStroke } from "./strokes.js";

const CELLS = 28;  // of the keyboard's pen, a side
const KEYS = "keys";  // the keyboard in place of a pointer
const PALM_PX = 60;  // contacts wider than this are no fingertips
const PALM_MS = 1500;  // after a pen was used, touches are the hand that holds it
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Paper {
  // `onChange` is called after each change of the ink, `onTouch` before the reader's first change, `say` announces.
  constructor({ onChange, onTouch, say }) {
    Object.assign(this, { onChange, onTouch, say });
    this.canvas = $("paper");
    this.view = this.canvas.getContext("2d");
    this.copy = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE });  // what is sent
    this.ink = this.copy.getContext("2d", { alpha: false, willReadFrequently: true });
    this.states = [{ strokes: [], picture: null }];
    this.at = 0;
    this.revision = 0;
    this.width = PEN_WIDTH;
    this.stroke = null;
    this.pointer = null;  // that draws the stroke: its id, or KEYS; null while an example is drawn
    this.cursor = null;  // cell of the keyboard's pen
    this.penSeen = -Infinity;
    this.listen();
    this.redraw();
  }

  get state() { return this.states[this.at]; }
  get strokes() { return this.stroke ? [...this.state.strokes, this.stroke] : this.state.strokes; }
  get isKeyed() { return this.pointer === KEYS; }
  get isEmpty() { return !this.strokes.length && !this.state.picture; }

  // The drawing as {body, type, file, id}; an opened file without strokes is sent as it is, in a form. Null while the paper is empty.
  async picture() {
    const { picture } = this.state, id = this.revision;
    if (this.isEmpty) return null;
    if (picture && !this.strokes.length) return { body: formOf(picture.file), file: picture.file, id };
    return { body: await greyPng(this.ink), type: "image/png", id };
  }

  set(state) {
    this.stroke = this.pointer = null;
    this.states = [...this.states.slice(Math.max(0, this.at - 99), this.at + 1), { picture: null, ...state }];
    this.at = this.states.length - 1;
    this.redraw();
    this.changed();
  }

  clear() {
    if (this.isEmpty) this.redraw();
    else this.set({ strokes: [] });
  }

  undo() { this.go(this.at - 1); }
  redo() { this.go(this.at + 1); }

  go(index) {
    if (index < 0 || index >= this.states.length) return;
    this.endStroke();
    this.at = index;
    this.redraw();
    this.changed();
  }

  changed() {
    this.revision += 1;
    $("undo").disabled = this.at === 0;
    $("redo").disabled = this.at === this.states.length - 1;
    this.onChange();
  }

  redraw() {
    const side = Math.round(this.canvas.clientWidth * Math.min(devicePixelRatio || 1, 3)) || SIDE;
    if (this.canvas.width !== side) this.canvas.width = this.canvas.height = side;
    for (const context of [this.view, this.ink]) {
      context.setTransform(context.canvas.width / SIDE, 0, 0, context.canvas.width / SIDE, 0, 0);
      context.fillStyle = "#fff";
      context.fillRect(0, 0, SIDE, SIDE);
      if (this.state.picture) drawFitted(context, this.state.picture.bitmap);
      for (const stroke of this.strokes) drawStroke(context, stroke);
    }
    this.drawCursor();
  }

  beginStroke(point, width = this.width) {
    this.stroke = { width, points: [] };
    this.extend([point]);
  }

  extend(points) {
    const kept = this.stroke.points, from = kept.length;
    for (const point of points) if (!kept.length || Math.hypot(point[0] - kept.at(-1)[0], point[1] - kept.at(-1)[1]) > 0.3) kept.push(point);
    if (kept.length === from) return;
    for (const context of [this.view, this.ink]) drawStroke(context, this.stroke, from);
    this.changed();
  }

  // Keep the stroke that is being drawn; the ink does not change.
  endStroke() {
    const { stroke } = this;
    this.stroke = this.pointer = null;
    if (!stroke) return;
    this.states = [...this.states.slice(Math.max(0, this.at - 99), this.at + 1), { ...this.state, strokes: [...this.state.strokes, stroke] }];
    this.at = this.states.length - 1;
    $("undo").disabled = false;
    $("redo").disabled = true;
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
      canvas.addEventListener(name, (event) => { if (event.pointerId === this.pointer) this.endStroke(); });
    }
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => { if (this.isKeyed) this.endStroke(); this.cursor = null; this.redraw(); });
    new ResizeObserver(() => this.redraw()).observe(canvas);
  }

  down(event) {
    if (event.pointerType === "pen") this.penSeen = event.timeStamp;
    if (![null, KEYS].includes(this.pointer) || event.button !== 0 || this.isPalm(event)) return;
    event.preventDefault();
    this.onTouch();
    this.endStroke();
    this.canvas.focus({ preventScroll: true });
    this.hideCursor();
    this.pointer = event.pointerId;
    this.canvas.setPointerCapture(event.pointerId);
    this.beginStroke(this.pointOf(event));
  }

  isPalm(event) {
    return event.pointerType === "touch" && (event.width > PALM_PX || event.timeStamp - this.penSeen < PALM_MS);
  }

  move(event) {
    if (event.pointerType === "pen") this.penSeen = event.timeStamp;
    if (event.pointerId !== this.pointer || !this.stroke) return;
    const events = event.getCoalescedEvents?.() ?? [];
    this.extend((events.length ? events : [event]).map((one) => this.pointOf(one)));
  }

  pointOf(event) {
    const box = this.canvas.getBoundingClientRect();
    const factor = event.pointerType === "pen" && event.pressure ? 0.5 + event.pressure : 1;
    return [(event.clientX - box.left) * SIDE / box.width, (event.clientY - box.top) * SIDE / box.height, factor];
  }

  // Arrow keys move a pen from cell to cell; space or enter puts it down and lifts it.
  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in STEPS) this.moveCursor(STEPS[event.key], event.shiftKey ? 4 : 1);
    else if (event.key === " " || event.key === "Enter") this.togglePen();
    else if (event.key === "Escape" && this.isKeyed) this.lift();
    else return;
    event.preventDefault();
  }

  moveCursor(step, times) {
    this.cursor ??= [CELLS / 2, CELLS / 2];
    this.cursor = this.cursor.map((cell, axis) => clamp(cell + times * step[axis], 0, CELLS - 1));
    if (this.isKeyed) this.extend([this.cell()]);
    this.redraw();
  }

  togglePen() {
    if (this.isKeyed) {
      this.lift();
      return;
    }
    this.onTouch();
    this.endStroke();
    this.cursor ??= [CELLS / 2, CELLS / 2];
    this.pointer = KEYS;
    this.beginStroke(this.cell());
    this.redraw();
    this.say(`Pen down at column ${this.cursor[0] + 1}, row ${this.cursor[1] + 1} of ${CELLS}.`);
  }

  lift() {
    this.endStroke();
    this.redraw();
    this.say("Pen up.");
  }

  cell() { return this.cursor.map((value) => (value + 0.5) * SIDE / CELLS); }

  hideCursor() {
    if (!this.cursor) return;
    this.cursor = null;
    this.redraw();
  }

  drawCursor() {
    if (!this.cursor) return;
    const [x, y] = this.cell();
    for (const [colour, width] of [["#fff", 6], ["#b84300", 3]]) {
      this.view.strokeStyle = colour;
      this.view.lineWidth = width;
      this.view.beginPath();
      this.view.arc(x, y, this.isKeyed ? 6 : 10, 0, 2 * Math.PI);
      this.view.stroke();
    }
  }
}

function formOf(file) {
  const form = new FormData();
  form.append("file", file, file.name || "pasted");
  return form;
}

function drawFitted(context, bitmap) {
  if (!bitmap) return;
  const scale = Math.min(SIDE / bitmap.width, SIDE / bitmap.height);
  const width = bitmap.width * scale, height = bitmap.height * scale;
  context.imageSmoothingEnabled = scale < 1;
  context.drawImage(bitmap, (SIDE - width) / 2, (SIDE - height) / 2, width, height);
}
