"""Computing blocks again gives the same gradients and statistics, and keeps less."""

import numpy as np
import pytest
import torch

from osteon.backbones import build_backbone
from osteon.core import registry
from osteon.core.errors import UsageError
from osteon.data import open_source
from osteon.parts.checkpointing import blocks_of
from osteon.parts.compiling import Compiled
from osteon.parts.flops import count_step
from osteon.parts.types import Step
from osteon.train.loop import Engine, make_fabric
from osteon.train.settings import resolve_settings

DIGITS = open_source("digits:train", cache=False, limit=64)
TINY = {"vit_tiny": {"dim": 16, "depth": 3, "heads": 2, "patch": 2},
        "resnet_tiny": {"widths": [4, 8], "depths": [1, 2]}}


def engine(objective: str, backbone: str, wishes: dict[str, object], **options: object) -> Engine:
    torch.manual_seed(0)
    network = build_backbone(backbone, channels=1, size=8, **{**TINY[backbone], **options})
    method = registry.build("objective", objective, network, DIGITS.spec)
    asked = {"steps": 6, "batch_size": 16, "precision": "32", **wishes}
    return Engine(method.train(), resolve_settings(asked, method.recipe, 64, kind=network.kind)[0], make_fabric("32"))


def trained(work: Engine) -> tuple[dict[str, torch.Tensor], float]:
    """Every parameter and buffer after three steps, and megabytes kept for the backward pass of the first."""
    kept = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        kept.append(x.untyped_storage())
        return x

    batch = DIGITS.batch(np.arange(16))
    for i in range(3):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            work.run(batch, Step(i, 6))
        if i == 0:
            own = {p.untyped_storage().data_ptr() for p in work.objective.parameters()}
            size = sum({s.data_ptr(): s.nbytes() for s in kept if s.data_ptr() not in own}.values()) / 1e6
            kept.clear()
    return work.objective.state_dict(), size


@pytest.mark.parametrize(("objective", "backbone", "options", "wishes"), [
    ("mae", "vit_tiny", {"drop_path": 0.3}, {}), ("simclr", "resnet_tiny", {}, {}),
    ("byol", "resnet_tiny", {"drop_path": 0.3}, {}), ("dino", "vit_tiny", {}, {"precision": "bf16"}),
    ("simclr", "vit_tiny", {"pool": "cls"}, {"accumulate": 2, "accumulate_inexact": True})])
def test_same_training_with_less_kept(objective, backbone, options, wishes):  # type: ignore[no-untyped-def]
    plain, much = trained(engine(objective, backbone, wishes, **options))
    light, little = trained(engine(objective, backbone, {**wishes, "checkpointing": True}, **options))
    assert little < 0.85 * much
    for name, value in plain.items():
        torch.testing.assert_close(light[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_blocks_are_what_consists_of_layers():
    method = engine("dino", "vit_tiny", {}).objective
    assert blocks_of(method.backbone) == list(method.backbone.blocks)
    assert blocks_of(method, method.companions()) == list(method.backbone.blocks)
    assert len(blocks_of(method)) == 6  # the teacher's too
    network = engine("simclr", "resnet_tiny", {}).objective.backbone
    assert blocks_of(network) == [*network.layer1, *network.layer2]


def test_what_is_computed_again_is_counted_and_networks_are_left_as_they_were():
    batch = DIGITS.batch(np.arange(16))
    plain, light = engine("mae", "vit_tiny", {}), engine("mae", "vit_tiny", {"checkpointing": True})
    costs = [count_step(work, batch, Step(0, 6)) for work in (plain, light)]
    assert costs[0].forward == costs[1].forward and costs[0].backward < costs[1].backward
    light.run(batch, Step(0, 6))
    assert all("forward" not in vars(m) for m in light.objective.modules())


@pytest.mark.parametrize("setting", ["checkpointing", "compile"])
def test_refused_where_impossible(setting, monkeypatch):  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match="Highway"):
        engine("mae", "vit_tiny", {setting: True, "highway": 2})
    if setting == "checkpointing":
        with pytest.raises(UsageError, match="drop_mode=batch"):
            engine("mae", "vit_tiny", {setting: True}, drop_path=0.5, drop_mode="batch")
    else:
        monkeypatch.setattr("shutil.which", lambda name: None)
        with pytest.raises(UsageError, match="compiler"):
            engine("mae", "vit_tiny", {setting: True})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch.compile's own look at its inputs
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_train_the_same(checkpointing):  # type: ignore[no-untyped-def]
    """Traced and run by the eager backend: what compiled code makes of it is measured in docs/evidence/steps.md."""
    wishes = {"compile": True, "checkpointing": checkpointing}
    plain, work = engine("mae", "vit_tiny", {}), engine("mae", "vit_tiny", wishes)
    work.compiled = Compiled("eager")
    batch = DIGITS.batch(np.arange(16))
    for i in range(2):
        wanted, found = (w.run(batch, Step(i, 6))[0].total for w in (plain, work))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert len(work.compiled._made) == len(blocks_of(work.objective)) > 3
    assert all("forward" not in vars(m) for m in work.objective.modules())
    cost = count_step(work, batch, Step(2, 6))  # operations inside compiled code are counted as outside
    assert cost.forward == count_step(plain, batch, Step(2, 6)).forward
