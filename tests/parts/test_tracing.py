"""No shortcut on values while operations are recorded."""

from __future__ import annotations

import torch

from osteon.parts.tracing import holds, traced, tracing


def test_a_condition_holds_only_where_nothing_is_recorded():
    yes, no = torch.tensor(True), torch.tensor(False)
    assert holds(yes) and not holds(no) and not tracing()
    with traced():
        assert tracing() and not holds(yes) and not holds(no)
        with traced():
            pass
        assert tracing()
    assert holds(yes)


def test_an_error_inside_ends_it_too():
    try:
        with traced():
            raise ValueError
    except ValueError:
        pass
    assert not tracing()
