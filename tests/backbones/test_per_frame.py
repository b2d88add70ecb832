"""One network a frame: it is the network of images, frame by frame, and nothing passes between frames."""

from __future__ import annotations

import json

import pytest
import torch
from tests.objectives.pairs import normal

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError

SMALL = {"resnet_tiny": {"depths": (1, 1), "widths": (8, 16), "stride": 4}, "vit_tiny": {"dim": 16, "depth": 1,
                                                                                         "heads": 2}}


def make(encoder: str = "resnet_tiny"):
    torch.manual_seed(0)
    return build_backbone("per_frame", channels=1, size=(3, 16, 16), encoder=encoder,
                          encoder_options=SMALL[encoder]).eval()


@pytest.mark.parametrize("encoder", SMALL)
def test_frames_pass_one_by_one(encoder):
    network, x = make(encoder), normal(2, 1, 3, 16, 16)
    seen = network(x)
    assert network.kind == network.encoder.kind and seen.grid == network.grid(3, 16, 16) == (3, 4, 4)
    apart = [network.encoder(x[:, :, t]) for t in range(3)]
    torch.testing.assert_close(seen.pooled, torch.stack([a.pooled for a in apart]).mean(0))
    torch.testing.assert_close(seen.tokens, torch.cat([a.tokens for a in apart], 1))
    assert len(seen.levels) == len(network.level_dims)
    for i, level in enumerate(seen.levels):
        torch.testing.assert_close(level, torch.stack([a.levels[i] for a in apart], 2))
    assert network(x[:, :, :1]).pooled.shape == (2, 16)


def test_what_tokens_show_and_masks_of_a_transformer():
    network, x = make("vit_tiny"), normal(2, 1, 3, 16, 16)
    shown = network.shown(x)
    assert shown.shape == (2, 48, 16) and torch.equal(network.assemble(shown, x), x)
    assert torch.equal(shown[1, 16 + 5], x[1, 0, 1, 4:8, 4:8].flatten())
    mask = torch.zeros(2, 48, dtype=torch.bool)
    mask[:, 16 + 5] = True
    hidden = x.clone()
    hidden[:, :, 1, 4:8, 4:8] = 7
    assert torch.equal(network(x, mask=mask).tokens, network(hidden, mask=mask).tokens)


def test_frames_of_colours_stay_images():
    torch.manual_seed(0)
    network = build_backbone("per_frame", channels=3, size=(2, 16, 16), encoder_options=SMALL["resnet_tiny"]).eval()
    x = normal(2, 3, 2, 16, 16)
    torch.testing.assert_close(network(x).pooled, (network.encoder(x[:, :, 0]).pooled
                                                   + network.encoder(x[:, :, 1]).pooled) / 2)


def test_options_rebuild_it():
    network, x = make(), normal(2, 1, 3, 16, 16)
    again = build_backbone("per_frame", channels=1, size=(3, 16, 16), **json.loads(json.dumps(network.options))).eval()
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(x).pooled, network(x).pooled)


def test_what_it_is_not_for_is_refused():
    with pytest.raises(UsageError, match="takes clips"):
        build_backbone("per_frame", channels=1, size=16)
    with pytest.raises(UsageError, match="masks of convolutional"):
        make()(normal(2, 1, 3, 16, 16), mask=torch.zeros(2, 48, dtype=torch.bool))
