"""UniTabE: questions and answers by hand, the decoder step by step, and what a hidden cell must not tell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.data import open_source
from osteon.modalities import find
from osteon.objectives.unitabe import UniTabE, answers, prompts
from osteon.parts.cells import BEGIN, END, FIRST_TEXT, covered, piece, pieces, present, texts_of, without
from osteon.parts.losses.supcon import supcon
from osteon.parts.types import Draws, Step
from osteon.parts.words import PAD

DATA = open_source("mixed:train", cache=False, names="units").subset(np.arange(24))
NAMES = [c["name"] for c in DATA.spec.traits["columns"]]
PLACE = NAMES.index("place")


def method(**options) -> UniTabE:
    torch.manual_seed(0)
    network = build_backbone("vit_tiny", channels=DATA.spec.channels, size=DATA.spec.extent, dim=16, depth=1, heads=2,
                             **find("table").backbone_options(DATA.spec))
    return UniTabE(network, DATA.spec, **options)


def batch(rows: int = 12) -> dict[str, torch.Tensor]:
    return DATA.batch(np.arange(rows))


def test_a_question_and_its_answer_by_hand():
    x, at = batch(2)["table"], torch.tensor([[PLACE], [PLACE]])
    assert prompts(x, at)[0, 0].tolist() == [piece("recovery"), piece("place"), *[0] * 7, piece(":")]
    read, wanted = answers(x, at)
    text = texts_of(x)[0, :, PLACE].tolist()
    assert text[0] in {piece(w) for w in ("north", "east", "south", "west")} and text[1:] == [0] * 11
    assert read[0, 0].tolist() == [BEGIN, *text] and wanted[0, 0].tolist() == [text[0], END, *[0] * 11]
    full = torch.zeros(1, x.shape[1], 1)
    full[0, FIRST_TEXT:, 0] = torch.arange(40, 52)
    assert answers(full, torch.zeros(1, 1, dtype=torch.long))[1][0, 0].tolist() == [*range(40, 52), END]


@pytest.mark.parametrize("step", [0, 1, 5])
def test_only_cells_that_are_there_are_hidden_and_one_stays(step):
    objective, x = method(), batch(24)["table"]
    x[3] = without(x[3:4], (torch.arange(14) != 6)[None])[0]  # a row of one cell
    x[4] = without(x[4:5], torch.ones(1, 14, dtype=torch.bool))[0]  # and one of none
    hidden, columns, asked = objective.hide(x, Draws(Step(step, 9), torch.arange(24), 24))
    counts = hidden.sum(1)
    assert (present(x) | ~hidden).all() and 1 <= int(counts.max()) <= 7 and counts[3] == counts[4] == 0
    assert (present(x) & ~hidden).sum(1)[:3].min() >= 1
    assert torch.equal(hidden.gather(1, columns), asked) and asked.shape[1] == min(4, int(counts.max()))
    assert asked.sum(1)[0] == min(4, int(counts[0]))


def test_how_many_are_hidden_changes_from_step_to_step():
    objective, x = method(), batch(24)["table"]
    found = {int(objective.hide(x, Draws(Step(i, 40), torch.arange(24), 24))[0].sum(1).max()) for i in range(40)}
    assert found == set(range(1, 8))


def test_the_value_of_a_hidden_cell_cannot_reach_the_encoder():
    objective, data = method(contrast=0.0).eval(), batch()
    draws = Draws.of(data, Step(3, 9))
    hidden = objective.hide(data["table"], draws)[0]
    changed = {**data, "table": data["table"].clone()}
    other = data["table"].roll(5, 0)
    place = hidden[:, None] & present(other)[:, None]
    value = torch.arange(data["table"].shape[1]) >= FIRST_TEXT
    value[[0, 3]] = True
    changed["table"] = torch.where(place & value[:, None], other, data["table"])
    assert not torch.equal(changed["table"], data["table"])
    with torch.no_grad():
        one, two = objective.encode(data, draws), objective.encode(changed, draws)
    torch.testing.assert_close(one["features"], two["features"])
    assert not torch.allclose(one["error"], two["error"])  # other answers are right


def test_the_decoder_step_by_step():
    decoder = method().decoder
    rng = torch.Generator().manual_seed(2)
    prompt, tokens = torch.randn(1, 3, 16, generator=rng), torch.randn(1, 4, 16, generator=rng)
    asked, there = torch.tensor([[True, True, False]]), torch.tensor([[True, True, True, False]])
    found = []
    for p in range(2):
        match = torch.stack([decoder.ask(prompt[0, p]) @ decoder.answer(tokens[0, m]) for m in range(3)])
        found.append((match.softmax(0)[:, None] * tokens[0, :3]).sum(0))
    weight = torch.stack([decoder.weigh(f)[0] for f in found]).softmax(0)
    start = decoder.start(torch.cat([tokens[0, 0], weight[0] * found[0] + weight[1] * found[1]]))
    hidden, cell = decoder.begin(prompt, asked, tokens, there)
    torch.testing.assert_close(torch.cat([hidden[0, 0], cell[0, 0]]), start)
    words = torch.randn(1, 2, 16, generator=rng)
    whole, _ = decoder(words, (hidden, cell))
    first, state = decoder(words[:, :1], (hidden, cell))
    second, _ = decoder(words[:, 1:], state)
    torch.testing.assert_close(whole, torch.cat([first, second], 1))


def test_the_loss_by_hand():
    """Mean error of all pieces asked for, and plain products of two groups' class tokens."""
    objective, data = method(contrast=0.5).eval(), batch(6)
    data["table"][3] = without(data["table"][3:4], (torch.arange(14) != 6)[None])[0]  # nothing can be asked of this row
    draws = Draws.of(data, Step(1, 9))
    with torch.no_grad():
        encoded = objective.encode(data, draws)
        hidden, columns, asked = objective.hide(data["table"], draws)
        seen = covered(data["table"], hidden)
        read, wanted = answers(data["table"], columns)
        every = torch.ones_like(read, dtype=torch.bool)
        scores = objective.write(seen, objective.backbone(seen), columns, read, every).log_softmax(-1)
        scores = scores.view(*read.shape, -1)
        errors = [-float(scores[b, q, t, wanted[b, q, t]]) for b in range(6) for q in range(columns.shape[1])
                  if asked[b, q] for t in range(13) if wanted[b, q, t] != PAD]
        loss = objective.score(encoded, Step(1, 9))
    assert float(encoded["pieces"].sum()) == len(errors) and encoded["pieces"][3] == 0
    assert float(loss.parts["recovery"]) == pytest.approx(np.mean(errors), rel=1e-4)
    alike = supcon(encoded["z"].flatten(0, 1), torch.arange(6).repeat_interleave(2), 10.0, cosine=False)
    assert float(loss.total) == pytest.approx(np.mean(errors) + 0.5 * float(alike), rel=1e-4)


def test_the_groups_see_only_their_columns():
    objective, data = method(overlap=0.0).eval(), batch(4)
    draws = Draws.of(data, Step(2, 9))
    with torch.no_grad():
        z = objective.encode(data, draws)["z"]
        moved = []
        for column in range(14):
            changed = without(data["table"], (torch.arange(14) == column)[None].expand(4, -1))
            moved.append((objective._parts(changed, draws) - z).abs().amax((0, 2)) > 1e-6)
    first, second = torch.stack(moved).unbind(1)
    assert not (first & second).any() and 3 <= int(first.sum()) <= 4 and 3 <= int(second.sum()) <= 4


def test_what_was_learned_is_written_to_its_end():
    """A cell that always says the same is written out after a few steps of the decoder's own loss."""
    objective, x, at = method(), batch(4)["table"], torch.full((4, 1), PLACE)
    x[:, FIRST_TEXT:, PLACE] = torch.tensor(pieces("far north 7", 12), dtype=torch.float32)
    seen = covered(x, torch.arange(14)[None].expand(4, -1) == PLACE)
    read, wanted = answers(x, at)
    optimiser = torch.optim.Adam(objective.parameters(), lr=2e-2)
    for _ in range(60):
        optimiser.zero_grad()
        scores = objective.write(seen, objective.backbone(seen), at, read, wanted > 0)
        torch.nn.functional.cross_entropy(scores, wanted[wanted > 0]).backward()
        optimiser.step()
    assert objective.eval().fill(x, at)[:, 0].tolist() == [pieces("far north 7", 12)] * 4


def test_it_needs_tables_read_by_units():
    plain = open_source("mixed:train", cache=False).subset(np.arange(4)).spec
    network = build_backbone("vit_tiny", channels=2, size=plain.extent, dim=16, depth=1, heads=2,
                             **find("table").backbone_options(plain))
    with pytest.raises(UsageError, match="names=units"):
        UniTabE(network, plain)
    with pytest.raises(UsageError, match="One column"):
        UniTabE(method().backbone, replace(DATA.spec, shape=(1,), size=1))


@pytest.mark.parametrize("options", [{"ratio": 0.0}, {"ratio": 1.0}, {"questions": 0}, {"partitions": 1},
                                     {"overlap": 2.0}, {"temperature": 0.0}, {"contrast": -1.0}])
def test_bad_options_are_named(options):
    with pytest.raises(UsageError):
        method(**options)


def test_one_row_and_a_row_of_nothing_have_a_loss():
    objective, data = method(), batch(1)
    for gone in (False, True):
        table = without(data["table"], torch.full((1, 14), gone))
        loss = objective({**data, "table": table}, Step(0, 1)).total
        loss.backward()
        assert torch.isfinite(loss)
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in objective.parameters())
