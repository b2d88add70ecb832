"""How many small crops, and how large full ones, make sense for images of a size."""

from __future__ import annotations

from osteon.core.errors import UsageError

#: Side in pixels under which a crop shows too little to be told from another image's.
LEAST = 8


def crops_for(n_local: int, crop_min: float, side: int, usual: int) -> tuple[int, float | None, list[str]]:
    """Number of small crops and smallest area share of a full crop, with the rules in words.

    Half of an image under 16 pixels is less than 8: such crops of different images look alike, and what cannot be
    predicted collapses. There the rule gives no small crops, and full ones of at least half the image.

    Args:
        n_local: the user's wish for the number of small crops; -1 = by the rule.
        crop_min: the user's wish for the smallest full crop; 0 = by the rule.
        side: side of a full crop in pixels.
        usual: number of small crops for images that are large enough.

    Returns:
        The number, the share (None: the view recipe's own rule holds), and notes to print.
    """
    if n_local < -1:
        raise UsageError(f"{n_local} small crops cannot be made.", where="--set n_local",
                         fix="Give 0 or more, or -1 for the rule.")
    small, notes = side < 2 * LEAST, []
    if n_local < 0:
        n_local = 0 if small else usual
        notes.append(f"n_local = {n_local}: {usual}, or 0 where images are under {2 * LEAST} pixels")
    share = crop_min or (0.5 if small else None)
    if small and not crop_min:
        notes.append(f"crop_min = 0.5: images are under {2 * LEAST} pixels")
    return n_local, share, notes
