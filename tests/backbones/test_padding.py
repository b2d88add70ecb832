from __future__ import annotations

import pytest
import torch

from osteon.backbones import build_backbone


def words(*lengths: int, window: int = 12) -> torch.Tensor:
    """Texts (B, 1, window) of so many words each, followed by <pad>."""
    x = torch.zeros(len(lengths), 1, window)
    for i, n in enumerate(lengths):
        x[i, 0, :n] = torch.arange(n) % 17 + 3.0
    return x


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_padding_changes_nothing(pool: str) -> None:
    torch.manual_seed(0)
    net = build_backbone("vit_tiny", channels=1, size=(12,), vocabulary=20, pool=pool).eval()
    short, long = net(words(5, window=8)), net(words(5, window=12))
    torch.testing.assert_close(short.pooled, long.pooled)
    torch.testing.assert_close(short.tokens[:, :5], long.tokens[:, :5])
    if pool == "mean":
        torch.testing.assert_close(long.pooled, long.tokens[:, :5].mean(1))


def test_kept_padding_changes_nothing_either() -> None:
    net = build_backbone("vit_tiny", channels=1, size=(12,), vocabulary=20).eval()
    x = words(5)
    few = net(x, keep=torch.tensor([[0, 3]])).pooled
    torch.testing.assert_close(few, net(x, keep=torch.tensor([[0, 3, 8, 11]])).pooled)


def test_a_text_of_padding_alone_has_finite_features() -> None:
    net = build_backbone("vit_tiny", channels=1, size=(12,), vocabulary=20).eval()
    both = net(words(0, 5))
    assert both.pooled.isfinite().all()
    torch.testing.assert_close(both.pooled[1], net(words(5)).pooled[0])
    assert net(words(0, 5), keep=torch.tensor([[1], [11]])).pooled.isfinite().all()


def test_the_first_token_can_be_what_is_pooled() -> None:
    net = build_backbone("vit_tiny", channels=1, size=(12,), vocabulary=20, pool="first").eval()
    features = net(words(12))
    assert torch.equal(features.pooled, features.tokens[:, 0])


def test_a_trunk_without_attention_reads_padding_as_zeros() -> None:
    torch.manual_seed(0)
    net = build_backbone("vit_tiny", channels=1, size=(12,), vocabulary=20, trunk="mamba", depth=2).eval()
    features = net(words(5, 12))
    assert features.pooled.isfinite().all()
    torch.testing.assert_close(features.pooled[0], features.tokens[0, :5].mean(0))
    torch.testing.assert_close(features.pooled[1], net(words(12)).pooled[0])


def test_a_causal_network_sees_no_padding_and_no_future() -> None:
    torch.manual_seed(0)
    net = build_backbone("vit_tiny", channels=1, size=(12,), vocabulary=20, causal=True, depth=2).eval()
    long, short = net(words(9)), net(words(5))
    torch.testing.assert_close(long.tokens[:, :5], short.tokens[:, :5])
    torch.testing.assert_close(short.pooled, short.tokens[:, :5].mean(1))
