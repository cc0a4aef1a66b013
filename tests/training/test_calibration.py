"""Calibration of a trained network."""

import pytest

from app.training.calibration import false_alarm_interval


def test_interval_of_the_false_alarm_rate():
    """The Beta law: 10,000 calibration images leave the rate at 1 % uncertain by about a sixth, 99 by much more."""
    low, high = false_alarm_interval(10_000, 0.01)
    assert (low, high) == pytest.approx((0.0084, 0.0117), abs=1e-4)
    assert false_alarm_interval(99, 0.01)[1] > 0.02


def test_interval_of_a_group_of_uploads():
    """It covers thresholds that lie one calibration score higher, down to none that can be exceeded."""
    low, high = false_alarm_interval(300, 0.01, mapped=True)
    assert (low, high) == pytest.approx((false_alarm_interval(300, 0.0067)[0], false_alarm_interval(300, 0.01)[1]))
    assert false_alarm_interval(99, 0.01, mapped=True)[0] == 0
