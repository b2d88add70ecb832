"""UniTabE: hidden cells are written out by a light decoder that is asked for them, and two parts of a row attract.

Yang et al. 2024, "UniTabE: A Universal Pretraining Protocol for Tabular Foundation Model in Data Science", sections on
the model and on pre-training, and the authors' code.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.cells import (
    BEGIN,
    END,
    TEXT,
    column_groups,
    covered,
    exists,
    names_of,
    only,
    piece,
    present,
    texts_of,
)
from osteon.parts.losses.supcon import supcon
from osteon.parts.objective import Objective
from osteon.parts.types import Batch, DataSpec, Draws, Features, Loss, Step
from osteon.parts.words import PAD
from osteon.views import make_views
from osteon.views.masks import lowest

CARD = Card(
    kind="objective",
    name="unitabe",
    papers=("UniTabE: A Universal Pretraining Protocol for Tabular Foundation Model in Data Science",),
    modalities=("table",),
    differs="It needs --set names=units, which makes the paper's tokens: a column token and all pieces of the "
    "value, with the data type always added. Pieces are hashed instead of those of BERT's vocabulary, so that what the "
    "decoder writes can be compared with known values but not always be read back as text; numbers are single digits. "
    "The backbone normalises before its layers, activations are GELU, and there is no dropout. The number of hidden "
    "cells is drawn anew at every step, from one to half of the columns, and up to `questions` of them are asked for "
    "one by one. A hidden cell is one mask piece, so that its length is hidden too. Both losses weigh 1, where the "
    "paper's weights are not in its code; the contrast is the one on the class token, with plain products at "
    "temperature 10. The schedule is constant, as in the code, and accumulated losses are averaged, which the code's "
    "are not. Fine-tuning by prompts is not covered: the code restricts a softmax to labels' tokens after a prompt, "
    "but the prompt's wording and what becomes of labels of several pieces could not be verified, and adapting takes "
    "a run's network without its decoder; heads and adapters read the class token.",
    rows=(116,),
    backbones=("tokens",),
    switch="--set names=units",
    cost="1 forward on the row, 2 on about a third of its columns each, and a few steps of an LSTM a hidden cell",
)

#: The prompt before and after the column's name.
_BEFORE, _AFTER = piece("recovery"), piece(":")


class Decoder(nn.Module):
    """Writes the pieces of a cell from the row's tokens and a prompt that says which cell.

    The first state of a one-layer LSTM is a linear map of the class token and of a summary of the tokens by the prompt:
    every piece of the prompt attends to the tokens, and what they find is weighed and summed. Its outputs are compared
    with the word vectors by products.

    Args:
        dim: width.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ask = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.answer = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.weigh = nn.Linear(dim, 1)
        self.start = nn.Linear(2 * dim, 2 * dim)
        self.lstm = nn.LSTM(dim, dim, batch_first=True)
        self.out = nn.Linear(dim, dim)

    def begin(self, prompt: Tensor, asked: Tensor, tokens: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """The first state, (1, B, D) twice, of prompts (B, P, D) and tokens (B, M, D), the class token first.

        ``asked`` (B, P) and ``there`` (B, M) bool are False where there is no piece and no token.
        """
        match = self.ask(prompt) @ self.answer(tokens).transpose(1, 2)
        found = match.masked_fill(~there[:, None], -torch.inf).softmax(-1) @ tokens
        weight = self.weigh(found)[..., 0].masked_fill(~asked, -torch.inf).softmax(-1)
        summary = (weight[..., None] * found).sum(1)
        hidden, cell = self.start(torch.cat([tokens[:, 0], summary], 1)).chunk(2, 1)
        return hidden[None].contiguous(), cell[None].contiguous()

    def forward(self, words: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """What follows each of ``words`` (B, T, D), to be compared with word vectors, and the state after the last."""
        out, state = self.lstm(words, state)
        return self.out(out), state


def prompts(x: Tensor, columns: Tensor) -> Tensor:
    """``recovery NAME :`` for columns (B, Q) of rows: (B, Q, P) int64 pieces, 0 where there is none."""
    names = names_of(x).transpose(1, 2).gather(1, columns[..., None].expand(-1, -1, names_of(x).shape[1]))
    before, after = torch.full_like(names[..., :1], _BEFORE), torch.full_like(names[..., :1], _AFTER)
    return torch.cat([before, names, after], -1)


def answers(x: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """What the decoder reads and is to write for columns (B, Q): (B, Q, TEXT + 1) int64 each, 0 after the end."""
    text = texts_of(x).transpose(1, 2).gather(1, columns[..., None].expand(-1, -1, TEXT))
    wanted = F.pad(text, (0, 1)).scatter(-1, (text > 0).sum(-1, keepdim=True), END)
    return F.pad(text, (1, 0), value=BEGIN), wanted


class UniTabE(Objective):
    """Recovery of hidden cells and contrast of two groups of columns.

    Args:
        backbone: network to train; it reads a table by units.
        data: what the data look like.
        ratio: largest share of the columns that is hidden.
        questions: hidden cells of a row that the decoder is asked for, at most.
        partitions: groups of columns, of which two are compared.
        overlap: share of a group that its neighbour sees too.
        temperature: T of the contrast; 10 belongs to plain products.
        contrast: its weight.
    """

    # Adam at 1e-4 and batch 64 times 10 accumulated, as the authors'; the square root keeps its noise scale at others.
    recipe: ClassVar = {"optimizer": "adamw", "lr": 1e-4, "lr_per": 640, "lr_rule": "sqrt", "weight_decay": 0.0,
                        "schedule": "constant", "warmup": 0.0}

    def __init__(self, backbone: Backbone, data: DataSpec, *, ratio: float = 0.5, questions: int = 4,
                 partitions: int = 4, overlap: float = 0.5, temperature: float = 10.0, contrast: float = 1.0) -> None:
        super().__init__(backbone, data)
        options = backbone.options
        if options.get("stem") != "names" or options.get("stem_options", {}).get("tokens") != "units":
            raise UsageError("UniTabE reads a table by the names of its columns and the pieces of its cells.",
                             where="objective unitabe", fix="Add --set names=units.")
        columns = data.extent[0]
        if columns < 2:
            raise UsageError("One column leaves nothing to be recovered from.", where="objective unitabe",
                             fix="Give a table of more columns.")
        if not 0 < ratio < 1 or questions < 1 or partitions < 2 or not 0 <= overlap <= 1 or temperature <= 0 \
                or contrast < 0:
            raise UsageError("ratio lies in (0, 1), overlap in [0, 1]; questions is at least 1, partitions at least 2, "
                             "temperature positive and contrast not negative.", where="objective unitabe")
        self.views = make_views("none", data)
        self.most, self.questions = max(1, int(ratio * columns)), min(questions, max(1, int(ratio * columns)))
        self.parts, self.overlap = min(partitions, columns), overlap
        self.temperature, self.contrast = temperature, contrast
        self.decoder = Decoder(backbone.token_dim)
        self.notes = list(self.views.notes)

    @property
    def words(self) -> nn.Embedding:
        """The word vectors, which the stem and the decoder share."""
        return self.backbone.get_submodule("patch_embed.words")  # type: ignore[return-value]

    def hide(self, x: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden cells (B, K) bool, and columns asked for (B, Q) with whether they are (B, Q) bool.

        How many are hidden is drawn once a step; only cells that are there are hidden, and one of each row stays.
        """
        here, count = present(x), 1 + int(draws.fork("count").shared_rand(1) * self.most)
        score = draws.fork("cells").rand(x.shape[2]).masked_fill(~here, 2.0)
        hidden = lowest(score, count) & here
        last = hidden & (score == score.masked_fill(~here, -1.0).amax(1, keepdim=True))
        hidden = hidden & ~last
        asked = score.topk(min(self.questions, count), 1, largest=False).indices
        return hidden, asked, hidden.gather(1, asked)

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Errors and pieces of the answers, (B,) each, class tokens ``"z"`` (B, 2, D) of two groups, features."""
        x = self.views(batch[self.data.modality], draws)[0].x
        hidden, columns, asked = self.hide(x, draws)
        seen = covered(x, hidden)
        features = self.backbone(seen)
        read, wanted = answers(x, columns)
        counted = (wanted != PAD) & asked[..., None]
        scores = self.write(seen, features, columns, read, counted)
        error = F.cross_entropy(scores, wanted[counted], reduction="none")
        every = torch.zeros_like(wanted, dtype=error.dtype).masked_scatter(counted, error)
        return {"error": every.sum((1, 2)), "pieces": counted.sum((1, 2)).float(), "z": self._parts(x, draws),
                "row": draws.rows.to(x.device), "features": features.pooled.detach()}

    def write(self, seen: Tensor, features: Features, columns: Tensor, read: Tensor, counted: Tensor) -> Tensor:
        """Scores of what follows pieces in the cells of columns (B, Q): (C, V) float32.

        Args:
            seen: (B, CHANNELS, K) rows as the encoder saw them.
            features: what it made of them.
            columns: (B, Q) int64.
            read: (B, Q, T) int64 pieces.
            counted: (B, Q, T) bool, the C places whose scores are wanted.
        """
        out, _ = self.decoder(self.words(read.flatten(0, 1)), self._begin(seen, features, columns))
        return (out.unflatten(0, columns.shape)[counted] @ self.words.weight.T).float()

    def _begin(self, seen: Tensor, features: Features, columns: Tensor) -> tuple[Tensor, Tensor]:
        prompt = prompts(seen, columns).flatten(0, 1)
        first = features.pooled if features.cls is None else features.cls
        there = self.backbone.present(seen)
        there = torch.ones_like(features.tokens[..., 0], dtype=torch.bool) if there is None else there
        some = there.any(0)  # no row has the others
        tokens = torch.cat([first[:, None], features.tokens[:, some]], 1)
        tokens = tokens.repeat_interleave(columns.shape[1], 0)
        there = F.pad(there[:, some], (1, 0), value=True).repeat_interleave(columns.shape[1], 0)
        return self.decoder.begin(self.words(prompt), prompt != PAD, tokens, there)

    def _parts(self, x: Tensor, draws: Draws) -> Tensor:
        """Class tokens of two groups of columns, each encoded alone: (B, 2, D)."""
        stream = draws.fork("groups")
        groups = column_groups(exists(x), stream.shared_rand(x.shape[2]), self.parts, self.overlap)
        chosen = stream.shared_rand(self.parts).argsort()[:2]
        return torch.stack([self.backbone(only(x, groups[g])).pooled for g in chosen.tolist()], 1)

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Mean error of the answers' pieces, and the contrast of the whole batch."""
        recovery = encoded["error"].sum() / encoded["pieces"].sum().clamp(min=1)
        z = encoded["z"]
        alike = supcon(z.flatten(0, 1), encoded["row"].repeat_interleave(2), self.temperature, cosine=False)
        return Loss(recovery + self.contrast * alike, {"recovery": recovery.detach(), "contrast": alike.detach()})

    @torch.no_grad()
    def fill(self, x: Tensor, columns: Tensor) -> Tensor:
        """What the decoder writes into hidden cells, the likeliest piece first to last.

        Args:
            x: (B, CHANNELS, K) rows.
            columns: (B, Q) int64 cells to hide, all of a row at once, and to write.

        Returns:
            (B, Q, TEXT) int64 pieces, 0 after the end.
        """
        hidden = torch.zeros_like(x[:, 0], dtype=torch.bool).scatter(1, columns, True)
        seen = covered(x, hidden)
        state = self._begin(seen, self.backbone(seen), columns)
        last = torch.full((columns.numel(), 1), BEGIN, device=x.device)
        out, over = [], torch.zeros_like(last, dtype=torch.bool)
        for _ in range(TEXT):
            after, state = self.decoder(self.words(last), state)
            last = (after @ self.words.weight.T).argmax(-1)
            over = over | (last == END)
            out.append(last.masked_fill(over, PAD))
        return torch.cat(out, 1).view(*columns.shape, TEXT)
