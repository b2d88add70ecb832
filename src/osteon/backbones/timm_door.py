"""Any timm model as a backbone: ``timm:NAME``.

Plain Vision Transformers get the full door (stem, positions, trunk, keep, mask); every other model gives features only
and refuses masks. The name stands for an architecture: weights are random unless ``pretrained=True`` is asked for,
which reads them from timm's source (the local cache first). All other options go to the model's constructor.
``timm:NAME@REVISION`` takes the weights of a branch, tag or commit of the Hub; ``timm:hf_hub:OWNER/NAME[@REVISION]`` is
any repository of the Hub in timm's layout. Pickled weights are read as weights only; no code of a repository is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from osteon.backbones._base import Backbone, map_features, placed_tokens, take_kept
from osteon.backbones._hub import cached_commit, split_revision
from osteon.core.errors import MissingExtra, UsageError, nearest
from osteon.parts.positions import resample
from osteon.parts.types import Features

try:
    import timm
    from timm.layers import PatchEmbed
    from timm.models.vision_transformer import VisionTransformer
except ImportError as error:
    raise MissingExtra("timm", "timm", why="A backbone named timm:NAME") from error

OURS = ("in_chans", "num_classes", "img_size")
#: What a name begins with that is one of the Hub and not of timm.
HUB = ("hf_hub:", "hf-hub:")


class TimmBackbone(Backbone):
    """A timm model, its classifier removed.

    Args:
        name: name of the timm model, tag included, or ``hf_hub:OWNER/NAME``, by choice with ``@REVISION``, without
            ``timm:``.
        channels: number of input channels.
        size: side of the images in pixels.
        options: ``pretrained`` (False) and whatever the model's constructor takes, e.g. ``patch_size``.
    """

    def __init__(self, name: str, *, channels: int, size: int, options: dict[str, Any]) -> None:
        pretrained = bool(options.get("pretrained", False))  # not kept: options describe the architecture alone
        asked, (name, revision) = name, split_revision(name)
        if name.startswith(HUB):
            name, options, source = _from_hub(asked, options)
        else:
            source = _pinned(name, revision) if pretrained else {}
        super().__init__(f"timm:{name}", channels=channels, size=size,
                         options={k: v for k, v in options.items() if k != "pretrained"})
        self.model = _create(name, channels, size, {**self.options, "pretrained": pretrained, **source})
        self.plain = _is_plain(self.model)
        where, revision = split_revision(asked)
        published = getattr(self.model, "pretrained_cfg", None) or {}
        repository = published.get("hf_hub_id")
        commit = cached_commit(split_revision(str(repository))[0], revision) if pretrained and repository else ""
        self._note_origin(pretrained, f"timm:{where}", commit, published.get("license"))
        if self.plain:
            self.kind = "tokens"
            self.dim = self.token_dim = self.model.num_features
            self.stride = self.model.patch_embed.patch_size[0]
            self.notes.append(f"patch {self.stride} x {self.stride} px")
        else:
            self._measure()

    def _measure(self) -> None:
        """Learn kind, widths and strides from one blank image."""
        training = self.training
        self.eval()
        with torch.no_grad():
            out = self(torch.zeros(1, self.channels, *self.extent))
        self.train(training)
        self.kind = "maps" if out.levels else "tokens"
        self.dim, self.token_dim = out.pooled.shape[1], out.tokens.shape[2]
        self.stride = round(self.extent[0] / out.grid[0])
        self.level_dims = tuple(level.shape[1] for level in out.levels)
        self.level_strides = tuple(round(self.extent[0] / level.shape[2]) for level in out.levels)
        self.notes.append("features only: this architecture takes no masks")

    def grid(self, *extent: int) -> tuple[int, ...]:
        """Rows and columns of tokens; for maps, sides that the stride does not divide are rounded up."""
        if self.plain:
            return super().grid(*extent)
        return tuple(-(-side // self.stride) for side in extent)

    def stem(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> patch tokens (B, N, D) without positions."""
        self._need_plain("stem()")
        self._check_images(x)
        self.grid(*x.shape[-2:])
        embed = self.model.patch_embed  # its own forward would insist on the built-in size
        return embed.norm(embed.proj(x).flatten(2).transpose(1, 2))

    def positions(self, grid: tuple[int, ...], x: Tensor | None = None) -> Tensor:
        """(1, N, D): the model's own, interpolated to the grid; zeros where it has none."""
        self._need_plain("positions()")
        if self.model.pos_embed is None:
            return next(self.model.parameters()).new_zeros(1, grid[0] * grid[1], self.token_dim)
        return resample(self.model.pos_embed[:, self._coded_prefix():], self.model.patch_embed.grid_size, grid)

    def prefix(self, batch: int) -> Tensor:
        """Class and register tokens with whatever positions the model gives them: (B, P, D)."""
        self._need_plain("prefix()")
        parts: list[Tensor] = [t for t in (self.model.cls_token, self.model.reg_token) if t is not None]
        if not parts:
            return next(self.model.parameters()).new_zeros(batch, 0, self.token_dim)
        tokens = torch.cat(parts, 1)
        if self._coded_prefix():
            tokens = tokens + self.model.pos_embed[:, :self._coded_prefix()]
        return tokens.expand(batch, -1, -1)

    def trunk(self, tokens: Tensor, *, attend: Tensor | None = None,
              collect: Sequence[int] = ()) -> Tensor | tuple[Tensor, list[Tensor]]:
        """All blocks and the last norm on exactly the tokens given; see :meth:`osteon.backbones.vit.ViT.trunk`."""
        self._need_plain("trunk()")
        depth = len(self.model.blocks)
        if any(not -depth <= i < depth for i in collect):
            raise UsageError(f"{self.name} has blocks 0 to {depth - 1}.", where=f"collect={list(collect)}")
        x, outputs = self.model.norm_pre(self.model.pos_drop(tokens)), []
        per_head = attend[:, None] if attend is not None and attend.dim() == 3 else attend
        for block in self.model.blocks:
            x = block(x) if per_head is None else block(x, attn_mask=per_head)
            outputs.append(x)
        x = self.model.norm(x)
        return (x, [outputs[i] for i in collect]) if collect else x

    def forward(self, x: Tensor, *, keep: Tensor | None = None, mask: Tensor | None = None,
                mask_token: Tensor | None = None) -> Features:
        """(B, C, H, W) -> Features; see :meth:`Backbone.forward`."""
        if not self.plain:
            if keep is not None or mask is not None:
                raise self._refuse("masks", "Choose a plain ViT of timm, or osteon's own vit_* and resnet*.")
            self._check_images(x)
            return self._features_only(x)
        tokens, grid = placed_tokens(self, x, mask, mask_token)
        return self.finish(tokens if keep is None else take_kept(tokens, keep), grid)

    def finish(self, tokens: Tensor, grid: tuple[int, ...], present: Tensor | None = None) -> Features:
        """Patch tokens with positions (B, K, D) -> trunk with class and register tokens -> the model's own pooling."""
        prefix = self.prefix(tokens.shape[0])
        out = cast(Tensor, self.trunk(torch.cat([prefix.to(tokens.dtype), tokens], 1)))
        pooled = self.model.forward_head(out, pre_logits=True)
        cls = out[:, 0] if self.model.cls_token is not None else None
        return Features(pooled=pooled, tokens=out[:, prefix.shape[1]:], grid=grid, cls=cls)

    def _features_only(self, x: Tensor) -> Features:
        if hasattr(self.model, "forward_intermediates"):
            last, levels = self.model.forward_intermediates(x, output_fmt="NCHW")
        else:
            last, levels = self.model.forward_features(x), []
        pooled = self.model.forward_head(last, pre_logits=True)
        if last.dim() == 3:
            grid = _grid_of(last.shape[1] - self._prefix_count(), x.shape[2], x.shape[3], self.name)
            return Features(pooled=pooled, tokens=last[:, self._prefix_count():], grid=grid)
        if getattr(self.model, "output_fmt", "NCHW") == "NHWC":
            last = last.permute(0, 3, 1, 2)
        return map_features(last, pooled, [*levels[:-1], last] if levels else [last])

    def _coded_prefix(self) -> int:
        """How many prefix tokens share the table of positions."""
        return 0 if self.model.no_embed_class or self.model.pos_embed is None else self.model.num_prefix_tokens

    def _prefix_count(self) -> int:
        return int(getattr(self.model, "num_prefix_tokens", 0))

    def _need_plain(self, what: str) -> None:
        if not self.plain:
            raise self._refuse(what, "Choose a plain ViT of timm, or osteon's own vit_*.")


def _from_hub(name: str, options: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Architecture, options and source of weights of ``hf_hub:OWNER/NAME[@REVISION]``, from its ``config.json``."""
    try:
        source, name, arguments = timm.models.load_model_config_from_hf(name.split(":", 1)[1])
    except Exception as error:  # the Hub's library raises its own, requests' and the file system's errors
        raise UsageError(f"The Hub's configuration cannot be read: {error}", where=f"backbone timm:{name}",
                         fix="Check the name, the revision, the network and the Hub's cache.") from error
    arguments = {k: v for k, v in arguments.items() if k not in OURS}
    return name, {**arguments, **options}, {"pretrained_cfg": source}


def _must_exist(name: str) -> None:
    if not timm.is_model(name.split(".")[0]):
        raise UsageError(f"timm has no model {name!r}.{nearest(name, timm.list_models())}", where="backbone",
                         fix="See timm.list_models().")


def _pinned(name: str, revision: str | None) -> dict[str, Any]:
    """What makes timm take a model's weights at a revision; nothing where none is asked for."""
    if revision is None:
        return {}
    _must_exist(name)
    stated = timm.get_pretrained_cfg(name, allow_unregistered=True)
    repository = None if stated is None else stated.hf_hub_id
    if not repository:
        raise UsageError(f"The weights of {name} do not lie on the Hub, so they have no revision.",
                         where=f"backbone timm:{name}@{revision}", fix="Leave out the revision.")
    return {"pretrained_cfg_overlay": {"hf_hub_id": f"{repository}@{revision}"}}


def _create(name: str, channels: int, size: int, options: dict[str, Any]) -> Any:
    _must_exist(name)
    for key in OURS:
        if key in options:
            raise UsageError(f"{key} follows from the data and cannot be set.", where=f"backbone timm:{name}")
    fixed: dict[str, Any] = {"in_chans": channels, "num_classes": 0}
    try:
        try:
            return timm.create_model(name, **options, **fixed, img_size=size)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return timm.create_model(name, **options, **fixed)  # convolutional: works at any size
    except (TypeError, AssertionError, ValueError, RuntimeError, OSError) as error:
        raise UsageError(f"timm cannot build {name} with {options}: {error}", where=f"backbone timm:{name}") from error


def _is_plain(model: nn.Module) -> bool:
    """Whether the model embeds patches, adds positions and runs blocks exactly as timm's VisionTransformer does."""
    if not isinstance(model, VisionTransformer) or not isinstance(model.patch_embed, PatchEmbed):
        return False
    same = all(getattr(type(model), m) is getattr(VisionTransformer, m) for m in ("_pos_embed", "forward_features"))
    return same and isinstance(model.patch_drop, nn.Identity)


def _grid_of(count: int, height: int, width: int, name: str) -> tuple[int, int]:
    """The grid of ``count`` tokens with the image's aspect ratio."""
    rows = max(1, round((count * height / width) ** 0.5))
    if count % rows:
        raise UsageError(f"{name} gives {count} tokens that form no grid for {height} x {width} pixels.",
                         where="backbone")
    return rows, count // rows
