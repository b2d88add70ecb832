"""Visual query tuning: trained queries read every block of a frozen transformer and change nothing in it.

Tu et al. 2023, arXiv:2212.03220, section 3.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.adapters._tokens import read_layout, refuse
from osteon.adapters.visual_prompt import prompt_bound
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.adapter import RECIPE, Adapter, new_head
from osteon.parts.taps import taps
from osteon.parts.types import DataSpec, Step

if TYPE_CHECKING:
    from osteon.backbones import Backbone

CARD = Card(
    kind="adapter",
    name="vqt",
    papers=("Visual Query Tuning: Towards Effective Usage of Intermediate Representations for Parameter and Memory "
            "Efficient Transfer Learning",),
    modalities=("image", "sound", "series", "table"),
    differs="The frozen tokens run without a graph and only the query rows are traced: the same gradients as the "
    "authors' concatenation, without its memory. Beside the queries' outputs the head reads the backbone's pooled "
    "features, which need not be a class token. Columns are chosen once, half-way, and training goes on with them in "
    "the same run. Blocks must be laid out as in osteon's and timm's plain ViT.",
    rows=(90,),
    backbones=("tokens",),
    labels=True,
    cost="1 forward per image; backward through the query rows alone",
)


def query_block(block: Any, queries: Tensor, tokens: Tensor) -> Tensor:
    """What a frozen pre-norm block makes of query tokens that see its tokens but are not seen by them.

    ``Q' = P + Attn(queries LN P; keys and values LN Z)``, ``Q = Q' + MLP(LN Q')``.

    Args:
        block: laid out as in timm: norm1, attn.qkv, attn.proj, norm2, mlp.
        queries: (T, D) P.
        tokens: (B, M, D) Z, what goes into the block.

    Returns:
        (B, T, D).
    """
    attn, width = block.attn, queries.shape[-1]
    heads = attn.num_heads
    weight, bias = attn.qkv.weight, attn.qkv.bias
    same = nn.Identity()
    q_norm, k_norm = (getattr(attn, name, same) for name in ("q_norm", "k_norm"))
    with torch.no_grad():
        both = F.linear(block.norm1(tokens), weight[width:], None if bias is None else bias[width:])
        k, v = both.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
        k = k_norm(k)
    q = F.linear(block.norm1(queries), weight[:width], None if bias is None else bias[:width])
    q = q_norm(q.unflatten(-1, (heads, -1)).transpose(0, 1)).expand(len(tokens), -1, -1, -1)
    read = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    read = getattr(block, "ls1", same)(attn.proj(getattr(attn, "norm", same)(read)))
    out = queries + read
    return out + getattr(block, "ls2", same)(block.mlp(block.norm2(out)))


def column_norms(weight: Tensor) -> Tensor:
    """L2 norm of each column of a head's weight (K, F) -> (F,): how much each feature counts."""
    return weight.norm(dim=0)


class VQT(Adapter):
    """Train query tokens that read every block, and a head on the backbone's features and all they read.

    Args:
        backbone: pre-trained network.
        task: what is to be told apart.
        queries: query tokens a block.
        dropout: share of the queries' numbers dropped in training.
        group_lasso: weight of the sum of the column norms of the head; 1e-4 in the paper with ``keep`` below 1.
        keep: share of the features kept from half-way on, those with the largest columns in the head.
    """

    recipe: ClassVar = {**RECIPE, "lr": 2e-2}
    mergeable: ClassVar = False
    columns: Tensor

    def __init__(self, backbone: Backbone, task: DataSpec, *, queries: int = 1, dropout: float = 0.1,
                 group_lasso: float = 0.0, keep: float = 1.0) -> None:
        super().__init__(backbone, task)
        if queries < 1 or not 0 <= dropout < 1 or group_lasso < 0 or not 0 < keep <= 1:
            raise UsageError("queries is at least 1, dropout in [0, 1), group_lasso 0 or more and keep in (0, 1], not "
                             f"{queries}, {dropout}, {group_lasso} and {keep}.", where="vqt")
        self.layout = read_layout(self.backbone, "vqt")
        first: Any = self.backbone.get_submodule(self.layout.blocks[0])
        attn = getattr(first, "attn", None)
        if not all(hasattr(first, n) for n in ("norm1", "norm2", "mlp")) or not hasattr(attn, "qkv"):
            raise refuse(backbone, "vqt", "has blocks of another layout than osteon's and timm's ViT")
        self.dropout, self.group_lasso, self.share = dropout, group_lasso, keep
        width, depth = backbone.token_dim, len(self.layout.blocks)
        bound = prompt_bound(backbone.stride, backbone.channels, width)
        self.queries = nn.Parameter(torch.empty(depth, queries, width).uniform_(-bound, bound))
        features = backbone.dim + depth * queries * width
        self.head = new_head(features, task.outputs)
        self.register_buffer("columns", torch.ones(features))

    def expected_trainable(self) -> int:
        """Queries L * T * D, and the head (D + L T D) * K + K."""
        depth, count, width = self.queries.shape
        features = self.backbone.dim + depth * count * width
        return depth * count * width + (features + 1) * self.task.outputs

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D + L T D): pooled features and what the queries read, each chunk of unit length."""
        with torch.no_grad(), taps(self.backbone, self.layout.blocks, kind="input") as seen:
            pooled = self.backbone(images).pooled
        chunks = [pooled]
        for name, queries in zip(self.layout.blocks, self.queries, strict=True):
            block = self.backbone.get_submodule(name)
            queries = F.dropout(queries, self.dropout, self.training)
            chunks.append(query_block(block, queries, seen[name]).flatten(1))
        return torch.cat([F.normalize(chunk, dim=-1) for chunk in chunks], 1) * self.columns

    def state_kept(self) -> dict[str, Tensor]:
        """Which features are kept."""
        return {"columns": self.columns}

    def penalty(self) -> Tensor | None:
        """Group lasso over the columns of the head, until they are chosen, ()."""
        if not self.group_lasso or bool((self.columns == 0).any()):
            return None
        return self.group_lasso * column_norms(self.head.weight).sum()

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Half-way, keep the features that count most."""
        if self.share < 1 and step.index + 1 == math.ceil(step.total / 2):
            count = max(1, round(self.share * len(self.columns)))
            self.columns.zero_()
            self.columns[column_norms(self.head.weight).topk(count).indices] = 1

    def merge(self) -> Backbone:
        """Refused: queries are no weights of the backbone."""
        raise self._refuse_merge()
