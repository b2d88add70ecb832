from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

from osteon.parts.types import Draws, Step
from osteon.views import rendering
from osteon.views.rendering import FAULTS, Rendering, coarse_matrix, fade, gaussians, perlin, texture, unit

N = 6
PLAIN = Rendering(0, 0, 0, 0, 0, 0, 0, 0)


def draws(name: str = "a", n: int = N) -> Draws:
    return Draws(Step(0, 9, 5), torch.arange(n), n).fork(name)


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(N, 1, *shape, generator=torch.Generator().manual_seed(0))


def halves(n: int = N, side: int = 24) -> torch.Tensor:
    labels = torch.zeros(n, side, side, dtype=torch.int64)
    labels[:, :, side // 2:] = 1
    return labels


def test_chances_are_the_papers_and_in_its_order():
    assert asdict(Rendering()) == {"texture": 1.0, "bias": 0.98, "spikes": 0.2, "gamma": 0.5, "smooth": 0.5,
                                   "gibbs": 0.5, "sharpen": 0.25, "coarse": 0.33}
    assert list(FAULTS) == list(asdict(Rendering()))[1:]


def test_a_label_has_one_gaussian_which_differs_from_image_to_image():
    labels = halves()[:, None]
    x = gaussians(labels, draws(), 2)
    left, right = x[..., :12].flatten(2), x[..., 12:].flatten(2)
    d = draws()
    mean, spread = d.rand(2, 512), d.uniform(0.02, 0.1, 2, 512)
    inner = mean[..., 0] > 0.3  # nothing cut at 0
    assert inner.any()
    torch.testing.assert_close(left.mean(2)[inner], mean[..., 0][inner], atol=0.02, rtol=0)
    torch.testing.assert_close(left.std(2)[inner], spread[..., 0][inner], atol=0.015, rtol=0)
    assert (left.mean(2) - right.mean(2)).abs().max() > 0.1 and float(x.min()) >= 0
    a, b = (PLAIN.render(labels[:, 0], draws(name)) for name in "ab")
    assert a.shape == (N, 1, 24, 24) and (a - b).abs().mean() > 0.05
    for view in (a, b):  # the border of the labels is where both are: values vary less within a label
        assert view[..., :12].std() > 0 and float(view.amin()) == 0 and float(view.amax()) == 1


def test_perlin_noise_is_zero_on_the_lattice_and_smooth():
    assert [float(fade(torch.tensor(t))) for t in (0.0, 0.5, 1.0)] == [0.0, 0.5, 1.0]
    assert float(fade(torch.tensor(0.25))) == pytest.approx(6 / 1024 - 15 / 256 + 10 / 64)
    assert float(perlin(draws(), (2, 2, 2), 4).abs().max()) == 0  # cells at 1 and 3: lattice points
    fine = perlin(draws(), (1, 40, 40), 2)
    assert 0.2 < float(fine.abs().max()) <= 1 and float(fine.diff(dim=-1).abs().max()) < 0.15
    got = texture(draws(), (4, 4, 4))
    want = sum(draws().fork("weight").rand(3)[:, i].view(-1, 1, 1, 1) * perlin(draws().fork(f"scale{n}"), (4, 4, 4), n)
               for i, n in enumerate((2, 4, 8)))
    torch.testing.assert_close(got[:, 0], want)


def test_the_bias_field_is_the_exponential_of_a_cubic():
    field = FAULTS["bias"](torch.ones(N, 1, 6, 6, 6), draws()).log()
    assert float(field.abs().max()) > 0.05
    for axis in (2, 3, 4):
        assert float(field.diff(n=4, dim=axis).abs().max()) < 1e-4 < float(field.diff(n=3, dim=axis).abs().max())
    mixed = field.diff(n=2, dim=2).diff(n=2, dim=3)  # degree 4 in total: none
    assert float(mixed.abs().max()) < 1e-4


def test_a_spike_is_one_plane_wave():
    x = noise(1, 8, 8)
    wave = FAULTS["spikes"](x, draws()) - x
    power = torch.fft.fftn(wave, dim=(2, 3, 4)).abs().flatten(1)
    assert ((power > 1e-3 * power.amax(1, keepdim=True)).sum(1) <= 2).all()
    size = wave.abs().amax((1, 2, 3, 4)) / (x.amax((1, 2, 3, 4)) - x.amin((1, 2, 3, 4)))
    assert (size <= 0.5 + 1e-4).all() and float(size.max()) > 0.1


def test_gamma_is_a_power_that_keeps_the_ends():
    x = torch.linspace(2, 4, 9).view(1, 1, 1, 1, 9).repeat(N, 1, 1, 1, 1)
    y = FAULTS["gamma"](x, draws())
    power = y[:, 0, 0, 0, 4].log() / torch.tensor(0.5).log()  # the middle is one half
    torch.testing.assert_close(y[:, 0, 0, 0, 2], 0.25**power)
    assert (power >= 0.5).all() and (power <= 2).all() and power.std() > 0.1
    assert y[..., 0].max() < 1e-2 and torch.equal(y[..., -1], torch.ones_like(y[..., -1]))


def test_smoothing_and_sharpening():
    flat = torch.full((N, 1, 5, 5, 5), 0.7)
    for name in ("smooth", "sharpen", "coarse", "gibbs"):
        torch.testing.assert_close(FAULTS[name](flat, draws()), flat, atol=1e-5, rtol=0)
    edge = torch.zeros(N, 1, 1, 1, 20)
    edge[..., 10:] = 1
    soft, hard = FAULTS["smooth"](edge, draws()), FAULTS["sharpen"](edge, draws())
    assert (soft[..., 10] < 1).all() and (soft.diff(dim=-1) >= -1e-6).all()
    assert (hard[..., 10] > 1.02).all() and (hard[..., 9] < -0.02).all()
    torch.testing.assert_close(hard[..., 0], edge[..., 0], atol=1e-4, rtol=0)


def test_gibbs_cuts_the_highest_frequencies_and_nothing_else():
    x = noise(4, 8, 8)
    share = torch.fft.fftn(FAULTS["gibbs"](x, draws()), dim=(2, 3, 4)) / torch.fft.fftn(x, dim=(2, 3, 4))
    kept = share.abs() > 0.5
    torch.testing.assert_close(share.real, kept.float(), atol=1e-2, rtol=0)
    radius = sum(torch.fft.fftfreq(n).view([-1 if i == j else 1 for j in range(3)])**2
                 for i, n in enumerate((4, 8, 8))).sqrt()
    for row in kept[:, 0]:
        cut = radius[~row]
        assert not len(cut) or float(cut.min()) > float(radius[row].max())
    assert 0 < (~kept).float().mean() < 0.9


def test_low_resolution_by_hand():
    got = coarse_matrix(torch.tensor([0.5, 1.0]), 4)
    want = torch.tensor([[0, 1, 0, 0], [0, 0.75, 0, 0.25], [0, 0.25, 0, 0.75], [0, 0, 0, 1.0]])
    torch.testing.assert_close(got, torch.stack([want, torch.eye(4)]))
    assert torch.equal(coarse_matrix(torch.tensor([0.5]), 1), torch.ones(1, 1, 1))


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_strikes_by_its_own_chance(fault, monkeypatch):
    monkeypatch.setitem(rendering.FAULTS, fault, lambda x, _draws: 1 - x)
    labels = halves(200, 4)
    plain = PLAIN.render(labels, draws(n=200))
    half = replace(PLAIN, **{fault: 0.5}).render(labels, draws(n=200))
    struck = (half != plain).flatten(1).any(1)
    assert torch.equal(struck, draws(n=200).fork(fault).rand() < 0.5)  # of a stream of its own
    torch.testing.assert_close(half[struck], 1 - plain[struck], atol=1e-5, rtol=0)


def test_every_channel_runs_from_zero_to_one_and_rows_stand_alone():
    labels = halves(4, 12)
    d = Draws(Step(0, 9, 5), torch.arange(4), 4)
    x = Rendering().render(labels, d, 2)
    assert x.shape == (4, 2, 12, 12) and torch.isfinite(x).all()
    torch.testing.assert_close(x.amin((2, 3)), torch.zeros(4, 2))
    torch.testing.assert_close(x.amax((2, 3)), torch.ones(4, 2))
    part = Rendering().render(labels[2:], Draws(Step(0, 9, 5), torch.tensor([2, 3]), 4), 2)
    torch.testing.assert_close(part, x[2:], atol=1e-5, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(Rendering().render(labels, d, 2), x)
    assert not unit(torch.full((1, 1, 2, 2, 2), 3.0)).any()
    assert Rendering().render(torch.zeros(1, 1, 1, dtype=torch.int64), draws(n=1)).shape == (1, 1, 1, 1)
