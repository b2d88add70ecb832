"""RTS and SLM: what is exchanged for what, and which tokens the loss is over."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.objectives.rts import RTS, exchange
from osteon.parts.types import DataSpec, Draws, Step

STEP, V, N = Step(0, 10, seed=3), 9, 20
SPEC = DataSpec("text", 1, N, (0.0,), (1.0,), 1.0, shape=(N,))


def make(vocabulary: int = V, **options) -> RTS:
    torch.manual_seed(0)
    network = build_backbone("vit_tiny", channels=1, size=(N,), dim=16, depth=1, heads=2, vocabulary=vocabulary)
    return RTS(network, SPEC, **options)


def texts(n: int = 8) -> dict[str, torch.Tensor]:
    words = torch.randint(2, V, (n, N), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    words[::2, 12:] = 0
    return {"text": words[:, None], "index": torch.arange(n)}


def draws_of(n: int) -> Draws:
    return Draws(STEP, torch.arange(n), n)


def test_words_are_exchanged_for_every_other_word_alike_and_never_for_themselves():
    tokens = torch.full((2000, N), 5)
    given, fake = exchange(tokens, 0.15, V, draws_of(2000))
    assert torch.equal(fake, given != tokens) and abs(fake.float().mean() - 0.15) < 0.01
    counts = torch.bincount(given[fake], minlength=V)
    assert counts[[0, 1, 2, 5]].sum() == 0 and (counts[[3, 4, 6, 7, 8]] / counts.sum() - 0.2).abs().max() < 0.02


def test_special_tokens_stay():
    tokens = torch.tensor([[0, 1, 2] * 6 + [3, 4]]).expand(200, -1)
    given, fake = exchange(tokens, 0.9, V, draws_of(200))
    assert torch.equal(given[:, :18], tokens[:, :18]) and not fake[:, :18].any() and fake[:, 18:].any()


def test_two_words_are_exchanged_for_each_other():
    given, fake = exchange(torch.tensor([[3, 4] * 10]), 0.999, 5, draws_of(1))
    assert given[fake].tolist() == [7 - t for t in torch.tensor([[3, 4] * 10])[fake].tolist()]


@pytest.mark.parametrize("task", ["rts", "slm"])
def test_loss_by_a_loop(task):
    objective, batch = make(task=task), texts()
    encoded = objective.encode(batch, draws_of(8))
    tokens = batch["text"][:, 0].long()
    given, fake = exchange(tokens, 0.15, V, draws_of(8))
    scores = objective.head(objective.backbone(given[:, None].float()).tokens)
    errors, hits = [], []
    for b in range(8):
        for i in range(N):
            if task == "rts" and tokens[b, i] > 2:
                errors.append(F.softplus(-scores[b, i, 0] if fake[b, i] else scores[b, i, 0]))
                hits.append(bool(scores[b, i, 0] > 0) == bool(fake[b, i]))
            if task == "slm" and fake[b, i]:
                errors.append(-scores[b, i].log_softmax(-1)[tokens[b, i]])
                hits.append(scores[b, i].argmax() == tokens[b, i])
    loss = objective.score(encoded, STEP)
    torch.testing.assert_close(loss.total, torch.stack(errors).mean())
    assert loss.parts["accuracy"].item() == pytest.approx(sum(map(float, hits)) / len(hits))
    assert encoded["asked"].sum() == len(errors) and not encoded["features"].requires_grad


def test_the_network_sees_the_exchanged_text_and_no_mask():
    objective, seen = make(), []
    objective.backbone.register_forward_hook(lambda _m, args, _out: seen.append(args[0][:, 0].long()))
    objective.encode(texts(), draws_of(8))
    assert torch.equal(seen[0], exchange(texts()["text"][:, 0].long(), 0.15, V, draws_of(8))[0])
    assert not (seen[0] == 1).any()


@pytest.mark.parametrize("task", ["rts", "slm"])
def test_gradient_reaches_everything_and_the_empty_text_gives_zero(task):
    objective = make(task=task)
    objective(texts(), STEP).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.parameters())
    empty = {"text": torch.zeros(2, 1, N, dtype=torch.int32), "index": torch.arange(2)}
    assert objective(empty, STEP).total.item() == 0


def test_heads():
    assert make().head.out_features == 1 and make(task="slm").head.out_features == V


@pytest.mark.parametrize("options", [{"task": "mlm"}, {"ratio": 0.0}, {"ratio": 1.0}, {"vocabulary": 4}])
def test_impossible_options(options):
    with pytest.raises(UsageError):
        make(**options)


def test_values_have_no_words():
    network = build_backbone("vit_tiny", channels=1, size=8, dim=16, depth=1, heads=2)
    with pytest.raises(UsageError, match="words"):
        RTS(network, DataSpec("image", 1, 8, (0.0,), (1.0,)))
