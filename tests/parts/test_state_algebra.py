from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.mergers.kit import META, moved, stored, tensors

from osteon.core.errors import DataError, UsageError
from osteon.core.tensorfile import read_tensors, write_tensors
from osteon.parts.state_algebra import StateFile, check_fit, is_statistic, mean, weighted, write_stream


def test_reading_one_by_one_gives_what_was_written(tmp_path: Path) -> None:
    state = tensors(0)
    file = stored(tmp_path, "m", state)
    assert list(file) == sorted(state) and file.label == "m" and file.meta == META
    for name, value in state.items():
        assert torch.equal(file[name], value) and file.shapes[name] == tuple(value.shape)
        assert file.dtypes[name] == value.dtype
    file["a.bias"].zero_()
    assert torch.equal(file["a.bias"], state["a.bias"])  # readers own what they read
    file.verify()
    deeper = StateFile(tmp_path / "m", label="x", prefix="backbone.")
    assert list(deeper) == sorted("backbone." + n for n in state) and deeper.label == "x"
    assert torch.equal(deeper["backbone.gain"], state["gain"])
    deeper.verify()
    assert deeper.fingerprint() == file.fingerprint() != file.fingerprint("x")


def test_the_fingerprint_is_that_of_a_network(tmp_path: Path) -> None:
    from osteon.backbones import build_backbone
    from osteon.parts.adapter import fingerprint

    network = build_backbone("resnet_tiny", channels=1, size=8)
    assert stored(tmp_path, "m", network.state_dict()).fingerprint() == fingerprint(network)


def test_damage_is_found(tmp_path: Path) -> None:
    file = stored(tmp_path, "m", tensors(0))
    data = bytearray(file.path.read_bytes())
    data[-3] ^= 1
    file.path.write_bytes(data)
    with pytest.raises(DataError, match="checksum does not match"):
        StateFile(tmp_path / "m").verify()
    file.path.write_bytes(data[:100])
    with pytest.raises(DataError, match="damaged or was not written"):
        StateFile(tmp_path / "m")
    with pytest.raises(DataError, match=r"no model\.safetensors"):
        StateFile(tmp_path)


def test_what_is_written_in_a_stream_is_what_is_written_at_once(tmp_path: Path) -> None:
    state = tensors(0)
    file = stored(tmp_path, "m", state)
    asked: list[str] = []
    write_stream(tmp_path / "new" / "s.safetensors", file, lambda n: asked.append(n) or file[n], {"x": 1})
    assert asked == sorted(state)  # each once
    found, meta = read_tensors(tmp_path / "new" / "s.safetensors")  # verifies the checksum
    assert meta == {"x": 1} and all(torch.equal(found[k], v) for k, v in state.items())
    write_tensors(tmp_path / "t.safetensors", state, {"x": 1})
    notes, places = [], []
    for name in ("new/s.safetensors", "t.safetensors"):
        raw = (tmp_path / name).read_bytes()
        head = int.from_bytes(raw[:8], "little")
        assert head % 8 == 0
        entries = json.loads(raw[8:8 + head])
        notes.append(entries.pop("__metadata__"))
        places.append({key: entry["data_offsets"][0] for key, entry in entries.items()})
    assert notes[0] == notes[1]
    assert load_file(tmp_path / "new" / "s.safetensors").keys() == state.keys()  # any other reader
    assert all(place % state[key].element_size() == 0 for place_of in places for key, place in place_of.items())


@pytest.mark.parametrize(("bad", "what"), [
    (lambda t: t.double() if t.dtype == torch.float32 else t, "'a.bias' is torch.float64"),
    (lambda t: t.reshape(-1, 1), r"'a.bias' is torch.float32 \(6, 1\)"),
    (lambda t: t / 0 if t.is_floating_point() else t, "'a.bias' holds NaN or infinite")])
def test_nothing_wrong_is_written(tmp_path: Path, bad, what: str) -> None:
    file = stored(tmp_path, "m", tensors(0))
    with pytest.raises(DataError, match=what):
        write_stream(tmp_path / "s.safetensors", file, lambda n: bad(file[n]), {})
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_mean_and_sums_round_once() -> None:
    a = torch.tensor([0.1, -3e-8, 7.0])
    for copies in range(1, 40):
        assert torch.equal(mean([a] * copies), a) and torch.equal(weighted([(1 / copies, a)] * copies), a)
    half = torch.tensor([0.1]).half()
    assert torch.equal(mean([half] * 7), half) and mean([half]).dtype == torch.float16
    assert weighted([(2.0, torch.tensor([1.0])), (-1.0, torch.tensor([3.0]))]).tolist() == [-1]
    with pytest.raises(UsageError):
        weighted([])


def test_statistics_by_name() -> None:
    assert is_statistic("layer1.0.bn1.running_mean") and is_statistic("running_var")
    assert not is_statistic("bn.num_batches_tracked") and not is_statistic("bn.running_mean.weight")


@pytest.mark.parametrize(("change", "meta", "what"), [
    (lambda s: s | {"extra": torch.zeros(1)}, {}, "'extra' is in other but not in first"),
    (lambda s: {k: v for k, v in s.items() if k != "gain"}, {}, "'gain' is in first but not in other"),
    (lambda s: s | {"a.weight": torch.zeros(5, 6)}, {}, r"'a.weight' has shape \(6, 5\) in first and \(5, 6\) in"),
    (lambda s: s | {"half": torch.zeros(4)}, {}, "'half' has type torch.float16 in first"),
    (lambda s: s, {"backbone": {**META["backbone"], "name": "joke"}}, "backbones differ in name: toy and joke"),
    (lambda s: s, {"backbone": {**META["backbone"], "options": {"pool": "cls"}}}, "differ in options"),
    (lambda s: s, {"data": {**META["data"], "mean": [0.4]}}, "normalise their input differently: mean is"),
    (lambda s: s, {"data": {**META["data"], "std": [0.3]}}, "std is"), (lambda s: s, {"base": {"fingerprint": "1"}},
                                                                       "different bases")])
def test_models_that_do_not_fit(tmp_path: Path, change, meta: dict, what: str, monkeypatch) -> None:
    first, other = stored(tmp_path, "first", tensors(0)), stored(tmp_path, "other", change(tensors(1)), **meta)
    check_fit([first, stored(tmp_path, "third", tensors(2))], stored(tmp_path, "fourth", tensors(2)))
    monkeypatch.setattr(StateFile, "__getitem__", lambda self, name: pytest.fail("a tensor was read"))
    with pytest.raises(UsageError, match=what):
        check_fit([first, other])
    if "base" not in meta:
        with pytest.raises(UsageError, match=what):
            check_fit([first], other)


def test_label_order_counts_only_where_there_is_a_classifier(tmp_path: Path) -> None:
    state = tensors(0)
    swapped = {"class_names": ["b", "a"]}
    check_fit([stored(tmp_path, "p", state), stored(tmp_path, "q", state, **swapped)])
    headed = state | {"head.weight": torch.zeros(2, 5), "head.bias": torch.zeros(2)}
    with pytest.raises(UsageError, match=r"row 0 of 'head.bias' is 'a' in r and 'b' in s"):
        check_fit([stored(tmp_path, "r", headed), stored(tmp_path, "s", headed, **swapped)])
    adapted = {f"backbone.{k}": v for k, v in state.items()} | {"head.weight": torch.zeros(2, 5)}
    full = stored(tmp_path, "t", adapted, adapter={"name": "full"})
    check_fit([full], StateFile(stored(tmp_path, "u", state).path, prefix="backbone."))  # a base has no head
    with pytest.raises(UsageError, match=r"'backbone.gain' is in t but not in u"):
        check_fit([full], StateFile(stored(tmp_path, "u", {k: v for k, v in state.items() if k != "gain"}).path.parent,
                                    prefix="backbone."))


def test_moved_is_what_the_kit_says() -> None:
    assert torch.equal(moved(tensors(0), 1)["bn.running_mean"], tensors(0)["bn.running_mean"])
