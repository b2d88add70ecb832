from __future__ import annotations

import torch
from torch import nn

from osteon.compressors.pela import PELA, cut, cuttable, deviation, ranks_at
from osteon.parts.compressor import Budget, params_of
from tests.contracts.compressor_kit import calibration, fit_on, network


def test_ranks_follow_the_papers_formula():
    layers = {"a": nn.Linear(32, 96), "b": nn.Linear(32, 128)}
    assert ranks_at(layers, 0.5) == {"a": int(0.5 * 32 * 96 / 128), "b": int(0.5 * 32 * 128 / 160)}
    assert ranks_at(layers, 0.0) == {"a": 1, "b": 1}


def test_the_cut_is_the_closest_of_its_rank_and_full_rank_changes_nothing():
    net = network()
    layers = cuttable(net)
    assert set(layers) == {f"blocks.{i}.{n}" for i in range(4) for n in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    x = next(calibration().batches())
    with torch.no_grad():
        assert torch.allclose(cut(net, dict.fromkeys(layers, 32))(x).pooled, net(x).pooled, atol=1e-4)
        thin = cut(net, {"blocks.0.mlp.fc1": 5}).blocks[0].mlp.fc1
    weight = net.blocks[0].mlp.fc1.weight
    error = (thin.up.weight @ thin.down.weight - weight).square().sum()
    assert torch.isclose(error, torch.linalg.svdvals(weight)[5:].square().sum(), rtol=1e-4)
    assert torch.equal(thin.up.bias, net.blocks[0].mlp.fc1.bias)


def test_small_layers_and_the_first_convolution_are_left_whole():
    layers = cuttable(network("maps"))
    assert "conv1" not in layers and all(m.weight.shape[0] >= 10 for m in layers.values())


def test_the_penalty_is_the_square_of_what_exceeds_epsilon():
    product, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.1, 1.5]])
    assert torch.isclose(deviation(product, weight, 0.1), torch.tensor(0.16))
    assert deviation(product, weight, 0.6) == 0


def test_recovery_repairs_what_the_cut_broke_on_images_it_did_not_see():
    net, data = network(), calibration(48)
    teacher = {k: v.clone() for k, v in net.state_dict().items()}
    held = torch.cat(list(calibration(64).batches()))[48:]
    errors = []
    for recover in (False, True):
        method = PELA(recover=recover, augment="none", weight_term=0.1)
        small = method(net, Budget("params", 0.5), data, fit_on(data, 40, 3e-3))
        assert params_of(small) <= 0.5 * params_of(net)
        with torch.no_grad():
            errors.append(float((small(held).pooled - net(held).pooled).square().mean()))
    assert errors[1] < 0.4 * errors[0]
    assert all(torch.equal(v, teacher[k]) for k, v in net.state_dict().items())
