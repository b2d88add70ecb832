"""TransTab's contrast: the loss pair by pair, and what each group may see."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.data import open_source
from osteon.modalities import find
from osteon.objectives.transtab import TransTab
from osteon.parts.cells import only, present, without
from osteon.parts.types import Draws, Step

DATA = open_source("mixed:train", cache=False).subset(np.arange(12))


def method(**options) -> TransTab:
    torch.manual_seed(0)
    spec = DATA.spec
    network = build_backbone("vit_tiny", channels=2, size=spec.extent, dim=16, depth=1, heads=2,
                             **find("table").backbone_options(spec))
    return TransTab(network, spec, **options)


def batch(rows=range(12)) -> dict[str, torch.Tensor]:
    return DATA.batch(np.array(list(rows)))


def by_hand(z: torch.Tensor, owner: list[int], temperature: float) -> float:
    """Every pair of groups, with plain products."""
    flat, own = z.flatten(0, 1), [o for o in owner for _ in range(z.shape[1])]
    losses = []
    for i in range(len(flat)):
        weight = [math.exp(float(flat[i] @ flat[a]) / temperature) for a in range(len(flat))]
        total = sum(w for a, w in enumerate(weight) if a != i)
        positive = [p for p in range(len(flat)) if p != i and own[p] == own[i]]
        losses.append(-sum(math.log(weight[p] / total) for p in positive) / len(positive))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("supervised", [False, True])
def test_the_loss_pair_by_pair(supervised):
    objective = method(supervised=supervised)
    z = 3 * torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(1))
    label = torch.tensor([1, 0, 1, 2]) if supervised else torch.arange(4)
    loss = objective.score({"z": z, "label": label}, Step(0, 1))
    assert float(loss.total) == pytest.approx(by_hand(z, label.tolist(), 10.0), rel=1e-5)
    longer = objective.score({"z": 2 * z, "label": label}, Step(0, 1))
    assert abs(float(longer.total) - float(loss.total)) > 0.1  # lengths matter: these are no cosines


def test_only_groups_of_the_same_row_are_positives_unless_labels_say_more():
    plain, labelled = method(), method(supervised=True)
    draws = Draws.of(batch(), Step(0, 1))
    assert plain.encode(batch(), draws)["label"].tolist() == list(range(12))
    assert torch.equal(labelled.encode(batch(), draws)["label"], batch()["label"])


def test_a_group_sees_no_cell_of_another():
    """A cell outside of a group leaves its projection as it is; one inside does not."""
    objective = method(overlap=0.0).eval()
    data, draws = batch(), Draws.of(batch(), Step(3, 9))
    first, second, third = objective.groups(draws)
    changed = {**data, "table": data["table"].clone()}
    column = next(int(c) for c in second if DATA.spec.traits["columns"][int(c)]["kind"] == "numeric")
    changed["table"][:, 0, column] += 2
    changed["table"][:, 1, column] = 0
    with torch.no_grad():
        one, two = objective.encode(data, draws)["z"], objective.encode(changed, draws)["z"]
    torch.testing.assert_close(one[:, [0, 2]], two[:, [0, 2]])
    assert not torch.allclose(one[:, 1], two[:, 1], atol=1e-3)
    assert sorted(torch.cat([first, second, third]).tolist()) == list(range(14))


def test_groups_change_from_step_to_step_and_are_the_same_for_all_rows():
    objective = method()
    shown = [[g.tolist() for g in objective.groups(Draws(Step(i, 9), torch.tensor(rows), 12))]
             for i, rows in ((0, [0]), (0, [5, 6]), (1, [0]))]
    assert shown[0] == shown[1] != shown[2]


def test_the_order_of_columns_within_a_group_does_not_matter():
    objective, x = method().eval(), batch()["table"]
    group = torch.tensor([7, 2, 11, 4])
    with torch.no_grad():
        one, two = (objective.backbone(x, keep=g.expand(12, -1)).pooled for g in (group, group.flip(0)))
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_missing_cells_are_read():
    objective, data = method(), batch()
    data["table"][:, 1] = 1
    for j, column in enumerate(DATA.spec.traits["columns"]):
        data["table"][:, 0, j] = column["absent"]
    z = objective.encode(data, Draws.of(data, Step(0, 1)))["z"]
    assert torch.isfinite(z).all() and torch.allclose(z[0], z[5])
    # and a batch of equal rows has a loss
    assert math.isfinite(float(objective(data, Step(0, 1)).total.detach()))


def named(way: str = "pieces") -> tuple[TransTab, dict[str, torch.Tensor]]:
    """The objective on rows read by names, and a batch of these."""
    torch.manual_seed(0)
    data = open_source("mixed:train", cache=False, names=way).subset(np.arange(12))
    network = build_backbone("vit_tiny", channels=data.spec.channels, size=data.spec.extent, dim=16, depth=1, heads=2,
                             **find("table").backbone_options(data.spec))
    return TransTab(network, data.spec, overlap=0.0).eval(), data.batch(np.arange(12))


def test_by_names_a_group_sees_no_cell_of_another():
    objective, data = named()
    draws = Draws.of(data, Step(3, 9))
    groups = objective.groups(draws)
    gone = torch.zeros(12, 14, dtype=torch.bool)
    gone[:, groups[1]] = True
    with torch.no_grad():
        one, two = (objective.encode({**data, "table": x}, draws)["z"] for x in (
            data["table"], without(data["table"], gone)))
    torch.testing.assert_close(one[:, [0, 2]], two[:, [0, 2]])
    assert (one[:, 1] - two[:, 1]).abs().amax(1).min() > 1e-3
    torch.testing.assert_close(two[:, 1], two[:1, 1].expand(12, -1))  # nothing is left of any row


@pytest.mark.parametrize("way", ["cells", "pieces", "units"])
def test_by_names_a_row_of_another_table_is_cut_by_its_own_columns(way):
    """What stands beside a row in the batch, and how many columns that has, does not matter to it."""
    objective, data = named(way)
    few = torch.zeros(12, 14, dtype=torch.bool)
    few[6:, 3:] = True
    draws, x = Draws.of(data, Step(1, 9)), only(data["table"], ~few)
    with torch.no_grad():
        z = objective.encode({**data, "table": x}, draws)["z"]
        three = torch.arange(14)[None].expand(12, -1) < 3
        again = objective.encode({**data, "table": only(data["table"], three)}, draws)
        none = objective.encode({**data, "table": only(data["table"], three & False)}, draws)["z"][0, 0]
        whole = objective.encode(data, draws)
    torch.testing.assert_close(z[6:], again["z"][6:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(z[:6], whole["z"][:6], atol=1e-5, rtol=1e-4)
    there = present(x)[6:, :3].all(1)  # three columns in three groups: each has one
    for step in range(2, 6):
        with torch.no_grad():
            z = objective.encode({**data, "table": x}, Draws.of(data, Step(step, 9)))["z"]
        assert there.any() and (z[6:][there] - none).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("options", [{"partitions": 1}, {"partitions": 15}, {"overlap": -0.1}, {"overlap": 1.5},
                                     {"temperature": 0.0}, {"out": 0}])
def test_bad_options_are_named(options):
    with pytest.raises(UsageError):
        method(**options)


def test_supervised_needs_one_label_a_row():
    from dataclasses import replace

    network = method().backbone
    for spec in (replace(DATA.spec, num_classes=0), replace(DATA.spec, multi_label=True)):
        with pytest.raises(UsageError):
            TransTab(network, spec, supervised=True)
