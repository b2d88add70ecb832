"""What a step computes: visible tokens only, crops of one size together, teachers without graph."""

import pytest
import torch

from osteon.backbones import build_backbone
from osteon.core import registry
from osteon.parts.flops import count_step
from osteon.parts.types import DataSpec, Step
from osteon.train.loop import Engine, make_fabric
from osteon.train.settings import resolve_settings


def engine(objective: str, backbone: str, side: int = 32, **network: object) -> Engine:
    torch.manual_seed(0)
    net = build_backbone(backbone, channels=3, size=side, **network)
    method = registry.build("objective", objective, net, DataSpec("image", 3, side, (0.5,) * 3, (0.25,) * 3))
    settings, _ = resolve_settings({"steps": 4, "batch_size": 2, "precision": "32"}, method.recipe, 100, kind=net.kind)
    return Engine(method.train(), settings, make_fabric("32"))


def images(side: int = 32) -> dict[str, torch.Tensor]:
    return {"image": torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8), "index": torch.arange(2)}


def test_masked_steps_compute_visible_tokens_only():  # type: ignore[no-untyped-def]
    """A MAE step against the same network with nothing hidden from its encoder, decoder included on both sides."""
    work = engine("mae", "vit_small", patch=4)
    hidden = count_step(work, images(), Step(0, 4))
    work.objective.mask = lambda grid, draws: torch.zeros(2, 8 * 8, dtype=torch.bool)  # type: ignore[method-assign]
    whole = count_step(work, images(), Step(0, 4))
    assert hidden.forward + hidden.backward <= 0.35 * (whole.forward + whole.backward)


@pytest.mark.parametrize("objective", ["dino", "swav"])
def test_crops_of_one_size_pass_together_and_teachers_keep_no_graph(objective):  # type: ignore[no-untyped-def]
    work = engine(objective, "resnet_tiny", widths=[4, 8, 8], depths=[1, 1, 1])
    seen: dict[str, list[tuple[tuple[int, ...], bool]]] = {"student": [], "teacher": []}

    def watch(who: str, module: torch.nn.Module) -> None:
        module.register_forward_hook(
            lambda _m, x, out: seen[who].append((tuple(x[0].shape), out.pooled.requires_grad)))

    watch("student", work.objective.backbone)
    for companion in work.objective.companions():
        if "backbone" in getattr(companion, "members", {}):
            watch("teacher", companion["backbone"])
    work.run(images(), Step(0, 4))
    full, small = seen["student"]  # two passes whatever the number of crops
    assert full[0] == (4, 3, 32, 32) and small[0][0] > 4 and small[0][2:] == (16, 16) and full[1] and small[1]
    assert seen["teacher"] == ([((4, 3, 32, 32), False)] if objective == "dino" else [])
