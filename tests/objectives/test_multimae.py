"""MultiMAE: how the visible tokens are divided, what the encoder sees, what the losses are over."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.objectives.sets_kit import batch, draws, network, numbers

from osteon.core.errors import UsageError
from osteon.objectives.multimae import MultiMAE, dirichlet, visible_tokens
from osteon.parts.members import Members
from osteon.parts.types import Step

COUNTS = [16, 32, 8]


def make(**options) -> MultiMAE:
    torch.manual_seed(1)
    return MultiMAE(network("vit_tiny"), numbers().spec, **options)


def noise(rows=200, n=56):
    return torch.rand(rows, n, generator=torch.Generator().manual_seed(0))


def test_visible_tokens_add_up_and_follow_the_shares():
    shares = torch.tensor([[0.5, 0.25, 0.25]]).expand(200, -1)
    shown = visible_tokens(COUNTS, torch.ones(200, 56, dtype=torch.bool), shares, torch.full((200,), 12), noise())
    parts = torch.stack([p.sum(1) for p in shown.split(COUNTS, 1)], 1)
    assert (parts.sum(1) == 12).all() and (parts == torch.tensor([6, 3, 3])).all()
    assert (shown.float().mean(0)[:16] - 6 / 16).abs().max() < 0.15  # every token as often as the others


def test_within_a_member_the_order_is_the_noise():
    order = noise(3)
    shown = visible_tokens(COUNTS, torch.ones(3, 56, dtype=torch.bool), torch.full((3, 3), 1 / 3),
                           torch.full((3,), 9), order)
    for part, values in zip(shown.split(COUNTS, 1), order.split(COUNTS, 1), strict=True):
        for row, value in zip(part, values, strict=True):
            assert row.sum() == 3 and set(row.nonzero()[:, 0].tolist()) == set(value.argsort()[:3].tolist())


def test_what_a_member_has_too_little_of_goes_to_the_others():
    present = torch.ones(3, 56, dtype=torch.bool)
    present[1, 16:48] = False
    present[2, :50] = False
    shares = torch.tensor([[0.01, 0.01, 0.98]] * 3)
    shown = visible_tokens(COUNTS, present, shares, torch.tensor([20, 20, 20]), noise(3))
    assert shown.sum(1).tolist() == [20, 20, 6] and not (shown & ~present).any()
    assert shown[:, 48:].sum(1).tolist() == [8, 8, 6]


def test_shares_are_dirichlet_and_rows_of_the_whole_batch():
    from osteon.parts.types import Draws

    whole = dirichlet(draws(), 1.0, 3)
    torch.testing.assert_close(whole.sum(1), torch.ones(40))
    some = dirichlet(Draws(Step(0, 10, 3), torch.tensor([3, 7]), 40), 1.0, 3)
    torch.testing.assert_close(some, whole[[3, 7]])
    assert dirichlet(draws(), 1e3, 3).std() < 0.02 < whole.std()


def test_the_encoder_sees_so_many_tokens_of_what_is_there_and_nothing_else():
    objective = make(ratio=0.75).eval()
    members, x = Members.of(numbers().spec.traits), batch()["several"].float()
    present = objective.backbone.present(x)
    shown = objective.shown(present, draws())
    count = present.sum(1)
    assert (shown.sum(1) == count - torch.floor(0.75 * count + 0.5)).all() and not (shown & ~present).any()
    hidden = ~shown
    other = x.clone()
    for member in members[:2]:  # values of hidden patches, as many as they are, must not matter
        span = objective.stem.span(member.name)
        stem = objective.stem.stem(member)
        values = members.normalised(other, member)
        patches = stem.shown(values)
        patches = torch.where(hidden[:, span, None], torch.full_like(patches, 7.0), patches)
        made = members.stored(member, stem.assemble(patches, values))
        other[:, 0, member.start:member.stop] = made.flatten(1)
    here = members.there(x)[:, :2].all(1)
    with torch.no_grad():
        a, b = objective.predict(x, hidden)[0], objective.predict(other, hidden)[0]
    torch.testing.assert_close(a[here], b[here], atol=1e-4, rtol=1e-3)


def test_the_loss_by_a_loop():
    objective = make().eval()
    with torch.no_grad():
        got = objective.encode(batch(), draws())["loss"]
        stream = draws()
        x = objective.views(batch()["several"], stream)[0].x
        present = objective.backbone.present(x)
        hidden = present & ~objective.shown(present, stream.fork("mask"))
        prediction, _ = objective.predict(x, ~present | hidden)
        error = objective.error(prediction, objective.target(x)).numpy()
    want = np.zeros(40)
    for i in range(40):
        for name in objective.names:
            part = objective.stem.span(name)
            rows = hidden[i, part].numpy()
            want[i] += error[i, part][rows].mean() if rows.any() else 0
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-4)


def test_missing_members_cost_nothing_and_get_no_gradient():
    objective, b = make(), batch()
    members = Members.of(numbers().spec.traits)
    b["several"] = b["several"].clone()
    b["several"][:, 0, members.names.index("sound")] = 0
    b["several"][:, 0, members[1].start:members[1].stop] = 0
    objective(b, Step(0, 10, 3)).total.backward()
    assert not any(p.grad.any() for p in objective.stem.stems["sound"].parameters() if p.grad is not None)
    assert not objective.decoders[1].out.weight.grad.any() and objective.decoders[0].out.weight.grad.any()


def test_one_decoder_may_serve_all():
    shared = make(decoder="shared")
    assert len(shared.decoders) == 1 and len(make().decoders) == 3
    assert shared(batch(8), Step(0, 10, 3)).total.isfinite()


def test_pictures_are_sets():
    first, corrupted, output = make().reconstruct(batch(8), Step(0, 10, 3))
    assert first.shape == corrupted.shape == output.shape == batch(8)["several"].shape
    assert not torch.equal(first, output)


@pytest.mark.parametrize("options", [{"ratio": 1.0}, {"alpha": 0.0}, {"decoder": "none"}])
def test_bad_options(options):
    with pytest.raises(UsageError):
        make(**options)


def test_towers_are_refused():
    with pytest.raises(UsageError, match="one Transformer"):
        MultiMAE(network(), numbers().spec)
