"""Samples that count, time and write down a network: as it takes them, and with nothing missing."""

from __future__ import annotations

import pytest
import torch

from osteon.backbones import build_backbone
from osteon.parts.members import plain_spec
from osteon.parts.types import DataSpec

IMAGE, TEXT = (DataSpec("image", 1, 8, (0.5,), (0.5,)), DataSpec("text", 1, 6, (0.0,), (1.0,), 1.0, shape=(6,)))
SET = {"members": {"image": plain_spec(IMAGE), "text": plain_spec(TEXT)}, "needed": {"text": {"vocabulary": 9}}}
SMALL = {"dim": 16, "depth": 1, "heads": 2}
NETWORKS = {
    "pictures": ("vit_tiny", {"channels": 2, "size": 8, **SMALL}),
    "maps": ("resnet_tiny", {"channels": 2, "size": 8}),
    "words": ("vit_tiny", {"channels": 1, "size": (6,), "vocabulary": 5, **SMALL}),
    "columns": ("vit_tiny", {"channels": 2, "size": (3,), "levels": (0, 4, 2), **SMALL}),
    "nodes": ("vit_tiny", {"channels": 9, "size": (7,), "stem": "nodes", "stem_options": {"features": 2}, **SMALL}),
    "names": ("vit_tiny", {"channels": 24, "size": (2,), "stem": "names", "stem_options": {"tokens": "pieces"},
                           **SMALL}),
    "sets": ("vit_tiny", {"channels": 1, "size": (72,), "stem": "several", "stem_options": SET, **SMALL}),
    "towers": ("towers", {"channels": 1, "size": (72,), "stem_options": SET}),
    "graphs": ("gcn_tiny", {"channels": 9, "size": (7,), "stem_options": {"features": 2}})}


@pytest.mark.parametrize("name", NETWORKS)
def test_everything_is_there_and_a_seed_repeats_itself(name):
    torch.manual_seed(0)
    network = build_backbone(NETWORKS[name][0], **NETWORKS[name][1]).eval()
    x = network.example(4)
    assert x.shape == (4, network.channels, *network.extent) and x.dtype == torch.float32
    assert network.present(x) is None, "a token only fills up"
    assert torch.equal(x, network.example(4)) and not torch.equal(x, network.example(4, seed=1))
    features = network(x).pooled
    assert features.isfinite().all() and not torch.allclose(features[0], features[1])


def test_words_are_no_special_ones_and_levels_are_those_of_their_column():
    words = build_backbone("vit_tiny", **NETWORKS["words"][1]).example(64)
    assert set(words.unique().tolist()) == {3, 4}
    columns = build_backbone("vit_tiny", **NETWORKS["columns"][1]).example(64)
    assert set(columns[:, 0, 1].tolist()) == {0, 1, 2, 3} and set(columns[:, 0, 2].tolist()) == {0, 1}
    assert (columns[:, 1] == 0).all() and len(columns[:, 0, 0].unique()) == 64


def test_of_sets_every_member_is_there():
    for name in ("sets", "towers"):
        assert (build_backbone(NETWORKS[name][0], **NETWORKS[name][1]).example(3)[:, 0, :2] == 1).all()


def test_nodes_form_a_ring():
    x = build_backbone("gcn_tiny", **NETWORKS["graphs"][1]).example(2)
    assert (x[:, 2:].sum(1) == 3).all() and (x[:, 2:].diagonal(dim1=1, dim2=2) == 1).all()
