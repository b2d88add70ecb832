from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from osteon.core.errors import DataError, UsageError
from osteon.evaluators.ood import SCORES, OODScorer, auroc, false_positives

G = torch.Generator().manual_seed(0)
W, B = torch.randn(3, 8, generator=G), torch.randn(3, generator=G)
MEANS = 4 * torch.eye(8)[:3]
Y = torch.arange(300) % 3
X = MEANS[Y] + 0.5 * torch.randn(300, 8, generator=G)


def fitted(kind: str, **options) -> OODScorer:
    return OODScorer(kind, W, B, **options).fit(X, Y)


def test_logit_scores_by_hand() -> None:
    z = (X @ W.T + B).double()
    assert torch.allclose(fitted("msp").score(X), z.softmax(1).max(1).values, atol=1e-6)
    assert torch.allclose(fitted("max_logit").score(X), z.max(1).values, atol=1e-5)
    assert torch.allclose(fitted("energy").score(X), z.exp().sum(1).log(), atol=1e-5)
    clip = float(X.flatten().sort().values[int(0.9 * (X.numel() - 1))])
    wanted = (X.clamp(max=clip) @ W.T + B).double().logsumexp(1)
    assert torch.allclose(fitted("react", quantile=0.9).score(X), wanted, atol=1e-5)


def test_gradient_score_is_the_gradient() -> None:
    weight = W.clone().requires_grad_()
    for i in (0, 5):
        loss = -F.log_softmax(X[i] @ weight.T + B, 0).sum()
        grad = torch.autograd.grad(loss, weight)[0]
        assert float(fitted("grad_norm").score(X[i:i + 1])) == pytest.approx(float(grad.abs().sum()), rel=1e-4)


def test_mahalanobis_by_hand_and_its_classes() -> None:
    means = torch.stack([X[Y == c].mean(0) for c in range(3)]).double()
    centred = X.double() - means[Y]
    precision = torch.linalg.inv(centred.T @ centred / 300)
    gap = X[7].double() - means
    assert float(fitted("mahalanobis").score(X[7:8])) == pytest.approx(-min(float(g @ precision @ g) for g in gap))
    with pytest.raises(DataError, match="needs the classes"):
        OODScorer("mahalanobis", W, B).fit(X)


def test_inside_the_principal_subspace_nothing_is_left() -> None:
    origin = -torch.linalg.pinv(W.double()) @ B.double()
    plane = torch.randn(200, 3, generator=G).double() @ torch.randn(3, 8, generator=G).double() + origin
    scorer = OODScorer("residual", W, B, subspace=3).fit(plane)
    assert scorer.score(plane).abs().max() < 1e-4
    assert float(scorer.score(plane[:1] + 1)) < -0.1
    vim = OODScorer("vim", W, B, subspace=3).fit(X)
    residual = OODScorer("residual", W, B, subspace=3).fit(X)
    z = (X @ W.T + B).double()
    scale = float(z.max(1).values.mean() / (-residual.score(X)).mean())
    assert torch.allclose(vim.score(X), z.logsumexp(1) + scale * residual.score(X), atol=1e-4)


def test_kl_matching_by_hand() -> None:
    z = (X @ W.T + B).double()
    p, told = z.softmax(1), z.argmax(1)
    templates = [p[told == c].mean(0) for c in told.unique()]
    wanted = -min(float((p[3] * (p[3] / t).log()).sum()) for t in templates)
    assert float(fitted("kl_matching").score(X[3:4])) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("kind", list(SCORES))
def test_every_score_repeats_itself_sample_by_sample(kind: str) -> None:
    scores = fitted(kind).score(X[:9])
    assert scores.shape == (9,) and torch.isfinite(scores).all()
    assert torch.allclose(scores[4:5], fitted(kind).score(X[4:5]), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["mahalanobis", "residual", "vim", "energy", "msp", "max_logit"])
def test_far_samples_are_told_apart(kind: str) -> None:
    weight = MEANS * 0.5
    scorer = OODScorer(kind, weight, torch.zeros(3), subspace=3).fit(X, Y)
    far = 0.5 * torch.randn(200, 8, generator=G) + 3 * torch.eye(8)[5]
    assert auroc(scorer.score(X), scorer.score(far)) > 0.9


def test_auroc_is_sklearns_and_false_positives_by_hand() -> None:
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(1, 1, 50).round(1), rng.normal(0, 1, 70).round(1)  # with ties
    wanted = roc_auc_score(np.r_[np.ones(50), np.zeros(70)], np.r_[inside, outside])
    assert auroc(torch.from_numpy(inside), torch.from_numpy(outside)) == pytest.approx(wanted)
    ranks = torch.arange(1.0, 21)  # 95 % of 20 is 19: all but the lowest, 1, so the threshold is 2
    assert false_positives(ranks, torch.tensor([0.0, 1, 2, 3])) == 0.5
    assert auroc(ranks, ranks) == 0.5


def test_unknown_score() -> None:
    with pytest.raises(UsageError, match="Did you mean 'energy'"):
        OODScorer("enrgy", W, B)
