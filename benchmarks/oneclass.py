"""Learn one digit, find the other nine, for all ten: `python benchmarks/oneclass.py --data-dir ../shared/data`.

The protocol of Ruff et al., Deep One-Class Classification (ICML 2018): a detector learns from the training images of one digit
alone, and the AUROC is taken over all 10,000 test images, the other nine digits being the anomalies. The network and its
settings are the tutorial's, trained by our own loop; nothing is tuned to a digit. Their figures beside ours are from table 1
of that paper, means over ten seeds; there the DCAE and Deep SVDD are convolutional networks with 32 latent dimensions, here
it is fully connected layers with two. All runs on one CPU thread; ten digits take about ten minutes.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from app.network.autoencoder import Autoencoder
from app.network.detector_network import Scorer
from app.network.mse_scorer import MseScorer
from app.training.calibration import flatten
from app.training.config import TrainConfig
from app.training.datasets import DataError, DataSet, load_dataset
from app.training.progress import SILENT
from app.training.reporting.metrics import ranking
from app.training.scorer_fitting import fit_scorer
from app.training.train import Training, run_epoch

CPU = torch.device("cpu")
DEEP_SVDD = (98.0, 99.7, 91.7, 91.9, 94.9, 88.5, 98.3, 94.6, 93.9, 96.5)  # "one-class Deep SVDD", digits 0 to 9
PUBLISHED_MEANS = {"DCAE": 89.7, "Deep SVDD": 94.8}


class Aurocs(NamedTuple):
    """Of one digit's detector, in percent."""

    plain: float  # the mean squared error of the same network
    oddigit: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where MNIST lies or is downloaded to")
    parser.add_argument("--digits", type=int, nargs="+", choices=range(10), default=range(10), metavar="DIGIT")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="several: their mean counts")
    parser.add_argument("--json", type=Path, help="a file for the figures of each digit and seed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        mnist = load_dataset("mnist", data_dir=options.data_dir)
    except DataError as error:
        sys.exit(str(error))
    began = time.perf_counter()
    runs = [{digit: evaluate_digit(mnist, digit, options.epochs, seed) for digit in options.digits} for seed in options.seed]
    taken = time.perf_counter() - began
    if options.json:
        by_seed = zip(options.seed, runs, strict=True)
        figures = {seed: {digit: found._asdict() for digit, found in run.items()} for seed, run in by_seed}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(table({digit: mean_of(run[digit] for run in runs) for digit in options.digits}))
    print(
        f"\nAUROC in percent; {options.epochs} epochs, seeds {options.seed}, {taken:.0f} s. Right: Ruff et al. 2018, table 1."
    )


def evaluate_digit(mnist: DataSet, digit: int, epochs: int, seed: int) -> Aurocs:
    """Train on the training images of `digit`, and rank all test images."""
    began = time.perf_counter()
    config = TrainConfig(epochs=epochs, seed=seed)
    fit = flatten(mnist.train.images[labels(mnist.train.labels) == digit], CPU)  # [about 6,000, pixels]
    test = flatten(mnist.test_or_all.images, CPU)
    model = trained(config, fit)
    is_normal = labels(mnist.test_or_all.labels) == digit
    both = (MseScorer(), fit_scorer("residual", model, fit, seed=seed))
    found = Aurocs(*(auroc(scores(model, scorer, test), is_normal) for scorer in both))
    seconds = time.perf_counter() - began
    print(f"digit {digit}: {found.plain:.1f} plain, {found.oddigit:.1f} Oddigit, {seconds:.0f} s", file=sys.stderr)
    return found


def labels(known: np.ndarray | None) -> np.ndarray:
    """MNIST's classes, which are always there."""
    assert known is not None
    return known


def trained(config: TrainConfig, images: Tensor) -> Autoencoder:
    """The tutorial's network after `config.epochs` over images [N, pixels]."""
    training = Training(config, CPU)
    while training.epoch < config.epochs:
        run_epoch(training, config, images, SILENT)
    return training.model.eval()


def scores(model: Autoencoder, scorer: Scorer, images: Tensor) -> np.ndarray:
    """Images [N, pixels] -> scores [N]."""
    with torch.inference_mode():
        return scorer(model.run(images)).numpy()


def auroc(scores: np.ndarray, is_normal: np.ndarray) -> float:
    """In percent."""
    return 100 * ranking(scores[is_normal], scores[~is_normal]).auroc


def mean_of(found: Iterable[Aurocs]) -> Aurocs:
    """Over seeds or digits."""
    return Aurocs(*np.mean(list(found), 0))


def table(rows: Mapping[int, Aurocs]) -> str:
    """Markdown; means over all ten digits stand beside the published ones."""
    lines = ["| digit | plain error | Oddigit | Deep SVDD | DCAE |", "|---|---:|---:|---:|---:|"]
    lines += [f"| {digit} | {row.plain:.1f} | {row.oddigit:.1f} | {DEEP_SVDD[digit]} | |" for digit, row in rows.items()]
    whole = mean_of(rows.values())
    published = (f"{PUBLISHED_MEANS[name]}" if len(rows) == 10 else "" for name in ("Deep SVDD", "DCAE"))
    return "\n".join([*lines, f"| mean | {whole.plain:.1f} | {whole.oddigit:.1f} | {' | '.join(published)} |"])


if __name__ == "__main__":
    main()
