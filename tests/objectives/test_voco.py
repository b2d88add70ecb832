"""VoCo: overlaps and losses by hand, crops at the places they say, who is taught by whom."""

from __future__ import annotations

import math

import pytest
import torch
from tests.objectives.pairs import normal

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.objectives.voco import VoCo, base_term, overlaps, position_terms, similarity
from osteon.parts.types import DataSpec, Draws, Step

SPEC = DataSpec("volume", 1, 16, (0.0,), (1.0,), 1.0, shape=(8, 16, 16))


def make(data: DataSpec = SPEC, **options) -> VoCo:
    torch.manual_seed(0)
    network = build_backbone("vit_tiny", channels=1, size=data.extent, dim=16, depth=1, heads=2, patch=4)
    return VoCo(network, data, **options)


def batch(n: int = 4) -> dict[str, torch.Tensor]:
    return {"volume": normal(n, 1, 8, 16, 16), "index": torch.arange(n)}


def test_overlaps_by_hand():
    corner = torch.tensor([[0.0, 0], [0, 1], [0.5, 0.25], [2, 2], [1.75, 0]])
    got = overlaps(corner, 3).view(5, 3, 3)
    want = torch.zeros(5, 3, 3)
    want[0, 0, 0] = want[1, 0, 1] = want[3, 2, 2] = 1.0  # a crop that is a base crop
    want[2, :2, :2] = torch.tensor([[0.375, 0.125], [0.375, 0.125]])
    want[4, 1, 0], want[4, 2, 0] = 0.25, 0.75
    torch.testing.assert_close(got, want)


def test_overlaps_are_shares_of_area_and_sum_to_one():
    corner = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) * 3
    got = overlaps(corner, 4)
    assert (got >= 0).all()
    torch.testing.assert_close(got.sum(1), torch.ones(200))
    fine = (torch.arange(400) + 0.5) / 100  # count points of a fine lattice instead
    for c, row in zip(corner[:5], got[:5], strict=True):
        inside = [((fine >= v) & (fine < v + 1)).view(4, 100).sum(1) / 100 for v in c]
        torch.testing.assert_close(torch.outer(*inside).flatten(), row, atol=0.03, rtol=0)


def test_position_terms_by_hand():
    s, y = torch.tensor([[[0.5, 0.4, 0.2]]]), torch.tensor([[[0.75, 0.25, 0.0]]])
    near, far = position_terms(s, y, squares=True)
    assert float(near) == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.85), abs=1e-6)
    assert float(far) == pytest.approx(0.04, abs=1e-6)
    assert float(position_terms(s, y, squares=False)[1]) == pytest.approx(-math.log(0.8), abs=1e-6)
    twice = position_terms(s.expand(2, 3, 3), y.expand(2, 3, 3), squares=True)
    torch.testing.assert_close(torch.stack(twice), torch.stack((near, far)))  # means, whatever the batch
    perfect = position_terms(y, y, squares=True)
    assert float(perfect[0]) == 0 and float(perfect[1]) == 0
    wrong = position_terms(torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[1.0, 0.0]]]), squares=False)
    assert all(torch.isfinite(term) and float(term) > 10 for term in wrong)  # the logarithm of nothing is bounded
    full = position_terms(torch.ones(1, 1, 2), torch.full((1, 1, 2), 0.5), squares=True)
    assert float(full[1]) == 0  # every base crop overlaps


def test_base_term_by_hand():
    bases = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]])  # cosines 0, 1/sqrt 2, 1/sqrt 2
    assert float(base_term(bases)) == pytest.approx(4 * 0.5 / 6, abs=1e-6)
    assert float(base_term(-bases[:, :2] + torch.tensor([[[0.0, 0], [0, 4.0]]]))) == 0
    assert float(base_term(torch.ones(2, 4, 3))) == pytest.approx(1)
    assert float(similarity(torch.tensor([[[1.0, 0]]]), torch.tensor([[[-1.0, 0]]]))) == 0  # negative ones count as 0


def test_crops_show_the_place_they_are_said_to_show():
    method = make(grid=2)
    place = torch.stack(torch.meshgrid(*[torch.arange(n).float() for n in SPEC.extent], indexing="ij"))
    x = place[1].expand(1, 1, *SPEC.extent) * 100 + place[2]
    crops = method.cut(x, torch.tensor([[[0.0, 0], [1, 0], [0.5, 1]]]))
    assert crops.shape == (3, 1, 8, 8, 8) and method.size == (8, 8, 8)
    torch.testing.assert_close(crops[0, 0], x[0, 0, :, :8, :8])
    torch.testing.assert_close(crops[1, 0], x[0, 0, :, 8:, :8])
    torch.testing.assert_close(crops[2, 0], x[0, 0, :, 4:12, 8:], atol=1e-3, rtol=1e-4)
    corner = method.places(Draws.of(batch(), Step(0, 1, 0)))
    assert corner.shape == (4, 6, 2)
    assert corner[0, :4].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert (corner >= 0).all() and (corner <= 1).all() and not torch.equal(corner[0, 4:], corner[1, 4:])
    flat = make(DataSpec("image", 1, 32, (0.0,), (1.0,), 1.0))
    assert flat.grid == 4 and flat.cut(normal(2, 1, 32, 32), corner[:2]).shape == (12, 1, 8, 8)
    assert "8 cells wide" in flat.notes[0]


def test_the_loss_by_a_loop():
    method = make(grid=2)
    encoded = method.encode(batch(), Draws.of(batch(), Step(0, 1, 0)))
    assert encoded["z"].shape == (4, 6, 256) and encoded["y"].shape == (4, 2, 4)
    encoded["z"] = encoded["z"].detach() + normal(4, 6, 256)
    got = method.score(encoded, Step(0, 1, 0))

    def likeness(a, b):
        return max(0.0, float(torch.dot(a, b) / (a.norm() * b.norm())))

    near, weight, far, base = 0.0, 0.0, [], []
    for z, t, y in zip(encoded["z"], encoded["t"], encoded["y"], strict=True):
        for r in range(2):
            for k in range(4):
                s = (likeness(z[4 + r], t[k]) + likeness(t[4 + r], z[k])) / 2
                share = float(y[r, k])
                near -= share * math.log(1 - abs(share - s))
                weight += share
                if share == 0:
                    far.append(s * s)
        base += [likeness(z[i], z[j]) ** 2 for i in range(4) for j in range(4) if i != j]
    far_mean = sum(far) / len(far) if far else 0.0
    want = near / weight + far_mean + sum(base) / len(base)
    assert float(got.total) == pytest.approx(want, rel=1e-4)


def test_across_volumes_the_teacher_says_what_the_student_should():
    method = make(grid=2, cross_volume=True, dropout=0.0)
    z, y = normal(3, 6, 8), overlaps(torch.rand(3, 2, 2), 2)
    encoded = {"z": z, "t": z.clone(), "y": y}
    got = method.score(encoded, Step(0, 1, 0))
    s = similarity(z[:, 4:], z[:, [0, 1, 2, 3]][[1, 2, 0]])  # the next sample's base crops
    want = sum(position_terms(s, s, squares=False))
    torch.testing.assert_close(got.parts["between"], want)
    assert float(got.parts["between"]) < 1e-6  # a student that agrees with its teacher pays nothing
    encoded["t"] = normal(3, 6, 8, seed=1)
    assert float(method.score(encoded, Step(0, 1, 0)).parts["between"]) > 0.1
    loss = method.score(encoded, Step(0, 1, 0))
    other = encoded["t"][[1, 2, 0], :4]  # the next sample's base crops by the teacher
    want = sum(position_terms(similarity(z[:, 4:], other), similarity(encoded["t"][:, 4:], other), squares=False))
    torch.testing.assert_close(loss.parts["between"], want)
    torch.testing.assert_close(loss.total, loss.parts["within"] + loss.parts["between"] + loss.parts["bases"])
    assert float(loss.parts["bases"]) > 0
    with pytest.raises(UsageError, match="one sample"):
        method.score({k: v[:1] for k, v in encoded.items()}, Step(0, 1, 0))


def test_without_the_second_papers_parts_its_position_term_is_the_firsts():
    # same embeddings for student and teacher: then both compare crops with bases alike
    first, second = make(grid=2), make(grid=2, cross_volume=True)
    z = normal(3, 6, 8)
    encoded = {"z": z, "t": z.clone(), "y": torch.full((3, 2, 4), 0.25)}  # overlap everywhere
    a, b = (method.score(encoded, Step(0, 1, 0)).parts for method in (first, second))
    torch.testing.assert_close(a["position"], b["within"])
    torch.testing.assert_close(a["bases"], b["bases"])


@pytest.mark.parametrize("cross_volume", [False, True])
def test_the_teacher_is_a_moving_average_and_gets_no_gradient(cross_volume):
    method = make(grid=2, cross_volume=cross_volume, momentum=0.75)
    teacher = method.companion["projector"][0].weight
    assert torch.equal(teacher, method.projector[0].weight) and ("backbone" in method.companion.members) != cross_volume
    method(batch(), Step(0, 1, 0)).total.backward()
    assert all(p.grad is None for p in method.companion.parameters())
    assert all(p.grad is not None for p in method.backbone.parameters())
    before = teacher.clone()
    with torch.no_grad():
        method.projector[0].weight.add_(1.0)
    method.after_step(Step(0, 1, 0))
    torch.testing.assert_close(teacher, before + 0.25)


def test_dropout_is_of_the_students_features_alone_and_drawn_by_the_step():
    plain, dropped = (make(grid=2, cross_volume=True, dropout=d) for d in (0.0, 0.5))
    first, second = (m.encode(batch(), Draws.of(batch(), Step(0, 1, 0))) for m in (plain, dropped))
    assert torch.equal(first["t"], second["t"]) and not torch.allclose(first["z"], second["z"])
    again = dropped.encode(batch(), Draws.of(batch(), Step(0, 1, 0)))
    torch.testing.assert_close(again["z"], second["z"])
    assert not torch.allclose(dropped.encode(batch(), Draws.of(batch(), Step(1, 2, 0)))["z"], second["z"])


@pytest.mark.parametrize("options", [{"grid": 1}, {"grid": 99}, {"crops": 0}, {"momentum": 1.5}, {"dropout": 1.0}])
def test_bad_options_are_refused(options):
    with pytest.raises(UsageError):
        make(**options)


def test_position_becomes_better_than_chance():
    place = torch.linspace(-1, 1, 16)
    x = (place[:, None] + 2 * place).expand(16, 1, 8, 16, 16) + 0.1 * normal(16, 1, 8, 16, 16)
    data, method = {"volume": x.contiguous(), "index": torch.arange(16)}, make(grid=2, head_width=32)
    optimiser = torch.optim.AdamW(method.parameters(), lr=3e-3)

    def share(step: int) -> float:
        encoded = method.encode(data, Draws.of(data, Step(step, 99, 1)))
        s = similarity(encoded["z"][:, 4:], encoded["t"][:, :4])
        return float((s.argmax(-1) == encoded["y"].argmax(-1)).float().mean())

    for step in range(25):
        optimiser.zero_grad()
        method(data, Step(step, 99, 0)).total.backward()
        optimiser.step()
        method.after_step(Step(step, 99, 0))
    with torch.no_grad():
        assert sum(share(step) for step in range(4)) / 4 > 0.5  # chance is 0.25
