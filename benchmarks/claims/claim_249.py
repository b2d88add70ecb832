"""Claim 249 (VectorFit): singular values and biases, few numbers and changes of full rank."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import torch

from benchmarks.claims._digits import (
    RATES,
    accuracy,
    adapt_to,
    deal,
    digits,
    part,
    photometric,
    plain,
    pretrain,
    sweep,
    train,
    trainables,
)
from benchmarks.claims.kit import Record, spread
from osteon.backbones import Backbone, build_backbone
from osteon.core import registry
from osteon.parts.adapter import Adapter
from osteon.parts.reparam import select_layers

SEEDS = (0, 1, 2, 3, 4)
#: the linear layers of the transformer that are counted
LINEARS = "blocks.*.attn.qkv,blocks.*.mlp.fc1,blocks.*.mlp.fc2"


def run(quick: bool = False) -> Record:
    """Accuracy on the MLP; count and rank on a transformer."""
    record = Record(
        249,
        "VectorFit trains singular values and biases: 9x fewer parameters than PEFT of the day, full-rank updates.",
        "MLP 64-256-256-10 pre-trained on 700 digits (50 epochs), adapted to a photometric shift (half contrast, "
        "offset 0.5, noise 0.1; head frozen), 300 labels, 30 epochs, rate the best of 4 for every arm on 200 "
        "validation images, 5 seeds; ViT of width 192 and 6 blocks on digits (count, rank), 100 steps of the recipe's "
        "rate. Batch 32, the adapters' recipes otherwise.",
        "Count equals formula; >= 7x fewer than LoRA r=8 on the MLP and >= 9x on the ViT's qkv/fc linears with biases "
        "excluded from both; delta rank >= 0.9*min(m,n) where LoRA's is 8; accuracy on the photometric shift >= LoRA "
        "r=8 minus 1.5.")
    seeds, rates, epochs = (SEEDS[:1], RATES[:1], 1) if quick else (SEEDS, RATES, 30)
    scores: dict[str, list[float]] = {"vectorfit": [], "lora": [], "bias": []}
    sizes: dict[str, int] = {}
    for seed in seeds:
        rows = deal(seed, 700, 300, 200)
        base = pretrain(seed, 700, epochs=1 if quick else 50)
        data, val, test = (part(r, photometric, seed, base.spec) for r in rows[1:])
        for name, values in scores.items():
            best = sweep(partial(adapt_to, base, name, seed), data, val, epochs=epochs, seed=seed,
                         rates=rates)
            values.append(accuracy(best.adapter, test))
            sizes[name] = trainables(best.adapter)
    for name, values in scores.items():
        record.say(f"MLP, photometric shift, {name}: {spread(values)} with {sizes[name]} trained numbers")
    formula = sum(min(m.weight.shape) + m.weight.shape[0] for m in select_layers(base.backbone, "auto").values())
    record.check(f"count on the MLP {sizes['vectorfit']} = sum(min(m, n) + m) = {formula}",
                 sizes["vectorfit"] == formula)
    share = sizes["lora"] / sizes["vectorfit"]
    record.check(f"MLP: LoRA r=8 trains {share:.2f} x the numbers (>= 7)", share >= 7)
    gap = float(np.mean(scores["vectorfit"]) - np.mean(scores["lora"]))
    record.check(f"accuracy - LoRA r=8's: {gap:+.1f} points (>= -1.5)", gap >= -1.5)
    transformer(record, steps=5 if quick else 100)
    return record


def transformer(record: Record, *, steps: int) -> None:
    """Count what trains in a ViT and take the rank of what training changed."""
    data = part(np.arange(len(digits()[0])), plain, 0)
    torch.manual_seed(0)
    base = build_backbone("vit_compact", channels=1, size=8, depth=6)
    made: dict[str, Adapter] = {}
    for name in ("vectorfit", "lora"):
        torch.manual_seed(0)
        made[name] = registry.build("adapter", name, base, data.spec, targets=LINEARS)
        train(made[name], data, steps=steps, lr=made[name].recipe["lr"], seed=0)
    layers = select_layers(base, LINEARS)
    counts = {name: trainables(adapter) - adapter.head_size for name, adapter in made.items()}
    formula = sum(min(m.weight.shape) + m.weight.shape[0] for m in layers.values())
    record.check(f"count on the ViT's qkv/fc {counts['vectorfit']} = sum(min(m, n) + m) = {formula}",
                 counts["vectorfit"] == formula)
    biases = sum(p.numel() for n, p in made["vectorfit"].trainable().items() if n.endswith("offset"))
    share = counts["lora"] / (counts["vectorfit"] - biases)
    record.say(f"ViT: LoRA r=8 trains {counts['lora']}, VectorFit {counts['vectorfit'] - biases} and {biases} of "
               f"biases ({counts['lora'] / counts['vectorfit']:.1f} x with them)")
    record.check(f"ViT without biases: LoRA r=8 trains {share:.1f} x the numbers (>= 9)", share >= 9)
    full = {name: min(m.weight.shape) for name, m in layers.items()}
    ranks = {name: change_ranks(adapter, base, list(full)) for name, adapter in made.items()}
    least = min(ranks["vectorfit"][name] / full[name] for name in full)
    record.check(f"rank of VectorFit's changes {least:.3f} of min(m, n) at least (>= 0.9)", least >= 0.9)
    found = sorted(set(ranks["lora"].values()))
    record.check(f"rank of LoRA's changes: {found} (8)", found == [8])


def change_ranks(adapter: Adapter, base: Backbone, names: list[str]) -> dict[str, int]:
    """Numerical rank of merged less base weight of every layer, computed in float64."""
    merged, before = copy.deepcopy(adapter).double().merge(), copy.deepcopy(base).double()
    out = {}
    for name in names:
        delta = merged.get_submodule(name).get_parameter("weight") - before.get_submodule(name).get_parameter("weight")
        out[name] = int(torch.linalg.matrix_rank(delta.detach(), rtol=1e-6))
    return out
