from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.mergers.kit import Likes, merged, moved, stored, tensors

from osteon.mergers.task_arithmetic import TaskArithmetic
from osteon.parts.merging import Models


@pytest.mark.parametrize("scale", [0.3, 1.0, -0.5])
def test_base_plus_scaled_sum_of_changes(tmp_path: Path, scale: float) -> None:
    base = tensors(0)
    states = [moved(base, 1), moved(base, 2)]
    given = Models([stored(tmp_path, f"m{i}", s) for i, s in enumerate(states)], stored(tmp_path, "b", base))
    found = merged(TaskArithmetic(scale=scale), given)
    for name in ("a.weight", "a.bias", "gain"):
        wanted = base[name] + scale * sum(s[name] - base[name] for s in states)
        assert torch.allclose(found[name], wanted, atol=1e-6)
    assert (found["bn.running_var"] > 0).all()


def test_one_model_at_scale_one_is_itself_and_at_zero_the_base(tmp_path: Path) -> None:
    base = tensors(0)
    state = moved(base, 1)
    given = Models([stored(tmp_path, "m", state)], stored(tmp_path, "b", base))
    assert all(torch.equal(merged(TaskArithmetic(scale=1.0), given)[k], v) for k, v in state.items())
    assert torch.equal(merged(TaskArithmetic(scale=0.0), given)["a.weight"], base["a.weight"])


def test_the_scale_is_chosen_on_val_and_the_smallest_of_equals(tmp_path: Path) -> None:
    base, state = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    files = [stored(tmp_path, f"m{i}", state) for i in range(2)]
    given = Models(files, stored(tmp_path, "b", base), judge=Likes({"w": torch.tensor([0.7])}))
    method = TaskArithmetic()
    assert merged(method, given)["w"].tolist() == pytest.approx([0.7])  # 2 models: scale 0.35
    assert "scale: 0.35" in method.prepare(given)[0] and "(100.00%)" in method.prepare(given)[0]
    blind = Models(files, given.base, judge=Likes({"w": torch.tensor([0.7])}, scale=0.0))
    assert "scale: 0.05" in TaskArithmetic().prepare(blind)[0]


def test_without_val_it_is_the_uniform_soup(tmp_path: Path) -> None:
    base = tensors(0)
    states = [moved(base, i) for i in (1, 2, 3)]
    given = Models([stored(tmp_path, f"m{i}", s) for i, s in enumerate(states)], stored(tmp_path, "b", base))
    method = TaskArithmetic()
    found = merged(method, given)
    assert torch.allclose(found["a.weight"], torch.stack([s["a.weight"] for s in states]).mean(0), atol=1e-7)
    assert "uniform soup" in method.prepare(given)[0]


def test_a_classifier_the_base_lacks_is_averaged(tmp_path: Path) -> None:
    base = {"w": torch.zeros(2)}
    files = [stored(tmp_path, f"m{i}", {"w": torch.ones(2), "head.weight": torch.full((2,), float(i))}) for i in (0, 1)]
    found = merged(TaskArithmetic(scale=1.0), Models(files, stored(tmp_path, "b", base)))
    assert found["w"].tolist() == [2, 2] and found["head.weight"].tolist() == [0.5, 0.5]
