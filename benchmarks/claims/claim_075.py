"""Claim 75 (MEFT): a reversible network keeps the activations of no block."""

from __future__ import annotations

import math
import statistics
import time
from typing import cast
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.claims.claim_055 import PAIR, build, kept_bytes, vit
from benchmarks.claims.kit import Record
from osteon.adapters import meft as rules
from osteon.adapters.meft import MEFT, Reversible, ReversibleBlock
from osteon.core.errors import UsageError
from osteon.verbs._adapt_cost import SavedBytes

BOTTLENECK = 16


def meft(depth: int, lam: float, *, plain: bool) -> MEFT:
    """MEFT on the ViT, the same weights at every call."""
    base = vit(depth)
    torch.manual_seed(1)
    return cast(MEFT, build("meft", base, PAIR, bottleneck=BOTTLENECK, lam=lam, plain=plain))


def stack(adapter: MEFT) -> Reversible:
    """What stands in for the blocks."""
    return next(m for m in adapter.modules() if isinstance(m, Reversible))


def recompute_bytes(depth: int, batch: int = 16) -> tuple[int, int]:
    """Bytes autograd keeps while one block is inverted and differentiated, and those of the four streams it reads."""
    block = cast(ReversibleBlock, stack(meft(depth, 0.5, plain=False)).blocks[-1])
    streams = [torch.randn(batch, 65, 128, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    with SavedBytes(block) as kept:
        block.back(*streams)
    return kept.total, sum(s.nbytes for s in streams)


def gradients(depth: int, lam: float, kind: torch.dtype, *, plain: bool) -> Tensor:
    """Gradient of the adapters on 4 samples as one vector, also where the tool refuses to train."""
    adapter = meft(depth, lam, plain=True).to(kind).train()
    stack(adapter).plain = plain
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2)).to(kind)
    with mock.patch.object(rules, "GAP", math.inf):  # what the tool would refuse is to be measured too
        F.cross_entropy(adapter(images), torch.tensor([0, 1, 0, 1])).backward()
    return torch.cat([cast(Tensor, p.grad).flatten().double() for p in adapter.trainable().values()])


def backward_seconds(depth: int, rounds: int) -> float:
    """CPU time of the backward pass over that of plain autograd on the same function; medians, taken in turn."""
    arms = {plain: meft(depth, 0.5, plain=plain).train() for plain in (False, True)}
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(rounds + 1):
        for plain, adapter in arms.items():
            total = F.cross_entropy(adapter(images), torch.arange(16) % 2)
            begun = time.process_time()
            total.backward()
            times[plain].append(time.process_time() - begun)
    return statistics.median(times[False][1:]) / statistics.median(times[True][1:])


def run(quick: bool = False) -> Record:
    """Count what is kept and compare gradients with plain autograd."""
    record = Record(
        75, "Making a frozen network reversible with adapters removes the stored activations: up to 84% less "
        "activation memory than full fine-tuning at equal GLUE score.",
        "Pre-norm ViT d=128, L in {6,12}, 65 tokens, batch 16, random weights. y1=lambda*x1+F(x2), y2=x2+G(y1), lambda "
        "0.5 (and 0.1 as the known failure), adapters rank 16; gradients against plain autograd on 4 samples, float32 "
        "and float64. lambda 0.1 at L=12, which is refused, is measured by "
        "switching plain autograd and the check of the inverse off afterwards.",
        "At L=12: saved bytes plus the peak recompute of one block <= 0.16 x full (paper: 84% less); held-over bytes "
        "ratio L=12 / L=6 <= 1.05; gradient relative error <= 1e-3 in float32 at L=12 with lambda=0.5, and the tool "
        "must refuse or warn for lambda=0.1 at L=12; backward slowdown reported.")
    held, full, share = {}, {}, {}
    for depth in (6, 12):
        full[depth] = kept_bytes(build("full", vit(depth), PAIR))
        held[depth] = kept_bytes(meft(depth, 0.5, plain=False))
        again, streams = recompute_bytes(depth)
        share[depth] = (held[depth] + again) / full[depth]
        record.say(f"L={depth}: full keeps {full[depth] / 2**20:.2f} MiB, MEFT {held[depth] / 2**20:.2f} MiB "
                   f"({held[depth] / full[depth]:.3f}); one block again {again / 2**20:.2f} MiB, together "
                   f"{share[depth]:.3f}; with the four streams of the inversion "
                   f"{share[depth] + streams / full[depth]:.3f}")
    record.check(f"L=12: kept and one block's recompute {share[12]:.3f} of full (<= 0.16)", share[12] <= 0.16)
    growth = held[12] / held[6]
    record.check(f"kept bytes L=12 / L=6: {growth:.3f} (<= 1.05)", growth <= 1.05)
    errors, own = {}, cast(ReversibleBlock, stack(meft(12, 0.0, plain=False)).blocks[0]).lam
    record.say(f"lambda osteon chooses at L=12: {own}")
    for depth, lam, kind in ((6, 0.1, torch.float32), (12, 0.5, torch.float32), (12, 0.5, torch.float64),
                             (12, 1.0, torch.float32), (12, own, torch.float32), (12, 0.1, torch.float32),
                             (12, 0.1, torch.float64)):
        want, got = (gradients(depth, lam, kind, plain=plain) for plain in (True, False))
        errors[depth, lam, kind] = float((got - want).norm() / want.norm())
        record.say(f"L={depth}, lambda {lam}, {kind}: relative error of the gradient {errors[depth, lam, kind]:.1e}, "
                   f"cosine {float(F.cosine_similarity(got, want, dim=0)):.4f}")
    error = errors[12, 0.5, torch.float32]
    record.check(f"float32, L=12, lambda 0.5: error {error:.1e} (<= 1e-3)", error <= 1e-3)
    refusal = ""
    try:
        meft(12, 0.1, plain=False)
    except UsageError as found:
        refusal = str(found)
    record.check(f"lambda 0.1 at L=12 is refused: {refusal or 'no'}", bool(refusal))
    slow = backward_seconds(12, 1 if quick else 7)
    record.say(f"backward pass at L=12: {slow:.2f} x the CPU time of plain autograd")
    return record
