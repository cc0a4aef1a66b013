import asyncio
import math
import threading
import time

import httpx
import numpy as np
import pytest
from conftest import make_bundle
from hypothesis import given
from hypothesis import strategies as st
from live import serving
from scipy.stats import beta
from strokes import npy, stroke_images

from app.detection import store
from app.detection.conformal import Calibration
from app.detection.detector import Detections
from app.serving import schemas
from app.serving.engine.models import TrafficMonitor
from app.serving.telemetry.drift import DriftMonitor, largest_tail_probability
from app.serving.telemetry.metrics import Metrics

NPY = {"content-type": "application/x-npy"}


def after(p_values, *, n=10_000, level=100.0):
    """What a monitor says after these p-values."""
    monitor = DriftMonitor(distinct(n), level)
    monitor.observe(p_values)
    return monitor.state()


def distinct(n):
    """Scores of a calibration without ties."""
    return np.arange(n, dtype=float)


def conformal(random, n, count):
    """p-values of `count` normal scores against n calibration scores that were drawn once and stay."""
    calibration = Calibration.from_scores(random.random(n, np.float32))
    return calibration.p_values(random.random(count, np.float32))


def test_normal_traffic_is_called_drift_once_in_a_hundred_streams_at_most():
    """250 streams of 10,000 uniform p-values at level 100: at most 2 of them alarm, as Ville's inequality has it."""
    random = np.random.default_rng(0)
    assert sum(after(random.random(10_000)).drifting for _ in range(250)) <= 2


@pytest.mark.parametrize(("n", "streams", "length"), [(10_000, 25, 50_000), (500, 25, 50_000)])
def test_a_finite_calibration_is_not_called_drift(n, streams, length):
    """The sampling error of the calibration raises no alarm in a long stream, with many images or with few."""
    random = np.random.default_rng(n)
    assert sum(after(conformal(random, n, length), n=n).drifting for _ in range(streams)) <= streams // 100


@pytest.mark.parametrize("calm", [0, 20_000])
def test_five_percent_of_anomalies_are_noticed(calm):
    """Half of the monitors raise an alarm within 2,000 images of the change, at once and after a long normal period."""
    random = np.random.default_rng(calm)
    delays = []
    for _ in range(40):
        p_values = conformal(random, 10_000, calm + 5000)
        anomalous = random.random(len(p_values)) < 0.05
        anomalous[:calm] = False
        p_values[anomalous] = random.integers(1, 6, anomalous.sum()) / 10_001
        since = after(p_values).since
        delays.append(math.inf if since is None else since - calm)
    assert np.median(delays) < 2000


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(lambda u: u**2, id="more-anomalous"),
        pytest.param(lambda u: np.sqrt(u), id="less-anomalous"),
        pytest.param(lambda u: np.ones_like(u), id="always-the-same"),
        pytest.param(lambda u: np.full_like(u, 1 / 10_001), id="only-anomalies"),
    ],
)
def test_a_change_of_the_whole_traffic_is_noticed(changed):
    """Traffic that is more anomalous, less anomalous or always the same image raises an alarm."""
    state = after(changed(np.random.default_rng(1).random(20_000)))
    assert state.drifting
    assert state.since <= state.images


def test_an_alarm_stays():
    """An alarm stays until the monitor is reset, even if the traffic and the capital become normal again."""
    random = np.random.default_rng(2)
    monitor = DriftMonitor(distinct(10_000))
    monitor.observe(np.full(64, 1 / 10_001))
    alarm = monitor.state()
    monitor.observe(random.random(50_000))
    later = monitor.state()
    assert alarm.drifting
    assert later.drifting
    assert later.since == alarm.since
    assert later.highest >= max(alarm.highest, later.capital)
    assert later.capital < later.highest


@given(st.lists(st.integers(1, 900), max_size=12), st.integers(0, 2**32 - 1), st.floats(0.01, 1))
def test_how_the_p_values_arrive_in_pieces_does_not_matter(pieces, seed, strangeness):
    """One by one, in batches or all at once: the same state to the bit."""
    p_values = np.random.default_rng(seed).random(sum(pieces)) * strangeness
    whole, split = DriftMonitor(distinct(500)), DriftMonitor(distinct(500))
    whole.observe(p_values)
    for part in np.split(p_values, np.cumsum(pieces)[:-1]) if pieces else []:
        split.observe(part)
    assert split.state() == whole.state()


def test_bets_on_another_thread_lose_no_p_value():
    """p-values that are observed while another thread bets on earlier ones are bet on later: the same state to the bit."""
    p_values = np.random.default_rng(6).random(200_000) ** 1.1
    monitor, done = DriftMonitor(distinct(500)), threading.Event()

    def bet():
        while not done.is_set():
            monitor.update()

    better = threading.Thread(target=bet)
    better.start()
    for part in np.array_split(p_values, 5000):
        monitor.observe(part)
    done.set()
    better.join()
    assert monitor.state() == after(p_values, n=500)


def test_capital_begins_below_one_and_stays_finite():
    """The capital is 0.9 before any traffic, since the calibration takes a tenth, and finite after a million anomalies."""
    fresh = DriftMonitor(distinct(10_000)).state()
    assert (fresh.images, fresh.drifting, fresh.since) == (0, False, None)
    assert fresh.capital == pytest.approx(0.9)
    for p in (1 / 10_001, 1.0):
        state = after(np.full(1_000_000, p))
        assert math.isfinite(state.capital)
        assert math.isfinite(state.highest)
        assert state.capital > 0


def test_every_image_counts():
    """The number of images is that of the p-values, not of what has been bet on."""
    assert after(np.full(31, 0.5)).images == 31
    assert after(np.full(33, 0.5)).images == 33


@pytest.mark.parametrize("n", [1, 2, 19, 99, 199])
def test_a_tiny_calibration_is_never_called_drift_by_itself(n):
    """Where the calibration leaves everything possible, there may be nothing to bet on, but no false alarm either."""
    random = np.random.default_rng(n)
    assert not any(after(conformal(random, n, 5000), n=n).drifting for _ in range(50))


@given(st.integers(1, 5000), st.integers(1, 100_000), st.floats(1e-9, 0.1))
def test_the_bound_on_a_tail_shrinks_towards_its_nominal_probability(rank, n, error):
    """The bound is above the nominal probability, at most 1, and smaller where the same rank is one of ten times the images."""
    rank = min(rank, n)
    bound = largest_tail_probability(rank, n, error)
    assert rank / (n + 1) <= bound + 1e-9 <= 1 + 1e-9
    assert largest_tail_probability(rank, 10 * n, error) <= bound + 1e-9


@pytest.mark.parametrize("n", [3, 19, 200, 500, 20_000])
@pytest.mark.parametrize("error", [0.01, 1e-4, 1e-6])
def test_the_bound_on_a_tail_fails_with_at_most_the_given_probability(n, error):
    """By the exact Beta law of the true probability of a tail, for tails of one p-value up to most of them."""
    for rank in {1, max(n // 100, 1), max(n // 20, 1), max(n // 5, 1), n // 2, n}:
        assert beta.sf(largest_tail_probability(rank, n, error), rank, n + 1 - rank) <= error * (1 + 1e-9)


@pytest.mark.parametrize("level", [10.0, 100.0, 10_000.0, 1e6])
@pytest.mark.parametrize("n", [50, 199, 2000, 20_000])
def test_bounds_and_first_capital_spend_no_more_than_the_promise(n, level):
    """P(a bound fails) + first capital / level <= 1 / level, with the bounds read back from the bets of the monitor."""
    monitor = DriftMonitor(distinct(n), level)
    win, loss = np.exp(monitor._log_win[0, 1:]), np.exp(monitor._log_loss[0, 1:])
    bounds = (1 - loss) / (win - loss)  # where the bet is fair: q win + (1 - q) loss = 1
    grid = np.arange(1, n + 2) / (n + 1)
    failing = 0.0
    tails, sides = monitor._tails[1:], monitor._is_lower[1:]
    for tail, is_lower in {*zip(tails, sides, strict=True)}:
        rank = int((grid <= tail if is_lower else grid > 1 - tail).sum())
        if rank == 0:
            continue  # no p-value is that small
        of_tail = bounds[(tails == tail) & (sides == is_lower)]
        failing += beta.sf(of_tail.min(), rank, n + 1 - rank)
    assert 0 < failing + monitor.state().capital / level <= (1 + 1e-6) / level


def test_the_promise_counts_the_error_of_each_group_of_uploads():
    """Traffic of two kinds, one of them calibrated on 200 images: no alarm. Taken for p-values of the larger set: alarms."""
    random = np.random.default_rng(5)
    alarms = naive = 0
    for _ in range(50):
        p_values = np.concatenate([conformal(random, 20_000, 10_000), conformal(random, 200, 10_000)])
        sizes = np.repeat([20_000, 200], 10_000)
        order = random.permutation(len(sizes))
        monitor = DriftMonitor(distinct(20_000), 20.0, [distinct(200)])
        wrong = DriftMonitor(distinct(20_000), 20.0)
        monitor.observe(p_values[order], sizes[order])
        wrong.observe(p_values[order])
        alarms += monitor.state().drifting
        naive += wrong.state().drifting
    assert alarms <= 50 / 20
    assert naive > 50 / 10


def test_a_small_group_of_uploads_does_not_blind_the_monitor():
    """A change among images of the large calibration set is noticed as fast as without the small one."""
    p_values = conformal(np.random.default_rng(6), 20_000, 5000)
    p_values[::20] = 1 / 20_001
    with_group, without = DriftMonitor(distinct(20_000), uploads=[distinct(200)]), DriftMonitor(distinct(20_000))
    for monitor in (with_group, without):
        monitor.observe(p_values)
    assert without.state().since <= with_group.state().since < 2 * without.state().since


@pytest.mark.parametrize(("n", "count"), [(50, 50), (200, 50), (1000, 150)])
def test_the_promise_counts_the_error_of_a_small_calibration(n, count):
    """50 or 150 streams of 10,000 images at level 20, each with a calibration set of its own: at most 1 in 20 of them alarms.

    Bets that take the calibration for exact alarm in a quarter of the streams and more: the traffic does show its error.
    """
    random = np.random.default_rng(n)
    streams = [conformal(random, n, 10_000) for _ in range(count)]
    assert sum(after(p_values, n=n, level=20.0).drifting for p_values in streams) <= count / 20
    assert sum(after(p_values, n=10**6, level=20.0).drifting for p_values in streams) > count / 4


@pytest.mark.parametrize("share", [0.005, 0.03, 0.3])
def test_equal_scores_are_not_called_drift(share):
    """Blank fields of a form all have the lowest score: each of them has the p-value 1."""
    random = np.random.default_rng(7)
    alarms = naive = 0
    for _ in range(5):
        scores = random.random((2, 20_000))
        scores[random.random(scores.shape) < share] = 0
        calibration = Calibration.from_scores(scores[0].astype(np.float32))
        monitor, wrong = DriftMonitor(calibration.scores), DriftMonitor(distinct(20_000))
        for each in (monitor, wrong):
            each.observe(calibration.p_values(scores[1].astype(np.float32)))
        alarms += monitor.state().drifting
        naive += wrong.state().drifting
    assert alarms == 0
    assert naive == 5 or share == 0.005  # a tail of the lowest hundredth holds them all


def test_equal_scores_are_counted_among_uploads_too():
    """Mapped to equal scores, or equal themselves, uploads are no drift."""
    random = np.random.default_rng(8)
    tied = np.sort(np.where(random.random(20_000) < 0.05, 0, random.random(20_000)))
    for scores, uploads in ((tied, distinct(2000)), (distinct(20_000), tied[::10])):
        monitor = DriftMonitor(scores, uploads=[uploads])
        p_values = np.where(random.random(20_000) < 0.05, 1.0, random.random(20_000) * 0.95)
        monitor.observe(p_values, np.full(20_000, 2000))
        assert not monitor.state().drifting


def test_a_higher_level_is_reached_later():
    """The level is how sure one wants to be: a higher one is never reached before a lower one."""
    p_values = np.random.default_rng(3).random(20_000) ** 1.5
    reached = [after(p_values, level=level).since for level in (2, 10, 100, 1e6)]
    assert None not in reached
    assert reached == sorted(reached)


def test_an_array_in_order_is_no_drift(tiny_bundle):
    """Images that come together may be sorted by writers or by classes; bet on in that order they would be called drift."""
    p_values = np.sort(np.random.default_rng(4).random(5000))
    scores = np.zeros(5000, np.float32)
    monitor = TrafficMonitor(Metrics().for_model("mnist"), 100.0)
    monitor.set_model(tiny_bundle, "cpu")
    sizes, calibrated = np.full(5000, tiny_bundle.calibration.n), np.ones(5000, np.bool_)
    detections = Detections(scores, p_values, scores, np.zeros((5000, 2), np.float32), sizes, calibrated)
    monitor.record_batch(tiny_bundle, 5000, detections)
    state = asyncio.run(monitor.drift())
    assert (state.images, state.drifting) == (5000, False)
    assert after(p_values, n=tiny_bundle.calibration.n).drifting


def test_traffic_moves_the_servers_drift_and_a_new_version_resets_it(tmp_path):
    """Anomalies are noticed on /drift; a version taken up while the server runs begins at nothing."""
    root = tmp_path / "store"
    store.publish(make_bundle(0), root)
    noise = npy(np.random.RandomState(0).randint(0, 256, (2000, 28, 28)).astype(np.uint8))
    with (
        serving(tmp_path / "log", "--store", str(root), ODDIGIT_DRAIN_S="0") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        assert client.get("/drift").json()["images"] == 0
        client.post("/score", content=noise, headers=NPY).raise_for_status()
        found = schemas.Drift.model_validate(client.get("/drift").json())
        assert found.images == pytest.approx(2000, abs=32)
        assert found.drifting
        assert found.highest >= found.level
        assert found.model.version == 1
        store.publish(make_bundle(1), root)
        until = time.monotonic() + 20
        while (after_swap := client.get("/drift").json())["model"]["version"] == 1:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert after_swap["images"] == 0
        assert not after_swap["drifting"]
        client.post("/score", content=npy(stroke_images(64, seed=1)), headers=NPY).raise_for_status()
        assert client.get("/drift").json()["images"] == 64
