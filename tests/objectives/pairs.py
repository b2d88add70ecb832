"""What the tests of joint-embedding objectives share: tiny networks, batches, and the laws all of them obey."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from osteon.backbones import Backbone, build_backbone
from osteon.parts.objective import Objective
from osteon.parts.types import DataSpec, Draws, Step

STEP = Step(0, 10, seed=3)


def spec(channels: int = 1, size: int = 8) -> DataSpec:
    return DataSpec("image", channels, size, (0.5,) * channels, (0.25,) * channels)


def vit(channels: int = 1, size: int = 8) -> Backbone:
    torch.manual_seed(0)
    return build_backbone("vit_tiny", channels=channels, size=size, dim=16, depth=1, heads=2)


def resnet(channels: int = 3, size: int = 32) -> Backbone:
    torch.manual_seed(0)
    return build_backbone("resnet_tiny", channels=channels, size=size)


def images(n: int = 8, channels: int = 1, size: int = 8, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"image": torch.randint(0, 256, (n, channels, size, size), generator=g, dtype=torch.uint8)}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draws_of(batch: dict[str, Tensor], rows: Sequence[int], step: Step = STEP) -> Draws:
    """Draws of a process that holds only some rows of the global batch."""
    return Draws(step, torch.tensor(rows), len(batch["image"]), source=lambda key, at: batch[key][at])


def encode_in_parts(objective: Objective, batch: dict[str, Tensor], parts: Sequence[Sequence[int]],
                    step: Step = STEP) -> dict[str, Tensor]:
    """Encode rows group by group, as ranks or micro-batches do, and concatenate."""
    encoded = [objective.encode({k: v[list(rows)] for k, v in batch.items()}, draws_of(batch, rows, step))
               for rows in parts]
    return {key: torch.cat([e[key] for e in encoded]) for key in encoded[0]}


def gradients(objective: Objective, encoded: dict[str, Tensor], step: Step = STEP) -> dict[str, Tensor]:
    objective.zero_grad()
    objective.score(encoded, step).total.backward()
    return {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}


def assert_parts_equal_whole(objective: Objective, batch: dict[str, Tensor]) -> None:
    """Encodings and gradients of rows [0:4] and [4:8] computed apart are those of all 8 rows together."""
    rows = list(range(8))
    whole = objective.encode(batch, draws_of(batch, rows))
    apart = encode_in_parts(objective, batch, [rows[:4], rows[4:]])
    assert whole.keys() == apart.keys()
    for key in whole:
        torch.testing.assert_close(apart[key], whole[key], rtol=1e-4, atol=1e-5)
    expected, got = gradients(objective, whole), gradients(objective, apart)
    assert expected.keys() == got.keys() and expected
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-3, atol=1e-4)


def assert_gradients_reach(objective: Objective, batch: dict[str, Tensor]) -> None:
    """Every trainable parameter gets a gradient that is finite and not zero; companions get none."""
    objective.train()
    objective.zero_grad()
    loss = objective(batch, STEP)
    assert torch.isfinite(loss.total)
    assert all(not part.requires_grad for part in loss.parts.values())
    loss.total.backward()
    for name, p in objective.named_parameters():
        if p.requires_grad:
            assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().max() > 0, name
    for companion in objective.companions():
        assert all(p.grad is None and not p.requires_grad for p in companion.parameters())


def assert_slope(f: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-2) -> None:
    """The gradient at x agrees with finite differences along random directions: nothing on the way is cut."""
    x = x.detach().clone().requires_grad_()
    (grad,) = torch.autograd.grad(f(x), x)
    for seed in range(3):
        d = normal(*x.shape, seed=100 + seed)
        d = d / d.norm()
        with torch.no_grad():
            slope = (f(x + step * d) - f(x - step * d)) / (2 * step)
        torch.testing.assert_close((grad * d).sum(), slope, rtol=2e-2, atol=2e-3 * float(grad.norm()) + 1e-5)


def assert_views_apart(objective: Objective, batch: dict[str, Tensor]) -> None:
    """Each view passes backbone and projector on its own, with its own batch statistics, in the order of the views."""
    objective.train()
    z = objective.encode(batch, Draws.of(batch, STEP))["z"]
    views = objective.views(batch["image"], Draws.of(batch, STEP))
    assert not torch.equal(views[0].x, views[1].x)
    for i, view in enumerate(views):
        torch.testing.assert_close(z[:, i], objective.projector(objective.backbone(view.x).pooled), msg=f"view {i}")


def assert_companion_follows(objective: Objective, momentum: float, step: Step) -> None:
    """After a step every companion parameter is ``momentum * itself + (1 - momentum) * student``; scores move none."""
    (companion,) = objective.companions()
    mine = list(companion["backbone"].parameters()) + list(companion["projector"].parameters())
    student = list(objective.backbone.parameters()) + list(objective.projector.parameters())
    assert len(mine) == len(student) == len(list(companion.parameters()))
    with torch.no_grad():
        for i, p in enumerate(student):
            p.add_(normal(*p.shape, seed=i))
    before = [p.clone() for p in mine]
    objective(images(), step)
    assert all(torch.equal(p, q) for p, q in zip(mine, before, strict=True))
    objective.after_step(step)
    for p, q, s in zip(mine, before, student, strict=True):
        torch.testing.assert_close(p, momentum * q + (1 - momentum) * s)
