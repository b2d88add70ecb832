"""HuBERT's targets: spans, units of layers and stages, and losses by a loop over hidden tokens."""

from __future__ import annotations

import pytest
import torch
from tests.objectives.masked import shake
from torch.nn import functional as F

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.core.run import RunFolder
from osteon.objectives.hubert import HuBERT, UnitHead, span_mask
from osteon.parts.types import DataSpec, Draws, Step
from osteon.verbs._model import save_trained

STEP = Step(3, 10, 7)
SPEC = DataSpec("sound", 1, 48, (1.0,), (2.0,), 1.0, shape=(16, 48))


def network(**options):
    return build_backbone("vit_tiny", channels=1, size=(16, 48), **{
        "dim": 16, "depth": 2, "heads": 2, "patch": 4, **options})


def small(**options) -> HuBERT:
    torch.manual_seed(1)
    method = HuBERT(network(), SPEC, **{"clusters": 6, "fit_tokens": 100, **options})
    shake(method)
    return method


def clips(n: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    return {"sound": torch.randn(n, 1, 16, 48, generator=torch.Generator().manual_seed(seed)) * 2 + 1,
            "index": torch.arange(n)}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    torch.manual_seed(5)
    run = RunFolder(tmp_path_factory.mktemp("teacher"))
    with run.lock():
        run.create_or_resume({"source": "x"})
        data = DataSpec("sound", 1, 48, (0.0,), (4.0,), 1.0, shape=(16, 48))
        save_trained(run, network(dim=8, registers=1), data, {})
    return str(run.path)


def test_spans_are_hidden_whole_in_all_bands_and_exact_in_count():
    draws = Draws(STEP, torch.arange(3000), 3000)
    mask = span_mask((4, 20), 0.5, draws, 4).view(-1, 4, 20)
    assert (mask == mask[:, :1]).all() and (mask[:, 0].sum(1) == 10).all()
    often = mask[:, 0].float().mean(0)
    assert float(often.min()) > 0.4 and float(often.max()) < 0.6
    line = F.pad(mask[:, 0].float(), (1, 1))
    runs = (line[:, 1:] > line[:, :-1]).sum(1).float()
    single = F.pad(span_mask((20,), 0.5, draws, 1).float(), (1, 1))
    assert float(runs.mean()) < 3.5 < 5 < float((single[:, 1:] > single[:, :-1]).sum(1).float().mean())


def test_a_head_by_hand():
    head = UnitHead(2, 2, 2, temperature=0.5)
    with torch.no_grad():
        head.project.weight.copy_(torch.eye(2))
        head.project.bias.zero_()
        head.codes.copy_(torch.tensor([[5.0, 0.0], [0.0, 0.1]]))
    torch.testing.assert_close(head(torch.tensor([3.0, 4.0])), torch.tensor([1.2, 1.6]))  # cosines 0.6 and 0.8


def test_losses_by_a_loop_over_hidden_tokens():
    method, batch = small(stages=2), clips()
    method.prepare(lambda rows: {"sound": clips(8, seed=3)["sound"][list(rows)]}, 8, 0)
    draws = Draws.of(batch, STEP)
    encoded = method.encode(batch, draws)
    x = (batch["sound"] - 1) / 2
    mask = span_mask((4, 12), 0.5, draws.fork("mask"), 3)
    tokens = method.backbone(x, mask=mask, mask_token=method.mask_token).tokens
    units = method.books[0](method.backbone.shown(x))
    assert encoded["loss"].shape == (4, 2) and len(method.heads) == 2
    for row in range(4):
        places = mask[row].nonzero()[:, 0].tolist()
        assert len(places) == 24
        for target, head in enumerate(method.heads):
            scores = head(tokens[row])
            want = sum(-scores[n].log_softmax(0)[units[row, n, target]] for n in places) / len(places)
            torch.testing.assert_close(encoded["loss"][row, target], want)
            hits = sum(int(scores[n].argmax()) == int(units[row, n, target]) for n in places) / len(places)
            assert float(encoded["hits"][row, target]) == pytest.approx(hits)
    loss = method.score(encoded, STEP)
    torch.testing.assert_close(loss.total, encoded["loss"].mean())
    torch.testing.assert_close(loss.parts["loss/1"], encoded["loss"][:, 1].mean())


def test_one_stage_of_one_feature_is_hubert_and_further_stages_add_finer_targets():
    one, two, batch = small(), small(stages=3), clips(8)
    for method in (one, two):
        method.prepare(lambda rows: {k: v[list(rows)] for k, v in clips(8).items()}, 8, 0)
    x = (batch["sound"] - 1) / 2
    draws = Draws.of(batch, STEP)
    assert torch.equal(one.units(x, draws)[..., 0], two.units(x, draws)[..., 0])
    report = two.target_report()
    assert [r["stage"] for r in report] == [0, 1, 2]
    assert 1 > report[0]["unexplained"] > report[1]["unexplained"] > report[2]["unexplained"]


def test_units_come_from_training_samples_as_they_are_the_same_every_time():
    first, second = small(), small()
    asked = []

    def batch(rows):
        asked.append(list(rows))
        return {"sound": clips(30)["sound"][list(rows)]}

    first.prepare(batch, 30, 4)
    second.prepare(batch, 30, 4)
    assert asked[0] == asked[1] and len(asked[0]) == 3 and asked[0] == sorted(asked[0])  # 100 tokens of 48 a clip
    assert torch.equal(first.books[0].centres, second.books[0].centres)
    seen = first.books[0](first.backbone.shown((clips(30)["sound"][asked[0]] - 1) / 2))
    assert seen.unique().numel() == 6
    third = small()
    third.load_state_dict(first.state_dict())
    x = torch.randn(2, 1, 16, 48)
    draws = Draws(STEP, torch.arange(2), 2)
    assert torch.equal(third.units(x, draws), first.units(x, draws))


def test_without_prepare_the_first_whole_batch_is_clustered():
    whole, part, batch = small(), small(), clips()
    want = whole.encode(batch, Draws.of(batch, STEP))
    got = part.encode({k: v[1:3] for k, v in batch.items()}, Draws.of(batch, STEP).at(torch.tensor([1, 2])))
    torch.testing.assert_close(got["loss"], want["loss"][1:3])
    kept = whole.books[0].centres.clone()
    whole.encode(clips(seed=9), Draws.of(batch, STEP))
    assert torch.equal(whole.books[0].centres, kept)


def test_layers_of_a_teacher_are_targets_in_its_own_units(teacher):
    method, batch = small(teacher=teacher, layers=(0, -1), stages=2), clips()
    assert len(method.heads) == 4 and method.companions() == [method.teacher]
    x = (batch["sound"] - 1) / 2
    net = method.teacher
    tokens = torch.cat([net.prefix(4), net.stem(batch["sound"] / 4) + net.positions((4, 12))], 1)
    first = net.blocks[0](tokens)
    for got, want in zip(method.features(x), (first, net.blocks[1](first)), strict=True):
        torch.testing.assert_close(got, want[:, 1:], rtol=1e-4, atol=1e-5)
    loss = method.train()(batch, STEP)
    assert not net.training and method.backbone.training
    loss.total.backward()
    assert all(p.grad is None for p in net.parameters())
    assert all(head.project.weight.grad.abs().sum() > 0 for head in method.heads)
    units = method.units(x, Draws.of(batch, STEP))
    for layer, values in enumerate(method.features(x)):
        assert torch.equal(units[..., 2 * layer:2 * layer + 2], method.books[layer](values))
    assert [r["layer"] for r in method.target_report()] == [0, 0, -1, -1]


def test_shown_tokens_do_not_count():
    method, batch = small(), clips()
    method.encode(batch, Draws.of(batch, STEP))
    with torch.no_grad():  # blind to what is shown: every token looks alike, so that targets alone could differ
        method.heads[0].project.weight.zero_()
    mask = span_mask((4, 12), 0.5, Draws.of(batch, STEP).fork("mask"), 3)
    shown = (~mask).view(4, 1, 4, 12).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other = dict(batch, sound=torch.where(shown, batch["sound"].roll(1, 0), batch["sound"]))
    draws = Draws.of(batch, STEP)
    assert torch.equal(method.encode(batch, draws)["loss"], method.encode(other, draws)["loss"])


def test_refusals(teacher):
    for wrong in ({"ratio": 1.0}, {"ratio": 0.0}, {"span": 13}, {"clusters": 1}, {"stages": 0}, {"layers": ()},
                  {"fit_tokens": 3}, {"teacher": teacher, "layers": (2,)}):
        with pytest.raises(UsageError):
            small(**wrong)
    with pytest.raises(UsageError, match="other pieces"):
        HuBERT(network(patch=8), SPEC, teacher=teacher)
