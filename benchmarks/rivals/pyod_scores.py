"""One of PyOD's detectors, with its defaults: `pyod_scores.py NAME FIT.npy IMAGES.npy SCORES.npy`, images in, scores out.

Images are uint8 [N, 28, 28]; the detector sees them as float32 [N, 784] in [0, 1], and its scores are [N], higher = more
anomalous. ECOD counts what it is asked about among what it has learnt from, so a score depends on its company: chunks are drawn
at random, or an anomaly amid its like would pass for one of many. PCA divides by the variance of every direction, which is 0
where pixels never change: with its defaults it finds every image infinitely odd, so it keeps 95 % of the variance.
"""

import importlib
import sys

import numpy as np
import torch

CHUNK = 2_000
MODULES = {"AutoEncoder": "auto_encoder", "KNN": "knn", "PCA": "pca", "IForest": "iforest", "ECOD": "ecod"}
OPTIONS = {"PCA": {"n_components": 0.95}}


def main() -> None:
    """Fit, score, write."""
    name, fit, images, out = sys.argv[1:]
    np.random.seed(0)  # IForest draws from it
    torch.set_num_threads(1)  # two wait for each other at every one of AutoEncoder's small steps
    detector = getattr(importlib.import_module(f"pyod.models.{MODULES[name]}"), name)(**OPTIONS.get(name, {}))
    detector.fit(flat(fit))
    asked = flat(images)
    scores = np.empty(len(asked))
    order = np.random.default_rng(0).permutation(len(asked))
    for chunk in np.split(order, range(CHUNK, len(asked), CHUNK)):
        scores[chunk] = detector.decision_function(asked[chunk])
    np.save(out, scores)


def flat(path: str) -> np.ndarray:
    """The images in the file -> float32 [N, pixels] in [0, 1]."""
    images = np.load(path)
    return images.reshape(len(images), -1).astype(np.float32) / 255


if __name__ == "__main__":
    main()
