"""One view: both paths give the same from the same draws, and what decides between them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from osteon.core.errors import UsageError
from osteon.parts.types import DataSpec, Draws, Step, View
from osteon.views import kernel, make_views, normalise
from osteon.views.pipeline import Stored

needs_kernel = pytest.mark.skipif(bool(kernel._load(kernel.LIBRARY)[1]), reason="the compiled kernel is not built")


def spec(channels: int = 3, size: int = 40, scale: float = 255.0) -> DataSpec:
    return DataSpec("image", channels, size, tuple(0.3 + 0.1 * c for c in range(channels)), (0.2,) * channels, scale)


def images(n: int = 12, channels: int = 3, size: int = 40) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, size, size), generator=g, dtype=torch.uint8)


def draws(n: int = 12, rows: list[int] | None = None) -> Draws:
    return Draws(Step(0, 100, 0), torch.arange(n) if rows is None else torch.tensor(rows), n)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the kernel was given, call by call."""
    given: list[Tensor] = []
    render = kernel.render
    monkeypatch.delenv("OSTEON_KERNEL", raising=False)
    monkeypatch.setattr(kernel, "render", lambda x, *a, **k: given.append(x) or render(x, *a, **k))
    return given


RECIPES = [("crop_flip", {}), ("simclr", {"solarise": 0.3, "strength": 1.0, "blur": 0.5}), ("byol", {}),
           ("multicrop", {"style": "dino"}), ("supervised", {"magnitude": 2.0, "magnitude_std": 0.0}),
           ("none", {"size": 17})]


@needs_kernel
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("recipe,options", RECIPES)
def test_both_paths_give_the_same_views(recipe: str, options: dict, interpolation: str, calls: list[Tensor],
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    for channels in (1, 3, 4):
        x, s = images(12, channels), spec(channels)
        views = make_views(recipe, s, interpolation=interpolation, **options)
        before = len(calls)
        compiled = views(x, draws())
        assert len(calls) == before + len(views) and all(given.dtype == torch.uint8 for given in calls)
        with monkeypatch.context() as m:
            m.setenv("OSTEON_KERNEL", "0")
            by_torch = views(x, draws())
        assert len(calls) == before + len(views)
        for a, b in zip(compiled, by_torch, strict=True):
            same(a, b, s, exact=recipe != "supervised")


def same(a: View, b: View, s: DataSpec, exact: bool) -> None:
    """Geometry and parameters to the bit; values within 0.05 levels."""
    assert torch.equal(a.geometry.box, b.geometry.box) and torch.equal(a.geometry.flip, b.geometry.flip)
    assert a.params.keys() == b.params.keys() and all(torch.equal(a.params[k], b.params[k]) for k in a.params)
    error = (a.x - b.x).abs() * 0.2 * 255
    # The last bit decides at solarisation's threshold, and in RandAugment's histograms and roundings.
    steep = not exact or "solarise" in a.params
    assert (error < 0.05).float().mean() > (0.97 if not exact else 0.999) if steep else error.max() < 0.05


@needs_kernel
def test_a_view_by_the_kernel_is_its_own_row_to_the_bit(calls: list[Tensor]) -> None:
    views, x = make_views("simclr", spec(), solarise=0.3), images()
    whole = views(x, draws())
    for rows in ([5], [7, 2, 11]):
        for a, b in zip(views(x[rows], draws(rows=rows)), whole, strict=True):
            assert torch.equal(a.x, b.x[rows])
    assert len(calls) == 6


def test_what_is_not_resampled_stays_exact(calls: list[Tensor]) -> None:
    x = images()
    assert torch.equal(make_views("none", spec())(x, draws())[0].x, normalise(x, spec())) and not calls


@needs_kernel
def test_what_counts_operations_sees_torch(calls: list[Tensor]) -> None:
    class Seen(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.number += "bmm" in str(func)
            return func(*args, **(kwargs or {}))

    with Seen() as seen:
        make_views("crop_flip", spec())(images(), draws())
    assert seen.number and not calls


def test_a_part_that_is_off_for_a_sample_leaves_it_alone() -> None:
    x = images(60)
    plain = make_views("simclr", spec(), jitter=0.0, grey=0.0, blur=0.0, n_views=1)(x, draws(60))[0]
    view = make_views("simclr", spec(), jitter=0.0, grey=0.0, blur=0.5, n_views=1)(x, draws(60))[0]
    on = view.params["blur"] > 0
    assert 15 < on.sum() < 45 and torch.allclose(view.x[~on], plain.x[~on], atol=1e-6)
    # At a deviation under 0.2 pixels the neighbours weigh less than a thousandth.
    seen = (view.x - plain.x).abs().amax((1, 2, 3)) > 1e-3
    assert seen[view.params["blur"] > 0.5].all()


def test_the_stored_batch_is_converted_once_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Stored(images(), spec())
    assert batch.unit is batch.unit and batch.unit.dtype == torch.float32 and float(batch.unit.max()) <= 1
    with pytest.raises(UsageError, match="channels"):
        Stored(images(12, 1), spec())
    for value in ("0", "1"):  # whichever path is taken
        monkeypatch.setenv("OSTEON_KERNEL", value)
        with pytest.raises(UsageError, match="channels"):
            make_views("simclr", spec())(images(12, 1), draws())


def test_bicubic_is_an_option_of_every_recipe() -> None:
    plans = make_views("multicrop", spec(), interpolation="bicubic").plans
    assert all(plan.cubic and plan.clip for plan in plans)
    raw = make_views("crop_flip", DataSpec("image", 3, 16, (0.0,) * 3, (1.0,) * 3, 1.0), interpolation="bicubic")
    assert raw.plans[0].cubic and not raw.plans[0].clip  # floats of any range have no bounds
    assert not make_views("crop_flip", spec()).plans[0].cubic
    with pytest.raises(UsageError, match="bilinear or bicubic"):
        make_views("simclr", spec(), interpolation="lanczos")


def test_notes_say_which_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTEON_KERNEL", "0")
    assert make_views("simclr", spec()).notes[-1] == "views by torch operations; compiled kernel: switched off by " \
                                                     "OSTEON_KERNEL=0"
