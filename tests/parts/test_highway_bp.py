"""Highway-BP: paths by hand, exact after as many iterations as layers, and a loop that says its error."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import build_backbone
from osteon.core import registry
from osteon.core.errors import UsageError
from osteon.data import open_source
from osteon.parts.flops import count_step
from osteon.parts.highway_bp import HighwayBP, Layer, layer_of, on_highway
from osteon.parts.types import Step
from osteon.train.loop import Engine, make_fabric
from osteon.train.settings import resolve_settings

DIGITS = open_source("digits", cache=False).subset(np.arange(32))


class Residual(nn.Module):
    """``x + W2 tanh(W1 x)``, by choice rectified after the sum."""

    def __init__(self, dim: int, relu: bool = False) -> None:
        super().__init__()
        self.one, self.two, self.relu = nn.Linear(dim, dim), nn.Linear(dim, dim), relu

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.two(torch.tanh(self.one(x)))
        return F.relu(y) if self.relu else y


def stack(depth: int = 6, relu: bool = False) -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(Residual(5, relu) for _ in range(depth))


def gradients(layers: nn.ModuleList, run) -> list[Tensor]:
    layers.zero_grad()
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(2)).requires_grad_()
    run(x).square().sum().backward()
    return [x.grad, *(p.grad.clone() for p in layers.parameters())]


def plainly(layers: nn.ModuleList) -> list[Tensor]:
    return gradients(layers, nn.Sequential(*layers))


def off(found: list[Tensor], true: list[Tensor]) -> float:
    return float(torch.cat([(a - b).flatten() for a, b in zip(found, true, strict=True)]).norm()
                 / torch.cat([b.flatten() for b in true]).norm())


@pytest.mark.parametrize("shift", [0.0, 0.2, 0.8])
@pytest.mark.parametrize("relu", [False, True])
def test_exact_after_as_many_iterations_as_layers(shift, relu):
    layers, skip = stack(relu=relu), "relu" if relu else "identity"
    made, true = [layer_of(b) for b in layers], plainly(layers)
    errors = [off(gradients(layers, lambda x, k=k: HighwayBP(k, shift=shift, skip=skip)(made, x)), true)
              for k in range(7)]
    assert errors[6] < 1e-6 and HighwayBP(9, shift=shift)(made, torch.zeros(1, 5)).shape == (1, 5)
    assert all(b < a for a, b in itertools.pairwise(errors)) or shift == 0.8  # a far split needs not fall at once
    assert errors[0] > 0.05 and errors[4] < 0.3


def test_paths_by_hand():
    """Scalar layers h -> h + a h: w0 counts paths by how many branches they cross, a polynomial in a."""
    a = 0.5
    gains = [nn.Parameter(torch.tensor([a])) for _ in range(3)]
    layers = [Layer(lambda h, p=p: h + p * h, (p,)) for p in gains]
    for k, expected in ((0, 1.0), (1, 1 + 3 * a), (2, 1 + 3 * a + 3 * a**2), (3, (1 + a) ** 3)):
        x = torch.ones(1, requires_grad=True)
        HighwayBP(k, shift=0.0)(layers, x).backward()
        assert x.grad.item() == pytest.approx(expected)
    # the last layer's parameter always has its exact gradient, h = 1.5^2; the first one's, at k = 0, that of a shortcut
    for p in gains:
        p.grad = None
    HighwayBP(0, shift=0.0)(layers, torch.ones(1)).backward()
    assert [p.grad.item() for p in gains] == pytest.approx([1.0, 1.5, 2.25])


def test_a_shifted_split_without_iterations_carries_less():
    layers, x = [layer_of(b) for b in stack(3)], torch.ones(1, 5, requires_grad=True)
    HighwayBP(0, shift=0.2)(layers, x).sum().backward()
    assert x.grad.tolist() == [pytest.approx([0.8**3] * 5)]


def test_a_rectified_shortcut_carries_nothing_where_it_is_shut():
    layers, x = stack(2, relu=True), torch.randn(1, 5, generator=torch.Generator().manual_seed(3)).requires_grad_()
    HighwayBP(0, shift=0.0, skip="relu")([layer_of(b) for b in layers], x).sum().backward()
    first = layers[0](x)
    open_ = ((first > 0) & (layers[1](first) > 0)).float()
    assert torch.equal(x.grad, open_) and 0 < float(open_.sum()) < 5


def test_the_forward_pass_is_the_plain_one_and_only_blocks_are_backpropagated():
    layers, x = stack(), torch.randn(2, 5)
    assert torch.equal(HighwayBP(2)([layer_of(b) for b in layers], x), nn.Sequential(*layers)(x))


def test_layers_that_share_a_parameter_add_their_gradients():
    one = stack(1)
    made = [layer_of(one[0])] * 3
    true = gradients(one, lambda x: one[0](one[0](one[0](x))))
    assert off(gradients(one, lambda x: HighwayBP(3, shift=0.0)(made, x)), true) < 1e-6


def test_the_measured_error_is_the_true_one():
    layers = stack()
    highway = HighwayBP(2, shift=0.2)
    highway.measure = True
    found = gradients(layers, lambda x: highway([layer_of(b) for b in layers], x))
    assert highway.errors == [pytest.approx(off(found, plainly(layers)), rel=1e-4)]


def test_bad_settings_and_layers_are_refused():
    for bad, words in (({"iterations": -1}, "0 iterations or more"), ({"iterations": 1, "shift": 1.0}, r"\[0, 1\)"),
                       ({"iterations": 1, "skip": "conv"}, "identity or relu")):
        with pytest.raises(UsageError, match=words):
            HighwayBP(**bad)
    with pytest.raises(UsageError, match="shortcut cannot be"):
        HighwayBP(1)([layer_of(nn.Linear(5, 4))], torch.zeros(1, 5))


# -- in osteon's ViT and loop ------------------------------------------------------------------------------------------


def make(objective: str = "mae", backbone: str = "vit_tiny", **options):
    torch.manual_seed(0)
    small = {"dim": 16, "depth": 3, "patch": 2} if backbone == "vit_tiny" else {}
    return registry.build("objective", objective, build_backbone(backbone, channels=1, size=8, **{**small, **options}),
                          DIGITS.spec)


def engine(method, **wishes) -> Engine:
    asked = {"steps": 6, "batch_size": 16, "precision": "32", **wishes}
    return Engine(method.train(), resolve_settings(asked, method.recipe, 32, kind=method.backbone.kind)[0],
                  make_fabric("32"))


@pytest.mark.parametrize(("options", "wishes"), [
    ({}, {}), ({"pool": "cls", "registers": 1, "layer_scale": 0.1}, {"accumulate": 2}),
    ({"trunk": "mamba"}, {}), ({"drop_path": 0.5, "drop_mode": "batch"}, {}), ({"drop_path": 0.3}, {})])
def test_the_loop_gives_the_exact_gradient_at_enough_iterations(options, wishes):
    batch, grads = DIGITS.batch(np.arange(16)), []
    for highway in (0, 6):
        work = engine(make(**options), highway=highway, **wishes)
        work.gradients(batch, Step(2, 6))
        grads.append({n: p.grad for n, p in work.named})
    for name, true in grads[0].items():
        assert (true is None) == (grads[1][name] is None), name
        if true is not None:
            torch.testing.assert_close(grads[1][name], true, rtol=1e-3, atol=1e-6)


def test_few_iterations_are_told_by_their_error_and_train_otherwise():
    batch, method = DIGITS.batch(np.arange(16)), make()
    work = engine(method, highway=1, log_every=2)
    told = [work.run(batch, Step(i, 6))[0].parts.get("highway_error") for i in range(4)]
    assert told[1] is None and told[3] is None and 1e-4 < float(told[0]) < 1 and float(told[2]) > 1e-4
    assert method.backbone.highway is None  # outside the step the network is what it was
    found = engine(make(), highway=6, log_every=1).run(batch, Step(0, 6))[0].parts["highway_error"]
    assert float(found) < 1e-5


def test_more_operations_are_counted():
    batch = DIGITS.batch(np.arange(16))
    costs = [count_step(engine(make(), highway=k), batch, Step(1, 6)) for k in (0, 1, 3)]
    assert costs[0].forward == costs[1].forward and costs[0].backward < costs[1].backward < costs[2].backward


def test_what_has_no_plain_shortcuts_is_refused():
    with pytest.raises(UsageError, match="shortcuts keep their shape"):
        engine(make("simclr", "resnet_tiny"), highway=2)
    with pytest.raises(UsageError, match="highway must be at least 0"):
        engine(make(), highway=-1)
    network = make().backbone
    with on_highway(network, HighwayBP(1)), pytest.raises(UsageError, match="single blocks"):
        network.trunk(torch.zeros(1, 4, 16), collect=[0])
    with on_highway(network, HighwayBP(1)), torch.no_grad():
        assert len(network.trunk(torch.zeros(1, 4, 16), collect=[0])) == 2


def test_the_card_says_that_it_is_slower():
    card = registry.find("training", "highway_bp")
    assert card.rows == (241,) and "slower" in card.differs and card.switch == "--set highway=4"
