from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.mergers.kit import merged, stored, tensors

from osteon.mergers.uniform_soup import UniformSoup
from osteon.parts.merging import Models


def test_soup_is_the_mean_of_floats_and_the_largest_of_counts(tmp_path: Path) -> None:
    states = [tensors(i) for i in range(3)]
    found = merged(UniformSoup(), Models([stored(tmp_path, f"m{i}", s) for i, s in enumerate(states)]))
    for name, value in found.items():
        every = torch.stack([s[name] for s in states])
        if name == "bn.num_batches_tracked":
            assert int(value) == 7  # 5, 6 and 7 batches
        else:
            assert torch.equal(value, (every.double().sum(0) / 3).to(value.dtype)), name
    assert {"bn.running_mean", "bn.running_var", "half", "gain"} <= set(found)


def test_order_does_not_matter(tmp_path: Path) -> None:
    files = [stored(tmp_path, f"m{i}", tensors(i)) for i in range(4)]
    one, other = merged(UniformSoup(), Models(files)), merged(UniformSoup(), Models(files[::-1]))
    assert all(torch.allclose(one[k].float(), other[k].float(), atol=1e-7) for k in one)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32])
def test_whole_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    a, b = torch.tensor([0, 1, 0]).to(dtype), torch.tensor([0, 0, 1]).to(dtype)
    files = [stored(tmp_path, n, {"x": v, "w": torch.ones(1)}) for n, v in (("a", a), ("b", b))]
    assert torch.equal(merged(UniformSoup(), Models(files))["x"], torch.tensor([0, 1, 1]).to(dtype))


def test_soup_of_linear_models_is_their_ensemble(tmp_path: Path) -> None:
    states = [{"w": torch.randn(3, 5, generator=torch.Generator().manual_seed(i))} for i in range(4)]
    x = torch.randn(7, 5)
    soup = merged(UniformSoup(), Models([stored(tmp_path, f"m{i}", s) for i, s in enumerate(states)]))["w"]
    assert torch.allclose(x @ soup.T, torch.stack([x @ s["w"].T for s in states]).mean(0), atol=1e-6)
