"""PredFormer: who sees whom in every layout, a unit by hand, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
from tests.objectives.masked import shake
from tests.objectives.pairs import normal
from torch.nn import functional as F

from osteon.backbones import build_backbone
from osteon.backbones.predformer import GatedUnit, SwiGLU, unit_order
from osteon.core.errors import UsageError
from osteon.parts.positions import sincos_1d

LAYOUTS = ("full", "ts", "st", "tst", "sts", "tsst", "stts", "factorised_ts", "factorised_st")


def make(**options):
    torch.manual_seed(0)
    network = build_backbone("predformer_tiny", channels=1, size=(3, 8, 8), **{"dim": 16, "heads": 2, **options})
    shake(network, 0.05)
    return network.eval()


def touched(unit: GatedUnit, frame: int, place: int) -> torch.Tensor:
    """(T, N) bool: which tokens change when one does."""
    x = normal(1, 3, 4, 16)
    other = x.clone()
    other[0, frame, place] += normal(16, seed=5)
    return ~torch.isclose(unit(x), unit(other), atol=1e-7).all(-1)[0]


def test_units_over_time_space_and_both():
    torch.manual_seed(0)
    time, space, both = (GatedUnit(over, 16, 2, 32, 0.0, 0.0) for over in "TSF")
    for unit in (time, space, both):
        shake(unit)
    want = torch.zeros(3, 4, dtype=torch.bool)
    want[:, 2] = True
    assert torch.equal(touched(time, 1, 2), want)  # other places stay
    assert torch.equal(touched(space, 1, 2), torch.tensor([[False] * 4, [True] * 4, [False] * 4]))
    assert touched(both, 1, 2).all()


def test_a_unit_by_hand():
    torch.manual_seed(0)
    unit = GatedUnit("F", 8, 2, 12, 0.0, 0.0)
    shake(unit)
    x = normal(2, 3, 4, 8)
    flat = x.view(2, 12, 8)
    a = unit.attn
    q, (k, v) = a.q(unit.norm1(flat)), a.kv(unit.norm1(flat)).chunk(2, -1)
    heads = [((q[..., i:i + 4] @ k[..., i:i + 4].transpose(1, 2)) / 2).softmax(-1) @ v[..., i:i + 4] for i in (0, 4)]
    y = flat + a.proj(torch.cat(heads, -1))
    z, m = unit.norm2(y), unit.mlp
    gate = m.gate(z)
    y = y + m.out(gate * torch.sigmoid(gate) * m.value(z))
    torch.testing.assert_close(unit(x), F.layer_norm(y, (8,), unit.norm3.weight, unit.norm3.bias).view(2, 3, 4, 8),
                               atol=1e-5, rtol=1e-5)
    assert SwiGLU(8, 12, 0.0).out.in_features == 12


def test_orders_of_units():
    assert unit_order("tsst", 2) == "TSSTTSST" and unit_order("full", 3) == "FFF" and unit_order("sts", 1) == "STS"
    assert unit_order("factorised_ts", 2) == "TTSS" and unit_order("factorised_st", 2) == "SSTT"
    assert "".join(u.over for u in make(layout="stts", depth=2).blocks) == "STTSSTTS"
    base = build_backbone("predformer_base", channels=1, size=(10, 64, 64))
    assert len(base.blocks) == 24 and base.dim == 256 and base.stride == 8 and base.blocks[0].attn.heads == 8
    with pytest.raises(UsageError, match="no layout 'tt'"):
        make(layout="tt")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_keeps_the_shape_and_sees_everything(layout):
    network, x = make(layout=layout), normal(2, 1, 3, 8, 8)
    seen = network(x)
    assert seen.grid == (3, 2, 2) and seen.tokens.shape == (2, 12, 16)
    torch.testing.assert_close(seen.pooled, seen.tokens.mean(1))
    other = x.clone()
    other[:, :, 0, 0, 0] += 1
    assert not torch.isclose(network(other).tokens, seen.tokens, atol=1e-7).all(-1).any()


def test_positions_are_added_once_and_count_all_tokens():
    network, x, inputs = make(), normal(2, 1, 3, 8, 8), []
    network.blocks[0].register_forward_hook(lambda _m, args, _out: inputs.append(args[0]))
    network(x)
    want = network.stem(x) + sincos_1d(torch.arange(12), 16).float()
    torch.testing.assert_close(inputs[0], want.view(2, 3, 4, 16))
    pixels = network.shown(x)
    assert pixels.shape == (2, 12, 16) and torch.equal(network.assemble(pixels, x), x)
    assert torch.equal(pixels[0, 5], x[0, 0, 1, :4, 4:].flatten())  # frame 1, first row, second column


def test_other_lengths_masks_collected_units_and_options():
    network, x = make(), normal(2, 1, 3, 8, 8)
    assert network(normal(2, 1, 5, 8, 8)).tokens.shape == (2, 20, 16)
    assert network(normal(2, 1, 3, 16, 16)).grid == (3, 4, 4)
    tokens = network.stem(x) + network.positions((3, 2, 2))
    out, (first, last) = network.trunk(tokens, collect=(0, -1))
    assert torch.equal(out, last) and torch.equal(out, network(x).tokens) and not torch.equal(first, last)
    mask = torch.zeros(2, 12, dtype=torch.bool)
    mask[:, 5] = True
    blank = x.clone()
    blank[:, :, 1, :4, 4:] = 9
    assert torch.equal(network(x, mask=mask).tokens, network(blank, mask=mask).tokens)
    again = build_backbone("predformer_tiny", channels=1, size=(3, 8, 8), **json.loads(json.dumps(network.options)))
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.eval()(x).pooled, network(x).pooled)


def test_weights_start_small_and_dropout_is_off_in_evaluation():
    torch.manual_seed(0)
    network = build_backbone("predformer_tiny", channels=1, size=(3, 8, 8), dropout=0.3)
    gate = network.blocks[0].mlp.gate
    assert 0.015 < gate.weight.std() < 0.022 and gate.weight.abs().max() <= 2 and (gate.bias == 0).all()
    x = normal(2, 1, 3, 8, 8)
    assert not torch.equal(network(x).tokens, network(x).tokens)
    network.eval()
    assert torch.equal(network(x).tokens, network(x).tokens)


def test_what_it_cannot_do_is_refused():
    network, x = make(), normal(2, 1, 3, 8, 8)
    with pytest.raises(UsageError, match="keep"):
        network(x, keep=torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(UsageError, match="attend"):
        network.trunk(network.stem(x), attend=torch.ones(12, 12, dtype=torch.bool))
    with pytest.raises(UsageError, match="whole frames of 4"):
        network.trunk(network.stem(x)[:, :5])
    with pytest.raises(UsageError, match="takes clips"):
        build_backbone("predformer_tiny", channels=1, size=32)
    with pytest.raises(UsageError, match="must divide"):
        make(heads=3)
