"""The pooling grids in their two forms."""

import pytest
import torch
import torch.nn.functional as F

from models.decoders.upernet import POOLED_SIZES, GridPool


@pytest.mark.parametrize("size", POOLED_SIZES)
def test_a_grid_in_an_exported_graph_has_the_same_means(size, monkeypatch):
    features = torch.rand(2, 5, 7, 11)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(GridPool(size)(features), F.adaptive_avg_pool2d(features, size))
