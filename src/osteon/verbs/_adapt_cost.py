"""What a training step costs: numbers that train, bytes kept for the backward pass and by the optimiser, seconds."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from osteon.parts.objective import Objective
from osteon.parts.types import Step
from osteon.report.numbers import size
from osteon.train.loop import Engine
from osteon.train.settings import TrainSettings

#: steps timed after one that warms up; the median counts
TIMED = 3


@dataclass(frozen=True)
class StepCost:
    """What one step costs.

    Args:
        trainable: numbers that train.
        saved_bytes: distinct memory the forward pass keeps for the backward one, weights excluded.
        optimizer_bytes: state of the optimiser.
        step_seconds: median wall-clock time of an optimiser step, views included.
    """

    trainable: int
    saved_bytes: int
    optimizer_bytes: int
    step_seconds: float

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def measure(objective: Objective, batch: dict[str, Tensor], settings: TrainSettings, fabric: Fabric) -> StepCost:
    """Cost of training an objective on a batch; its weights are changed, so give it a copy."""
    objective.to(fabric.device).train()
    engine = Engine(objective, settings, fabric)
    batch = {key: value.to(fabric.device) for key, value in batch.items()}
    step = Step(0, settings.steps, settings.seed)
    with fabric.autocast():
        saved = saved_bytes(objective, batch, step)
    seconds = []
    for _ in range(1 + TIMED):
        begun = time.perf_counter()
        engine.run(batch, step)
        if fabric.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    state = sum(v.numel() * v.element_size() for values in engine.optimizer.state.values() for v in values.values()
                if isinstance(v, Tensor))
    return StepCost(sum(p.numel() for p in engine.params), saved, state, statistics.median(seconds[1:]))


def saved_bytes(objective: Objective, batch: dict[str, Tensor], step: Step) -> int:
    """Bytes of distinct storages that the forward pass keeps for the backward one, without those of the module."""
    with SavedBytes(objective) as kept:
        loss = objective(batch, step).total
        total = kept.total  # before the backward pass, which may compute activations again
        loss.backward()
    objective.zero_grad(set_to_none=True)
    return total


class SavedBytes:
    """Counts, inside a ``with`` block, what autograd keeps; ``total`` in bytes.

    Args:
        module: its parameters and buffers are there anyway and are not counted.
    """

    def __init__(self, module: nn.Module) -> None:
        owned = [*module.parameters(), *module.buffers()]
        self._owned = {t.untyped_storage().data_ptr() for t in owned}
        self._seen: dict[int, torch.UntypedStorage] = {}  # held, so that an address stands for one storage throughout
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._owned:
            self._seen[storage.data_ptr()] = storage
        return tensor

    @property
    def total(self) -> int:
        """Bytes seen so far."""
        return sum(storage.nbytes() for storage in self._seen.values())

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)


def table(costs: dict[str, StepCost], beside: str) -> str:
    """The costs of several adapters as text, each as a share of ``beside``'s."""
    reference = costs[beside]
    wide = max(len(name) for name in costs)
    lines = [f"{'':{wide}}  {'trainable':>22}  {'kept for backward':>22}  {'optimiser':>22}  {'a step':>22}"]
    for name, cost in costs.items():
        cells = [(f"{cost.trainable:,}", cost.trainable, reference.trainable),
                 (size(cost.saved_bytes), cost.saved_bytes, reference.saved_bytes),
                 (size(cost.optimizer_bytes), cost.optimizer_bytes, reference.optimizer_bytes),
                 (f"{1000 * cost.step_seconds:.1f} ms", cost.step_seconds, reference.step_seconds)]
        texts = [text + (f" ({100 * a / b:.3g} %)" if b and name != beside else "") for text, a, b in cells]
        lines.append(f"{name:{wide}}  " + "  ".join(f"{text:>22}" for text in texts))
    return "\n".join(lines)
