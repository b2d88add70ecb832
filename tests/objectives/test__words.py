"""Language models: what the loss is over, what may be seen, what is left alone."""

from __future__ import annotations

import pytest
import torch
from tests.objectives.texts import SPEC, STEP, N, V, assert_rows_alone_give_the_whole, draws_of, network, shaken, texts

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.objectives.clm import CLM
from osteon.objectives.mlm import MLM
from osteon.parts.types import DataSpec


def masked(**options) -> MLM:
    return shaken(MLM(network(), SPEC, **options))


def causal(**options) -> CLM:
    return shaken(CLM(network(**options), SPEC))


def test_loss_by_a_loop_over_the_words_of_the_whole_batch():
    objective, batch = masked(ratio=0.3), texts()
    tokens = batch["text"][:, 0].long()
    places, counted, seen = objective.hide(tokens, draws_of(8))
    assert counted.sum(1).tolist() == [6, 6, 4, 2, 6, 1, 6, 3]  # 30 % of what is written: 3.9, 2.1, 0.6 but one, 2.7
    scores = objective.head(objective.backbone(seen[:, None].float()).tokens).double()
    asked = [(b, p) for b in range(8) for p, c in zip(places[b], counted[b], strict=True) if c]
    errors = [-scores[b, p].log_softmax(-1)[tokens[b, p]] for b, p in asked]
    hits = [scores[b, p].argmax() == tokens[b, p] for b, p in asked]
    loss = objective(batch, STEP)
    torch.testing.assert_close(loss.total, torch.stack(errors).mean().float())
    assert loss.parts["accuracy"].item() == pytest.approx(sum(map(float, hits)) / 34)


def test_padding_is_never_asked_about():
    objective = masked()
    assert objective.encode(texts(7, 2, 0), draws_of(3))["asked"].tolist() == [1, 1, 0]
    empty = objective(texts(0, 0), STEP)
    assert empty.total.item() == 0
    empty.total.backward()


def test_rows_gradient_and_pictures_of_the_masked_model():
    objective, batch = masked(), texts()
    assert_rows_alone_give_the_whole(objective, batch)
    objective(batch, STEP).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.parameters())
    first, hidden, output = objective.reconstruct(batch, STEP)
    drawn = hidden == -1
    assert drawn.sum() == 17 and torch.equal(hidden[~drawn], first[~drawn])
    assert torch.equal(output[~drawn], first[~drawn]) and first.shape == (8, 1, N)
    assert objective.head.out_features == V


@pytest.mark.parametrize("options", [{"ratio": 0.0}, {"ratio": 1.0}, {"masked": 0.8, "random": 0.3}, {"masked": -0.1}])
def test_impossible_options(options):
    with pytest.raises(UsageError, match="share"):
        masked(**options)


def test_values_have_no_words():
    with pytest.raises(UsageError, match="reads values"):
        MLM(build_backbone("vit_tiny", channels=1, size=8, dim=16, depth=1, heads=2),
            DataSpec("image", 1, 8, (0.0,), (1.0,)))


@pytest.mark.parametrize("options", [{}, {"pool": "cls", "registers": 2}])
def test_loss_by_a_loop_is_over_every_word_but_the_first(options):
    objective, batch = causal(**options), texts(20, 5, 1, 0)
    tokens, errors, net = batch["text"][:, 0].long(), [], objective.backbone
    front = net.prefix(1).shape[1]
    for b, length in enumerate((20, 5, 1, 0)):
        for t in range(1, length):  # the network is given the words so far alone
            mask = torch.ones(front + t, front + t, dtype=torch.bool).tril()
            mask[:, :front] = True
            given = net.stem(tokens[b:b + 1, None, :t].float()) + net.positions((t,))
            scores = objective.head(net.trunk(torch.cat([net.prefix(1), given], 1), attend=mask))[0, -1].double()
            errors.append(-scores.log_softmax(-1)[tokens[b, t]])
    loss = objective(batch, STEP)
    assert len(errors) == 23
    torch.testing.assert_close(loss.total, torch.stack(errors).mean().float(), rtol=1e-4, atol=1e-5)
    assert objective.encode(batch, draws_of(4))["asked"].tolist() == [19, 4, 0, 0]


@pytest.mark.parametrize("options", [{}, {"pool": "cls", "registers": 2}])
def test_a_prediction_does_not_depend_on_its_word_or_later_ones(options):
    objective, tokens = causal(**options), texts(20)["text"][:, 0].long()
    before = objective.predict(tokens, draws_of(1))[0]
    for place in (1, 7, 19):
        changed = tokens.clone()
        changed[0, place] = 3 + (tokens[0, place] - 2) % 10
        after = objective.predict(changed, draws_of(1))[0]
        moved = (after - before).abs().amax(-1)[0] > 1e-6
        assert not moved[:place].any()  # scores of the words 1 to place
        assert moved[place:].all()


def test_class_tokens_are_seen_by_every_word():
    objective, tokens = causal(pool="cls", registers=1), texts(20)["text"][:, 0].long()
    before = objective.predict(tokens, draws_of(1))[0]
    with torch.no_grad():
        objective.backbone.cls_token += torch.randn(16, generator=torch.Generator().manual_seed(0))
    assert ((objective.predict(tokens, draws_of(1))[0] - before).abs().amax(-1) > 1e-6).all()


def test_rows_gradient_and_pictures_of_the_causal_model():
    objective, batch = causal(pool="cls", registers=1), texts()
    assert_rows_alone_give_the_whole(objective, batch)
    objective(batch, STEP).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.parameters())
    first, hidden, output = objective.reconstruct(batch, STEP)
    written = first != 0
    written[..., 0] = False
    assert torch.equal(hidden == -1, written) and torch.equal(output[~written], first[~written])
    words = objective.predict(first[:, 0], draws_of(8))[0].argmax(-1)
    assert torch.equal(output[:, 0, 1:][written[:, 0, 1:]], words[written[:, 0, 1:]])


def test_features_are_of_the_words_where_the_class_token_knows_nothing():
    encoded = causal(pool="cls").encode(texts(), draws_of(8))
    assert encoded["features"].std(0).max() > 1e-3
