"""Figures about scores: ranking, rates with their confidence, uniformity. The only file that imports scikit-learn and scipy.

Scores are float [N], higher = more anomalous; anomalies are the positives.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.training.optional import needs_training_extra

Scores = NDArray[np.float32]


class Ranking(NamedTuple):
    """How well scores separate anomalies from normals, whatever the threshold."""

    auroc: float
    aupr: float  # average precision; depends on how many of each there are
    fpr_at_95_tpr: float  # false alarms when 95 % of the anomalies are caught


class Share(NamedTuple):
    """A share of a sample and the interval that holds the true one with 95 % confidence (Clopper & Pearson, 1934)."""

    value: float
    low: float
    high: float


class Uniformity(NamedTuple):
    """Kolmogorov-Smirnov tests of the p-values of normals; small figures speak against calibration."""

    against_uniform: float  # takes the calibration set for the whole truth, so it is too strict when N nears its size
    against_calibration: float  # test scores against calibration scores: exact for exchangeable images


def ranking(normal: Scores, anomalous: Scores) -> Ranking:
    """Scores of normals [N] and anomalies [M] -> AUROC, AUPR and FPR at 95 % TPR."""
    with needs_training_extra():
        from sklearn.metrics import average_precision_score, roc_auc_score
    labels = np.repeat([0, 1], [len(normal), len(anomalous)])
    scores = np.concatenate([normal, anomalous])
    false_rate, true_rate = roc(normal, anomalous)
    return Ranking(
        auroc=float(roc_auc_score(labels, scores)),
        aupr=float(average_precision_score(labels, scores)),
        fpr_at_95_tpr=float(false_rate[np.argmax(true_rate >= 0.95)]),
    )


def roc(normal: Scores, anomalous: Scores) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False-alarm rate and share caught at every threshold, both ascending from 0 to 1."""
    with needs_training_extra():
        from sklearn.metrics import roc_curve
    labels = np.repeat([0, 1], [len(normal), len(anomalous)])
    false_rate, true_rate, _ = roc_curve(labels, np.concatenate([normal, anomalous]))
    return false_rate, true_rate


def share(hits: NDArray[np.bool_]) -> Share:
    """Which of N images [N] are hits -> their share."""
    count, total = int(hits.sum()), len(hits)
    low = beta_quantile(0.025, count, total - count + 1) if count else 0.0
    high = beta_quantile(0.975, count + 1, total - count) if count < total else 1.0
    return Share(count / total, low, high)


def uniformity(p_values: NDArray[np.float64], scores: Scores, calibration: Scores) -> Uniformity:
    """Do the p-values [N] of normals, made from `scores` [N] and `calibration` [n], behave as p-values should?"""
    with needs_training_extra():
        from scipy.stats import ks_2samp, kstest  # type: ignore[import-untyped]
    return Uniformity(
        against_uniform=float(kstest(p_values, "uniform").pvalue),
        against_calibration=float(ks_2samp(scores, calibration).pvalue),
    )


def beta_quantile(probability: float, a: float, b: float) -> float:
    """The value below which a Beta(a, b) variable falls with this probability."""
    with needs_training_extra():
        from scipy.special import betaincinv  # type: ignore[import-untyped]
    return float(betaincinv(a, b, probability))
