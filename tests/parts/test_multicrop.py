from __future__ import annotations

import pytest

from osteon.core.errors import UsageError
from osteon.parts.multicrop import crops_for


@pytest.mark.parametrize(("asked", "side", "expected"), [((-1, 0.0), 32, (4, None)), ((-1, 0.0), 16, (4, None)),
                                                         ((-1, 0.0), 15, (0, 0.5)), ((6, 0.0), 8, (6, 0.5)),
                                                         ((0, 0.3), 224, (0, 0.3)), ((-1, 0.3), 8, (0, 0.3))])
def test_rules_by_the_size_of_the_images(asked: tuple, side: int, expected: tuple):
    count, share, notes = crops_for(*asked, side, usual=4)
    assert (count, share) == expected
    assert any("n_local" in n for n in notes) == (asked[0] < 0)
    assert any("crop_min" in n for n in notes) == (side < 16 and not asked[1])


def test_a_negative_number_is_refused():
    with pytest.raises(UsageError, match="small crops"):
        crops_for(-2, 0.0, 32, usual=4)
