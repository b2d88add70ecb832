"""DupMAE: what the decoder may see, what the bag holds, and that all three losses are there."""

from __future__ import annotations

import math

import pytest
import torch
from tests.objectives.texts import SPEC, STEP, N, V, assert_rows_alone_give_the_whole, draws_of, network, shaken, texts

from osteon.core.errors import UsageError
from osteon.objectives.dupmae import DupMAE, bag_error, draw_sight, highest


def make(pool: str = "mean", **options) -> DupMAE:
    return shaken(DupMAE(network(pool=pool), SPEC, **options))


def test_a_place_sees_half_of_the_other_words_never_itself_nor_padding():
    written = texts(*[20] * 300, 5)["text"][:, 0] != 0
    sight = draw_sight(written, 0.5, draws_of(301))
    assert not sight.diagonal(dim1=1, dim2=2).any() and not sight[300, :, 5:].any()
    assert abs(sight[:300].float().sum() / (300 * 20 * 19) - 0.5) < 0.01
    assert not torch.equal(sight[0, 0, 2:], sight[0, 1, 2:])  # drawn anew for every place
    assert not draw_sight(written, 1.0, draws_of(301)).any()


def test_the_bag_by_hand():
    scores = torch.tensor([[9.0, 0.0, 0.0, math.log(2), 0.0]])
    # softmax of the words 3 and 4 over all five: 2 / (e^9 + 5) and 1 / (e^9 + 5); 3 words, two distinct.
    whole = math.exp(9) + 5
    expected = (math.log(whole / 2) + math.log(whole)) / 3
    assert bag_error(scores, torch.tensor([[3, 4, 3, 0]])).item() == pytest.approx(expected, rel=1e-6)
    assert bag_error(scores, torch.tensor([[0, 0, 0, 0]])).item() == 0


def test_highest_scores_are_over_the_words_alone():
    scores = torch.tensor([[[1.0, 5.0], [2.0, 0.0], [9.0, 9.0]]])
    assert highest(scores, torch.tensor([[True, True, False]])).tolist() == [[2.0, 5.0]]
    assert torch.isfinite(highest(scores, torch.tensor([[False, False, False]]))).all()


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_the_three_losses_by_a_loop(pool):
    objective, batch = make(pool, bow_weight=0.5), texts()
    tokens = batch["text"][:, 0].long()
    places, counted, features = objective.read(tokens, draws_of(8))
    again = objective.write(features.pooled, tokens, draws_of(8)).double()
    scores = objective.head(features.tokens).double()
    asked = [(b, p) for b in range(8) for p, c in zip(places[b], counted[b], strict=True) if c]
    hidden = [-scores[b, p].log_softmax(-1)[tokens[b, p]] for b, p in asked]
    wrote = [-again[b, t].log_softmax(-1)[tokens[b, t]] for b in range(8) for t in range(N) if tokens[b, t]]
    bags = []
    for b in range(8):
        n = int((tokens[b] != 0).sum())
        best = scores[b, :n].amax(0).log_softmax(0)
        bags.append(-sum(best[w] for w in set(tokens[b, :n].tolist())) / n)
    loss = objective(batch, STEP)
    assert len(hidden) == sum([6, 6, 4, 2, 6, 1, 6, 3]) and len(wrote) == 111
    for key, values in (("encoder", hidden), ("decoder", wrote), ("bag", bags)):
        torch.testing.assert_close(loss.parts[key], torch.stack(values).mean().float(), rtol=1e-4, atol=1e-5)
    whole = loss.parts["encoder"] + loss.parts["decoder"] + 0.5 * loss.parts["bag"]
    torch.testing.assert_close(loss.total, whole)


def test_the_decoder_reads_the_encoder_through_one_vector_alone():
    objective, tokens = make("cls"), texts(20, 20)["text"][:, 0].long()
    features = objective.read(tokens, draws_of(2))[2]
    features.tokens.retain_grad()
    vector = features.pooled.detach().requires_grad_()
    out = objective.write(vector, tokens, draws_of(2))
    out.square().sum().backward()
    assert vector.grad.abs().sum() > 0 and all(p.grad is None for p in objective.backbone.blocks.parameters())
    assert not torch.allclose(objective.write(torch.zeros_like(vector), tokens, draws_of(2)), out, atol=1e-3)


def test_the_decoder_place_by_place():
    objective, tokens = make(), texts(20)["text"][:, 0].long()
    writer, net = objective.writer, objective.backbone
    vector, words, places = torch.randn(1, 16, generator=torch.Generator().manual_seed(0)), net.stem(
        tokens[:, None].float()), net.positions((N,))
    sight = draw_sight(tokens != 0, 0.5, draws_of(1))
    out = writer(vector, words, places, sight)
    for t in (0, 7, 19):  # attention over the vector and the words in sight alone, without any mask
        key = torch.cat([vector[:, None], (words + places)[:, sight[0, t]]], 1)
        query = vector[:, None] + places[:, t:t + 1]
        x = query + writer.attention(writer.norm_query(query), writer.norm_key(key))
        torch.testing.assert_close(writer.last(x + writer.mlp(writer.norm(x)))[0, 0], out[0, t])


def test_the_decoder_trains_the_encoder():
    objective = make()
    encoded = objective.encode(texts(), draws_of(8))
    encoded["again"].sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in objective.backbone.blocks.parameters())


def test_no_place_of_the_decoder_sees_its_own_word():
    objective, tokens = make(decoder_ratio=0.0), texts(20)["text"][:, 0].long()
    vector = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
    before = objective.write(vector, tokens, draws_of(1))[0]
    tokens[0, 7] = 3 + (tokens[0, 7] - 2) % 10
    moved = (objective.write(vector, tokens, draws_of(1))[0] - before).abs().amax(-1) > 1e-6
    assert moved.tolist() == [t != 7 for t in range(N)]


def test_the_encoder_sees_masks_at_three_tenths():
    objective, seen = make(), []
    objective.backbone.register_forward_hook(lambda _m, args, _out: seen.append(args[0][:, 0].long()))
    tokens = texts()["text"][:, 0].long()
    places, counted, _ = objective.read(tokens, draws_of(8))
    at = torch.zeros_like(tokens, dtype=torch.bool).scatter(1, places, counted)
    assert at.sum() == 34 and torch.equal(seen[0] == 1, at) and torch.equal(seen[0][~at], tokens[~at])


def test_the_retrieval_vector_holds_both_halves():
    objective, x = make(), texts(20, 7)["text"].float()
    whole = objective.embed(x)
    assert whole.shape == (2, 16 + V)
    torch.testing.assert_close(whole[:, :16], objective.backbone(x).pooled)
    scores = objective.head(objective.backbone(x).tokens)
    torch.testing.assert_close(whole[1, 16:], scores[1, :7].amax(0).clamp(min=0))
    few = objective.embed(x, words=2)[:, 16:]
    assert ((few > 0).sum(1) <= 2).all() and few.max() == whole[:, 16:].max()
    assert torch.equal(few[few > 0], whole[:, 16:][few > 0])


def test_rows_gradient_empty_texts_and_pictures():
    objective, batch = make("cls"), texts()
    assert_rows_alone_give_the_whole(objective, batch)
    objective(batch, STEP).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.parameters())
    empty = objective(texts(0, 0), STEP)
    assert empty.total.item() == 0
    first, hidden, output = objective.reconstruct(batch, STEP)
    drawn, pad = hidden == -1, first == 0
    assert drawn.sum() == 34 and torch.equal(hidden[~drawn], first[~drawn]) and torch.equal(output[pad], first[pad])


@pytest.mark.parametrize("options", [{"ratio": 0.0}, {"ratio": 1.0}, {"decoder_ratio": 1.5}])
def test_impossible_options(options):
    with pytest.raises(UsageError, match="share"):
        make(**options)
