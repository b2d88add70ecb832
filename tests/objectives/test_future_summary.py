"""Future summaries: statistics by hand, windows that lie after each token, and words that are counted."""

from __future__ import annotations

import math

import pytest
import torch
from tests.objectives.masked import shake

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.objectives.future_summary import FutureSummary, future_windows, summarise
from osteon.parts.types import DataSpec, Draws, Step

STEP = Step(3, 10, 7)
SERIES = DataSpec("series", 2, 24, (1.0, 1.0), (2.0, 2.0), 1.0, shape=(24,))
TEXT = DataSpec("text", 1, 8, (0.0,), (1.0,), 1.0, shape=(8,))


def small(text: bool = False, **options) -> FutureSummary:
    torch.manual_seed(1)
    given = {"vocabulary": 10} if text else {"patch": 3}
    network = build_backbone("vit_tiny", channels=1 if text else 2, size=(8,) if text else (24,), dim=16, depth=2,
                             heads=2, **given)
    method = FutureSummary(network, TEXT if text else SERIES, **options)
    shake(method)
    return method.eval()


def windows(n: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    return {"series": torch.randn(n, 2, 24, generator=torch.Generator().manual_seed(seed)) * 2 + 1,
            "index": torch.arange(n)}


def test_statistics_and_windows_by_hand():
    values = torch.tensor([[1.0, 3.0, 5.0, 7.0], [2.0, 2.0, 2.0, 2.0]])
    torch.testing.assert_close(summarise(values), torch.tensor([4.0, 5**0.5, 1.0, 7.0, 2.0, 0.0, 2.0, 2.0]))
    assert future_windows(torch.arange(5)[None], 2).tolist() == [[[1, 2], [2, 3], [3, 4]]]


def test_the_loss_by_a_loop():
    method, batch = small(horizon=3), windows()
    encoded = method.encode(batch, Draws.of(batch, STEP))
    x = (batch["series"] - 1) / 2
    guess = method.head(method.backbone(x).tokens)
    for row in range(3):
        errors = []
        for t in range(5):  # of 8 tokens the last three have no whole future
            want = []
            for channel in range(2):
                future = x[row, channel, 3 * t + 3:3 * t + 12]
                want += [future.mean(), future.std(unbiased=False), future.min(), future.max()]
            errors.append((guess[row, t] - torch.stack(want)).square().mean())
        torch.testing.assert_close(encoded["loss"][row], torch.stack(errors).mean())
    torch.testing.assert_close(method.score(encoded, STEP).total, encoded["loss"].mean())


def test_targets_lie_in_the_window_alone():
    method, x = small(horizon=2), windows()["series"]
    want = method.targets(x)
    for token in range(8):
        changed = x.clone()
        changed[..., 3 * token:3 * token + 3] += 100
        moved = (method.targets(changed) != want).any(-1).any(0)
        assert moved.tolist() == [token - 2 <= t < token for t in range(6)]


def test_what_is_said_depends_on_the_past_alone():
    method, x = small(), windows()["series"]
    changed = torch.cat([x[..., :12], windows(seed=4)["series"][..., 12:]], -1)
    torch.testing.assert_close(method.backbone(changed).tokens[:, :4], method.backbone(x).tokens[:, :4])
    assert method.backbone.options["causal"] is True


def test_words_of_the_future_are_counted_and_padding_is_not():
    method = small(text=True, horizon=3)
    text = torch.tensor([[[4, 5, 5, 6, 0, 0, 0, 0]]])
    target = method.targets(text.float())
    assert target[0].tolist() == [[5, 5, 6], [5, 6, 0], [6, 0, 0], [0, 0, 0], [0, 0, 0]]
    scores = torch.zeros(1, 5, 10)
    scores[..., 5] = math.log(3)  # word 5 has 3 of 12 parts, each other 1
    error = method.errors(scores, target)
    want = [(2 * math.log(4) + math.log(12)) / 3, (math.log(4) + math.log(12)) / 2, math.log(12), 0.0, 0.0]
    torch.testing.assert_close(error[0], torch.tensor(want))
    batch = {"text": text, "index": torch.arange(1)}
    encoded = method.encode(batch, Draws.of(batch, STEP))
    guess = method.errors(method.head(method.backbone(text.float()).tokens[:, :-3]), target)
    torch.testing.assert_close(encoded["loss"], guess[:, :3].mean(1))
    empty = {"text": torch.zeros(1, 1, 8), "index": torch.arange(1)}
    assert float(method.encode(empty, Draws.of(empty, STEP))["loss"].detach()) == 0.0


def test_the_horizon_is_a_quarter_or_as_asked():
    assert small().horizon == 2 and "rule: a quarter" in small().notes[-1]
    assert small(horizon=7).horizon == 7
    for wrong in (8, -1):
        with pytest.raises(UsageError, match="no future"):
            small(horizon=wrong)
    with pytest.raises(UsageError):
        FutureSummary(build_backbone("vit_tiny", channels=1, size=16), DataSpec("image", 1, 16, (0.0,), (1.0,)))
