"""RTS, C-RTS and SLM: what is exchanged for what, and which tokens the loss is over."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.objectives.rts import RTS, confusion_odds, exchange, exchange_by_cluster
from osteon.parts.types import DataSpec, Draws, Step

STEP, V, N = Step(0, 10, seed=3), 9, 20
SPEC = DataSpec("text", 1, N, (0.0,), (1.0,), 1.0, shape=(N,))


def make(vocabulary: int = V, **options) -> RTS:
    torch.manual_seed(0)
    network = build_backbone("vit_tiny", channels=1, size=(N,), dim=16, depth=1, heads=2, vocabulary=vocabulary)
    return RTS(network, SPEC, **options)


def texts(n: int = 8) -> dict[str, torch.Tensor]:
    words = torch.randint(2, V, (n, N), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    words[::2, 12:] = 0
    return {"text": words[:, None], "index": torch.arange(n)}


def draws_of(n: int) -> Draws:
    return Draws(STEP, torch.arange(n), n)


def test_words_are_exchanged_for_every_other_word_alike_and_never_for_themselves():
    tokens = torch.full((2000, N), 5)
    given, fake = exchange(tokens, 0.15, V, draws_of(2000))
    assert torch.equal(fake, given != tokens) and abs(fake.float().mean() - 0.15) < 0.01
    counts = torch.bincount(given[fake], minlength=V)
    assert counts[[0, 1, 2, 5]].sum() == 0 and (counts[[3, 4, 6, 7, 8]] / counts.sum() - 0.2).abs().max() < 0.02


def test_special_tokens_stay():
    tokens = torch.tensor([[0, 1, 2] * 6 + [3, 4]]).expand(200, -1)
    given, fake = exchange(tokens, 0.9, V, draws_of(200))
    assert torch.equal(given[:, :18], tokens[:, :18]) and not fake[:, :18].any() and fake[:, 18:].any()


def test_two_words_are_exchanged_for_each_other():
    given, fake = exchange(torch.tensor([[3, 4] * 10]), 0.999, 5, draws_of(1))
    assert given[fake].tolist() == [7 - t for t in torch.tensor([[3, 4] * 10])[fake].tolist()]


@pytest.mark.parametrize("task", ["rts", "slm"])
def test_loss_by_a_loop(task):
    objective, batch = make(task=task), texts()
    encoded = objective.encode(batch, draws_of(8))
    tokens = batch["text"][:, 0].long()
    given, fake = exchange(tokens, 0.15, V, draws_of(8))
    scores = objective.head(objective.backbone(given[:, None].float()).tokens)
    errors, hits = [], []
    for b in range(8):
        for i in range(N):
            if task == "rts" and tokens[b, i] > 2:
                errors.append(F.softplus(-scores[b, i, 0] if fake[b, i] else scores[b, i, 0]))
                hits.append(bool(scores[b, i, 0] > 0) == bool(fake[b, i]))
            if task == "slm" and fake[b, i]:
                errors.append(-scores[b, i].log_softmax(-1)[tokens[b, i]])
                hits.append(scores[b, i].argmax() == tokens[b, i])
    loss = objective.score(encoded, STEP)
    torch.testing.assert_close(loss.total, torch.stack(errors).mean())
    assert loss.parts["accuracy"].item() == pytest.approx(sum(map(float, hits)) / len(hits))
    assert encoded["asked"].sum() == len(errors) and not encoded["features"].requires_grad


def test_the_network_sees_the_exchanged_text_and_no_mask():
    objective, seen = make(), []
    objective.backbone.register_forward_hook(lambda _m, args, _out: seen.append(args[0][:, 0].long()))
    objective.encode(texts(), draws_of(8))
    assert torch.equal(seen[0], exchange(texts()["text"][:, 0].long(), 0.15, V, draws_of(8))[0])
    assert not (seen[0] == 1).any()


@pytest.mark.parametrize("task", ["rts", "crts", "slm"])
def test_gradient_reaches_everything_and_the_empty_text_gives_zero(task):
    objective = make(task=task)
    objective(texts(), STEP).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.parameters())
    empty = {"text": torch.zeros(2, 1, N, dtype=torch.int32), "index": torch.arange(2)}
    assert objective(empty, STEP).total.item() == 0


def test_heads():
    assert make().head.out_features == 1 and make(task="slm").head.out_features == V


def test_odds_of_confusion_by_hand():
    counts = torch.tensor([[0, 5, 10], [7, 7, 7], [0, 0, 4]])
    odds = confusion_odds(counts, 2.0, torch.tensor([4, 2, 1]))
    e = torch.tensor([0.0, 1.0, 2.0]).double().exp()
    torch.testing.assert_close(odds[0], e / e.sum())
    torch.testing.assert_close(odds[2], torch.stack([e[0], e[0], e[2]]) / (2 + e[2]))
    torch.testing.assert_close(odds[1], torch.full((3,), 1 / 3).double())  # nothing tells the clusters apart
    empty = confusion_odds(counts, 2.0, torch.tensor([4, 0, 1]))
    torch.testing.assert_close(empty[0], torch.tensor([1.0, 0.0, e[2]]).double() / (1 + e[2]))
    assert (confusion_odds(counts, 0.0, torch.tensor([4, 2, 1])) - 1 / 3).abs().max() < 1e-6


def test_words_come_from_the_cluster_drawn_all_of_it_alike_and_never_the_word_itself():
    # Words 3 to 8 in the clusters {3, 5, 8}, {4}, {6, 7}; the numbers of the special ones do not count.
    clusters = torch.tensor([2, 2, 2, 0, 1, 0, 2, 2, 0])
    odds = torch.tensor([[0.5, 0.2, 0.3], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).double()
    tokens = torch.tensor([3, 4, 6, 0]).repeat_interleave(4000 * 5).view(4000 * 4, 5)
    given, fake, pair = exchange_by_cluster(tokens, 0.5, clusters, odds, draws_of(4000 * 4))
    assert torch.equal(fake, given != tokens) and torch.equal(given[tokens == 0], tokens[tokens == 0])
    three = torch.bincount(given[(tokens == 3) & fake], minlength=V).double()
    expected = torch.tensor([0, 0, 0, 0, 0.2, 0.25, 0.15, 0.15, 0.25]).double()
    assert (three / three.sum() - expected).abs().max() < 0.02
    assert abs(fake[tokens == 3].float().mean() - 0.5) < 0.02
    assert not fake[tokens == 4].any()  # all that its cluster holds
    assert set(given[(tokens == 6) & fake].tolist()) == {7}
    at = (tokens == 3) & fake
    assert torch.equal(pair[at], clusters[given[at]]) and (pair[(tokens == 6) & fake] == 8).all()


def test_what_was_not_noticed_is_counted_once_a_step_and_forgotten_with_the_clusters():
    objective, batch = make(task="crts", clusters=3, recluster=0.5), texts()
    with torch.no_grad():
        objective.head.bias.fill_(-99.0)  # notices nothing
    assert objective.clusters.shape == (V,) and objective.counts.shape == (3, 3)
    assert set(objective.clusters[3:].tolist()) == {0, 1, 2}
    for index in range(3):
        draws = Draws(Step(index, 10, 3), torch.arange(8), 8)
        _, fake, pair = objective.exchanged(batch["text"][:, 0].long(), draws)
        expected = objective.counts + pair[fake].bincount(minlength=9).view(3, 3)
        objective(batch, Step(index, 10, 3))
        objective(batch, Step(index, 10, 3))
        objective.after_step(Step(index, 10, 3))
        assert torch.equal(objective.counts, expected) and fake.any()
    with torch.no_grad():
        objective.head.bias.fill_(99.0)  # notices everything
    before = objective.counts.clone()
    objective(batch, Step(3, 10, 3))
    objective.after_step(Step(3, 10, 3))
    assert torch.equal(objective.counts, before)
    with torch.no_grad():
        objective.backbone.patch_embed.proj.weight[3:6] = torch.eye(16)[:3] * 9
        objective.backbone.patch_embed.proj.weight[6:] = torch.eye(16)[:3] * 5
    objective.after_step(Step(4, 10, 3))  # half of the steps are done
    assert objective.counts.sum() == 0
    new = objective.clusters[3:].tolist()
    assert new[:3] == new[3:] and len(set(new)) == 3


def test_confusion_draws_words_to_where_it_is():
    objective = make(task="crts", clusters=3, ratio=0.9)
    objective.counts[:] = torch.tensor([0, 0, 10**6])
    objective.beta = 50.0
    tokens = texts(200)["text"][:, 0].long()
    given, fake, _ = objective.exchanged(tokens, draws_of(200))
    assert fake.any() and (objective.clusters[given[fake]] == 2).all()


def test_more_clusters_than_words_are_as_many_as_words():
    assert make(task="crts", clusters=100).counts.shape == (6, 6)


@pytest.mark.parametrize("options", [{"clusters": 1}, {"beta": -1.0}, {"recluster": 2.0}, {"task": "mlm"},
                                     {"ratio": 0.0}, {"ratio": 1.0}, {"vocabulary": 4}])
def test_impossible_options(options):
    with pytest.raises(UsageError):
        make(**options)


def test_values_have_no_words():
    network = build_backbone("vit_tiny", channels=1, size=8, dim=16, depth=1, heads=2)
    with pytest.raises(UsageError, match="words"):
        RTS(network, DataSpec("image", 1, 8, (0.0,), (1.0,)))
