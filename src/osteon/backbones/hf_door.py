"""A vision encoder of transformers as a backbone: ``hf:NAME_OR_FOLDER``.

The name stands for an architecture (its ``config.json``): weights are random unless ``pretrained=True`` is asked for,
which reads safetensors only. ``hf:NAME@REVISION`` takes a branch, tag or commit; weights are those of the commit the
configuration came from, and the code of a repository is never run. Other options overwrite fields of the configuration.
Features are the last hidden state; ``mask`` works where the model takes ``bool_masked_pos`` and has a mask token,
``keep`` never does.
"""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from osteon.backbones._base import Backbone, map_features
from osteon.backbones._hub import split_revision
from osteon.core.errors import MissingExtra, UsageError, nearest
from osteon.core.licences import UNKNOWN, of_card
from osteon.parts.types import Features

try:
    import transformers
except ImportError as error:
    raise MissingExtra("transformers", "hf", why="A backbone named hf:NAME") from error


class HfBackbone(Backbone):
    """A vision model of transformers that takes ``pixel_values``.

    Args:
        name: name on the Hub, by choice with ``@REVISION``, or local folder, without ``hf:``.
        channels: number of input channels.
        size: side of the images in pixels.
        options: ``pretrained`` (False), ``pool`` ("auto": the class token where there is one; "cls"; "mean"), and
            fields of the model's configuration, e.g. ``patch_size``; or ``config``, a whole configuration that
            replaces the one found under the name.
    """

    def __init__(self, name: str, *, channels: int, size: int, options: dict[str, Any]) -> None:
        wishes, (name, self._revision) = dict(options), split_revision(name)
        pretrained, stored = bool(wishes.pop("pretrained", False)), wishes.pop("config", None)
        super().__init__(f"hf:{name}", channels=channels, size=size, options={"pool": wishes.pop("pool", "auto")})
        if self.options["pool"] not in ("auto", "cls", "mean"):
            raise UsageError(f"pool must be auto, cls or mean, not {self.options['pool']!r}.", where=self.name)
        if stored and wishes:
            raise UsageError(f"config is whole; {', '.join(wishes)} cannot be set beside it.", where=self.name)
        config = self._restore(stored) if stored else self._configure(name, wishes, pretrained)
        self.options["config"] = _plain(config)  # so that the network can be rebuilt where the name means nothing
        self.model, accepted = _create(name, config, pretrained, self._revision)
        self._extra = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in accepted else {}
        self._token_name = _mask_token(self.model) if "bool_masked_pos" in accepted else None
        self._note_origin(pretrained, self.name, self._revision or "", _licence(name, self._revision))
        self._measure(getattr(config, "patch_size", None))

    def _configure(self, name: str, changes: dict[str, Any], pretrained: bool) -> Any:
        """The model's configuration with this data's channels and size and the user's options."""
        try:
            pinned = {} if self._revision is None else {"revision": self._revision}
            config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **pinned)
        except (OSError, ValueError) as error:
            raise UsageError(f"transformers finds no configuration for {name!r}: {error}", where="backbone") from error
        self._revision = getattr(config, "_commit_hash", None) or self._revision  # what a branch was at this moment
        config = getattr(config, "vision_config", config)
        for key in changes:
            if not hasattr(config, key) or key in ("num_channels", "image_size"):
                known = [k for k in config.to_dict() if not k.startswith("_")]
                raise UsageError(f"{self.name} has no option {key}.{nearest(key, ['pretrained', 'pool', *known])}",
                                 where="backbone", fix="Options: pretrained, pool and the fields of its config.json.")
        trained_on = getattr(config, "num_channels", None)
        if pretrained and trained_on not in (None, self.channels):
            raise UsageError(f"The weights of {self.name} take {trained_on} channels, the data have {self.channels}.",
                             where="backbone", fix="Convert the images, or set pretrained=false.")
        if not pretrained:
            sizes = {"num_channels": self.channels, "image_size": self.size}
            changes = {**changes, **{k: v for k, v in sizes.items() if hasattr(config, k)}}
        for key, value in changes.items():
            setattr(config, key, value)
        return config

    def _restore(self, stored: dict[str, Any]) -> Any:
        """The inverse of :func:`_plain`."""
        try:
            config = transformers.AutoConfig.for_model(**stored)
        except (TypeError, ValueError) as error:
            raise UsageError(f"This is no configuration of transformers: {error}", where="config") from error
        if getattr(config, "num_channels", self.channels) != self.channels:
            raise UsageError(f"The configuration is for {config.num_channels} channels, the data have {self.channels}.",
                             where="config")
        return config

    def _measure(self, patch: Any) -> None:
        """Learn kind, widths, stride and the number of class and register tokens from one blank image."""
        training = self.training
        self.eval()
        with torch.no_grad():
            last = self._last(torch.zeros(1, self.channels, *self.extent), {})
        self.train(training)
        self._prefix = 0
        self.dim = self.token_dim = last.shape[1] if last.dim() == 4 else last.shape[2]
        if last.dim() == 4:
            self.kind, self.stride = "maps", round(self.extent[0] / last.shape[2])
            self.level_dims, self.level_strides = (self.dim,), (self.stride,)
            return
        self.kind = "tokens"
        patch = patch[0] if isinstance(patch, list | tuple) else patch
        side = self.extent[0] // patch if patch else 0
        if not side or last.shape[1] < side * side:  # the network merges patches on its way, so that the grid of its
            side, self._token_name = math.isqrt(last.shape[1]), None  # own masks is another than that of its tokens
        self._prefix = last.shape[1] - side * side
        self.stride = self.extent[0] // side
        if self.options["pool"] == "cls" and not self._prefix:
            raise UsageError(f"{self.name} has no class token to pool.", where="pool", fix="Set pool=mean.")

    def grid(self, *extent: int) -> tuple[int, ...]:
        """Rows and columns of tokens; for maps, sides that the stride does not divide are rounded up."""
        if self.kind == "tokens":
            return super().grid(*extent)
        return tuple(-(-side // self.stride) for side in extent)

    def forward(self, x: Tensor, *, keep: Tensor | None = None, mask: Tensor | None = None,
                mask_token: Tensor | None = None) -> Features:
        """(B, C, H, W) -> Features; see :meth:`Backbone.forward`."""
        if keep is not None:
            raise self._refuse("keep", "Choose osteon's vit_* or a plain ViT of timm.")
        self._check_images(x)
        if self.kind == "maps":
            if mask is not None:
                raise self._refuse("masks", "Choose osteon's resnet*.")
            last = self._last(x, {})
            return map_features(last, last.mean((2, 3)), [last])
        grid = self.grid(*x.shape[-2:])
        last = self._last(x, self._masking(x, grid, mask, mask_token))
        tokens = last[:, self._prefix:]
        cls = last[:, 0] if self._prefix else None
        mean = cls is None or self.options["pool"] == "mean"
        return Features(pooled=tokens.mean(1) if mean else last[:, 0], tokens=tokens, grid=grid, cls=cls)

    def _masking(self, x: Tensor, grid: tuple[int, ...], mask: Tensor | None,
                 mask_token: Tensor | None) -> dict[str, Any]:
        if mask is None:
            return {}
        if self._token_name is None:
            raise self._refuse("masks", "Choose osteon's vit_* or a plain ViT of timm.")
        self._check_mask(mask, x.shape[0], grid)
        own = self.model.get_parameter(self._token_name)
        return {"bool_masked_pos": mask,
                "token": torch.zeros_like(own) if mask_token is None else mask_token.to(own.dtype).view_as(own)}

    def _last(self, x: Tensor, masking: dict[str, Any]) -> Tensor:
        """The last hidden state; the caller's mask token takes the place of the model's own, with its gradient."""
        swap: dict[str, Tensor] = {str(self._token_name): masking.pop("token")} if "token" in masking else {}
        return functional_call(self.model, swap, (x,), {**self._extra, **masking}).last_hidden_state


def _plain(config: Any) -> dict[str, Any]:
    """A configuration as JSON values, without what features do not depend on."""
    left_out = ("id2label", "label2id", "_name_or_path", "transformers_version")
    return {k: v for k, v in json.loads(config.to_json_string(use_diff=False)).items() if k not in left_out}


def _create(name: str, config: Any, pretrained: bool, revision: str | None) -> tuple[nn.Module, set[str]]:
    """The model without parts that features do not use, and the arguments its forward takes."""
    if type(config) not in transformers.MODEL_MAPPING:
        raise UsageError(f"transformers has no plain model for {type(config).__name__}.", where=f"backbone hf:{name}")
    cls: Any = transformers.MODEL_MAPPING[type(config)]
    takes = inspect.signature(cls.__init__).parameters
    extra = {k: v for k, v in (("add_pooling_layer", False), ("use_mask_token", True)) if k in takes}
    accepted = set(inspect.signature(cls.forward).parameters)
    if "pixel_values" not in accepted:
        raise UsageError(f"{cls.__name__} is not an image model.", where=f"backbone hf:{name}")
    try:
        if pretrained:
            pinned = {} if revision is None else {"revision": revision}
            return cls.from_pretrained(name, config=config, use_safetensors=True, trust_remote_code=False, **pinned,
                                       **extra), accepted
        return cls(config, **extra), accepted
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"transformers cannot build {name}: {error}", where=f"backbone hf:{name}") from error


def _licence(name: str, revision: str | None) -> str:
    """What the model card says, of a local folder or in the cache; nothing is downloaded for it."""
    if Path(name).is_dir():
        return of_card(Path(name))
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "README.md", revision=revision)
    except ValueError:  # a folder that is no longer there
        return UNKNOWN
    return of_card(Path(found).parent) if isinstance(found, str) else UNKNOWN


def _mask_token(model: nn.Module) -> str | None:
    """Name of the model's mask token, which is frozen because the objective brings its own."""
    for name, parameter in model.named_parameters():
        if name.endswith("embeddings.mask_token"):
            parameter.requires_grad_(False)
            return name
    return None
