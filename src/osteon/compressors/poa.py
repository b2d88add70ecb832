"""POA: go on training with a slice of the network as a second student, so that every size can be cut out of it.

Zhang et al. 2024, arXiv:2408.01031, sections 3.1 to 3.3.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import build_backbone
from osteon.backbones._base import placed_tokens
from osteon.backbones._stem_columns import ColumnEmbed
from osteon.backbones._stem_tubes import TubeEmbed
from osteon.backbones._stems import PatchEmbed, WordEmbed
from osteon.backbones.vit import ViT
from osteon.compressors._distil import RECIPE, need_training_data
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.calibration import Calibration
from osteon.parts.companion import Companion, cosine_momentum
from osteon.parts.compressor import Budget, Compressor, Fit, measure, spent, unmet
from osteon.parts.objective import Objective
from osteon.parts.prototypes import sinkhorn
from osteon.parts.surgery import edits_of
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.views import make_views

if TYPE_CHECKING:
    from osteon.backbones import Backbone

CARD = Card(
    kind="compressor",
    name="poa",
    papers=("POA: Pre-training Once for Models of All Sizes",),
    modalities=("image", "sound", "series", "text", "table", "volume", "video"),
    limits="the places of nodes, points and members of a set are told by a perceptron, and their tokens come from a "
    "network, neither of which has slices",
    differs="A compressor, not an objective, since what it is for is a network within a budget; training starts "
    "from the run's weights. Two global crops: no local crops and no masked patches (iBOT). Two small projection "
    "heads instead of four large ones, plain linear prototypes, a fixed teacher temperature. Depth and width are "
    "drawn for each step from its seed with the paper's weights (3 to 1 for small ones) instead of from a shuffled "
    "list. osteon's vit_* only; on other samples than images the stem and the positions "
    "are sliced like every layer, and padding is neither looked at nor pooled.",
    rows=(26,),
    backbones=("tokens",),
    cost="5 forwards and 3 backwards per image: teacher, student, elastic student on two views",
)

#: heads of attention that stay, and numbers of the blocks that stay
Size = tuple[int, tuple[int, ...]]


class POA(Compressor):
    """Train teacher, student and a random slice of the student together; cut the largest size that fits the budget.

    Args:
        share: weight of the whole student's term, lambda; the slice's two terms weigh 1 - lambda.
        prototypes: of the two projection heads, comma-separated.
        student_temperature: of students' outputs.
        teacher_temperature: of the balanced targets.
        momentum: of the teacher at the start; rises to 1.
        koleo: weight of the term that spreads the students' features.
        augment: recipe of the two views: ``simclr`` or ``byol``.
    """

    recipe: ClassVar[dict[str, Any]] = {**RECIPE, "steps": 2000, "lr": 5e-4, "weight_decay": 0.04, "clip": 1.5,
                                        "collapse_stop": True}

    def __init__(self, *, share: float = 0.8, prototypes: str = "256,512", student_temperature: float = 0.1,
                 teacher_temperature: float = 0.05, momentum: float = 0.992, koleo: float = 0.1,
                 augment: Literal["simclr", "byol"] = "simclr") -> None:
        super().__init__()
        words = [w.strip() for w in str(prototypes).split(",")]
        if not 0 <= share <= 1 or min(student_temperature, teacher_temperature) <= 0 or not 0 <= momentum <= 1 \
                or koleo < 0 or not all(w.isdigit() and int(w) > 1 for w in words):
            raise UsageError("share and momentum lie in [0, 1], temperatures are above 0, koleo is 0 or more and "
                             "prototypes are whole numbers above 1.", where="poa")
        self.share, self.counts, self.momentum, self.koleo = share, [int(w) for w in words], momentum, koleo
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.augment = augment

    def compress(self, backbone: Backbone, budget: Budget, calibration: Calibration, fit: Fit | None,
                 seed: int) -> Backbone:
        """Train all sizes, cut the largest that fits out of the teacher."""
        trainer = self.trainer(fit)
        need_training_data(calibration)
        vit = elastic_vit(backbone)
        size = self.choose(vit, budget)
        objective = Elastic(vit, calibration.spec, self)
        trainer(objective, self.recipe)
        self.notes.append(f"cut out: {len(size[1])} of {len(vit.blocks)} blocks, {size[0]} of {vit.options['heads']} "
                          f"heads; {len(sizes(vit))} sizes were trained")
        return extract_size(cast(ViT, objective.exported()), size)

    def choose(self, vit: ViT, budget: Budget) -> Size:
        """The dearest size within the budget.

        Raises:
            UsageError: even the smallest is beyond it.
        """
        original = measure(vit, latency=budget.unit == "latency")
        costs = {size: spent(extract_size(vit, size), budget.unit) for size in sizes(vit)}
        fit = {size: cost for size, cost in costs.items() if cost <= budget.limit(original)}
        if not fit:
            least = extract_size(vit, min(costs, key=lambda s: costs[s]))
            raise unmet(self.name, budget, original, measure(least, latency=budget.unit == "latency"))
        return max(fit, key=lambda s: fit[s])


def elastic_vit(backbone: Backbone) -> ViT:
    """The backbone, if it is one whose slices are networks.

    Raises:
        UsageError: it is not.
    """
    if not isinstance(backbone, ViT) or edits_of(backbone) or not isinstance(
            backbone.patch_embed, PatchEmbed | TubeEmbed | WordEmbed | ColumnEmbed) or {
            "trunk", "gated"} & set(backbone.options):
        raise UsageError(f"{backbone.name} cannot be sliced as it is.", where="poa",
                         fix="Use an uncompressed vit_* of osteon with attention, whose tokens are patches, words or "
                         "columns.")
    return backbone


def sizes(vit: ViT) -> list[Size]:
    """Every width from 3/8 of the heads and every depth from half of the blocks, small to large."""
    heads, depth = int(vit.options["heads"]), len(vit.blocks)
    return [(h, kept_blocks(depth, d)) for d in range(max(1, -(-depth // 2)), depth + 1)
            for h in range(max(1, -(-3 * heads // 8)), heads + 1)]


def kept_blocks(depth: int, count: int) -> tuple[int, ...]:
    """``floor(linspace(0, depth - 1, count))``: the blocks a network of ``count`` blocks keeps."""
    return tuple(i * (depth - 1) // (count - 1) for i in range(count)) if count > 1 else (0,)


def slice_forward(vit: ViT, x: Tensor, size: Size) -> Tensor:
    """Pooled features (B, w) of a slice, in place: the first channels of every layer, inputs times D / w."""
    heads, blocks = size
    each = vit.dim // int(vit.options["heads"])
    w, up = heads * each, int(vit.options["heads"]) / heads
    (tokens, grid), present = placed_tokens(vit, x, None, None), vit.present(x)
    prefix = vit.prefix(len(x))
    count = prefix.shape[1]
    tokens, attend = vit.looked_at(torch.cat([prefix, tokens], 1)[..., :w], count, present)
    for i in blocks:
        tokens = _slice_block(vit.blocks[i], tokens, w, heads, up, None if attend is None else attend[..., None, :, :])
    return vit.summed_up(_norm(vit.norm, tokens, w), count, grid, present).pooled


def _slice_block(block: Any, x: Tensor, w: int, heads: int, up: float, attend: Tensor | None) -> Tensor:
    part = block.attn.qkv.in_features
    rows = torch.cat([torch.arange(w) + k * part for k in range(3)]).to(x.device)
    hidden = int(block.mlp.fc1.out_features * w / part)
    h = _norm(block.norm1, x, w) * up
    bias = block.attn.qkv.bias
    qkv = F.linear(h, block.attn.qkv.weight[rows][:, :w], None if bias is None else bias[rows])
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(q, k, v, attend).transpose(1, 2).flatten(2)
    out = F.linear(out * up, block.attn.proj.weight[:w, :w], block.attn.proj.bias[:w])
    x = x + block.drop_path(_scaled(block.ls1, out, w), 0)
    h = F.linear(_norm(block.norm2, x, w) * up, block.mlp.fc1.weight[:hidden, :w], block.mlp.fc1.bias[:hidden])
    out = F.linear(F.gelu(h) * up, block.mlp.fc2.weight[:w, :hidden], block.mlp.fc2.bias[:w])
    return x + block.drop_path(_scaled(block.ls2, out, w), 1)


def _norm(norm: nn.LayerNorm, x: Tensor, w: int) -> Tensor:
    """LayerNorm over the channels that are there."""
    return F.layer_norm(x, (w,), norm.weight[:w], norm.bias[:w], norm.eps)


def _scaled(scale: nn.Module, x: Tensor, w: int) -> Tensor:
    gamma = getattr(scale, "gamma", None)
    return x if gamma is None else x * gamma[:w]


@torch.no_grad()
def extract_size(vit: ViT, size: Size) -> ViT:
    """A network of its own that computes what a slice does; factors go into weights, positions into a table."""
    heads, blocks = size
    whole = int(vit.options["heads"])
    if heads == whole and len(blocks) == len(vit.blocks):
        return copy.deepcopy(vit)
    w, up = heads * (vit.dim // whole), whole / heads
    small = cast(ViT, build_backbone(vit.name, channels=vit.channels, size=vit.size, **{
        **vit.options, "dim": w, "heads": heads, "depth": len(blocks), "positions": "learned"}))
    state, source = small.state_dict(), vit.state_dict()
    source["pos_embed"] = vit.positions(vit.grid(*vit.extent))
    for name, target in state.items():
        words = name.split(".")
        if words[0] == "blocks":
            words[1] = str(blocks[int(words[1])])
        value = source[".".join(words)]
        if ".qkv." in name:
            value = torch.cat([value[k * vit.dim:][:w] for k in range(3)])
        if words[0] == "patch_embed":
            value = _slice_stem(vit, value, w)
        elif value.dim() == 2 and words[-1] == "weight":
            value = value[:target.shape[0], :target.shape[1]] * up
        elif words[-1] in ("pos_embed", "cls_token", "reg_token"):
            value = value[..., :w]
        target.copy_(value[:target.shape[0]] if value.dim() != 3 else value)
    return small.eval()


def _slice_stem(vit: ViT, value: Tensor, w: int) -> Tensor:
    """A parameter of the stem for tokens ``w`` wide; word vectors are multiplied by the root of their width."""
    if isinstance(vit.patch_embed, PatchEmbed | TubeEmbed):
        return value[:w]
    return value[..., :w] * (vit.dim / w if isinstance(vit.patch_embed, WordEmbed) else 1) ** 0.5


class Projection(nn.Module):
    """A projection head with its prototypes; a slice's features enter through the first columns.

    Args:
        width: of the whole network's features.
        prototypes: number of outputs.
        hidden: width of the two hidden layers.
        bottleneck: width before the prototypes.
    """

    def __init__(self, width: int, prototypes: int, hidden: int = 256, bottleneck: int = 64) -> None:
        super().__init__()
        self.enter = nn.Linear(width, hidden)
        self.rest = nn.Sequential(nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck))
        self.prototypes = nn.Linear(bottleneck, prototypes, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(B, w) -> cosine with every prototype (B, K)."""
        w = features.shape[1]
        h = F.linear(features * (self.enter.in_features / w), self.enter.weight[:, :w], self.enter.bias)
        return F.linear(F.normalize(self.rest(h), dim=-1), F.normalize(self.prototypes.weight, dim=-1))


class Elastic(Objective):
    """The three branches: EMA teacher, whole student, and a slice of the student drawn anew at each step."""

    def __init__(self, vit: ViT, data: DataSpec, method: POA) -> None:
        super().__init__(vit.requires_grad_(True), data)
        self.method, self.views = method, make_views(method.augment, data)
        self.heads = nn.ModuleList(Projection(vit.dim, k) for k in method.counts)
        self.teacher = Companion(backbone=vit, heads=self.heads)
        self.sizes = sizes(vit)

    def companions(self) -> list[nn.Module]:
        """The teacher."""
        return [self.teacher]

    def exported(self) -> Backbone:
        """The teacher's network, of which every size is cut."""
        return cast("Backbone", self.teacher["backbone"])

    def draw(self, draws: Draws) -> Size:
        """A size; along both axes the smallest is three times as likely as the largest."""
        widths, depths = sorted({h for h, _ in self.sizes}), sorted({len(b) for _, b in self.sizes})
        at = draws.fork("size").shared_rand(2).tolist()
        h, d = (axis[int((torch.linspace(3, 1, len(axis)).cumsum(0) / torch.linspace(3, 1, len(axis)).sum() <= u).sum())
                     if u < 1 else -1] for axis, u in zip((widths, depths), at, strict=True))
        return h, kept_blocks(len(cast(ViT, self.backbone).blocks), d)

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Outputs of every branch and head for both views, and the students' features."""
        vit, teacher, size = cast(ViT, self.backbone), cast(ViT, self.teacher["backbone"]), self.draw(draws)
        out: dict[str, Tensor] = {}
        for v, view in enumerate(self.views(batch[self.data.modality], draws)[:2]):
            whole, part = vit(view.x).pooled, slice_forward(vit, view.x, size)
            with torch.no_grad():
                target = teacher(view.x).pooled
            out |= {f"whole{v}": whole, f"part{v}": part}
            for i, head in enumerate(self.heads):
                out |= {f"student{i}.{v}": head(whole), f"elastic{i}.{v}": head(part)}
                with torch.no_grad():
                    out[f"teacher{i}.{v}"] = cast(nn.ModuleList, self.teacher["heads"])[i](target)
        return {**out, "features": out["whole0"].detach()}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """``lambda CE(T, S) + (1 - lambda) [CE(T, E) + CE(S, E)]``, the last on one view; and KoLeo."""
        m = self.method
        whole, cross, same = _terms(encoded, range(len(self.heads)), m.student_temperature, m.teacher_temperature)
        spread = torch.stack([koleo(encoded[f"{k}{v}"]) for k in ("whole", "part") for v in (0, 1)]).mean()
        total = m.share * whole + (1 - m.share) * (cross + same) + m.koleo * spread
        return Loss(total, {"student": whole.detach(), "elastic": cross.detach(), "same_view": same.detach(),
                            "koleo": spread.detach()})

    def after_step(self, step: Step) -> None:
        """Move the teacher towards the whole student."""
        self.teacher.update(cosine_momentum(self.method.momentum, step), backbone=self.backbone, heads=self.heads)


def _terms(encoded: Mapping[str, Tensor], heads: Sequence[int], student: float,
           teacher: float) -> tuple[Tensor, Tensor, Tensor]:
    """Means over heads and views of teacher to student, teacher to slice (other view), student to slice (same view)."""
    found: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for i in heads:
        for v in (0, 1):
            target = sinkhorn(encoded[f"teacher{i}.{1 - v}"], eps=teacher)
            own = (encoded[f"student{i}.{v}"].detach() / student).softmax(-1)
            part = encoded[f"elastic{i}.{v}"] / student
            found[0].append(cross_entropy(encoded[f"student{i}.{v}"] / student, target))
            found[1].append(cross_entropy(part, target))
            found[2].append(cross_entropy(part, own))
    whole, cross, same = (torch.stack(values).mean() for values in found)
    return whole, cross, same


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over samples of ``-sum target log softmax(logits)``. (B, K), (B, K) -> ()."""
    return -(target * F.log_softmax(logits, -1)).sum(-1).mean()


def koleo(features: Tensor) -> Tensor:
    """``-mean log`` distance of each unit vector to its nearest neighbour in the batch (Sablayrolles et al. 2019)."""
    z = F.normalize(features, dim=-1)
    likeness = z.detach() @ z.detach().T
    likeness.fill_diagonal_(-2)
    return -((z - z[likeness.argmax(1)]).norm(dim=1) + 1e-8).log().mean()
