// The latent plane: test embeddings on axes that are stretched by rank, so that every class takes its share of the area.

const dot = (a, b) => a.reduce((sum, value, index) => sum + value * b[index], 0);

export class Plane {
  // `embedding` [N][D] and `labels` [N] of /latent. Places are [u, v] in [0, 1], v upwards.
  constructor({ embedding, labels }) {
    Object.assign(this, projection(embedding));
    this.labels = labels;
    const flat = embedding.map((point) => this.flatten(point));
    this.sorted = [0, 1].map((axis) => flat.map((point) => point[axis]).sort((a, b) => a - b));
    this.places = flat.map((point) => point.map((value, axis) => rankOf(this.sorted[axis], value)));
  }

  // Coordinates of an embedding along the two axes of the map.
  flatten(embedding) {
    const centred = embedding.map((value, index) => value - this.centre[index]);
    return this.axes.map((axis) => dot(axis, centred));
  }

  placeOf(embedding) {
    return this.flatten(embedding).map((value, axis) => rankOf(this.sorted[axis], value));
  }

  embeddingAt(place) {
    const [x, y] = place.map((share, axis) => quantile(this.sorted[axis], share));
    return this.centre.map((value, index) => value + x * this.axes[0][index] + y * this.axes[1][index]);
  }

  // The number of the test image nearest to a place.
  nearest([u, v]) {
    let best = 0, least = Infinity;
    this.places.forEach(([x, y], index) => {
      const distance = (x - u) ** 2 + (y - v) ** 2;
      if (distance < least) [best, least] = [index, distance];
    });
    return best;
  }

  // Class -> its median place.
  medians() {
    const classes = [...new Set(this.labels)].filter((label) => label !== 255).sort((a, b) => a - b);
    return classes.map((label) => {
      const members = this.places.filter((_, index) => this.labels[index] === label);
      return { label, place: [0, 1].map((axis) => median(members.map((place) => place[axis]))) };
    });
  }
}

const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];

function rankOf(sorted, value) {
  let low = 0, high = sorted.length - 1;
  if (value <= sorted[low]) return 0;
  if (value >= sorted[high]) return 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= value) low = middle;
    else high = middle;
  }
  return (low + (value - sorted[low]) / (sorted[high] - sorted[low] || 1)) / (sorted.length - 1);
}

function quantile(sorted, share) {
  const at = Math.max(0, Math.min(1, share)) * (sorted.length - 1), low = Math.floor(at);
  return sorted[low] + (at - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
}

// Two dimensions are taken as they are; of more, the first two principal axes around the mean, by power iteration.
function projection(embedding) {
  const size = embedding[0].length, zeros = () => Array(size).fill(0);
  if (size === 2) return { centre: [0, 0], axes: [[1, 0], [0, 1]] };
  const centre = zeros().map((_, index) => embedding.reduce((sum, point) => sum + point[index], 0) / embedding.length);
  const covariance = zeros().map(zeros);
  for (const point of embedding) {
    const centred = point.map((value, index) => value - centre[index]);
    centred.forEach((a, i) => centred.forEach((b, j) => { covariance[i][j] += a * b / embedding.length; }));
  }
  const axes = [];
  while (axes.length < 2) {
    let axis = zeros().map((_, index) => 1 + index % 3);
    for (let step = 0; step < 200; step++) {
      axis = covariance.map((row) => dot(row, axis));
      for (const other of axes) {
        const along = dot(axis, other);
        axis = axis.map((value, index) => value - along * other[index]);
      }
      const length = Math.hypot(...axis) || 1;
      axis = axis.map((value) => value / length);
    }
    axes.push(axis);
  }
  return { centre, axes };
}
