"""``osteon prior`` and ``osteon incontext``: a network goes to disk and back, and reads tables like its prior's."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from osteon.backbones.pfn import PFN
from osteon.core.errors import DataError, UsageError
from osteon.verbs import incontext as module
from osteon.verbs.incontext import classify, incontext, regress, summary
from osteon.verbs.prior import FILE, load_prior, prior


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network that has hardly learned."""
    return prior(out=tmp_path_factory.mktemp("prior") / "pfn", features=6, classes=3, steps=4, batch_size=4, points=16,
                 dim=16, depth=1, heads=2, progress=False)


def test_a_network_comes_back_from_its_folder(folder):
    network, meta = load_prior(folder)
    assert (network.features, network.classes, network.training) == (6, 3, False)
    assert meta["steps"] == 4 and meta["prior"]["name"] == "random networks" and np.isfinite(meta["loss"])
    with pytest.raises(UsageError, match="already"):
        prior(out=folder, progress=False)


def test_the_same_seed_gives_the_same_network(folder, tmp_path):
    again = prior(out=tmp_path / "pfn", features=6, classes=3, steps=4, batch_size=4, points=16, dim=16, depth=1,
                  heads=2, progress=False)
    one, two = (load_prior(f)[0].state_dict() for f in (folder, again))
    assert all(torch.equal(v, two[k]) for k, v in one.items())


def test_a_table_is_scored_beside_its_controls(folder, tmp_path):
    found = incontext(folder, train="iris:train", test="iris:test", label_budget=(9, "all"), seeds=2, leaks="allow",
                      out=tmp_path, progress=False)
    assert {a["name"] for a in found["arms"]} == {"in context (PFN)", "gradient-boosted trees", "logistic regression",
                                                  "boosted random features"}
    assert {a["kind"] for a in found["arms"] if a["name"] == "in context (PFN)"} == {"pretrained"}
    assert found["verdict"]["answer"] in ("pays", "does not pay", "cannot tell") and found["budgets"] == [9, "all"]
    assert json.loads((tmp_path / "incontext.json").read_text())["classes"] == 3


def test_what_it_cannot_read_is_refused(folder, tmp_path):
    for train, test, error in (("digits:train", "digits:test", UsageError), ("mixed:train", "mixed:test", UsageError),
                               ("iris:train", "iris:train", DataError)):
        with pytest.raises(error):
            incontext(folder, train=train, test=test, progress=False)
    with pytest.raises(UsageError, match="osteon prior"):
        incontext(tmp_path, train="iris:train", test="iris:test", progress=False)
    for bad in ({"seeds": 0}, {"context": 1}, {"leaks": "maybe"}):
        with pytest.raises(UsageError):
            incontext(folder, train="iris:train", test="iris:test", progress=False, **bad)
    (tmp_path / FILE).write_bytes(b"nothing")
    with pytest.raises(DataError):
        load_prior(tmp_path)


class Echo(PFN):
    """Answers with the share of each class among the labelled rows, and remembers what it saw."""

    def __init__(self) -> None:
        super().__init__(features=3, classes=4, dim=4, depth=1, heads=1)
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def predict(self, x, y, query):
        self.seen.append((x[0], y[0]))
        share = torch.nn.functional.one_hot(y[0], 4).float().mean(0)
        return share.expand(1, query.shape[1], 4)


def rows(n: int = 20, d: int = 2) -> tuple[np.ndarray, np.ndarray]:
    g = np.random.default_rng(0)
    return g.normal(5, 3, (n, d)).astype(np.float32), np.array([1, 4, 4, 4] * (n // 4))


def test_rows_reach_the_network_as_the_prior_has_them():
    net, (x, y) = Echo(), rows()
    out = classify(net, x, y, x[:7], classes=6)
    (seen, labels), = net.seen
    assert torch.allclose(seen[:, :2].mean(0), torch.zeros(2), atol=1e-6)
    assert torch.allclose(seen[:, :2].square().mean(0), torch.ones(2), atol=1e-4) and not seen[:, 2].any()
    assert sorted(labels.tolist()) == [0] * 5 + [1] * 15  # classes 1 and 4, numbered anew
    assert out.shape == (7, 6) and np.allclose(out, [0, 0.25, 0, 0, 0.75, 0])


def test_outliers_are_cut_and_constant_columns_say_nothing():
    x, y = rows()
    x[:, 1] = 3
    far = np.array([[1e6, 4.0]], np.float32)
    seen = module._columns(x, far, 3)[1]
    assert seen.tolist() == [[5.0, 0.0, 0.0]]


def test_wide_tables_are_projected_and_whitened():
    x, y = rows(40, 9)
    seen, _ = module._columns(x, x, 3)
    assert seen.shape == (40, 3)
    np.testing.assert_allclose((seen.T @ seen / 40).numpy(), np.eye(3), atol=1e-2)


def test_more_rows_than_the_context_are_read_in_stratified_parts():
    net, (x, y) = Echo(), rows(20)
    out = classify(net, x, y, x[:3], classes=5, context=8)
    assert [len(labels) for _, labels in net.seen] == [7, 7, 6]
    assert all(1 <= int((labels == 0).sum()) <= 3 for _, labels in net.seen)
    assert np.allclose(out.sum(1), 1)


def test_numbers_are_scored_beside_their_controls(folder, tmp_path):
    numbers = prior(out=tmp_path / "pfn", features=6, classes=0, steps=2, batch_size=2, points=16, dim=16, depth=1,
                    heads=2, progress=False)
    found = incontext(numbers, train="diabetes:train", test="diabetes:test", label_budget=(40,), seeds=1,
                      leaks="allow", out=tmp_path, progress=False)
    assert {a["name"] for a in found["arms"]} == {"in context (PFN)", "gradient-boosted trees", "ridge regression",
                                                  "boosted random features"}
    assert found["metric"] == "R2" and all(np.isfinite(a["mae"]) for a in found["arms"]) and found["target"]["mean"] > 0
    assert "MAE" in summary(found)
    for network, table, words in ((folder, "diabetes", "tells classes apart"), (numbers, "iris", "classes; the")):
        with pytest.raises(UsageError, match=words):
            incontext(network, train=f"{table}:train", test=f"{table}:test", progress=False,
                      task="regression" if table == "diabetes" else "classes")


class Mean(PFN):
    """Answers with the mean of the labels, and remembers them."""

    def __init__(self) -> None:
        super().__init__(features=3, dim=4, depth=1, heads=1)
        self.seen: list[torch.Tensor] = []

    def predict(self, x, y, query):
        self.seen.append(y[0])
        return y.mean(1, keepdim=True).expand(1, query.shape[1]) + query[..., 0]


def test_numbers_are_standardised_and_told_in_their_own_unit():
    net, (x, _) = Mean(), rows(20)
    targets = 100 + 7 * np.arange(20.0)
    told = regress(net, x, targets, x[:5], context=8)
    assert [len(y) for y in net.seen] == [7, 7, 6]
    every = torch.cat(net.seen)
    assert every.mean().abs() < 1e-6 and every.square().mean() == pytest.approx(1, rel=1e-5)
    assert max(abs(float(y.mean())) for y in net.seen) < 0.2  # every part is spread over the targets
    first = (x[:5, 0] - x[:, 0].mean()) / x[:, 0].std()
    parts = np.mean([float(y.mean()) for y in net.seen])
    np.testing.assert_allclose(told, targets.mean() + targets.std() * (parts + first), rtol=1e-4)
    assert np.isfinite(regress(net, x[:2], np.array([3.0, 3.0]), x)).all()
