from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from app.detection.conformal import Calibration, CalibrationError
from app.detection.imaging.upload_features import FEATURE_NAMES, SCORED_FEATURES, upload_groups
from app.detection.upload_networks import STRIDE, WEIGHTS, ConvolutionalNetwork, SmallNetwork, UploadNetworks
from app.detection.upload_scorer import MAX_DEVIATION, QuantileMap, UploadCalibration, UploadScorer, _shared_calibrations

N, K = 500, len(FEATURE_NAMES)


def normal_uploads(seed=0, count=N):
    """Image scores, images, and features that hang together a little with the scores, as those of real uploads do."""
    random = np.random.RandomState(seed)
    features = random.randn(count, K) * np.linspace(0.3, 2, K) + np.arange(K)
    scores = np.log1p(np.exp(random.randn(count) + 0.3 * features[:, 0])).astype(np.float32)
    return scores, random.randint(0, 256, (count, 28, 28), np.uint8), features.astype(np.float32)


def make_networks(seed=0):
    """Networks with random weights."""
    random = np.random.RandomState(seed)

    def network(*widths):
        pairs = [*pairwise(widths)]
        weights = tuple(random.randn(*pair).astype(np.float32) / pair[0] ** 0.5 for pair in pairs)
        return SmallNetwork(weights, tuple(random.randn(width).astype(np.float32) for _, width in pairs))

    count = int(SCORED_FEATURES.sum())
    mean, std = np.arange(K)[SCORED_FEATURES].astype(np.float32), np.ones(count, np.float32)
    kernels = tuple(random.randn(*shape).astype(np.float32) / 5 for shape in ((1, 5, 5, 3), (3, 3, 3, 4)))
    biases = tuple(random.randn(kernel.shape[-1]).astype(np.float32) for kernel in kernels)
    digits = [ConvolutionalNetwork(kernels, biases, network(5 * 5 * 4, 8, 1)) for _ in range(2)]
    return UploadNetworks(tuple(digits), network(count, 8, 4, 1), mean, std, np.asarray(WEIGHTS, np.float32))


BLANK = np.zeros((1, 28, 28), np.uint8)


@pytest.fixture(scope="module", params=[True, False], ids=["networks", "none, as in older releases"])
def scorer(request):
    scores, _, features = normal_uploads()
    return UploadScorer.fit(scores, features, make_networks() if request.param else None)


@pytest.fixture(scope="module")
def calibration():
    """Of as many untouched images as there are uploads."""
    return Calibration.from_scores(np.random.RandomState(5).gamma(2, 1, N).astype(np.float32))


@pytest.fixture(scope="module")
def scale(scorer, calibration):
    return QuantileMap.calibrated(scorer.combine(*normal_uploads(seed=1)), calibration)


def test_usual_features_are_least_anomalous(scorer):
    """The centre of normal features adds nothing; steps away from it to a counted side add something, up to a cap."""
    added = scorer.networks.score(BLANK, scorer.centre[None])[0] if scorer.networks else 0
    at_centre = scorer.combine(np.ones(1), BLANK, scorer.centre[None])
    assert at_centre == pytest.approx(1 / scorer.units[0] + added)
    direction = np.where(scorer.sides < 0, -1.0, 1.0)
    steps = [scorer.distances((scorer.centre + far * direction)[None])[0] for far in (0, 0.1, 0.3, 1)]
    assert steps == sorted(steps)
    assert steps[-1] > steps[0]


def test_cleaner_than_usual_is_not_anomalous(scorer):
    """Less texture and unevenness than usual, and a thinner pen, add nothing to the score."""
    for name, step in (("texture", -5), ("uneven", -5), ("blend", -5), ("width", -5)):
        features = scorer.centre.copy()
        features[FEATURE_NAMES.index(name)] += step
        assert scorer.distances(features[None])[0] == 0
        features[FEATURE_NAMES.index(name)] -= 2 * step
        assert scorer.distances(features[None])[0] > 0


def test_one_axis_cannot_outvote_all_others(scorer):
    """However far a feature is out, each principal axis counts at most its cap."""
    far = scorer.distances((scorer.centre + 1e6)[None])[0]
    assert far <= MAX_DEVIATION * np.sqrt(K)


@pytest.mark.parametrize("name", ["extent", "size", "bilevel", "contrast"])
def test_size_and_contrast_are_not_scored(scorer, name):
    """The size of a digit and the strength of its ink say nothing about whether it is one."""
    features = scorer.centre.copy()
    features[FEATURE_NAMES.index(name)] += 9
    assert scorer.distances(features[None])[0] == 0


def test_a_feature_that_never_varies_is_left_out():
    """A column without variance, or only such columns, still gives finite scores, and a change in it does not count."""
    scores, images, features = normal_uploads()
    column = FEATURE_NAMES.index("aspect")
    features[:, column] = 3.0
    scorer = UploadScorer.fit(scores, features)
    features[:, column] = 9.0
    assert np.isfinite(scorer.combine(scores, images, features)).all()
    assert scorer.distances(scorer.centre[None] + 9 * (np.arange(K) == column))[0] == 0
    assert np.isfinite(UploadScorer.fit(scores, np.full_like(features, 3.0)).combine(scores, images, features)).all()


def test_arrays_there_and_back_are_the_same_scorer(scorer):
    """Taken out of what is stored beside other arrays, which stay; a part that is missing is an error."""
    stored = {**scorer.arrays(), "calibration": np.zeros(3)}
    again = UploadScorer.from_arrays(stored)
    assert np.array_equal(again.combine(*normal_uploads(3)), scorer.combine(*normal_uploads(3)))
    assert (again.networks is None) == (scorer.networks is None)
    for name in scorer.arrays():
        with pytest.raises((KeyError, ValueError)):
            UploadScorer.from_arrays({key: value for key, value in scorer.arrays().items() if key != name})


def test_a_convolutional_network_computes_what_torch_does():
    """Alone and in any company; and arrays whose shapes do not fit each other are refused."""
    network = make_networks().digits[0]
    pixels = np.random.RandomState(1).rand(1200, 784).astype(np.float32)
    values = torch.from_numpy(pixels).view(-1, 1, 28, 28)
    for kernel, bias in zip(network.kernels, network.biases, strict=True):
        values = torch.relu(torch.conv2d(values, torch.from_numpy(kernel).permute(3, 0, 1, 2), torch.from_numpy(bias), STRIDE))
    expected = network.head.log_odds(values.permute(0, 2, 3, 1).flatten(1).numpy())
    np.testing.assert_allclose(network.log_odds(pixels), expected, atol=1e-4)
    np.testing.assert_allclose(network.log_odds(pixels[7:8]), expected[7:8], atol=1e-4)
    assert network.log_odds(pixels[:0]).shape == (0,)
    stored = network.arrays("digit")
    for name, wrong in (
        ("digit_kernel0", np.ones((2, 5, 5, 3))),
        ("digit_kernel1", np.ones((3, 3))),
        ("digit_head_w1", np.ones((9, 1))),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            ConvolutionalNetwork.from_arrays({**stored, name: wrong}, "digit")


def test_the_scorer_of_an_older_release_is_read():
    """Mean and precision of the first features, which count on both sides without a cap."""
    scores, images, features = normal_uploads()
    old = features[:, :15].astype(np.float64)
    precision = np.linalg.inv(np.cov(old.T) + 0.01 * np.eye(15))
    scorer = UploadScorer.from_arrays(
        {"evidence_mean": old.mean(0), "evidence_precision": precision, "evidence_units": np.ones(2)}
    )
    centred = old - old.mean(0)
    expected = scores + np.sqrt(np.einsum("nk,kl,nl->n", centred, precision, centred))
    np.testing.assert_allclose(scorer.combine(scores, images, features), expected)
    again = UploadScorer.from_arrays(scorer.arrays())  # as a version has it that is published anew
    np.testing.assert_allclose(again.combine(scores, images, features), expected)
    assert all(np.isfinite(each).all() for each in scorer.arrays().values())


def test_the_calibration_uploads_lie_where_unprepared_images_do(scale, calibration):
    """Order statistic by order statistic: the one mapped scores are the other's scores, and so are the p-values."""
    mapped = scale.map_scores(scale.upload_scores)
    np.testing.assert_array_equal(mapped, calibration.scores)
    np.testing.assert_array_equal(calibration.p_values(mapped), np.arange(N + 1, 1, -1) / (N + 1))


@given(arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1e3)))
def test_order_is_kept(scale, combined):
    """A higher combined score maps to a higher score, or an equal one in float32; scores are finite and not negative."""
    mapped = scale.map_scores(np.sort(combined))
    assert mapped.dtype == np.float32
    assert np.isfinite(mapped).all()
    assert (mapped >= 0).all()
    assert (np.diff(mapped) >= 0).all()


@pytest.mark.parametrize("count", [1, 7, 300, N, 2_000])
@given(combined=arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 20)))
def test_p_values_are_valid_within_the_group(scorer, calibration, count, combined):
    """The p-value of a mapped score is never less than that among the uploads of the group, and little more."""
    source = np.random.RandomState(count).gamma(2, 1, count)
    mapped = QuantileMap.calibrated(source, calibration).map_scores(combined)
    within = (1 + (source[None] >= combined[:, None]).sum(1)) / (count + 1)
    p_values = np.maximum(calibration.p_values(mapped), 1 / (count + 1))
    assert (p_values >= within - 1e-12).all()
    assert np.abs(p_values - within).max() <= 1.5 / (N + 1) + 1 / (count + 1)


def test_scores_beyond_all_calibration_uploads_go_on_rising(scale, calibration):
    """Beyond the calibration, scores go on rising, and the p-value is the smallest there is."""
    beyond = scale.map_scores(scale.upload_scores[-1] + np.array([0.01, 1, 10, 1e3, 1e6]))
    assert (np.diff(beyond) > 0).all()
    assert (beyond > calibration.scores[-1]).all()
    assert (calibration.p_values(beyond) == 1 / (N + 1)).all()


def grouped_uploads(seed, count=4_000):
    """Uploads of two groups; those of small digits have higher image scores."""
    scores, images, features = normal_uploads(seed, count)
    small = np.arange(count) % 2 == 0
    features[:, FEATURE_NAMES.index("size")] = np.where(small, np.log(17), np.log(60))
    for name, value in (("bilevel", 0), ("pieces", 0.4), ("width", 1.0)):
        features[:, FEATURE_NAMES.index(name)] = value
    return np.where(small, 3 * scores, scores).astype(np.float32), images, features, small


def test_each_group_has_as_few_false_alarms_as_promised(scorer):
    """One threshold, and in each of two groups with different scores a share of alpha is flagged."""
    scores, images, features, _ = grouped_uploads(seed=1)
    calibration = Calibration.from_scores(np.random.RandomState(5).gamma(2, 1, 6_000).astype(np.float32))
    uploads = UploadCalibration.calibrated(
        scorer, scorer.combine(scores, images, features), upload_groups(features), calibration
    )
    scores, images, features, small = grouped_uploads(seed=2, count=20_000)
    flagged = uploads.score(scores, images, features).scores > calibration.threshold(0.05)
    for group in (small, ~small):
        assert flagged[group].mean() == pytest.approx(0.05, abs=0.02)


def test_a_group_that_was_not_calibrated_is_told(scorer, calibration):
    """Its uploads are compared with all uploads; those of a calibrated group with as many as the group has."""
    scores, images, features, _ = grouped_uploads(seed=1)
    uploads = UploadCalibration.calibrated(
        scorer, scorer.combine(scores, images, features), upload_groups(features), calibration
    )
    features[:3, FEATURE_NAMES.index("bilevel")] = 1
    found = uploads.score(scores[:6], images[:6], features[:6])
    assert found.calibrated.tolist() == [False] * 3 + [True] * 3
    assert found.sizes.tolist() == [4_000] * 3 + [2_000] * 3


def test_groups_that_are_too_small_are_shared_calibrations(scorer, calibration):
    """A group without enough uploads for a threshold at the model's alpha shares a calibration with the others like it."""
    scores, images, features, _ = grouped_uploads(seed=1)
    combined, groups = scorer.combine(scores, images, features), upload_groups(features)
    assert sizes(UploadCalibration.calibrated(scorer, combined, groups, calibration, 2_000)) == [4_000, 2_000, 2_000]
    together = UploadCalibration.calibrated(scorer, combined, groups, calibration, 2_001)
    assert sizes(together) == [4_000, 4_000]
    found = together.score(scores[:5], images[:5], features[:5])
    assert found.calibrated.all()
    assert found.sizes.tolist() == [4_000] * 5
    again = UploadCalibration.from_arrays(together.arrays(), calibration, 2_001)
    assert sizes(again) == sizes(together)


def sizes(uploads):
    return [len(scores) for scores in uploads.calibrations]


@pytest.mark.parametrize(
    ("counts", "min_group", "expected"),
    [
        ((250, 250), 99, [[0], [1]]),
        ((250, 150), 99, [[1], [0]]),
        ((400, 250, 30), 99, [[2, 1], [0]]),  # 30 are too few for a threshold
        ((100, 60, 58), 99, [[0, 1, 2]]),
        ((210, 8), 99, [[0]]),  # 8 say nothing of their kind
        ((60, 30), 99, []),
        ((0, 0), 99, []),
    ],
)
def test_each_group_has_enough_uploads_for_a_threshold(counts, min_group, expected):
    """Large groups have a calibration of their own, small ones share one, with the smallest large group if they must."""
    groups = np.repeat(np.arange(len(counts)), counts).astype(np.int8)
    assert _shared_calibrations(groups, min_group) == expected


def test_the_calibration_is_stored_with_its_groups(scorer, calibration):
    """Arrays there and back give the same scores; without groups, as in older releases, all uploads are one kind."""
    scores, images, features, _ = grouped_uploads(seed=1)
    uploads = UploadCalibration.calibrated(
        scorer, scorer.combine(scores, images, features), upload_groups(features), calibration
    )
    again = UploadCalibration.from_arrays(uploads.arrays(), calibration)
    for one, other in zip(uploads.score(scores, images, features), again.score(scores, images, features), strict=True):
        assert np.array_equal(one, other)
    without = {name: array for name, array in uploads.arrays().items() if name != "upload_groups"}
    assert UploadCalibration.from_arrays(without, calibration).score(scores, images, features).calibrated.all()


@pytest.mark.parametrize("tied", [0, 250, 490])
def test_equal_uploads_in_the_calibration_are_all_counted(scorer, calibration, tied):
    """Where many calibration uploads are equal, one more of them has all of them as its equals."""
    combined = np.sort(np.random.RandomState(0).gamma(2, 1, N))
    combined[tied : tied + 10] = combined[tied]
    placed = QuantileMap.calibrated(combined, calibration).map_scores(combined[tied : tied + 1])
    assert calibration.p_values(placed)[0] >= (1 + (combined >= combined[tied]).sum()) / (N + 1)


def test_uploads_without_finite_scores_are_refused(calibration):
    """The map needs at least one upload, and all with a score."""
    good = np.ones(N)
    for wrong in (good[:0], np.where(np.arange(N) == 3, np.nan, good), good * np.inf):
        with pytest.raises(CalibrationError, match="finite scores"):
            QuantileMap.calibrated(wrong, calibration)


def test_the_smallest_calibration_has_a_scale(scorer):
    """With one image of each kind everything is still placed."""
    calibration = Calibration.from_scores(np.array([1.5], np.float32))
    placed = QuantileMap.calibrated(np.array([2.0]), calibration).map_scores(np.array([0.0, 1.0, 2.0, 3.0, 100.0]))
    assert np.isfinite(placed).all()
    assert (np.diff(placed) >= 0).all()
    assert placed[2] == np.float32(1.5)
