from __future__ import annotations

import pytest
import torch

from osteon.adapters.meft import MEFT, Reversible, ReversibleBlock, growth, least_lambda
from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.verbs._adapt_cost import SavedBytes
from tests.contracts.adapter_kit import TASK, images, make, network


def vit(depth: int):
    torch.manual_seed(0)
    return build_backbone("vit_tiny", channels=3, size=32, dim=32, depth=depth, heads=2, patch=8)


def gradients(adapter: MEFT) -> dict[str, torch.Tensor]:
    adapter.train().zero_grad()
    adapter(images()).square().mean().backward()
    return {n: p.grad.clone() for n, p in adapter.named_parameters() if p.grad is not None}


def pair(depth: int, lam: float) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    base, found = vit(depth), []
    for plain in (False, True):
        torch.manual_seed(1)
        adapter = MEFT(base, TASK, lam=lam, plain=plain)
        with torch.no_grad():
            for name, p in adapter.named_parameters():
                if "beside" in name or "after" in name:
                    p.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
        found.append(gradients(adapter))
    return found[0], found[1]


@pytest.mark.parametrize(("depth", "lam"), [(3, 0.1), (6, 0.1), (12, 0.5), (3, 1.0), (6, 0.0), (12, 0.0)])
def test_gradients_are_those_of_plain_autograd(depth, lam):
    got, want = pair(depth, lam)
    assert got.keys() == want.keys() and len(want) == depth * 8 + 2
    error = torch.stack([(got[k] - want[k]).norm() for k in want]).norm()
    assert error <= 1e-3 * torch.stack([g.norm() for g in want.values()]).norm()


def test_a_network_too_deep_to_invert_says_so_instead_of_training_on_wrong_gradients():
    with pytest.raises(UsageError, match="could not be inverted.*plain=true"):
        gradients(MEFT(vit(24), TASK))
    gradients(MEFT(vit(24), TASK, plain=True))


def test_the_block_is_the_papers_equations_and_inverts():
    block = ReversibleBlock(torch.nn.Linear(4, 4), 4, bottleneck=2, lam=0.5, beta=0.8)
    x1, x2 = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    with torch.no_grad():
        y1 = 0.5 * x1 + block.frozen(x2) + block.beside(x2)
        y2 = 0.8 * x2 + block.after(y1)
        z1, z2 = block(x1, x2)
        torch.testing.assert_close((z1, z2), (y2, y1))
    back = block.back(z1, z2, torch.zeros_like(z1), torch.zeros_like(z2))
    torch.testing.assert_close(back[:2], (x1, x2), atol=1e-5, rtol=1e-4)


def test_what_is_kept_does_not_grow_with_depth():
    kept = []
    for depth in (3, 6):
        adapter = MEFT(vit(depth), TASK).train()
        with SavedBytes(adapter) as bytes_:
            loss = adapter(images()).square().mean()
            held = bytes_.total  # between forward and backward
            loss.backward()
        kept.append(held)
    plain = MEFT(vit(6), TASK, plain=True).train()
    with SavedBytes(plain) as bytes_:
        plain(images()).square().mean().backward()
    assert kept[1] <= 1.05 * kept[0] and kept[1] < 0.1 * bytes_.total


def test_a_lambda_that_cannot_be_inverted_is_refused_and_the_rule_gives_one_that_can():
    # r^L = 2e6 with lam r^2 = r + 1: r = 11.225 at 6 blocks, 3.350 at 12
    assert least_lambda(6) == pytest.approx(12.225 / 11.225**2, rel=1e-3)
    assert least_lambda(12) == pytest.approx(4.350 / 3.350**2, rel=1e-3) and growth(2.0) == pytest.approx(1.0)
    with pytest.raises(UsageError, match=r"lam=0.1 with beta=1 cannot be inverted through 12 blocks.*at least 0.388"):
        MEFT(vit(12), TASK, lam=0.1)
    with pytest.raises(UsageError, match="cannot be inverted"):
        MEFT(vit(12), TASK, lam=0.5, beta=0.5)
    assert MEFT(vit(12), TASK, lam=0.1, plain=True)(images(1)).shape == (1, 4)
    assert MEFT(vit(12), TASK).backbone.blocks[0].blocks[0].lam == pytest.approx(0.631)
    assert MEFT(vit(3), TASK).backbone.blocks[0].blocks[0].lam == 0.1
    for wrong in ({"bottleneck": 0}, {"beta": 0.0}, {"lam": 1.5}):
        with pytest.raises(UsageError, match="bottleneck is at least 1"):
            MEFT(vit(3), TASK, **wrong)


def test_it_computes_in_full_precision_under_autocast():
    adapter = make("meft", "vit").eval()
    with torch.no_grad():
        want = adapter.encode(images())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = adapter.encode(images())
    assert (got.float() - want).abs().max() < 0.05  # the patches are embedded in bf16, the blocks are not
    adapter.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = adapter(images()).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adapter.trainable().values())


def test_the_count_and_the_start():
    adapter = MEFT(network("vit"), TASK, bottleneck=4)
    assert adapter.expected_trainable() == 3 * 2 * (2 * 32 * 4 + 4 + 32) + 132
    first = adapter.backbone.blocks[0].blocks[0].beside
    assert first[0].weight.detach().std().item() == pytest.approx(0.02, rel=0.3) and first[2].bias.abs().max() == 0


def test_the_streams_are_joined_by_their_mean():
    block = ReversibleBlock(torch.nn.Linear(4, 4), 4, bottleneck=2, lam=1.0, beta=1.0)
    for p in block.parameters():
        torch.nn.init.zeros_(p)  # F and G are zero: both streams stay the tokens
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Reversible([block])(x), x)
