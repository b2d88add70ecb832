from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.objectives.pairs import STEP, normal
from torch import nn
from torch.nn import functional as F

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.data import open_source
from osteon.objectives.anatomix import Anatomix, pick, shrink
from osteon.parts.contrastive import nt_xent
from osteon.parts.label_maps import number_labels
from osteon.parts.types import DataSpec, Draws, Step

SPEC = DataSpec("image", 1, 16, (0.4,), (0.2,), 255.0)


def make(data: DataSpec = SPEC, name: str = "unet_tiny", widths=(4, 8), **options) -> Anatomix:
    torch.manual_seed(0)
    more = {"widths": widths} if name == "unet_tiny" else {"widths": (4, 8), "depths": (1, 1), "stride": 2}
    return Anatomix(build_backbone(name, channels=data.channels, size=data.extent, **more), data, **options)


def batch(n: int = 4, data: DataSpec = SPEC) -> dict[str, torch.Tensor]:
    return {data.modality: normal(n, data.channels, *data.extent), "index": torch.arange(n)}


def fake(method: Anatomix, monkeypatch, change=lambda x: x) -> torch.Tensor:
    """Maps that are the labels, one-hot, in a layer of full resolution; and those labels."""
    labels = method.labels_of(batch()["image"], Draws.of(batch(), STEP).fork("map"))
    maps = F.one_hot(labels, 8).movedim(-1, 1).float().repeat(2, 1, 1, 1)
    monkeypatch.setattr(method, "_maps", lambda x: ([change(maps)], x.flatten(1)))
    method.heads, method.used = nn.ModuleList([nn.Identity()]), [0]
    return labels


def test_labels_and_features_of_coarser_maps_by_hand():
    labels = torch.arange(36).view(1, 6, 6)
    assert shrink(labels, (2, 3)).tolist() == [[[7, 9, 11], [25, 27, 29]]]
    assert torch.equal(shrink(labels, (6, 6)), labels)
    assert shrink(torch.arange(5).view(1, 5, 1), (3, 1)).flatten().tolist() == [0, 2, 4]
    maps = torch.arange(12.0).view(1, 2, 2, 3)
    assert pick(maps, torch.tensor([[5, 0]])).tolist() == [[[5.0, 11.0], [0.0, 6.0]]]


def test_aligned_features_cost_what_the_counts_say_and_others_more(monkeypatch):
    method = make(samples=256, shapes=6, temperature=0.5)
    labels = fake(method, monkeypatch)
    got = method.encode(batch(), Draws.of(batch(), STEP))["contrast"][:, 0]
    for row, cost in zip(labels, got, strict=True):
        share, n = row.flatten().bincount(minlength=8), row.numel()
        want = sum(int(m) / n * math.log((2 * int(m) - 1) + (2 * n - 2 * int(m)) * math.exp(-2)) for m in share if m)
        assert float(cost) == pytest.approx(want, rel=1e-4)
    fake(method, monkeypatch, lambda maps: maps + torch.cat([0 * normal(4, 8, 16, 16), normal(4, 8, 16, 16)]))
    worse = method.encode(batch(), Draws.of(batch(), STEP))["contrast"][:, 0]
    assert (worse > got + 0.1).all()


def test_some_cells_the_same_in_both_renderings(monkeypatch):
    method = make(samples=10, shapes=6)
    fake(method, monkeypatch)
    monkeypatch.setattr(method, "_maps", lambda x: ([torch.arange(256.0).view(1, 1, 16, 16).expand(8, 2, 16, 16)],
                                                    x.flatten(1)))
    seen = []
    method.heads = nn.ModuleList([nn.Identity()])
    method.heads[0].register_forward_hook(lambda _module, _args, out: seen.append(out))
    method.encode(batch(), Draws.of(batch(), STEP))
    first, second = seen[0].chunk(2)
    assert first.shape == (4, 10, 2) and torch.equal(first, second)
    assert all(len(row.unique()) == 10 for row in first[..., 0]) and not torch.equal(first[0], first[1])
    assert make().samples == 32 and make(DataSpec("image", 1, 256, (0.4,), (0.2,))).samples == 768


def test_labels_with_a_single_cell_have_their_twin_alone(monkeypatch):
    method = make(samples=256)
    monkeypatch.setattr(method, "labels_of", lambda values, _draws: torch.arange(256).view(1, 16, 16).repeat(4, 1, 1))
    maps = normal(8, 5, 16, 16)
    monkeypatch.setattr(method, "_maps", lambda x: ([maps], x.flatten(1)))
    method.heads, method.used = nn.ModuleList([nn.Identity()]), [0]
    got = method.encode(batch(), Draws.of(batch(), STEP))["contrast"]
    for row in range(4):
        pairs = torch.stack([maps[row].flatten(1).T, maps[4 + row].flatten(1).T], 1)
        torch.testing.assert_close(got[row, 0], nt_xent(pairs, 0.07), rtol=1e-4, atol=1e-4)


def test_renderings_share_the_map_and_not_the_intensities():
    method = make(shapes=6)
    draws = Draws.of(batch(16), STEP)
    labels = method.labels_of(batch(16)["image"], draws)
    a, b = (method.render(labels, draws.fork(name)) for name in ("view0", "view1"))
    assert (a - b).abs().mean() > 0.3
    total, within = [], []
    for row in range(16):
        for view in (a, b):
            values = view[row, 0]
            total.append(float(values.var()))
            within.append(float(sum(((values[labels[row] == k] - values[labels[row] == k].mean())**2).sum()
                                    for k in labels[row].unique()) / values.numel()))
    assert sum(within) < 0.8 * sum(total)  # the labels explain a part of both
    standard = (1 - 0.4) / 0.2
    assert float(a.max()) == pytest.approx(standard, abs=1e-4) and float(a.min()) == pytest.approx(-2, abs=1e-4)


def test_values_of_the_samples_are_never_looked_at():
    method = make()
    first, other = batch(), {"image": 9 + normal(4, 1, 16, 16, seed=7), "index": torch.arange(4)}
    got = [method.encode(data, Draws.of(data, STEP))["contrast"] for data in (first, other)]
    assert torch.equal(got[0], got[1]) and "never looked at" in method.notes[0]
    method(first, STEP).total.backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in method.parameters())


def test_layers_are_both_ways_of_a_u_net_or_the_levels():
    assert [head[0].in_features for head in make().heads] == [4, 8, 4]
    assert [head[0].in_features for head in make(layers="levels").heads] == [4, 8]
    assert [head[0].in_features for head in make(layers="up.*,down.1").heads] == [8, 4]
    assert [head[0].in_features for head in make(name="resnet_tiny").heads] == [4, 8]
    encoded = make().encode(batch(), Draws.of(batch(), STEP))
    assert encoded["contrast"].shape == (4, 3) and encoded["features"].shape == (4, 12)
    assert float(make().score({"contrast": torch.tensor([[1.0, 2, 6], [3, 4, 8]])}, STEP).total) == pytest.approx(4)
    assert [layer.out_features for layer in make().heads[0] if isinstance(layer, nn.Linear)] == [256] * 3


def test_segmentations_are_rendered_and_leave_a_network_of_intensities():
    data = open_source("label_maps:train", cache=False, limit=4)
    method = make(data.spec)
    values = data.batch(np.arange(4))
    assert torch.equal(method.labels_of(values["volume"], Draws.of(values, STEP)),
                       number_labels(values["volume"][:, 0].long()))
    out = method.exported_data()
    assert out.mean == (0.5,) and out.std == (0.25,) and "segments" not in out.traits and out.extent == (16, 16, 16)
    assert math.isfinite(float(method(values, STEP).total.detach()))
    assert method.render(method.labels_of(values["volume"], Draws.of(values, STEP)), Draws.of(values, STEP)).max() == 2


def test_a_few_steps_bring_two_contrasts_of_one_shape_closer():
    """Distance of features of the same cell in two renderings, over that of cells of other labels; new label maps."""
    method = make(shapes=6, widths=(8, 16, 16))

    def distance() -> float:
        data = batch(12)
        draws = Draws.of(data, Step(999, 1000, 77))
        labels = method.labels_of(data["image"], draws).flatten(1)
        with torch.no_grad():
            maps = method.backbone(torch.cat([method.render(labels.view(12, 16, 16), draws.fork(n)) for n in "ab"]))
        a, b = F.normalize(maps.levels[0].flatten(2), dim=1).chunk(2)
        order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
        other = labels != labels[:, order]
        return float((a - b).norm(dim=1).mean() / (a - b[..., order]).norm(dim=1)[other].mean())

    method.train()
    before = distance()
    optimiser = torch.optim.AdamW(method.parameters(), lr=5e-3)
    for step in range(25):
        data = batch(12)
        optimiser.zero_grad()
        method(data, Step(step, 25, 0)).total.backward()
        optimiser.step()
    assert distance() < 0.7 * before


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"samples": 1}, {"out": 0}, {"shapes": 1}, {"shapes": 600},
                                     {"layers": "nonsense.*"}])
def test_bad_options_are_refused(options):
    with pytest.raises(UsageError):
        make(**options)(batch(), STEP)


def test_a_network_without_two_cells_is_refused():
    with pytest.raises(UsageError, match="two cells"):
        make(DataSpec("image", 1, 1, (0.4,), (0.2,)), layers="levels")
