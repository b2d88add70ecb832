"""One encoder a modality: every member of a set by a network of its own, and maps into a space they share.

Radford et al. 2021 (CLIP, arXiv:2103.00020), section 2.4: linear maps from each encoder's features, without bias, into
one space on whose unit sphere members are compared.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones._base import Backbone
from osteon.backbones._stem_several import SetEmbed
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.members import Member, Members
from osteon.parts.tracing import tracing
from osteon.parts.types import Features

CARD = Card(
    kind="backbone",
    name="towers",
    papers=("Learning Transferable Visual Models From Natural Language Supervision",),
    modalities=("several",),
    differs="Each tower pools as its own kind does (the paper: attention pooling, and the text's last token). One "
    "Transformer for all members is an option (`encoder=shared`).",
    backbones=("towers",),
    cost="the sum of its members' encoders",
)

SIZES: dict[str, dict[str, Any]] = {"towers": {}}
SHARED = "shared"


class Towers(Backbone):
    """Encoders of the members of a set; pooled features are those of all members side by side, zeros where missing.

    Args:
        name: the name it was built by.
        channels: 1, of packed samples.
        size: their length.
        stem: ``several``; what data of several modalities hand over.
        stem_options: the members and what their networks need.
        encoder: of every member: a name; ``auto``; or ``image=resnet_tiny,text=vit_mini``, the others by rule; or
            ``shared``: one vit_mini for all, which sees one member at a time.
        joint: width of the space the members share; 0: there is none yet.
    """

    kind = "towers"

    def __init__(self, name: str, *, channels: int, size: int | Sequence[int], stem: str = "several",
                 stem_options: Mapping[str, Any] | None = None, encoder: str = "auto", joint: int = 0) -> None:
        if not stem_options or "members" not in stem_options:
            raise UsageError("Towers encode sets of several modalities; this source holds one.", where="backbone",
                             fix="Give a manifest with a column a modality, or another backbone.")
        extent = (size,) if isinstance(size, int) else tuple(size)
        self.members = Members.of({"members": stem_options["members"]})
        chosen = {m.name: SHARED for m in self.members} if encoder == SHARED else _choose(encoder, self.members)
        options = {"stem": stem, "stem_options": dict(stem_options),
                   "encoder": SHARED if encoder == SHARED else ",".join(f"{k}={v}" for k, v in chosen.items())}
        super().__init__(name, channels=channels, size=extent, options=options)
        build = importlib.import_module("osteon.backbones").build_backbone
        self.shared = encoder == SHARED
        if self.shared:
            nets = {SHARED: build("vit_mini", channels=channels, size=extent, stem="several",
                                  stem_options=stem_options)}
        else:
            needed = stem_options.get("needed", {})
            nets = {m.name: build(chosen[m.name], channels=m.spec.channels, size=m.spec.extent,
                                  **needed.get(m.name, {})) for m in self.members}
        self.encoders = nn.ModuleDict(nets)
        self.notes.append("encoders: " + ", ".join(f"{k} {v}" for k, v in chosen.items())
                          + (" (rule: a ResNet where a sample has two sides, else a Transformer)"
                             if encoder == "auto" else ""))
        for key, net in nets.items():
            self.notes += [f"{key}: {note}" for note in net.notes]
        self.dims = [self.encoder(m).dim for m in self.members]
        self.dim = self.token_dim = sum(self.dims)
        self.stride = self.members.width
        self.maps = nn.ModuleDict()
        if joint:
            self.add_joint(joint)

    def encoder(self, member: Member) -> Backbone:
        """The network of a member."""
        return cast(Backbone, self.encoders[SHARED if self.shared else member.name])

    def add_joint(self, width: int) -> None:
        """Maps of every member's features into one space of that width, where there are none yet."""
        if width < 1:
            raise UsageError(f"A shared space of width {width} holds nothing.", where="joint")
        if self.options.get("joint", width) != width:
            raise UsageError(f"The shared space is {self.options['joint']} wide already, not {width}.", where="joint",
                             fix="Leave the width as it is.")
        if not self.maps:
            self.options["joint"] = width
            for member, dim in zip(self.members, self.dims, strict=True):
                self.maps[member.name] = nn.Linear(dim, width, bias=False)
                nn.init.normal_(cast(nn.Linear, self.maps[member.name]).weight, std=dim**-0.5)

    def member(self, x: Tensor, member: Member) -> Tensor:
        """Features of one member, (B, 1, T) -> (B, D_m); zeros where it is missing, which no network sees."""
        there = self.members.there(x)[:, self.members.index(member)]
        if tracing():  # every network sees every row
            return self._encoded(x, member) * there[:, None]
        rows = there.nonzero()[:, 0]
        seen = rows if len(rows) else torch.zeros(1, dtype=torch.int64, device=x.device)  # ranks stay in step
        pooled = self._encoded(x[seen], member)
        if not len(rows):
            pooled = 0 * pooled
        out = pooled.new_zeros(len(x), pooled.shape[1])
        return out.index_copy(0, seen, pooled)

    def _encoded(self, x: Tensor, member: Member) -> Tensor:
        """What the member's network makes of these rows."""
        net = self.encoder(member)
        if not self.shared:
            return net(self.members.normalised(x, member)).pooled
        stem = cast(SetEmbed, net.patch_embed)
        keep = torch.arange(*stem.span(member.name).indices(sum(stem.counts)), device=x.device)
        return net(self._alone(x, member), keep=keep.expand(x.shape[0], -1)).pooled

    def joint(self, x: Tensor, member: Member) -> Tensor:
        """A member in the shared space, on its unit sphere: (B, J); zeros where it is missing."""
        if not self.maps:
            raise UsageError("These towers share no space yet.", where=self.name,
                             fix="Pre-train them with an objective that compares members, e.g. clip.")
        return F.normalize(self.maps[member.name](self.member(x, member)).float(), dim=-1)

    def example(self, count: int, *, seed: int = 0) -> Tensor:
        """Sets of which every member is there; see :meth:`Backbone.example`."""
        if self.shared:
            return cast(Backbone, self.encoders[SHARED]).example(count, seed=seed)
        made = {m.name: self.members.stored(m, self.encoder(m).example(count, seed=seed)) for m in self.members}
        return self.members.pack(torch.ones(count, len(self.members), dtype=torch.bool), made)

    def grid(self, *extent: int) -> tuple[int, ...]:
        """(1,): a set is one token."""
        return (1,)

    def forward(self, x: Tensor, *, keep: Tensor | None = None, mask: Tensor | None = None,
                mask_token: Tensor | None = None) -> Features:
        """(B, 1, T) -> Features; see :meth:`Backbone.forward`."""
        if keep is not None or mask is not None:
            raise self._refuse("masks", "Choose one Transformer for all members, e.g. vit_mini.")
        if x.dim() != 3 or x.shape[1:] != (1, self.members.width):
            raise UsageError(f"{self.name} takes packed sets (B, 1, {self.members.width}).",
                             where=f"shape {tuple(x.shape)}")
        pooled = torch.cat([self.member(x, m) for m in self.members], 1)
        return Features(pooled=pooled, tokens=pooled[:, None], grid=(1,))

    def _alone(self, x: Tensor, member: Member) -> Tensor:
        """Packed samples in which only this member is there."""
        flags = torch.zeros(x.shape[0], len(self.members), device=x.device)
        flags[:, self.members.index(member)] = 1
        return torch.cat([flags, x[:, 0, len(self.members):].float()], 1)[:, None]


def _choose(encoder: str, members: Members) -> dict[str, str]:
    """Name of every member's encoder."""
    pairs = dict(part.split("=", 1) for part in encoder.split(",")) if "=" in encoder else {}
    for name in pairs:
        if name not in members.names:
            raise UsageError(f"There is no member '{name}'.", where="encoder",
                             fix=f"They are {', '.join(members.names)}.")
    return {m.name: pairs.get(m.name) or (encoder if encoder != "auto" and not pairs else _usual(m)) for m in members}


def _usual(member: Member) -> str:
    extent = member.spec.extent
    if len(extent) != 2:
        return "vit_mini"
    return "resnet_tiny" if max(extent) <= 64 else "resnet_mini" if max(extent) <= 128 else "resnet18"
