"""Small texts and networks for tests of objectives that read words."""

from __future__ import annotations

import torch

from osteon.backbones import Backbone, build_backbone
from osteon.parts.types import DataSpec, Draws, Step

STEP, V, N = Step(0, 10, seed=3), 13, 20
SPEC = DataSpec("text", 1, N, (0.0,), (1.0,), 1.0, shape=(N,))


def network(vocabulary: int = V, window: int = N, **options: object) -> Backbone:
    """A network whose weights are all away from where they start."""
    torch.manual_seed(0)
    made = build_backbone("vit_tiny", channels=1, size=(window,), dim=16, depth=2, heads=2, vocabulary=vocabulary,
                          **options)
    return shaken(made)


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """The module with noise on every parameter."""
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    return module


def texts(*lengths: int, vocabulary: int = V, window: int = N) -> dict[str, torch.Tensor]:
    """A batch of random texts of these lengths."""
    lengths = lengths or (20, 20, 13, 7, 20, 2, 20, 9)
    words = torch.randint(3, vocabulary, (len(lengths), window), generator=torch.Generator().manual_seed(1),
                          dtype=torch.int32)
    words[torch.arange(window) >= torch.tensor(lengths)[:, None]] = 0
    return {"text": words[:, None], "index": torch.arange(len(lengths))}


def draws_of(n: int, index: int = 0, total: int = 10) -> Draws:
    """The draws of a step for a batch of n."""
    return Draws(Step(index, total, 3), torch.arange(n), n)


def assert_rows_alone_give_the_whole(objective, batch: dict[str, torch.Tensor]) -> None:
    """Encodings of parts of a batch are parts of its encoding."""
    n = len(batch["index"])
    whole = objective.encode(batch, draws_of(n))
    for at in (torch.arange(3), torch.arange(3, n)):
        part = objective.encode({k: v[at] for k, v in batch.items()}, Draws(STEP, at, n))
        for key, value in part.items():
            torch.testing.assert_close(value, whole[key][at], rtol=1e-4, atol=1e-5)
    assert not whole["features"].requires_grad
