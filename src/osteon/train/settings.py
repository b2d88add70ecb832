"""Every setting of a training run, resolved from the user's wishes, the objective's recipe and stated rules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from osteon.core.errors import UsageError, nearest
from osteon.core.options import Option, settle
from osteon.parts.efficient_train import MAGNITUDES, SIZES


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a run; none is implicit.

    Args:
        steps: optimiser steps.
        batch_size: samples an optimiser step, over all ranks and micro-batches.
        accumulate: micro-batches an optimiser step.
        accumulate_inexact: allow accumulation although BatchNorm then sees micro-batches.
        precision: ``"32"`` or ``"bf16"``.
        channels_last: memory layout of convolutional networks.
        seed: key of all randomness.
        optimizer: adamw, adam, sgd, lars or lamb.
        lr: peak learning rate, already scaled.
        end_lr: learning rate at the end, as a share of the peak.
        schedule: cosine, linear or constant.
        warmup: share of the steps spent warming up.
        weight_decay: decay of weights (never of biases and norms).
        weight_decay_end: decay at the end, by a cosine; negative = constant.
        momentum: momentum of SGD and LARS.
        betas: moments of Adam-like optimisers.
        repeats: copies of each image in a batch, each augmented anew (repeated augmentation, for training on labels).
        layer_decay: factor of the learning rate from each layer to the one below; 1 = off.
        clip: largest gradient norm; 0 = off.
        log_every: steps between lines of metrics.
        monitor_every: steps between checks for collapse.
        checkpoint_every: steps between checkpoints.
        collapse_stop: stop a run whose features collapse.
        curriculum: ``none``, ``lowfreq`` (EfficientTrain: smaller images of low frequencies first) or ``resize``.
        curriculum_sizes: of it, side as a share of the whole one in equal parts of training.
        curriculum_magnitudes: of it, strength of RandAugment in equal parts of training.
        highway: iterations of Highway-BP in place of exact back-propagation through a ViT's trunk, 0 = off: slower on
            one device. The log then has the error of the gradient.
        highway_shift: share of the shortcut that counts as branch in it.
        checkpointing: compute the inside of blocks again in the backward pass instead of keeping it: less memory, more
            time, the same gradients.
        compile: run blocks compiled by ``torch.compile``; compiling takes a minute or more at the start, and on a CPU
            seldom pays.
    """

    steps: int
    batch_size: int
    accumulate: int = 1
    accumulate_inexact: bool = False
    precision: str = "32"
    channels_last: bool = False
    seed: int = 0
    optimizer: str = "adamw"
    lr: float = 1e-3
    end_lr: float = 0.0
    schedule: str = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.05
    weight_decay_end: float = -1.0
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    repeats: int = 1
    layer_decay: float = 1.0
    clip: float = 0.0
    log_every: int = 10
    monitor_every: int = 20
    checkpoint_every: int = 200
    collapse_stop: bool = True
    curriculum: str = "none"
    curriculum_sizes: tuple[float, ...] = SIZES
    curriculum_magnitudes: tuple[float, ...] = MAGNITUDES
    highway: int = 0
    highway_shift: float = 0.2
    checkpointing: bool = False
    compile: bool = False


#: what may be asked for beside the settings themselves: epochs in place of steps, and the batch an lr was published for
_OPTIONS = [Option(f.name, str(f.type), None) for f in fields(TrainSettings)] + [
    Option("epochs", "float", None), Option("lr_per", "int", None)]
#: names of everything that may be asked of training
WISHES = tuple(option.name for option in _OPTIONS)

#: keys of an objective's recipe that describe how the learning rate scales; they are not settings themselves
_SCALING = {"lr_per", "lr_rule"}


def resolve_settings(wishes: Mapping[str, Any], recipe: Mapping[str, Any], samples: int, *,
                     kind: str) -> tuple[TrainSettings, list[str]]:
    """Fill every setting and say how: user's wish, else the objective's recipe, else a rule.

    Args:
        wishes: what the user asked for; None means "not asked". ``epochs`` may stand for ``steps``; with ``lr_per``
            the ``lr`` is that of a batch of so many samples and is scaled by the recipe's rule.
        recipe: the objective's defaults.
        samples: size of the data set.
        kind: kind of the backbone, ``"tokens"`` or ``"maps"``.

    Returns:
        The settings and one printable line for each automatic choice.

    Raises:
        UsageError: for an unknown setting or an impossible value.
    """
    asked = {k: v for k, v in wishes.items() if v is not None}
    for key in asked:
        if key not in WISHES:
            raise UsageError(f"Unknown training setting '{key}'.{nearest(key, WISHES)}", where="--set",
                             fix=f"Known: {', '.join(sorted(WISHES))}.")
    asked = settle(_OPTIONS, asked, where="training")
    if samples < 2:
        raise UsageError(f"Pre-training needs at least 2 samples; this source has {samples}.", where="source",
                         fix="Give more data.")
    values: dict[str, Any] = {k: v for k, v in recipe.items() if k not in _SCALING}
    values.update({k: v for k, v in asked.items() if k not in ("epochs", "lr_per")})
    notes: list[str] = []

    if asked.get("batch_size") is None:
        largest = min(256, samples)
        power = 2 ** int(math.log2(max(2, min(largest, samples // 4 or samples))))
        repeats = max(1, int(values.get("repeats", 1)))
        values["batch_size"] = max(repeats, power - power % repeats)
        notes.append(f"batch_size={values['batch_size']}: largest power of two up to 256 that leaves at least four "
                     f"steps an epoch of {samples} samples" +
                     (f", less what does not divide by repeats={repeats}" if power % repeats else ""))
    batch = int(values["batch_size"])
    if batch < 1:
        raise UsageError(f"batch_size must be at least 1, not {batch}.", where="--batch-size", fix="Leave it out.")
    if batch > samples:
        raise UsageError(f"batch_size={batch} is larger than the {samples} samples of the source.",
                         where="--batch-size", fix=f"Use at most {samples}.")
    per_epoch = samples // batch
    if asked.get("steps") is None:
        epochs = float(asked.get("epochs", 100))
        if not 0 < epochs < math.inf:
            raise UsageError(f"epochs must be above 0, not {epochs:g}.", where="--epochs", fix="Give e.g. 100.")
        steps = max(1, round(epochs * per_epoch))
        if "epochs" not in asked:
            steps = min(steps, 10_000)
            notes.append(f"steps={steps}: 100 epochs of {per_epoch} steps, at most 10,000")
        else:
            notes.append(f"steps={steps}: {epochs:g} epochs of {per_epoch} steps")
        values["steps"] = steps
    elif "epochs" in asked:
        raise UsageError("Give --steps or --epochs, not both.", where="--steps/--epochs",
                         fix="Leave one of them out.")
    if asked.get("lr") is None and "lr" in recipe:
        values["lr"], text = _scale(float(recipe["lr"]), batch, recipe)
        notes.append(text)
    if "lr_per" in asked:
        if "lr" not in asked or asked["lr_per"] < 1:
            raise UsageError("lr_per is the batch, 1 or more, that a given lr belongs to.", where="--set",
                             fix="Give both, e.g. --set lr=5e-3 --set lr_per=2048.")
        values["lr"], text = _scale(float(asked["lr"]), batch, {**recipe, "lr_per": asked["lr_per"]}, whose="the given")
        notes.append(text)
    if asked.get("precision", "auto") == "auto":
        values["precision"], text = default_precision(kind)
        notes.append(text)
    if "channels_last" not in asked:
        values["channels_last"] = kind == "maps"
        notes.append(f"channels_last={values['channels_last']}: on for convolutional backbones")
    values["precision"] = {"bf16-mixed": "bf16", "32-true": "32"}.get(p := str(values["precision"]), p)
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    _check(values)
    return TrainSettings(**values), notes


def _scale(lr: float, batch: int, recipe: Mapping[str, Any], whose: str = "the recipe's") -> tuple[float, str]:
    per, rule = int(recipe.get("lr_per", 0)), str(recipe.get("lr_rule", "linear"))
    if not per:
        return lr, f"lr={lr:g}: {whose}, not scaled with the batch"
    factor = batch / per if rule == "linear" else math.sqrt(batch / per)
    how = "batch" if rule == "linear" else "the square root of the batch"
    return lr * factor, f"lr={lr * factor:.3g}: {whose} {lr:g} for batch {per}, scaled with {how}"


def default_precision(kind: str) -> tuple[str, str]:
    """bf16 where the processor multiplies it natively and the network gains from it, else fp32; with the rule."""
    import torch

    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported():
            return "bf16", "precision=bf16: the GPU supports it"
        return "32", "precision=32: this GPU has no bf16"
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    native = native or getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    if native and kind == "maps":
        return "bf16", "precision=bf16: this CPU multiplies bf16 natively and the backbone is convolutional"
    why = "small Transformers gain nothing from bf16 on a CPU" if native else "this CPU has no native bf16"
    return "32", f"precision=32: {why}"


#: largest value of settings that start at 0
_SPANS = {"lr": math.inf, "end_lr": 1.0, "warmup": 1.0, "weight_decay": math.inf, "clip": math.inf, "momentum": 1.0,
          "layer_decay": 1.0}


def check_seed(seed: int) -> int:
    """The seed, where it is one."""
    if not 0 <= seed < 2**63:
        raise UsageError(f"seed must be 0 or more and below 2^63, not {seed}.", where="--seed", fix="Give e.g. 0.")
    return seed


def _check(values: Mapping[str, Any]) -> None:
    choices = {"precision": ("32", "bf16"), "optimizer": ("adamw", "adam", "sgd", "lars", "lamb"),
               "schedule": ("cosine", "linear", "constant"), "curriculum": ("none", "lowfreq", "resize")}
    for key, allowed in choices.items():
        if key in values and values[key] not in allowed:
            raise UsageError(f"{key}={values[key]!r} is not one of {', '.join(allowed)}."
                             + nearest(str(values[key]), allowed), where=f"--set {key}", fix="Choose one of them.")
    for key in ("steps", "batch_size", "accumulate", "repeats", "log_every", "monitor_every", "checkpoint_every"):
        if int(values.get(key, 1)) < 1:
            raise UsageError(f"{key} must be at least 1, not {values[key]}.", where=key, fix="Leave it out.")
    if int(values.get("highway", 0)) < 0:
        raise UsageError(f"highway must be at least 0, not {values['highway']}.", where="--set highway",
                         fix="Leave it out.")
    for key, most in _SPANS.items():
        if key in values and not (0 <= float(values[key]) <= most and math.isfinite(float(values[key]))):
            span = f"between 0 and {most:g}" if most < math.inf else "0 or more"
            raise UsageError(f"{key} must be {span}, not {values[key]}.", where=f"--set {key}", fix="Leave it out.")
    if not all(0 <= beta < 1 for beta in values.get("betas", ())):
        raise UsageError(f"betas must lie from 0 to below 1, not {values['betas']}.", where="--set betas",
                         fix="Give e.g. [0.9, 0.999].")
    check_seed(int(values.get("seed", 0)))
    if not math.isfinite(float(values.get("weight_decay_end", 0.0))):
        raise UsageError("weight_decay_end must be a finite number.", where="--set weight_decay_end",
                         fix="Leave it out.")
    if int(values["batch_size"]) % int(values.get("accumulate", 1)):
        raise UsageError(f"batch_size={values['batch_size']} cannot be cut into accumulate={values['accumulate']} "
                         "equal micro-batches.", where="--accumulate", fix="Choose a divisor of the batch.")
