"""SSAST: matching by hand, masks of squares, and that visible patches and other clips play no part."""

from __future__ import annotations

import math

import pytest
import torch
from tests.objectives.masked import shake
from torch.nn import functional as F

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.objectives.ssast import SSAST, match_loss
from osteon.parts.types import DataSpec, Draws, Step
from osteon.views.masks import cluster_mask

SPEC = DataSpec("sound", 1, 48, (1.0,), (2.0,), 1.0, shape=(32, 48))
STEP = Step(3, 10, 7)


def small(**options) -> SSAST:
    torch.manual_seed(1)
    network = build_backbone("vit_tiny", channels=1, size=(32, 48), dim=16, depth=1, heads=2, patch=4)
    return SSAST(network, SPEC, **options)


def clips(n: int = 4) -> dict[str, torch.Tensor]:
    return {"sound": torch.randn(n, 1, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 + 1,
            "index": torch.arange(n)}


def test_matching_by_hand():
    # Patches (1, 0) and (0, 1); predictions (2, 0) and (1, 3): -log sigmoid of the difference of the two dot products.
    patches, prediction = torch.eye(2)[None], torch.tensor([[[2.0, 0.0], [1.0, 3.0]]])
    want = -(math.log(1 / (1 + math.exp(-2))) + math.log(1 / (1 + math.exp(-2)))) / 2
    torch.testing.assert_close(match_loss(prediction, patches), torch.tensor([want]))
    # the softmax runs over patches: scaling one prediction leaves the other's term alone
    louder = prediction.clone()
    louder[0, 0] *= 3
    want = -(math.log(1 / (1 + math.exp(-6))) + math.log(1 / (1 + math.exp(-2)))) / 2
    torch.testing.assert_close(match_loss(louder, patches), torch.tensor([want]))


def test_an_ignorant_head_pays_the_logarithm_of_the_number_of_hidden_patches():
    patches = torch.randn(3, 50, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(match_loss(torch.zeros_like(patches), patches), torch.full((3,), math.log(50)))


def test_both_losses_by_a_loop():
    objective, batch = small(cluster_max=2, cluster_min=2), clips(3)
    shake(objective)
    draws = Draws.of(batch, STEP)
    encoded = objective.encode(batch, draws)
    x = (batch["sound"] - 1) / 2
    patches = F.unfold(x, 4, stride=4).transpose(1, 2)  # one channel: the order within a patch is the same
    for name, head in (("match", objective.match), ("rebuild", objective.generate)):
        mask = objective.hidden(x, draws.fork(name))
        tokens = objective.backbone(x, mask=mask, mask_token=objective.mask_token).tokens
        for row in range(3):
            places = mask[row].nonzero()[:, 0].tolist()
            guess = {i: head(tokens[row, i]) for i in places}
            if name == "rebuild":
                want = sum((guess[i] - patches[row, i]).square().mean() for i in places) / len(places)
            else:
                scores = {i: torch.stack([guess[i] @ patches[row, j] for j in places]) for i in places}
                want = -sum(scores[i].log_softmax(0)[k] for k, i in enumerate(places)) / len(places)
            torch.testing.assert_close(encoded[name][row], want, rtol=1e-4, atol=1e-5)
    loss = objective.score(encoded, STEP)
    torch.testing.assert_close(loss.total, encoded["match"].mean() + 10 * encoded["rebuild"].mean())


def test_the_two_passes_have_masks_of_their_own():
    objective, batch = small(), clips()
    draws = Draws.of(batch, STEP)
    first, second = (objective.hidden(batch["sound"], draws.fork(n)) for n in ("match", "rebuild"))
    assert not torch.equal(first, second) and (first.sum(1) == second.sum(1)).all()
    assert int(first.sum(1)[0]) == round(0.78 * 96)


def test_visible_patches_are_no_targets_and_other_clips_no_negatives():
    objective, batch = small(), clips()
    draws = Draws.of(batch, STEP)
    alone = objective.encode({k: v[1:2] for k, v in batch.items()}, draws.at(torch.tensor([1])))
    whole = objective.encode(batch, draws)
    for key in ("match", "rebuild"):
        torch.testing.assert_close(whole[key][1:2], alone[key], rtol=1e-4, atol=1e-5)
    # a target that is visible: the rebuilding loss sees it through the network alone, and a constant head not at all
    torch.nn.init.zeros_(objective.generate[2].weight)
    mask = objective.hidden(batch["sound"], draws.fork("rebuild"))
    shown = (~mask).view(-1, 1, 8, 12).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other = dict(batch, sound=torch.where(shown, batch["sound"] + 5, batch["sound"]))
    torch.testing.assert_close(objective.encode(batch, draws)["rebuild"], objective.encode(other, draws)["rebuild"])


def test_squares_are_drawn_alike_everywhere_and_exact_in_count():
    draws = Draws(STEP, torch.arange(6000), 6000)
    mask = cluster_mask((6, 9), 0.5, draws, sides=(2, 3))
    assert (mask.sum(1) == 27).all()
    often = mask.float().mean(0).view(6, 9)
    assert float(often.min()) > 0.45 and float(often.max()) < 0.55  # corners too
    # neighbours are hidden together far more often than strangers
    grid = mask.view(-1, 6, 9).float()
    together = (grid[:, :, 1:] * grid[:, :, :-1]).mean()
    apart = (grid[:, :, 4:] * grid[:, :, :-4]).mean()
    assert float(together) > float(apart) + 0.05
    single = cluster_mask((6, 9), 0.5, draws, sides=(1, 1)).view(-1, 6, 9).float()
    assert abs(float((single[:, :, 1:] * single[:, :, :-1]).mean()) - 27 * 26 / 54 / 53) < 0.01


def test_pictures_keep_what_is_visible():
    objective, batch = small(), clips()
    x, corrupted, output = objective.reconstruct(batch, STEP)
    mask = objective.hidden(x, Draws.of(batch, STEP).fork("rebuild"))
    shown = (~mask).view(-1, 1, 8, 12).repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.equal(output[shown], x[shown]) and torch.equal(corrupted[shown], x[shown])
    assert (corrupted[~shown] == 0).all() and not torch.equal(output[~shown], x[~shown])


def test_refusals_and_the_rule_for_small_grids():
    assert small().sides == (3, 4) and "at most half the grid" in " ".join(small().notes)
    for wrong in ({"ratio": 1.0}, {"ratio": 0.01}, {"cluster_min": 4, "cluster_max": 3}):
        with pytest.raises(UsageError):
            small(**wrong)
