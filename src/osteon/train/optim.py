"""Optimisers with the parameter groups pre-training needs: AdamW, Adam, SGD, and our LARS and LAMB."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from osteon.core.errors import UsageError, nearest

OPTIMIZERS = ("adamw", "adam", "sgd", "lars", "lamb")
#: Learned embeddings that carry no weight decay, by the last part of their name (as in BEiT, SimMIM and timm).
EMBEDDINGS = ("cls_token", "dist_token", "mask_token", "pos_embed", "reg_token", "register_tokens",
              "relative_position_bias_table")
_BLOCK = re.compile(r"(?:^|\.)(?:(?:blocks|stages|layers|layer)\.(\d+)|(?:layer|stage)_?(\d+))\.")
_STEM = re.compile(r"(?:^|\.)(?:cls_token|dist_token|reg_token|register_tokens|mask_token|pos_embed|patch_embed|"
                   r"embed|embeddings|stem|conv1|bn1|norm_pre)(?:\.|$)")
_HEAD = re.compile(r"(?:^|\.)(?:decoder|predictor|projector|head|heads|fc|classifier)\w*\.")


class LARS(torch.optim.Optimizer):
    """SGD whose step in each layer is proportional to the layer's weights, for very large batches.

    You et al. 2017, arXiv:1708.03888, Algorithm 1, with the order of SimCLR's and BYOL's code: the gradient (plus
    decay) is scaled by ``trust * |w| / |g + decay w|``, then enters the momentum, then is multiplied by the learning
    rate. Where either norm is zero the scale is 1. Groups with ``adapt=False`` are plain SGD.

    Args:
        params: parameters or groups.
        lr: learning rate.
        weight_decay: decay, added to the gradient before scaling.
        momentum: momentum.
        trust: trust coefficient.
        adapt: whether the layer-wise scale is applied (per group).
    """

    def __init__(self, params: Any, lr: float, *, weight_decay: float = 0.0, momentum: float = 0.9,
                 trust: float = 1e-3, adapt: bool = True) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust,
                                  "adapt": adapt})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step; ``closure`` recomputes the loss and returns it."""
        loss = _evaluate(closure)
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                update = param.grad.add(param, alpha=group["weight_decay"])
                if group["adapt"]:
                    update.mul_(_ratio(param, update, group["trust"]))
                state = self.state[param]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(param)
                velocity = state["momentum"].mul_(group["momentum"]).add_(update)
                param.add_(velocity, alpha=-group["lr"])
        return loss


class LAMB(torch.optim.Optimizer):
    """Adam whose step in each layer is proportional to the layer's weights, for very large batches.

    You et al. 2020, arXiv:1904.00962, Algorithm 2, with bias correction and the identity as scaling function: the step
    is ``lr * |w| / |u| * u`` with ``u = m' / (sqrt(v') + eps) + decay w``. Where either norm is zero the scale is 1.
    Groups with ``adapt=False`` are AdamW.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: decay of the moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled decay.
        adapt: whether the layer-wise scale is applied (per group).
    """

    def __init__(self, params: Any, lr: float, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6,
                 weight_decay: float = 0.0, adapt: bool = True) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "adapt": adapt})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step; ``closure`` recomputes the loss and returns it."""
        loss = _evaluate(closure)
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state.update(step=0, first=torch.zeros_like(param), second=torch.zeros_like(param))
                state["step"] += 1
                first = state["first"].lerp_(param.grad, 1 - beta1)
                second = state["second"].mul_(beta2).addcmul_(param.grad, param.grad, value=1 - beta2)
                root = (second / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
                update = (first / (1 - beta1 ** state["step"])).div_(root).add_(param, alpha=group["weight_decay"])
                if group["adapt"]:
                    update.mul_(_ratio(param, update, 1.0))
                param.add_(update, alpha=-group["lr"])
        return loss


def _evaluate(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _ratio(param: Tensor, update: Tensor, trust: float) -> Tensor:
    """``trust * |param| / |update|``, or 1 where either is zero; () on the device, without waiting for it."""
    weight, size = param.norm(), update.norm()
    return torch.where((weight > 0) & (size > 0), trust * weight / size, torch.ones_like(weight))


def layer_index(name: str) -> int:
    """Which layer a parameter belongs to: 0 the stem, i + 1 block (or residual stage) i, -1 the last one (the head).

    Args:
        name: dotted name, with or without ``backbone.`` before it. Knows ``blocks.3``, ``stages.3``, ``layers.3``,
            ``layer.3`` (from 0) and ``layer4``, ``stage4`` (from 1).
    """
    block = _BLOCK.search(name)
    if _HEAD.search(name[:block.start() + 1] if block else name):
        return -1
    if block:
        return int(block[1]) + 1 if block[1] is not None else int(block[2])
    return 0 if _STEM.search(name) else -1


def make_optimizer(model: nn.Module | Iterable[tuple[str, Tensor]], *, name: str = "adamw", lr: float,
                   weight_decay: float = 0.0, momentum: float = 0.9, betas: tuple[float, float] = (0.9, 0.999),
                   eps: float | None = None, layer_decay: float | None = None, exclude_bias_norm: bool = True,
                   no_weight_decay: Collection[str] = EMBEDDINGS,
                   layer_index: Callable[[str], int] = layer_index) -> torch.optim.Optimizer:
    """Build an optimiser with named parameter groups.

    Every group has ``name``, ``lr_scale`` (its learning rate is ``lr * lr_scale``) and ``weight_decay``.

    Args:
        model: a module or (name, parameter) pairs; parameters that need no gradient are left out.
        name: one of :data:`OPTIMIZERS`.
        lr: learning rate of the last layer.
        weight_decay: decoupled for adamw and lamb, added to the gradient for adam, sgd and lars.
        momentum: of sgd and lars.
        betas: of adam, adamw and lamb.
        eps: of adam, adamw (1e-8 when None) and lamb (1e-6).
        layer_decay: learning rate of each layer as a share of the next one's (Clark et al. 2020; BEiT).
        exclude_bias_norm: biases, norms (one dimension or none) and ``no_weight_decay`` are not decayed, and not
            adapted by lars and lamb.
        no_weight_decay: names, whole or the last part, that are not decayed; a module's own ``no_weight_decay``
            (set or method, as in timm) is added.
        layer_index: layer number of a name, see :func:`layer_index`.

    Raises:
        UsageError: unknown name, impossible numbers, or nothing to train.
    """
    if name not in OPTIMIZERS:
        raise UsageError(f"Unknown optimiser '{name}'.{nearest(name, OPTIMIZERS)}",
                         fix=f"Choose one of {', '.join(OPTIMIZERS)}.")
    _check_numbers(lr=lr, weight_decay=weight_decay, momentum=momentum, betas=betas, layer_decay=layer_decay)
    excluded = set(no_weight_decay)
    if isinstance(model, nn.Module):
        excluded |= _own_exclusions(model)
        model = model.named_parameters()
    unique: dict[int, tuple[str, Tensor]] = {}
    for full, param in model:
        if param.requires_grad:
            unique.setdefault(id(param), (full, param))  # tied weights are trained once, under their first name
    named = list(unique.values())
    if not named:
        raise UsageError("There is nothing to train: no parameter needs a gradient.")
    layers, last = _layers([n for n, _ in named], layer_index) if layer_decay is not None else ([0] * len(named), 0)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for (full, param), layer in zip(named, layers, strict=True):
        plain = exclude_bias_norm and (param.ndim <= 1 or full in excluded or full.rpartition(".")[2] in excluded)
        if (layer, plain) not in groups:
            scale = 1.0 if layer_decay is None else layer_decay ** (last - layer)
            label = "no decay" if plain else "decay"
            groups[layer, plain] = {
                "params": [], "name": label if layer_decay is None else f"layer {layer}, {label}", "lr": lr * scale,
                "lr_scale": scale, "weight_decay": 0.0 if plain else weight_decay,
                **({"adapt": not plain} if name in ("lars", "lamb") else {})}
        groups[layer, plain]["params"].append(param)
    return _build(name, [groups[key] for key in sorted(groups)], lr, momentum, betas, eps)


def _build(name: str, groups: list[dict[str, Any]], lr: float, momentum: float, betas: tuple[float, float],
           eps: float | None) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum)
    if name == "lars":
        return LARS(groups, lr, momentum=momentum)
    if name == "lamb":
        return LAMB(groups, lr, betas=betas, eps=1e-6 if eps is None else eps)
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    return kind(groups, lr=lr, betas=betas, eps=1e-8 if eps is None else eps)


def _check_numbers(*, lr: float, weight_decay: float, momentum: float, betas: tuple[float, float],
                   layer_decay: float | None) -> None:
    rules = {"lr": (lr, math.isfinite(lr) and lr >= 0, "at least 0"),
             "weight_decay": (weight_decay, math.isfinite(weight_decay) and weight_decay >= 0, "at least 0"),
             "momentum": (momentum, 0 <= momentum < 1, "in [0, 1)"),
             "betas": (betas, len(betas) == 2 and all(0 <= b < 1 for b in betas), "two numbers in [0, 1)"),
             "layer_decay": (layer_decay, layer_decay is None or 0 < layer_decay <= 1, "in (0, 1]")}
    for key, (value, fits, rule) in rules.items():
        if not fits:
            raise UsageError(f"{key} must be {rule}, not {value}.", where=key)


def _own_exclusions(model: nn.Module) -> set[str]:
    """Full names from every submodule's ``no_weight_decay``."""
    names: set[str] = set()
    for prefix, module in model.named_modules():
        own = getattr(module, "no_weight_decay", ())
        names |= {f"{prefix}.{n}" if prefix else n for n in (own() if callable(own) else own)}
    return names


def _layers(names: Sequence[str], index: Callable[[str], int]) -> tuple[list[int], int]:
    """Layer number of each name with the head's filled in, and the head's number."""
    # In an objective, everything beside the backbone is a head, whatever its parts are called.
    inside = any(n.startswith("backbone.") for n in names)
    found = [index(n) if not inside or n.startswith("backbone.") or n == "mask_token" else -1 for n in names]
    last = max(found) + 1 if max(found) >= 0 else 0
    return [last if layer < 0 else layer for layer in found], last


def describe_optimizer(optimizer: torch.optim.Optimizer) -> str:
    """The rule of every parameter group, a line each, for the user."""
    lines = [type(optimizer).__name__]
    for group in optimizer.param_groups:
        count = sum(p.numel() for p in group["params"])
        adapt = ", no layer-wise scale" if group.get("adapt") is False else ""
        lines.append(f"  {group.get('name', 'all')}: {len(group['params'])} tensors, {count:,} numbers, "
                     f"lr {group['lr']:.3g}, weight decay {group['weight_decay']:g}{adapt}")
    return "\n".join(lines)


def clip_gradients(params: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients so that their joint L2 norm is at most ``max_norm``; return the norm before, ().

    A norm that is not finite leaves the gradients as they are, so that the parameter at fault can still be named.
    """
    grads = [p.grad for p in params if p.grad is not None]
    if not grads:
        return torch.zeros(())
    norm = nn.utils.get_total_norm(grads)
    if math.isfinite(max_norm):
        factor = torch.where(torch.isfinite(norm), (max_norm / (norm + 1e-6)).clamp(max=1.0), torch.ones_like(norm))
        torch._foreach_mul_(grads, factor)
    return norm


def scaled_lr(base: float, batch: int, per: int = 256, rule: str = "linear") -> tuple[float, str]:
    """Learning rate for a batch size, and the rule in words.

    Linear: Goyal et al. 2017, section 2.1; square root: Krizhevsky 2014, section 5, and SimCLR, appendix B.1.

    Args:
        base: learning rate for a batch of ``per`` samples.
        batch: samples a step.
        per: see ``base``.
        rule: ``"linear"``, ``"sqrt"`` or ``"none"``.
    """
    rules = {"linear": batch / per, "sqrt": math.sqrt(batch / per), "none": 1.0}
    if rule not in rules:
        raise UsageError(f"Unknown rule '{rule}' for the learning rate.{nearest(rule, rules)}",
                         fix="Choose linear, sqrt or none.")
    value = base * rules[rule]
    if rule == "none":
        return value, f"lr={value:.3g}: not scaled with the batch"
    how = f"{batch}/{per}" if rule == "linear" else f"sqrt({batch}/{per})"
    return value, f"lr={value:.3g}: {base:g} x {how}"
