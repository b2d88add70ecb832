from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.mergers.kit import Pulls, merged, moved, stored, tensors

from osteon.core.errors import UsageError
from osteon.mergers.atlas import ATLAS
from osteon.parts.merging import Models


def given(folder: Path, wanted: dict, size: float = 1.0) -> tuple[Models, dict, list[dict]]:
    base = {k: v for k, v in tensors(0).items() if k != "half"}
    states = [{k: v for k, v in moved(tensors(0), i, size).items() if k != "half"} for i in (1, 2)]
    for i, state in enumerate(states, 1):  # what batch norm saw in each fine-tuning
        state["bn.running_mean"], state["bn.running_var"] = base["bn.running_mean"] - i, base["bn.running_var"] + i
    files = [stored(folder, f"m{i}", s) for i, s in enumerate(states)]
    return Models(files, stored(folder, "b", base), teacher=Pulls(wanted)), base, states


def test_what_is_wanted_is_learned_in_every_tensor(tmp_path: Path) -> None:
    """Take the first model's weight matrix, half the second's bias, and neither's gain."""
    models, base, states = given(tmp_path, {})
    wanted = {"a.weight": states[0]["a.weight"], "a.bias": (base["a.bias"] + states[1]["a.bias"]) / 2,
              "gain": base["gain"]}
    models = Models(models.members, models.base, teacher=Pulls(wanted))
    method = ATLAS(epochs=80, weight_decay=0.0)
    found = merged(method, models)
    assert method.blocks == ["a.bias", "a.weight", "gain"] and method.coefficients.shape == (2, 3)
    assert torch.allclose(method.coefficients[:, :2], torch.tensor([[0, 1], [0.5, 0]]), atol=0.03)
    assert torch.allclose(found["a.weight"], wanted["a.weight"], atol=0.05)
    assert torch.allclose(found["gain"], base["gain"], atol=0.05)
    for name in ("bn.running_mean", "bn.running_var"):  # buffers are not composed
        assert torch.equal(found[name], base[name]) and not torch.equal(found[name], states[0][name])


def test_coefficients_put_in_by_hand(tmp_path: Path) -> None:
    models, base, states = given(tmp_path, {"a.bias": torch.zeros(6)})
    method = ATLAS(epochs=1)
    method.prepare(models)
    method.coefficients = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    assert torch.allclose(method.tensor("a.bias", models), states[0]["a.bias"], atol=1e-6)
    assert torch.allclose(method.tensor("a.weight", models), states[1]["a.weight"], atol=1e-6)
    assert torch.equal(method.tensor("gain", models), base["gain"])


def test_the_gradient_is_that_of_autograd(tmp_path: Path) -> None:
    wanted = {"a.weight": torch.randn(6, 5), "a.bias": torch.randn(6)}
    models, base, states = given(tmp_path, wanted)
    method = ATLAS()
    method.blocks, method.coefficients = models.trained, torch.tensor([[0.3, -0.2, 0.1], [0.7, 0.4, 0.0]])
    c = method.coefficients.clone().requires_grad_()
    loss = torch.zeros(())
    for k, name in enumerate(method.blocks[:2]):
        weight = base[name] + sum(c[i, k] * (s[name] - base[name]) for i, s in enumerate(states))
        loss = loss + (weight - wanted[name]).square().sum() / 2
    loss.backward()
    value, slopes = models.teacher.slopes(lambda n: method.tensor(n, models), [0])
    assert value == pytest.approx(float(loss.detach()), rel=1e-5)
    assert torch.allclose(method._gradient(models, slopes), c.grad, rtol=1e-4, atol=1e-4)


def test_batches_cover_the_samples_once_an_epoch(tmp_path: Path) -> None:
    models, _, _ = given(tmp_path, {"gain": torch.zeros(())})
    note = ATLAS(epochs=2, batch_size=4).prepare(models)[0]
    seen = models.teacher.seen
    assert [len(s) for s in seen] == [4, 2, 4, 2] and sorted(seen[0] + seen[1]) == list(range(6))
    assert seen[:2] != seen[2:] and "6 scalars learned in 4 steps on 6 samples" in note


def test_decay_pulls_to_the_base(tmp_path: Path) -> None:
    wanted = {"a.weight": torch.full((6, 5), 3.0)}
    models, _, _ = given(tmp_path, wanted)
    free, tied = ATLAS(epochs=25, weight_decay=0.0), ATLAS(epochs=25, weight_decay=20.0)
    for method in (free, tied):
        method.prepare(models)
    assert tied.coefficients.norm() < 0.5 * free.coefficients.norm()


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"lr": 0.0}, {"batch_size": 0}, {"clip": 0.0}, {"weight_decay": -1.0}])
def test_wrong_options(bad: dict) -> None:
    with pytest.raises(UsageError):
        ATLAS(**bad)
