from __future__ import annotations

import torch
from torch import nn

from osteon.compressors.int8 import Int8, codes_of, harm, quantised
from osteon.parts.calibration import Moments
from osteon.parts.compressor import Budget, file_bytes
from osteon.parts.surgery import edits_of
from tests.contracts.compressor_kit import calibration, network


def test_codes_a_person_can_recompute():
    weight = torch.tensor([[1.27, -0.64, 0.0], [12.7, 1.0, -12.7]])
    codes, scale = codes_of(weight)
    assert codes.tolist() == [[127, -64, 0], [127, 10, -127]]
    assert torch.allclose(scale, torch.tensor([0.01, 0.1]))


def test_every_weight_is_off_by_at_most_half_a_step():
    for layer in (nn.Linear(16, 8), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3, groups=8)):
        made = quantised(layer)
        step = layer.weight.detach().flatten(1).abs().amax(1) / 127
        error = (made.weight() - layer.weight).flatten(1).abs().amax(1)
        assert made.codes.dtype == torch.int8 and (error <= step / 2 + 1e-6).all()
        assert torch.equal(made.bias, layer.bias)
        assert not made.bias.requires_grad


def test_an_8_bit_convolution_keeps_its_geometry():
    layer = nn.Conv2d(4, 8, 3, stride=2, padding=1, dilation=2)
    layer.weight.data = codes_of(layer.weight)[0].float()
    layer.weight.data[:, 0, 0, 0] = 127  # every output's largest: codes and weights agree exactly
    x = torch.randn(2, 4, 9, 9)
    assert torch.allclose(quantised(layer)(x), layer(x), rtol=1e-4, atol=1e-3)


def test_zero_weights_stay_zero():
    layer = nn.Linear(4, 2)
    nn.init.zeros_(layer.weight)
    assert torch.equal(quantised(layer)(torch.randn(3, 4)), layer.bias.expand(3, 2))


def test_harm_is_the_output_error_a_byte_on_the_inputs_seen():
    layer = nn.Linear(3, 2, bias=False)
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    seen = Moments(0, *(torch.zeros(s, dtype=torch.float64) for s in ((3,), (3, 3), (2,), (2, 2))))
    seen.add(x, x @ layer.weight.detach().T)
    out = x @ layer.weight.detach().T
    off = quantised(layer)(x) - out
    assert abs(harm(layer, seen) / (float(off.square().sum() / out.square().sum()) / 18) - 1) < 1e-3


def test_layers_leave_in_the_order_of_harm_and_no_more_than_needed():
    net, data = network(), calibration()
    few, many = (Int8()(net, Budget("bytes", share), data) for share in (0.8, 0.5))
    first, then = edits_of(few)[0]["layers"], edits_of(many)[0]["layers"]
    assert then[:len(first)] == first and len(first) < len(then)
    layers = Int8().layers(net)
    limit = 0.5 * file_bytes(net)
    assert file_bytes(many) <= limit < file_bytes(many) + 3 * layers[then[-1]].weight.numel()
    moments = data.moments(net, layers)
    assert first == sorted(layers, key=lambda n: harm(layers[n], moments[n]))[:len(first)]
    x = next(data.batches())
    with torch.no_grad():
        assert (many(x).pooled - net(x).pooled).norm() < 0.02 * net(x).pooled.norm()
