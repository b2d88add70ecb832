"""What objectives around another one share, seen at self_distilled."""

from __future__ import annotations

import copy

import pytest
import torch

from osteon.backbones import build_backbone
from osteon.core import registry
from osteon.core.errors import UsageError
from osteon.objectives._around import hidden
from osteon.objectives.self_distilled import SelfDistilled
from osteon.parts.types import DataSpec, Draws, Features, Step

SPEC = DataSpec("image", 3, 16, (0.5,) * 3, (0.25,) * 3, num_classes=4)


def made(task="auto", backbone="vit_tiny", spec=SPEC, **options):
    torch.manual_seed(0)
    return SelfDistilled(build_backbone(backbone, channels=3, size=16), spec, task=task, **options)


def batch():
    generator = torch.Generator().manual_seed(0)
    return {"image": torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=generator),
            "index": torch.arange(6), "label": torch.arange(6) % 4}


def test_the_class_token_is_taken_where_there_is_one():
    pooled, cls = torch.zeros(1, 2), torch.ones(1, 2)
    assert hidden(Features(pooled, torch.zeros(1, 1, 2), (1, 1), cls=cls)) is cls
    assert hidden(Features(pooled, torch.zeros(1, 1, 2), (1, 1))) is pooled


def test_no_weight_is_kept_twice():
    method = made()
    names = [k for k in method.state_dict() if k.endswith("patch_embed.proj.weight")]
    assert names == ["backbone.patch_embed.proj.weight", "teacher.patch_embed.proj.weight"]
    assert method.inner.backbone is method.backbone and copy.deepcopy(method).inner.backbone is not method.backbone


def test_the_full_image_is_the_view_the_task_sees():
    """Drawn once more from the same streams; the plain image where the task cuts another size."""
    method, x = made("mae"), batch()
    draws = Draws.of(x, Step(2, 5, 1))
    assert torch.equal(method.full(x, draws), method.inner.views(x["image"], draws)[0].x)
    assert torch.equal(method.full(x, draws), method.full(x, draws))
    cut = made("jigclu")
    assert torch.equal(cut.full(x, draws), (x["image"].float() / 255 - 0.5) / 0.25)


def test_the_tasks_state_moves_on_and_its_hooks_answer():
    method, x = made("byol"), batch()
    before = {k: v.clone() for k, v in method.inner.companion.state_dict().items()}
    with torch.no_grad():
        next(method.backbone.parameters()).add_(1.0)
    method.after_step(Step(0, 5))
    assert any(not torch.equal(v, before[k]) for k, v in method.inner.companion.state_dict().items())
    assert method.companions() == [method.teacher, *method.inner.companions()]
    assert made("dino").exported() is not None and made("mae").reconstruct(x, Step(0, 5)) is not None
    dino = made("dino")
    assert dino.exported() is dino.inner.exported() and dino.exported() is not dino.backbone
    assert method.recipe == registry.load(registry.find("objective", "byol")).recipe


def test_options_of_the_task_and_mistakes():
    assert made(options={"ratio": 0.5}).inner.ratio == 0.5
    assert "task=spark" in made(backbone="resnet_tiny").notes[0]
    with pytest.raises(UsageError, match="Mae trains tokens"):
        made("mae", "resnet_tiny")
    with pytest.raises(UsageError, match="cannot be self_distilled"):
        made("self_distilled")
    with pytest.raises(UsageError, match="learns from labels"):
        made("supervised", spec=DataSpec("image", 3, 16, (0.5,) * 3, (0.25,) * 3))
