from __future__ import annotations

import functools
import math
import os
import signal
import threading
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from osteon.backbones import build_backbone
from osteon.core import registry
from osteon.core.errors import Interrupted, MonitorStop, UsageError
from osteon.core.run import RunFolder, read_tensors
from osteon.data import Dataset, open_source
from osteon.parts.norm import BatchNorm
from osteon.parts.objective import Objective
from osteon.parts.types import Batch, Draws, Loss, Step
from osteon.train.loop import Engine, make_fabric, train
from osteon.train.settings import TrainSettings, resolve_settings


class Toy(Objective):
    """w x over a batch of numbers x; scored by (mean of w x)^2, which is no mean over samples."""

    def __init__(self, *, dropout: float = 0.0) -> None:
        nn.Module.__init__(self)
        self.w = nn.Parameter(torch.tensor(2.0))
        self.drop = nn.Dropout(dropout)
        self.register_buffer("calls", torch.zeros(()))
        self.seen: list[int] = []

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        x = batch["image"]
        return {"features": torch.stack([x, -x, x**2], 1).detach(), "y": self.drop(self.w * x)}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        total = encoded["y"].mean() ** 2
        return Loss(total, {"square": total.detach()})

    def after_step(self, step: Step) -> None:
        self.calls += 1
        self.seen.append(step.index)


class Mean(Toy):
    """Scored by the mean of (w x)^2."""

    additive: ClassVar[bool] = True

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        return Loss((encoded["y"] ** 2).mean(), {"square": (encoded["y"] ** 2).mean().detach()})


def plain_sgd(**changes: Any) -> TrainSettings:
    base = TrainSettings(steps=8, batch_size=4, optimizer="sgd", lr=0.1, momentum=0.0, weight_decay=0.0, warmup=0.0,
                         schedule="constant")
    return replace(base, **changes)


X = torch.tensor([1.0, 2.0, 3.0, 6.0])  # mean 3, mean square 12.5


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_one_step_of_a_score_across_samples_is_the_one_by_hand(accumulate):
    toy = Toy()
    engine = Engine(toy, plain_sgd(accumulate=accumulate), make_fabric("32"))
    loss, features, norm = engine.run({"image": X}, Step(0, 8))
    # loss (2 * 3)^2 = 36; gradient 2 * w * mean^2 = 36; w = 2 - 0.1 * 36
    assert float(loss.total) == pytest.approx(36) and norm == pytest.approx(36)
    assert toy.w.item() == pytest.approx(-1.6)
    assert features.shape == (4, 3) and features[:, 0].tolist() == X.tolist() and int(toy.calls) == 1


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_one_step_of_a_mean_is_the_one_by_hand(accumulate):
    mean = Mean()
    engine = Engine(mean, plain_sgd(accumulate=accumulate), make_fabric("32"))
    loss, features, norm = engine.run({"image": X}, Step(0, 8))
    # loss 4 * 12.5 = 50; gradient 2 * w * 12.5 = 50; w = 2 - 5
    assert float(loss.total) == pytest.approx(50) and norm == pytest.approx(50) and mean.w.item() == pytest.approx(-3)
    assert float(loss.parts["square"]) == pytest.approx(50) and features[:, 0].tolist() == X.tolist()


def test_the_second_pass_of_accumulation_repeats_dropout():
    """Cached gradients belong to the masks of the first pass: w x dropped as then, in both passes."""
    toy = Toy(dropout=0.5).train()
    engine = Engine(toy, plain_sgd(accumulate=2), make_fabric("32"))
    passes: list[Tensor] = []
    toy.drop.register_forward_hook(lambda _m, _x, y: passes.append(y.detach().clone()))
    engine.gradients({"image": X}, Step(3, 8))
    assert len(passes) == 4 and torch.equal(passes[0], passes[2]) and torch.equal(passes[1], passes[3])
    kept = torch.cat(passes[:2]) / 2  # x where kept, doubled: d/dw of (mean of w k)^2 = 2 w (mean of k)^2
    assert toy.w.grad is not None and float(toy.w.grad) == pytest.approx(4 * float(kept.mean()) ** 2)
    for index in (4, 5, 6):  # two draws of four values are the same once in sixteen times
        engine.gradients({"image": X}, Step(index, 8))
    assert any(not torch.equal(torch.cat(passes[n:n + 2]), torch.cat(passes[:2])) for n in (4, 8, 12))


def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_told():
    toy = Toy()
    _, _, norm = Engine(toy, plain_sgd(clip=2.0), make_fabric("32")).run({"image": X}, Step(0, 8))
    assert norm == pytest.approx(36) and toy.w.item() == pytest.approx(2 - 0.1 * 2)


def test_rates_follow_the_schedule():
    toy = Toy()
    engine = Engine(toy, plain_sgd(schedule="cosine", warmup=0.25, end_lr=0.5), make_fabric("32"))
    seen = []
    for i in range(8):
        engine.set_rates(Step(i, 8))
        seen.append(engine.optimizer.param_groups[0]["lr"])
    assert max(seen) <= 0.1 and seen[0] < seen[1] <= 0.1 and seen[2:] == sorted(seen[2:], reverse=True)
    assert seen[-1] >= 0.05 and seen[-1] < 0.06  # ends near the given share of the peak


def test_weight_decay_moves_to_its_end_only_where_there_is_decay():
    layer = build_backbone("vit_tiny", channels=1, size=8)
    method = registry.build("objective", "mae", layer, digits().spec)
    engine = Engine(method, plain_sgd(weight_decay=0.1, weight_decay_end=0.3), make_fabric("32"))
    engine.set_rates(Step(4, 8))
    decays = {g["weight_decay"] for g in engine.optimizer.param_groups}
    assert sorted(decays) == pytest.approx([0.0, 0.2])  # the cosine's middle


def test_not_a_number_changes_no_weight():
    toy = Toy()
    engine = Engine(toy, plain_sgd(), make_fabric("32"))
    engine.run({"image": torch.tensor([1.0, math.nan, 1.0, 1.0])}, Step(0, 8))
    assert toy.w.item() == 2.0 and int(toy.calls) == 0


def test_batchnorm_and_accumulation_are_refused_unless_allowed():
    method = make("simclr", "resnet_tiny")
    with pytest.raises(UsageError, match=r"BatchNorm.*micro-batch of 8"):
        Engine(method, plain_sgd(batch_size=16, accumulate=2), make_fabric("32"))
    Engine(method, plain_sgd(batch_size=16, accumulate=2, accumulate_inexact=True), make_fabric("32"))
    assert any(isinstance(m, BatchNorm) for m in method.modules())


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(UsageError, match="3 micro-batches"):
        Engine(Toy(), plain_sgd(accumulate=3), make_fabric("32"))


# -- whole runs ------------------------------------------------------------------------------------------------------


@functools.cache
def digits() -> Dataset:
    return open_source("digits").subset(np.arange(96))


def make(name: str, backbone: str, **options: Any) -> Objective:
    torch.manual_seed(0)
    network = build_backbone(backbone, channels=1, size=8)
    method: Objective = registry.build("objective", name, network, digits().spec, **options)
    return method


def settings_of(method: Objective, **wishes: Any) -> TrainSettings:
    asked = {"steps": 9, "batch_size": 16, "precision": "32", "checkpoint_every": 3, "log_every": 2, **wishes}
    return resolve_settings(asked, method.recipe, len(digits()), kind=method.backbone.kind)[0]


class Stop(Exception):
    pass


def stop_at(step: int):
    def watch(done: int, _values: object) -> None:
        if done == step:
            raise Stop

    return watch


@pytest.mark.parametrize(("name", "backbone", "wishes"), [
    ("simclr", "resnet_tiny", {"optimizer": "lamb"}),
    ("byol", "resnet_tiny", {"optimizer": "lars", "precision": "bf16"}),
    ("mae", "vit_tiny", {"optimizer": "adamw", "accumulate": 2}),
    ("simsiam", "resnet_tiny", {"optimizer": "sgd", "momentum": 0.9, "clip": 0.5}),
    ("vicreg", "vit_tiny", {"optimizer": "adam"}),
])
def test_a_resumed_run_ends_with_the_same_bits_and_the_same_log(tmp_path, name, backbone, wishes):
    def go(folder: str, watch=None) -> Objective:
        method = make(name, backbone)
        settings = settings_of(method, **wishes)
        run = RunFolder(tmp_path / folder)
        with run.lock():
            train(method, digits(), run, settings, fabric=make_fabric(settings.precision), watch=watch, say=said.append,
                  log=lambda step, values: run.append_metrics({"step": step, "loss": values["loss"]}))
        return method

    said: list[str] = []
    whole = go("whole")
    assert not said
    with pytest.raises(Stop):
        go("cut", stop_at(5))  # the last checkpoint is that of step 3; lines of steps 4 and 5 are written again
    torch.rand(17)  # the state of the global generator is nobody's business
    resumed = go("cut")
    assert said == ["Resuming from step 3 of 9."]
    ours, theirs = resumed.state_dict(), whole.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    logs = [RunFolder(tmp_path / f).metrics() for f in ("whole", "cut")]
    assert logs[0] == logs[1] and [r["step"] for r in logs[0]] == [1, 3, 5, 7, 9]


def test_a_finished_run_does_nothing_more(tmp_path):
    method = make("simclr", "resnet_tiny")
    settings = settings_of(method, steps=2)
    run = RunFolder(tmp_path)
    train(method, digits(), run, settings, fabric=make_fabric("32"))
    before = {k: v.clone() for k, v in method.state_dict().items()}
    again = train(method, digits(), run, settings, fabric=make_fabric("32"), say=lambda _t: None)
    assert again.steps == 0 and all(torch.equal(v, before[k]) for k, v in method.state_dict().items())


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(tmp_path):
    method = make("simclr", "resnet_tiny")
    settings = settings_of(method)
    run = RunFolder(tmp_path)
    train(method, digits(), run, settings, fabric=make_fabric("32"))
    newest = sorted((tmp_path / "checkpoints").glob("step_*"))[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    said: list[str] = []
    assert train(make("simclr", "resnet_tiny"), digits(), RunFolder(tmp_path), settings, fabric=make_fabric("32"),
                 say=said.append).steps == 3
    assert "passed over" in said[0] and said[1] == "Resuming from step 6 of 9."


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_ends_and_gives_back_the_handlers(tmp_path, number):
    before = signal.getsignal(number)
    method = make("simclr", "resnet_tiny")

    def watch(done: int, _values: object) -> None:
        if done == 2:
            os.kill(os.getpid(), number)

    run = RunFolder(tmp_path)
    with pytest.raises(Interrupted) as stopped:
        train(method, digits(), run, settings_of(method, checkpoint_every=100), fabric=make_fabric("32"), watch=watch)
    assert stopped.value.code == 128 + number
    found = run.latest_checkpoint()
    assert found is not None and found[0] == 2
    assert signal.getsignal(number) is before
    assert not any(t.name == "osteon-loader" for t in threading.enumerate())


def test_a_signal_in_the_last_step_is_no_interruption(tmp_path):
    method = make("simclr", "resnet_tiny")

    def watch(done: int, _values: object) -> None:
        if done == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(method, digits(), RunFolder(tmp_path), settings_of(method), fabric=make_fabric("32"),
                 watch=watch).steps == 9


def test_a_run_works_outside_the_main_thread(tmp_path):
    method = make("simclr", "resnet_tiny")
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(
        train(method, digits(), RunFolder(tmp_path), settings_of(method, steps=1), fabric=make_fabric("32")).steps))
    thread.start()
    thread.join()
    assert done == [1]


def test_not_a_number_in_the_input_names_the_loss_term_and_saves_the_batch(tmp_path):
    pixels = np.array(digits().images, dtype=np.float32) / 255
    spec = replace(digits().spec, scale=1.0)
    pixels[7] = math.nan
    broken = replace(digits(), images=pixels, spec=spec)
    torch.manual_seed(0)
    method = registry.build("objective", "vicreg", build_backbone("vit_tiny", channels=1, size=8), spec)
    run = RunFolder(tmp_path)
    with pytest.raises(MonitorStop, match=r"loss term 'invariance' is NaN") as stopped:
        train(method, broken, run, settings_of(method), fabric=make_fabric("32"))
    assert stopped.value.code == 4
    batch, _ = read_tensors(tmp_path / "failed_batch_rank0.safetensors")
    assert 7 in batch["index"].tolist() and bool(torch.isnan(batch["image"]).any()) and batch["image"].shape[0] == 16
    assert all(str(int(i)) in stopped.value.where for i in batch["index"][:8])
    assert all(bool(torch.isfinite(v).all()) for v in method.parameters())
    found = run.latest_checkpoint()  # six steps an epoch: the sample comes within them, maybe after a checkpoint
    assert found is None or all(bool(torch.isfinite(v).all()) for v in found[1].values() if v.is_floating_point())


class Collapsing(Toy):
    """Its features are spread until a step, then all alike."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        x = batch["image"].float().mean((1, 2, 3)) / 255
        spread = draws.randn(8) if draws.step.index < self.at else torch.ones(len(x), 8)
        return {"features": spread, "y": self.w * x}


@pytest.mark.parametrize(("at", "stops"), [(0, 160), (30, 80)])  # never healthy: after 150 steps; else 3 checks
def test_planted_collapse_stops_within_two_hundred_steps_or_is_only_measured(tmp_path, at, stops):
    wishes = plain_sgd(steps=200, batch_size=16, lr=1e-3, monitor_every=20)
    with pytest.raises(MonitorStop, match="collapsed") as stopped:
        train(Collapsing(at), digits(), RunFolder(tmp_path / "a"), wishes, fabric=make_fabric("32"))
    assert stopped.value.code == 4 and stopped.value.where == f"step {stops}"
    assert "No checkpoint had been written yet." in str(stopped.value)
    rows: list[dict[str, float]] = []
    done = train(Collapsing(at), digits(), RunFolder(tmp_path / "b"), replace(wishes, collapse_stop=False),
                 fabric=make_fabric("32"), log=lambda _step, values: rows.append(dict(values)))
    assert done.steps == 200 and rows[-1]["feature_std"] == pytest.approx(0, abs=1e-6)
    assert rows[-1]["rank"] == pytest.approx(1)


def test_a_resumed_run_remembers_how_long_features_were_collapsed(tmp_path):
    wishes = plain_sgd(steps=200, batch_size=16, lr=1e-3, monitor_every=20, checkpoint_every=10)
    for watch, error in ((stop_at(65), Stop), (None, MonitorStop)):
        with pytest.raises(error) as stopped:
            train(Collapsing(30), digits(), RunFolder(tmp_path), wishes, fabric=make_fabric("32"), watch=watch,
                  say=lambda _t: None)
    assert stopped.value.where == "step 80" and "The checkpoint of step 80 is kept." in str(stopped.value)


def test_layouts_that_corrupt_memory_are_not_used(tmp_path):
    told: list[str] = []
    for widths in ([4, 8], [8, 8]):
        network = build_backbone("resnet_tiny", channels=1, size=8, depths=[1, 1], widths=widths)
        method = registry.build("objective", "simclr", network, digits().spec)
        train(method, digits(), RunFolder(tmp_path / str(widths)), settings_of(method, steps=1, channels_last=True),
              fabric=make_fabric("32"), say=told.append)
    assert len(told) == 1 and "under 8 channels" in told[0]


def test_the_log_has_what_the_report_draws(tmp_path):
    rows: dict[int, dict[str, float]] = {}
    method = make("vicreg", "vit_tiny")
    train(method, digits(), RunFolder(tmp_path), settings_of(method, steps=6, log_every=4), fabric=make_fabric("32"),
          log=lambda step, values: rows.update({step: dict(values)}))
    assert sorted(rows) == [1, 5, 6]
    for row in rows.values():
        assert {"loss", "loss/invariance", "grad_norm", "lr", "images_per_s", "rank", "feature_std"} <= set(row)
        assert all(math.isfinite(v) for v in row.values())


def test_the_global_generator_is_seeded_as_torch_does_it():
    from osteon.train.loop import seed_global

    torch.manual_seed(11)
    want = torch.rand(4)
    seed_global(11, torch.device("cpu"))
    assert torch.equal(torch.rand(4), want)


def test_the_tasks_of_a_slurm_allocation_are_no_ranks(monkeypatch):
    for key, value in {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "7", "SLURM_PROCID": "1",
                       "SLURM_LOCALID": "1"}.items():
        monkeypatch.setenv(key, value)
    fabric = make_fabric("32")
    assert (fabric.world_size, fabric.global_rank) == (1, 0)
