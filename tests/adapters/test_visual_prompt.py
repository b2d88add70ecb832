from __future__ import annotations

import pytest
import torch

from osteon.adapters.visual_prompt import VisualPrompt, prompt_bound, put_prompts
from osteon.core.errors import UsageError
from tests.contracts.adapter_kit import TASK, images, network


def test_the_start_is_xaviers_for_patch_and_width():
    assert prompt_bound(4, 3, 48) == pytest.approx((6 / 96) ** 0.5)
    adapter = VisualPrompt(network("vit"), TASK, prompts=50)
    bound = (6 / (3 * 64 + 32)) ** 0.5
    assert adapter.prompts.abs().max() <= bound and adapter.prompts.detach().std().item() == pytest.approx(
        bound / 3**0.5, rel=0.05)


def test_prompts_are_added_or_put_in_place_of_the_last():
    tokens, prompts = torch.arange(8.0).view(1, 4, 2), torch.tensor([[-1.0, -1.0]])
    assert put_prompts(tokens, prompts, replace=False)[0, :, 0].tolist() == [0, 2, 4, 6, -1]
    assert put_prompts(tokens, prompts, replace=True)[0, :, 0].tolist() == [0, 2, 4, -1]


@pytest.mark.parametrize("deep", [True, False])
def test_it_is_what_a_plain_loop_computes(deep):
    adapter = VisualPrompt(network("vit"), TASK, prompts=3, deep=deep).eval()
    base = network("vit")
    with torch.no_grad():
        x = base.stem(images()) + base.positions((4, 4))
        count = x.shape[1]
        for i, block in enumerate(base.blocks):
            if i == 0:
                x = torch.cat([x, adapter.prompts[0].expand(8, -1, -1)], 1)
            elif deep:
                x = torch.cat([x[:, :count], adapter.prompts[i].expand(8, -1, -1)], 1)
            x = block(x)
        want = base.norm(x[:, :count]).mean(1)
        torch.testing.assert_close(adapter.encode(images()), want, atol=1e-5, rtol=1e-4)
    assert adapter.expected_trainable() == (3 if deep else 1) * 3 * 32 + 132


def test_where_prompts_stand_does_not_matter():
    adapter = VisualPrompt(network("timm_vit"), TASK, prompts=4).eval()
    before = adapter.encode(images()).detach()
    with torch.no_grad():
        adapter.prompts.copy_(adapter.prompts.flip(1))
    torch.testing.assert_close(adapter.encode(images()).detach(), before, atol=1e-5, rtol=1e-4)


def test_the_backbone_is_as_it_was_after_a_pass_even_one_that_failed():
    adapter = VisualPrompt(network("vit"), TASK).eval()
    adapter(images())
    with pytest.raises(UsageError):
        adapter(torch.zeros(1, 5, 32, 32))
    with torch.no_grad():
        assert torch.equal(adapter.backbone(images()).pooled, network("vit")(images()).pooled)


def test_dropout_in_training_alone_and_impossible_options():
    adapter = VisualPrompt(network("vit"), TASK, dropout=0.5)
    assert not torch.equal(adapter.train()(images()), adapter(images()))
    assert torch.equal(adapter.eval()(images()), adapter(images()))
    for wrong in ({"prompts": 0}, {"dropout": 1.0}):
        with pytest.raises(UsageError, match="at least 1 prompt"):
            VisualPrompt(network("vit"), TASK, **wrong)
