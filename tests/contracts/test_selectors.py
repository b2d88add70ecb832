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
from osteon.modalities import NAMES
from osteon.parts.selection import Learner, Pool
from osteon.selectors.grand import gradient_norm
from osteon.verbs.select import pool_of
from tests.contracts import modality_kit

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


#: 14 samples, of which the last four are the first four again; the target is samples 4 to 9
COPIED, TARGET = np.r_[0:10, 0:4], np.arange(4, 10)
NEED_LABELS = [c.name for c in CARDS if c.labels]
#: which other modalities `make test` holds scores of early training to; `make contracts` takes every pair
QUICK = {"el2n": ("text", "table"), "grand": ("graph", "points")}


def pool_on(modality: str, needs: tuple[str, ...]) -> Pool:
    data = modality_kit.data(modality)
    return pool_of(data.subset(COPIED), needs, None, data.subset(TARGET) if "target" in needs else None, None,
                   "vit_tiny", [], lambda _text: None)


@pytest.mark.parametrize("modality", NAMES[1:])
def test_features_of_every_modality_know_copies_and_what_is_like_the_target(modality: str) -> None:
    choosers = {name: registry.build("selector", name) for name in ("k_centre", "simcore", "near_duplicates")}
    choosers["near_duplicates"].settle(modality)
    assert "features" in choosers["near_duplicates"].needs
    held = pool_on(modality, ("features", "target"))
    assert held.features.shape == (14, held.target.shape[1]) and np.isfinite(held.features).all()
    cover = choosers["k_centre"](held, 10).rows
    assert sorted(set((cover % 10).tolist())) == list(range(10)), "a copy was chosen before what is still uncovered"
    assert sorted(choosers["simcore"](held, 6).rows.tolist()) == TARGET.tolist()
    assert set(range(10, 14)).isdisjoint(choosers["near_duplicates"](held, None).rows.tolist())
    exact = registry.build("selector", "near_duplicates", similarity="exact")
    exact.settle(modality)
    assert exact(pool_on(modality, exact.needs), None).rows.tolist() == list(range(10))
    with pytest.raises(UsageError, match="of pictures"):
        registry.build("selector", "near_duplicates", similarity="hash").settle(modality)


@pytest.mark.parametrize(("name", "modality"), [pair for pair in modality_kit.pairs("selector", QUICK)
                                                if pair[0] in NEED_LABELS])
def test_early_training_scores_every_modality(name: str, modality: str) -> None:
    held = pool_on(modality, ("learn",))
    chosen = registry.build("selector", name, runs=1, epochs=1)(held, 14)
    score = dict(zip(chosen.rows.tolist(), chosen.scores, strict=True))
    assert all(np.isfinite(v) and v > 0 for v in score.values())
    assert all(score[i] == pytest.approx(score[10 + i], rel=1e-3) for i in range(4)), "copies differ in score"
    if name == "grand":  # in one go as one by one
        learner = held.learn(0, 0.0)
        x, y = next(iter(learner.batches()))
        for i, told in enumerate(gradient_norm(learner.network, x[:3], y[:3]).tolist()):
            learner.network.zero_grad()
            nn.functional.cross_entropy(learner.network(x[i:i + 1]), y[i:i + 1]).backward()
            whole = sum(float(p.grad.square().sum()) for p in learner.network.parameters() if p.grad is not None)
            assert told == pytest.approx(whole**0.5, rel=1e-3)
