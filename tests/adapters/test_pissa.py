from __future__ import annotations

import peft
import pytest
import torch
from torch import nn

from osteon.adapters.pissa import PiSSA
from osteon.core.errors import UsageError
from tests.contracts.adapter_kit import TASK, images, network, train


def test_it_starts_from_the_best_approximation_of_the_rank_and_freezes_the_rest():
    base = network("vit").blocks[1].mlp.fc1.weight.detach()
    adapter = PiSSA(network("vit"), TASK, rank=3, targets="blocks.1.mlp.fc1")
    (a, b), = adapter.pairs()
    rest = adapter.backbone.blocks[1].mlp.fc1.get_base_layer().weight
    values = torch.linalg.svdvals(base)
    product = (b @ a).detach()
    torch.testing.assert_close(rest + product, base, atol=1e-6, rtol=1e-5)
    assert torch.linalg.matrix_norm(base - product, 2).item() == pytest.approx(values[3].item(), rel=1e-4)
    torch.testing.assert_close(torch.linalg.svdvals(product)[:3], values[:3], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(a.detach() @ a.detach().T, torch.diag(values[:3]), atol=1e-4, rtol=1e-4)
    train(adapter)
    assert torch.equal(rest, adapter.wrapped()[0].get_base_layer().weight)
    assert adapter.expected_trainable() == 3 * (32 + 128) + 132


@pytest.mark.parametrize("niter", [0, 4])
def test_a_delta_whose_pair_started_elsewhere_brings_its_rest_of_the_weight(niter):
    """Signs of singular vectors may differ between machines, and the randomised decomposition with the seed."""
    adapter = PiSSA(network("vit"), TASK, rank=3, niter=niter)
    train(adapter, lr=0.05)
    delta = adapter.delta()
    names = [n for n in delta if n.startswith("start_") or ".lora_" in n]
    flipped = {k: -v if k in names else v for k, v in delta.items()}  # (-B)(-A) = B A
    torch.manual_seed(99)
    again = PiSSA(network("vit"), TASK, rank=3, niter=niter)
    again.load_delta(flipped)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(images()), adapter.eval()(images()), atol=1e-5, rtol=1e-4)
    again.load_delta(delta)
    with torch.no_grad():
        torch.testing.assert_close(again(images()), adapter(images()), atol=1e-5, rtol=1e-4)


def test_pefts_files_fit_the_untouched_base(tmp_path):
    adapter = PiSSA(network("vit"), TASK, rank=3)
    train(adapter, lr=0.05)
    adapter.write_peft(tmp_path)
    model = peft.PeftModel.from_pretrained(network("vit"), tmp_path)
    assert model.peft_config["default"].r == 6 and model.peft_config["default"].init_lora_weights is True
    with torch.no_grad():
        got = model(images()).pooled
        torch.testing.assert_close(got, adapter.eval().encode(images()), atol=1e-5, rtol=1e-4)
        assert (got - network("vit")(images()).pooled).abs().max() > 1e-3


def test_convolutions_and_impossible_ranks_are_refused():
    with pytest.raises(UsageError, match="PiSSA decomposes linear layers; layer1.0.conv1 is a convolution"):
        PiSSA(network("resnet"), TASK, targets="layer1.0.conv1")
    for rank in (0, 33):
        with pytest.raises(UsageError, match="between 1 and the smaller side"):
            PiSSA(network("vit"), TASK, rank=rank)
    assert PiSSA.recipe["weight_decay"] == 0.0
    mixed = network("resnet")
    mixed.extra = nn.Linear(8, 6)
    assert list(PiSSA(mixed, TASK, rank=2).shapes) == ["extra"]  # by rule, the convolutions stay as they are
