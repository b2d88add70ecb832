"""How a clip becomes tokens when time is cut otherwise than space: a few frames of a square patch each.

Arnab et al. 2021 (ViViT, arXiv:2103.15691), section 3.2 (tubelet embedding), as in Tong et al. 2022 (VideoMAE).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from osteon.backbones._stems import Stem
from osteon.core.errors import UsageError


def default_sides(extent: Sequence[int]) -> tuple[int, int]:
    """Frames and pixels a side of a tube: 2 frames where they divide, else 1; 16 px from 112, 8 from 64, else 4."""
    frames, height, width = extent
    wanted = 16 if min(height, width) >= 112 else 8 if min(height, width) >= 64 else 4
    return 1 + (frames % 2 == 0), next(p for p in range(wanted, 0, -1) if height % p == 0 and width % p == 0)


class TubeEmbed(Stem):
    """Tubes of ``time`` frames of ``side`` x ``side`` pixels through one linear map: (B, C, T, H, W) -> (B, N, D).

    What a token shows is its pixels, time first, then rows, columns, and channels last.

    Args:
        channels: C.
        extent: (T, H, W).
        dim: width of a token.
        time: frames of a tube; 0 = 2 where they divide the clip, else 1.
        side: pixels of a tube along height and width; 0 = by their number, see :func:`default_sides`.
    """

    def __init__(self, channels: int, extent: Sequence[int], dim: int, *, time: int = 0, side: int = 0) -> None:
        super().__init__()
        if len(extent) != 3 or min(time, side) < 0:
            raise UsageError(f"Samples of {' x '.join(map(str, extent))} are not cut into tubes of {time} frames and "
                             f"{side} pixels.", where="stem", fix="Give clips (T, H, W), and sides of 1 or more.")
        usual = default_sides(extent)
        self.time, self.stride = time or usual[0], side or usual[1]
        self.shown_width = channels * self.time * self.stride**2
        self.proj = nn.Conv3d(channels, dim, (self.time, self.stride, self.stride),
                              stride=(self.time, self.stride, self.stride))
        self.grid(*extent)

    def grid(self, *extent: int) -> tuple[int, ...]:
        """Sides of the grid of tubes (T / time, H / side, W / side)."""
        sides = (self.time, self.stride, self.stride)
        if len(extent) != 3 or any(have % side or not have for have, side in zip(extent, sides, strict=True)):
            raise UsageError(f"Clips of {' x '.join(map(str, extent))} do not divide into tubes of "
                             f"{' x '.join(map(str, sides))}.", where="stem", fix="Set time and side that divide them.")
        return tuple(have // side for have, side in zip(extent, sides, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """Embed."""
        return self.proj(x).flatten(2).transpose(1, 2)

    def shown(self, x: Tensor) -> Tensor:
        """The pixels of every tube, (B, N, time * side * side * C)."""
        t, h, w = self.grid(*x.shape[2:])
        cut = x.reshape(*x.shape[:2], t, self.time, h, self.stride, w, self.stride)
        return cut.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(len(x), t * h * w, -1)

    def assemble(self, shown: Tensor, x: Tensor) -> Tensor:
        """Tubes as a clip again."""
        t, h, w = self.grid(*x.shape[2:])
        cut = shown.reshape(len(shown), t, h, w, self.time, self.stride, self.stride, -1)
        return cut.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(len(shown), -1, *x.shape[2:])

    def note(self) -> str:
        """What a token is."""
        return f"tokens: tubes of {self.time} frame{'s' * (self.time > 1)} of {self.stride} x {self.stride} pixels"

    def initialise(self) -> None:
        """Xavier-uniform, as a linear map on the tube."""
        nn.init.xavier_uniform_(self.proj.weight.view(self.proj.weight.shape[0], -1))
        assert self.proj.bias is not None
        nn.init.zeros_(self.proj.bias)


STEM = TubeEmbed
