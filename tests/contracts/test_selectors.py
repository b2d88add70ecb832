"""What every registered selector must satisfy: exact budget, no repeats, the same choice for the same seed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from osteon.core import registry
from osteon.core.errors import UsageError
from osteon.parts.selection import Learner, Pool

CARDS = registry.cards(kind="selector")
N = 60
#: what a pool can offer
OFFERED = {"features", "target", "images", "learn"}


def learn(seed: int, epochs: float) -> Learner:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(256, 3))

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        source = pool()
        for rows in torch.arange(N).split(16):
            yield (torch.from_numpy(source.images[rows.numpy()]).float() / 255,
                   torch.from_numpy(source.labels[rows.numpy()]))

    return Learner(network.eval(), batches)


def pool(seed: int = 0) -> Pool:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (N, 1, 16, 16)).astype(np.uint8)
    images[40:50] = images[:10]  # exact copies are there to be stumbled over
    features = images.reshape(N, -1).astype(np.float32)
    return Pool(N, features=features, target=features[:12] + 1, images=images, labels=np.arange(N) % 3,
                groups=[f"g{i // 6}" for i in range(N)], learn=learn)


def choose(name: str, budget: int | None, seed: int = 0):
    return registry.build("selector", name)(pool(), budget, seed=seed)


def test_the_catalogue_has_the_family() -> None:
    assert {"random", "k_centre", "el2n", "grand", "simcore", "near_duplicates"} <= {c.name for c in CARDS}


@pytest.mark.parametrize("name", [c.name for c in CARDS])
class TestEverySelector:
    def test_options_are_keyword_only_with_defaults_and_needs_are_known(self, name: str) -> None:
        made = registry.load(registry.find("selector", name))
        settings = list(inspect.signature(made).parameters.values())
        assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in settings)
        assert set(made().needs) <= OFFERED
        assert ("learn" in made().needs) <= registry.find("selector", name).labels

    @pytest.mark.parametrize("budget", [1, 7, 45, N])
    def test_exact_budget_without_repeats(self, name: str, budget: int) -> None:
        chosen = choose(name, budget)
        rows = chosen.rows.tolist()
        assert len(rows) == len(set(rows)) == budget and chosen.rows.dtype == np.int64
        assert min(rows) >= 0 and max(rows) < N
        if chosen.scores is not None:
            assert len(chosen.scores) == budget and np.isfinite(chosen.scores).all()

    def test_a_seed_repeats_itself_and_the_pool_is_left_alone(self, name: str) -> None:
        first, second = choose(name, 20, seed=3), choose(name, 20, seed=3)
        assert first.rows.tolist() == second.rows.tolist() and first.notes == second.notes
        given = pool()
        before = given.features.copy(), given.images.copy(), given.target.copy()
        registry.build("selector", name)(given, 20, seed=3)
        assert all(np.array_equal(a, b) for a, b in zip(before, (given.features, given.images, given.target),
                                                        strict=True))

    def test_the_global_generator_has_no_say(self, name: str) -> None:
        np.random.seed(0)
        first = choose(name, 20).rows
        np.random.seed(1)
        assert first.tolist() == choose(name, 20).rows.tolist()

    def test_auto_gives_a_number_or_is_refused(self, name: str) -> None:
        try:
            rows = choose(name, None).rows
        except UsageError as error:
            assert name in error.what and "number" in error.fix
        else:
            assert 0 < len(rows) <= N and len(set(rows.tolist())) == len(rows)
