"""Frame prediction: the controls and the error by hand, what is seen, and horizons other than the known frames."""

from __future__ import annotations

import pytest
import torch
from tests.objectives.clips import clips, spec, vit
from tests.objectives.pairs import STEP, assert_gradients_reach, normal

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.objectives.frame_prediction import FramePrediction, copy_last, extrapolate
from osteon.parts.types import DataSpec, Draws, Step
from osteon.views import normalise


def small(data: DataSpec | None = None, known: int = 4, **options) -> FramePrediction:
    torch.manual_seed(0)
    network = build_backbone("predformer_tiny", channels=1, size=(known, 16, 16), dim=16, heads=2, layout="ts")
    return FramePrediction(network, data or spec(), **options)


def test_controls_by_hand():
    past = torch.tensor([0.0, 1.0, 3.0]).view(1, 1, 3, 1, 1)
    assert copy_last(past, 3).flatten().tolist() == [3, 3, 3]
    assert extrapolate(past, 3).flatten().tolist() == [5, 7, 9]


def test_errors_by_hand_and_beside_the_controls():
    objective, batch = small(), clips()
    x = normalise(batch["video"], spec())
    guess = objective.backbone.assemble(objective.head(objective.backbone(x[:, :, :4]).tokens), x[:, :, :4])
    encoded = objective.encode(batch, Draws.of(batch, STEP))
    for b in range(8):
        want = ((guess[b] - x[b, :, 4:]) ** 2).mean()
        torch.testing.assert_close(encoded["loss"][b], want)
        torch.testing.assert_close(encoded["copy_last"][b], ((x[b, :, 3:4] - x[b, :, 4:]) ** 2).mean())
    loss = objective.score(encoded, STEP)
    torch.testing.assert_close(loss.total, encoded["loss"].mean())
    torch.testing.assert_close(loss.parts["linear"], encoded["linear"].mean())


def test_the_future_is_not_seen():
    objective, batch = small(), clips()
    seen: list[torch.Tensor] = []
    objective.backbone.register_forward_hook(lambda _m, args, _out: seen.append(args[0]))
    objective.encode(batch, Draws.of(batch, STEP))
    assert len(seen) == 1 and torch.equal(seen[0], normalise(batch["video"], spec())[:, :, :4])


def test_shorter_horizons_are_cut_and_longer_ones_read_on():
    past = normal(2, 1, 4, 16, 16)
    objective = small()
    four, pooled = objective.predict(past, 4)
    torch.testing.assert_close(pooled, objective.backbone(past).pooled)
    assert torch.equal(objective.forecast(past, 2), four[:, :, :2])
    six = objective.forecast(past, 6)
    torch.testing.assert_close(six[:, :, :4], four)
    torch.testing.assert_close(six[:, :, 4:], objective.ahead(four)[0][:, :, :2])
    longer = small(horizon=5, known=3)
    assert longer.context == 3 and longer.exported_data().shape == (3, 16, 16)
    assert_gradients_reach(longer, clips())


def test_clips_are_halved_by_rule():
    assert FramePrediction.seen((16, 32, 32), {}) == (8, 32, 32)
    assert FramePrediction.seen((10, 32, 32), {"horizon": 3}) == (7, 32, 32)
    for extent, horizon in (((2, 8, 8), 0), ((8, 8, 8), 7), ((8, 8, 8), -1)):
        with pytest.raises(UsageError, match="does not hold two known frames"):
            FramePrediction.seen(extent, {"horizon": horizon})
    with pytest.raises(UsageError, match="three sides"):
        FramePrediction.seen((8, 8), {})


def test_gradients_reach_everything_also_of_a_vit_on_cubes():
    assert_gradients_reach(small(), clips())
    assert_gradients_reach(FramePrediction(vit(frames=4), spec()), clips())


def test_pictures_and_what_is_kept():
    objective, batch = small(), clips()
    x, copied, guess = objective.reconstruct(batch, STEP)
    assert torch.equal(copied[:, :, :4], x[:, :, :4]) and torch.equal(guess[:, :, :4], x[:, :, :4])
    assert torch.equal(copied[:, :, 7], x[:, :, 3]) and torch.equal(guess[:, :, 4:], objective.forecast(x[:, :, :4], 4))
    assert sorted(objective.kept()) == ["head.0.bias", "head.0.weight", "head.1.bias", "head.1.weight"]


def moving_dots(n: int, seed: int) -> dict[str, torch.Tensor]:
    """A bright square of 4 pixels that moves a pixel a frame to the right, from anywhere, around the edge."""
    g = torch.Generator().manual_seed(seed)
    x = torch.zeros(n, 1, 8, 16, 16, dtype=torch.uint8)
    for b, (row, column) in enumerate(torch.randint(0, 16, (n, 2), generator=g).tolist()):
        for t in range(8):
            for i in range(16):
                x[b, 0, t, (row + i // 4) % 16, (column + t + i % 4) % 16] = 255
    return {"video": x, "index": torch.arange(n)}


def test_it_beats_the_copied_and_the_extrapolated_frame_on_clips_not_trained_on():
    torch.manual_seed(0)
    network = build_backbone("predformer_tiny", channels=1, size=(4, 16, 16), dim=48, heads=4)
    data = DataSpec("video", 1, 16, (0.06,), (0.24,), shape=(8, 16, 16))
    objective, train = FramePrediction(network, data), moving_dots(128, 0)
    optimiser = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for index in range(60):
        optimiser.zero_grad()
        rows = torch.arange(32) + 32 * (index % 4)
        objective({k: v[rows] for k, v in train.items()}, Step(index, 60, 0)).total.backward()
        optimiser.step()
    with torch.no_grad():
        test = objective.eval()(moving_dots(32, 1), Step(0, 1, 0))
    assert float(test.total) < 0.75 * min(float(test.parts["copy_last"]), float(test.parts["linear"]))
