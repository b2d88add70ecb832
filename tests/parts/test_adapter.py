from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.contracts.adapter_kit import TASK, images, network

from osteon.adapters.linear import Linear
from osteon.core.errors import UsageError
from osteon.parts.adapter import BASE, fingerprint, new_head


def test_a_fingerprint_depends_on_every_value_name_and_type_and_on_nothing_else():
    one, two = network("vit"), network("vit")
    assert fingerprint(one) == fingerprint(two) and len(fingerprint(one)) == 64
    two.requires_grad_(False)
    two.train()
    assert fingerprint(one) == fingerprint(two)
    with torch.no_grad():
        two.norm.bias[-1] += 1e-6
    assert fingerprint(one) != fingerprint(two)
    assert fingerprint(network("vit").double()) != fingerprint(one)


def test_the_given_backbone_is_left_as_it_was():
    base = network("vit")
    base.train()
    Linear(base, TASK).train()
    assert all(p.requires_grad for p in base.parameters()) and base.training


def test_the_delta_of_a_probe_is_its_head_and_the_fingerprint():
    adapter = Linear(network("vit"), TASK)
    delta = adapter.delta()
    assert list(delta) == ["head.weight", "head.bias", BASE]
    assert bytes(delta[BASE].tolist()).hex() == fingerprint(network("vit"))
    delta["head.bias"] += 1  # a copy
    assert adapter.head.bias.tolist() == [0.0] * 4


def test_a_delta_of_another_task_brings_its_own_number_of_classes():
    base = network("vit")
    three = Linear(base, replace(TASK, num_classes=3))
    four = Linear(base, TASK)
    four.keep("three", three.delta())
    four.keep("four")
    four.use("three")
    assert four(images(2)).shape == (2, 3) and four.task.num_classes == 3
    torch.testing.assert_close(four.eval()(images(2)), three.eval()(images(2)))
    four.use("four")
    assert four(images(2)).shape == (2, 4) and four.task.num_classes == 4
    wrong = {**three.delta(), "head.weight": torch.zeros(3, 5)}
    with pytest.raises(UsageError, match="reads 5 features in the delta, 32 here"):
        four.load_delta(wrong)
    stranger = Linear(network("resnet"), TASK)
    with pytest.raises(UsageError, match="another base"):
        four.keep("stranger", stranger.delta())


def test_a_tensor_of_another_shape_is_named_before_anything_is_changed():
    from osteon.adapters.svfit import SVFit

    three, five = (SVFit(network("vit"), TASK, targets="blocks.0.attn.proj", rank=r) for r in (3, 5))
    start = three.delta()
    with pytest.raises(UsageError, match=r"blocks.0.attn.proj.change.shift is \(5,\) in the delta, \(3,\) here"):
        three.load_delta({**five.delta(), "head.bias": torch.ones(4)})
    assert all(torch.equal(v, start[k]) for k, v in three.delta().items())


def test_a_new_head_starts_near_equal_scores():
    torch.manual_seed(0)
    head = new_head(200, 50)
    assert head.bias.abs().max() == 0 and head.weight.detach().std().item() == pytest.approx(0.01, rel=0.05)
