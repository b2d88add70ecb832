from __future__ import annotations

import pytest
import torch
from torch import nn

from osteon.backbones import build_backbone
from osteon.core import registry
from osteon.core.errors import UsageError
from osteon.core.run import RunFolder
from osteon.objectives.guidance import Guidance, centred_gram, cka, match_layers, outputs
from osteon.parts.low_rank import train_low_rank
from osteon.parts.types import DataSpec, Draws, Step
from osteon.train.loop import Engine, make_fabric
from osteon.train.settings import resolve_settings
from osteon.verbs._model import save_trained

SPEC = DataSpec("image", 3, 16, (0.5,) * 3, (0.25,) * 3, num_classes=4)


def network(name="vit_tiny", seed=0, **options):
    torch.manual_seed(seed)
    return build_backbone(name, channels=3, size=16, **options)


def batch(rows=16):
    generator = torch.Generator().manual_seed(0)
    return {"image": torch.randint(0, 256, (rows, 3, 16, 16), dtype=torch.uint8, generator=generator),
            "index": torch.arange(rows), "label": torch.arange(rows) % 4}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def train(method, steps=3):
    settings, _ = resolve_settings({"batch_size": 16, "steps": steps, "precision": "32"}, method.recipe, 100,
                                   kind=method.backbone.kind)
    work = Engine(method.train(), settings, make_fabric("32"))
    return [work.run(batch(), Step(i, steps, 0))[0] for i in range(steps)]


def test_gram_and_alignment_by_hand():
    """x = (0, 2), centred (-1, 1): Gram ((1, -1), (-1, 1))."""
    assert torch.equal(centred_gram(torch.tensor([[0.0], [2.0]])), torch.tensor([[1.0, -1], [-1, 1]]))
    x, y = torch.tensor([[0.0], [0], [3]]), torch.tensor([[0.0], [3], [0]])
    # Centred: (-1, -1, 2) and (-1, 2, -1); inner product -3, squared 9; norms 6 each: 9 / 36
    assert float(cka(x, y)) == pytest.approx(0.25)


def test_a_rotated_scaled_and_shifted_copy_is_aligned_fully_and_noise_hardly():
    x = noise(200, 6)
    turn = torch.linalg.qr(noise(6, 6, seed=1))[0]
    assert float(cka(x, 3 * x @ turn + 5)) == pytest.approx(1.0, abs=1e-5)
    assert float(cka(x, noise(200, 9, seed=2))) < 0.1
    assert float(cka(x, torch.ones(200, 3))) == 0.0  # a constant is aligned with nothing


def test_layers_are_matched_by_relative_depth_and_the_deepest_stays():
    assert match_layers(5, 3) == {0: 0, 2: 1, 4: 2}
    assert match_layers(2, 4) == {0: 1, 1: 3}
    assert match_layers(3, 1) == {0: 0} and match_layers(0, 3) == {}


def test_outputs_come_in_the_order_they_run():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.Linear(3, 2), nn.Linear(4, 3)

        def forward(self, x):
            return self.last(self.first(x).relu())

    model, x = Backwards(), noise(5, 4)
    with outputs(model) as seen:
        y = model(x)
    assert [s.shape[1] for s in seen] == [3, 2] and torch.equal(seen[1], y) and torch.equal(seen[0], model.first(x))
    model(x)
    assert len(seen) == 2  # the hooks are gone


def test_the_loss_is_the_tasks_plus_the_sum_over_layers_without_the_last():
    method = Guidance(network(), SPEC, task="supervised", options={"augment": "none"}, guide="resnet_tiny", weight=0.5)
    x, step = batch(), Step(0, 3, 0)
    with torch.no_grad():
        view = method.inner.views(x["image"], Draws.of(x, step))[0].x
        with outputs(method.backbone) as target, outputs(method.guide.eval()) as guide:
            method.backbone(view), method.guide(view)
        pairs = match_layers(len(target) - 1, len(guide) - 1)
        wanted = sum(float(1 - cka(target[j], guide[i])) for j, i in pairs.items())
        found, task = method(x, step), method.inner(x, step)
    assert len(guide) > 5 and float(found.total - task.total) == pytest.approx(0.5 * wanted, rel=1e-4)
    assert float(found.parts["misaligned"]) == pytest.approx(wanted / len(pairs), rel=1e-4)


def test_the_guide_never_moves_and_the_student_comes_nearer():
    def misaligned(weight):
        method = Guidance(network(), SPEC, task="supervised", options={"augment": "none"}, guide="resnet_tiny",
                          weight=weight)
        before = {k: v.clone() for k, v in method.guide.state_dict().items()}
        losses = train(method, 8)
        assert all(torch.equal(v, before[k]) for k, v in method.guide.state_dict().items())
        assert not method.guide.training and not any(p.requires_grad for p in method.guide.parameters())
        return [float(loss.parts["misaligned"]) for loss in losses]

    near, hardly = misaligned(10.0), misaligned(1e-6)
    assert near[0] == pytest.approx(hardly[0]) and near[-1] < hardly[-1] - 0.01


def test_without_guidance_it_is_the_task():
    def weights(method):
        train(method)
        return torch.cat([v.float().flatten() for v in method.backbone.state_dict().values()])

    def plain():
        backbone = network("resnet_tiny")
        torch.manual_seed(1)
        return registry.build("objective", "simclr", backbone, SPEC)

    def guided():
        backbone = network("resnet_tiny")
        torch.manual_seed(1)
        return Guidance(backbone, SPEC, task="simclr", weight=0.0)

    assert torch.equal(weights(plain()), weights(guided()))


def test_only_the_first_steps_are_guided():
    losses = train(Guidance(network(), SPEC, task="supervised", first=2), 3)
    assert ["misaligned" in loss.parts for loss in losses] == [True, True, False]


def test_low_rank_layers_are_compared_once():
    plain, changed = network(), network()
    train_low_rank(changed, 2)
    x = noise(4, 3, 16, 16)
    with outputs(plain) as one, outputs(changed) as other:
        plain(x), changed(x)
    assert [o.shape for o in one] == [o.shape for o in other]


def test_a_trained_guide_and_mistakes(tmp_path):
    trained = network("resnet_tiny", seed=5)
    run = RunFolder(tmp_path / "g")
    with run.lock():
        run.create_or_resume({})
        save_trained(run, trained, SPEC, {})
    method = Guidance(network(), SPEC, guide=str(tmp_path / "g"))
    assert all(torch.equal(v, trained.state_dict()[k]) for k, v in method.guide.state_dict().items())
    assert method.notes[1].endswith("trained") and "untrained" in Guidance(network(), SPEC).notes[1]
    with pytest.raises(UsageError, match="guide was trained on 3 channels"):
        Guidance(build_backbone("vit_tiny", channels=1, size=16), DataSpec("image", 1, 16, (0.5,), (0.2,)),
                 guide=str(tmp_path / "g"))
    with pytest.raises(UsageError, match="0 or more"):
        Guidance(network(), SPEC, weight=-1)
    with pytest.raises(UsageError, match="cannot be guidance"):
        Guidance(network(), SPEC, task="guidance")
