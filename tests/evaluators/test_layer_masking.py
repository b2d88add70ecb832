from __future__ import annotations

import pytest
import torch

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.evaluators.layer_masking import (
    attribution,
    fill_from_neighbours,
    masked_features,
    token_attribution,
    token_cells,
)


@pytest.fixture(scope="module", params=["resnet_tiny", "bottleneck", "imagenet"])
def network(request):
    torch.manual_seed(0)
    options = {"resnet_tiny": {}, "bottleneck": {"block": "bottleneck", "widths": (8, 16, 32)},
               "imagenet": {"stem": "imagenet", "stride": 8}}[request.param]
    made = build_backbone("resnet_tiny", channels=2, size=32, **options)
    for _ in range(3):  # statistics of their own
        made.train()(torch.randn(8, 2, 32, 32))
    return made.eval()


def window(top: int, left: int, size: int, b: int = 3) -> torch.Tensor:
    visible = torch.ones(b, 32, 32, dtype=torch.bool)
    visible[:, top:top + size, left:left + size] = False
    return visible


@torch.no_grad()
def test_what_is_hidden_does_not_matter(network) -> None:
    x, visible = torch.randn(3, 2, 32, 32), window(5, 9, 14)
    one = masked_features(network, x, visible)
    for fill in (torch.zeros(()), torch.tensor(1e6), torch.tensor(float("nan"))):
        assert torch.equal(one, masked_features(network, torch.where(visible[:, None], x, fill), visible))
    shown = x.clone()
    shown[:, :, 0, 0] += 3
    assert not torch.allclose(one, masked_features(network, shown, visible))


@torch.no_grad()
def test_everything_visible_is_the_plain_network(network) -> None:
    x = torch.randn(3, 2, 32, 32)
    assert torch.allclose(masked_features(network, x, window(0, 0, 0)), network(x).pooled, atol=1e-5)


@torch.no_grad()
def test_a_constant_image_is_hardly_changed(network) -> None:
    """Filling from neighbours continues a flat image exactly, so a hole in its middle is nearly nothing."""
    x = torch.ones(1, 2, 32, 32)
    whole = network(x).pooled
    hole = window(12, 12, 8, 1)
    filled = (masked_features(network, x, hole) - whole).norm()
    zeros = (network(x * hole[:, None]).pooled - whole).norm()
    assert filled < 0.5 * zeros


def test_filling_by_hand() -> None:
    x = torch.tensor([[1.0, 0, 0, 0, 0], [3, 0, 0, 0, 0]])[None, None]
    known = torch.tensor([[1.0, 0, 0, 0, 0], [1, 0, 0, 0, 0]])[None, None]
    once, reach = fill_from_neighbours(x, known, 1)
    assert torch.allclose(once[0, 0], torch.tensor([[1.0, 2, 0, 0, 0], [3, 2, 0, 0, 0]]), atol=1e-4)
    assert reach[0, 0, 0].tolist() == [1, 1, 0, 0, 0]
    twice, reach = fill_from_neighbours(x, known, 2)
    assert torch.allclose(twice[0, 0, :, 2], torch.tensor([2.0, 2.0]), atol=1e-4)
    assert reach[0, 0, 0].tolist() == [1, 1, 1, 0, 0]
    same, _ = fill_from_neighbours(x, torch.ones_like(known), 3)
    assert torch.equal(same, x)


def test_attribution_finds_the_region_that_counts() -> None:
    def score(x, visible):
        return (x[:, 0] * visible)[:, 8:16, 16:24].sum((1, 2))

    x = torch.rand(2, 1, 32, 32) + 0.5
    found = attribution(score, x, 4)
    assert found.shape == (2, 4, 4)
    assert torch.allclose(found[:, 1, 2], score(x, torch.ones(2, 32, 32, dtype=torch.bool)), rtol=1e-5)
    found[:, 1, 2] = 0
    assert found.abs().max() < 1e-4
    assert attribution(score, x[..., :30, :30], 7).shape == (2, 7, 7)


def test_what_cannot_be() -> None:
    vit = build_backbone("vit_tiny", channels=1, size=8)
    with pytest.raises(UsageError, match="ResNet only"):
        masked_features(vit, torch.zeros(1, 1, 8, 8), torch.ones(1, 8, 8, dtype=torch.bool))
    resnet = build_backbone("resnet_tiny", channels=1, size=8)
    for bad in (torch.zeros(1, 8, 8, dtype=torch.bool), torch.ones(1, 4, 4, dtype=torch.bool)):
        with pytest.raises(UsageError, match="visible"):
            masked_features(resnet, torch.zeros(1, 1, 8, 8), bad)


def test_cells_of_tokens_by_hand():
    assert token_cells((6, 4)).tolist() == [4 * (r * 4 // 6) + c for r in range(6) for c in range(4)]
    assert token_cells((3,)).tolist() == [0, 1, 2]
    assert token_cells((32,)).tolist() == [i // 2 for i in range(32)]
    clip = token_cells((2, 6, 3))
    assert clip.tolist() == [9 * t + 3 * (r // 2) + c for t in range(2) for r in range(6) for c in range(3)]


def test_a_cell_matters_as_much_as_the_likeness_falls_without_it():
    weight = torch.tensor([[0.5, 0.1, 0.25, 0.15], [0.0, 0.0, 0.0, 1.0]])
    cell = torch.tensor([0, 1, 1, 2])

    def likeness(stay):
        return weight.gather(1, stay).sum(1)

    lost = token_attribution(likeness, cell, 2)
    assert torch.allclose(lost, torch.tensor([[0.5, 0.35, 0.15], [0.0, 0.0, 1.0]]))
