from __future__ import annotations

import math

import pytest
import torch
from tests.objectives.pairs import (
    STEP,
    assert_gradients_reach,
    assert_parts_equal_whole,
    draws_of,
    encode_in_parts,
    images,
    normal,
    resnet,
    spec,
    vit,
)
from torch import nn
from torch.nn import functional as F

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.objectives.jigclu import JigClu, cut, stitch, unstitch
from osteon.parts.losses.supcon import supcon
from osteon.parts.types import Draws, Features, Step
from osteon.views import make_views


def small(**options) -> JigClu:
    return JigClu(vit(), spec(), **({"out": 8, "head_width": 16} | options))


def encoded(n: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    order = torch.randperm(4 * n, generator=torch.Generator().manual_seed(seed)).view(n, 4)
    return {"z": normal(n, 4, 3, seed=seed), "where": normal(n, 4, 4, seed=seed + 1), "source": order // 4,
            "part": order % 4}


def test_hand_computed_loss():
    # Two images on orthogonal axes: -log(e / (3 e + 4)) at T = 1, no preference among four quadrants: log 4.
    source = torch.tensor([[0, 0, 1, 1], [1, 0, 1, 0]])
    data = {"z": F.one_hot(source, 2).float(), "where": torch.zeros(2, 4, 4), "source": source,
            "part": torch.tensor([[0, 1, 0, 1], [2, 2, 3, 3]])}
    result = small(temperature=1.0, base_temperature=1.0, cluster=2.0, location=3.0).score(data, STEP)
    assert result.parts["clustering"].item() == pytest.approx(math.log(3 + 4 / math.e), rel=1e-5)
    assert result.parts["location"].item() == pytest.approx(math.log(4), rel=1e-5)
    assert result.total.item() == pytest.approx(2 * math.log(3 + 4 / math.e) + 3 * math.log(4), rel=1e-5)


def test_clustering_is_rescaled_as_released():
    data = encoded()
    result = small(location=0.0).score(data, STEP)
    plain = supcon(data["z"].flatten(0, 1), data["source"].flatten(), 0.3)
    assert result.total.item() == pytest.approx(0.3 / 0.07 * plain.item(), rel=1e-5)


def test_location_is_the_cross_entropy_of_each_parts_quadrant():
    data = encoded()
    expected = -sum(data["where"].log_softmax(-1)[i, s, data["part"][i, s]] for i in range(4) for s in range(4)) / 16
    torch.testing.assert_close(small().score(data, STEP).parts["location"], expected)


def test_perfect_clusters_cost_least_and_collapse_costs_the_logarithm_of_the_other_parts():
    objective, data = small(temperature=0.05), encoded(3)
    best = objective.score(data | {"z": F.one_hot(data["source"], 3).float()}, STEP).parts["clustering"]
    assert best.item() == pytest.approx(math.log(3), rel=1e-4)  # three positives share the mass
    flat = objective.score(data | {"z": torch.ones(3, 4, 3)}, STEP).parts["clustering"]
    assert flat.item() == pytest.approx(math.log(11), rel=1e-5)


def test_order_of_parts_and_montages_does_not_matter():
    objective, data = small(), encoded()
    expected = objective.score(data, STEP).total
    turned = {k: v.roll(1, 0).flip(1) for k, v in data.items()}
    torch.testing.assert_close(objective.score(turned, STEP).total, expected)
    assert not JigClu.additive


@pytest.mark.parametrize(("part", "rows", "columns"), [(0, (0, 8), (0, 16)), (1, (0, 8), (4, 20)),
                                                       (2, (2, 10), (0, 16)), (3, (2, 10), (4, 20))])
def test_parts_reach_beyond_the_middle(part: int, rows: tuple[int, int], columns: tuple[int, int]):
    image = torch.arange(200.0).view(1, 1, 10, 20)
    assert torch.equal(cut(image, part, 0.3), image[..., slice(*rows), slice(*columns)])


def test_cutting_without_overlap_and_stitching_restores_the_image():
    image = normal(3, 2, 8, 6)
    parts = torch.stack([cut(image, p, 0.0) for p in range(4)], 1)
    assert parts.shape == (3, 4, 2, 4, 3) and torch.equal(stitch(parts), image)
    assert torch.equal(cut(image, 2, 0.5), image)


def test_features_come_back_in_the_order_of_the_tiles():
    grid = torch.arange(16.0).view(1, 4, 4)
    features = Features(pooled=torch.zeros(1, 1), tokens=grid.flatten(1)[..., None], grid=(4, 4))
    assert unstitch(features)[0, :, 0].tolist() == [2.5, 4.5, 10.5, 12.5]  # means of the four quarters
    wide = Features(pooled=torch.zeros(1, 1), tokens=torch.arange(8.0)[None, :, None], grid=(2, 4))
    assert unstitch(wide)[0, :, 0].tolist() == [0.5, 2.5, 4.5, 6.5]


def test_montages_hold_every_part_once_where_they_say():
    objective, batch = small(), images()
    draws = Draws.of(batch, STEP)
    montage, source, part = objective.montage(draws)
    assert montage.shape == (8, 1, 8, 8)
    assert sorted((4 * source + part).flatten().tolist()) == list(range(32))
    assert (source != torch.arange(8)[:, None]).any()  # parts move between images
    for m in range(8):
        for slot in range(4):
            i, p = int(source[m, slot]), int(part[m, slot])
            stream = draws.at(torch.tensor([i])).fork(f"part{p}")
            tile = objective.views(cut(batch["image"][[i]], p, 0.3), stream)[0].x[0]
            got = montage[m, :, 4 * (slot // 2):4 * (slot // 2) + 4, 4 * (slot % 2):4 * (slot % 2) + 4]
            torch.testing.assert_close(got, tile)


def test_without_augmentation_unshuffling_restores_the_batch():
    objective, batch = small(overlap=0.0, flip=False), images()
    objective.views = make_views("none", spec(), size=4)
    montage, source, part = objective.montage(Draws.of(batch, STEP))
    tiles = torch.stack([cut(montage, slot, 0.0) for slot in range(4)], 1).flatten(0, 1)
    restored = torch.empty(8, 4, 1, 4, 4)
    restored[source.flatten(), part.flatten()] = tiles
    torch.testing.assert_close(stitch(restored), make_views("none", spec())(batch["image"], Draws.of(batch, STEP))[0].x)


def test_the_shuffle_changes_from_step_to_step():
    objective, batch = small(), images()
    one, two = (objective.montage(Draws.of(batch, Step(i, 10)))[1] for i in (0, 1))
    assert not torch.equal(one, two)


def test_one_forward_of_one_image_a_sample():
    objective, seen = small(), []
    objective.backbone.register_forward_hook(lambda _m, inputs, _out: seen.append(len(inputs[0])))
    objective(images(), STEP)
    assert seen == [8]


def test_encoding_holds_heads_of_the_backbones_parts():
    objective, batch = small().eval(), images()
    data = objective.encode(batch, Draws.of(batch, STEP))
    montage, source, part = objective.montage(Draws.of(batch, STEP))
    features = objective.backbone(montage)
    torch.testing.assert_close(data["z"], objective.head(unstitch(features)))
    torch.testing.assert_close(data["where"], objective.locator(unstitch(features)))
    assert torch.equal(data["source"], source) and torch.equal(data["part"], part)
    torch.testing.assert_close(data["features"], features.pooled)
    assert not data["features"].requires_grad
    assert [type(m) for m in objective.head] == [nn.Linear, nn.ReLU, nn.Linear]


@pytest.mark.parametrize("off", ["cluster", "location"])
def test_each_loss_alone_trains_the_backbone(off: str):
    objective = small(**{off: 0.0})
    objective(images(), STEP).total.backward()
    assert objective.backbone.patch_embed.proj.weight.grad.any()


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    assert_parts_equal_whole(small(), images())


def test_scattered_rows_get_the_same_montages():
    objective, batch, order = small(), images(), [6, 1, 3, 0, 7, 2, 5, 4]
    whole = objective.encode(batch, draws_of(batch, range(8)))
    apart = encode_in_parts(objective, batch, [order[:3], order[3:4], order[4:]])
    for key in whole:
        torch.testing.assert_close(apart[key], whole[key][order], rtol=1e-4, atol=1e-5)


def test_tiles_are_whole_cells_and_the_choice_is_printed():
    net = build_backbone("resnet_tiny", channels=1, size=28, stride=4)
    objective = JigClu(net, spec(1, 28))
    assert objective.side == 16 and any("16 pixels" in n for n in objective.notes)
    assert small().side == 4
    assert objective.montage(Draws.of(images(4, 1, 28), STEP))[0].shape[-1] == 32


def test_impossible_settings_are_refused():
    with pytest.raises(UsageError, match="overlap"):
        small(overlap=0.6)
    with pytest.raises(UsageError, match="Temperatures"):
        small(temperature=0.0)


def test_gradient_reaches_every_parameter():
    assert_gradients_reach(JigClu(vit(), spec()), images())
    assert_gradients_reach(JigClu(resnet(), spec(3, 32)), images(8, 3, 32))
