"""Self-distilled further pre-training: go on pre-training, held close to what a first pass of the same has learned.

Lee et al. 2022, "Self-Distillation for Further Pre-training of Transformers", arXiv:2210.02871, section 3.2.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.core.run import RunFolder
from osteon.objectives._around import Around, hidden
from osteon.parts.companion import freeze
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step

CARD = Card(
    kind="objective", name="self_distilled",
    papers=("Self-Distillation for Further Pre-training of Transformers",),
    modalities=("image",),
    differs="any objective and backbone beside masked autoencoding of a ViT; where the backbone has no class token its "
            "pooled features are held; heads and decoders start anew in both passes, since --init carries the backbone "
            "alone; the first pass is a run of its own, named as teacher; without a teacher the features are held to "
            "those of the weights the run starts from",
    rows=(21,),
    cost="of the task, and one more forward and backward of the student and a forward of the teacher on the full image",
)


def distance(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Squared distance of hidden vectors, summed over dimensions and averaged over samples. (B, D) twice -> ()."""
    return (student_BD - teacher_BD).square().sum(1).mean()


class SelfDistilled(Around):
    """Another objective plus the distance of the student's features of the full image to a frozen teacher's.

    ``osteon pretrain DATA --objective mae --init W --out first`` makes the teacher; ``osteon pretrain DATA --objective
    self_distilled --set task=mae --set teacher=first --init W`` starts again from W, held close to it.

    Args:
        backbone: network to train.
        data: what the data look like.
        task: objective that goes on; ``auto``: mae for token backbones, spark for convolutional ones.
        options: of the task, as a mapping.
        teacher: run folder of the first pass; empty: the weights this run starts from.
        weight: of the distance, which is a sum over dimensions (1 in the paper).
    """

    def __init__(self, backbone: Backbone, data: DataSpec, *, task: str = "auto", options: dict[str, Any] | None = None,
                 teacher: str = "", weight: float = 1.0) -> None:
        if weight < 0:
            raise UsageError(f"weight must be 0 or more, not {weight}.", where="self_distilled")
        # Copied before the task is built, whose constructor may change what trains.
        made = _teacher(backbone, teacher)
        super().__init__(backbone, data, task=task, options=options, own=CARD.name)
        self.teacher, self.weight = made, weight
        self.additive = self.inner.additive  # type: ignore[misc]
        self.notes.insert(1, f"teacher: {teacher or 'the weights this run starts from'}")

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """The task's encodings, and ``"hold"``, ``"held"`` (B, D): vectors of the full image by student and teacher."""
        encoded = self.inner.encode(batch, draws)
        if self.weight == 0:
            return encoded
        x = self.full(batch, draws)
        with torch.no_grad():
            held = hidden(self.teacher(x))
        return {**encoded, "hold": hidden(self.backbone(x)), "held": held}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """The task's loss and the weighted distance."""
        if self.weight == 0:
            return self.inner.score(encoded, step)
        found = self.inner.score({k: v for k, v in encoded.items() if k not in ("hold", "held")}, step)
        apart = distance(encoded["hold"], encoded["held"])
        return Loss(found.total + self.weight * apart, {**found.parts, "distance": apart.detach()})

    def companions(self) -> list[nn.Module]:
        """The teacher and the task's own."""
        return [self.teacher, *self.inner.companions()]

    def train(self, mode: bool = True) -> SelfDistilled:
        """The teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self


def _teacher(backbone: Backbone, run: str) -> Backbone:
    """A frozen copy of the backbone, with the weights a run left."""
    teacher = copy.deepcopy(backbone)
    if run:
        state, meta = RunFolder(Path(run)).load_model()
        made = meta.get("backbone", {})
        if made.get("name") != backbone.name or made.get("channels") != backbone.channels:
            raise UsageError(f"The teacher is a {made.get('name')}, the student a {backbone.name}.",
                             where=f"--set teacher={run}", fix="Make the teacher from the same --init.")
        _load(teacher, state, run)
    freeze(teacher)
    return teacher.eval()


def _load(teacher: nn.Module, state: dict[str, Tensor], run: str) -> None:
    """Weights of a run; into a network that carries low-rank changes, as its base, the changes being zero."""
    wanted = teacher.state_dict()
    base = {name: name.replace(".base.", ".") for name in wanted if ".change." not in name}
    same = set(base.values()) == set(state) and all(state[there].shape == wanted[here].shape
                                                    for here, there in base.items())
    if not same:
        raise UsageError("The teacher's weights are not those of the student's network.", where=f"--set teacher={run}",
                         fix="Make the teacher from the same --init.")
    teacher.load_state_dict({**wanted, **{here: state[there] for here, there in base.items()}})
