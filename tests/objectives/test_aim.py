"""AIM: nothing leaks from a patch into its own prediction, and the prefix sees itself whole."""

from __future__ import annotations

import math

import pytest
import torch
from tests.objectives.pairs import (
    STEP,
    assert_gradients_reach,
    assert_parts_equal_whole,
    draws_of,
    images,
    normal,
    resnet,
    spec,
    vit,
)

from osteon.backbones import Backbone, build_backbone
from osteon.core.errors import UsageError
from osteon.objectives.aim import AIM, PatchHead, draw_prefix
from osteon.parts.attend import prefix_attention
from osteon.parts.targets import patchify
from osteon.parts.types import Draws, Step


def small(**options) -> AIM:
    return AIM(vit(), spec(), flip=False, head_depth=2, **options)


def special(pool: str = "cls") -> Backbone:
    torch.manual_seed(0)
    return build_backbone("vit_tiny", channels=1, size=8, dim=16, depth=2, heads=2, pool=pool, registers=2)


def hidden_after(prefix: list[int], tokens: int = 16) -> torch.Tensor:
    return torch.arange(tokens) >= torch.tensor(prefix)[:, None]


def test_prefixes_are_uniform_between_one_and_all_but_one():
    step = Step(4, 10, seed=1)
    lengths = draw_prefix(5, Draws(step, torch.arange(4000), 4000))
    counts = torch.bincount(lengths, minlength=5)
    assert counts[0] == 0 and len(counts) == 5
    assert ((counts[1:] - 1000).abs() < 5 * math.sqrt(4000 * 0.25 * 0.75)).all()
    assert torch.equal(draw_prefix(5, Draws(step, torch.arange(100, 200), 4000)), lengths[100:200])
    assert (draw_prefix(2, Draws(step, torch.arange(50), 50)) == 1).all()
    assert not torch.equal(draw_prefix(5, Draws(Step(5, 10, seed=1), torch.arange(4000), 4000)), lengths)


def test_hidden_are_the_patches_after_the_prefix():
    draws = draws_of(images(6), range(6))
    prefix = draw_prefix(16, draws_of(images(6), range(6)))
    mask = small().mask((4, 4), draws)
    assert torch.equal(mask, hidden_after(prefix.tolist())) and not mask[:, 0].any() and mask[:, -1].all()


def influence(objective: AIM, prefix: int) -> torch.Tensor:
    """(16, 16) bool: does the prediction in the row depend on the patch in the column?"""
    x = normal(1, 1, 8, 8).requires_grad_()
    prediction, _ = objective.predict(x, hidden_after([prefix]))
    rows = []
    for t in range(16):
        if not prediction[0, t].requires_grad:
            rows.append(torch.zeros(16, dtype=torch.bool))
            continue
        (grad,) = torch.autograd.grad(prediction[0, t].square().sum(), x, retain_graph=True)
        rows.append(patchify(grad, 2)[0].abs().sum(-1) > 1e-9)
    return torch.stack(rows)


@pytest.mark.parametrize("network", ["plain", "cls", "mean"])
@pytest.mark.parametrize("prefix", [1, 5, 15])
def test_a_prediction_depends_on_the_patches_before_it_and_inside_the_prefix_on_the_prefix(network: str, prefix: int):
    objective = (small() if network == "plain" else AIM(special(network), spec(), flip=False)).eval()
    got = influence(objective, prefix)
    for t in range(1, 16):
        seen = max(t, prefix)  # outside the prefix exactly the patches before; inside, the prefix
        assert got[t].tolist() == [j < seen for j in range(16)], t
    objective.zero_grad()
    first = objective.predict(normal(1, 1, 8, 8), hidden_after([prefix]))[0][:, 0]
    assert not first.any()  # nothing predicts the first patch


def loop_loss(objective: AIM, x: torch.Tensor, prefix: list[int]) -> float:
    """Mean over samples of the mean squared error of every patch after the prefix, from the definition."""
    total = 0.0
    place = objective.backbone.positions((4, 4))
    for b, s in enumerate(prefix):
        attend = torch.tensor([[k <= i or k < s for k in range(16)] for i in range(16)])
        out = objective.backbone.trunk(objective.backbone.stem(x[b:b + 1]) + place, attend=attend)
        guess = objective.head(out + place)[0]
        patches = [x[b, 0, 2 * r:2 * r + 2, 2 * c:2 * c + 2].flatten() for r in range(4) for c in range(4)]
        errors = []
        for t in range(16):
            if t + 1 >= 16 or t + 1 < s:
                continue  # the last patch has no next one; inside the prefix nothing is asked
            wanted = patches[t + 1]
            if objective.norm_pix:
                wanted = (wanted - wanted.mean()) / (wanted.var() + 1e-6).sqrt()
            errors.append((guess[t] - wanted).square().mean().item())
        assert len(errors) == 16 - s
        total += sum(errors) / len(errors) / len(prefix)
    return total


@pytest.mark.parametrize("norm_pix", [True, False])
def test_loss_by_loops(norm_pix: bool):
    objective, batch = small(norm_pix=norm_pix).eval(), images(6)
    draws = Draws.of(batch, STEP)
    with torch.no_grad():
        x = objective.views(batch["image"], draws)[0].x
        prefix = draw_prefix(16, draws.fork("mask")).tolist()
        assert len(set(prefix)) > 2
        loss = objective(batch, STEP).total.item()
        assert loss == pytest.approx(loop_loss(objective, x, prefix), rel=1e-4)


def test_predicting_nothing_costs_the_variance_of_a_patch():
    objective = small(crop_min=1.0)
    with torch.no_grad():
        objective.head.out.weight.zero_()
    # Unbiased variance 1 over 4 pixels: the mean square is 3/4.
    assert objective(images(), STEP).total.item() == pytest.approx(0.75, rel=1e-3)
    flat = {"image": torch.full((4, 1, 8, 8), 7, dtype=torch.uint8)}
    assert objective(flat, STEP).total.item() == pytest.approx(0, abs=1e-6)  # nothing to tell in a blank image


def test_head_by_hand():
    head = PatchHead(4, 6, 2, 3)
    x = normal(2, 5, 4)
    h = head.embed(x)
    for norm, mlp in zip(head.norms, head.mlps, strict=True):
        h = h + mlp.fc2(torch.nn.functional.gelu(mlp.fc1(norm(h))))
    torch.testing.assert_close(head(x), head.out(head.norm(h)))
    assert head.embed.bias is None and head.out.bias is None and head.mlps[0].fc1.out_features == 24
    assert len(PatchHead(4, 6, 0, 3).mlps) == 0


def test_the_network_left_looks_at_whole_images():
    objective, x = small().eval(), normal(3, 1, 8, 8)
    backbone = objective.exported()
    tokens = backbone.stem(x) + backbone.positions((4, 4))
    free = backbone.trunk(tokens, attend=prefix_attention(torch.ones(3, 16, dtype=torch.bool)))
    torch.testing.assert_close(backbone(x).tokens, free)
    prediction, pooled = objective.predict(x, torch.zeros(3, 16, dtype=torch.bool))  # a prefix of everything
    torch.testing.assert_close(pooled, backbone(x).pooled)
    torch.testing.assert_close(prediction[:, 1:], objective.head(free + backbone.positions((4, 4)))[:, :-1])


def test_class_and_register_tokens_belong_to_the_prefix():
    objective, x = AIM(special(), spec(), flip=False).eval(), normal(1, 1, 8, 8)
    backbone, mask = objective.backbone, hidden_after([3])
    tokens = torch.cat([backbone.prefix(1), backbone.stem(x) + backbone.positions((4, 4))], 1)
    attend = torch.tensor([[k <= i or k < 3 + 3 for k in range(19)] for i in range(19)])  # 1 class, 2 registers
    out = backbone.trunk(tokens, attend=attend)[:, 3:]
    prediction, pooled = objective.predict(x, mask)
    torch.testing.assert_close(pooled, out.mean(1))
    torch.testing.assert_close(prediction[:, 1:], objective.head(out + backbone.positions((4, 4)))[:, :-1])


def test_samples_do_not_meet_and_their_order_does_not_matter():
    objective, batch = small().eval(), images(6)
    encoded = objective.encode(batch, Draws.of(batch, STEP))
    alone = objective.encode({"image": batch["image"][2:3]}, draws_of(batch, [2]))
    torch.testing.assert_close(alone["loss"][0], encoded["loss"][2])
    assert not encoded["features"].requires_grad and encoded["loss"].shape == (6,)
    assert AIM.additive
    torch.testing.assert_close(objective.score(encoded, STEP).total, encoded["loss"].sum() / 6)


def test_pictures_paste_predictions_after_the_prefix_only():
    objective, batch = small().eval(), images(5)
    x, corrupted, output = objective.reconstruct(batch, STEP)
    hidden = hidden_after(draw_prefix(16, Draws.of(batch, STEP).fork("mask")).tolist())
    true, left, filled = (patchify(v, 2) for v in (x, corrupted, output))
    assert torch.equal(true[~hidden], filled[~hidden]) and torch.equal(true[~hidden], left[~hidden])
    assert not left[hidden].any() and not torch.allclose(true[hidden], filled[hidden])
    guess = objective.predict(x, hidden)[0]
    mean, deviation = true.mean(-1, keepdim=True), (true.var(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(filled[hidden], (guess * deviation + mean)[hidden])


def test_networks_and_images_it_cannot_use_are_refused():
    with pytest.raises(UsageError, match="positions"):
        AIM(resnet(), spec(3, 32))
    with pytest.raises(UsageError, match="single patch"):
        AIM(build_backbone("vit_tiny", channels=1, size=8, patch=8), spec())


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    assert_parts_equal_whole(small(), images())


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
def test_gradient_reaches_every_trainable_parameter(channels: int, size: int):
    assert_gradients_reach(AIM(vit(channels, size), spec(channels, size)), images(8, channels, size))
    assert_gradients_reach(AIM(special("cls"), spec()), images())
