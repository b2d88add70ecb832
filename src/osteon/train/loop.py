"""The training loop: encode, score the global batch, back-propagate, step; exact under ranks and accumulation."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor, nn

from osteon.core.errors import Interrupted, UsageError
from osteon.core.run import RunFolder
from osteon.data import Dataset, Loader
from osteon.parts.checkpointing import Checkpointing, blocks_of, refuse_checkpointing
from osteon.parts.compiling import Compiled, refuse_compiling
from osteon.parts.highway_bp import HighwayBP, on_highway, refuse_other_networks
from osteon.parts.norm import BatchNorm
from osteon.parts.objective import Objective
from osteon.parts.stochastic_depth import batch_gates, gates
from osteon.parts.types import Draws, Loss, Step
from osteon.train.agreement import AgreementMonitor
from osteon.train.curriculum import make_curriculum
from osteon.train.guard import Guard
from osteon.train.monitors import CollapseMonitor, NumberMonitor, check_step
from osteon.train.optim import clip_gradients, make_optimizer
from osteon.train.ranks import all_are_ready, meet, telling_who_is_lost, working_alone
from osteon.train.saving import resume, save, telling_what_is_kept
from osteon.train.schedule import value_at
from osteon.train.settings import TrainSettings
from osteon.train.signals import Signals

#: called after every step with the step number and what is worth showing
Watcher = Callable[[int, Mapping[str, float]], None]


@dataclass
class TrainResult:
    """What a run came to: steps done, seconds spent in this process, and the last logged values."""

    steps: int
    seconds: float
    last: dict[str, float]


class Engine:
    """One optimiser step of an objective, on this device, over all ranks and micro-batches.

    Args:
        objective: what is trained.
        settings: resolved settings.
        fabric: device, precision and ranks.
    """

    def __init__(self, objective: Objective, settings: TrainSettings, fabric: Fabric) -> None:
        self.objective, self.settings, self.fabric = objective, settings, fabric
        self.world, self.rank = fabric.world_size, fabric.global_rank
        if settings.batch_size % (self.world * settings.accumulate):
            raise UsageError(f"batch_size={settings.batch_size} cannot be shared by {self.world} processes and "
                             f"{settings.accumulate} micro-batches.", where="--batch-size")
        refuse_inexact_accumulation(objective, settings)
        self.named = [(n, p) for n, p in objective.named_parameters() if p.requires_grad]
        self.params = [p for _, p in self.named]
        self.optimizer = make_optimizer(
            self.named, name=settings.optimizer, lr=settings.lr, weight_decay=settings.weight_decay,
            momentum=settings.momentum, betas=settings.betas,
            layer_decay=None if settings.layer_decay == 1.0 else settings.layer_decay)
        self.gated = bool(batch_gates(objective))
        self.course = make_curriculum(objective, settings)
        self.highway = HighwayBP(settings.highway, shift=settings.highway_shift) if settings.highway else None
        if self.highway is not None:
            refuse_other_networks(objective.backbone)
        if settings.checkpointing:
            refuse_checkpointing(objective, highway=self.highway is not None)
        if settings.compile:
            refuse_compiling(objective, fabric.device, highway=self.highway is not None)
        self.compiled = Compiled() if settings.compile else None
        self.base_lr = [g["lr"] for g in self.optimizer.param_groups]
        self.base_decay = [g["weight_decay"] for g in self.optimizer.param_groups]
        self.compared: Tensor | None = None  # embeddings (B, V, P) of the last step's global batch, where it has them

    def run(self, batch: dict[str, Tensor], step: Step) -> tuple[Loss, Tensor, float]:
        """Do one step; return the loss, the gathered pooled features and the gradient norm before clipping."""
        self.set_rates(step)
        if self.highway is not None:
            self.highway.measure, self.highway.errors = step.index % self.settings.log_every == 0, []
        self.optimizer.zero_grad(set_to_none=True)
        loss, features = self.gradients(batch, step)
        if self.highway is not None and self.highway.errors:
            loss.parts["highway_error"] = torch.tensor(self.highway.errors).mean()
        self.average_gradients()
        norm = float(clip_gradients(self.params, self.settings.clip or math.inf))
        if math.isfinite(norm):
            self.optimizer.step()
            self.objective.after_step(step)
        return loss, features, norm

    def set_rates(self, step: Step) -> None:
        """Learning rate and weight decay of this step."""
        s = self.settings
        factor = value_at(step.index, total=s.steps, schedule=s.schedule, start=1.0, end=s.end_lr,
                          warmup=round(s.warmup * s.steps))
        for group, lr, decay in zip(self.optimizer.param_groups, self.base_lr, self.base_decay, strict=True):
            group["lr"] = lr * factor
            if s.weight_decay_end >= 0 and decay > 0:
                group["weight_decay"] = value_at(step.index, total=s.steps, schedule="cosine", start=decay,
                                                 end=s.weight_decay_end)

    def gradients(self, batch: dict[str, Tensor], step: Step) -> tuple[Loss, Tensor]:
        """Leave in ``.grad`` this rank's share: the mean over ranks is the gradient of the global batch's loss."""
        parts = self.settings.accumulate
        local = next(iter(batch.values())).shape[0]
        size = local // parts
        slices = [slice(i * size, (i + 1) * size) for i in range(parts)]
        if parts > 1 and self.objective.additive:
            losses, features, compared = [], [], list[Tensor]()
            for i, rows in enumerate(slices):
                encoded = self.encode(batch, rows, step, i)
                loss = self.objective.score(encoded, step)
                (loss.total / parts).backward()
                losses.append(loss)
                features.append(encoded["features"])
                compared += [encoded[self.objective.compared].detach()] if self.objective.compared else []
            self.compared = self.gather(torch.cat(compared)) if compared else None
            return self.mean_loss(losses), self.gather(torch.cat(features))

        cached = parts > 1
        with torch.set_grad_enabled(not cached):
            encodings = [self.encode(batch, rows, step, i) for i, rows in enumerate(slices)]
        leaves = {}
        for key in encodings[0]:
            whole = torch.cat([e[key] for e in encodings]) if parts > 1 else encodings[0][key]
            leaf = self.gather(whole.detach())
            leaves[key] = leaf.requires_grad_() if leaf.is_floating_point() and key != "features" else leaf
        loss = self.objective.score(leaves, step)
        loss.total.backward()
        for i, rows in enumerate(slices):
            encoded = self.encode(batch, rows, step, i) if cached else encodings[i]
            start = self.rank * local + rows.start
            grads = {k: leaf.grad for k, leaf in leaves.items() if leaf.grad is not None}
            pairs = [(e, grads[k][start:start + size] * self.world) for k, e in encoded.items()
                     if e.requires_grad and k in grads]
            if pairs:
                torch.autograd.backward([e for e, _ in pairs], [g for _, g in pairs])
        self.compared = leaves[self.objective.compared].detach() if self.objective.compared else None
        return Loss(loss.total.detach(), loss.parts), leaves["features"]

    def encode(self, batch: dict[str, Tensor], rows: slice, step: Step, part: int) -> dict[str, Tensor]:
        """Encode some local rows; dropout is keyed by (seed, step, rank, micro-batch), so a second pass repeats it."""
        local = next(iter(batch.values())).shape[0]
        offset = self.rank * local
        draws = Draws(step, torch.arange(offset + rows.start, offset + rows.stop), local * self.world,
                      self.fabric.device, source=lambda key, at: self.rows_of(batch, key, at), course=self.course)
        seed_global(hash((self.settings.seed, step.index, self.rank, part)) & 0x7FFFFFFF, self.fabric.device)
        with self.fabric.autocast(), self.options(draws):
            encoded = self.objective.encode({k: v[rows] for k, v in batch.items()}, draws)
        return {k: v.float() if v.is_floating_point() else v for k, v in encoded.items()}

    @contextmanager
    def options(self, draws: Draws) -> Iterator[None]:
        """What differs about networks while they encode: gates of mini-batches, compiled blocks, backward passes."""
        with ExitStack() as stack:
            if self.gated:
                stack.enter_context(gates(self.objective, draws, self.objective.companions()))
            if self.highway is not None:
                stack.enter_context(on_highway(self.objective.backbone, self.highway))
            if self.compiled is not None:
                stack.enter_context(self.compiled.inside(blocks_of(self.objective)))
            if self.settings.checkpointing:
                stack.enter_context(Checkpointing().inside(blocks_of(self.objective, self.objective.companions())))
            yield

    def rows_of(self, batch: dict[str, Tensor], key: str, rows: Tensor) -> Tensor:
        """Entries of the global batch at global rows (every rank must ask at the same time)."""
        return self.gather(batch[key])[rows.to(batch[key].device)]

    def gather(self, x: Tensor) -> Tensor:
        """Concatenate over ranks, without gradient."""
        if self.world == 1:
            return x
        out = [torch.empty_like(x) for _ in range(self.world)]
        dist.all_gather(out, x.contiguous())
        return torch.cat(out)

    def mean_loss(self, losses: Sequence[Loss]) -> Loss:
        """Mean of micro-batches and ranks, for the log."""
        def mean(values: list[Tensor]) -> Tensor:
            value = torch.stack([v.detach().float() for v in values]).mean()
            return self.gather(value[None]).mean() if self.world > 1 else value

        return Loss(mean([x.total for x in losses]), {k: mean([x.parts[k] for x in losses]) for k in losses[0].parts})

    def average_gradients(self) -> None:
        """Mean over ranks, in one message; a parameter without a gradient on any rank stays without, as on one."""
        if self.world == 1:
            return
        there = torch.tensor([float(p.grad is not None) for p in self.params], device=self.fabric.device)
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.params]
        flat = torch.cat([*(g.reshape(-1) for g in grads), there])
        dist.all_reduce(flat)
        *means, there = (flat / self.world).split([*(g.numel() for g in grads), len(grads)])
        for p, g, any_rank in zip(self.params, means, there.tolist(), strict=True):
            p.grad = g.view_as(p) if any_rank else None


def seed_global(seed: int, device: torch.device) -> None:
    """Seed the global generators of the CPU and of this device.

    What ``torch.manual_seed`` does, which however formats a traceback for CUDA at every call where there is none.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def refuse_inexact_accumulation(objective: Objective, settings: TrainSettings) -> None:
    """BatchNorm in a training network sees the micro-batch: refuse unless the user allows it."""
    if settings.accumulate == 1 or settings.accumulate_inexact:
        return
    for name, module in objective.named_modules():
        if isinstance(module, BatchNorm | nn.modules.batchnorm._BatchNorm):
            raise UsageError(
                f"Accumulation cannot be exact here: {name} is a BatchNorm, whose statistics would be those of the "
                f"micro-batch of {settings.batch_size // settings.accumulate}.", where="--accumulate",
                fix="Use a backbone and head without BatchNorm, or accept it with --set accumulate_inexact=true.")


def train(objective: Objective, dataset: Dataset, run: RunFolder, settings: TrainSettings, *, fabric: Fabric,
          watch: Watcher | None = None, log: Watcher | None = None, say: Callable[[str], None] = print,
          until: int | None = None, guard: Guard | None = None) -> TrainResult:
    """Train an objective on a data set; resume from the run folder's newest complete checkpoint.

    Args:
        objective: what is trained; left on the fabric's device.
        dataset: the samples.
        run: an open, locked run folder.
        settings: resolved settings.
        fabric: device, precision and ranks.
        watch: called after every step (progress bar).
        log: called every ``log_every`` steps with the line of metrics, on rank 0 (loggers).
        say: prints a message to the user.
        until: pause after this many of the run's steps, leaving a checkpoint from which a later call goes on; schedules
            are those of the whole run, so that pausing changes nothing.
        guard: of continued pre-training; it looks before the first step and keeps the best checkpoint.

    Returns:
        What the run came to.

    Raises:
        MonitorStop: NaN, infinity or collapse; the last good checkpoint is kept.
        GuardStop: the features got worse than at step 0; the best checkpoint and the last are kept.
        Interrupted: a signal; a checkpoint was saved.
        RankLost: another rank ended or hangs.
        UsageError: the run is beyond ``until`` already.
    """
    with telling_who_is_lost(run, fabric.world_size):
        if fabric.world_size > 1:
            all_are_ready()
        return _train(objective, dataset, run, settings, fabric, watch, log, say, until, guard)


def _train(objective: Objective, dataset: Dataset, run: RunFolder, settings: TrainSettings, fabric: Fabric,
           watch: Watcher | None, log: Watcher | None, say: Callable[[str], None], until: int | None,
           guard: Guard | None) -> TrainResult:
    objective.to(fabric.device)
    set_layout(objective, settings, fabric.device, say)
    objective.train()
    engine = Engine(objective, settings, fabric)
    # Where collapse must not stop the run, it is still measured for the log.
    collapse = CollapseMonitor() if settings.collapse_stop else CollapseMonitor(patience=settings.steps + 1)
    agreement = AgreementMonitor() if settings.collapse_stop else AgreementMonitor(effect=-math.inf)
    numbers = NumberMonitor()
    lead = fabric.global_rank == 0
    watched: dict[str, Any] = {"collapse": collapse, "agreement": agreement, **({"guard": guard} if guard else {})}
    start, measured = resume(objective, engine, watched, run, settings, say if lead else _mute)
    if start == 0:
        objective.prepare(dataset.batch, len(dataset), settings.seed)
    if guard is not None and start == 0:
        if lead and guard.first is None:
            first = guard.look(objective, 0)
            if log:
                log(0, first)
        save(objective, engine, watched, run, settings, 0, measured, best=guard.is_best(0))
    if guard is not None and _any_rank(bool(guard.fallen), fabric):
        raise guard.stop(start, str(run.path))
    end = settings.steps if until is None else min(until, settings.steps)
    if start > end:
        raise UsageError(f"The run is at step {start} already, beyond {end}.", where="until")
    loader = Loader(dataset, settings.batch_size, settings.seed, rank=fabric.global_rank, world=fabric.world_size,
                    repeats=settings.repeats)
    last = dict(measured)
    begun = mark = time.perf_counter()
    seen = 0
    ahead = cast("Generator[dict[str, Tensor], None, None]", loader.iterate(start, end))
    with Signals(run).watching() as signals, closing(ahead) as batches:
        for index in range(start, end):
            batch = {k: v.to(fabric.device, non_blocking=True) for k, v in next(batches).items()}
            step = Step(index, settings.steps, settings.seed)
            loss, features, norm = engine.run(batch, step)
            seen += settings.batch_size
            with telling_what_is_kept(run):
                check_step(numbers, loss, norm, engine.named, batch, index, run, dataset.ids, engine.rank)
            done = index + 1
            shown = {"loss": float(loss.total)}
            looked = guard is not None and guard.due(done)
            seen_by_guard: dict[str, float] = {}
            if guard is not None and looked:
                with working_alone(engine.world):
                    seen_by_guard = guard.look(objective, done) if lead else {}
            if index % settings.monitor_every == 0 or done == settings.steps:
                with telling_what_is_kept(run):
                    measured = collapse.check(features, index)
                    measured |= {} if engine.compared is None else agreement.check(engine.compared, index)
                    last.update(measured)
            if lead and (index % settings.log_every == 0 or done == settings.steps or looked):
                now = time.perf_counter()
                shown |= {f"loss/{k}": float(v) for k, v in loss.parts.items()}
                shown |= {"grad_norm": norm, "lr": engine.optimizer.param_groups[0]["lr"],
                          "images_per_s": seen / max(1e-9, now - mark)}
                mark, seen = now, 0
                last.update(shown)
                if log:
                    log(done, last | seen_by_guard)
            if watch and lead:
                watch(done, last | shown)
            stop = _any_rank(signals.caught, fabric)
            fallen = guard is not None and _any_rank(bool(guard.fallen), fabric)
            if done == end or done % settings.checkpoint_every == 0 or stop or looked:
                signals.saving()
                save(objective, engine, watched, run, settings, done, measured,
                     best=guard is not None and guard.is_best(done))
            if guard is not None and fallen:
                raise guard.stop(done, str(run.path))
            if stop and done < settings.steps:
                raise Interrupted(stop, where=str(run.path))
    return TrainResult(end - start, time.perf_counter() - begun, last)


def set_layout(objective: Objective, settings: TrainSettings, device: torch.device,
               say: Callable[[str], None] = print) -> None:
    """Lay convolutions out as the settings ask, unless torch's kernels would write out of bounds."""
    if settings.channels_last and device.type == "cpu" and _corrupts_memory(objective):
        say("channels_last is off: torch's CPU kernels fail on strided 1 x 1 convolutions of under 8 channels")
    elif settings.channels_last:
        for module in objective.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _corrupts_memory(objective: Objective) -> bool:
    """Whether torch's backward pass would write out of bounds: seen in 2.15 with channels_last on a CPU."""
    return any(isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and max(m.stride) > 1 and m.in_channels < 8
               for m in objective.modules())


def _mute(_text: str) -> None:
    """Say nothing."""


def _any_rank(caught: int, fabric: Fabric) -> int:
    """The signal any rank caught, so that all stop at the same step."""
    if fabric.world_size == 1:
        return caught
    flag = torch.tensor([caught], device=fabric.device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return int(flag)


def make_fabric(precision: str) -> Fabric:
    """Fabric for this process; under ``torchrun`` one process a rank, gloo on the CPU and NCCL on GPUs.

    Ranks are torchrun's alone: the tasks of a SLURM allocation around this process, which Fabric would take for
    ranks, are none.

    Args:
        precision: ``"32"`` or ``"bf16"`` (autocast).
    """
    from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment

    world = int(os.environ.get("WORLD_SIZE", "1"))
    fabric = Fabric(accelerator="auto", devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world > 1 else 1,
                    num_nodes=max(1, world // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))),
                    strategy="ddp" if world > 1 else "auto",
                    plugins=[TorchElasticEnvironment() if world > 1 else LightningEnvironment()],
                    precision="bf16-mixed" if precision == "bf16" else "32-true")
    meet()
    fabric.launch()
    return fabric


def to_state(module: nn.Module) -> dict[str, Any]:
    """State of a module as contiguous CPU tensors, ready for safetensors."""
    return {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
