"""What every pre-training objective is: encode each sample, then score the whole batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from osteon.core.errors import UsageError
from osteon.parts.judged import Judged
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step

if TYPE_CHECKING:
    from osteon.backbones import Backbone


class Objective(nn.Module, ABC):
    """A pre-training objective: plain PyTorch, usable in osteon's loop, in Lightning or in anybody's ``for`` loop.

    Args:
        backbone: the network that is trained and exported.
        data: what the data look like.

    Attributes:
        recipe: defaults of optimiser and schedule (keys of :class:`osteon.train.settings.TrainSettings`).
        additive: the score is a plain mean over samples, so accumulated micro-batches need no second forward.
        any_size: views of images may be smaller than the data, as a curriculum makes them.
        compared: name of the encoding (B, V, P) whose views of one sample are to agree and are watched; "" for none.
    """

    recipe: ClassVar[dict[str, Any]] = {}
    additive: ClassVar[bool] = False
    any_size: ClassVar[bool] = False
    compared: ClassVar[str] = ""

    def __init__(self, backbone: Backbone, data: DataSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.data = data
        self.notes: list[str] = []

    @abstractmethod
    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Run the networks on the local samples.

        Returns:
            Tensors with the local batch as first dimension; ``"features"`` (B, D) is detached and read by monitors.
        """

    @abstractmethod
    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Loss of the whole global batch from its gathered encodings."""

    def forward(self, batch: Batch, step: Step) -> Loss:
        """Loss of a batch that is the whole global batch (one process)."""
        return self.score(self.encode(batch, Draws.of(batch, step)), step)

    @classmethod
    def seen(cls, extent: tuple[int, ...], options: Mapping[str, Any]) -> tuple[int, ...]:
        """Sides of what the network is to see of samples of these sides: all, unless a method keeps a part back."""
        return extent

    def prepare(self, batch: Callable[[Sequence[int]], Batch], samples: int, seed: int) -> None:  # noqa: B027
        """Look at training samples before the first step, to fit a codebook, say; what is found goes into buffers.

        Args:
            batch: sample numbers -> a batch of them, on the CPU.
            samples: how many there are.
            seed: of the run.
        """

    def after_step(self, step: Step) -> None:  # noqa: B027  (a hook: most objectives keep no such state)
        """Update state that gradient does not train (companions, queues, centres), once an optimiser step."""

    def exported(self) -> Backbone:
        """The network the run leaves; the student unless the paper evaluates its teacher."""
        return self.backbone

    def exported_data(self) -> DataSpec:
        """What the data look like to the network the run leaves."""
        return self.data

    def kept(self) -> dict[str, Tensor]:
        """State beyond that network that is kept beside it, e.g. a head by which `osteon forecast` forecasts."""
        return {}

    def companions(self) -> list[nn.Module]:
        """Modules that must never receive gradient."""
        return []

    def reconstruct(self, batch: Batch, step: Step) -> tuple[Tensor, Tensor, Tensor] | None:
        """Input, corrupted input and output (B, C, H, W, normalised values) for the report; None if not applicable."""
        return None

    def judge(self, x: Tensor, draws: Draws) -> Judged:
        """What predictions cost on held-out samples as they are, token by token, in a unit that compares networks.

        Args:
            x: (B, C, *extent) normalised samples; no view is taken.
            draws: which tokens are hidden.

        Raises:
            UsageError: the objective predicts nothing of a sample itself, such as one that compares views.
        """
        raise UsageError("This objective has no loss that compares networks: it predicts nothing of the samples.",
                         where="held_out", fix="Use evaluators of features, or train with clm, mlm, mae, point_cmae...")
