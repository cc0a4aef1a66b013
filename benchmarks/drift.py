"""The promise of the drift monitor on small calibration sets: `python benchmarks/drift.py`, one table.

Each stream has a calibration set of its own, drawn anew, and normal images scored against it. Listed is the share of streams
that raise an alarm: with the monitor as it is, and with one that takes the calibration for exact. The last column is the
median number of images until an alarm after 5 % of the images become anomalies.
"""

import argparse
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from app.detection.conformal import Calibration
from app.serving.telemetry import drift

DELAY_STREAMS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--images", type=int, default=20_000, help="in each stream")
    parser.add_argument("--calibration", type=int, nargs="+", default=[100, 500, 2_000, 20_000])
    parser.add_argument("--levels", type=float, nargs="+", default=[20, 100])
    arguments = parser.parse_args()
    print("| calibration images | level | promised | alarms | alarms if the calibration were exact | delay |")
    print("|---:|---:|---:|---:|---:|---:|")
    for n in arguments.calibration:
        for level in arguments.levels:
            random = np.random.default_rng(n)
            alarms = naive = 0
            for _ in range(arguments.streams):
                p_values = normal_p_values(random, n, arguments.images)
                alarms += first_alarm(p_values, n, level) is not None
                with mock.patch.object(drift, "_tail_bounds", nominal_tails):
                    naive += first_alarm(p_values, n, level) is not None
            share, naive_share = alarms / arguments.streams, naive / arguments.streams
            delay = median_delay(random, n, level, arguments.images)
            print(f"| {n:,} | {level:g} | {1 / level:.2%} | {share:.2%} | {naive_share:.1%} | {delay:,.0f} |", flush=True)


def normal_p_values(random: np.random.Generator, n: int, count: int) -> NDArray[np.float64]:
    """p-values of `count` normal images against n calibration scores that are drawn once."""
    calibration = Calibration.from_scores(random.random(n, np.float32))
    return calibration.p_values(random.random(count, np.float32))


def first_alarm(p_values: NDArray[np.float64], n: int, level: float) -> int | None:
    """The number of images at the alarm, None without one."""
    monitor = drift.DriftMonitor(np.arange(n, dtype=float), level)
    monitor.observe(p_values)
    return monitor.state().since


def nominal_tails(*_: object) -> dict[tuple[float, bool], float]:
    """In place of the upper confidence bounds of the tails' probabilities: those of an exact calibration."""
    return {tail: tail[0] for tail in drift._BOUNDED_TAILS}


def median_delay(random: np.random.Generator, n: int, level: float, count: int) -> float:
    """Median images until the alarm where 5 % of them get the smallest p-value; infinite where most streams have none."""
    delays = []
    for _ in range(DELAY_STREAMS):
        p_values = normal_p_values(random, n, count)
        p_values[random.random(count) < 0.05] = 1 / (n + 1)
        since = first_alarm(p_values, n, level)
        delays.append(np.inf if since is None else since)
    return float(np.median(delays))


if __name__ == "__main__":
    main()
