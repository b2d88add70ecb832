"""How a set of several modalities becomes the tokens of one Transformer: each member by its own stem, side by side.

Bachmann et al. 2022 (MultiMAE, arXiv:2204.01678), section 3.1: patches of every modality through a projection of its
own into one sequence. Places are learned maps of the member and of sine-cosine codes of where a token lies in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones._stem_columns import ColumnEmbed
from osteon.backbones._stems import PatchEmbed, Stem, WordEmbed, build_stem, default_patch, present_or_none
from osteon.core.errors import UsageError
from osteon.parts.members import Member, Members
from osteon.parts.positions import sincos

#: Numbers that code a token's place within its member.
PLACES = 48


class SetEmbed(Stem):
    """Tokens of all members: (B, 1, T) -> (B, N, D), N the sum of the members' tokens.

    What a token shows is what its member's stem says, filled up with zeros to the widest one's width.

    Args:
        members: name -> specification of every member, as in the traits of the data.
        needed: name -> options its modality's backbone needs (a vocabulary, levels...).
        dim: width of a token.
    """

    def __init__(self, members: Mapping[str, Any], needed: Mapping[str, Any], dim: int) -> None:
        super().__init__()
        self.members = Members.of({"members": members})
        self.stems = nn.ModuleDict({m.name: member_stem(m, dim, **needed.get(m.name, {})) for m in self.members})
        self.counts = [_tokens(self.stem(m), m) for m in self.members]
        self.stride, self.own_error = 1, True
        self.shown_width = max(self.stem(m).shown_width for m in self.members)
        self.place_width = len(self.members) + PLACES
        self.register_buffer("code", self._code(), persistent=False)

    code: Tensor

    def stem(self, member: Member) -> Stem:
        """The stem of a member."""
        return cast(Stem, self.stems[member.name])

    def grid(self, *extent: int) -> tuple[int, ...]:
        """(N,)."""
        if extent != (self.members.width,):
            raise UsageError(f"Sets of {', '.join(self.members.names)} are packed into {self.members.width:,} numbers, "
                             f"not {extent}.", where="backbone", fix="Read them like the data of the network.")
        return (sum(self.counts),)

    def span(self, name: str) -> slice:
        """Numbers of the tokens of a member."""
        at = self.members.names.index(name)
        return slice(sum(self.counts[:at]), sum(self.counts[:at + 1]))

    def forward(self, x: Tensor) -> Tensor:
        """Embed."""
        return torch.cat([self.stem(m)(self.members.normalised(x, m)) for m in self.members], 1)

    def shown(self, x: Tensor) -> Tensor:
        """(B, N, W); of members of a vocabulary the first number is the word."""
        return torch.cat([self._wide(self._shown(x, m)) for m in self.members], 1)

    def places(self, x: Tensor) -> Tensor:
        """Which member, and where in it; members with places of their own put these in front."""
        parts = []
        for member, code in zip(self.members, self.code.split(self.counts), strict=True):
            own = self.stem(member).places(self.members.normalised(x, member))
            full = code.expand(x.shape[0], -1, -1)
            if own is not None:
                at, few = len(self.members), min(own.shape[-1], PLACES)
                full = torch.cat([full[..., :at], F.pad(own[..., :few].to(full), (0, PLACES - few))], -1)
            parts.append(full)
        return torch.cat(parts, 1)

    def present(self, x: Tensor) -> Tensor | None:
        """Tokens of members that are there and that their member's stem counts."""
        there, parts = self.members.there(x), []
        for i, (member, count) in enumerate(zip(self.members, self.counts, strict=True)):
            own = self.stem(member).present(self.members.normalised(x, member))
            here = there[:, i, None].expand(-1, count)
            parts.append(here if own is None else here & own)
        return present_or_none(torch.cat(parts, 1))

    def shown_error(self, prediction: Tensor, shown: Tensor) -> Tensor:
        """Error of every token by its own kind: squared, cross-entropy, or the member's own."""
        parts = []
        for member in self.members:
            stem, at = self.stem(member), self.span(member.name)
            guess, right = prediction[:, at, :stem.shown_width].float(), shown[:, at]
            if isinstance(stem, WordEmbed):
                parts.append(F.cross_entropy(guess.transpose(1, 2), right[..., 0].long(), reduction="none"))
            elif stem.own_error:
                parts.append(stem.shown_error(guess, right[..., :self._width(member)]))
            else:
                parts.append((guess - right[..., :stem.shown_width].float()).square().mean(-1))
        return torch.cat(parts, 1)

    def shown_values(self, prediction: Tensor) -> Tensor:
        """Predictions as what tokens show."""
        parts = []
        for member in self.members:
            stem, at = self.stem(member), self.span(member.name)
            guess = prediction[:, at, :stem.shown_width].float()
            parts.append(self._wide(guess.argmax(-1, keepdim=True).float() if isinstance(stem, WordEmbed)
                                    else stem.shown_values(guess)))
        return torch.cat(parts, 1)

    def shown_blank(self, shown: Tensor) -> Tensor:
        """What stands for hidden tokens of every member."""
        return torch.cat([self._wide(self.stem(m).shown_blank(shown[:, self.span(m.name), :self._width(m)]))
                          for m in self.members], 1)

    def assemble(self, shown: Tensor, x: Tensor) -> Tensor:
        """Packed samples in stored values again."""
        made = {}
        for member in self.members:
            part = shown[:, self.span(member.name), :self._width(member)]
            like = self.members.normalised(x, member)
            made[member.name] = self.members.stored(member, self.stem(member).assemble(part, like).float())
        return self.members.pack(self.members.there(x), made)

    def example(self, shape: Sequence[int], draws: torch.Generator) -> Tensor:
        """Sets of which every member is there."""
        made = {m.name: self.members.stored(m, self.stem(m).example((shape[0], *m.shape), draws)) for m in self.members}
        return self.members.pack(torch.ones(shape[0], len(self.members), dtype=torch.bool), made)

    def note(self) -> str:
        """How many tokens of which member."""
        return "tokens: " + ", ".join(f"{n} of {m.name}" for m, n in zip(self.members, self.counts, strict=True))

    def initialise(self) -> None:
        """Every member's stem as it is by itself."""
        for member in self.members:
            self.stem(member).initialise()

    def _shown(self, x: Tensor, member: Member) -> Tensor:
        shown = self.stem(member).shown(self.members.normalised(x, member))
        return shown[..., None].float() if isinstance(self.stem(member), WordEmbed) else shown

    def _width(self, member: Member) -> int:
        """Numbers of what a token of the member shows."""
        stem = self.stem(member)
        return 1 if isinstance(stem, WordEmbed) else 2 if isinstance(stem, ColumnEmbed) else stem.shown_width

    def _wide(self, shown: Tensor) -> Tensor:
        return F.pad(shown, (0, self.shown_width - shown.shape[-1]))

    def _code(self) -> Tensor:
        """(N, M + PLACES): which member, and sine-cosine codes of its grid."""
        rows = []
        for i, (member, count) in enumerate(zip(self.members, self.counts, strict=True)):
            which = F.one_hot(torch.tensor(i), len(self.members)).float().expand(count, -1)
            where = sincos(_grid(self.stem(member), member), PLACES, temperature=100.0)[0]
            rows.append(torch.cat([which, where], 1))
        return torch.cat(rows)


def member_stem(member: Member, dim: int, *, vocabulary: int = 0, levels: Sequence[int] = (), stem: str = "",
                stem_options: Mapping[str, Any] | None = None, **_: Any) -> Stem:
    """The stem a Transformer of this member alone would have."""
    if stem == "names":
        raise UsageError("Tables within sets are not read by names.", where="names", fix="Leave --set names out.")
    if stem:
        return build_stem(stem, member.spec.channels, member.spec.extent, dim, dict(stem_options or {}))
    if levels:
        return ColumnEmbed(levels, dim)
    if vocabulary:
        return WordEmbed(vocabulary, dim)
    extent = member.spec.extent
    return PatchEmbed(member.spec.channels, len(extent), default_patch(extent), dim)


def _grid(stem: Stem, member: Member) -> tuple[int, ...]:
    return tuple(side // stem.stride for side in member.spec.extent)


def _tokens(stem: Stem, member: Member) -> int:
    return math.prod(_grid(stem, member))


def STEM(channels: int, extent: Sequence[int], dim: int, *, members: Mapping[str, Any],  # noqa: N802
         needed: Mapping[str, Any]) -> SetEmbed:
    """Build it; the members know their channels and sides themselves."""
    return SetEmbed(members, needed, dim)
