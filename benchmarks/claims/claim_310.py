"""Claim 310 (Secretly Linear): how linear the blocks of a small language model are, and what linearising one costs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.claims.kit import DATA, Record, fit
from osteon.backbones import build_backbone
from osteon.core import registry
from osteon.data import Dataset, open_source
from osteon.evaluators.linearity import Linear, fit_linear, linearity
from osteon.parts.objective import Objective
from osteon.parts.taps import taps
from osteon.parts.types import Draws, Step
from osteon.train.held_out import held_out_loss

STEPS, SEEDS, BATCH, WINDOW, DEPTH = 2500, (0, 1, 2), 32, 64, 6
#: tokens that maps are fitted on (about as many as the authors take), and tokens they are scored on
FITTED, SCORED = 16384, 4096


def run(quick: bool = False) -> Record:
    """Train, fit a linear map to every block on training text, score it on other text, put it in the block's place."""
    record = Record(
        310,
        "Consecutive transformer layers are nearly linear maps of each other (score ~0.99); the most linear blocks can "
        "be removed or linearised at little loss.",
        f"Causal transformer over characters, d=96, {DEPTH} blocks, windows of {WINDOW} of tiny-shakespeare without "
        f"its last tenth, {STEPS} steps of {BATCH} (about 3 minutes of an idle core), {len(SEEDS)} seeds. Maps are "
        f"fitted on {FITTED} tokens of the training text and scored on {SCORED} of the last tenth; the loss is that "
        "of the rest of the last tenth. Inner blocks: all but the first and the last.",
        "Mean score with residual >= 0.9 on held-out tokens; replacing the most linear inner block by its map raises "
        "the loss less than replacing the least linear one (all seeds).")
    with tempfile.TemporaryDirectory() as folder:
        first, last = parts(Path(folder))
        train = open_source(first, cache=False, tokenizer="char", window=WINDOW)
        scored, asked = (open_source(path, like=train.spec, cache=False, limit=8 if quick else None) for path in last)
    means, cheaper = [], []
    for seed in SEEDS[:1] if quick else SEEDS:
        method = trained(train, 5 if quick else STEPS, seed)
        known, held = passing(method, train, FITTED), passing(method, scored, SCORED)
        maps = [fit_linear(*pair) for pair in known]
        score = [linearity(*pair, *other) for pair, other in zip(known, held, strict=True)]
        whole = held_out_loss(method, asked)["cross_entropy"]
        rise = []
        for block, found in enumerate(maps):
            with replaced(method, block, found):
                rise.append(held_out_loss(method, asked)["cross_entropy"] - whole)
        tell(record, seed, whole, score, rise, known, held)
        inner = range(1, DEPTH - 1)
        most, least = max(inner, key=lambda i: score[i]), min(inner, key=lambda i: score[i])
        means.append(float(np.mean(score)))
        cheaper.append(rise[most] < rise[least])
        drawn = int(np.random.default_rng(seed).choice(list(inner)))
        record.say(f"  replaced by its map: the most linear inner block ({most}) {rise[most]:+.3f} nats, a random one "
                   f"({drawn}) {rise[drawn]:+.3f}, the least linear one ({least}) {rise[least]:+.3f}")
    record.check(f"mean score with the residual stream {', '.join(f'{m:.3f}' for m in means)} (>= 0.9 on each seed)",
                 min(means) >= 0.9)
    record.check(f"the most linear inner block costs less than the least linear one on {sum(cheaper)} of "
                 f"{len(cheaper)} seeds (all)", all(cheaper))
    return record


def parts(folder: Path) -> tuple[Path, list[Path]]:
    """The training text; the first tenth of the last tenth, to score on, and the rest of it, to take the loss on."""
    text = (DATA / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    cut = len(text) * 9 // 10
    after = cut + (len(text) - cut) // 10
    found = []
    for name, part in (("train", text[:cut]), ("scored", text[cut:after]), ("asked", text[after:])):
        (folder / name).mkdir()
        found.append(folder / name / "plays.txt")
        found[-1].write_text(part, encoding="utf-8")
    return found[0], found[1:]


def trained(dataset: Dataset, steps: int, seed: int) -> Objective:
    """A causal language model over characters."""
    torch.manual_seed(seed)
    network = build_backbone("vit_tiny", channels=1, size=dataset.spec.extent, dim=96, depth=DEPTH, heads=4,
                             vocabulary=int(dataset.spec.traits["vocabulary"]))
    method: Objective = registry.build("objective", "clm", network, dataset.spec)
    fit(method, dataset, steps=steps, batch_size=BATCH, seed=seed, precision="32", lr=2e-3)
    return method.eval()


@torch.no_grad()
def passing(method: Objective, dataset: Dataset, count: int) -> list[tuple[Tensor, Tensor]]:
    """For every block, ``count`` tokens entering and leaving it, (count, D) each, in the model's own causal pass."""
    rows = np.arange(min(len(dataset), -(-count // WINDOW)))
    batch = dataset.batch(rows)
    with taps(method.backbone, "blocks.*", "input") as into, taps(method.backbone, "blocks.*") as out:
        method.encode(batch, Draws(Step(0, 1), torch.from_numpy(rows), len(rows)))
    return [(into[name].flatten(0, 1)[:count], out[name].flatten(0, 1)[:count]) for name in into]


@contextmanager
def replaced(method: Objective, block: int, by: Linear) -> Iterator[None]:
    """A block's output is the linear map of its input."""
    def instead(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        return by(inputs[0])

    handle = method.backbone.get_submodule(f"blocks.{block}").register_forward_hook(instead)
    try:
        yield
    finally:
        handle.remove()


def tell(record: Record, seed: int, whole: float, score: list[float], rise: list[float],
         known: list[tuple[Tensor, Tensor]], held: list[tuple[Tensor, Tensor]]) -> None:
    """What was measured of every block: also what it adds alone, and without the three widest dimensions."""
    alone = [linearity(x, y - x, a, b - a) for (x, y), (a, b) in zip(known, held, strict=True)]
    trimmed = []
    for (x, y), (a, b) in zip(known, held, strict=True):
        keep = y.double().var(0).argsort(descending=True)[3:]
        trimmed.append(linearity(x, y[:, keep], a, b[:, keep]))
    record.say(f"seed {seed}: {whole:.4f} nats a character held out; score of each block {words(score)}; of what it "
               f"adds {words(alone)}; without its three widest dimensions {words(trimmed)}; rise of the loss when "
               f"replaced {words(rise)}")


def words(values: list[float]) -> str:
    """Numbers with three decimals."""
    return " ".join(f"{v:.3f}" for v in values)
