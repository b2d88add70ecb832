"""RandAugment's operations against torchvision's, its draws, and its bookkeeping."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from osteon.core.errors import UsageError
from osteon.parts.types import Draws, Step
from osteon.views import randaugment as ra

LEVEL = 0.7


def images(channels: int = 3) -> Tensor:
    return torch.rand(4, channels, 16, 20, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1


def draws(n: int, step: int = 0) -> Draws:
    return Draws(Step(step, 1), torch.arange(n), n)


def only(op: str, x: Tensor, magnitude: float = 10 * LEVEL) -> tuple[Tensor, Tensor]:
    """The operation on every sample at level +-0.7; returns images and levels."""
    settings = ra.Settings(1, magnitude, 0.0, 1.0, ops=(op,))
    y, params = ra.rand_augment(x, draws(len(x)), settings, fill=[0.5] * x.shape[1])
    assert (params["randaugment_op"] == ra.OPS.index(op)).all()
    return y, params["randaugment_level"][:, 0]


@pytest.mark.parametrize("op", [op for op in ra.OPS if op not in ra.GEOMETRIC])
def test_colour_operations_agree_with_torchvision(op: str) -> None:
    f = pytest.importorskip("torchvision.transforms.v2.functional")
    x = images()
    y, level = only(op, x)
    assert torch.allclose(level.abs(), torch.full((4,), LEVEL))
    for i in range(4):
        factor = 1 + 0.9 * float(level[i])
        want = {"identity": lambda a: a, "autocontrast": f.autocontrast, "equalize": f.equalize, "invert": f.invert,
                "posterize": lambda a: f.posterize(a, 2), "solarize": lambda a: f.solarize(a, 1 - LEVEL),
                "solarize_add": lambda a: torch.where(a < 128 / 255, (a + LEVEL * 110 / 255).clamp(0, 1), a),
                "color": lambda a, k=factor: f.adjust_saturation(a, k),
                "contrast": lambda a, k=factor: f.adjust_contrast(a, k),
                "brightness": lambda a, k=factor: f.adjust_brightness(a, k),
                "sharpness": lambda a, k=factor: f.adjust_sharpness(a, k)}[op](x[i])
        assert (y[i] - want).abs().max() * 255 < 0.05


def test_equalize_leaves_a_flat_channel_alone() -> None:
    x = torch.full((2, 1, 8, 8), 100 / 255)
    assert torch.allclose(ra.equalize(x), x, atol=1e-6) and torch.equal(ra.autocontrast(x), x)


@pytest.mark.parametrize("op", ra.GEOMETRIC)
def test_warps_agree_with_torchvision(op: str) -> None:
    f = pytest.importorskip("torchvision.transforms.v2.functional")
    x = images()
    y, level = only(op, x)
    # torchvision's affine takes the forward map; ours says where a pixel comes from, so angles and moves change sign.
    for i in range(4):
        v = float(level[i])
        if op.startswith("shear"):
            m = ra.matrices(torch.tensor([ra.OPS.index(op)]), level[i:i + 1], (16, 20))[0]
            assert m[0, 1] == (0.3 * level[i] if op == "shear_x" else 0)
            assert m[1, 0] == (0.3 * level[i] if op == "shear_y" else 0)
            continue
        angle = -30 * v if op == "rotate" else 0.0
        move = [-0.45 * 20 * v if op == "translate_x" else 0.0, -0.45 * 16 * v if op == "translate_y" else 0.0]
        want = f.affine(x[i] - 0.5, angle, move, 1.0, [0.0, 0.0], f.InterpolationMode.BILINEAR) + 0.5
        alternative = f.affine(x[i] - 0.5, -angle, move, 1.0, [0.0, 0.0], f.InterpolationMode.BILINEAR) + 0.5
        error = min(float((y[i] - w).abs().max()) for w in (want, alternative))
        assert error * 255 < 0.05
    assert (level > 0).any() and (level < 0).any()


def test_warp_by_hand() -> None:
    x = torch.arange(12.0).view(1, 1, 3, 4)
    shift = torch.tensor([[[1.0, 0, 1.5], [0, 1, 0]]])  # every pixel comes from one and a half to the right
    y = ra.warp(x, shift, fill=[-1.0])[0, 0]
    assert torch.allclose(y[0], torch.tensor([1.5, 2.5, 1.0, -1.0]))  # half of 3 and half of the fill
    shear = torch.tensor([[[1.0, 1, 0], [0, 1, 0]]])  # the row above the middle comes from one to the left
    assert torch.allclose(ra.warp(x, shear, fill=[-1.0])[0, 0],
                          torch.tensor([[-1.0, 0, 1, 2], [4, 5, 6, 7], [9, 10, 11, -1]]))
    quarter = torch.tensor([[[0.0, -1, 0], [1, 0, 0]]])
    square = torch.tensor([[[[1.0, 2], [3, 4]]]])
    assert torch.allclose(ra.warp(square, quarter, fill=[0.0])[0, 0], torch.tensor([[2.0, 4], [1, 3]]))


def test_draws_are_as_stated() -> None:
    n = 6000
    x = torch.full((n, 3, 3, 3), 0.5)
    _, p = ra.rand_augment(x, draws(n), ra.Settings(2, 7.0, 0.5, 0.5), fill=[0.5] * 3)
    op, level = p["randaugment_op"], p["randaugment_level"]
    # Half of the slots are skipped, a sixteenth of the rest are the identity as well.
    assert abs(float((op == 0).float().mean()) - (0.5 + 0.5 / 16)) < 0.02
    share = torch.bincount(op.flatten(), minlength=16)[1:] / (2 * n)
    assert (share - 1 / 32).abs().max() < 0.008
    assert abs(float(level.abs().mean()) - 0.7) < 0.005 and abs(float(level.abs().std()) - 0.05) < 0.005
    assert abs(float((level > 0).float().mean()) - 0.5) < 0.03
    assert not torch.equal(op[:, 0], op[:, 1])


def test_two_slots_are_done_in_order() -> None:
    x = images()
    before = x.clone()
    for count in (1, 2):
        settings = ra.Settings(count, 7.0, 0.0, 1.0, ops=("invert",))
        y = ra.rand_augment(x, draws(4), settings, fill=[0.5] * 3)[0]
        assert torch.equal(x, before)  # the input is left alone
        assert torch.allclose(y, x if count == 2 else 1 - x, atol=1e-6)


def test_what_is_allowed() -> None:
    assert ra.allowed_ops(3, True) == ra.OPS
    assert set(ra.OPS) - set(ra.allowed_ops(1, True)) == {"color"}
    assert ra.allowed_ops(3, False) == ("identity", *ra.GEOMETRIC)
    for bad in ({"ops": ("blurr",)}, {"count": 0}, {"magnitude": 11.0}, {"std": -1.0}, {"ops": ()}):
        with pytest.raises(UsageError):
            ra.Settings(**bad)
