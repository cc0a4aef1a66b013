// What the network draws at the places of a grid over the plane: asked for once, then interpolated without a request.
import { address, askPersistently, chosenModel, modelCard } from "./api.js";
import { bitmapOf, cssColour, store, stored } from "./dom.js";

const GRID = 14;  // cells a side
const SIZE = 28;

export class DecodedGrid {
  // `pixels`: grey levels of the GRID x GRID images in one large image, rows from the top.
  constructor(pixels) { this.pixels = pixels; }

  static async load(plane) {
    const name = chosenModel(), card = await modelCard(), version = `${card.version}-${card.created}`;
    let [cached, images] = JSON.parse(stored("localStorage", `grid-${card.name}`) || "[]");
    if (cached !== version) {
      images = await decode(gridPlaces().map((place) => plane.embeddingAt(place)));
      store("localStorage", `grid-${card.name}`, JSON.stringify([version, images]));
    }
    return name === chosenModel() ? new DecodedGrid(await pixelsOf(images)) : null;
  }

  // The image at a place, blended from its four neighbours of the grid.
  at([u, v]) {
    const x = Math.max(0, Math.min(GRID - 1, u * GRID - 0.5)), y = Math.max(0, Math.min(GRID - 1, (1 - v) * GRID - 0.5));
    const left = Math.min(Math.floor(x), GRID - 2), top = Math.min(Math.floor(y), GRID - 2), right = x - left, down = y - top;
    const side = GRID * SIZE, image = new ImageData(SIZE, SIZE);
    for (let row = 0; row < SIZE; row++) {
      for (let column = 0; column < SIZE; column++) {
        const at = (top * SIZE + row) * side + left * SIZE + column, below = at + SIZE * side;
        const grey = (1 - down) * ((1 - right) * this.pixels[at] + right * this.pixels[at + SIZE])
          + down * ((1 - right) * this.pixels[below] + right * this.pixels[below + SIZE]);
        image.data.set([grey, grey, grey, 255], 4 * (row * SIZE + column));
      }
    }
    return image;
  }

  // All images in the colour of the ink, transparent where they are black.
  background() {
    const colour = cssColour("--ink");
    if (this.painted?.colour !== colour) this.painted = { colour, canvas: this.paint(colour) };
    return this.painted.canvas;
  }

  paint(colour) {
    const side = GRID * SIZE, canvas = Object.assign(document.createElement("canvas"), { width: side, height: side });
    const context = canvas.getContext("2d"), image = context.createImageData(side, side);
    this.pixels.forEach((grey, index) => { image.data[4 * index + 3] = grey; });
    context.putImageData(image, 0, 0);
    context.globalCompositeOperation = "source-in";
    context.fillStyle = colour;
    context.fillRect(0, 0, side, side);
    return canvas;
  }
}

// PNGs in base64 of what the network draws for embeddings.
export async function decode(embedding, options = {}) {
  const request = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ embedding }) };
  return (await askPersistently(address("decode"), { ...request, ...options })).images;
}

function gridPlaces() {
  return Array.from({ length: GRID ** 2 }, (_, index) => [(index % GRID + 0.5) / GRID, 1 - (Math.floor(index / GRID) + 0.5) / GRID]);
}

async function pixelsOf(images) {
  const side = GRID * SIZE, canvas = Object.assign(document.createElement("canvas"), { width: side, height: side });
  const context = canvas.getContext("2d", { willReadFrequently: true }), bitmaps = await Promise.all(images.map(bitmapOf));
  bitmaps.forEach((bitmap, index) => context.drawImage(bitmap, index % GRID * SIZE, Math.floor(index / GRID) * SIZE));
  return context.getImageData(0, 0, side, side).data.filter((_, index) => index % 4 === 0);
}
