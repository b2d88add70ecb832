"""MP3: no position reaches the network, only the context answers, and the loss by hand."""

from __future__ import annotations

import math

import pytest
import torch
from tests.objectives.masked import shake

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.objectives.mp3 import MP3, key_mask
from osteon.parts.types import DataSpec, Draws, Step
from osteon.views.masks import random_mask

STEP = Step(3, 10, 7)
IMAGE = DataSpec("image", 1, 16, (0.5,), (0.25,), 1.0)


def small(moved: bool = True, backbone: dict | None = None, **options) -> MP3:
    torch.manual_seed(1)
    network = build_backbone("vit_tiny", channels=1, size=16, **{
        "dim": 16, "depth": 2, "heads": 2, "patch": 4, **(backbone or {})})
    method = MP3(network, IMAGE, flip=False, crop_min=1.0, **options)
    if moved:
        shake(method)
    return method


def images(n: int = 4) -> dict[str, torch.Tensor]:
    return {"image": torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(0)), "index": torch.arange(n)}


def cut(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """The patches of images in another order."""
    tiles = x.view(-1, 1, 4, 4, 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(len(x), 16, 1, 4, 4)[:, order]
    return tiles.view(-1, 4, 4, 1, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(len(x), 1, 16, 16)


@pytest.mark.parametrize("backbone", [{}, {"pool": "cls", "registers": 1, "positions": "learned"}])
def test_shuffled_patches_give_shuffled_answers(backbone):
    method, x = small(backbone=backbone), images()["image"]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    hidden = random_mask((4, 4), 0.5, Draws(STEP, torch.arange(4), 4))
    logits, _ = method.locate(x, hidden)
    other, _ = method.locate(cut(x, order), hidden[:, order])
    torch.testing.assert_close(other, logits[:, order], rtol=1e-4, atol=1e-5)


def test_only_the_context_is_looked_at():
    method, x = small(), images()["image"]
    hidden = torch.zeros(4, 16, dtype=torch.bool)
    hidden[:, 5:] = True
    logits, _ = method.locate(x, hidden)
    changed = x.clone()
    changed[:, :, 4:8, 4:8] += 1  # token 5, which is no context: its own answer changes and no other
    other, _ = method.locate(changed, hidden)
    moved = (other - logits).abs().amax(-1) > 1e-6
    assert moved[:, 5].all() and not moved[:, :5].any() and not moved[:, 6:].any()
    changed = x.clone()
    changed[:, :, :4, :4] += 1  # token 0, which is: all change
    assert ((method.locate(changed, hidden)[0] - logits).abs().amax(-1) > 1e-6).all()


def test_the_mask_by_hand():
    seen = key_mask(torch.tensor([[False, True, True]]), 1)
    assert seen.int().tolist() == [[[1, 1, 0, 0]] * 4]


def test_the_loss_is_the_cross_entropy_over_all_tokens():
    method, batch = small(ratio=0.75), images()
    draws = Draws.of(batch, STEP)
    encoded = method.encode(batch, draws)
    x = (batch["image"] - 0.5) / 0.25
    hidden = random_mask((4, 4), 0.75, draws.fork("mask"))
    assert (hidden.sum(1) == 12).all()
    logits, tokens = method.locate(x, hidden)
    for row in range(4):
        want = torch.stack([-logits[row, n].log_softmax(0)[n] for n in range(16)]).mean()
        torch.testing.assert_close(encoded["loss"][row], want)
        hits = sum(int(logits[row, n].argmax()) == n for n in range(16)) / 16
        assert float(encoded["hits"][row]) == pytest.approx(hits)
    torch.testing.assert_close(encoded["features"], tokens.mean(1))
    torch.testing.assert_close(method.score(encoded, STEP).total, encoded["loss"].mean())


def test_an_untrained_network_guesses():
    method, batch = small(moved=False), images(32)
    assert float(method(batch, STEP).total.detach()) == pytest.approx(math.log(16), abs=0.05)
    assert "log(16)" in method.notes[-1]


def test_alike_patches_stay_at_chance_however_long_one_trains_and_different_ones_are_told():
    losses = []
    for alike in (True, False):
        method = small(moved=False)
        x = torch.full((8, 1, 16, 16), 0.25)
        if not alike:
            x = (torch.arange(256.0) / 256).view(1, 1, 16, 16).repeat(8, 1, 1, 1)
        batch = {"image": x, "index": torch.arange(8)}
        optimiser = torch.optim.AdamW(method.parameters(), 3e-3)
        for index in range(80):
            loss = method(batch, Step(index, 80, 0))
            optimiser.zero_grad()
            loss.total.backward()
            optimiser.step()
        losses.append(float(loss.total.detach()))
    assert losses[0] == pytest.approx(math.log(16), abs=0.1) and losses[1] < 0.5 * losses[0]


def test_positions_come_back_when_the_network_is_used_unless_it_has_none():
    x = images()["image"]
    order = torch.arange(15, -1, -1)
    with_, without = small().exported(), small(backbone={"positions": "none"}).exported()
    assert not torch.isclose(with_(cut(x, order)).pooled, with_(x).pooled).all()
    torch.testing.assert_close(without(cut(x, order)).pooled, without(x).pooled, rtol=1e-4, atol=1e-5)


def test_refusals():
    for wrong in ({"ratio": 1.0}, {"ratio": -0.1}):
        with pytest.raises(UsageError):
            small(**wrong)
    with pytest.raises(UsageError):
        small(backbone={"patch": 16})
    with pytest.raises(UsageError):
        MP3(build_backbone("resnet_tiny", channels=1, size=16), IMAGE)


def test_padding_is_neither_asked_about_nor_context():
    torch.manual_seed(1)
    spec = DataSpec("text", 1, 12, (0.0,), (1.0,), 1.0, shape=(12,))
    method = MP3(build_backbone("vit_tiny", channels=1, size=(12,), dim=16, depth=2, heads=2, vocabulary=20), spec)
    shake(method)
    text = torch.zeros(2, 1, 12)
    text[0, 0, :7], text[1, 0, :1] = torch.arange(7) + 3.0, 5.0
    batch = {"text": text, "index": torch.arange(2)}
    encoded = method.encode(batch, Draws.of(batch, STEP))
    hidden = random_mask((12,), 0.5, Draws.of(batch, STEP).fork("mask"))
    hidden[0, 7:] = True
    logits, _ = method.locate(text[:1], hidden[:1])
    want = torch.nn.functional.cross_entropy(logits[0, :7], torch.arange(7))
    torch.testing.assert_close(encoded["loss"][0], want)
    lost = [i for i in range(40) if random_mask((12,), 0.5, Draws.of(batch, Step(i, 40, 7)).fork("mask"))[1, 0]]
    assert lost  # the only word of the second text is no context there
    got = method.encode(batch, Draws.of(batch, Step(lost[0], 40, 7)))["loss"]
    logits, _ = method.locate(text[1:], torch.zeros(1, 12, dtype=torch.bool))  # then everything is context
    torch.testing.assert_close(got[1], torch.nn.functional.cross_entropy(logits[0, :1], torch.zeros(1).long()))
