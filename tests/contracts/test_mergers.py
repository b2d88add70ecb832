"""What every registered merger must satisfy: copies give the model back, one tensor of each model is in memory."""

from __future__ import annotations

import gc
import inspect
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from osteon.core import registry
from osteon.core.tensorfile import read_tensors
from osteon.parts.merging import Models
from osteon.parts.state_algebra import StateFile, write_stream
from tests.mergers.kit import META, Likes, Pulls, merged, moved, stored, tensors

CARDS = registry.cards(kind="merger")
LOADED = {c.name: registry.load(c) for c in CARDS}
WEIGHTS = [name for name, made in LOADED.items() if made.rule == "weights"]
#: options under which the method's own algebra gives copies of a model back whatever the base is: ties must not trim
WHOLE = {"ties": {"keep": 1.0}}
#: the result lies in the span of learned or chosen coefficients: only copies of the base itself come back
SPAN = ("atlas",)
#: the same road, fewer rounds
QUICK = {"atlas": {"epochs": 1}}
#: many tensors, so that a whole model would show
BLOCKS, SIDE = 30, 160


def models(folder: Path, states: list[dict], base: dict) -> Models:
    files = [stored(folder, f"m{i}", s) for i, s in enumerate(states)]
    return Models(files, stored(folder, "base", base), Likes(states[0]), Pulls(states[0]))


def without_judge(given: Models, name: str) -> Models:
    """The models as they come without --val, where the method does not need it."""
    return given if "val" in LOADED[name].needs else replace(given, judge=None)


def number(name: str) -> int:
    return LOADED[name].exactly or 3


def test_the_catalogue_has_the_family() -> None:
    assert {"uniform_soup", "greedy_soup", "task_arithmetic", "ties", "slerp", "atlas"} <= set(WEIGHTS)


@pytest.mark.parametrize("name", [c.name for c in CARDS])
def test_options_are_keyword_only_with_defaults(name: str) -> None:
    settings = list(inspect.signature(LOADED[name]).parameters.values())
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in settings)
    assert set(LOADED[name].needs) <= {"base", "val", "train"}


@pytest.mark.parametrize("name", WEIGHTS)
class TestEveryMerger:
    def test_copies_of_the_base_give_it_back_bit_for_bit(self, name: str, tmp_path: Path) -> None:
        state = tensors(0)
        found = merged(LOADED[name](), models(tmp_path, [state] * number(name), state))
        assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in state.items())

    def test_copies_of_one_model_give_it_back(self, name: str, tmp_path: Path) -> None:
        if name in SPAN:
            pytest.skip("its coefficients are learned; see its own tests")
        base = tensors(0)
        state = moved(base, 1)
        given = without_judge(models(tmp_path, [state] * number(name), base), name)
        found = merged(LOADED[name](**WHOLE.get(name, {})), given)
        for key, value in state.items():
            if name == "ties" and value.is_floating_point():  # the base is taken away and added again
                assert torch.allclose(found[key], value, rtol=1e-6, atol=1e-7)
            else:
                assert torch.equal(found[key], value), key

    def test_every_tensor_keeps_shape_and_type_and_the_files_are_left_alone(self, name: str, tmp_path: Path) -> None:
        base = tensors(0)
        given = models(tmp_path, [moved(base, i + 1) for i in range(number(name))], base)
        before = [m.path.read_bytes() for m in given.members]
        found = merged(LOADED[name](), given)
        assert {k: (v.dtype, v.shape) for k, v in found.items()} == {k: (v.dtype, v.shape) for k, v in base.items()}
        assert all(torch.isfinite(v.float()).all() for v in found.values())
        assert before == [m.path.read_bytes() for m in given.members]
        assert (found["bn.running_var"] > 0).all()

    def test_it_repeats_itself(self, name: str, tmp_path: Path) -> None:
        base = tensors(0)
        given = models(tmp_path, [moved(base, i + 1) for i in range(number(name))], base)
        first, second = (merged(LOADED[name](**QUICK.get(name, {})), given) for _ in range(2))
        assert all(torch.equal(first[k], second[k]) for k in first)

    def test_memory_is_one_tensor_of_each_model(self, name: str, tmp_path: Path, monkeypatch) -> None:
        """From preparation to the last write: what was read from files and is alive, and every tensor that is alive."""
        count, one = number(name), SIDE * SIDE * 4
        big = {f"layer{i:02d}": torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(i))
               for i in range(BLOCKS)}
        states = [{k: v + 0.01 * (i + 1) * torch.ones_like(v) for k, v in big.items()} for i in range(count)]
        given = models(tmp_path, states, big)
        given = without_judge(Models(given.members, given.base, Asks(), Asks()), name)
        del states
        gc.collect()
        read, from_files = StateFile.__getitem__, Alive()

        def counted(self: StateFile, key: str) -> torch.Tensor:
            tensor = read(self, key)
            from_files.add(tensor)
            return tensor

        monkeypatch.setattr(StateFile, "__getitem__", counted)
        merger = LOADED[name](**QUICK.get(name, {}))
        with Every() as every:
            merger.prepare(given)
            write_stream(tmp_path / "out.safetensors", given.members[0], lambda key: merger.tensor(key, given), META)
        assert 0 < from_files.peak <= (count + 1) * one
        # Sums are in float64, ties lays the models' changes side by side and counts in two tables of 0.5 MB; all models
        # would be 30 (count + 1).
        assert 0 < every.alive.peak <= 9 * (count + 1) * one, f"{every.alive.peak / one:.1f} tensors were alive"
        assert read_tensors(tmp_path / "out.safetensors")[0].keys() == big.keys()


class Alive:
    """Bytes of the tensors that were added and still exist, and the most there ever were; shared memory counts once."""

    def __init__(self) -> None:
        self.sizes: dict[int, tuple[int, int]] = {}
        self.peak = 0

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        self.sizes[id(tensor)] = storage.data_ptr(), storage.nbytes()
        weakref.finalize(tensor, self.sizes.pop, id(tensor), None)
        self.peak = max(self.peak, sum(dict(self.sizes.values()).values()))


class Every(TorchDispatchMode):
    """Counts the output of every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = Alive()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, list | tuple) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.alive.add(tensor)
        return out


class Asks:
    """Judge and teacher that look at one tensor after another and keep none."""

    count = 4

    def quality(self, weights, *, merged: bool = True):
        import numpy as np
        return np.array([float(weights(f"layer{i:02d}").mean() > -9) for i in range(BLOCKS)])

    def slopes(self, weights, rows):
        total = sum(float(weights(f"layer{i:02d}").sum()) for i in range(BLOCKS))
        return total, {f"layer{i:02d}": torch.ones(1, 1).expand(SIDE, SIDE) for i in range(BLOCKS)}
