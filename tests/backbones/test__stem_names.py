"""Tokens of names and cells by hand, and what a network that reads by names must not depend on."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from osteon.backbones import build_backbone
from osteon.backbones._stem_names import PLACES, NameEmbed
from osteon.core.errors import UsageError
from osteon.data._table_names import named_cells, no_columns
from osteon.modalities import find
from osteon.modalities.table import Column
from osteon.parts.cells import CHANNELS, CODES, NAME, TEXT, code_of, piece, without
from osteon.parts.transformer import Mlp
from osteon.parts.types import DataSpec

AGE = Column("body age", "numeric", mean=0.0, sd=1.0)
COLOUR = Column("colour", "categorical", ("red", "dark blue", "green"))
SMOKER = Column("smoker", "binary", ("no", "yes"))
SEX = Column("sex", "binary", ("male", "female"))
EVERY = pytest.mark.parametrize("way", ["cells", "pieces", "units"])


def rows(*cells: tuple[Column, list[str]]) -> torch.Tensor:
    """(B, CHANNELS, K) of columns with their texts."""
    return torch.stack([torch.from_numpy(named_cells(column, texts, frozenset())) for column, texts in cells], 2)


def table() -> torch.Tensor:
    return rows((AGE, ["1.5", "-2", ""]), (COLOUR, ["dark blue", "red", "green"]), (SMOKER, ["yes", "no", ""]),
                (SEX, ["female", "", "male"]))


def stem(way: str) -> NameEmbed:
    torch.manual_seed(0)
    made = NameEmbed(16, way)
    made.initialise()
    return made


def vector(made: NameEmbed, word: str) -> torch.Tensor:
    return made.norm(made.words.weight[piece(word)])


def network(way: str, **options):
    torch.manual_seed(1)
    spec = DataSpec("table", CHANNELS, 4, (0.0,), (1.0,), 1.0, shape=(4,), traits={"names": way})
    return build_backbone("vit_tiny", channels=CHANNELS, size=(4,), dim=16, depth=2, heads=2,
                          **{**find("table").backbone_options(spec), **options}).eval()


def test_a_token_a_cell_by_hand():
    made = stem("cells")
    tokens = made(table())
    name = (vector(made, "body") + vector(made, "age")) / 2
    torch.testing.assert_close(tokens[0, 0], made.align(1.5 * name))
    torch.testing.assert_close(tokens[1, 0], made.align(-2.0 * name))
    three = (vector(made, "colour") + vector(made, "dark") + vector(made, "blue")) / 3
    torch.testing.assert_close(tokens[0, 1], made.align(three))
    torch.testing.assert_close(tokens[0, 2], made.align(vector(made, "smoker")))
    assert tokens[1, 2].abs().sum() == 0  # a no
    torch.testing.assert_close(tokens[2, 3], made.align((vector(made, "sex") + vector(made, "male")) / 2))
    assert made.present(table()).tolist() == [[True] * 4, [True] * 3 + [False], [False, True, False, True]]


def test_a_token_a_piece_by_hand():
    made = stem("pieces")
    tokens, there = made(table()).view(3, 4, NAME + TEXT, 16), made.present(table()).view(3, 4, -1)
    name = (vector(made, "body") + vector(made, "age")) / 2
    torch.testing.assert_close(tokens[0, 0, 0], made.align(1.5 * name))
    assert there[0].nonzero().tolist() == [[0, 0], [1, 0], [1, NAME], [1, NAME + 1], [2, 0], [3, 0], [3, NAME]]
    torch.testing.assert_close(tokens[0, 1, NAME + 1], made.align(vector(made, "blue")))
    torch.testing.assert_close(tokens[0, 2, 0], made.align(vector(made, "smoker")))
    assert there[1].nonzero().tolist() == [[0, 0], [1, 0], [1, NAME]]  # a no and a missing cell are nothing
    assert tokens[~there].abs().sum() == 0


def test_a_name_and_the_pieces_of_its_cell_by_hand():
    made = stem("units")
    tokens, there = made(table()).view(3, 4, 1 + TEXT, 16), made.present(table()).view(3, 4, -1)

    def placed(word: str, at: int) -> torch.Tensor:
        return made.norm(made.words.weight[piece(word)] * 4 + made.order[at])

    kind = made.kind.weight[0]
    column = (placed("body", 0) + placed("age", 1)) / 2 + kind * made.kind_gate(kind)
    torch.testing.assert_close(tokens[0, 0, 0], made.align(column))
    torch.testing.assert_close(tokens[1, 0, 2], made.align(placed("2", 1) + made.gate(column) * column))  # "-", "2"
    assert [int(n) for n in there[0].sum(1)] == [1 + 3, 1 + 2, 1 + 1, 1 + 1]  # 1.5, dark blue, yes, female
    assert there[2].sum(1).tolist() == [0, 2, 0, 2]


@EVERY
def test_the_order_of_columns_does_not_matter(way):
    net, x = network(way), table()
    with torch.no_grad():
        one, two = net(x).pooled, net(x[:, :, [2, 0, 3, 1]]).pooled
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


@EVERY
def test_names_matter_and_other_columns_run(way):
    net, city = network(way), Column("city", "categorical", ("Ulm", "Bonn"))
    with torch.no_grad():
        other = net(rows((Column("height", "numeric"), ["1.5"]), (city, ["Ulm"])))
        named, renamed = (net(rows((Column(n, "numeric"), ["1.5"]))).pooled for n in ("height", "weight"))
    assert torch.isfinite(other.pooled).all() and not torch.allclose(named, renamed, atol=1e-3)


@EVERY
def test_rows_of_different_tables_do_not_mix(way):
    net = network(way)
    x = torch.cat([rows((AGE, ["1.5"]), (COLOUR, ["red"])), rows((COLOUR, ["green"]), (SMOKER, ["yes"]))])
    with torch.no_grad():
        together, alone = net(x).pooled, torch.cat([net(x[:1]).pooled, net(x[1:]).pooled])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@EVERY
def test_a_missing_cell_is_as_if_its_column_were_not_there(way):
    net, x = network(way), table()
    gone = torch.tensor([[True, False, False, False]] * 3)
    padded = torch.cat([x[:, :, 1:], torch.from_numpy(no_columns(2)).expand(3, -1, -1)], 2)
    with torch.no_grad():
        one, two, three = (net(part).pooled for part in (without(x, gone), x[:, :, 1:], padded))
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one, three, atol=1e-5, rtol=1e-4)


@EVERY
def test_leaving_out_what_no_row_has_changes_nothing(way):
    """Also where a row has nothing at all."""
    net, x = network(way), table()[:, :, [0, 2]]
    x[1] = without(x[1:2], torch.ones(1, 2, dtype=torch.bool))[0]
    with torch.no_grad():
        few, alone = net(x), net(x[:1])
        net.patch_embed.sparse = False
        whole, there = net(x), net.present(x)
    torch.testing.assert_close(few.pooled, whole.pooled, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(few.tokens[0][there[0]], whole.tokens[0][there[0]], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(alone.pooled, whole.pooled[:1], atol=1e-5, rtol=1e-4)


def test_places_are_names_and_nothing_else():
    made, x = stem("cells"), table()
    places = made.places(x)
    assert places.shape == (3, 4, PLACES) and torch.equal(places[0], places[2])
    torch.testing.assert_close(places[0, 0], (made.code[piece("body")] + made.code[piece("age")]) / 2)
    torch.testing.assert_close(made.places(x[:, :, [3, 0]])[1], places[1, [3, 0]])
    assert NameEmbed(16, "cells").code.equal(made.code) and stem("units").places(x) is None


def test_errors_and_pictures_of_cells_by_hand():
    made, x = stem("cells"), table()
    shown = made.shown(x)
    assert shown[0].tolist() == [[1.5, 0, 0], [1, 1, code_of("dark blue")], [1, 2, code_of("yes")],
                                 [1, 1, code_of("female")]]
    guess = torch.randn(3, 4, 1 + CODES, generator=torch.Generator().manual_seed(0))
    error = made.shown_error(guess, shown)
    assert float(error[0, 0]) == pytest.approx((float(guess[0, 0, 0]) - 1.5) ** 2, rel=1e-5)
    right = -F.log_softmax(guess[0, 1, 1:], 0)[code_of("dark blue")]
    assert float(error[0, 1]) == pytest.approx(float(right), rel=1e-5)
    drawn = made.assemble(made.shown_values(guess), x)
    assert float(drawn[0, 0, 0]) == float(guess[0, 0, 0]) and int(drawn[0, 3, 1]) == int(guess[0, 1, 1:].argmax())
    assert (made.assemble(made.shown_blank(shown), x)[:, 1] == 1).all()


def test_parts_of_cells_are_not_predicted_and_wrong_rows_are_named():
    for way in ("pieces", "units"):
        with pytest.raises(UsageError, match="names=cells"):
            _ = stem(way).shown_width
    with pytest.raises(UsageError, match="names=units"):
        stem("units")(torch.zeros(1, 2, 4))
    with pytest.raises(UsageError, match="cells, pieces, units"):
        NameEmbed(16, "words")
    with pytest.raises(UsageError, match="names=cells"):
        build_backbone("vit_tiny", channels=2, size=(4,), stem="names", stem_options={"tokens": "cells"})


def test_the_gate_of_the_feed_forward_part_by_hand():
    torch.manual_seed(0)
    mlp, x = Mlp(4, 2.0, gated=True), torch.randn(3, 4)
    want = mlp.fc2(F.gelu(mlp.fc1(x) * torch.sigmoid(x @ mlp.gate.weight[0])[:, None]))
    torch.testing.assert_close(mlp(x), want)
    assert network("pieces").blocks[0].mlp.gate is not None and network("cells").blocks[0].mlp.gate is None
