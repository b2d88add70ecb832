from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import build_backbone
from osteon.core import registry
from osteon.core.errors import UsageError
from osteon.parts.companion import Companion
from osteon.parts.flops import PHASES, StepCost, count_forward, count_step
from osteon.parts.objective import Objective
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.train.loop import Engine, make_fabric
from osteon.train.settings import resolve_settings

SPEC = DataSpec("image", 3, 16, (0.5,) * 3, (0.25,) * 3, num_classes=4)


class Chain(Objective):
    """Two linear maps, 4 -> 6 -> 5, scored by their mean; a teacher of the first one where asked."""

    def __init__(self, *, teacher: bool = False, drop: float = 0.0) -> None:
        nn.Module.__init__(self)
        self.first, self.second, self.drop = nn.Linear(4, 6, bias=False), nn.Linear(6, 5, bias=False), nn.Dropout(drop)
        self.register_buffer("calls", torch.zeros(()))
        self.companion = Companion(first=self.first) if teacher else None

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        x = batch["image"]
        encoded = {"features": x.detach(), "y": self.second(self.drop(self.first(x)))}
        if self.companion is not None:
            with torch.no_grad():
                encoded["t"] = self.companion["first"](x)
        return encoded

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        return Loss(encoded["y"].sin().mean())

    def after_step(self, step: Step) -> None:
        self.calls += 1

    def companions(self) -> list[nn.Module]:
        return [] if self.companion is None else [self.companion]


def engine(method: Objective, *, batch: int = 10, accumulate: int = 1) -> Engine:
    settings, _ = resolve_settings({"batch_size": batch, "steps": 4, "accumulate": accumulate, "precision": "32"}, {},
                                   100, kind="tokens")
    return Engine(method, settings, make_fabric("32"))


def numbers(rows: int = 10) -> dict[str, Tensor]:
    return {"image": torch.randn(rows, 4), "index": torch.arange(rows)}


def images(rows: int = 8) -> dict[str, Tensor]:
    return {"image": torch.randint(0, 256, (rows, 3, 16, 16), dtype=torch.uint8), "index": torch.arange(rows),
            "label": torch.arange(rows) % 4}


class TestForward:
    def test_a_linear_map_is_two_operations_a_weight_and_row(self) -> None:
        assert count_forward(nn.Linear(7, 11), torch.randn(5, 7)) == 2 * 5 * 7 * 11

    def test_a_convolution_is_two_operations_a_weight_and_place(self) -> None:
        assert count_forward(nn.Conv2d(3, 8, 3, padding=1), torch.randn(2, 3, 6, 6)) == 2 * 2 * 8 * 3 * 9 * 36
        assert count_forward(nn.Conv2d(4, 8, 3, padding=1, groups=4), torch.randn(2, 4, 6, 6)) == 2 * 2 * 8 * 9 * 36

    @pytest.mark.parametrize("masked", [False, True])
    def test_attention_is_two_products(self, masked: bool) -> None:
        """q k^T and its product with v: each 2 M M d operations a head and sample, whatever the kernel and mask."""
        def attend(x: Tensor) -> Tensor:
            mask = torch.ones(9, 9).tril().bool() if masked else None
            return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)

        assert count_forward(attend, torch.randn(2, 3, 9, 4)) == 2 * 3 * (2 * 2 * 9 * 9 * 4)

    def test_a_transformer_is_its_textbook_formula(self) -> None:
        """Patches 2 N (C p^2) D; a block 2 N (3 + 1 + 8) D^2 for its maps and 4 N^2 D for attention."""
        net = build_backbone("vit_tiny", channels=3, size=16, depth=2, dim=24, heads=3, patch=4)
        batch, tokens, dim = 2, 16, 24
        block = 2 * tokens * 12 * dim**2 + 4 * tokens**2 * dim
        assert count_forward(net, torch.randn(batch, 3, 16, 16)) == batch * (2 * tokens * 48 * dim + 2 * block)

    def test_vectors_transforms_and_decompositions_count(self) -> None:
        assert count_forward(lambda x: x @ torch.ones(6), torch.randn(5, 6)) == 2 * 30
        assert count_forward(lambda x: torch.dot(x, x), torch.randn(6)) == 12
        assert count_forward(torch.fft.fft2, torch.randn(2, 8, 8, dtype=torch.complex64)) == 5 * 128 * 6
        assert count_forward(torch.fft.rfft2, torch.randn(2, 8, 8)) == 2.5 * 128 * 6
        spectrum = torch.randn(2, 8, 5, dtype=torch.complex64)
        assert count_forward(lambda x: torch.fft.irfft2(x, s=(8, 8)), spectrum) == pytest.approx(2.5 * 128 * 6, rel=0.5)
        assert count_forward(torch.linalg.cholesky, torch.eye(6)) == 6**3 // 3
        assert count_forward(torch.linalg.eigh, torch.eye(6)) == 9 * 6**3

    def test_element_wise_work_is_left_out(self) -> None:
        assert count_forward(nn.Sequential(nn.LayerNorm(7), nn.GELU(), nn.Softmax(-1)), torch.randn(5, 7)) == 0

    def test_running_statistics_and_random_state_stay(self) -> None:
        net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        state, before = torch.get_rng_state(), [b.clone() for b in net.buffers()]
        count_forward(net, torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))
        assert all(torch.equal(a, b) for a, b in zip(net.buffers(), before, strict=True))
        assert torch.equal(state, torch.get_rng_state())


def test_inference_mode_is_refused_since_it_would_count_nothing():
    with torch.inference_mode(), pytest.raises(UsageError, match="inference mode"):
        count_forward(nn.Linear(2, 3), torch.zeros(1, 2))


class TestStep:
    def test_backward_is_twice_forward_less_the_gradient_of_the_input(self) -> None:
        cost = count_step(engine(Chain()), numbers(), Step(0, 4))
        first, second = 2 * 10 * 4 * 6, 2 * 10 * 6 * 5
        assert cost == StepCost(first + second, 2 * (first + second) - first, 0, 0)
        assert cost.total == 3 * (first + second) - first

    def test_a_teacher_is_counted_apart(self) -> None:
        plain, taught = (count_step(engine(Chain(teacher=t)), numbers(), Step(0, 4)) for t in (False, True))
        assert taught == StepCost(plain.forward, plain.backward, 0, 2 * 10 * 4 * 6)

    def test_exact_accumulation_pays_two_forwards(self) -> None:
        """Also the first, which runs without gradient, is the student's forward and no teacher's."""
        once, twice = (count_step(engine(Chain(teacher=True), accumulate=a), numbers(), Step(0, 4)) for a in (1, 2))
        assert (twice.forward, twice.backward, twice.teachers) == (2 * once.forward, once.backward, 2 * once.teachers)

    def test_all_processes_together(self) -> None:
        one = engine(Chain())
        alone = count_step(one, numbers(), Step(0, 4))
        one.gather = lambda x: torch.cat([x] * 3)  # type: ignore[method-assign]
        one.world = 3
        assert count_step(one, numbers(), Step(0, 4)).total == 3 * alone.total

    def test_nothing_is_left_behind(self) -> None:
        method = registry.build("objective", "byol", build_backbone("resnet_tiny", channels=3, size=16), SPEC)
        training = engine(method, batch=8)
        batch = images()
        state, random = {k: v.clone() for k, v in method.state_dict().items()}, torch.get_rng_state()
        views, encode = method.views, method.encode
        count_step(training, batch, Step(0, 4))
        assert all(torch.equal(v, state[k]) for k, v in method.state_dict().items())
        assert all(p.grad is None for p in method.parameters())
        assert torch.equal(random, torch.get_rng_state())
        assert training.objective is method and method.views is views and method.encode == encode
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in method.modules())

    def test_it_may_be_called_in_the_middle_of_training(self) -> None:
        """The step after a count is bit for bit the step without one."""
        def weights(count: bool) -> Tensor:
            torch.manual_seed(0)
            training = engine(Chain(drop=0.5))
            batch = {"image": torch.arange(40.0).view(10, 4) / 40, "index": torch.arange(10)}
            for index in range(3):
                if count:
                    count_step(training, batch, Step(index, 4))
                training.run(batch, Step(index, 4))
            return torch.cat([p.detach().flatten() for p in training.objective.parameters()])

        assert torch.equal(weights(False), weights(True))

    def test_views_count_each_number_they_compute(self) -> None:
        """``none`` divides by the scale, subtracts the mean and divides by the deviation: 3 operations a pixel.

        Drawing and comparing one number a sample (does it flip?) are two more.
        """
        method = registry.build("objective", "supervised", build_backbone("vit_tiny", channels=3, size=16), SPEC,
                                augment="none")
        assert count_step(engine(method, batch=8), images(), Step(0, 4)).views == 3 * 8 * 3 * 16 * 16 + 2 * 8

    def test_more_views_cost_more(self) -> None:
        def views(**options: Any) -> StepCost:
            net = build_backbone("vit_tiny", channels=3, size=16)
            return count_step(engine(registry.build("objective", "simclr", net, SPEC, **options), batch=8), images(),
                              Step(0, 4))

        assert 0 < views(strength=0.0).views < views(strength=1.0).views < views().forward

    @pytest.mark.parametrize("name", ["byol", "dino", "ijepa", "look", "moco_v3"])
    def test_teachers_of_the_catalogue_are_found(self, name: str) -> None:
        """A teacher that sees one full view costs at least one forward of the backbone."""
        net = build_backbone("vit_tiny", channels=3, size=16)
        method = registry.build("objective", name, net, SPEC)
        cost = count_step(engine(method, batch=8), images(), Step(0, 4))
        assert cost.teachers >= count_forward(net, torch.randn(8, 3, 16, 16))
        assert cost.views > 0

    def test_views_made_in_a_method_are_found(self) -> None:
        method = registry.build("objective", "cropmae", build_backbone("vit_tiny", channels=3, size=16), SPEC)
        assert count_step(engine(method, batch=8), images(), Step(0, 4)).views > 2 * 8 * 3 * 16 * 16

    def test_the_shares_as_plain_numbers(self) -> None:
        cost = StepCost(1, 2, 4, 8)
        assert cost.as_dict() == {"forward": 1, "backward": 2, "views": 4, "teachers": 8, "total": 15}
        assert tuple(cost.as_dict())[:4] == PHASES

    def test_targets_made_without_gradient_are_teachers_work(self) -> None:
        class Targets(Chain):
            def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
                with torch.no_grad():
                    target = batch["image"] @ torch.ones(4, 3)
                return {**super().encode(batch, draws), "target": target}

        assert count_step(engine(Targets()), numbers(), Step(0, 4)).teachers == 2 * 10 * 4 * 3
        assert count_step(engine(Targets(), accumulate=2), numbers(), Step(0, 4)).teachers == 2 * 10 * 4 * 3

    def test_after_step_work_is_the_teachers(self) -> None:
        class Late(Chain):
            def after_step(self, step: Step) -> None:
                self.calls += (torch.ones(3, 4) @ torch.ones(4, 5)).sum()

        assert count_step(engine(Late()), numbers(), Step(0, 4)).teachers == 2 * 3 * 4 * 5
