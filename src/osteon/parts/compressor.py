"""What every compressor is: a backbone and a budget in, a smaller backbone out."""

from __future__ import annotations

import copy
import math
import re
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from osteon.core.errors import UsageError, nearest
from osteon.parts.calibration import Calibration
from osteon.parts.flops import count_forward
from osteon.parts.objective import Objective
from osteon.parts.surgery import tensors_of

if TYPE_CHECKING:
    from osteon.backbones import Backbone

#: trains an objective in place; the mapping holds defaults of optimiser and schedule
Fit = Callable[[Objective, Mapping[str, Any]], None]

UNITS = ("params", "flops", "latency", "bytes")
_SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10,
           "mib": 2**20, "gib": 2**30, "us": 1e-3, "ms": 1.0, "s": 1e3, "flop": 1.0, "kflop": 1e3, "mflop": 1e6,
           "gflop": 1e9}
#: forward passes timed for one latency; the median counts
TIMED = 7


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Args:
        params: numbers it learned (codes of quantised weights count, their scales do not).
        flops: operations of one sample's forward pass, a multiply-add as two.
        bytes: size of its safetensors file.
        latency: median milliseconds of a forward pass at batch 1; nan when it was not measured.
    """

    params: int
    flops: int
    bytes: int
    latency: float = math.nan


@dataclass(frozen=True)
class Budget:
    """What a compressed network may cost at most.

    Args:
        unit: params, flops, latency (milliseconds at batch 1) or bytes.
        value: a share of the original's cost up to 1 where ``share``, else the cost itself.
        share: how ``value`` is meant.
    """

    unit: str
    value: float
    share: bool = True

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise UsageError(f"There is no budget of '{self.unit}'.{nearest(self.unit, UNITS)}", where="--budget",
                             fix=f"Units: {', '.join(UNITS)}.")
        if not (0 < self.value < math.inf) or (self.share and self.value > 1):
            raise UsageError(f"A budget is a share above 0 and at most 1, or a cost above 0, not {self.value:g}.",
                             where="--budget", fix="E.g. params=0.3 or bytes=2MB.")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``params=0.3``, ``flops=50%``, ``latency=5ms``, ``bytes=2MB``; a bare number up to 1 is a share."""
        unit, equals, value = text.strip().partition("=")
        match = re.fullmatch(r"([0-9.]+(?:e[+-]?\d+)?)\s*(%|[a-zA-Z]*)", value.strip(), re.IGNORECASE)
        number = None
        if match:
            try:
                number = float(match[1])
            except ValueError:
                number = None
        suffix = match[2].lower() if match else ""
        if not equals or number is None or suffix not in ("%", *_SCALES):
            raise UsageError(f"'{text}' is no budget.", where="--budget",
                             fix="Write a unit and a share or a cost: params=0.3, flops=50%, latency=5ms, bytes=2MB.")
        if suffix == "%":
            return cls(unit.strip(), number / 100)
        share = suffix == "" and number <= 1
        return cls(unit.strip(), number if share else number * _SCALES[suffix], share)

    def limit(self, original: Cost) -> float:
        """The most the result may cost, in the unit."""
        return self.value * float(getattr(original, self.unit)) if self.share else self.value

    def met(self, cost: Cost, original: Cost) -> bool:
        """Whether a cost keeps to the budget."""
        return float(getattr(cost, self.unit)) <= self.limit(original) * (1 + 1e-9)

    def __str__(self) -> str:
        return f"{self.unit}={self.value:g}" if self.share else f"{self.unit}={amount(self.unit, self.value)}"


def amount(unit: str, value: float) -> str:
    """A cost as text with its unit."""
    if unit == "latency":
        return f"{value:.3g} ms"
    for name, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {name}{'B' if unit == 'bytes' else ''}".strip()
    return f"{value:.0f}{' B' if unit == 'bytes' else ''}"


def measure(network: Backbone, *, latency: bool = False) -> Cost:
    """What a backbone costs, on a sample of the size it is meant for, in which nothing is missing.

    Args:
        network: runs in evaluation mode; what it was in is put back.
        latency: also time it.
    """
    training = network.training
    network.eval()
    flops = count_forward(network, network.example(1).to(_device(network)))
    time_taken = milliseconds(network, 1) if latency else math.nan
    network.train(training)
    return Cost(params_of(network), flops, file_bytes(network), time_taken)


def spent(network: Backbone, unit: str) -> float:
    """What a network in evaluation mode costs in one unit."""
    if unit == "params":
        return float(params_of(network))
    if unit == "bytes":
        return float(file_bytes(network))
    if unit == "latency":
        return milliseconds(network, 1)
    return float(count_forward(network, network.example(1).to(_device(network))))


def params_of(network: nn.Module) -> int:
    """Numbers a network learned: parameters, and weights that are kept as codes."""
    coded = 0
    for module in network.modules():
        codes = getattr(module, "codes", None)
        if isinstance(codes, torch.Tensor):
            bias = getattr(module, "bias", None)
            coded += codes.numel() * 8 // int(getattr(module, "bits", 8)) + (0 if bias is None else bias.numel())
    return coded + sum(p.numel() for p in network.parameters())


def file_bytes(network: nn.Module) -> int:
    """Size of a safetensors file with everything the network stores."""
    from safetensors.torch import save

    return len(save({k: v.clone() for k, v in tensors_of(network).items()}))


@torch.inference_mode()
def milliseconds(network: Backbone, batch: int, *, times: int = TIMED) -> float:
    """Median wall-clock milliseconds of a forward pass of a batch, after one that warms up."""
    device = _device(network)
    x = network.example(batch).to(device)
    seconds = []
    for _ in range(1 + times):
        begun = time.perf_counter()
        network(x)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return 1000 * statistics.median(seconds[1:])


def _device(network: nn.Module) -> torch.device:
    return next(iter([*network.parameters(), *network.buffers()])).device


class Compressor(ABC):
    """Makes a backbone smaller or faster, within a budget.

    Attributes:
        units: budgets the method can work to.
        recipe: defaults of optimiser and schedule where the method trains, else empty.
        notes: every automatic choice with its rule.
    """

    units: ClassVar[tuple[str, ...]] = UNITS
    recipe: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self.notes: list[str] = []

    def __call__(self, backbone: Backbone, budget: Budget, calibration: Calibration, fit: Fit | None = None, *,
                 seed: int = 0) -> Backbone:
        """A backbone within the budget, in evaluation mode; the given one is left alone.

        A budget that the backbone keeps to already gives back a copy.

        Args:
            backbone: trained network.
            budget: what the result may cost.
            calibration: samples the method may look at.
            fit: trains an objective; methods that train need one.
            seed: key of everything random.

        Raises:
            UsageError: a budget that the method cannot meet, naming what it can.
        """
        if budget.unit not in self.units:
            raise UsageError(f"{self.name} does not change {budget.unit} by a rule.", where="--budget",
                             fix=f"It works to {' or '.join(self.units)}.")
        timed = budget.unit == "latency"
        network = copy.deepcopy(backbone).eval()
        original = measure(network, latency=timed)
        if budget.met(original, original):
            self.notes.append("the network keeps to the budget as it is: nothing was changed")
            return network
        torch.manual_seed(seed)
        result = self.compress(network, budget, calibration, fit, seed).eval()
        cost = measure(result, latency=timed)
        if not timed and not budget.met(cost, original):  # a latency was measured during the search; it varies
            raise unmet(self.name, budget, original, cost)
        return result

    @property
    def name(self) -> str:
        """The name on its card."""
        return type(self).__module__.rpartition(".")[2]

    @abstractmethod
    def compress(self, backbone: Backbone, budget: Budget, calibration: Calibration, fit: Fit | None,
                 seed: int) -> Backbone:
        """The method itself. ``backbone`` is a copy it may change; the budget is not yet met."""

    def trainer(self, fit: Fit | None) -> Fit:
        """What trains.

        Raises:
            UsageError: nothing was given.
        """
        if fit is None:
            raise UsageError(f"{self.name} trains, but nothing that trains was given.", where="fit",
                             fix="Use osteon.compress, or pass a function that trains an objective.")
        return fit


def unmet(name: str, budget: Budget, original: Cost, best: Cost) -> UsageError:
    """The error for a budget that cannot be met, saying what can."""
    least, whole = float(getattr(best, budget.unit)), float(getattr(original, budget.unit))
    return UsageError(f"{name} cannot meet {budget}: this network goes down to {amount(budget.unit, least)} "
                      f"({100 * least / whole:.3g} % of {amount(budget.unit, whole)}).", where="--budget",
                      fix=f"Ask for {budget.unit}={math.ceil(1000 * least / whole) / 1000:.3g} or more, or combine "
                          "methods: compress the result again.")


def search(name: str, backbone: Backbone, budget: Budget, make: Callable[[float], Backbone], *,
           rounds: int = 8) -> tuple[Backbone, float]:
    """The gentlest network of a family that keeps to a budget.

    Args:
        name: of the method, for messages.
        backbone: the original.
        budget: what the result may cost.
        make: strength in [0, 1] -> network; the cost falls as the strength grows.
        rounds: halvings of the interval of strengths.

    Returns:
        The network and its strength.

    Raises:
        UsageError: not even strength 1 is within the budget.
    """
    original = measure(backbone, latency=budget.unit == "latency")
    limit = budget.limit(original) * (1 + 1e-9)
    low, high = 0.0, 1.0
    best = make(high)
    if spent(best, budget.unit) > limit:
        raise unmet(name, budget, original, measure(best, latency=budget.unit == "latency"))
    for _ in range(rounds):
        middle = (low + high) / 2
        made = make(middle)
        if spent(made, budget.unit) <= limit:
            best, high = made, middle
        else:
            low = middle
    return best, high
