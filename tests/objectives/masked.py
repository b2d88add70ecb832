"""What the tests of masked objectives share: the laws they obey on a tiny backbone."""

from __future__ import annotations

import torch
from tests.objectives.pairs import STEP, normal
from torch import Tensor, nn

from osteon.objectives._masked import Masked
from osteon.parts.targets import patchify, unpatchify
from osteon.parts.types import Draws


def shake(module: nn.Module, by: float = 0.1) -> None:
    """Move every parameter, so that none is at a value at which a fault hides."""
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.add_(by * normal(*p.shape, seed=i))


def seen(objective: Masked, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The view and the mask of a step, as ``encode`` draws them."""
    draws = Draws.of(batch, STEP)
    x = objective.views(batch["image"], draws)[0].x
    return x, objective.mask(objective.backbone.grid(*x.shape[-2:]), draws.fork("mask"))


def swap_patches(x: Tensor, where: Tensor, patch: int, seed: int = 7) -> Tensor:
    """Other pixels in the patches (B, N) that are True."""
    tokens = patchify(x, patch)
    other = torch.where(where[..., None], 5 * normal(*tokens.shape, seed=seed), tokens)
    return unpatchify(other, patch, (x.shape[2] // patch, x.shape[3] // patch))


def assert_loss_is_the_mean_over_hidden(objective: Masked, batch: dict[str, Tensor], power: int,
                                        standardised: bool) -> None:
    """``encode`` and ``score`` against a loop over hidden patches and values, in double precision."""
    x, mask = seen(objective, batch)
    encoded = objective.encode(batch, Draws.of(batch, STEP))
    prediction, _ = objective.predict(x, mask)
    p, total = objective.patch, []
    for b in range(len(x)):
        errors = []
        for n in mask[b].nonzero()[:, 0].tolist():
            row, col = divmod(n, x.shape[3] // p)
            cut = x[b, :, row * p:(row + 1) * p, col * p:(col + 1) * p].permute(1, 2, 0).reshape(-1).double()
            if standardised:
                cut = (cut - cut.mean()) / (cut.var(unbiased=True) + 1e-6).sqrt()
            errors.append(((prediction[b, n].double() - cut).abs() ** power).mean())
        total.append(torch.stack(errors).mean())
    torch.testing.assert_close(encoded["loss"], torch.stack(total).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(objective.score(encoded, STEP).total, torch.stack(total).mean().float(), rtol=1e-4,
                               atol=1e-5)


def assert_visible_targets_do_not_count(objective: Masked, batch: dict[str, Tensor]) -> None:
    """The gradient of the loss is zero for predictions at visible patches and not for those at hidden ones."""
    x, mask = seen(objective, batch)
    prediction = normal(*objective.target(x).shape).requires_grad_()
    objective.predict = lambda _x, _mask: (prediction, x.flatten(1))  # type: ignore[method-assign]
    objective.score(objective.encode(batch, Draws.of(batch, STEP)), STEP).total.backward()
    assert (prediction.grad[~mask] == 0).all() and (prediction.grad[mask] != 0).all()


def assert_pictures_keep_the_visible(objective: Masked, batch: dict[str, Tensor]) -> None:
    """The report's pictures: the input; hidden patches at zero; hidden patches from the prediction alone."""
    x, mask = seen(objective, batch)
    shown, corrupted, output = (patchify(t, objective.patch) for t in objective.reconstruct(batch, STEP))
    assert torch.equal(shown, patchify(x, objective.patch))
    assert torch.equal(corrupted[~mask], shown[~mask]) and (corrupted[mask] == 0).all()
    assert torch.equal(output[~mask], shown[~mask]) and not torch.isclose(output[mask], shown[mask]).all(-1).any()
