"""ELECTRA: what counts as replaced, which tokens the losses are over, what is shared and what is cut."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.objectives.electra import ELECTRA, narrow, rewrite, sample
from osteon.parts.types import DataSpec, Draws, Step

STEP, V, N = Step(0, 10, seed=3), 13, 20
SPEC = DataSpec("text", 1, N, (0.0,), (1.0,), 1.0, shape=(N,))


def make(**options) -> ELECTRA:
    torch.manual_seed(0)
    network = build_backbone("vit_tiny", channels=1, size=(N,), dim=16, depth=2, heads=2, vocabulary=V)
    objective = ELECTRA(network, SPEC, **options)
    with torch.no_grad():
        for i, p in enumerate(objective.parameters()):
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    return objective


def texts(*lengths: int) -> dict[str, torch.Tensor]:
    lengths = lengths or (20, 20, 13, 7, 20, 2, 20, 9)
    words = torch.randint(3, V, (len(lengths), N), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    words[torch.arange(N) >= torch.tensor(lengths)[:, None]] = 0
    return {"text": words[:, None], "index": torch.arange(len(lengths))}


def draws_of(n: int, index: int = 0) -> Draws:
    return Draws(Step(index, 10, 3), torch.arange(n), n)


def test_a_lucky_word_counts_as_original():
    tokens = torch.tensor([[5, 6, 7, 8]])
    places, counted = torch.tensor([[0, 2, 3]]), torch.tensor([[True, True, False]])
    corrupted, fake = rewrite(tokens, places, counted, torch.tensor([[5, 9, 4]]))
    assert corrupted.tolist() == [[5, 6, 9, 8]] and fake.tolist() == [[False, False, True, False]]
    assert torch.equal(tokens, torch.tensor([[5, 6, 7, 8]]))


def test_sampling_follows_the_softmax():
    # Probabilities 1/2, 1/4, 1/4: the words change at 0.5 and 0.75.
    scores = torch.tensor([0.5, 0.25, 0.25]).log().expand(1, 5, 3)
    assert sample(scores, torch.tensor([[0.0, 0.49, 0.51, 0.74, 0.76]])).tolist() == [[0, 0, 1, 1, 2]]
    never = torch.tensor([[[-torch.inf, 0.0, -torch.inf]]])
    assert sample(never, torch.tensor([[0.0]])).item() == 1 and sample(never, torch.tensor([[0.999999]])).item() == 1
    free = torch.randn(1, 1, 4, requires_grad=True)
    assert not sample(free, torch.zeros(1, 1)).requires_grad


def test_losses_by_a_loop():
    objective, batch = make(), texts()
    n = len(batch["text"])
    encoded = objective.encode(batch, draws_of(n))
    tokens = objective.tokens(batch, draws_of(n))
    assert torch.equal(tokens, batch["text"][:, 0].long())
    places, counted, scores = objective.generate(tokens, draws_of(n))
    words = sample(scores, draws_of(n).fork("sample").rand(places.shape[1]))
    told, found, hits = [], [], []
    corrupted = tokens.clone()
    for b in range(n):
        for k in range(places.shape[1]):
            if counted[b, k]:
                told.append(-scores[b, k].double().log_softmax(-1)[tokens[b, places[b, k]]])
                corrupted[b, places[b, k]] = words[b, k]
    verdict = objective.head(objective.backbone(corrupted[:, None].float()).tokens)[..., 0]
    for b in range(n):
        for i in range(N):
            if tokens[b, i] != 0:
                fake = corrupted[b, i] != tokens[b, i]
                found.append(F.softplus(-verdict[b, i].double() if fake else verdict[b, i].double()))
                hits.append(bool(verdict[b, i] > 0) == bool(fake))
    assert len(found) == 111 and len(told) == sum([3, 3, 2, 1, 3, 1, 3, 1])
    loss = objective.score(encoded, STEP)
    torch.testing.assert_close(loss.parts["detection"], torch.stack(found).mean().float())
    torch.testing.assert_close(loss.parts["generator"], torch.stack(told).mean().float())
    torch.testing.assert_close(loss.total, (50 * torch.stack(found).mean() + torch.stack(told).mean()).float())
    assert loss.parts["accuracy"].item() == pytest.approx(sum(hits) / len(hits))
    fakes = (corrupted != tokens).sum()
    caught = ((corrupted != tokens) & (verdict > 0)).sum()
    assert loss.parts["caught"].item() == pytest.approx(float(caught / fakes))


def test_the_generator_sees_masks_at_85_percent_of_the_places_and_the_words_elsewhere():
    objective, seen = make(), []
    stem = objective.backbone.stem
    objective.backbone.stem = lambda x: (seen.append(x[:, 0].long()), stem(x))[1]  # type: ignore[method-assign]
    tokens = texts(*[20] * 400)["text"][:, 0].long()
    places, counted, _ = objective.generate(tokens, draws_of(400))
    view = next(s for s in seen if s.shape == tokens.shape)
    at = torch.zeros_like(tokens, dtype=torch.bool).scatter(1, places, counted)
    assert torch.equal(view[~at], tokens[~at]) and (view[at] == 1).sum() + (view[at] == tokens[at]).sum() == at.sum()
    assert abs((view[at] == 1).float().mean() - 0.85) < 0.03
    seen.clear()
    make(masked=0.0)
    objective.masked = 0.0
    objective.generate(tokens, draws_of(400))
    assert torch.equal(next(s for s in seen if s.shape == tokens.shape), tokens)


def test_the_backbone_sees_no_mask_but_the_generators_words():
    objective, batch, seen = make(), texts(), []
    objective.backbone.register_forward_hook(lambda _m, args, _out: seen.append(args[0][:, 0].long()))
    encoded = objective.encode(batch, draws_of(8))
    (view,) = seen
    tokens = batch["text"][:, 0].long()
    assert (view != tokens).sum() == encoded["fakes"].sum() > 0
    assert torch.equal(view == 0, tokens == 0) or (view[tokens == 0] == 0).all()


def grads(objective: ELECTRA, **weights: float) -> dict[str, torch.Tensor]:
    objective.weight, objective.generator_weight = weights["weight"], weights["generator_weight"]
    objective.zero_grad()
    objective(texts(), STEP).total.backward()
    return {n: p.grad for n, p in objective.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def test_the_discriminator_teaches_the_generator_nothing_and_the_words_are_shared():
    words = "backbone.patch_embed.proj.weight"
    alone = grads(make(), weight=50.0, generator_weight=0.0)
    assert words in alone and not any(name.startswith("generator") for name in alone)
    other = grads(make(), weight=0.0, generator_weight=1.0)
    assert {n for n in other if not n.startswith("generator")} == {words}
    both = grads(make(), weight=50.0, generator_weight=1.0)
    torch.testing.assert_close(both[words], alone[words] + other[words])
    everything = {n for n, _ in make().named_parameters()}
    assert both.keys() == everything
    assert sum(p.shape[0] == V and p.dim() == 2 for p in make().parameters()) == 1  # one table of words


def test_gradient_of_the_words_is_the_slope_of_the_generators_loss():
    objective = make()
    objective.weight, objective.generator_weight = 0.0, 1.0
    words = objective.backbone.patch_embed.proj.weight
    for row in (1, 6):  # <mask>, which the generator only reads; a word, which it reads and predicts
        way = torch.zeros_like(words)
        way[row] = torch.randn(words.shape[1], generator=torch.Generator().manual_seed(row))
        objective.zero_grad()
        objective(texts(), STEP).total.backward()
        slope = float((words.grad * way).sum())
        with torch.no_grad():
            ends = []
            for step in (1e-3, -1e-3):
                words.add_(step * way)
                ends.append(float(objective(texts(), STEP).total))
                words.sub_(step * way)
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=0.05, abs=2e-3)


def test_the_table_scores_words_by_the_shared_vectors():
    objective = make()
    scores = objective.generate(texts()["text"][:, 0].long(), draws_of(8))[2]
    with torch.no_grad():
        objective.backbone.patch_embed.proj.weight[11] += 1.0
        moved = objective.generate(texts()["text"][:, 0].long(), draws_of(8))[2]
    assert not torch.allclose(scores[..., 11], moved[..., 11])


def test_generators_are_narrow_and_as_deep():
    network = build_backbone("vit_tiny", channels=1, size=(N,), vocabulary=V)  # 64 wide, 5 deep, 4 heads
    for share, dim, heads in ((0.25, 16, 1), (0.5, 32, 2), (1 / 3, 22, 1), (1.0, 64, 4)):
        made = narrow(network, share)
        assert (made.dim, made.options["depth"], made.options["heads"]) == (dim, 5, heads)
    assert make(generator=0.5).generator.trunk.dim == 8


def test_rows_apart_give_the_whole_and_only_the_backbone_is_left():
    objective, batch = make(), texts()
    whole = objective.encode(batch, draws_of(8))
    for rows in ([0, 1, 2], [3, 4, 5, 6, 7]):
        at = torch.tensor(rows)
        part = objective.encode({k: v[at] for k, v in batch.items()}, Draws(STEP, at, 8))
        for key, value in part.items():
            torch.testing.assert_close(value, whole[key][at], rtol=1e-4, atol=1e-5)
    assert objective.exported() is objective.backbone and not objective.companions()
    assert not whole["features"].requires_grad


def test_padding_does_not_count():
    objective, batch = make(), texts(7, 7)
    assert objective.encode(batch, draws_of(2))["written"].tolist() == [7, 7]
    empty = objective(texts(0, 0), STEP)
    assert empty.total.item() == 0 and torch.isfinite(empty.total)


def test_pictures():
    objective, batch = make(), texts()
    first, hidden, output = objective.reconstruct(batch, STEP)
    drawn = hidden == -1
    assert first.shape == (8, 1, N) and drawn.sum() == 17
    assert torch.equal(hidden[~drawn], first[~drawn]) and torch.equal(output[~drawn], first[~drawn])
    encoded = objective.encode(batch, Draws.of(batch, STEP))
    assert (output != first).sum() == encoded["fakes"].sum()


@pytest.mark.parametrize("options", [{"ratio": 0.0}, {"ratio": 1.0}, {"masked": 1.5}, {"generator": 0.0}])
def test_impossible_options(options):
    with pytest.raises(UsageError, match="share"):
        make(**options)


def test_values_have_no_words_to_replace():
    network = build_backbone("vit_tiny", channels=1, size=8, dim=16, depth=1, heads=2)
    with pytest.raises(UsageError, match="words"):
        ELECTRA(network, DataSpec("image", 1, 8, (0.0,), (1.0,)))
