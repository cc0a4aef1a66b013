"""The scorer of unprepared images, fitted to unusual sets."""

import pytest
import torch

from app.training.config import TrainingError
from app.training.scorer_fitting import _blend, _fit_regions


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_equal_images_leave_no_region_without_images(share):
    """A set of which half is the same blank field can be fitted: no region has the weight 0 for all images."""
    g = torch.Generator().manual_seed(0)
    embeddings = torch.randn(6000, 2, generator=g)
    embeddings[: int(share * len(embeddings))] = 1
    regions = _fit_regions(embeddings, g)
    _, shares = _blend((embeddings - regions["location"]) / regions["scale"], regions["centres"], regions["widths"])
    assert shares.isfinite().all()


@pytest.mark.parametrize("images", [1, 2, 400])
def test_a_network_that_gives_all_images_one_embedding_is_refused(images):
    """A large learning rate can lead there; the sentence says what to change."""
    with pytest.raises(TrainingError, match="learning-rate"):
        _fit_regions(torch.ones(images, 2), torch.Generator().manual_seed(0))
