"""The analyses of ``osteon analyse``: each looks at one thing and says what is healthy, with threshold and source."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from osteon.backbones import build_backbone
from osteon.core import registry
from osteon.core.errors import UsageError
from osteon.evaluators import (
    cka,
    intrinsic_dimension,
    linearity,
    ood,
    signal_propagation,
    utilised_rank,
)
from osteon.evaluators._logistic import Logistic
from osteon.evaluators.label_free import LabelFree
from osteon.evaluators.projection_head import head_report
from osteon.evaluators.spectrum import directions_for, variance_shares
from osteon.parts.real_tokens import RealTokens
from osteon.parts.subsets import holdout
from osteon.parts.taps import taps
from osteon.verbs._analysis_context import BATCH, Context, Finding, Section
from osteon.verbs._analysis_graphs import sources
from osteon.verbs._analysis_masking import masking
from osteon.verbs._model import Trained, extract, fit_samples

#: most rows (tokens or positions) an analysis of a layer looks at, and most samples of a CKA
ROWS, SAMPLES = 4096, 512


def spectrum(c: Context) -> Section:
    """Effective rank and collapse of the features."""
    out = Section("spectrum", "Rank and spectrum of the features")
    x = c.features()
    values = LabelFree()(x, seed=c.seed)
    width = x.shape[1]
    out.findings = [
        Finding("spread of unit-length features over that of evenly spread ones", values["feature_std"],
                values["feature_std"] >= 0.1, ">= 0.1", "0 is collapse, 1 even: SimSiam (2021), section 4.1; the "
                "threshold is osteon's"),
        Finding("effective rank", values["effective_rank"], values["effective_rank"] >= min(0.1 * width, len(x) / 4),
                f">= {min(0.1 * width, len(x) / 4):.3g} (a tenth of the width)",
                "RankMe (2023) has no absolute threshold; this one is osteon's"),
        Finding("RankMe", values["rankme"], None, "higher is better between runs of one recipe",
                "RankMe (2023), eq. 1"),
        Finding("uniformity", values["uniformity"], None, "lower is more uniform",
                "Wang & Isola (2020), section 4.1.2")]
    shares, levels = variance_shares(x), (0.5, 0.9, 0.99)
    out.columns = ["Variance held", "Directions"]
    out.rows = [[f"{level:.0%}", n] for level, n in zip(levels, directions_for(shares, levels), strict=True)]
    out.curve = {"log10 of the share of variance, by direction": [float(math.log10(max(s, 1e-16))) for s in shares]}
    return out


def blocks(model: Trained) -> list[str]:
    """Names of the network's blocks.

    Raises:
        UsageError: towers, whose members each see the sets that have them.
    """
    if model.backbone.kind == "towers":
        raise UsageError("each tower sees only the sets that have its member; analyse a run on one member alone",
                         where=model.name)
    return signal_propagation.block_names(model.backbone)


def layers(c: Context, model: Trained, names: list[str], count: int) -> dict[str, Tensor]:
    """What leaves each block for the first samples, averaged over positions: name -> (count, D)."""
    found: dict[str, list[Tensor]] = {n: [] for n in names}
    model.backbone.eval()
    with torch.no_grad(), taps(model.backbone, names) as seen:
        for start in range(0, count, BATCH):
            x = fit_samples(c.data, model.spec, np.arange(start, min(start + BATCH, count)))
            model.backbone(x)
            real = RealTokens(model.backbone, x)
            for n in names:
                t = seen[n]
                found[n].append(t.mean((2, 3)) if t.dim() == 4 else real.mean(t, real.of(t)) if t.dim() == 3 else t)
    return {n: torch.cat(parts) for n, parts in found.items()}


def similarity(c: Context) -> Section:
    """CKA between neighbouring layers, and with another run."""
    out = Section("cka", "Similarity of layers (CKA)")
    names = blocks(c.model)
    count = min(SAMPLES, len(c.data))
    if count < 4:
        out.skipped = "needs at least 4 samples"
        return out
    mine = layers(c, c.model, names, count)
    table = cka.cka_table(mine, mine)
    steps = [float(table[i, i + 1]) for i in range(len(names) - 1)]
    if steps:
        out.findings.append(Finding("largest CKA of neighbouring blocks", max(steps), max(steps) < 0.995, "< 0.995",
                                    "a block that changes nothing repeats its input; Nguyen et al. (2021) on block "
                                    "structure; the threshold is osteon's"))
    out.columns, out.rows = ["Layer", *names], [[n, *(f"{v:.2f}" for v in row)]
                                                for n, row in zip(names, table, strict=True)]
    if c.against is not None:
        theirs = layers(c, c.against, blocks(c.against), count)
        between = cka.cka_table(mine, theirs)
        out.findings.append(Finding(f"CKA of the last layers with {c.against.name}", float(between[-1, -1]), None,
                                    "1 alike, 0 unrelated", "Kornblith et al. (2019), section 3"))
        out.notes.append(f"with {c.against.name}, layer by layer (its closest): " + ", ".join(
            f"{n} {row.max():.2f} ({list(theirs)[int(row.argmax())]})" for n, row in zip(names, between, strict=True)))
    return out


def block_tokens(c: Context, names: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Rows entering and leaving every block, a random part of all positions: name -> two (R, D)."""
    found: dict[str, tuple[list[Tensor], list[Tensor]]] = {n: ([], []) for n in names}
    per = max(1, math.ceil(ROWS / max(1, math.ceil(len(c.data) / BATCH))))
    rng = np.random.default_rng(c.seed)
    with torch.no_grad(), taps(c.model.backbone.eval(), names) as out, taps(c.model.backbone, names, "input") as into:
        for x in c.batches():
            c.model.backbone(x)
            real = RealTokens(c.model.backbone, x)
            for n in names:
                sides = [t.movedim(1, -1).flatten(0, -2) if t.dim() == 4 else real.take(t) for t in (into[n], out[n])]
                if len(sides[0]) != len(sides[1]):  # the block changes the resolution
                    continue
                rows = torch.from_numpy(rng.permutation(len(sides[0]))[:per])
                for side, kept in zip(sides, found[n], strict=True):
                    kept.append(side[rows])
    order = torch.from_numpy(rng.permutation(ROWS * 2))
    out_ = {}
    for n, (a, b) in found.items():
        if a:
            x, y = torch.cat(a), torch.cat(b)
            shuffled = order[order < len(x)]
            out_[n] = (x[shuffled], y[shuffled])
    return out_


def linear_blocks(c: Context) -> Section:
    """How linear each block is."""
    out = Section("linearity", "Linearity of blocks")
    pairs = block_tokens(c, blocks(c.model))
    wide = {n: x.shape[1] for n, (x, _) in pairs.items()}
    usable = {n: p for n, p in pairs.items() if len(p[0]) >= 4 * wide[n]}
    if not usable:
        out.skipped = "needs four times as many positions as features"
        return out
    scores = {n: linearity.block_scores(*p) for n, p in usable.items()}
    out.columns = ["Block", "With the stream", "Without outlier dimensions", "What the block adds"]
    out.rows = [[n, *(f"{s[k]:.3f}" for k in ("residual", "trimmed", "alone"))] for n, s in scores.items()]
    mean = float(np.mean([s["residual"] for s in scores.values()]))
    most = linearity.most_linear(list(scores.values()))
    top = list(scores)[most]
    out.findings = [
        Finding("mean linearity with the residual stream", mean, None, "about 0.99 in large language models",
                "Razzhigaev et al. (2024), section 3; held-out positions here"),
        Finding(f"most linear block ({top}): what it adds", scores[top]["alone"], scores[top]["alone"] < 0.95, "< 0.95",
                "a block whose own contribution is linear can be replaced by one map: Razzhigaev et al. (2024), "
                "section 5; the threshold is osteon's")]
    return out


def rank_use(c: Context) -> Section:
    """How much of each layer's rank the data use."""
    out = Section("utilised_rank", "Utilised rank of layers")
    rows = utilised_rank.utilised_rank(c.model.backbone.eval(), c.batches(), 0.99)
    mean = float(np.mean([r.share for r in rows]))
    out.columns = ["Layer", "Inputs used", "Outputs used", "Share of full rank"]
    out.rows = [[r.name, f"{r.inputs} of {r.width_in}", f"{r.outputs} of {r.width_out}", f"{r.share:.0%}"]
                for r in rows]
    out.findings = [Finding("mean layer utilisation at 99 % of the second moment", mean, mean >= 0.2, ">= 0.20",
                            "supervised ViT-B/16 uses 35 %, ViT-L/16 20 %, self-supervised ones up to 70 %: Garg et "
                            "al. (2024), abstract")]
    return out


def signal(c: Context) -> Section:
    """How mean and variance of the signal move, in an untrained copy on noise and in the run on its data."""
    out = Section("signal_propagation", "Signal propagation")
    torch.manual_seed(10_000 + c.seed)
    like = c.model.backbone
    untrained = build_backbone(like.name, channels=like.channels, size=like.size, **like.options)
    blocks(c.model)
    # In training mode: batch norm at initialisation means the batch's statistics.
    noise = untrained.example(64, seed=c.seed)
    start = signal_propagation.signal_propagation(untrained.train(), noise)
    now = signal_propagation.signal_propagation(like.eval(), c.images(np.arange(min(256, len(c.data)))))
    out.columns = ["Block", "Squared mean, untrained", "Variance, untrained", "Branch variance, untrained",
                   "Squared mean, now", "Variance, now"]
    out.rows = [[a.name, f"{a.squared_mean:.3g}", f"{a.variance:.3g}", "–" if a.branch is None else f"{a.branch:.3g}",
                 f"{b.squared_mean:.3g}", f"{b.variance:.3g}"] for a, b in zip(start, now, strict=True)]
    out.curve = {"variance, untrained on noise": [a.variance for a in start],
                 "variance, now": [b.variance for b in now]}
    shift = max(a.squared_mean / max(a.variance, 1e-12) for a in start)
    growth = max(a.variance for a in start) / max(min(a.variance for a in start), 1e-12)
    out.findings = [
        Finding("largest squared mean over variance, untrained", shift, shift < 1 if like.kind == "maps" else None,
                "< 1 in convolutional networks", "mean shift grows with "
                "depth in unnormalised ReLU networks: Brock et al. (2021), section 3; the threshold is osteon's"),
        Finding("largest over smallest variance of the blocks, untrained", growth, growth < 1000, "< 1000",
                "doubling in each of 10 blocks: Brock et al. (2021), section 3, on growth without normalisation; the "
                "threshold is osteon's")]
    return out


def head(c: Context) -> Section:
    """What the projection head takes away, by probes on both sides of it."""
    out = Section("projection_head", "Before and after the projection head")
    loaded = _projector(c)
    if isinstance(loaded, str) or c.labels is None:
        out.skipped = loaded if isinstance(loaded, str) else "needs labels"
        return out
    turns = 4 if c.model.spec.modality == "image" else 1
    with torch.inference_mode():
        turned = [[torch.rot90(x, k, (2, 3)) if k else x for k in range(turns)] for x in c.batches()]
        before = torch.cat([c.model.backbone.eval()(torch.cat(four)).pooled for four in turned])
        after = loaded(before)
    quarter = np.concatenate([np.repeat(np.arange(turns), len(four[0])) for four in turned])
    rows = np.concatenate([np.tile(np.arange(i * BATCH, i * BATCH + len(four[0])), turns)
                           for i, four in enumerate(turned)])
    shown, _ = holdout(c.labels, 0.5, c.seed)
    train = np.isin(rows, shown)
    upright = quarter == 0
    both = {"class": head_report(before.numpy()[upright], after.numpy()[upright],
                                 {"class": c.labels[rows][upright]}, train[upright])}
    if turns > 1:
        both["rotation"] = head_report(before.numpy(), after.numpy(), {"rotation": quarter}, train)
    else:
        out.notes.append("a rotation is asked of images only")
    out.columns = ["", "Before the head", "After it"]
    for asked, report in both.items():
        b, a = (report[k][f"probe_{asked}"] for k in ("before", "after"))
        out.rows.append([f"linear probe: {asked}", f"{b:.1%}", f"{a:.1%}"])
        out.findings.append(Finding(f"probe of the {asked}, before less after", b - a, b >= a, ">= 0",
                                    "the head takes on what the loss throws away: Xue et al. (2024), section 4"))
    for key, text in (("effective_rank", "effective rank"), ("unevenness", "variance in the strongest tenth")):
        out.rows.append([text, *(f"{both['class'][k][key]:.3g}" for k in ("before", "after"))])
    return out


def _projector(c: Context) -> torch.nn.Module | str:
    """The run's projection head with its trained weights, or why there is none."""
    made = c.model.meta.get("objective") or {}
    found = c.folder.latest_checkpoint()
    if found is None:
        return "the run keeps no checkpoint, and heads are in checkpoints only"
    try:
        torch.manual_seed(0)
        like = c.model.backbone
        twin = build_backbone(like.name, channels=like.channels, size=like.size, **like.options)
        objective = registry.build("objective", made["name"], twin, c.model.spec, **made.get("options", {}))
        objective.load_state_dict({k[len("objective."):]: v for k, v in found[1].items() if k.startswith("objective.")})
    except Exception as error:  # whatever another version's checkpoint lacks
        return f"the checkpoint does not load: {error}"
    projector = getattr(objective, "projector", None)
    return "this objective has no projection head" if projector is None else projector.eval()


def outliers(c: Context) -> Section:
    """Whether inputs of another source are told apart."""
    out = Section("ood", "Out-of-distribution scores")
    if c.outside is None or c.labels is None:
        out.skipped = "needs labels" if c.outside is not None else "needs another source: --ood SOURCE"
        return out
    x = torch.from_numpy(c.features())
    y = np.asarray(c.labels)
    shown, asked = holdout(y, 0.5, c.seed)
    classes = int(y.max()) + 1
    fitted = Logistic(x[shown], y[shown], classes, 200).fit(1.0)
    away = torch.from_numpy(extract(c.model.backbone, c.outside, c.model.spec))
    out.columns = ["Score", "AUROC", "False positives at 95 %"]
    best = 0.0
    for kind, text in ood.SCORES.items():
        scorer = ood.OODScorer(kind, fitted.weight.T, fitted.bias).fit(x[shown], torch.from_numpy(y[shown]))
        inside, outside = scorer.score(x[asked]), scorer.score(away)
        area = ood.auroc(inside, outside)
        out.rows.append([f"{kind}: {text}", f"{area:.3f}", f"{ood.false_positives(inside, outside):.1%}"])
        best = max(best, area)
    out.findings = [Finding(f"best AUROC against {c.outside.source}", best, best > 0.5, "> 0.5", "chance is 0.5; the "
                            "best of nine looks better than it is. Scores: Li et al. (2024), section 3")]
    out.notes.append("classifier: logistic regression on half of the samples; the other half stands for inside")
    return out


def directions(c: Context) -> Section:
    """The intrinsic dimension of fine-tuning the network on the labels."""
    out = Section("intrinsic_dimension", "Intrinsic dimension of the labels")
    if c.labels is None:
        out.skipped = "needs labels"
        return out
    y = torch.from_numpy(np.asarray(c.labels))
    shown, asked = (torch.from_numpy(v) for v in holdout(y.numpy(), 0.3, c.seed))
    images = torch.cat(list(c.batches()))
    found = intrinsic_dimension.intrinsic_dimension(
        lambda: _Classifier(c.model, int(y.max()) + 1), lambda m: _fit(m, images, y, shown, asked, c), c.directions,
        seed=c.seed)
    out.columns, out.rows = ["Directions", "Accuracy"], [[d, f"{v:.1%}"] for d, v in found.curve.items()]
    out.rows.append([f"all {found.parameters:,}", f"{found.full:.1%}"])
    out.findings = [Finding("directions for 90 % of the full accuracy (nan: none tried sufficed)",
                            float("nan") if found.least is None else found.least, None,
                            "about 750 for a network on MNIST", "Li et al. (2018), section 3")]
    out.notes.append(f"from the run's weights, {c.fit_epochs} passes of Adam in each subspace, one seed; batch-norm "
                     "statistics are frozen")
    return out


class _Classifier(torch.nn.Module):
    """The backbone with an empty classifier, always in eval mode."""

    def __init__(self, model: Trained, classes: int) -> None:
        super().__init__()
        like = model.backbone
        self.backbone = build_backbone(like.name, channels=like.channels, size=like.size, **like.options)
        self.backbone.load_state_dict(like.state_dict())
        self.head = torch.nn.Linear(like.dim, classes)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x).pooled)


def _fit(module: torch.nn.Module, x: Tensor, y: Tensor, shown: Tensor, asked: Tensor, c: Context) -> float:
    inside = isinstance(module, intrinsic_dimension.RandomSubspace)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05 if inside else 1e-3)
    g = torch.Generator().manual_seed(c.seed)
    for _ in range(c.fit_epochs):
        for rows in shown[torch.randperm(len(shown), generator=g)].split(128):
            optimizer.zero_grad()
            F.cross_entropy(module(x[rows]), y[rows]).backward()
            optimizer.step()
    with torch.inference_mode():
        told = torch.cat([module(x[rows]).argmax(1) for rows in asked.split(BATCH)])
    return float((told == y[asked]).double().mean())


#: name -> analysis, in the order of the page; those on request run only when they are asked for by name
ANALYSES: dict[str, Callable[[Context], Section]] = {
    "spectrum": spectrum, "cka": similarity, "linearity": linear_blocks, "utilised_rank": rank_use,
    "signal_propagation": signal, "layer_masking": masking, "projection_head": head, "ood": outliers,
    "feasibility": sources, "intrinsic_dimension": directions}
ON_REQUEST = ("intrinsic_dimension", "feasibility")
