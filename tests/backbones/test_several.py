"""Sets in one Transformer and in towers: missing members, one at a time, the shared space."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.data import open_source
from osteon.modalities import find
from osteon.parts.members import Members


@pytest.fixture(scope="module")
def data():
    return open_source("numbers:train", cache=False, limit=40)


def network(data, name="vit_tiny", **options):
    torch.manual_seed(0)
    small = {"dim": 32, "depth": 2, "heads": 2} if name == "vit_tiny" else {"encoder": "vit_tiny"}
    return build_backbone(name, channels=1, size=data.spec.extent,
                          **{**small, **find("several").backbone_options(data.spec), **options}).eval()


def sets(data, n=40):
    return data.batch(np.arange(n))["several"].float()


def without(members, x, name):
    """The same sets with a member gone, whatever its values are."""
    out = x.clone()
    out[:, 0, members.names.index(name)] = 0
    return out


def full(members, x):
    return x[members.there(x).all(1)]


@pytest.mark.parametrize("name", ["vit_tiny", "towers"])
def test_what_is_missing_cannot_change_anything(data, name):
    net, members = network(data, name), Members.of(data.spec.traits)
    x = full(members, sets(data))
    for member in members:
        gone = without(members, x, member.name)
        other = gone.clone()
        other[:, 0, member.start:member.stop] = 1.0
        torch.testing.assert_close(net(gone).pooled, net(other).pooled)
        assert not torch.allclose(net(gone).pooled, net(x).pooled)


def test_every_subset_of_members_can_be_read(data):
    net, members = network(data), Members.of(data.spec.traits)
    x = full(members, sets(data))[:2]
    for number in range(1, 8):
        part = x.clone()
        part[:, 0, :3] = torch.tensor([float(number >> i & 1) for i in range(3)])
        assert net(part).pooled.isfinite().all()


def test_what_tokens_show_can_be_put_together_again(data):
    net, members = network(data), Members.of(data.spec.traits)
    x = full(members, sets(data))
    torch.testing.assert_close(net.assemble(net.shown(x), x), x, atol=1e-3, rtol=1e-4)
    assert net.grid(*x.shape[2:]) == (sum(net.patch_embed.counts),)


def test_the_right_prediction_costs_nothing(data):
    net, members = network(data), Members.of(data.spec.traits)
    x = full(members, sets(data))
    shown = net.shown(x)
    guess = torch.zeros(*shown.shape[:2], net.shown_width)
    guess[..., :shown.shape[-1]] = shown
    text = net.patch_embed.span("text")
    guess[:, text] = torch.nn.functional.one_hot(shown[:, text, 0].long(), net.shown_width) * 1e4
    assert net.shown_error(guess, shown).abs().max() < 1e-4
    guess[:, 0] += 1
    error = net.shown_error(guess, shown)
    torch.testing.assert_close(error[:, 0], torch.ones(len(x)))


def test_towers_give_zeros_for_the_missing_and_what_the_encoder_gives_for_the_others(data):
    net, x = network(data, "towers", joint=16), sets(data)
    members = net.members
    start = 0
    for i, (member, dim) in enumerate(zip(members, net.dims, strict=True)):
        there = members.there(x)[:, i]
        pooled = net(x).pooled[:, start:start + dim]
        assert not pooled[~there].any() and there.any() and (~there).any()
        alone = net.encoder(member)(members.normalised(x[there], member)).pooled
        torch.testing.assert_close(pooled[there], alone)
        joint = net.joint(x, member)
        torch.testing.assert_close(joint.norm(dim=1), there.float())
        start += dim


def test_a_shared_encoder_sees_one_member_at_a_time(data):
    net, members = network(data, "towers", encoder="shared", joint=8), Members.of(data.spec.traits)
    x = full(members, sets(data))
    other = x.clone()
    other[:, 0, members[1].start:members[1].stop] *= 2
    torch.testing.assert_close(net.member(x, members[0]), net.member(other, members[0]))
    assert not torch.allclose(net.member(x, members[1]), net.member(other, members[1]))
    torch.testing.assert_close(net.member(x, members[1]), net.member(without(members, x, "image"), members[1]))


def test_a_batch_without_a_member_gives_zeros_and_gradient_flows(data):
    net, members = network(data, "towers"), Members.of(data.spec.traits)
    x = without(members, sets(data, 4), "sound")
    pooled = net.member(x, members[1])
    assert not pooled.any()
    pooled.sum().backward()
    grads = [p.grad for p in net.encoder(members[1]).parameters() if p.grad is not None]
    assert grads and not any(g.any() for g in grads)


def test_encoders_by_rule_and_by_wish(data):
    net = network(data, "towers", encoder="auto")
    assert net.options["encoder"] == "image=resnet_tiny,sound=resnet_tiny,text=vit_mini"
    some = network(data, "towers", encoder="image=vit_tiny")
    assert some.options["encoder"] == "image=vit_tiny,sound=resnet_tiny,text=vit_mini"
    again = build_backbone(net.name, channels=1, size=net.size, **net.options)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}


def test_what_towers_cannot_do_is_said(data):
    net, x = network(data, "towers"), sets(data, 2)
    with pytest.raises(UsageError, match="share no space"):
        net.joint(x, net.members[0])
    with pytest.raises(UsageError, match="does not support masks"):
        net(x, keep=torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(UsageError, match="no member 'video'"):
        network(data, "towers", encoder="video=vit_tiny")
    with pytest.raises(UsageError, match="one"):
        build_backbone("towers", channels=1, size=(8,))
    net.add_joint(8)
    with pytest.raises(UsageError, match="8 wide already"):
        net.add_joint(9)
