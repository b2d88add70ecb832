"""Recipes: their parts, their rules for unusual data, and that a row's view is its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from osteon.core.errors import UsageError
from osteon.parts.types import DataSpec, Draws, Step, View
from osteon.views import RECIPES, denormalise, make_views, normalise, recipe_options
from osteon.views.crop import crop_resize
from osteon.views.pipeline import to_unit


def spec(channels: int = 3, size: int = 32, scale: float = 255.0) -> DataSpec:
    return DataSpec("image", channels, size, (0.4,) * channels, (0.2,) * channels, scale)


def images(n: int = 12, channels: int = 3, size: int = 32) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, size, size), generator=g, dtype=torch.uint8)


def draws(n: int = 12, rows: list[int] | None = None, step: int = 0, seed: int = 0) -> Draws:
    return Draws(Step(step, 100, seed), torch.arange(n) if rows is None else torch.tensor(rows), n)


def same(a: list[View], b: list[View], rows: list[int], atol: float = 0.0) -> bool:
    """Whether views ``a`` equal rows of views ``b``, parameters and geometry to the bit."""
    return all(torch.allclose(v.x, w.x[rows], rtol=0, atol=atol)
               and torch.equal(v.geometry.box, w.geometry.box[rows])
               and torch.equal(v.geometry.flip, w.geometry.flip[rows])
               and v.params.keys() == w.params.keys()
               and all(torch.equal(v.params[k], w.params[k][rows]) for k in v.params)
               for v, w in zip(a, b, strict=True))


COUNTS = {"none": 1, "crop_flip": 1, "simclr": 2, "byol": 2, "multicrop": 8, "supervised": 1}


def test_torch_operations_compute_in_float32_under_autocast_too(monkeypatch):
    monkeypatch.setattr("osteon.views.kernel.takes", lambda _images: False)
    made = make_views("simclr", spec(size=24), size=16)
    plain = made(images(size=24), draws())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = made(images(size=24), draws())
    assert all(torch.equal(a.x, b.x) for a, b in zip(plain, inside, strict=True))



@pytest.mark.parametrize("recipe", sorted(RECIPES))
@pytest.mark.parametrize("channels,size", [(3, 32), (3, 40), (1, 8), (5, 12)])
def test_every_recipe_repeats_and_is_its_own_row(recipe: str, channels: int, size: int) -> None:
    x = images(12, channels, size)
    original = x.clone()
    views = make_views(recipe, spec(channels, size))
    whole = views(x, draws())
    assert len(whole) == len(views) == COUNTS[recipe]
    assert torch.equal(x, original)
    assert all(v.x.dtype == torch.float32 and v.x.isfinite().all() for v in whole)
    # Values stay in [0, 1] before the last, normalising, step.
    assert all(u.min() > -1e-5 and u.max() < 1 + 1e-5 for u in (denormalise(v.x, spec(channels)) for v in whole))
    everything = list(range(12))
    assert same(views(x, draws()), whole, everything)
    for rows in ([5], [7, 2, 11], [0, 1, 2, 3, 4, 5]):
        assert same(views(x[rows], draws(rows=rows)), whole, rows, atol=1e-5)
        assert same(views(x[rows], draws().at(torch.tensor(rows))), whole, rows, atol=1e-5)
    if recipe != "none":
        assert not same(views(x, draws(step=1)), whole, everything, atol=1e-3)
        assert not same(views(x, draws(seed=1)), whole, everything, atol=1e-3)


@pytest.mark.parametrize("recipe", ["simclr", "byol", "multicrop"])
def test_views_of_one_step_differ(recipe: str) -> None:
    first, second, *_ = make_views(recipe, spec())(images(), draws())
    assert not torch.equal(first.geometry.box, second.geometry.box)
    assert not torch.equal(first.params["jitter_factor"], second.params["jitter_factor"])


def test_none_is_normalisation() -> None:
    x = images()
    view, = make_views("none", spec())(x, draws())
    want = (x.double() / 255 - 0.4) / 0.2
    assert (view.x - want).abs().max() < 1e-5
    assert torch.equal(view.x, normalise(x, spec()))
    assert view.geometry.box.tolist() == [[0, 0, 1, 1]] * 12 and not view.geometry.flip.any()
    assert make_views("none", spec(), size=16)(x, draws())[0].x.shape == (12, 3, 16, 16)


def test_normalise_reads_every_dtype_and_survives_constant_channels() -> None:
    s16 = DataSpec("image", 2, 2, (0.5, 0.25), (0.25, 0.0), 65535.0)
    x = torch.tensor([0, 65535], dtype=torch.uint16).view(1, 2, 1, 1)
    assert torch.allclose(normalise(x, s16).flatten(), torch.tensor([-2.0, 0.75]))
    raw = torch.tensor([[[[5.0]], [[-3.0]]]], dtype=torch.float64)
    out = normalise(raw, DataSpec("image", 2, 1, (1.0, 1.0), (2.0, 4.0), 1.0))
    assert out.dtype == torch.float32 and out.flatten().tolist() == [2.0, -1.0]
    assert torch.allclose(denormalise(out, DataSpec("image", 2, 1, (1.0, 1.0), (2.0, 4.0), 1.0)), raw.float())


def test_geometry_explains_the_view() -> None:
    """Cutting the returned box out of the source and mirroring as returned gives the view."""
    x = images()
    view, = make_views("crop_flip", spec(), min_scale=0.1)(x, draws())
    assert 0 < view.geometry.flip.sum() < 12
    again = crop_resize(to_unit(x, spec()), view.geometry.box, (32, 32), view.geometry.flip)
    assert torch.allclose(denormalise(view.x, spec()), again, atol=1e-5)


def test_params_explain_the_view() -> None:
    """A simclr view redone step by step with torchvision from what it says about itself."""
    f = pytest.importorskip("torchvision.transforms.v2.functional")
    x = images(12, 3, 40)
    v = make_views("simclr", spec(3, 40), solarise=0.5)(x, draws())[0]
    p = v.params
    steps = [f.adjust_brightness, f.adjust_contrast, f.adjust_saturation, f.adjust_hue]
    seen = set()
    for i in range(12):
        x0, y0, x1, y1 = (v.geometry.box[i] * 40).round().int().tolist()
        y = f.resized_crop(x[i].float() / 255, y0, x0, y1 - y0, x1 - x0, [40, 40], antialias=True)
        y = y.flip(-1) if v.geometry.flip[i] else y
        for op in p["jitter_order"][i].tolist() if p["jitter"][i] else []:
            y = steps[op](y, float(p["jitter_factor"][i, op]))
        y = f.rgb_to_grayscale(y, 3) if p["grey"][i] else y
        y = f.gaussian_blur(y, [17, 17], [float(p["blur"][i])] * 2) if p["blur"][i] > 0 else y
        error = (denormalise(v.x[i], spec()) - (torch.where(y >= 0.5, 1 - y, y) if p["solarise"][i] else y)).abs()
        # Rounding may put a pixel on the other side of the threshold.
        assert (error * 255 < 0.05).float().mean() > 0.999
        seen |= {name for name in ("jitter", "grey", "blur", "solarise") if p[name][i] > 0}
    assert seen == {"jitter", "grey", "blur", "solarise"}


def test_recipes_hold_the_papers_parts() -> None:
    first, second = make_views("byol", spec(3, 224)).plans
    assert (first.blur, second.blur, first.solarise, second.solarise) == (1.0, 0.1, 0.0, 0.2)
    assert first.jitter == (0.4, 0.4, 0.2, 0.1) and first.grey == 0.2 and first.scale == (0.08, 1.0)
    one, two = make_views("simclr", spec(3, 224)).plans
    assert one == two and one.jitter == (0.8, 0.8, 0.8, 0.2) and one.blur == 0.5 and one.scale == (0.08, 1.0)
    swav = make_views("multicrop", spec(3, 224), stride=16).plans
    assert [p.size for p in swav] == [(224, 224)] * 2 + [(112, 112)] * 6
    assert swav[0].scale == (0.14, 1.0) and swav[2].scale == (0.05, 0.14)
    dino = make_views("multicrop", spec(3, 224), style="dino", n_local=3, local_size=96).plans
    assert [p.blur for p in dino] == [1.0, 0.1, 0.5, 0.5, 0.5] and [p.solarise for p in dino] == [0, 0.2, 0, 0, 0]
    assert dino[0].scale == (0.4, 1.0) and dino[4].size == (96, 96) and dino[4].scale == (0.05, 0.4)
    assert make_views("crop_flip", spec()).plans[0].scale == (0.2, 1.0)


def test_rates_are_as_stated() -> None:
    n = 3000
    view = make_views("simclr", spec(3, 4), solarise=0.3, blur=0.4, jitter=0.7)(images(n, 3, 4), draws(n))[1]
    rates = {name: float((view.params[name] > 0).float().mean()) for name in ("jitter", "grey", "blur", "solarise")}
    rates["flip"] = float(view.geometry.flip.float().mean())
    want = {"jitter": 0.7, "grey": 0.2, "blur": 0.4, "solarise": 0.3, "flip": 0.5}
    assert all(abs(rates[name] - want[name]) < 0.04 for name in want)
    sigma = view.params["blur"][view.params["blur"] > 0]
    assert sigma.min() >= 0.1 and sigma.max() <= 2.0 and abs(float(sigma.mean()) - 1.05) < 0.06
    # Parts are drawn independently of one another.
    on = torch.stack([(view.params[k] > 0).float() for k in rates if k != "flip"] + [view.geometry.flip.float()])
    assert (torch.corrcoef(on) - torch.eye(5)).abs().max() < 0.08


def test_small_image_rules_are_noted() -> None:
    small = make_views("simclr", spec(3, 32))
    assert small.plans[0].scale == (0.2, 1.0) and small.plans[0].blur == 0
    assert small.plans[0].jitter == (0.4, 0.4, 0.4, 0.1)
    for word in ("min_scale = 0.2", "strength = 0.5", "blur = 0"):
        assert any(word in note for note in small.notes)
    given = make_views("simclr", spec(3, 32), min_scale=0.3, strength=1.0, blur=0.5)
    assert len(given.notes) == 1 and given.plans[0].scale == (0.3, 1.0) and given.plans[0].blur == 0.5
    crops = make_views("multicrop", spec(3, 32))
    assert crops.plans[0].scale == (0.25, 1.0) and crops.plans[2].scale == (0.1, 0.25)
    assert crops.plans[2].size == (16, 16) and any("local_size = 16" in note for note in crops.notes)
    # The rule goes by the size of the views, not of the files.
    assert make_views("simclr", spec(3, 256), size=32).plans[0].blur == 0


def test_channels_other_than_three_lose_colour_only() -> None:
    views = make_views("simclr", spec(1, 8))
    assert any("hue, saturation and grey are left out" in note for note in views.notes)
    assert views.plans[0].jitter == (0.4, 0.4, 0.0, 0.0) and views.plans[0].grey == 0
    assert any("color" in note for note in make_views("supervised", spec(2, 8)).notes)
    assert not any("left out" in note for note in make_views("crop_flip", spec(1, 8)).notes)


def test_floats_of_any_range_are_not_clamped() -> None:
    s = DataSpec("image", 3, 16, (100.0,) * 3, (50.0,) * 3, 1.0)
    x = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 50 + 100
    for recipe in RECIPES:
        views = make_views(recipe, s)
        assert any("arbitrary range" in note for note in views.notes)
        # Clamping to [0, 1] would leave everything near -2.
        assert all(abs(float(v.x.mean())) < 0.3 and float(v.x.std()) > 0.25 for v in views(x, draws()))
        assert all(p.jitter is None and not p.grey and not p.solarise for p in views.plans)
    unit = DataSpec("image", 3, 16, (0.5,) * 3, (0.2,) * 3, 1.0)
    assert make_views("simclr", unit, unit_range=True).plans[0].jitter is not None


def test_flip_can_be_switched_off_without_moving_other_draws() -> None:
    x = images()
    with_flip, = make_views("crop_flip", spec())(x, draws())
    without, = make_views("crop_flip", spec(), flip=False)(x, draws())
    assert not without.geometry.flip.any() and torch.equal(with_flip.geometry.box, without.geometry.box)


def test_mistakes_are_named() -> None:
    with pytest.raises(UsageError, match="simclr"):
        make_views("simclrr", spec())
    with pytest.raises(UsageError, match="strength"):
        make_views("simclr", spec(), strenght=1.0)
    for bad in ({"min_scale": 0.0}, {"grey": 1.5}, {"strength": -1.0}, {"blur": -0.1}):
        with pytest.raises(UsageError):
            make_views("simclr", spec(), **bad)
    with pytest.raises(UsageError):
        make_views("multicrop", spec(), style="mocov2")
    with pytest.raises(UsageError, match="channels"):
        make_views("none", spec())(images(12, 1), draws())
    with pytest.raises(UsageError, match="rows"):
        make_views("none", spec())(images(4), draws())
    assert recipe_options("crop_flip") == {"min_scale": 0.2, "flip": True, "n_views": 1, "unit_range": None,
                                           "interpolation": "bilinear"}


def test_real_images() -> None:
    """Averaged over many photographs, two views of one image resemble each other more than views of two images."""
    folder = Path(os.environ.get("OSTEON_DATA", Path(__file__).parents[3] / "shared" / "data")) / "cifar10"
    files = sorted(folder.rglob("*test*.parquet")) if folder.is_dir() else []
    if not files:
        pytest.skip(f"no CIFAR-10 parquet under {folder} (set OSTEON_DATA)")
    parquet = pytest.importorskip("pyarrow.parquet")
    image = pytest.importorskip("PIL.Image")
    import io

    import numpy as np

    table = next(parquet.ParquetFile(files[0]).iter_batches(256)).to_pylist()
    key = "img" if "img" in table[0] else "image"
    x = torch.stack([torch.from_numpy(np.array(image.open(io.BytesIO(row[key]["bytes"])))).permute(2, 0, 1)
                     for row in table])
    a, b = make_views("simclr", spec())(x, draws(len(x)))
    means = [torch.nn.functional.adaptive_avg_pool2d(v.x, 2).flatten(1) for v in (a, b)]
    similarity = torch.corrcoef(torch.cat(means))[:len(x), len(x):]
    assert similarity.diagonal().mean() > similarity.mean() + 0.1
