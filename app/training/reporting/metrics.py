"""Metrics of scores: ranking, shares with intervals, uniformity of p-values. Only this file imports scikit-learn and scipy.

Scores are float [N], higher = more anomalous; anomalies are the positive class.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Ranking:
    """How well scores separate anomalies from normal images, over all thresholds."""

    auroc: float
    aupr: float  # average precision; depends on the ratio of anomalies to normal images
    fpr_at_95_tpr: float  # false-alarm rate at the threshold that catches 95 % of the anomalies


@dataclass(frozen=True)
class Share:
    """A share of a sample with its 95 % confidence interval (Clopper & Pearson, 1934)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Uniformity:
    """P-values of Kolmogorov-Smirnov tests on normal images; small ones speak against the calibration."""

    against_uniform: float  # ignores the calibration set's sampling error: too strict when N is near its size
    against_calibration: float  # against the p-values of the calibration images: exact for exchangeable images


def ranking(normal: Scores, anomalous: Scores) -> Ranking:
    """AUROC, AUPR and FPR at 95 % TPR of the scores of normal images [N] and anomalies [M]."""
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
    """The ROC curve: false-positive and true-positive rates [K], both ascending from 0 to 1."""
    from sklearn.metrics import roc_curve

    labels = np.repeat([0, 1], [len(normal), len(anomalous)])
    false_rate, true_rate, _ = roc_curve(labels, np.concatenate([normal, anomalous]), drop_intermediate=False)
    return false_rate, true_rate


def share(hits: NDArray[np.bool_]) -> Share:
    """The share of True in `hits` [N], with its interval."""
    count, total = int(hits.sum()), len(hits)
    low = beta_quantile(0.025, count, total - count + 1) if count else 0.0
    high = beta_quantile(0.975, count + 1, total - count) if count < total else 1.0
    return Share(count / total, low, high)


def uniformity(p_values: NDArray[np.float64], calibration: NDArray[np.float64]) -> Uniformity:
    """Test whether the p-values [N] of normal images fit the p-values of the calibration images themselves [n]."""
    from scipy.stats import ks_2samp, kstest  # type: ignore[import-untyped]

    return Uniformity(
        against_uniform=float(kstest(p_values, "uniform").pvalue),
        against_calibration=float(ks_2samp(p_values, calibration).pvalue),
    )


def beta_quantile(probability: float, a: float, b: float) -> float:
    """The quantile of the Beta(a, b) distribution at `probability`."""
    from scipy.special import betaincinv  # type: ignore[import-untyped]

    return float(betaincinv(a, b, probability))
