"""How a row becomes tokens by what its columns are called, so that one network reads any table.

Three ways, all from one table of word vectors: a token a cell; Wang & Sun 2022 ("TransTab: Learning Transferable
Tabular Transformers Across Tables", section on the tokenizer): a token a number and a token a piece of a category; Yang
et al. 2024 ("UniTabE: A Universal Pretraining Protocol for Tabular Foundation Model in Data Science", section on the
TabUnit): a token a name and a token a piece of the cell.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones._stems import Stem, present_or_none
from osteon.core.errors import UsageError
from osteon.parts.cells import (
    CATEGORY,
    CHANNELS,
    CODES,
    NAME,
    NOTHING,
    NUMBER,
    PIECES,
    TEXT,
    TRUTH,
    exists,
    names_of,
    need_cells,
    present,
    texts_of,
)
from osteon.parts.positions import sincos
from osteon.parts.tracing import holds

#: Numbers that say which column a token is of, where it has a place.
PLACES = 32
#: Tokens a column, by the way of reading.
SLOTS = {"cells": 1, "pieces": NAME + TEXT, "units": 1 + TEXT}


class NameEmbed(Stem):
    """Tokens from names and cells: (B, CHANNELS, K) -> (B, K * slots, D), column by column; K may be any.

    - ``cells``: one a column. A number is its name's mean vector times the standardised value, a yes its name's mean
      vector and a no zero, a category the mean of the vectors of its name and its cell. A token has a place, a fixed
      code of the column's name, so that what is hidden can be asked for by name.
    - ``pieces``: a number as above; a yes is the pieces of its name and a no nothing; a category is the pieces of its
      name and of its cell, a token each.
    - ``units``: the column c, the mean of its name's pieces in their order and of its kind through a gate, and every
      piece v of the cell as ``v + g(c) c``. Numbers are read as they are written.

    Missing cells have no tokens, and tokens no order among columns. In ``cells`` a token shows (value, kind, code): a
    number is predicted by the first of ``shown_width`` numbers and a category by a score for each of 128 codes of
    levels.

    Args:
        dim: width of a token.
        tokens: the way.
    """

    sparse = True

    def __init__(self, dim: int, tokens: str) -> None:
        super().__init__()
        if tokens not in SLOTS:
            raise UsageError(f"There is no way '{tokens}' to make tokens of names.", where="stem_options",
                             fix=f"Use {', '.join(SLOTS)}.")
        self.tokens, self.stride, self.slots = tokens, 1, SLOTS[tokens]
        self.own_error, self.place_width = tokens == "cells", PLACES if tokens == "cells" else 0
        self.words = nn.Embedding(PIECES, dim)
        self.norm = nn.LayerNorm(dim)
        self.align = nn.Linear(dim, dim, bias=tokens == "units")
        if tokens == "cells":
            code = torch.randn(PIECES, PLACES, generator=torch.Generator().manual_seed(0), device="cpu")
            code[0] = 0
            self.register_buffer("code", code, persistent=False)
        if tokens == "units":
            self.kind = nn.Embedding(TRUTH + 1, dim)
            self.kind_gate, self.gate = _gate(dim), _gate(dim)
            self.register_buffer("order", sincos((max(NAME, TEXT),), dim)[0], persistent=False)

    code: Tensor
    order: Tensor

    @property
    def shown_width(self) -> int:  # type: ignore[override]
        """Numbers it takes to predict a cell."""
        need_cells({"stem": "names", "stem_options": {"tokens": self.tokens}})
        return 1 + CODES

    def grid(self, *extent: int) -> tuple[int, ...]:
        """(K * slots,)."""
        return (extent[-1] * self.slots,)

    def forward(self, x: Tensor) -> Tensor:
        """Embed; tokens that are not there are zero."""
        if x.dim() != 3 or x.shape[1] != CHANNELS:
            raise UsageError(f"Rows read by names are (B, {CHANNELS}, K).", where=f"shape {tuple(x.shape)}",
                             fix=f"Read the table with --set names={self.tokens}.")
        make = {"cells": self._cells, "pieces": self._pieces, "units": self._units}[self.tokens]
        return make(x, _of_all(names_of(x))) * self._there(x)[..., None]

    def _cells(self, x: Tensor, names: Tensor) -> Tensor:
        texts, kind, value = texts_of(x), x[:, 2, :, None], x[:, 0, :, None]
        of_name, of_text = self._sum(names), self._sum(texts)
        count = (names > 0).sum(1)[..., None].clamp(min=1)
        both = (of_name + of_text) / (count + (texts > 0).sum(1)[..., None])
        return self.align(torch.where(kind == CATEGORY, both, value * of_name / count))

    def _pieces(self, x: Tensor, names: Tensor) -> Tensor:
        number = (x[:, 2] == NUMBER)[..., None]
        of_name = self._vectors(names).transpose(1, 2)  # (B or 1, K, NAME, D)
        count = (names > 0).sum(1)[..., None].clamp(min=1)
        scaled = x[:, 0, :, None] * of_name.sum(2) / count
        first = torch.where(number, scaled, of_name[:, :, 0])[:, :, None]
        rest = of_name[:, :, 1:].expand(x.shape[0], -1, -1, -1)
        return self.align(torch.cat([first, rest, self._vectors(texts_of(x)).transpose(1, 2)], 2).flatten(1, 2))

    def _units(self, x: Tensor, names: Tensor) -> Tensor:
        kind = self.kind(x[:, 2].long().clamp(max=TRUTH))
        count = (names > 0).sum(1)[..., None].clamp(min=1)
        column = self._sum(names, placed=True) / count + kind * self.kind_gate(kind)
        text = self._vectors(texts_of(x), placed=True).transpose(1, 2)
        text = text + (self.gate(column) * column)[:, :, None]
        return self.align(torch.cat([column[:, :, None], text], 2).flatten(1, 2))

    def _vectors(self, ids: Tensor, placed: bool = False) -> Tensor:
        """Pieces (B, P, K) as normalised vectors (B, P, K, D), 0 for none; ``placed``: by their order too."""
        vectors = self.words(ids)
        if placed:
            vectors = vectors * vectors.shape[-1]**0.5 + self.order[:ids.shape[1], None].to(vectors)
        return self.norm(vectors) * (ids > 0)[..., None]

    def _sum(self, ids: Tensor, placed: bool = False) -> Tensor:
        return self._vectors(ids, placed).sum(1)

    def _there(self, x: Tensor) -> Tensor:
        """(B, K * slots) bool."""
        here = present(x)
        if self.tokens == "cells":
            return here
        texts = texts_of(x).transpose(1, 2) > 0  # (B, K, TEXT)
        if self.tokens == "units":
            return (torch.cat([torch.ones_like(texts[..., :1]), texts], 2) & here[..., None]).flatten(1)
        kind = x[:, 2, :, None]
        names = names_of(x).transpose(1, 2) > 0
        first = torch.arange(NAME, device=x.device) == 0
        names = torch.where(kind == NUMBER, first, names & ((kind == CATEGORY) | (x[:, 0, :, None] > 0.5)))
        return (torch.cat([names, texts & (kind == CATEGORY)], 2) & here[..., None]).flatten(1)

    def present(self, x: Tensor) -> Tensor | None:
        """Tokens of cells that are not missing."""
        return present_or_none(self._there(x))

    def places(self, x: Tensor) -> Tensor | None:
        """What a column is called, as a fixed code, (B, K, PLACES); None where tokens have no place."""
        if not self.place_width:
            return None
        names = _of_all(names_of(x))
        code = self.code[names].sum(1) / (names > 0).sum(1)[..., None].clamp(min=1)
        return code.expand(x.shape[0], -1, -1) * exists(x)[..., None]

    def shown(self, x: Tensor) -> Tensor:
        """Value, kind and code of the level: (B, K, 3)."""
        assert self.shown_width
        return x[:, [0, 2, 3]].transpose(1, 2)

    def shown_error(self, prediction: Tensor, shown: Tensor) -> Tensor:
        """Squared error of numbers, cross-entropy over the codes of levels, 0 where there is no column: (B, K)."""
        value, kind, code = shown.float().unbind(-1)
        guess = prediction.float()
        squared = (guess[..., 0] - value).square()
        entropy = F.cross_entropy(guess[..., 1:].flatten(0, 1), code.round().long().flatten(), reduction="none")
        return torch.where(kind == NUMBER, squared, entropy.view_as(value)) * (kind != NOTHING)

    def shown_values(self, prediction: Tensor) -> Tensor:
        """Predictions (B, K, shown_width) as (number, -1, likeliest code): the kind is the cell's own."""
        value, code = prediction[..., 0].float(), prediction[..., 1:].argmax(-1).float()
        return torch.stack([value, torch.full_like(value, -1.0), code], -1)

    def shown_blank(self, shown: Tensor) -> Tensor:
        """Cells that are missing, for pictures: their kind is -2."""
        return torch.zeros_like(shown) - 2 * F.one_hot(torch.tensor(1, device=shown.device), 3).to(shown)

    def assemble(self, shown: Tensor, x: Tensor) -> Tensor:
        """Rows like ``x`` with these values and codes, for pictures."""
        value, kind, code = shown.unbind(-1)
        out = x.clone()
        out[:, 0], out[:, 3] = torch.where(x[:, 2] == NUMBER, value, x[:, 0]), code
        out[:, 1] = torch.where(kind == -2, 1.0, x[:, 1])
        return out

    def example(self, shape: Sequence[int], draws: torch.Generator) -> Tensor:
        """Categories whose names and cells are as long as they may be: every token is there."""
        x = torch.randint(CODES, tuple(shape), generator=draws).float()
        x[:, 1], x[:, 2] = 0, CATEGORY
        x[:, CHANNELS - NAME - TEXT:] += 1  # 0 is no piece
        return x

    def note(self) -> str:
        """What a token is."""
        what = {"cells": "one a cell, from its column's name and what it holds",
                "pieces": "one a number, one a piece of a category and of its column's name (TransTab)",
                "units": "one a column's name and one a piece of its cell (UniTabE)"}
        return f"tokens: {what[self.tokens]}; missing cells have none"

    def initialise(self) -> None:
        """Word vectors normal with deviation 1 / sqrt(D), kinds uniform within that."""
        nn.init.normal_(self.words.weight, std=self.words.embedding_dim**-0.5)
        if self.tokens == "units":
            nn.init.uniform_(self.kind.weight, -self.words.embedding_dim**-0.5, self.words.embedding_dim**-0.5)


def _gate(dim: int) -> nn.Sequential:
    """A number in (0, 1) of a vector: two layers."""
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 1), nn.Sigmoid())


def _of_all(names: Tensor) -> Tensor:
    """Names (B, P, K) once, (1, P, K), where all rows are of one table: nothing is computed twice."""
    return names[:1] if holds((names == names[:1]).all()) else names


def STEM(channels: int, extent: Sequence[int], dim: int, *, tokens: str = "cells") -> NameEmbed:  # noqa: N802
    """Build it; rows know their columns themselves."""
    if channels != CHANNELS or len(extent) != 1:
        raise UsageError(f"Rows read by names are ({CHANNELS}, K), not ({channels}, {', '.join(map(str, extent))}).",
                         where="stem", fix=f"Read the table with --set names={tokens}.")
    return NameEmbed(dim, tokens)
