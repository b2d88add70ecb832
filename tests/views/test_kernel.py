"""The compiled kernel against torchvision, against the torch path, and by its own laws.

Where the library beside the package is missing or older than its source, it is built for these tests.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from osteon.parts.types import Draws, Step
from osteon.views import colour, kernel
from osteon.views.crop import crop_resize, full_boxes, sample_boxes

ROOT = Path(__file__).parents[2]
FULL = 1e-4  # of a range of 1: 0.03 levels of 255


@pytest.fixture(scope="module", autouse=True)
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before, folder = kernel.LIBRARY, tmp_path_factory.mktemp("kernel")
    if kernel._load(before)[0] is None:
        subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder), "--build-temp",
                        str(folder)], cwd=ROOT, capture_output=True, check=False)
        kernel.LIBRARY = folder / "osteon" / "views" / "_kernel.so"
    if kernel._load(kernel.LIBRARY)[0] is None:
        kernel.LIBRARY = before
        pytest.skip(f"no compiled kernel: {kernel._load(before)[1]}")
    yield
    kernel.LIBRARY = before


def images(n: int = 16, channels: int = 3, height: int = 12, width: int = 10) -> Tensor:
    x = torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(1))
    if n > 3:
        x[0], x[1], x[2] = 0.5, 0.0, 1.0
        x[3] = (x[3] * 3).round() / 3  # many ties between channels: the seams of the hexcone
    return x


def pixels(box: Tensor, height: int, width: int) -> Tensor:
    return (box.double() * torch.tensor([width, height, width, height])).round()


def still(x: Tensor, **parts: object) -> Tensor:
    """The kernel on whole images at their own size: nothing moves."""
    edge = pixels(full_boxes(len(x)), *x.shape[2:])
    return kernel.render(x, edge, tuple(x.shape[2:]), torch.zeros(len(x), dtype=torch.bool),  # type: ignore[arg-type]
                         **parts)  # type: ignore[arg-type]


def jitter(n: int, order: list[int] | Tensor, factor: Tensor) -> colour.Jitter:
    order = torch.as_tensor(order).expand(n, 4)
    return colour.Jitter(factor.expand(n, 4) if factor.ndim == 1 else factor, order, torch.ones(n, dtype=torch.bool))


def drawn(n: int, height: int, width: int) -> dict[str, Tensor | colour.Jitter]:
    """Parameters of every part."""
    d = Draws(Step(0, 1, 0), torch.arange(n), n)
    sigma = torch.where(d.rand() < 0.6, d.uniform(0.1, 2.0), 0.0)
    return {"edge": pixels(sample_boxes(d.fork("crop"), height, width), height, width), "flip": d.rand() < 0.5,
            "jitter": colour.Jitter.draw(d.fork("jitter"), (0.8, 0.8, 0.8, 0.2), 0.8), "grey": d.rand() < 0.3,
            "sigma": sigma, "solarise": d.rand() < 0.3}


def by_torch(x: Tensor, size: tuple[int, int], p: dict, cubic: bool = False) -> Tensor:
    height, width = x.shape[2:]
    y = crop_resize(x, p["edge"].float() / torch.tensor([width, height, width, height]), size, p["flip"], cubic=cubic)
    y = colour.jitter(y.clamp_(0, 1) if cubic else y, p["jitter"])
    y = torch.where(p["grey"][:, None, None, None], colour.to_grey(y), y)
    on = p["sigma"] > 0
    y[on] = colour.blur(y[on], p["sigma"][on], 2.0)
    return torch.where(p["solarise"][:, None, None, None], colour.solarise(y), y)


def alike(a: Tensor, b: Tensor, solarised: Tensor | None = None) -> bool:
    """Within 0.03 levels, but for pixels that rounding puts on the other side of solarisation's threshold."""
    error = (a - b).abs()
    if solarised is not None:
        error = torch.where(solarised[:, None, None, None] & ((b - 0.5).abs() < FULL), 0.0, error)
    return a.shape == b.shape and bool(error.max() < FULL)


@pytest.mark.parametrize("size", [(20, 24), (8, 8), (40, 40), (11, 7), (1, 1), (3, 70)])
@pytest.mark.parametrize("cubic", [False, True])
def test_crop_agrees_with_torchvision(size: tuple[int, int], cubic: bool) -> None:
    transforms = pytest.importorskip("torchvision.transforms.v2")
    x = images(24, 3, 20, 24)
    mode = transforms.InterpolationMode.BICUBIC if cubic else transforms.InterpolationMode.BILINEAR
    p = drawn(24, 20, 24)
    got = kernel.render(x, p["edge"], size, p["flip"], cubic=cubic)
    assert 0 < p["flip"].sum() < 24
    for i, (x0, y0, x1, y1) in enumerate(p["edge"].int().tolist()):
        want = transforms.functional.resized_crop(x[i], y0, x0, y1 - y0, x1 - x0, list(size), mode, antialias=True)
        assert (got[i] - (want.flip(-1) if p["flip"][i] else want)).abs().max() < FULL


@pytest.mark.parametrize("op", ["brightness", "contrast", "saturation", "hue"])
def test_colours_agree_with_torchvision(op: str) -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    x, number = images(32), ["brightness", "contrast", "saturation", "hue"].index(op)
    value = torch.linspace(-0.5, 0.5, 32) if op == "hue" else torch.linspace(0, 1.8, 32)
    factor = torch.tensor([1.0, 1, 1, 0]).repeat(32, 1)
    factor[:, number] = value
    # Contrast at 1 and the others at rest only clamp, which changes nothing here.
    got = still(x, jitter=jitter(32, [0, 1, 2, 3], factor))
    change = getattr(functional, f"adjust_{op}")
    assert alike(got, torch.stack([change(image, float(v)) for image, v in zip(x, value, strict=True)]))


def test_every_order_of_the_jitter_agrees_with_torchvision() -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    import itertools

    orders, x = torch.tensor(list(itertools.permutations(range(4)))), images(24)
    factor = torch.rand(24, 4, generator=torch.Generator().manual_seed(2)) * 1.2 + 0.5
    factor[:, 3] = (factor[:, 3] - 1.1) * 0.8
    p = jitter(24, orders, factor)
    p.on = torch.arange(24) % 5 != 0
    steps = [functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation,
             functional.adjust_hue]
    want = x.clone()
    for i in range(24):
        for op in orders[i].tolist() if p.on[i] else []:
            want[i] = steps[op](want[i], float(factor[i, op]))
    assert alike(still(x, jitter=p), want)


def test_grey_solarise_blur_agree_with_torchvision() -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    x, on = images(), torch.arange(16) % 2 == 0
    pick = on[:, None, None, None]
    grey = functional.rgb_to_grayscale(x, num_output_channels=3)
    assert alike(still(x, grey=on), torch.where(pick, grey, x))
    x[4, :, 0, 0] = 0.5
    assert alike(still(x, solarise=on), torch.where(pick, functional.solarize(x, 0.5), x))
    sigma = torch.linspace(0.1, 1.0, 16)
    want = torch.stack([functional.gaussian_blur(image, [9, 9], [float(s)] * 2)
                        for image, s in zip(x, sigma, strict=True)])
    assert alike(still(x, sigma=torch.where(on, sigma, 0.0), sigma_max=1.0), torch.where(pick, want, x))


CASES = [(1, 12, 10, (12, 10), torch.float32), (3, 33, 17, (9, 40), torch.uint8), (4, 20, 24, (16, 48), torch.uint16),
         (3, 1, 1, (5, 7), torch.uint8), (2, 70, 100, (32, 33), torch.float64), (3, 64, 64, (1, 1), torch.int16),
         (3, 5, 90, (90, 5), torch.float32)]


@pytest.mark.parametrize("channels,height,width,size,dtype", CASES)
@pytest.mark.parametrize("cubic", [False, True])
def test_the_whole_recipe_agrees_with_the_torch_path(channels: int, height: int, width: int, size: tuple[int, int],
                                                     dtype: torch.dtype, cubic: bool) -> None:
    """Blurs that reach beyond a small view, one pixel, odd sides, and every stored type."""
    scale = {torch.uint8: 255.0, torch.uint16: 65535.0, torch.int16: 999.0}.get(dtype, 1.0)
    stored = (images(12, channels, height, width) * scale).to(torch.int32 if scale > 1 else dtype).to(dtype)
    p, mean, std = drawn(12, height, width), [0.1 * c for c in range(channels)], [0.5 + c for c in range(channels)]
    got = kernel.render(stored, size=size, scale=scale, mean=mean, std=std, cubic=cubic, clip=cubic, sigma_max=2.0,
                        **p)  # type: ignore[arg-type]
    assert got.dtype == torch.float32 and got.is_contiguous()
    back = got * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    assert alike(back, by_torch(stored.float() / scale, size, p, cubic), p["solarise"])


def test_the_bits_depend_on_nothing_else() -> None:
    """Not on threads, nor on the batch, nor on the instruction set, nor on how the input lies in memory."""
    x = (images(64, 3, 41, 50) * 255).to(torch.uint8)
    p = drawn(64, 41, 50)

    def run(rows: slice | list[int] = slice(None), take: Callable[[Tensor], Tensor] = lambda t: t,
            **more: int) -> Tensor:
        some = {k: colour.Jitter(v.factor[rows], v.order[rows], v.on[rows]) if isinstance(v, colour.Jitter)
                else v[rows] for k, v in p.items()}
        return kernel.render(take(x[rows]), size=(45, 39), scale=255.0, sigma_max=2.0, **some, **more)  # type: ignore

    whole = run(threads=1)
    assert torch.equal(run(threads=1), whole) and torch.equal(run(threads=3), whole) and torch.equal(run(), whole)
    assert torch.equal(run(threads=1000), whole)
    for isa in range(kernel.instruction_set() + 1):
        assert torch.equal(run(isa=isa), whole)
    assert torch.equal(run([5]), whole[5:6]) and torch.equal(run([9, 2, 30]), whole[[9, 2, 30]])
    assert torch.equal(run(take=lambda t: t.transpose(2, 3).contiguous().transpose(2, 3)), whole)
    assert torch.equal(torch.cat([run(slice(0, 7)), run(slice(7, 64))]), whole)
    assert run(slice(0, 0)).shape == (0, 3, 45, 39)


def test_threads_do_not_disturb_one_another() -> None:
    """Samples of different sizes of box, enough work for every thread to take part, several times."""
    x, p = (images(48, 3, 90, 80) * 255).to(torch.uint8), drawn(48, 90, 80)
    whole, *others = (kernel.render(x, size=(150, 130), scale=255.0, sigma_max=2.0, threads=threads,
                                    **p)  # type: ignore[arg-type]
                      for threads in (1, 4, 4, 4, 4))
    assert all(torch.equal(other, whole) for other in others)


def test_values_by_hand() -> None:
    # Four pixels to two: weights 3 3 1 and 1 3 3 of 7; mirrored; stored 0..255; mean 1, deviation 2.
    x = torch.tensor([0, 51, 102, 255], dtype=torch.uint8).view(1, 1, 1, 4)
    edge, flip = torch.tensor([[0.0, 0, 4, 1]]), torch.tensor([True])
    got = kernel.render(x, edge, (1, 2), flip, scale=255.0, mean=[1.0], std=[2.0]).flatten()
    want = [(0.2 + 3 * 0.4 + 3 * 1.0) / 7, (3 * 0 + 3 * 0.2 + 0.4) / 7]
    assert torch.allclose(got, torch.tensor([(w - 1) / 2 for w in want]), atol=1e-6)
    # Brightness 2 is cut at 1 before contrast 1/2 looks at the mean (0.4 + 1) / 2.
    two = torch.tensor([[[[0.2, 0.6]]]])
    got = still(two, jitter=jitter(1, [0, 1, 2, 3], torch.tensor([2.0, 0.5, 0.3, 0.2])))
    assert torch.allclose(got.flatten(), torch.tensor([0.55, 0.85]), atol=1e-6)
    # A blur of three pixels mirrors without repeating the edge: 1 0 0 has neighbours 0 on both sides of the 1.
    taps = torch.exp(-0.5 * torch.tensor([0.0, 1.0, 2.0]) ** 2 / 0.5)
    taps /= taps[0] + 2 * taps[1] + 2 * taps[2]
    got = still(torch.tensor([[[[1.0, 0, 0]]]]), sigma=torch.tensor([0.5**0.5]), sigma_max=0.5)
    assert torch.allclose(got.flatten(), torch.tensor([taps[0], taps[1], 2 * taps[2]]), atol=1e-6)


def test_bicubic_overshoots_unless_cut() -> None:
    edge = torch.zeros(1, 1, 1, 8)
    edge[..., 4:] = 1
    args = (edge, torch.tensor([[0.0, 0, 8, 1]]), (1, 32), torch.tensor([False]))
    assert kernel.render(*args, cubic=True).max() > 1.05
    cut = kernel.render(*args, cubic=True, clip=True)
    assert cut.max() == 1 and cut.min() == 0


def test_mistakes_are_refused() -> None:
    x, no = images(2), torch.zeros(2, dtype=torch.bool)
    for edge in ([0.0, 0, 11, 12], [-1.0, 0, 5, 5], [3.0, 3, 3, 5]):
        with pytest.raises(ValueError, match="inside"):
            kernel.render(x, torch.tensor([edge, edge]), (4, 4), no)
    with pytest.raises(ValueError, match="every image"):
        kernel.render(x, torch.tensor([[0.0, 0, 4, 4]]), (4, 4), no)
    with pytest.raises(ValueError, match="channels"):
        still(x, mean=[0.0])
    with pytest.raises(ValueError, match="every image"):
        still(x, sigma=torch.ones(1), sigma_max=2.0)
    with pytest.raises(ValueError, match="every image"):
        still(x, jitter=jitter(1, [0, 1, 2, 3], torch.ones(4)))
    bad = jitter(2, [0, 1, 2, 4], torch.ones(4))
    with pytest.raises(ValueError, match="order"):
        still(x, jitter=bad)


def test_it_can_be_switched_off_and_says_why_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    x = images()
    monkeypatch.delenv("OSTEON_KERNEL", raising=False)
    assert kernel.available() and kernel.takes(x) and "compiled kernel (" in kernel.note()
    assert not kernel.takes(x.requires_grad_()) and not kernel.takes(torch.empty(1, device="meta"))
    monkeypatch.setenv("OSTEON_KERNEL", "0")
    assert not kernel.available() and not kernel.takes(images()) and "OSTEON_KERNEL=0" in kernel.note()
    monkeypatch.delenv("OSTEON_KERNEL")
    monkeypatch.setattr(kernel, "LIBRARY", tmp_path / "_kernel.so")
    assert not kernel.available() and "not built" in kernel.note() and "torch operations" in kernel.note()
    with pytest.raises(RuntimeError, match="missing"):
        still(images())
    (tmp_path / "other.so").write_bytes(b"no library")
    monkeypatch.setattr(kernel, "LIBRARY", tmp_path / "other.so")
    assert "cannot be loaded" in kernel.missing()


def test_a_library_of_another_source_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    copy = tmp_path / "copy.so"
    copy.write_bytes(kernel.LIBRARY.read_bytes())
    (tmp_path / "changed.cpp").write_text("// another version\n", encoding="utf-8")
    monkeypatch.setattr(kernel, "SOURCE", tmp_path / "changed.cpp")
    monkeypatch.setattr(kernel, "LIBRARY", copy)
    assert "another version" in kernel.missing()
