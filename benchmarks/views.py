"""Views on one core: the compiled kernel and the torch path against torchvision and albumentations; a part of
``make bench``. Run alone, it prints: ``python -m benchmarks.views``.

The recipe is SimCLR's with every part: random resized crop, mirror, colour jitter, grey, blur, solarisation and
normalisation, from stored bytes to normalised floats. Peers work sample by sample, as they do in a data loader.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from osteon.parts.types import DataSpec, Draws, Step, View
from osteon.views import denormalise, kernel, make_views

ROUNDS = 5
#: CPU seconds of one turn, or one piece of work if that is longer.
TURN = 0.25
MEAN, STD = (0.5,) * 3, (0.25,) * 3


@dataclass(frozen=True)
class Case:
    """Work to be measured.

    Args:
        name: what it is.
        side: of the stored images in pixels.
        batch: images a call.
        crops: (number, side, smallest, largest share of the image) of each kind of view.
        strength: of the colour jitter.
        blur: probability of the blur.
        solarise: probability of the solarisation.
        targets: ratios wanted of the kernel and of the torch path; None where there is none.
    """

    name: str
    side: int
    batch: int
    crops: tuple[tuple[int, int, float, float], ...]
    strength: float
    blur: float
    solarise: float
    targets: tuple[float | None, float | None]


CASES = (
    Case("2 x 32, no blur", 32, 256, ((2, 32, 0.2, 1.0),), 0.5, 0.0, 0.0, (None, None)),
    Case("2 x 32", 32, 256, ((2, 32, 0.2, 1.0),), 0.5, 0.5, 0.2, (50, 18)),
    Case("256 -> 2 x 224", 256, 32, ((2, 224, 0.08, 1.0),), 1.0, 0.5, 0.2, (25, 8)),
    Case("256 -> 2 x 224 + 6 x 96", 256, 32, ((2, 224, 0.14, 1.0), (6, 96, 0.05, 0.14)), 1.0, 0.5, 0.2, (25, 8)),
)


@contextmanager
def without_kernel() -> Iterator[None]:
    """Views by torch operations."""
    before = os.environ.get("OSTEON_KERNEL")
    os.environ["OSTEON_KERNEL"] = "0"
    try:
        yield
    finally:
        del os.environ["OSTEON_KERNEL"]
        if before is not None:
            os.environ["OSTEON_KERNEL"] = before


def ours(case: Case, images: Tensor) -> Callable[[], list[View]]:
    """The views of a batch by osteon."""
    spec = DataSpec("image", 3, case.side, MEAN, STD)
    recipes = [make_views("simclr", spec, size=size, min_scale=low, strength=case.strength, blur=case.blur,
                          solarise=case.solarise, n_views=count) for count, size, low, _ in case.crops]
    for recipe, (_, _, low, high) in zip(recipes, case.crops, strict=True):
        recipe.plans = [type(plan)(**{**vars(plan), "scale": (low, high)}) for plan in recipe.plans]

    def work() -> list[View]:
        draws = Draws.of({"image": images}, Step(0, 1, 0))
        return [view for n, recipe in enumerate(recipes) for view in recipe(images, draws.fork(str(n)))]

    return work


def torchvision_views(case: Case, images: Tensor) -> Callable[[], object]:
    """The same by torchvision's v2 transforms of tensors."""
    from torchvision.transforms import v2

    s = case.strength
    chains = []
    for count, size, low, high in case.crops:
        steps = [v2.RandomResizedCrop(size, scale=(low, high), antialias=True), v2.RandomHorizontalFlip(),
                 v2.RandomApply([v2.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s)], 0.8), v2.RandomGrayscale(0.2)]
        if case.blur:
            steps.append(v2.RandomApply([v2.GaussianBlur(17, (0.1, 2.0))], case.blur))
        if case.solarise:
            steps.append(v2.RandomSolarize(128, case.solarise))
        chains.append((count, v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])))
    return lambda: [torch.stack([chain(x) for x in images]) for count, chain in chains for _ in range(count)]


def albumentations_views(case: Case, images: Tensor) -> Callable[[], object]:
    """The same by albumentations' transforms of arrays."""
    a = importlib.import_module("albumentations")
    arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
    s = case.strength
    chains = []
    for count, size, low, high in case.crops:
        steps = [a.RandomResizedCrop(size=(size, size), scale=(low, high)), a.HorizontalFlip(p=0.5),
                 a.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s, p=0.8), a.ToGray(p=0.2)]
        if case.blur:
            steps.append(a.GaussianBlur(blur_limit=(17, 17), sigma_limit=(0.1, 2.0), p=case.blur))
        if case.solarise:
            steps.append(a.Solarize(p=case.solarise))
        chains.append((count, a.Compose([*steps, a.Normalize(MEAN, STD)])))
    return lambda: [torch.stack([torch.from_numpy(chain(image=x)["image"]).permute(2, 0, 1) for x in arrays])
                    for count, chain in chains for _ in range(count)]


def measure(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every piece of work, in turn; a quick one is repeated until its turn lasts as long as others'."""
    def seconds(work: Callable[[], object], repeats: int) -> float:
        begun = time.process_time()
        for _ in range(repeats):
            work()
        return (time.process_time() - begun) / repeats

    turns = {}
    for name, work in works.items():
        work()
        turns[name] = max(1, round(TURN / seconds(work, 1)))
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work, turns[name]))
    return times


def compare(case: Case, rounds: int) -> list[str]:
    """Milliseconds and ratios of one case."""
    images = torch.randint(0, 256, (case.batch, 3, case.side, case.side), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))
    fast = ours(case, images)

    def by_torch() -> None:
        with without_kernel():
            fast()

    works: dict[str, Callable[[], object]] = {"torchvision": torchvision_views(case, images), "torch path": by_torch}
    if kernel.available():
        works["kernel"] = fast
    if importlib.util.find_spec("albumentations"):
        works["albumentations"] = albumentations_views(case, images)
    times = measure(works, rounds)
    views = case.batch * sum(count for count, *_ in case.crops)
    lines = [f"{case.name}, {case.batch} images"]
    targets = {"kernel": case.targets[0], "torch path": case.targets[1]}
    for name, seconds in times.items():
        line = f"  {name:15} {1e6 * statistics.median(seconds) / views:9.1f} us a view"
        if name != "torchvision":
            ratio = statistics.median(p / q for p, q in zip(times["torchvision"], seconds, strict=True))
            line += f"   {ratio:6.1f}x torchvision"
        if "albumentations" in times and name in targets:
            ratio = statistics.median(p / q for p, q in zip(times["albumentations"], seconds, strict=True))
            line += f"   {ratio:6.1f}x albumentations (wanted 3x)"
        target = targets.get(name)
        lines.append(line + (f" (wanted {target:g}x)" if target else ""))
    return lines


def redo(view: View, images: Tensor, spec: DataSpec, size: int) -> Tensor:
    """A view done again by torchvision on float32 from the parameters it reports, before normalisation."""
    from torchvision.transforms.v2 import functional as f

    p, out = view.params, []
    steps = (f.adjust_brightness, f.adjust_contrast, f.adjust_saturation, f.adjust_hue)
    for i, image in enumerate(images):
        x0, y0, x1, y1 = (view.geometry.box[i] * spec.size).round().int().tolist()
        y = f.resized_crop(image.float() / 255, y0, x0, y1 - y0, x1 - x0, [size, size], antialias=True)
        y = y.flip(-1) if view.geometry.flip[i] else y
        for op in p["jitter_order"][i].tolist() if p["jitter"][i] else []:
            y = steps[op](y, float(p["jitter_factor"][i, op]))
        y = f.rgb_to_grayscale(y, 3) if p["grey"][i] else y
        out.append(f.gaussian_blur(y, [17, 17], [float(p["blur"][i])] * 2) if p["blur"][i] > 0 else y)
    return torch.stack(out)


def errors() -> list[str]:
    """Levels of 255 between a view and torchvision's float32 operations with the same parameters."""
    lines = [f"{'':16}{'kernel mean':>14}{'max':>9}{'torch mean':>14}{'max':>9}   (wanted: kernel max 0.05, torch mean "
             "0.3)"]
    for side, size, count in ((32, 32, 64), (256, 224, 8), (256, 96, 8)):
        images = smooth(count, side)
        spec = DataSpec("image", 3, side, MEAN, STD)
        # Without solarisation, whose step at one half turns the last bit of a float into half a range.
        views = make_views("simclr", spec, size=size, strength=1.0, blur=0.5, n_views=1)
        draws = Draws.of({"image": images}, Step(0, 1, 0))
        with without_kernel():
            by_torch = views(images, draws)[0]
        want = redo(by_torch, images, spec, size)
        found = []
        for view in ([views(images, draws)[0]] if kernel.available() else []) + [by_torch]:
            error = (denormalise(view.x, spec) - want).abs() * 255
            found.append(f"{error.mean():14.5f}{error.max():9.4f}")
        if len(found) == 1:
            found.insert(0, f"{'not built':>23}")
        lines.append(f"{f'{side} -> {size}':16}{''.join(found)}")
    return lines


def smooth(count: int, side: int) -> Tensor:
    """Images with the slopes and edges of photographs rather than white noise: (count, 3, side, side) uint8."""
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, side // 8, side // 8, generator=g)
    fine = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)
    fine = fine + 0.1 * torch.randn(count, 3, side, side, generator=g)
    return (fine.clamp(0, 1) * 255).to(torch.uint8)


def report(rounds: int = ROUNDS, cases: Sequence[Case] = CASES) -> list[str]:
    """The recipe of SimCLR with every part against torchvision's v2 transforms of tensors, sample by sample."""
    try:
        importlib.import_module("torchvision.transforms.v2")
    except ImportError:
        return ["torchvision is not installed: not measured"]
    lines = [kernel.note()]
    if not importlib.util.find_spec("albumentations"):
        lines.append("albumentations: not installed")
    for case in cases:
        lines += ["", *compare(case, rounds)]
    return [*lines, "", "Error against torchvision's operations on float32 with the same parameters, in levels of 255:",
            *errors()]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("\n".join(report(*(int(word) for word in sys.argv[1:2]))))
