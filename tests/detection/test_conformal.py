from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from app.detection.conformal import Calibration, CalibrationError, images_needed

FLOATS = st.floats(-(2.0**99), 2.0**99, width=32)
TIED = st.sampled_from([-1.5, 0.0, 0.1, 0.25, 1.0, 3.0])  # few values: most scores are equal
SCORES = st.one_of(
    npst.arrays(np.float32, st.integers(1, 60), elements=FLOATS),
    npst.arrays(np.float32, st.integers(1, 300), elements=TIED),
)
ALPHAS = st.one_of(
    st.floats(0.0009765625, 0.9990234375),
    st.builds(lambda k, n: k / n, st.integers(1, 40), st.integers(41, 400)),  # rates that p-values hit exactly
    st.sampled_from([0.001, 0.005, 0.01, 0.05, 0.1, 0.29, 0.5, 0.57, 0.58, 0.99]),
)


@given(SCORES, SCORES, ALPHAS)
def test_threshold_and_p_value_agree_to_the_bit(calibration, scores, alpha):
    """`score > threshold` and `p_value <= alpha` say the same of every score, ties and calibration scores included."""
    fitted = Calibration.from_scores(calibration)
    scores = np.concatenate([scores, calibration, np.nextafter(calibration, np.float32(np.inf))])
    if alpha < 1 / (fitted.n + 1):
        with pytest.raises(CalibrationError):
            fitted.threshold(alpha)
    else:
        threshold = fitted.threshold(alpha)
        assert np.array_equal(scores.astype(np.float64) > threshold, fitted.p_values(scores) <= alpha)


@given(SCORES, SCORES)
def test_p_values_count_the_calibration_scores_at_least_as_high(calibration, scores):
    """The p-value is (1 + #{calibration >= s}) / (n + 1), counted one by one."""
    p_values = Calibration.from_scores(calibration).p_values(scores)
    counted = [(1 + sum(c >= s for c in calibration)) / (len(calibration) + 1) for s in scores]
    assert p_values.tolist() == counted


@given(SCORES, SCORES)
def test_a_higher_score_never_has_a_higher_p_value(calibration, scores):
    """p-values fall as scores rise, and lie in [1 / (n + 1), 1]."""
    fitted = Calibration.from_scores(calibration)
    p_values = fitted.p_values(np.sort(scores))
    assert (np.diff(p_values) <= 0).all()
    assert p_values.min() >= 1 / (fitted.n + 1)
    assert p_values.max() <= 1


@given(SCORES, ALPHAS, ALPHAS)
def test_a_smaller_alpha_never_has_a_lower_threshold(calibration, one, other):
    """Asking for fewer false alarms never flags more."""
    fitted = Calibration.from_scores(calibration)
    low, high = sorted((one, other))
    if low >= 1 / (fitted.n + 1):
        assert fitted.threshold(low) >= fitted.threshold(high)


@given(SCORES, ALPHAS, st.randoms(use_true_random=False))
def test_the_false_alarm_rate_on_exchangeable_images_is_at_most_alpha(pool, alpha, random):
    """Leaving each score out in turn and judging it by the others flags at most the share alpha."""
    random.shuffle(pool)
    if len(pool) >= 2 and images_needed(alpha) <= len(pool) - 1:
        flagged = sum(
            Calibration.from_scores(np.delete(pool, index)).p_values(pool[index : index + 1])[0] <= alpha
            for index in range(len(pool))
        )
        assert flagged <= alpha * len(pool) + 1e-9


@given(SCORES)
def test_the_order_of_calibration_images_does_not_matter(scores):
    """Any permutation of the calibration scores is the same calibration."""
    assert np.array_equal(Calibration.from_scores(scores).scores, Calibration.from_scores(scores[::-1]).scores)


@given(st.one_of(st.floats(1e-9, 1, exclude_max=True), st.integers(2, 10**7).map(lambda n: 1 / n)))
def test_images_needed_is_the_exact_minimum(alpha):
    """With that many images a threshold exists; with one fewer it does not."""
    needed = images_needed(alpha)
    assert needed >= 1
    assert 1 / (needed + 1) <= alpha
    assert needed == 1 or 1 / needed > alpha


@given(st.integers(1, 400), ALPHAS)
def test_a_threshold_exists_exactly_where_the_images_suffice(n, alpha):
    """`threshold` refuses a rate if and only if `images_needed` asks for more images, and names the number."""
    fitted = Calibration(np.arange(n, dtype=np.float32))
    if n >= images_needed(alpha):
        above = sum(score > fitted.threshold(alpha) for score in range(n))
        assert Fraction(above + 1, n + 1) <= Fraction(alpha) + Fraction(1, 10**12)
    else:
        with pytest.raises(CalibrationError, match=f"{images_needed(alpha):,} calibration images"):
            fitted.threshold(alpha)


@pytest.mark.parametrize("alpha", [1e-12, 1e-100, 1e-308, 5e-324])
def test_a_rate_too_small_for_any_calibration_is_refused(alpha):
    """Down to the smallest number above 0, the refusal is a sentence."""
    with pytest.raises(CalibrationError, match="alpha"):
        Calibration(np.ones(100, np.float32)).threshold(alpha)


@pytest.mark.parametrize(
    "scores",
    [[], [[1.0, 2.0]], [1.0, np.nan], [1.0, np.inf], [-np.inf, 1.0], [2.0, 1.0]],
    ids=["none", "two-axes", "nan", "infinite", "minus-infinite", "unsorted"],
)
def test_scores_that_cannot_calibrate_are_refused(scores):
    """No scores, scores that are not finite and scores out of order fail with a sentence."""
    with pytest.raises(CalibrationError, match="alibrat"):
        Calibration(np.array(scores, np.float32))
