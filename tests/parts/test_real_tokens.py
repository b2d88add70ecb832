"""Statistics of layers do not count what only fills a sample up."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from osteon.backbones import build_backbone
from osteon.parts.real_tokens import RealTokens
from osteon.parts.taps import taps
from osteon.verbs._analyses import layers
from osteon.verbs._analysis_context import Context

LENGTHS = (6, 3, 4)


class Known(nn.Module):
    """Three tokens of which the last of the second sample is padding; ``prefix`` tokens in front."""

    kind = "tokens"

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.count = prefix

    def present(self, x):
        return torch.tensor([[True, True, True], [True, True, False]])

    def prefix(self, batch):
        return torch.zeros(batch, self.count, 1)


def words(pool: str = "mean", registers: int = 0):
    """A network of words, and three texts of unequal lengths."""
    torch.manual_seed(0)
    made = build_backbone("vit_tiny", channels=1, size=(6,), dim=16, depth=2, heads=2, vocabulary=9, pool=pool,
                          registers=registers).eval()
    x = torch.randint(3, 9, (3, 1, 6), generator=torch.Generator().manual_seed(1)).float()
    for row, length in zip(x, LENGTHS, strict=True):
        row[:, length:] = 0
    return made, x


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_rows_and_means_of_what_is_there_by_hand(prefix):
    real = RealTokens(Known(prefix), torch.zeros(2, 1, 3))
    tokens = torch.arange(1.0, 2 * (3 + prefix) + 1).view(2, 3 + prefix, 1)
    assert real.take(tokens)[:, 0].tolist() == [float(i) for i in range(1, 2 * (3 + prefix))]  # all but the last
    whole = tokens[:, prefix:]
    assert real.mean(whole, real.tokens)[1] == (whole[1, 0] + whole[1, 1]) / 2
    assert real.mean(whole, None)[1] == whole[1].mean()


def test_other_shapes_are_taken_whole():
    real = RealTokens(Known(0), torch.zeros(2, 1, 3))
    assert real.take(torch.zeros(2, 5, 4)).shape == (10, 4)
    assert real.take(torch.zeros(7, 3, 4)).shape == (21, 4)
    assert real.take(torch.zeros(2, 3, 2, 4)).shape == (12, 4)
    assert RealTokens(nn.Linear(1, 1), torch.zeros(2, 1)).tokens is None


def test_layers_are_averaged_over_the_words_that_are_there(monkeypatch):
    network, x = words()
    model = type("Model", (), {"backbone": network, "spec": None})()
    monkeypatch.setattr("osteon.verbs._analyses.fit_samples", lambda data, spec, rows: x[torch.from_numpy(rows)])
    found = layers(Context(model, None, None), model, ["blocks.0"], 3)["blocks.0"]
    with torch.no_grad(), taps(network, ["blocks.0"]) as seen:
        for i, length in enumerate(LENGTHS):
            network(x[i:i + 1, :, :length])
            torch.testing.assert_close(found[i], seen["blocks.0"][0].mean(0), atol=1e-5, rtol=1e-4)


def test_tokens_that_no_sample_has_are_not_looked_for():
    network = build_backbone("vit_tiny", channels=24, size=(3,), dim=16, depth=1, heads=2, stem="names",
                             stem_options={"tokens": "units"}).eval()
    x = network.example(2)
    x[:, 2, 2], x[:, 12:, 0] = 3, 0  # the third column is none, the first cell holds nothing
    x[1, 18:, 1] = 0  # the second cell of the second row is half as long
    real = RealTokens(network, x)
    with torch.no_grad(), taps(network, ["blocks.0"]) as seen:
        network(x)
    assert seen["blocks.0"].shape[1] == 1 + 1 + 12 < network(x).tokens.shape[1]
    assert len(real.take(seen["blocks.0"])) == 14 + 8
