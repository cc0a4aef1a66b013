"""One of PyOD's detectors, with its defaults: `pyod_scores.py NAME FIT.npy IMAGES.npy SCORES.npy`, images in, scores out.

Images are uint8 [N, 28, 28]; the detector sees them as float32 [N, 784] in [0, 1] and its scores are float64 [N], higher = more
anomalous. ECOD counts what it is asked about among what it has learnt from, so a score depends on its company: chunks are small.
"""

import importlib
import sys

import numpy as np

CHUNK = 1000
MODULES = {"AutoEncoder": "auto_encoder", "KNN": "knn", "PCA": "pca", "IForest": "iforest", "ECOD": "ecod"}


def flat(path: str) -> np.ndarray:
    images = np.load(path)
    return images.reshape(len(images), -1).astype(np.float32) / 255


def main() -> None:
    name, fit, images, out = sys.argv[1:]
    detector = getattr(importlib.import_module(f"pyod.models.{MODULES[name]}"), name)()
    detector.fit(flat(fit))
    asked = flat(images)
    parts = [detector.decision_function(asked[start : start + CHUNK]) for start in range(0, len(asked), CHUNK)]
    np.save(out, np.concatenate(parts))


if __name__ == "__main__":
    main()
