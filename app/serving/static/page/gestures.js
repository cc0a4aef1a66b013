// Pointers on an element: one drags, two pinch, and a mouse that is not pressed hovers.

// `drag` gets the event that begins a drag and returns {move, end}, or null to ignore it. `pinch` gets the span of two pointers and
// returns a function that gets each later span. `hover` gets the moves of a pointer that is not down.
export function followPointers(element, { drag, pinch, hover }) {
  const pointers = new Map();  // that are down: id -> newest event
  let gesture = null;

  element.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || pointers.size === 2) return;
    element.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, event);
    gesture = pointers.size === 1 ? drag(event) : pinchOf(pinch(span(element, pointers)));
  });

  const pinchOf = (follow) => ({ move: () => follow(span(element, pointers)), end() {} });

  element.addEventListener("pointermove", (event) => {
    if (pointers.has(event.pointerId)) {
      pointers.set(event.pointerId, event);
      gesture?.move(event);
    } else hover(event);
  });

  // A finger that stays after a pinch does nothing until it is lifted.
  for (const name of ["pointerup", "pointercancel"]) {
    element.addEventListener(name, (event) => {
      if (!pointers.delete(event.pointerId)) return;
      if (name === "pointerup") gesture?.end();
      gesture = null;
    });
  }
}

// The distance of two pointers in CSS pixels, and their middle as shares of the element from its lower left corner.
function span(element, pointers) {
  const [a, b] = pointers.values(), box = element.getBoundingClientRect();
  return {
    distance: Math.max(1, Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY)),
    right: ((a.clientX + b.clientX) / 2 - box.left) / box.width,
    up: 1 - ((a.clientY + b.clientY) / 2 - box.top) / box.height,
  };
}
