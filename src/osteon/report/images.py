"""Arrays as pictures inside the page: uint8 images become base64 PNG, so that the file needs nothing beside it."""

from __future__ import annotations

import base64
import io

import numpy as np

from osteon.core.errors import UsageError

#: Longest side of a picture in the page, in pixels; larger ones are reduced.
LONGEST = 160


def viewable(image: np.ndarray) -> np.ndarray:
    """An image (H, W), (H, W, 1) or (H, W, C) as grey (H, W) or colour (H, W, 3).

    Two channels show the first; more than three show the first three.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or 0 in image.shape:
        raise UsageError(f"A picture must be a non-empty uint8 array (H, W, C), not {image.dtype} {image.shape}.",
                         where="report", fix="Scale it to 0..255 and convert it first.")
    if image.ndim == 3:
        image = image[..., :3] if image.shape[2] >= 3 else image[..., 0]
    return np.ascontiguousarray(image)


def data_uri(image: np.ndarray) -> str:
    """A uint8 image (H, W, C) as a ``data:image/png;base64,...`` address."""
    from PIL import Image

    picture = Image.fromarray(viewable(np.asarray(image)))
    if max(picture.size) > LONGEST:
        picture.thumbnail((LONGEST, LONGEST))
    out = io.BytesIO()
    picture.save(out, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")
