"""How a row of a table becomes tokens: one a column, each by the column's own weights.

Gorishniy et al. 2021, arXiv:2106.11959, section 3.3 (the feature tokenizer of FT-Transformer).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from osteon.backbones._stems import Stem
from osteon.core.errors import UsageError


class ColumnEmbed(Stem):
    """A token a column: (B, 2, K) -> (B, K, D).

    Channel 0 of a row holds a standardised number or the number of a level, channel 1 is 1 where the cell was missing.
    A number x becomes ``x w_j + b_j`` and a level the vector of that level plus ``b_j``; a missing number is a learned
    vector of its column plus ``b_j``, a missing category has a level of its own.

    What a token shows is its cell (value, mark). It is predicted by ``shown_width`` numbers: of a number the first of
    them, of a category a score for every level.

    Args:
        levels: how many levels every column has, 0 for numbers.
        dim: width of a token.
    """

    def __init__(self, levels: Sequence[int], dim: int) -> None:
        super().__init__()
        self.own_error = True
        if not levels or any(n < 0 or n == 1 for n in levels):
            raise UsageError(f"Columns with {list(levels)} levels have nothing to tell apart.", where="levels",
                             fix="Give 0 for a column of numbers, 2 or more for one of categories.")
        self.stride, self.levels, self.shown_width = 1, tuple(levels), max(1, *levels)
        numbers = [j for j, n in enumerate(levels) if n == 0]
        classes = [j for j, n in enumerate(levels) if n]
        counts = torch.tensor([levels[j] for j in classes], dtype=torch.int64)
        self._remember("numbers", torch.tensor(numbers, dtype=torch.int64))
        self._remember("classes", torch.tensor(classes, dtype=torch.int64))
        self._remember("first", counts.cumsum(0) - counts)  # where each column's vectors start
        self._remember("order", torch.tensor([*numbers, *classes]).argsort())
        self._remember("real", torch.arange(self.shown_width) < counts[:, None])  # (categories, W): scores of levels
        self.bias = nn.Parameter(torch.empty(len(levels), dim))
        self.weight = nn.Parameter(torch.empty(len(numbers), dim)) if numbers else None
        self.missing = nn.Parameter(torch.empty(len(numbers), dim)) if numbers else None
        self.table = nn.Embedding(sum(levels), dim) if classes else None
        self.initialise()

    numbers: Tensor
    classes: Tensor
    first: Tensor
    order: Tensor
    real: Tensor

    def _remember(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Embed."""
        if x.dim() != 3 or x.shape[1:] != (2, len(self.levels)):
            raise UsageError(f"Rows of this table are (B, 2, {len(self.levels)}).", where=f"shape {tuple(x.shape)}",
                             fix="Read the table like the one the network was built for.")
        parts = []
        if self.weight is not None and self.missing is not None:
            value, absent = x[:, 0, self.numbers, None], x[:, 1, self.numbers, None] > 0.5
            parts.append(torch.where(absent, self.missing, value * self.weight))
        if self.table is not None:
            parts.append(self.table(self.first + x[:, 0, self.classes].round().long()))
        return torch.cat(parts, 1)[:, self.order] + self.bias

    def shown(self, x: Tensor) -> Tensor:
        """The cells: (B, 2, K) -> (B, K, 2) value and mark."""
        return x.transpose(1, 2)

    def shown_error(self, prediction: Tensor, shown: Tensor) -> Tensor:
        """Squared error of numbers (a missing one costs nothing), cross-entropy of levels.

        Args:
            prediction: (B, K, shown_width).
            shown: (B, K, 2) cells.

        Returns:
            (B, K) float32.
        """
        parts, prediction, shown = [], prediction.float(), shown.float()
        if self.weight is not None:
            value, absent = shown[:, self.numbers].unbind(-1)
            parts.append((prediction[:, self.numbers, 0] - value).square() * (1 - absent))
        if self.table is not None:
            scores = prediction[:, self.classes].masked_fill(~self.real, -torch.inf).log_softmax(-1)
            right = shown[:, self.classes, :1].round().long()
            parts.append(-scores.gather(-1, right)[..., 0])
        return torch.cat(parts, 1)[:, self.order]

    def shown_values(self, prediction: Tensor) -> Tensor:
        """Predictions (B, K, shown_width) as cells (B, K, 2): the number, or the likeliest level; none is missing."""
        value = prediction[..., 0].float().clone()
        if self.table is not None:
            value[:, self.classes] = prediction[:, self.classes].float().masked_fill(
                ~self.real, -torch.inf).argmax(-1).to(value.dtype)
        return torch.stack([value, torch.zeros_like(value)], -1)

    def shown_blank(self, shown: Tensor) -> Tensor:
        """Cells of the same shape that are all missing, for pictures of what was hidden."""
        blank = torch.ones_like(shown)
        blank[..., 0] = torch.tensor([float(max(0, n - 1)) for n in self.levels], device=shown.device)
        return blank

    def example(self, shape: Sequence[int], draws: torch.Generator) -> Tensor:
        """Normal numbers and any levels; no cell is missing."""
        x = torch.randn(*shape, generator=draws)
        x[:, 1] = 0
        for j, count in enumerate(self.levels):
            if count:
                x[:, 0, j] = torch.randint(count, (x.shape[0],), generator=draws).float()
        return x

    def initialise(self) -> None:
        """Uniform within ``1 / sqrt(D)``, as in the authors' code."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -parameter.shape[-1] ** -0.5, parameter.shape[-1] ** -0.5)
