from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.selectors.early import pool
from tests.selectors.test_el2n import LABELS, SURE
from torch import nn
from torch.nn import functional as F

from osteon.backbones import build_backbone
from osteon.selectors.el2n import error_norm
from osteon.selectors.grand import GraNd, _rank_correlation, gradient_norm


class Net(nn.Module):
    def __init__(self, name: str, **options) -> None:
        super().__init__()
        self.backbone = build_backbone(name, **{"channels": 1, "size": 8, **options})
        self.head = nn.Linear(self.backbone.dim, 3)

    def forward(self, x):
        return self.head(self.backbone(x).pooled)


@pytest.mark.parametrize("name", ["vit_tiny", "resnet_tiny"])
def test_gradient_norm_is_that_of_one_sample_at_a_time(name: str) -> None:
    torch.manual_seed(0)
    network = Net(name).eval()
    x, y = torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    wanted = []
    for i in range(5):
        network.zero_grad()
        F.cross_entropy(network(x[i:i + 1]), y[i:i + 1]).backward()
        wanted.append(sum(float(p.grad.double().square().sum()) for p in network.parameters()) ** 0.5)
    network.zero_grad()
    assert torch.allclose(gradient_norm(network, x, y, chunk=2), torch.tensor(wanted).double(), rtol=1e-4)
    assert all(p.grad is None for p in network.parameters())


def test_padding_of_one_text_is_none_of_anothers() -> None:
    torch.manual_seed(0)
    network = Net("vit_tiny", channels=1, size=(6,), vocabulary=9).eval()
    x = torch.randint(3, 9, (3, 1, 6)).float()
    x[0, 0, 2:] = 0
    y = torch.tensor([0, 1, 2])
    short = gradient_norm(network, x[:1, :, :2], y[:1])
    assert torch.allclose(gradient_norm(network, x, y)[:1], short, rtol=1e-4)


def test_without_bias_the_last_layer_gives_error_times_feature_length() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 4, bias=False))
    x, y = torch.randn(6, 1, 4, 4), torch.arange(6) % 4
    wanted = error_norm(network(x), y) * x.flatten(1).norm(dim=1)
    assert torch.allclose(gradient_norm(network, x, y), wanted.double(), rtol=1e-5)


def test_the_mean_over_runs_orders_the_samples() -> None:
    asked: list[tuple[int, float]] = []
    chosen = GraNd(runs=2, epochs=1)(pool([SURE, SURE], LABELS, asked), 3, seed=1)
    assert chosen.rows.tolist() == [4, 3, 1] and asked == [(2, 1), (3, 1)]
    # a table's gradient is the error itself
    assert np.allclose(chosen.scores, error_norm(SURE, torch.tensor(LABELS))[[4, 3, 1]], atol=1e-5)
    assert any("rank correlation" in n and "+0.90" in n for n in chosen.notes)  # ranks 0..4 against 0 2 1 3 4


def test_scoring_at_initialisation_is_warned_of() -> None:
    assert "did not reproduce" in GraNd(runs=1, epochs=0)(pool([SURE], LABELS, []), 2).notes[0]
    assert not any("WARNING" in n for n in GraNd(runs=1, epochs=1)(pool([SURE], LABELS, []), 2).notes)


def test_rank_correlation() -> None:
    a = np.array([3.0, 1, 2])
    assert _rank_correlation(a, np.exp(a)) == pytest.approx(1) and _rank_correlation(a, -a) == pytest.approx(-1)
    assert _rank_correlation(a, np.ones(3)) == 0
