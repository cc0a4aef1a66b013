"""The detector against what would be picked instead: `python benchmarks/detection.py --data-dir ../shared/data [SETS ...]`.

Normal images are the detector's own test images, MNIST's. SETS are sets of images that are no digits: folders, .npy, .npz or
torchvision's names; by default all of DATA_DIR/anomalies. Two groups are added: anomalies made of the test images, and
DATA_DIR/digits, digits of other sources, of which few should be flagged. Contenders: a published detector (the shipped one, or
--store and --model), the mean squared error of its network, and PyOD's AutoEncoder, KNN, PCA, IForest and ECOD with their
defaults (except PCA, see rivals/pyod_scores.py) in an environment of their own under build/rivals, made on first use. All are
fitted on the same images, except ECOD, which would take longest, on some of them (--train-images; the table shows the number).
All get a conformal threshold from the same held-back images. About twelve minutes on two idle cores.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from serve import RIVALS, ROOT, environment

sys.path.insert(0, str(ROOT))

from app.detection.conformal import Calibration
from app.detection.detector import Detector
from app.detection.store import StoreError, find, load
from app.training.calibration import detect_all
from app.training.datasets import DataError, LabelledImages, Pixels
from app.training.evaluate import NamedImages, named_images
from app.training.publishing import own_splits
from app.training.reporting.metrics import ranking
from app.training.splits import Splits

PYOD = "pyod==3.6.7"
PYOD_DETECTORS = ("AutoEncoder", "KNN", "PCA", "IForest", "ECOD")
Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Sets:
    """The image sets that every contender scores."""

    foreign: list[NamedImages]
    made: list[NamedImages]
    elsewhere: list[NamedImages]  # normal

    @property
    def all(self) -> list[NamedImages]:
        return [*self.foreign, *self.made, *self.elsewhere]


@dataclass(frozen=True)
class ContenderScores:
    """The scores of one contender."""

    contender: str
    learnt_from: int  # images
    seconds: float  # to learn, where it had to, and to judge
    calibration: Scores
    normal: Scores
    sets: list[Scores]  # as Sets.all

    def flagged(self, scores: Scores, alpha: float) -> float:
        """Share above the conformal threshold."""
        return float((scores > Calibration.from_scores(self.calibration).threshold(alpha)).mean())

    def auroc(self, scores: Scores) -> float:
        return ranking(self.normal, scores).auroc


def main() -> None:
    """Measure and print."""
    options = parsed()
    try:
        detector = Detector(load(find(options.store, options.model)))
        splits = own_splits(detector.bundle.card.data, options.data_dir)
        sets = gathered(options, splits.test.images)
    except (StoreError, DataError) as error:
        sys.exit(str(error))
    contenders = our_scores(detector, splits, sets)
    for found in rival_scores(splits, sets, options.train_images, options.rivals):
        contenders.append(found)
        print(f"{found.contender}: {found.seconds:.0f} s", file=sys.stderr)
    results = {each.contender: figures(each, sets, options.alpha) for each in contenders}
    sizes = {each.name: len(each.labelled) for each in sets.all}
    normal = f"{detector.bundle.card.data['name']} test ({len(splits.test):,})"
    parts = false_alarms_by_part(contenders[0], splits.test, options.alpha)
    print(tables(results, sizes, normal, options.alpha))
    print("", _table(["Oddigit's false alarms on", *parts], [["", *(f"{rate:.1%}" for rate in parts.values())]]), sep="\n")
    if options.json:
        content = {"alpha": options.alpha, "images": sizes, "contenders": results, "false_alarms_by_part": parts}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SETS", help="anomalies; default: all .npz in DATA_DIR/anomalies")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where the data sets lie")
    parser.add_argument("--store", type=Path, default=ROOT / "model_store")
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--alpha", type=float, default=0.01, help="the false-alarm rate of all thresholds")
    parser.add_argument("--train-images", type=int, default=20_000, help="that ECOD learns from, at most")
    parser.add_argument("--made", type=int, default=1_000, help="images of each made set, at most")
    parser.add_argument("--rivals", nargs="*", choices=PYOD_DETECTORS, default=list(PYOD_DETECTORS))
    parser.add_argument("--json", type=Path, help="a file for all figures")
    return parser.parse_args()


# ----------------------------------------------------------------------------------------------------------------- images


def gathered(options: argparse.Namespace, test: Pixels) -> Sets:
    """All images to judge. Raises DataError."""
    sources = options.sets or [str(path) for path in sorted((options.data_dir / "anomalies").glob("*.npz"))]
    elsewhere = [str(path) for path in sorted((options.data_dir / "digits").glob("*.npz"))]
    g = np.random.default_rng(0)
    chosen = test[g.permutation(len(test))[: options.made]]
    return Sets(
        foreign=[named_images(source, options.data_dir) for source in sources],
        made=[
            NamedImages(name, LabelledImages(np.ascontiguousarray(make(chosen, g), np.uint8))) for name, make in MADE.items()
        ],
        elsewhere=[named_images(source, options.data_dir) for source in elsewhere],
    )


def overlaid(images: Pixels, g: np.random.Generator) -> Pixels:
    """Each with another one."""
    return np.maximum(images, np.roll(images, 1, axis=0))


def shuffled(images: Pixels, g: np.random.Generator) -> Pixels:
    """4x4 blocks of 7x7 pixels, in another order for each image."""
    blocks = images.reshape(-1, 4, 7, 4, 7).swapaxes(2, 3).reshape(-1, 16, 7, 7)
    order = g.random((len(images), 16)).argsort(1)
    moved = np.take_along_axis(blocks, order[:, :, None, None], 1)
    return moved.reshape(-1, 4, 4, 7, 7).swapaxes(2, 3).reshape(-1, 28, 28)


def holed(images: Pixels, g: np.random.Generator) -> Pixels:
    """8x8 pixels blank, within the middle 16x16, where every digit has ink."""
    out = images.copy()
    for image, (top, left) in zip(out, g.integers(6, 15, (len(images), 2)), strict=True):
        image[top : top + 8, left : left + 8] = 0
    return out


def peppered(images: Pixels, g: np.random.Generator) -> Pixels:
    """A tenth of the pixels black or white."""
    drawn = g.random(images.shape)
    return np.where(drawn < 0.05, 0, np.where(drawn > 0.95, 255, images))


def shrunk(images: Pixels, g: np.random.Generator) -> Pixels:
    """To half the size, in the middle."""
    return np.pad(images.reshape(-1, 14, 2, 14, 2).mean((2, 4)).round(), ((0, 0), (7, 7), (7, 7)))


def shifted(images: Pixels, g: np.random.Generator) -> Pixels:
    """By 6 pixels up, down, left or right; what leaves the frame is gone."""
    wide = np.pad(images, ((0, 0), (6, 6), (6, 6)))
    corners = np.array([(0, 6), (12, 6), (6, 0), (6, 12)])[g.integers(0, 4, len(images))]
    return np.stack([image[top : top + 28, left : left + 28] for image, (top, left) in zip(wide, corners, strict=True)])


def greys(images: Pixels, g: np.random.Generator) -> Pixels:
    """Every constant image between blank and white."""
    return np.broadcast_to(np.arange(1, 255)[:, None, None], (254, 28, 28))


MADE: dict[str, Callable[[Pixels, np.random.Generator], NDArray[Any]]] = {
    "rotated by 90 degrees": lambda images, g: np.rot90(images, axes=(1, 2)),
    "flipped": lambda images, g: images[:, :, ::-1],
    "two digits overlaid": overlaid,
    "4x4 blocks shuffled": shuffled,
    "8x8 hole": holed,
    "salt and pepper": peppered,
    "shrunk to half": shrunk,
    "shifted by 6 pixels": shifted,
    "noise": lambda images, g: g.integers(0, 256, images.shape),
    "inverted": lambda images, g: 255 - images,
    "blank": lambda images, g: np.zeros((1, 28, 28)),
    "constant grey": greys,
    "white": lambda images, g: np.full((1, 28, 28), 255),
}


# ----------------------------------------------------------------------------------------------------------------- scores


def our_scores(detector: Detector, splits: Splits, sets: Sets) -> list[ContenderScores]:
    """The detector's own scores, and the plain error of the same network."""
    began = time.perf_counter()
    piles = [splits.calibration, splits.test, *(each.labelled for each in sets.all)]
    found = [detect_all(detector, pile) for pile in piles]
    seconds = time.perf_counter() - began
    columns = {"Oddigit": [each.scores for each in found], "plain error": [each.reconstruction_errors for each in found]}
    return [
        ContenderScores(name, len(splits.fit), seconds, calibration, normal, rest)
        for name, (calibration, normal, *rest) in columns.items()
    ]


def rival_scores(splits: Splits, sets: Sets, train_images: int, wanted: Sequence[str]) -> Iterator[ContenderScores]:
    """One after the other; a rival that fails is told of and left out."""
    if not wanted:
        return
    try:
        python = environment(PYOD)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "tqdm"], check=True)  # AutoEncoder's; PyOD asks for none
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"{PYOD} cannot be installed and is left out: {error}")
        return
    piles = [splits.calibration.images, splits.test.images, *(each.images for each in sets.all)]
    borders = np.cumsum([len(pile) for pile in piles])[:-1]
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "images.npy"
        np.save(asked, np.concatenate(piles))
        for name in wanted:
            fit = splits.fit.images[: train_images if name == "ECOD" else None]  # it sorts all of them at every call
            began = time.perf_counter()
            scores = one_rival(python, name, fit, asked)
            if scores is not None:
                calibration, normal, *rest = np.split(scores, borders)
                yield ContenderScores(f"PyOD {name}", len(fit), time.perf_counter() - began, calibration, normal, rest)


def one_rival(python: Path, name: str, fit: Pixels, asked: Path) -> Scores | None:
    """Scores of the images in the file `asked`, by a process of the rival's environment; None where it fails."""
    learnt, out = asked.with_name("fit.npy"), asked.with_name("scores.npy")
    np.save(learnt, fit)
    command = [python, RIVALS / "pyod_scores.py", name, learnt, asked, out]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"PyOD {name} failed and is left out: {(done.stderr.strip() or 'killed').splitlines()[-1]}")
        return None
    scores: Scores = np.load(out).astype(np.float32)
    if not np.isfinite(scores).all():
        print(f"PyOD {name} is left out: {(~np.isfinite(scores)).sum()} of its scores are not finite")
        return None
    return scores


# ----------------------------------------------------------------------------------------------------------------- tables


def figures(found: ContenderScores, sets: Sets, alpha: float) -> dict[str, Any]:
    """All figures of one contender, group by group and set by set."""
    names = [each.name for each in sets.all]
    auroc = dict(zip(names, map(found.auroc, found.sets), strict=True))
    flagged = {name: found.flagged(scores, alpha) for name, scores in zip(names, found.sets, strict=True)}
    groups = {"foreign": sets.foreign, "made": sets.made}
    return {
        "learnt_from": found.learnt_from,
        "seconds": found.seconds,
        "false_alarms": found.flagged(found.normal, alpha),
        "elsewhere": {each.name: flagged[each.name] for each in sets.elsewhere},
        "auroc": {group: {each.name: auroc[each.name] for each in among} for group, among in groups.items()},
        "caught": {group: {each.name: flagged[each.name] for each in among} for group, among in groups.items()},
    }


def false_alarms_by_part(found: ContenderScores, test: LabelledImages, alpha: float) -> dict[str, float]:
    """Share flagged of each half of the test file, in its order, and of each class where classes are known.

    The halves of MNIST's test file were written by two groups of people: census staff and students.
    """
    half = len(test) // 2
    parts = {"first half": found.normal[:half], "second half": found.normal[half:]}
    if test.labels is not None:
        parts |= {str(label): found.normal[test.labels == label] for label in np.unique(test.labels)}
    return {name: found.flagged(scores, alpha) for name, scores in parts.items()}


def tables(found: dict[str, dict[str, Any]], sizes: dict[str, int], normal: str, alpha: float) -> str:
    """Markdown: the ranking, then the shares above the threshold."""
    learnt = ["learnt from", *(f"{each['learnt_from']:,}" for each in found.values())]
    false = [normal, *(f"{each['false_alarms']:.1%}" for each in found.values())]
    seconds = ["seconds (the first two: without learning)", *(f"{each['seconds']:.0f}" for each in found.values())]
    elsewhere = _rows([each["elsewhere"] for each in found.values()], sizes, ".1%")

    def by_group(what: str, style: str) -> list[list[str]]:
        groups = [[each[what][group] for each in found.values()] for group in ("foreign", "made")]
        return [row for columns in groups for row in _with_mean(columns, sizes, style)]

    return "\n\n".join(
        (
            _table(["AUROC", *found], [*by_group("auroc", ".3f"), learnt, seconds]),
            _table([f"caught at {alpha:.1%} false alarms", *found], by_group("caught", ".1%")),
            _table(["normal images flagged, lower is better", *found], [false, *elsewhere]),
        )
    )


def _with_mean(columns: list[dict[str, float]], sizes: dict[str, int], style: str) -> list[list[str]]:
    means = [np.mean(list(column.values())) if column else float("nan") for column in columns]
    return [*_rows(columns, sizes, style), [f"**mean of these {len(columns[0])}**", *(f"**{mean:{style}}**" for mean in means)]]


def _rows(columns: list[dict[str, float]], sizes: dict[str, int], style: str) -> list[list[str]]:
    return [[f"{name} ({sizes[name]:,})", *(f"{column[name]:{style}}" for column in columns)] for name in columns[0]]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
