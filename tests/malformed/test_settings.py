"""Settings of the wrong kind or size end `osteon pretrain` in one clear error, before anything is written or built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from osteon import cli
from osteon.backbones import build_backbone
from osteon.core.errors import DataError
from osteon.core.run import RunFolder
from osteon.core.tensorfile import read_tensors, write_tensors
from osteon.parts.types import DataSpec
from osteon.verbs._model import load_trained, save_trained

WORDS = ("pretrain", "digits:train", "--objective", "simclr", "--backbone", "vit_tiny", "--steps", "2", "--quiet")
#: what is set -> a word of the message
SET: dict[str, str] = {
    "seed=-1": "seed", "seed=1180591620717411303424": "seed", "batch_size=0": "batch_size", "lr=.inf": "lr",
    "lr=fast": "lr", "betas=[2, 2]": "betas", "weight_decay_end=.nan": "weight_decay_end", "size=wide": "size",
    "limit=[1, 2]": "limit", "max_skipped=all": "max_skipped", "mix=1": "mix", "mix=true": "mix",
    "backbone.dim=wide": "dim", "backbone.depth=-1": "depth", "backbone.depth=1000000": "depth",
    "backbone.heads=3": "heads", "backbone.dim=1000000000": "dim", "backbone.patch=[1]": "patch",
    "temperature=cold": "temperature", "curriculum_sizes=wide": "curriculum_sizes", "highway=-1": "highway"}


def osteon(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(list(words))
    return int(left.value.code or 0)


def refused(capsys: pytest.CaptureFixture[str], out: Path, word: str) -> None:
    text = capsys.readouterr().err
    assert "Error:" in text and "fix:" in text and "Internal" not in text and "Traceback" not in text, text
    assert word in text, text
    assert not out.exists()


@pytest.mark.parametrize("wish", SET)
def test_a_setting_is_refused_by_name(wish: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert osteon(*WORDS, "--set", wish, "--out", str(tmp_path / "run")) == 2
    refused(capsys, tmp_path / "run", SET[wish])


@pytest.mark.parametrize(("given", "word"), [
    ({"objective": 3}, "objective"), ({"objective": {"a": 1}}, "objective"), ({"backbone": [1]}, "backbone"),
    ({"train": {"seed": -1}}, "seed"), ({"train": {"lr": "fast"}}, "lr"), ({"data": {"size": "wide"}}, "size"),
    ({"backbone_options": {"dim": "wide"}}, "dim")], ids=str)
def test_so_is_a_value_of_a_file(given: Any, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"objective": "simclr", "backbone": "vit_tiny", **given}))
    words = [w for w in WORDS if w not in ("--objective", "simclr", "--backbone", "vit_tiny")]
    assert osteon(*words, "--config", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run")) == 2
    refused(capsys, tmp_path / "run", word)


def test_a_network_that_does_not_fit_into_memory_is_not_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 10**6})())
    assert osteon(*WORDS, "--set", "backbone.dim=192", "--out", str(tmp_path / "run")) == 2
    refused(capsys, tmp_path / "run", "GiB")


def test_counting_weights_leaves_the_random_state_alone() -> None:
    torch.manual_seed(0)
    plain = build_backbone("vit_tiny", channels=1, size=8)
    torch.manual_seed(0)
    asked = build_backbone("vit_tiny", channels=1, size=8, depth=len(plain.blocks))
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), asked.state_dict().values(), strict=True))


@pytest.mark.parametrize("change", [
    {"options": {"depth": 10**6}}, {"options": {"dim": 2**20}}, {"options": [1]}, {"name": 3}, {"name": "resnet_tiny"},
    {"channels": "x"}, {"size": -1}, {"edits": "x"}], ids=str)
def test_a_file_that_describes_another_network_is_refused_before_memory_is_taken(change: Any, tmp_path: Path) -> None:
    network, spec = build_backbone("vit_tiny", channels=1, size=8), DataSpec("image", 1, 8, (0.5,), (0.2,))
    run = RunFolder(tmp_path / "run")
    with run.lock():
        run.create_or_resume({})
        save_trained(run, network, spec, {})
    file = tmp_path / "run" / "model.safetensors"
    tensors, meta = read_tensors(file)
    made = {**meta["backbone"], **change}
    if isinstance(change.get("options"), dict):
        made["options"] = {**meta["backbone"]["options"], **change["options"]}
    write_tensors(file, tensors, {**meta, "backbone": made})
    with pytest.raises(DataError) as told:
        load_trained(tmp_path / "run")
    assert told.value.fix and str(file) in str(told.value)
