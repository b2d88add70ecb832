"""What a training step costs and where its time goes: ``python -m benchmarks.steps``.

Work is interleaved and measured in CPU seconds of one thread, so that other load on the machine counts little.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.sections import EVIDENCE, ratio, take_turns, write_page
from osteon.backbones import build_backbone
from osteon.core import registry
from osteon.parts.flops import count_step
from osteon.parts.types import DataSpec, Step
from osteon.train.loop import Engine, make_fabric, set_layout
from osteon.train.settings import resolve_settings

matplotlib.use("Agg")


def spec(side: int) -> DataSpec:
    """Colour images of a side."""
    return DataSpec("image", 3, side, (0.5,) * 3, (0.25,) * 3, num_classes=10)


def images(count: int, side: int) -> dict[str, Tensor]:
    """A batch of stored images."""
    g = torch.Generator().manual_seed(0)
    return {"image": torch.randint(0, 256, (count, 3, side, side), generator=g, dtype=torch.uint8),
            "index": torch.arange(count)}


def engine(objective: str, backbone: str, side: int, batch: int, wishes: dict[str, object] | None = None,
           options: dict[str, object] | None = None, **network: object) -> Engine:
    """An objective ready to take steps, with the settings a run would have."""
    torch.manual_seed(0)
    net = build_backbone(backbone, channels=3, size=side, **network)
    method = registry.build("objective", objective, net, spec(side), **(options or {}))
    settings, _ = resolve_settings({"steps": 100, "batch_size": batch, **(wishes or {})}, method.recipe, 10_000,
                                   kind=net.kind)
    set_layout(method, settings, torch.device("cpu"))
    return Engine(method.train(), settings, make_fabric(settings.precision))


def stepper(work: Engine, batch: dict[str, Tensor]) -> Callable[[], None]:
    """One optimiser step after another."""
    at = iter(range(10_000))
    return lambda: work.run(batch, Step(next(at), 10_000, 0)) and None


def bare_simclr(batch: int) -> Callable[[], None]:
    """The step alone as plain PyTorch: torchvision's ResNet-18 for 32 px, projector, NT-Xent, SGD; views ready-made."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    network = resnet18()
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()  # type: ignore[assignment]
    network.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))  # type: ignore[assignment]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)
    x, own = torch.randn(2 * batch, 3, 32, 32), torch.eye(2 * batch, dtype=torch.bool)
    partner = torch.arange(2 * batch).roll(batch)

    def step() -> None:
        z = F.normalize(network(x), dim=1)
        loss = F.cross_entropy((z @ z.T / 0.5).masked_fill(own, -torch.inf), partner)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def precision() -> list[str]:
    """A SimCLR step of ResNet-18 at 32 px, batch 32: osteon's with its views, against a bare float32 one without.

    bf16 gains where the processor multiplies it natively and the network is convolutional; the default follows that
    rule. That it converges as well: [bf16 and channels_last against fp32](precision.md).
    """
    flags = {name: getattr(torch.cpu, f"_is_{name}_supported", lambda: False)() for name in
             ("avx512_bf16", "amx_tile")}
    data = images(32, 32)
    works = {"bare float32": bare_simclr(32),
             "osteon, default": stepper(engine("simclr", "resnet18", 32, 32), data),
             "osteon, float32": stepper(engine("simclr", "resnet18", 32, 32, {"precision": "32",
                                                                            "channels_last": False}), data)}
    spent = take_turns(works)
    lines = [f"bf16 instructions: {', '.join(k for k, v in flags.items() if v) or 'none: bf16 gains nothing here'}"]
    for name, seconds in spent.items():
        against = f"{ratio(seconds, spent['bare float32']):.2f}x bare" if name != "bare float32" else ""
        wanted = " (wanted at most 0.6x)" if name == "osteon, default" else ""
        lines.append(f"{name:18} {1000 * statistics.median(seconds):8.0f} ms CPU   {against}{wanted}")
    data = images(64, 32)
    vit = take_turns({p: stepper(engine("simclr", "vit_tiny", 32, 64, {"precision": p}), data) for p in ("32", "bf16")},
                     rounds=3)
    return [*lines, f"ViT-tiny, bf16 against float32: {ratio(vit['bf16'], vit['32']):.2f}x, hence float32 by default"]


def visible() -> list[str]:
    """Operations of a step, hidden tokens left out of the encoder, against the same step on all tokens.

    The decoder sees all tokens on both sides; beside a tiny encoder it is a large part of the step.
    """
    lines = []
    for objective, backbone, side, patch in (("mae", "vit_tiny", 32, 4), ("mae", "vit_small", 64, 4),
                                             ("mae", "vit_base", 96, 8), ("ijepa", "vit_tiny", 32, 4),
                                             ("simmim", "vit_tiny", 32, 4)):
        work = engine(objective, backbone, side, 2, patch=patch)
        cost = count_step(work, images(2, side), Step(0, 100))
        text = f"{objective:7} {backbone:10} {side // patch:3} x {side // patch:<3} tokens  " \
               f"{(cost.total - cost.views) / 2e9:8.2f} GFLOP an image"
        if objective == "mae":
            work.objective.mask = lambda grid, draws: torch.zeros(  # type: ignore[method-assign]
                len(draws.rows), int(np.prod(grid)), dtype=torch.bool)
            whole = count_step(work, images(2, side), Step(0, 100))
            share = (cost.total - cost.views) / (whole.total - whole.views)
            text += f", {share:.3f} of all tokens (wanted at most 0.35)"
        elif objective == "simmim":
            text += ": mask tokens pass the encoder, as published"
        lines.append(text)
    return lines


def crops() -> list[str]:
    """Multi-crop: passes through the networks in one step, each of one size; teachers record no graph."""
    lines = []
    for objective in ("dino", "swav"):
        work = engine(objective, "resnet_tiny", 32, 8)
        seen: list[str] = []
        for who, module in [("student", work.objective.backbone),
                            *((f"teacher {i}", c["backbone"]) for i, c in enumerate(work.objective.companions())
                              if "backbone" in getattr(c, "members", {}))]:
            module.register_forward_hook(lambda _m, x, out, who=who, seen=seen: seen.append(
                f"{who} {tuple(x[0].shape)}{'' if out.pooled.requires_grad else ' without graph'}"))
        work.run(images(8, 32), Step(0, 100))
        lines.append(f"{objective:5} 8 images: {'; '.join(seen)}")
    return lines


def in_child(measure: Callable[[], Any]) -> tuple[Any, float]:
    """What a forked child measures, and the MiB by which its memory grew at most."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            ctypes.CDLL(None).malloc_trim(0)  # what the parent freed and kept would be used again unseen
            before = _resident("VmRSS")
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # forget the highest mark inherited from the parent
            value = measure()
            os.write(write, json.dumps([value, (_resident("VmHWM") - before) / 1024]).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("a measurement failed in its process")
    value, grown = json.loads(text)
    return value, grown


def _resident(key: str) -> int:
    """Kilobytes by the name they have in the status of a process."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key))


def two_steps(objective: str, backbone: str, side: int, batch: int, wishes: dict[str, object],
                network: dict[str, object]) -> list[float]:
    """CPU seconds and the loss of the second of two steps."""
    step, spent, loss = images(batch, side), [], 0.0
    work = engine(objective, backbone, side, batch, {"precision": "32", **wishes}, **network)
    for i in range(2):
        begun = time.process_time()
        loss = float(work.run(step, Step(i, 100))[0].total)
        spent.append(time.process_time() - begun)
    return [spent[-1], loss]


def checkpointing() -> list[str]:
    """With `--set checkpointing=true` and without: time, memory and loss of a second step, each in its own process."""
    lines = []
    cases = (("mae", "vit_small", 32, 64, {"patch": 2}), ("simclr", "resnet18", 32, 64, {}))
    for case in cases:
        objective, backbone, side, batch, network = case
        base: list[float] = []
        for name in ("plain", "checkpointing"):
            work = partial(two_steps, objective, backbone, side, batch, {"checkpointing": name != "plain"}, network)
            (seconds, loss), grown = in_child(work)
            base = base or [seconds, grown]
            lines.append(f"{objective:7} {backbone:10} {name:14} {1000 * seconds:7.0f} ms CPU "
                         f"({seconds / base[0]:.2f}x)  {grown:6.0f} MiB at most ({grown / base[1]:.2f}x)  "
                         f"loss {loss:.6f}")
    return lines


def compiled() -> list[str]:
    """With `--set compile=true` and without (a ViT-tiny, float32): the time to compile, then that of a step."""
    def measure() -> list[float]:
        batch = images(32, 32)
        plain, work = (engine("mae", "vit_tiny", 32, 32, {"precision": "32", "compile": c}) for c in (False, True))
        first = float(plain.run(batch, Step(0, 100))[0].total)
        begun = time.perf_counter()
        found = float(work.run(batch, Step(0, 100))[0].total)
        waited = time.perf_counter() - begun
        at = iter(range(1, 100))
        spent = take_turns({"plain": lambda: plain.run(batch, Step(1, 100)),
                            "compiled": lambda: work.run(batch, Step(next(at), 100))})
        return [waited, ratio(spent["compiled"], spent["plain"]), abs(found - first) / abs(first)]

    (waited, share, off), _ = in_child(measure)
    return [f"mae     vit_tiny   compile: first step {waited:.0f} s, then {share:.2f}x the CPU time; loss of the first "
            f"step off by {off:.1e} of itself"]


GROUPS = (("convolution", ("convolution", "mkldnn")), ("matrix product", ("mm", "linear", "baddbmm")),
          ("attention", ("scaled_dot", "flash", "softmax")), ("normalisation", ("norm", "_ByRows")),
          ("activation", ("relu", "gelu", "threshold")), ("views", ("osteon::", "kernel")),
          ("optimiser", ("_foreach", "addcdiv", "addcmul", "lerp", "sqrt")),
          ("copies and types", ("copy", "to", "cat", "clone", "index", "gather", "fill", "zero", "contiguous",
                                "scatter", "empty", "slice", "select", "stack")))


def profile_of(work: Engine, batch: dict[str, Tensor]) -> tuple[dict[str, float], list[str]]:
    """Seconds by kind of operation in one step, and the largest single operations in words."""
    from torch.profiler import ProfilerActivity, profile, record_function

    step = stepper(work, batch)
    step()
    own = getattr(work.objective, "views", None)
    if own is not None:
        def views(*args: object) -> object:
            with record_function("osteon::views"):
                return own(*args)

        views.notes = own.notes  # type: ignore[attr-defined]
        work.objective.views = views  # type: ignore[assignment]
    begun = time.process_time()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    total = time.process_time() - begun
    shares = {name: 0.0 for name, _ in GROUPS} | {"everything else": 0.0}
    rows = sorted(found.key_averages(), key=lambda e: -e.self_cpu_time_total)
    for event in rows:
        plain = event.key.removeprefix("aten::")
        group = next((name for name, words in GROUPS if any(w in plain for w in words)), "everything else")
        shares[group] += event.self_cpu_time_total / 1e6
    top = [f"    {e.key.removeprefix('aten::')[:44]:44} {e.self_cpu_time_total / 1e3:9.1f} ms  {e.count:5} calls"
           for e in rows[:8]]
    return {**shares, "total": total}, top


def profiles() -> list[str]:
    """Where the time of a step goes: by kind of operation, and the eight largest operations (torch's profiler,
    by the clock: other work on the machine is in the milliseconds, hardly in the shares).
    """
    cases = {"SimCLR ResNet-18, 32 px, batch 32 (bf16, channels_last)": (engine("simclr", "resnet18", 32, 32),
                                                                        images(32, 32)),
             "MAE ViT-small, 64 px, patch 8, batch 32 (float32)": (engine("mae", "vit_small", 64, 32, patch=8),
                                                                   images(32, 64)),
             "DINO ViT-tiny, 32 px, batch 32 (float32)": (engine("dino", "vit_tiny", 32, 32), images(32, 32))}
    lines, drawn = [], {}
    for name, (work, batch) in cases.items():
        shares, top = profile_of(work, batch)
        total = sum(v for k, v in shares.items() if k != "total")
        drawn[name] = {k: v / total for k, v in shares.items() if k != "total"}
        lines += [name, "  " + ", ".join(f"{k} {100 * v:.0f} %" for k, v in sorted(
            drawn[name].items(), key=lambda kv: -kv[1]) if v >= 0.005), *top]
    plot(drawn)
    return lines


def plot(shares: dict[str, dict[str, float]]) -> None:
    """Bars of the shares, one a step, to docs/evidence/steps.svg."""
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.hashsalt": "osteon", "svg.fonttype": "none", "font.size": 9})
    figure, axes = pyplot.subplots(figsize=(8, 2.6), layout="constrained")
    kinds = list(next(iter(shares.values())))
    colours = pyplot.get_cmap("tab10").colors  # type: ignore[attr-defined]
    left = np.zeros(len(shares))
    for i, kind in enumerate(kinds):
        values = np.array([100 * s[kind] for s in shares.values()])
        axes.barh([name.split(",")[0] for name in shares], values, left=left, label=kind, color=colours[i % 10])
        left += values
    axes.invert_yaxis()
    axes.set_xlabel("share of the step's time, per cent")
    axes.legend(ncols=1, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(EVIDENCE / "steps.svg", metadata={"Date": None})
    pyplot.close(figure)


def main() -> int:
    """Measure everything and write docs/evidence/steps.md."""
    write_page("steps", "What a step costs", "CPU time of one thread, medians of three, work interleaved with what it "
               "is compared with. Absolute figures are this machine's; ratios carry over.",
               [("Precision and layout", precision), ("Visible tokens only", visible), ("Multi-crop", crops),
                ("Checkpointing", checkpointing),
                ("Compiling", compiled), ("Where the time goes", profiles)],
               "![Shares of a step's time by kind of operation](steps.svg)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
