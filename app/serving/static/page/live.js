// Sends the newest picture: one request in flight, the latest wins, the same picture is not sent twice.
import { Failure, ask, address, events, pauseBefore } from "./api.js";

const INTERVAL_MS = 60;  // between the starts of two requests
const SLOW_MS = 3000;  // the reader is told that an answer takes longer than this

export class Live {
  // `take` resolves to the newest picture as {body, type, id} or null; `show` gets its answer, `fail` a Failure, `wait` whether
  // an answer is to come, `slow` is called when it takes long.
  constructor({ take, show, fail, wait, slow }) {
    Object.assign(this, { take, show, fail, wait, slow });
    this.turn = 0;  // answers to requests of earlier turns are dropped
    this.busy = false;
    this.dirty = false;
    this.lastId = null;
    this.lastStart = -Infinity;
    this.notBefore = -Infinity;  // a failed server is left alone until then
    this.failures = 0;
    this.timer = 0;
    for (const name of ["key", "model"]) events.addEventListener(name, () => this.again());
  }

  changed() {
    this.dirty = true;
    this.next();
  }

  // Ask once more about the same picture.
  again() {
    this.lastId = null;
    this.notBefore = -Infinity;
    this.changed();
  }

  // Forget the picture: an answer that is still under way is dropped.
  reset() {
    this.turn += 1;
    this.dirty = false;
    this.lastId = null;
  }

  next() {
    this.wait(this.busy || this.dirty);
    if (this.busy || !this.dirty) return;
    clearTimeout(this.timer);
    const pause = Math.max(this.lastStart + INTERVAL_MS, this.notBefore) - performance.now();
    if (pause > 0) this.timer = setTimeout(() => this.next(), pause);
    else this.send();
  }

  async send() {
    this.dirty = false;
    this.busy = true;
    const { turn } = this;
    try {
      const picture = await this.take();
      if (picture && picture.id !== this.lastId && turn === this.turn) await this.exchange(picture, turn);
    } catch (failure) {
      if (turn === this.turn) this.recover(failure instanceof Failure ? failure : new Failure("refused", `The page has an error: ${failure.message}.`));
    }
    this.busy = false;
    this.next();
  }

  async exchange(picture, turn) {
    this.lastId = picture.id;
    this.lastStart = performance.now();
    const slow = setTimeout(() => { if (turn === this.turn || this.dirty) this.slow(); }, SLOW_MS);
    try {
      const options = { method: "POST", body: picture.body, headers: picture.type ? { "Content-Type": picture.type } : {} };
      const answer = await ask(address("inspect", { watch: "0" }), options);
      this.failures = 0;
      if (turn === this.turn) this.show(answer, picture);
    } finally {
      clearTimeout(slow);
    }
  }

  recover(failure) {
    this.fail(failure);
    if (failure.retryAfter === null) return;
    this.lastId = null;
    this.notBefore = performance.now() + pauseBefore(this.failures++, failure);
    this.dirty = true;
  }
}
