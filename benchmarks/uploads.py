"""Kinds of image file: `python benchmarks/uploads.py --data-dir ../shared/data` measures false alarms and power for each kind.

Every kind of benchmarks/upload_kinds.py is rendered from MNIST's test images, which no model was trained or calibrated on, and
from three sets of anomalies. A table lists for each kind the share of digits that the preparation mutilated, the share flagged,
and the share of anomalies caught. `--picture` draws an example of each kind with the prepared image beside it.
"""

import argparse
import io
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from app.detection.detector import Detector, stack_features
from app.detection.imaging.decode import decode_image
from app.detection.imaging.preprocess import PreprocessedImage
from app.detection.store import find, load
from app.training.synthetic.damage import MUTILATED, damage
from benchmarks.upload_kinds import KINDS, Pixels, Sample

ANOMALIES = ("fashion_mnist_test", "notmnist_test", "omniglot_background")


class KindFigures(NamedTuple):
    """Shares in [0, 1] of one kind of file."""

    mutilated: float  # of the digits
    flagged: float  # of the digits
    caught: float  # of the anomalies, mean over the sets


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data"), help="where MNIST/ and anomalies/ lie")
    parser.add_argument("--store", type=Path, default=Path("model_store"))
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--version", type=int, help="unset, the highest")
    parser.add_argument("--images", type=int, default=200, help="digits of a kind; a third as many of each anomaly set")
    parser.add_argument("--alpha", type=float, help="unset, the model's own")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--picture", type=Path, help="a PNG with examples of each kind")
    options = parser.parse_args()
    detector = Detector(load(find(options.store, options.model, options.version)), "cpu")
    sets = load_sets(options.data_dir, options.images)
    figures = {name: measure_kind(detector, name, sets, options.alpha) for name in KINDS}
    print_table(figures)
    if options.json:
        options.json.write_text(json.dumps({name: each._asdict() for name, each in figures.items()}, indent=1))
    if options.picture:
        draw_examples(sets["mnist"]).save(options.picture)


def load_sets(data_dir: Path, images: int) -> dict[str, Pixels]:
    """`images` random test images of MNIST, and a third as many of each anomaly set: uint8 [N, 28, 28] by name."""
    rng = np.random.default_rng(0)
    file = data_dir / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    digits = np.frombuffer(file.read_bytes(), np.uint8, offset=16).reshape(-1, 28, 28)
    sets = {"mnist": digits[rng.permutation(len(digits))[:images]]}
    for name in ANOMALIES:
        pixels = np.load(data_dir / "anomalies" / f"{name}.npz")["images"]
        sets[name] = pixels[rng.permutation(len(pixels))[: max(1, images // 3)]]
    return sets


def measure_kind(detector: Detector, name: str, sets: dict[str, Pixels], alpha: float | None = None) -> KindFigures:
    """Render, prepare and score the images of every set as files of this kind."""
    alpha = detector.bundle.card.alpha if alpha is None else alpha
    flagged, mutilated = {}, 0.0
    for label, images in sets.items():
        samples = render(name, images)
        prepared = [prepare(sample) for sample in samples]
        features = stack_features([each.features for each in prepared])
        detections = detector.detect(np.stack([each.image for each in prepared]), features)
        flagged[label] = float((detections.p_values <= alpha).mean())
        if label == "mnist":
            pairs = zip(prepared, samples, strict=True)
            mutilated = float(np.mean([damage(each.image, sample.ink) > MUTILATED for each, sample in pairs]))
    caught = [share for label, share in flagged.items() if label != "mnist"]
    return KindFigures(mutilated, flagged["mnist"], float(np.mean(caught)) if caught else float("nan"))


def render(name: str, images: Pixels) -> list[Sample]:
    """One file of a kind for each image; the kind's name and the image's position decide the random parameters."""
    kind = list(KINDS).index(name)
    return [KINDS[name](image, np.random.default_rng([kind, index])) for index, image in enumerate(images)]


def prepare(sample: Sample) -> PreprocessedImage:
    """Decode a file as the server does. A page of 28x28 pixels by chance is prepared, as the page is no 28x28 digit image."""
    by_chance = Image.open(io.BytesIO(sample.data)).size == (28, 28) and sample.ink.shape != (28, 28)
    return decode_image(sample.data, preprocess="digit" if by_chance else sample.preprocess)


def print_table(figures: dict[str, KindFigures]) -> None:
    """Print a Markdown table of all kinds, and a summary."""
    print("| kind of file | mutilated | digits flagged | anomalies caught |\n|---|---|---|---|")
    for name, each in figures.items():
        print(f"| {name} | {100 * each.mutilated:.1f} % | {100 * each.flagged:.1f} % | {100 * each.caught:.0f} % |")
    flagged = np.asarray([each.flagged for each in figures.values()])
    caught = np.mean([each.caught for each in figures.values()])
    mean, most = 100 * flagged.mean(), 100 * flagged.max()
    print(f"\n{len(figures)} kinds: {mean:.2f} % of digits flagged on average, at most {most:.1f} %,")
    print(f"at most 3 % in {100 * (flagged <= 0.03).mean():.0f} % of kinds; {100 * caught:.0f} % of anomalies caught.")


def draw_examples(images: Pixels, columns: int = 3) -> Image.Image:
    """A picture of all kinds: the file, and the prepared image beside it, of one digit each."""
    cells = []
    for index, name in enumerate(KINDS):
        sample = render(name, images[index % len(images)][None])[0]
        page = Image.open(io.BytesIO(sample.data)).convert("RGBA").resize((84, 84))
        backed = Image.alpha_composite(Image.new("RGBA", page.size, (120, 150, 120, 255)), page).convert("RGB")
        prepared = Image.fromarray(prepare(sample).image).resize((84, 84)).convert("RGB")
        cells.append(
            np.pad(np.hstack([np.asarray(backed), np.asarray(prepared)]), ((4, 4), (4, 4), (0, 0)), constant_values=255)
        )
    wide = columns * 3
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % wide)
    return Image.fromarray(np.vstack([np.hstack(cells[start : start + wide]) for start in range(0, len(cells), wide)]))


if __name__ == "__main__":
    main()
