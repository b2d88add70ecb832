from __future__ import annotations

import pytest
import torch
from torch import nn

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.evaluators.signal_propagation import block_names, signal_propagation


class Add(nn.Module):
    def __init__(self, shift: float, gain: float) -> None:
        super().__init__()
        self.shift, self.gain = shift, gain

    def forward(self, x):
        return x + self.gain * x.flip(1) + self.shift


class Net(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def test_values_by_hand() -> None:
    """Two channels, independent with variance 1 and mean 0: x + 2 flip(x) + 3 has variance 5 and mean 3."""
    x = torch.randn(4000, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    first, second = signal_propagation(Net(Add(3, 2), nn.Conv2d(2, 5, 3)), x)
    assert first.name == "blocks.0" and second.name == "blocks.1"
    assert first.squared_mean == pytest.approx(9, rel=0.02) and first.variance == pytest.approx(5, rel=0.02)
    assert first.branch == pytest.approx(4, rel=0.02) and second.branch is None
    apart = signal_propagation(Net(Add(torch.tensor([3.0, -3.0])[:, None, None], 0)), x)[0]
    assert apart.squared_mean == pytest.approx(9, rel=0.02)  # of each channel's mean, though all together have mean 0
    tokens = x.flatten(2).transpose(1, 2)

    class Last(Add):
        def forward(self, x):
            return x + self.gain * x.flip(2) + self.shift

    again = signal_propagation(Net(Last(3, 2)), tokens)[0]
    assert again.squared_mean == pytest.approx(first.squared_mean) and again.variance == pytest.approx(first.variance)


def test_variance_grows_by_the_branches_variance() -> None:
    """h' = h + a f(h / sqrt(var h)) with independent branches: variance 1 + a^2 l."""
    class Block(nn.Module):
        def __init__(self, index: int) -> None:
            super().__init__()
            g = torch.Generator().manual_seed(index)
            self.turn = torch.linalg.qr(torch.randn(512, 512, generator=g)).Q
            self.scale = (1 + 0.25 * index) ** -0.5

        def forward(self, x):
            return x + 0.5 * self.scale * x @ self.turn

    x = torch.randn(1000, 512, generator=torch.Generator().manual_seed(9))
    found = signal_propagation(Net(*[Block(i) for i in range(4)]), x)
    for i, row in enumerate(found, 1):
        assert row.variance == pytest.approx(1 + 0.25 * i, rel=0.1) and row.branch == pytest.approx(0.25, rel=0.1)


@pytest.mark.parametrize(("name", "wanted"), [("vit_tiny", [f"blocks.{i}" for i in range(5)]),
                                              ("resnet_tiny", [f"layer{s}.{i}" for s in (1, 2, 3) for i in (0, 1)])])
def test_blocks_of_our_networks(name: str, wanted: list[str]) -> None:
    assert block_names(build_backbone(name, channels=3, size=16)) == wanted


def test_blocks_of_other_networks() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.ModuleList([Net(nn.Identity(), nn.Identity()), Net(nn.Identity())])

    assert block_names(Nested()) == ["stages.0.blocks.0", "stages.0.blocks.1", "stages.1.blocks.0"]
    with pytest.raises(UsageError, match="No blocks"):
        block_names(nn.Sequential(nn.Linear(2, 2)))
