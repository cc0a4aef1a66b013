import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from app.detection.imaging.order_statistics import median, percentiles

VALUES = arrays(np.float32, st.integers(1, 60), elements=st.floats(-100, 100, width=32))


@given(VALUES)
def test_the_median_is_numpys(values):
    """To the bit, also for several dimensions."""
    assert median(values) == median(values[None]) == float(np.median(values))


@given(VALUES, st.lists(st.integers(0, 100), min_size=1, max_size=3))
def test_percentiles_are_numpys(values, percents):
    """Each as if it had been asked for alone."""
    assert percentiles(values, *percents) == pytest.approx([float(np.percentile(values, each)) for each in percents], rel=1e-6)
