"""The metrics are right where they can be worked out by hand."""

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.training.reporting.metrics import Ranking, ranking, roc, share, uniformity


def scores(*values):
    return np.array(values, np.float32)


def test_perfect_ranking():
    """When every anomaly scores above every normal, nothing is missed."""
    assert ranking(scores(1, 2, 3), scores(4, 5)) == Ranking(auroc=1.0, aupr=1.0, fpr_at_95_tpr=0.0)


def test_ranking_by_hand():
    """Of six pairs one is in the wrong order, and one normal of three lies above the lower anomaly."""
    found = ranking(scores(1, 2, 4), scores(3, 5))
    assert found.auroc == pytest.approx(5 / 6)
    assert found.fpr_at_95_tpr == pytest.approx(1 / 3)


def test_equal_scores_do_not_raise_the_false_alarm_rate():
    """Normal images and anomalies with the same 100 scores: 95 % of both lie above the threshold."""
    same = np.arange(100, dtype=np.float32)
    assert ranking(same, same).fpr_at_95_tpr == pytest.approx(0.95)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=30), st.lists(st.integers(0, 20), min_size=1, max_size=30))
def test_auroc_is_the_share_of_pairs_in_order(normal, anomalous):
    """AUROC is the chance that an anomaly scores above a normal, ties counting half; and the curve runs from 0 to 1."""
    pairs = np.sign(np.subtract.outer(anomalous, normal))
    assert ranking(scores(*normal), scores(*anomalous)).auroc == pytest.approx(float((pairs + 1).mean() / 2))
    false_rate, true_rate = roc(scores(*normal), scores(*anomalous))
    assert (false_rate[0], true_rate[0], false_rate[-1], true_rate[-1]) == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [(0, 10, 0, 0.3085), (10, 10, 0.6915, 1), (5, 10, 0.1871, 0.8129), (1, 100, 0.0003, 0.0545)],
)
def test_clopper_pearson(hits, total, low, high):
    """The interval of a share agrees with published tables, at the ends too."""
    found = share(np.arange(total) < hits)
    assert astuple(found) == pytest.approx((hits / total, low, high), abs=1e-4)


def test_uniformity_tells_calibrated_from_shifted():
    """p-values of exchangeable scores pass both tests, those of shifted scores neither."""
    random = np.random.RandomState(0)
    calibration, test = random.normal(size=2000).astype(np.float32), random.normal(size=500).astype(np.float32)

    def p_values(values):
        return (1 + (calibration >= values[:, None]).sum(1)) / 2001

    assert min(astuple(uniformity(p_values(test), p_values(calibration)))) > 0.01
    assert max(astuple(uniformity(p_values(test + 1), p_values(calibration)))) < 0.01
