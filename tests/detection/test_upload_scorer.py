from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from app.detection.conformal import Calibration, CalibrationError
from app.detection.upload_scorer import QuantileMap, UploadScorer

N, K = 500, 6


def normal_uploads(seed=0, count=N):
    """Residual scores and features that hang together a little, as those of real uploads do."""
    random = np.random.RandomState(seed)
    features = random.randn(count, K) @ np.diag(10.0 ** np.arange(-2, K - 2)) + np.arange(K)
    scores = np.log1p(np.exp(random.randn(count) + 0.3 * features[:, 0])).astype(np.float32)
    return scores, features.astype(np.float32)


@pytest.fixture(scope="module")
def scorer():
    return UploadScorer.fit(*normal_uploads())


@pytest.fixture(scope="module")
def calibration():
    """Of as many untouched images as there are uploads."""
    return Calibration.from_scores(np.random.RandomState(5).gamma(2, 1, N).astype(np.float32))


@pytest.fixture(scope="module")
def scale(scorer, calibration):
    return QuantileMap.calibrated(scorer, scorer.combine(*normal_uploads(seed=1)), calibration)


def test_ordinary_evidence_is_least_odd(scorer):
    """The mean of normal features adds nothing; every step away from it adds something, in whichever direction."""
    at_mean = scorer.combine(np.ones(1), scorer.mean[None])
    assert at_mean == pytest.approx(1 / scorer.units[0])
    random = np.random.RandomState(2)
    direction = random.randn(20, K)
    steps = [scorer.combine(np.ones(20), scorer.mean + far * direction) for far in (0, 1, 2, 5, 100)]
    assert all((further > nearer).all() for nearer, further in pairwise(steps))


def test_each_part_counts_in_units_of_its_own_quantile(scorer):
    """Of normal uploads, one in a hundred is beyond one unit of each part."""
    scores, features = normal_uploads()
    assert np.mean(scores > scorer.units[0]) == pytest.approx(0.01, abs=0.003)
    distances = (scorer.combine(scores, features) - scores / scorer.units[0]) * scorer.units[1]
    assert np.mean(distances > scorer.units[1]) == pytest.approx(0.01, abs=0.003)


def test_the_units_of_a_statistic_do_not_matter():
    """Evidence in other units, shifted and stretched alike, gives the same combined scores."""
    scores, features = normal_uploads()
    other = UploadScorer.fit(scores, 7 * features.astype(np.float64) - 3)
    np.testing.assert_allclose(
        other.combine(scores, 7 * features.astype(np.float64) - 3),
        UploadScorer.fit(scores, features).combine(scores, features),
        rtol=1e-6,
    )


@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_a_statistic_that_never_varies_is_no_trouble(constant):
    """A column without variance, or only such columns, still gives finite scores."""
    scores, features = normal_uploads()
    features[:, 2] = constant
    for kept in (features, np.full_like(features, constant)):
        combined = UploadScorer.fit(scores, kept).combine(scores, kept)
        assert np.isfinite(combined).all()


def test_arrays_there_and_back_are_the_same_scorer(scorer):
    """Taken out of what is stored beside other arrays, which stay; a part that is missing is an error."""
    stored = {**scorer.arrays(), "calibration": np.zeros(3)}
    again = UploadScorer.from_arrays(stored)
    assert np.array_equal(again.combine(*normal_uploads(3)), scorer.combine(*normal_uploads(3)))
    for name in scorer.arrays():
        with pytest.raises(KeyError):
            UploadScorer.from_arrays({key: value for key, value in scorer.arrays().items() if key != name})


def test_the_calibration_uploads_lie_where_the_untouched_images_do(scale, calibration):
    """Order statistic by order statistic: the one placed scores are the other's scores, and so are the p-values."""
    placed = scale.map_scores(scale.upload_scores)
    np.testing.assert_array_equal(placed, calibration.scores)
    np.testing.assert_array_equal(calibration.p_values(placed), np.arange(N + 1, 1, -1) / (N + 1))


@given(arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1e3)))
def test_order_is_kept(scale, combined):
    """What is odder stays odder, or equal where float32 cannot tell; scores are finite and not negative."""
    combined = np.sort(combined)
    placed = scale.map_scores(combined)
    assert placed.dtype == np.float32
    assert np.isfinite(placed).all()
    assert (placed >= 0).all()
    assert (np.diff(placed) >= 0).all()


@given(arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1e3)))
def test_p_values_are_those_of_uploads(scale, calibration, combined):
    """The p-value of a placed score is the share of calibration uploads that are at least as odd; never less."""
    expected = (1 + (scale.upload_scores[None] >= combined[:, None]).sum(1)) / (N + 1)
    given_ = calibration.p_values(scale.map_scores(combined))
    assert (given_ >= expected - 1e-12).all()
    assert np.abs(given_ - expected).max() <= 1.5 / (N + 1)


def test_what_is_odder_than_all_is_odder_than_all(scale, calibration):
    """Beyond the calibration, scores go on rising, and the p-value is the smallest there is."""
    beyond = scale.map_scores(scale.upload_scores[-1] + np.array([0.01, 1, 10, 1e3, 1e6]))
    assert (np.diff(beyond) > 0).all()
    assert (beyond > calibration.scores[-1]).all()
    assert (calibration.p_values(beyond) == 1 / (N + 1)).all()


def test_new_normal_uploads_raise_as_few_false_alarms_as_promised(scorer, scale, calibration):
    """Of 20,000 uploads like those of the calibration, about alpha score above the threshold for alpha."""
    scores = scale.score(*normal_uploads(seed=9, count=20_000))
    for alpha in (0.01, 0.05, 0.2):
        share = np.mean(scores > calibration.threshold(alpha))
        assert share <= alpha + 4 * np.sqrt(alpha * (1 - alpha) / N)


@pytest.mark.parametrize("tied", [0, 250, 490])
def test_equal_uploads_in_the_calibration_are_all_counted(scorer, calibration, tied):
    """Where many calibration uploads are equal, one more of them has all of them as its equals."""
    combined = np.sort(np.random.RandomState(0).gamma(2, 1, N))
    combined[tied : tied + 10] = combined[tied]
    placed = QuantileMap.calibrated(scorer, combined, calibration).map_scores(combined[tied : tied + 1])
    assert calibration.p_values(placed)[0] >= (1 + (combined >= combined[tied]).sum()) / (N + 1)


def test_uploads_that_are_too_few_or_not_finite_are_refused(scorer, calibration):
    """The scale needs as many uploads as untouched images, all with a score."""
    good = np.ones(N)
    for wrong in (good[:-1], np.append(good, 1), np.where(np.arange(N) == 3, np.nan, good), good * np.inf):
        with pytest.raises(CalibrationError, match="as many finite scores"):
            QuantileMap.calibrated(scorer, wrong, calibration)


def test_the_smallest_calibration_has_a_scale(scorer):
    """With one image of each kind everything is still placed."""
    calibration = Calibration.from_scores(np.array([1.5], np.float32))
    placed = QuantileMap.calibrated(scorer, np.array([2.0]), calibration).map_scores(np.array([0.0, 1.0, 2.0, 3.0, 100.0]))
    assert np.isfinite(placed).all()
    assert (np.diff(placed) >= 0).all()
    assert placed[2] == np.float32(1.5)
