"""Speed, measured against the peer or bare loop it is to be compared with, interleaved in one run: ``make bench``.

Every ratio is the median of at least three pairs. Absolute figures are this machine's; ratios carry over.
"""

from __future__ import annotations

import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks import loading, views

ROOT = Path(__file__).parents[1]


def cpu_of(command: list[str]) -> float:
    """CPU seconds of a whole command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def starts() -> list[str]:
    """CPU seconds to import, to show help, to list methods; and whether torch was imported."""
    python = sys.executable
    commands = {"import osteon": [python, "-c", "import osteon"], "osteon --help": [python, "-m", "osteon", "--help"],
                "osteon methods": [python, "-m", "osteon", "methods"], "python -c pass": [python, "-c", "pass"]}
    limits = {"import osteon": 0.15, "osteon --help": 0.4, "osteon methods": 0.6}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(5):
        for name, command in commands.items():
            times[name].append(cpu_of(command))
    lines = []
    for name, values in times.items():
        limit = f" (wanted at most {limits[name]})" if name in limits else ""
        lines.append(f"{name:16} {statistics.median(values):.3f} CPU s{limit}")
    code = ("import sys, osteon.cli; from osteon.verbs.methods import methods; methods(); "
            "sys.exit('torch' in sys.modules)")
    clean = subprocess.run([python, "-c", code], cwd=ROOT).returncode == 0
    return [*lines, f"torch imported by import, help or methods: {'no' if clean else 'YES'}"]


def interleave(first: Callable[[], None], second: Callable[[], None], rounds: int) -> tuple[list[float], list[float]]:
    """CPU seconds of two pieces of work, in turn."""
    a, b = [], []
    for _ in range(rounds):
        for work, into in ((first, a), (second, b)):
            begun = time.process_time()
            work()
            into.append(time.process_time() - begun)
    return a, b


def loop_cost() -> list[str]:
    """What osteon's loop, monitors and log add to a step of the same objective in a bare PyTorch loop."""
    import tempfile

    from lightning_fabric import Fabric

    from osteon.backbones import build_backbone
    from osteon.core import registry
    from osteon.core.run import RunFolder
    from osteon.data import Loader, open_source
    from osteon.parts.types import Step
    from osteon.train.loop import train
    from osteon.train.settings import resolve_settings

    data = open_source("digits:train", cache=False)
    steps = 150

    def method():  # type: ignore[no-untyped-def]
        torch.manual_seed(0)
        network = build_backbone("vit_tiny", channels=1, size=8, dim=16, depth=1, heads=1)
        return registry.build("objective", "mae", network, data.spec, flip=False, decoder_dim=16, decoder_depth=1)

    def ours() -> None:
        m = method()
        settings, _ = resolve_settings({"steps": steps, "batch_size": 32, "checkpoint_every": 10_000}, m.recipe,
                                       len(data), kind="tokens")
        with tempfile.TemporaryDirectory() as folder:
            run = RunFolder(Path(folder) / "run")
            with run.lock():
                train(m, data, run, settings, fabric=Fabric(accelerator="cpu", devices=1),
                      log=lambda step, values: run.append_metrics({"step": step, **values}), say=lambda _t: None)

    def bare() -> None:
        m = method().train()
        optimizer = torch.optim.AdamW(m.parameters(), lr=1e-3, weight_decay=0.05)
        loader = Loader(data, 32, 0)
        for index in range(steps):
            batch = loader.at(index)
            loss = m(batch, Step(index, steps, 0)).total
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    ours(), bare()
    a, b = interleave(ours, bare, 5)
    added = [1000 * (x - y) / steps for x, y in zip(a, b, strict=True)]
    return [f"bare loop          {1000 * statistics.median(b) / steps:.2f} ms CPU a step",
            f"osteon's loop      {1000 * statistics.median(a) / steps:.2f} ms CPU a step",
            f"added              {statistics.median(added):.2f} ms a step (wanted under 0.5; it includes monitors, "
            "metrics, schedule and one final checkpoint)"]


def probe_cost() -> list[str]:
    """Closed-form linear probe against L-BFGS logistic regression on 50,000 x 512 features of 10 classes."""
    from osteon.core import registry

    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, 512)) * 0.09
    y = rng.integers(0, 10, 60_000)
    mixing = rng.normal(size=(512, 512)) / 512**0.5
    x = ((centres[y] + rng.normal(size=(60_000, 512))) @ mixing).astype(np.float32)
    train_x, train_y, test_x, test_y = x[:50_000], y[:50_000], x[50_000:], y[50_000:]
    scores: dict[str, float] = {}

    def fit(solver: str) -> Callable[[], None]:
        def work() -> None:
            judge = registry.build("evaluator", "linear_probe", solver=solver)
            out = judge(train_x, train_y, test_x, classes=10)
            scores[solver] = 100 * float((out.argmax(1) == test_y).mean())
        return work

    a, b = interleave(fit("ridge"), fit("lbfgs"), 3)
    ratio = statistics.median(p / q for p, q in zip(a, b, strict=True))
    return [f"closed form   {statistics.median(a):7.2f} CPU s, accuracy {scores['ridge']:.2f} %",
            f"L-BFGS        {statistics.median(b):7.2f} CPU s, accuracy {scores['lbfgs']:.2f} % (the whole grid of "
            "penalties on both sides)",
            f"ratio of time {ratio:.4f} (wanted under 0.1), accuracy {scores['ridge'] - scores['lbfgs']:+.2f} points "
            "(wanted within 1)"]


def main() -> int:
    """Measure everything and write docs/evidence/speed.md; loading has a page of its own."""
    torch.set_num_threads(1)
    page = ["# Speed", "", "Regenerate with `make bench`. Medians; CPU seconds of one thread; work interleaved with "
            f"its peer's in one run. Python {platform.python_version()}, torch {torch.__version__}, "
            f"{platform.machine()}.", ""]
    for title, measure in (("Start", starts), ("The loop", loop_cost), ("Linear probe", probe_cost),
                           ("Views", views.report)):
        print(f"== {title}", flush=True)
        lines = measure()
        print("\n".join(lines), flush=True)
        page += [f"## {title}", "", (measure.__doc__ or "").strip(), "", "```", *lines, "```", ""]
    (ROOT / "docs" / "evidence" / "speed.md").write_text("\n".join(page), encoding="utf-8")
    return loading.main([])


if __name__ == "__main__":
    sys.exit(main())
