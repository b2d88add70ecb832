"""UL2: prompts and answers put the text together again, spans are as asked for, and nothing leaks into an answer."""

from __future__ import annotations

import pytest
import torch
from tests.objectives.texts import SPEC, STEP, V, assert_rows_alone_give_the_whole, draws_of, network, shaken, texts

from osteon.core.errors import UsageError
from osteon.objectives.ul2 import UL2, Packed, cut_at_random, pack, span_counts


def make(*denoisers: str, **options) -> UL2:
    return shaken(UL2(network(**options), SPEC, **({"denoisers": denoisers} if denoisers else {})))


def uniform(rows: int, columns: int = 20) -> torch.Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(0))


def test_a_prompt_and_its_answer_by_hand():
    # V = 13 words, room for 2 spans: sentinels 13 and 14, end 15, modes 16 to 18.
    text = torch.tensor([[3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]])
    packed = pack(text, torch.tensor([6]), torch.tensor([[2, 1]]), torch.tensor([[1, 2]]), torch.tensor([2]), 13)
    assert packed.ids.tolist() == [[18, 3, 4, 13, 6, 14, 13, 5, 14, 7, 8, 15, 0, 0]]
    assert packed.prompt.item() == 6 and packed.total.item() == 12
    assert packed.asked()[0].tolist() == [False] * 6 + [True] * 6 + [False] * 2
    assert packed.hidden[0, :6].tolist() == [False, False, True, False, True, True]
    assert packed.places[0, :7].tolist() == [1, 2, 7, 4, 9, 10, 14]


def test_how_much_is_hidden_and_in_how_many_spans():
    assert span_counts(20, 3, 0.15) == (3, 1) and span_counts(100, 3, 0.15) == (15, 5)
    assert span_counts(100, 3, 0.5) == (50, 17) and span_counts(100, 64, 0.5) == (50, 1)
    assert span_counts(100, 0, 0.25) == (25, 1) and span_counts(512, 64, 0.5) == (256, 4)
    assert span_counts(2, 3, 0.5) == (1, 1) and span_counts(2, 3, 0.01) == (1, 1) and span_counts(1, 3, 0.5) == (0, 0)
    assert span_counts(10, 1, 0.9) == (9, 1)  # nine spans would need nine words between them


def test_rows_are_cut_in_every_way_alike():
    lengths = cut_at_random(torch.full((6000,), 4), torch.full((6000,), 2), uniform(6000), 3)
    ways, counts = lengths.unique(dim=0, return_counts=True)
    assert ways.tolist() == [[1, 3, 0], [2, 2, 0], [3, 1, 0]] and (counts / 6000 - 1 / 3).abs().max() < 0.02
    mixed = cut_at_random(torch.tensor([5, 1, 0, 20]), torch.tensor([5, 1, 0, 3]), uniform(4), 5)
    assert mixed[:3].tolist() == [[1] * 5, [1, 0, 0, 0, 0], [0] * 5]
    assert mixed[3].sum() == 20 and (mixed[3, :3] > 0).all() and not mixed[3, 3:].any()


def together(row: list[int], prompt: int, total: int, first: int, end: int) -> list[int]:
    """The text that a prompt and its answer stand for, by reading both."""
    spans: dict[int, list[int]] = {}
    for token in row[prompt:total]:
        if first <= token < end:
            spans[token] = []
            last = token
        elif token != end:
            spans[last].append(token)
    out: list[int] = []
    for token in row[1:prompt]:
        out += spans[token] if first <= token < end else [token]
    return out


@pytest.mark.parametrize("denoiser", ["R:3:0.15", "R:8:0.15", "S:0:0.25", "X:3:0.5", "X:8:0.5", "X:64:0.15", "X:1:0.5"])
def test_prompts_and_answers_put_the_text_together_again(denoiser):
    objective = make(denoiser)
    batch = texts(*[20] * 40, *range(1, 20))
    text, packed = objective.compose(batch["text"], draws_of(59))
    first, end = V, V + objective.spans
    family, mean, rate = denoiser.split(":")
    for b in range(59):
        prompt, total, row = int(packed.prompt[b]), int(packed.total[b]), packed.ids[b].tolist()
        used = text[b][text[b] != 0].tolist()
        assert row[0] == end + 1 + ["R", "S", "X"].index(family)  # the mode token is there
        assert together(row, prompt, total, first, end) == used and total <= 20
        assert all(t == 0 for t in row[total:])
        hidden, spans = span_counts(len(used), float(mean), float(rate))
        assert packed.hidden[b].sum() == hidden
        if spans:
            assert row[total - 1] == end and [t for t in row[1:prompt] if t >= V] == list(range(V, V + spans))
            assert [t for t in row[prompt:total] if t >= V] == [*range(V, V + spans), end]
        whole = batch["text"][b, 0].tolist()
        assert any(whole[i:i + len(used)] == used for i in range(21 - len(used)))
        if family == "S" and spans:
            assert packed.hidden[b, :len(used)].tolist() == [False] * (len(used) - hidden) + [True] * hidden


def test_texts_are_cut_no_more_than_they_must_and_anywhere():
    objective = make("X:3:0.5")
    text, packed = objective.compose(texts(*[20] * 200)["text"], draws_of(200))
    # 14 words: 7 hidden in 2 spans, 14 + 2 * 2 + 2 = 20; 15 words: 8 hidden in 3 spans, 23.
    assert ((text != 0).sum(1) == 14).all() and (packed.total == 20).all()
    whole = torch.arange(3, 23).expand(400, 1, 20)
    starts = objective.compose(whole, draws_of(400))[0][:, 0] - 3
    assert starts.unique().tolist() == list(range(7))
    short, packed = objective.compose(texts(6)["text"], draws_of(1))
    assert torch.equal(short[0], texts(6)["text"][0, 0].long()) and packed.total == 6 + 2 + 2


def test_denoisers_are_drawn_by_their_weights():
    objective = make("R:3:0.15:3", "S:0:0.25:1")
    ids = objective.compose(texts(*[20] * 2000)["text"], draws_of(2000))[1].ids[:, 0] - V - objective.spans - 1
    assert abs((ids == 0).float().mean() - 0.75) < 0.03 and set(ids.tolist()) == {0, 1}
    usual = make()
    ids = usual.compose(texts(*[20] * 2000)["text"], draws_of(2000))[1].ids[:, 0] - V - usual.spans - 1
    assert ((torch.bincount(ids) / 2000 - torch.tensor([2, 1, 4]) / 7).abs() < 0.03).all()


def test_loss_by_a_loop_that_gives_the_network_what_it_may_see():
    objective, batch = make(), texts()
    packed = objective.compose(batch["text"], draws_of(8))[1]
    net, errors = objective.backbone, []
    table = torch.cat([net.patch_embed.proj.weight, objective.signs.weight]) * 4.0  # sqrt(16)
    for b in range(8):
        prompt = int(packed.prompt[b])
        for q in range(prompt, int(packed.total[b])):
            mask = torch.ones(q, q, dtype=torch.bool).tril()
            mask[:, :prompt] = True
            x = table[packed.ids[b, :q]][None] + net.positions((q,))
            scores = objective.head(net.trunk(x, attend=mask))[0, -1].double()
            errors.append(-scores.log_softmax(-1)[packed.ids[b, q]])
    loss = objective(batch, STEP)
    assert objective.encode(batch, draws_of(8))["asked"].sum() == len(errors)
    torch.testing.assert_close(loss.total, torch.stack(errors).mean().float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"pool": "cls", "registers": 2}])
def test_answers_do_not_leak_and_the_prompt_is_read_from_both_sides(options):
    objective = make("S:0:0.25", **options)
    packed = objective.compose(texts(20)["text"], draws_of(1))[1]
    prompt, total = int(packed.prompt), int(packed.total)
    before = objective.predict(packed)[0][0]

    def moved(place: int) -> torch.Tensor:
        ids = packed.ids.clone()
        ids[0, place] = 3 + (ids[0, place] - 2) % 10
        after = objective.predict(Packed(ids, packed.prompt, packed.total, packed.places, packed.hidden))[0][0]
        return (after - before).abs().amax(-1) > 1e-6

    assert moved(prompt - 2)[:total - 1].all()  # the last word of the prompt is seen from its first
    late = moved(prompt + 2)
    assert not late[:prompt + 2].any() and late[prompt + 2:total - 1].all()


def test_nothing_is_asked_of_texts_that_are_too_short():
    objective = make()
    encoded = objective.encode(texts(0, 1, 2), draws_of(3))
    assert encoded["asked"].tolist() == [0, 0, 3] and torch.isfinite(encoded["features"]).all()
    assert objective(texts(0, 1), STEP).total.item() == 0


def test_rows_gradient_and_pictures():
    objective, batch = make(pool="cls", registers=1), texts()
    assert_rows_alone_give_the_whole(objective, batch)
    objective(batch, STEP).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.parameters())
    first, hidden, output = objective.reconstruct(batch, STEP)
    text, packed = objective.compose(batch["text"], draws_of(8))
    assert torch.equal(first[:, 0], text) and torch.equal(hidden[:, 0] == -1, packed.hidden)
    words = objective.predict(packed)[0][..., :V].argmax(-1)
    for b, t in packed.hidden.nonzero().tolist():
        assert output[b, 0, t] == words[b, packed.places[b, t] - 1]
    assert torch.equal(output[:, 0][~packed.hidden], text[~packed.hidden])


def test_the_vocabulary_is_not_touched():
    objective = make()
    assert objective.backbone.shown_width == V and objective.exported() is objective.backbone
    assert objective.head.out_features == V + objective.spans + 1
    assert objective.signs.num_embeddings == objective.spans + 4


@pytest.mark.parametrize("denoisers", [("Q:3:0.15",), ("R:3",), ("R:0.5:0.15",), ("R:3:1.0",), ("R:3:0.1:0",),
                                       ("R:a:b",), ("R:3:0.1:1:1",), ()])
def test_impossible_denoisers(denoisers):
    with pytest.raises(UsageError, match="denoiser"):
        UL2(network(), SPEC, denoisers=denoisers)
