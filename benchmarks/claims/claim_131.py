"""Claim 131 (TTM): a tiny mixer forecasts as well as a patch Transformer of many times its size."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from benchmarks.claims.kit import DATA, Record, fit
from osteon.backbones import build_backbone
from osteon.core import registry
from osteon.data import Dataset, open_source
from osteon.data.series import open_long
from osteon.objectives.forecast import Forecast
from osteon.parts.forecast import origins, seasonal_naive
from osteon.parts.types import Step
from osteon.train.loop import Engine
from osteon.train.settings import resolve_settings
from osteon.verbs._forecast_arms import Direct, ForecastArm, Task, naive_arm, ridge_arm

CONTEXT, HORIZON, STEPS, SEEDS, BATCH, SPLIT = 336, 96, 400, 2, 64, "8640,2880,2880"
#: Name -> backbone and options. The Transformers have the sizes of Nie et al. 2023, the usual one and that for ETTh1.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixer": ("ttm_tiny", {}),
    "transformer": ("vit_tiny", {"dim": 128, "depth": 3, "heads": 16, "mlp_ratio": 2.0, "patch": 8}),
    "narrow transformer": ("vit_tiny", {"dim": 16, "depth": 3, "heads": 4, "mlp_ratio": 8.0, "patch": 8}),
}


def run(quick: bool = False) -> Record:
    """Mixer, Transformers, linear map and seasonal naive on the test part of ETTh1, every origin."""
    record = Record(
        131,
        "Tiny Time Mixers: <1M parameters, 12-38% better zero/few-shot than large models, 14x fewer learnable and 106x "
        "fewer total parameters, 54-65x faster.",
        "ETTh1 standard split, context 336, horizon 96, channel-independent with instance norm, 400 steps, 2 seeds.",
        "Mixer test MSE <= transformer MSE + 3% with >= 10x fewer parameters (total) and a training step >= 4x faster "
        "(interleaved timing); both beat 24-hour seasonal naive by >= 20%. Zero-shot multi-dataset pre-training is not "
        "claimed. The linear map must be printed beside (hard to beat).")
    source = DATA / "ett" / "ETTh1.csv"
    train = open_source(f"{source}:train", window=CONTEXT + HORIZON, hop=50 if quick else 2, independent=True,
                        norm="series", split=SPLIT, cache=False)
    task = make_task(source, quick)
    record.say(f"{len(train):,} training windows of one channel each, batches of {BATCH}, AdamW at 1e-3; "
               f"{len(task.rows['test']):,} test origins x {len(task.values)} channels")
    errors: dict[str, list[float]] = {}
    networks: dict[str, Forecast] = {}
    for name in NETWORKS:
        arms = []
        for seed in range(1 if quick else SEEDS):
            networks[name] = method = fresh(name, train, seed)
            fit(method, train, steps=3 if quick else STEPS, batch_size=BATCH, seed=seed)
            arms.append(naive_arm(name, Direct(method, True, HORIZON), task, "pretrained"))
        errors[name] = [float(arm.squared.mean()) for arm in arms]
        tell(record, f"{name}, {size(networks[name]):,} parameters", arms)
    linear = ridge_arm("linear map", "control", [], task)
    tell(record, f"linear map, {(CONTEXT + 1) * HORIZON:,} parameters, penalty by validation", [linear])
    naive = naive_arm("seasonal", lambda x: seasonal_naive(x, HORIZON, 24), task)
    tell(record, "seasonal naive of 24 hours", [naive])
    judge(record, networks, errors, float(naive.squared.mean()), train, 3 if quick else 30)
    return record


def make_task(source: object, quick: bool) -> Task:
    """Every test origin of the standard split; the linear map is fitted on training windows two hours apart."""
    series = open_long(str(source), split=SPLIT)
    rows = {part: origins(series.parts[part], CONTEXT, HORIZON, most)
            for part, most in (("train", 100 if quick else 4000), ("val", 20 if quick else 300),
                               ("test", 20 if quick else 0))}
    return Task(series.standardised(), rows, CONTEXT, HORIZON)


def fresh(name: str, train: Dataset, seed: int) -> Forecast:
    """The untrained forecaster of a name and a seed."""
    backbone, options = NETWORKS[name]
    torch.manual_seed(seed)
    network = build_backbone(backbone, channels=1, size=(CONTEXT,), **options)
    method: Forecast = registry.build("objective", "forecast", network, train.spec, horizon=HORIZON)
    return method


def size(method: Forecast) -> int:
    """Parameters of network and head."""
    return sum(p.numel() for p in method.parameters())


def tell(record: Record, name: str, arms: list[ForecastArm]) -> None:
    """Errors, the mean and every seed."""
    said = [f"{what} {np.mean(v):.4f} ({', '.join(f'{x:.4f}' for x in v)})"
            for what, v in (("MSE", [a.squared.mean() for a in arms]), ("MAE", [a.absolute.mean() for a in arms]))]
    record.say(f"{name}: {', '.join(said)}")


def judge(record: Record, networks: dict[str, Forecast], errors: dict[str, list[float]], naive: float, train: Dataset,
          rounds: int) -> None:
    """Compare with the threshold."""
    mixer, transformer = (float(np.mean(errors[name])) for name in ("mixer", "transformer"))
    record.check(f"the mixer's MSE is at most 3% above the transformer's: {100 * (mixer / transformer - 1):+.1f}%",
                 mixer <= 1.03 * transformer)
    fewer = size(networks["transformer"]) / size(networks["mixer"])
    record.check(f"it has at least 10 times fewer parameters: {fewer:.1f} times", fewer >= 10)
    seconds = step_seconds(train, rounds)
    for name, (step, forward) in seconds.items():
        record.say(f"{name}: {1000 * step:.1f} ms of processor time a training step, {1000 * forward:.1f} ms a "
                   f"forecast of {BATCH} windows (medians of {rounds}, taken in turn)")
    faster = seconds["transformer"][0] / seconds["mixer"][0]
    record.check(f"its training step is at least 4 times faster: {faster:.1f} times", faster >= 4)
    gains = {name: 100 * (1 - error / naive) for name, error in (("mixer", mixer), ("transformer", transformer))}
    record.check("both beat the seasonal naive by at least 20%: "
                 + ", ".join(f"{name} {gain:.1f}%" for name, gain in gains.items()), min(gains.values()) >= 20)


def step_seconds(train: Dataset, rounds: int) -> dict[str, tuple[float, float]]:
    """Processor time of a training step and of a forecast, networks in turn: name -> medians in seconds."""
    batch = train.batch(np.arange(BATCH))
    past = torch.randn(BATCH, 1, CONTEXT, generator=torch.Generator().manual_seed(0))
    work = {}
    for name in NETWORKS:
        method = fresh(name, train, 0)
        settings, _ = resolve_settings({"steps": rounds + 3, "batch_size": BATCH}, method.recipe, len(train),
                                       kind="tokens")
        work[name] = Engine(method.train(), settings, Fabric(accelerator="cpu", devices=1))
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in NETWORKS}
    for index in range(rounds + 3):
        for name, engine in work.items():
            begun = time.process_time()
            engine.run(batch, Step(index, rounds + 3, 0))
            middle = time.process_time()
            engine.objective.eval()
            engine.objective.forecast(past, HORIZON)
            taken[name].append((middle - begun, time.process_time() - middle))
            engine.objective.train()
    return {name: (float(np.median([a for a, _ in times[3:]])), float(np.median([b for _, b in times[3:]])))
            for name, times in taken.items()}
